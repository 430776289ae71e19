// SPDX-License-Identifier: Apache-2.0

// Package agent binds a starting container to its cards: from the ids the kubelet dealt out to the
// container that holds them, from its requests to a share of a card, and from there to files.
// reference/device-binding.md tells the kubelet's behaviour this rests on.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"flexai.io/xpu/cluster/checkpoint"
	"flexai.io/xpu/cluster/xpu"
)

// Resources names the three resources of a slice.
type Resources struct {
	Number, Cores, Memory string
}

// Holding is what PodResources shows: one container with its ids of resource Number.
type Holding struct {
	Namespace, Pod, Container string
	IDs                       []string
}

// Kubelet answers who holds which ids.
type Kubelet interface {
	Checkpoint() ([]checkpoint.Entry, error)
	Holdings(ctx context.Context) ([]Holding, error)
}

// Pod is what the API server says of one pod; the fields after Containers are annotations as they stand.
type Pod struct {
	UID             string
	Namespace, Name string
	Finished        bool
	Containers      []string          // init containers are not among them
	Limits          map[string]Limits // by container, init containers among them
	Preference      string            // huawei.com/vgpu-ids-new
	Shapes          string            // flexai.io/vgpu-shape
	Class           string            // flexai.io/class
	Models          string            // flexai.io/vgpu-type
	Bandwidth       string            // flexai.io/intra-bandwidth
}

// Limits are how many of each resource's devices a container asks for.
type Limits map[string]int

// ErrNoPod says that the API server has no such pod.
var ErrNoPod = errors.New("no such pod")

// Pods reads one pod; it returns ErrNoPod when there is none.
type Pods interface {
	Pod(ctx context.Context, namespace, name string) (Pod, error)
	// PodOf is the pod of this node with this UID, whose name nobody told: an init container's.
	PodOf(ctx context.Context, uid string) (Pod, error)
}

// Store is the node's disk; see package store.
type Store interface {
	Load() (xpu.Ledger, error)
	// Transact runs change on the ledger as it stands, while nobody else on the node may change it.
	Transact(change func(xpu.Ledger) error) error
	Save(xpu.Ledger) error
	WriteSlice(xpu.Slice) error
	RemoveSlice(xpu.Slice) error
	WriteCDI(xpu.Ledger, []xpu.Card) error
	// EntryStands says whether the CDI entry of this slice is as WriteCDI would make it.
	EntryStands(xpu.Slice, []xpu.Card) (bool, error)
	Sweep(xpu.Ledger) error
	// Restore writes what pods' slices lack.
	Restore(xpu.Ledger) error
}

// Deps is the world around an agent.
type Deps struct {
	Resources Resources
	Cards     []xpu.Card
	Class     xpu.Class // of pods that name none
	Kubelet   Kubelet
	Pods      Pods
	// Known is a pod of this node by its UID, as far as somebody keeps watch; it asks nobody. Nil: nobody does.
	Known func(uid string) (Pod, bool)
	Store Store
	Now   func() time.Time
	Log   *slog.Logger
	// Changed hears that the ledger or who waits for room may be others; it must not wait.
	Changed func()
}

// Agent owns the node's ledger.
type Agent struct {
	Deps
	commits commits
	ahead   ahead
	absence xpu.Absence

	// mutex guards what follows and Cards, and is never held while something is read or written.
	mutex   sync.Mutex
	ledger  xpu.Ledger // as it was read or written last
	waiting xpu.Waiting
}

