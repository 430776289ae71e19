// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/tend"
	"flexai.io/xpu/cluster/vxpu"
	"flexai.io/xpu/cluster/xpu"
)

const (
	// longestPeriod is how far back utilisation is remembered.
	longestPeriod = 60 * time.Second
	// gaugesEvery bounds how often NVML is opened for it.
	gaugesEvery = time.Second
	// nvmlPatience is how long an answer waits for a driver that takes its time; without it the slices are
	// told all the same.
	nvmlPatience = 2 * time.Second
	// longestDebt: more than this is nonsense, since a tenant can write it.
	longestDebt = 60 * time.Second
	mib         = 1 << 20
)

// Gauges are the card's own readings, by NVML.
type Gauges interface {
	Driver() (nvmlwatch.Driver, error)
	Status(uuid string) (nvmlwatch.Status, error)
	Close()
}

// NodeDeps is what describing a node needs.
type NodeDeps struct {
	Name, IP string
	Cards    func() ([]xpu.Card, error)
	Slices   func() ([]xpu.Slice, error)
	Gauges   Gauges
}

// node remembers what the slices did.
type node struct {
	deps     NodeDeps
	gauges   shared[readings]
	patience time.Duration

	mutex  sync.Mutex
	seen   map[string]tend.Seen // by key
	trails map[place]*trail
}

type place struct {
	key  string
	card int
}

// readings are NVML's of one moment.
type readings struct {
	driver nvmlwatch.Driver
	cards  map[string]nvmlwatch.Status
	failed map[string]error
}

func newNode(deps NodeDeps) *node {
	n := &node{deps: deps, patience: nvmlPatience, seen: map[string]tend.Seen{}, trails: map[place]*trail{}}
	n.gauges = shared[readings]{interval: gaugesEvery, look: n.read}
	return n
}

// Observe takes what the keeper saw of all slices.
func (s *Service) Observe(all []tend.Seen) { s.node.observe(all) }

func (n *node) observe(all []tend.Seen) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.seen = make(map[string]tend.Seen, len(all))
	trails := make(map[place]*trail, len(n.trails))
	for _, seen := range all {
		n.seen[seen.Slice.Key] = seen
		for i, card := range seen.Cards {
			at := place{seen.Slice.Key, i}
			if trails[at] = n.trails[at]; trails[at] == nil {
				trails[at] = &trail{}
			}
			trails[at].add(seen.MonoNs, card.Use.ChargedNs)
		}
	}
	n.trails = trails
}

// read asks NVML and gives it back at once: who holds it open keeps the driver from being exchanged.
func (n *node) read() (readings, error) {
	found := readings{cards: map[string]nvmlwatch.Status{}, failed: map[string]error{}}
	cards, err := n.deps.Cards()
	if err != nil {
		return found, err
	}
	defer n.deps.Gauges.Close()
	if found.driver, err = n.deps.Gauges.Driver(); err != nil {
		return found, err
	}
	for _, card := range cards {
		status, err := n.deps.Gauges.Status(card.UUID)
		if err != nil {
			found.failed[card.UUID] = err
			continue
		}
		found.cards[card.UUID] = status
	}
	return found, nil
}

func (n *node) describe(ctx context.Context, period time.Duration) (string, error) {
	cards, err := n.deps.Cards()
	if err != nil {
		return "", err
	}
	slices, err := n.deps.Slices()
	if err != nil {
		return "", fmt.Errorf("node ledger: %w", err)
	}
	asking, cancel := context.WithTimeout(ctx, n.patience)
	defer cancel()
	found, err := n.gauges.get(asking)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("NVML did not answer within %s", n.patience)
	}
	view := vxpu.Node{}
	for _, card := range cards {
		view[card.UUID] = n.card(card, found, err)
	}
	n.mutex.Lock()
	defer n.mutex.Unlock()
	for _, slice := range slices {
		for i, share := range slice.Shares {
			if card := view[share.UUID]; card != nil { // a lost card's slices have nowhere to stand
				card.VxpuDeviceList = append(card.VxpuDeviceList, n.slice(slice, i, card, period))
			}
		}
	}
	for _, card := range view {
		for _, slice := range card.VxpuDeviceList {
			card.MemoryUsed += slice.VxpuMemoryUsed
		}
		card.MemoryUtilization = percent(float64(card.MemoryUsed), float64(card.MemoryTotal))
	}
	return view.Encode()
}