// New loads the ledger, removes what a killed predecessor left half done and restores what a boot took.
func New(deps Deps) (*Agent, error) {
	if deps.Known == nil {
		deps.Known = func(string) (Pod, bool) { return Pod{}, false }
	}
	a := &Agent{Deps: deps, commits: commits{turn: make(chan struct{}, 1)}, ahead: newAhead()}
	err := deps.Store.Transact(func(ledger xpu.Ledger) error {
		a.ledger = ledger
		if err := deps.Store.Sweep(ledger); err != nil {
			return fmt.Errorf("remove leftovers: %w", err)
		}
		if err := deps.Store.Restore(ledger); err != nil {
			// Each start writes its own.
			deps.Log.Warn("files of some pods' slices not restored", "error", err)
		}
		return deps.Store.WriteCDI(ledger, deps.Cards)
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Ledger is the node ledger as it stands on disk, where the host registers slices of its own. While it
// can't be read, it is what was read last.
func (a *Agent) Ledger() xpu.Ledger {
	fresh, err := a.Store.Load()
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if err != nil {
		a.Log.Warn("node ledger not read; going by what is known of it", "error", err)
		return a.ledger
	}
	a.ledger = fresh
	return fresh
}

// wrote notes what the ledger on disk says now.
func (a *Agent) wrote(ledger xpu.Ledger) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.ledger = ledger
}

// Prepare settles the slice of the container that holds these ids and writes its files. It runs
// before each start of the container; the same container gets the same slice each time.
func (a *Agent) Prepare(ctx context.Context, tokens []string) error {
	holders, err := a.holders(tokens)
	if err != nil {
		return err
	}
	claim, known := a.restarted(holders, tokens)
	if !known {
		if claim, err = a.claim(ctx, holders, tokens); err != nil {
			return err
		}
	}
	owner, ready := a.ahead.starts(xpu.Key(tokens))
	err = a.start(claim, ready && owner == claim.Owner)
	a.note(claim, err)
	if noRoom(err) {
		a.ahead.wait(tokens, a.Now())
	}
	if !known {
		a.Changed()
	}
	return err
}

func (a *Agent) holders(tokens []string) ([]checkpoint.Container, error) {
	entries, err := a.Kubelet.Checkpoint()
	if err != nil {
		return nil, err
	}
	holders := checkpoint.Holders(entries, a.Resources.Number, tokens)
	if len(holders) == 0 {
		return nil, fmt.Errorf("kubelet's checkpoint names no container that holds exactly these %d ids of %s "+
			"(%v); the kubelet tries again", len(tokens), a.Resources.Number, tokens)
	}
	for _, holder := range holders[1:] {
		if holder.PodUID != holders[0].PodUID {
			return nil, fmt.Errorf("kubelet's checkpoint gives ids %v to pods %s and %s; restart the kubelet if this stays",
				tokens, holders[0].PodUID, holder.PodUID)
		}
	}
	return holders, nil
}

// restarted finds the claim of a container that has its slice already, without asking anyone: a
// container must be able to restart while the API server is away.
func (a *Agent) restarted(holders []checkpoint.Container, tokens []string) (xpu.Claim, bool) {
	if len(holders) != 1 {
		return xpu.Claim{}, false
	}
	return a.settled(holders, tokens)
}

// settled is the claim that one of these containers made of these ids before.
func (a *Agent) settled(holders []checkpoint.Container, tokens []string) (xpu.Claim, bool) {
	key, ledger := xpu.Key(tokens), a.Ledger()
	for _, holder := range holders {
		owner := xpu.Owner{PodUID: holder.PodUID, Container: holder.Name}
		if held, ok := ledger.Of(owner); ok && held.Key == key {
			return xpu.Claim{Owner: owner, Namespace: held.Namespace, Pod: held.Pod, Tokens: tokens}, true
		}
	}
	return xpu.Claim{}, false
}

func (a *Agent) counts(holder checkpoint.Container) xpu.Counts {
	return xpu.Counts{
		Number:    len(holder.IDs[a.Resources.Number]),
		Cores:     len(holder.IDs[a.Resources.Cores]),
		MemoryGiB: len(holder.IDs[a.Resources.Memory]),
	}
}

// whole says whether the kubelet has dealt a pod all that it asks for. It deals container by container and resource
// by resource, and writes its checkpoint in between: by its number alone a container would ask for whole cards, and
// an init container's ids may be its heir's, too.
func (a *Agent) whole(entries []checkpoint.Entry, pod Pod) bool {
	for name, asked := range pod.Limits {
		dealt := a.counts(checkpoint.Container{IDs: checkpoint.Held(entries, pod.UID, name)})
		if dealt != (xpu.Counts{Number: asked[a.Resources.Number], Cores: asked[a.Resources.Cores], MemoryGiB: asked[a.Resources.Memory]}) {
			return false
		}
	}
	return true
}

// choose picks among containers of one pod that hold the same ids: an init container and the one
// that got its ids afterwards. They run one after the other, so one slice serves both, if they ask
// for the same.
func (a *Agent) choose(holders []checkpoint.Container, running string) (checkpoint.Container, error) {
	chosen := holders[0]
	for _, holder := range holders {
		if a.counts(holder) != a.counts(chosen) {
			return chosen, fmt.Errorf("containers %s and %s of one pod were given the same ids but ask for different "+
				"slices; give the init container the same requests", chosen.Name, holder.Name)
		}
		if holder.Name == running {
			chosen = holder
		}
	}
	return chosen, nil
}

// Reap ends the slices whose containers are gone, every interval, until ctx ends.
func (a *Agent) Reap(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := a.ReapOnce(ctx); err != nil {
				a.Log.Warn("looking for ended containers failed; trying again", "error", err)
			}
		}
	}
}