func (n *node) card(card xpu.Card, found readings, failed error) *vxpu.Card {
	made := &vxpu.Card{Index: card.Index, Id: card.UUID, Type: "GPU-" + card.Short(), Health: card.Healthy,
		Count: card.Split, MemoryTotal: card.MemoryMiB, NodeName: n.deps.Name, NodeIp: n.deps.IP, Model: card.Model,
		DriverVersion: found.driver.Version, FrameworkVersion: found.driver.CUDA, VxpuDeviceList: []vxpu.Slice{}}
	if failed == nil {
		failed = found.failed[card.UUID]
	}
	if failed != nil {
		made.Health, made.Trouble = false, failed.Error()
		return made
	}
	status := found.cards[card.UUID]
	made.XpuUtilization, made.PowerUsage, made.Temperature = status.BusyPercent, status.PowerMw, status.Celsius
	if status.UsedBytes != nil {
		used := *status.UsedBytes / mib
		made.CardMemoryUsed = &used
	}
	return made
}

// slice describes share i. One whose pages weren't read yet shows its grant.
func (n *node) slice(slice xpu.Slice, i int, card *vxpu.Card, period time.Duration) vxpu.Slice {
	share := slice.Shares[i]
	made := vxpu.Slice{Id: fmt.Sprintf("%s-%d", share.UUID, share.VID), GpuId: share.UUID, PodUID: slice.Owner.PodUID,
		ContainerName: slice.Owner.Container, VxpuMemoryLimit: int64(share.MemoryMiB), VxpuCoreLimit: int64(share.CoresPercent),
		Namespace: slice.Namespace, Pod: slice.Pod, Mode: modeNames[pages.ModeNone], ShareInForce: float64(share.CoresPercent)}
	seen, ok := n.seen[slice.Key]
	if !ok || i >= len(seen.Cards) || seen.Slice.Owner != slice.Owner {
		return made
	}
	at := seen.Cards[i]
	made.MemoryBytes = at.HeldBytes + at.Grant.OverheadBytes
	made.VxpuMemoryUsed = made.MemoryBytes / mib
	made.VxpuMemoryUtilization = percent(float64(made.VxpuMemoryUsed), float64(card.MemoryTotal))
	made.VxpuMemoryLimit = int64(at.Grant.MemoryBytes / mib)
	made.VxpuCoreLimit = int64(at.Grant.CoresPercent)
	made.VxpuCoreUtilization = n.trails[place{slice.Key, i}].percent(period)
	made.Mode, made.ShareInForce = modeNames[at.Grant.Mode], at.Grant.Share()
	made.Paused = at.Grant.Flags&pages.FlagPaused != 0
	made.ChargedSeconds, made.ThrottledSeconds = seconds(at.Use.ChargedNs), seconds(at.Use.ThrottledNs)
	made.Denied, made.Launches, made.Processes = at.Use.Denied, at.Use.Launches, seen.Processes
	// Compared before the difference is taken: a tenant's number may be any.
	if at.Grant.Mode != pages.ModeNone && at.Use.TatNs > seen.MonoNs {
		made.DebtSeconds = time.Duration(min(at.Use.TatNs-seen.MonoNs, int64(longestDebt))).Seconds()
	}
	return made
}

// modeNames are the ledger's words, and one for no compute limit.
var modeNames = map[pages.Mode]string{pages.ModeNone: "none", pages.ModeHard: string(xpu.ModeHard),
	pages.ModeElastic: string(xpu.ModeElastic), pages.ModeFixedShare: string(xpu.ModeFixedShare),
	pages.ModePriority: string(xpu.ModePriority)}

func seconds(ns uint64) float64 { return float64(ns) / 1e9 }

// percent with two decimals, as flexai's own numbers have.
func percent(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return math.Round(10000*part/whole) / 100
}

// trail is what a slice had been charged on one card at each of the last seconds.
type trail struct{ marks []mark }

type mark struct {
	at      int64
	charged uint64
}

// slack: the keeper's seconds are a little long.
const slack = int64(500 * time.Millisecond)

func (t *trail) add(at int64, charged uint64) {
	t.marks = append(t.marks, mark{at, charged})
	for len(t.marks) > 2 && at-t.marks[0].at > int64(longestPeriod)+slack {
		t.marks = t.marks[1:]
	}
}

// percent of the card over the period, or over as much of it as is known. A tenant can write what he was
// charged, so a sum that fell, or rose beyond what time allows, says nothing beyond 0 and 100.
func (t *trail) percent(period time.Duration) float64 {
	if t == nil || len(t.marks) < 2 {
		return 0
	}
	last := t.marks[len(t.marks)-1]
	first := last
	for _, one := range t.marks {
		if last.at-one.at <= int64(period)+slack {
			first = one
			break
		}
	}
	if last.charged < first.charged {
		return 0
	}
	return min(percent(float64(last.charged-first.charged), float64(last.at-first.at)), 100)
}