// ReapOnce is one look; an owner missed by two looks in a row loses its slice. Slices of the host end by
// its own command only. Whoever waits for room is looked at afterwards: it may be there, by whatever made it.
func (a *Agent) ReapOnce(ctx context.Context) error {
	defer a.ahead.poke()
	held := slices.DeleteFunc(a.Ledger().Slices(), func(s xpu.Slice) bool { return s.Owner.OfHost() })
	alive, err := a.alive(ctx, held)
	if err != nil {
		return err
	}
	owners := make([]xpu.Owner, 0, len(held))
	for _, slice := range held {
		owners = append(owners, slice.Owner)
	}
	for _, owner := range a.absence.Look(owners, func(o xpu.Owner) bool { return alive[o] }) {
		if err := a.release(owner); err != nil {
			return err
		}
	}
	return nil
}

// alive asks the kubelet first. Its checkpoint lists a finished pod until the next admission, so a
// pod that PodResources shows without devices is looked up at the API server.
func (a *Agent) alive(ctx context.Context, slices []xpu.Slice) (map[xpu.Owner]bool, error) {
	entries, err := a.Kubelet.Checkpoint()
	if err != nil {
		return nil, err
	}
	listed := map[xpu.Owner]bool{}
	for _, entry := range entries {
		listed[xpu.Owner{PodUID: entry.PodUID, Container: entry.Container}] = true
	}
	holdings, err := a.Kubelet.Holdings(ctx)
	if err != nil {
		return nil, err
	}
	shown := map[string]bool{}
	for _, holding := range holdings {
		shown[holding.Namespace+"/"+holding.Pod] = true
	}
	alive := map[xpu.Owner]bool{}
	for _, slice := range slices {
		if listed[slice.Owner] {
			alive[slice.Owner] = shown[slice.Namespace+"/"+slice.Pod] || !a.finished(ctx, slice)
		}
	}
	return alive, nil
}

func (a *Agent) finished(ctx context.Context, slice xpu.Slice) bool {
	if slice.Pod == "" {
		return false
	}
	pod, err := a.Pods.Pod(ctx, slice.Namespace, slice.Pod)
	if err != nil {
		return errors.Is(err, ErrNoPod)
	}
	return pod.Finished || pod.UID != slice.Owner.PodUID
}

// release takes the way back: entry, ledger, files. Killed in between, the next start sweeps.
func (a *Agent) release(owner xpu.Owner) error {
	a.commits.turn <- struct{}{}
	defer func() { <-a.commits.turn }()
	return a.Store.Transact(func(fresh xpu.Ledger) error { return a.end(fresh, owner) })
}

func (a *Agent) end(ledger xpu.Ledger, owner xpu.Owner) error {
	slice, held := ledger.Of(owner)
	if !held {
		return nil
	}
	next := ledger.Release(owner)
	if err := a.Store.WriteCDI(next, a.KnownCards()); err != nil {
		return err
	}
	if err := a.Store.Save(next); err != nil {
		return err
	}
	a.wrote(next)
	a.Log.Info("slice ended", "pod", slice.Namespace+"/"+slice.Pod, "owner", owner.String(), "key", slice.Key)
	return a.Store.RemoveSlice(slice)
}
