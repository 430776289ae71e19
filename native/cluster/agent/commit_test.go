// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"flexai.io/xpu/cluster/xpu"
)

// gated is a disk whose transactions wait until told, and which counts the durable writes.
type gated struct {
	*world
	began, let chan struct{}
	mutex      sync.Mutex
	saves      int
}

func (g *gated) Load() (xpu.Ledger, error) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	return g.world.Load()
}

func (g *gated) Transact(change func(xpu.Ledger) error) error {
	g.began <- struct{}{}
	<-g.let
	ledger, err := g.Load()
	if err != nil {
		return err
	}
	return change(ledger)
}

func (g *gated) Save(ledger xpu.Ledger) error {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.saves++
	return g.world.Save(ledger)
}

// crowd has one container begin its commit, and the others wait for it; then the disk goes on. The errors, in
// the order of the ids.
func crowd(g *gated, a *Agent, count int) []error {
	errs := make([]error, count)
	var all sync.WaitGroup
	start := func(i int) {
		all.Go(func() { errs[i] = a.Prepare(context.Background(), []string{fmt.Sprint(i)}) })
	}
	start(0)
	<-g.began
	for i := 1; i < count; i++ {
		start(i)
	}
	waiting := func() int {
		a.commits.mutex.Lock()
		defer a.commits.mutex.Unlock()
		return len(a.commits.next)
	}
	for waiting() < count-1 {
		runtime.Gosched()
	}
	g.let <- struct{}{}
	<-g.began
	g.let <- struct{}{}
	all.Wait()
	return errs
}

func crowded(t *testing.T, count int) (*gated, *Agent) {
	t.Helper()
	w := newWorld()
	w.watched = true
	for i := range count {
		w.admit(fmt.Sprintf("u%d", i), fmt.Sprintf("p%d", i), "app", []string{fmt.Sprint(i)}, 10, 1)
	}
	a := w.start(t)
	g := &gated{world: w, began: make(chan struct{}), let: make(chan struct{})}
	a.Store = g
	return g, a
}

func TestContainersThatStartTogetherWaitForTwoDurableWrites(t *testing.T) {
	const count = 20 // all that two cards have
	g, a := crowded(t, count)
	for i, err := range crowd(g, a, count) {
		if err != nil {
			t.Errorf("container %d: %v", i, err)
		}
	}
	if g.saves != 2 || len(a.Ledger().Slices()) != count || len(g.files) != count || len(g.cdi) != count {
		t.Errorf("%d durable writes, %d slices, %d directories, %d CDI entries", g.saves, len(a.Ledger().Slices()),
			len(g.files), len(g.cdi))
	}
}

func TestWhoFindsNoRoomAmongOthersIsRefusedAlone(t *testing.T) {
	const count, room = 23, 20
	g, a := crowded(t, count)
	refused := 0
	for _, err := range crowd(g, a, count) {
		var noFit *xpu.NoFit
		if errors.As(err, &noFit) {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if refused != count-room || len(g.files) != room || len(g.cdi) != room {
		t.Errorf("%d refused, %d directories, %d CDI entries", refused, len(g.files), len(g.cdi))
	}
}

// While somebody writes, who has his slice starts again and who finds no room is told so.
func TestARestartAndARefusalWaitForNoWriter(t *testing.T) {
	g, a := crowded(t, 21) // one more than there is room for
	a.Store = g.world
	for i := range 19 {
		prepare(t, a, fmt.Sprint(i))
	}
	a.Store = g
	writes := make(chan error)
	go func() { writes <- a.Prepare(context.Background(), []string{"19"}) }()
	<-g.began
	prepare(t, a, "0")
	a.SetCards(a.KnownCards()[:1])
	var noFit *xpu.NoFit
	if err := a.Prepare(context.Background(), []string{"20"}); !errors.As(err, &noFit) {
		t.Errorf("no room is told as %v", err)
	}
	g.let <- struct{}{}
	if err := <-writes; err != nil && !errors.As(err, &noFit) {
		t.Error(err)
	}
}

// lingering is a disk on which the CDI file takes until told.
type lingering struct {
	*world
	began, let chan struct{}
}

func (l *lingering) WriteCDI(ledger xpu.Ledger, cards []xpu.Card) error {
	l.began <- struct{}{}
	<-l.let
	return l.world.WriteCDI(ledger, cards)
}

// The ledger has the other's slice already and the CDI file doesn't; that is nothing to one that stands in both.
func TestARestartWaitsForNoOthersCDIEntry(t *testing.T) {
	g, a := crowded(t, 2)
	a.Store = g.world
	prepare(t, a, "0")
	slow := &lingering{world: g.world, began: make(chan struct{}), let: make(chan struct{})}
	a.Store = slow
	other := make(chan error)
	go func() { other <- a.Prepare(context.Background(), []string{"1"}) }()
	<-slow.began
	if len(a.Ledger().Slices()) != 2 || len(g.cdi) != 1 {
		t.Fatalf("ledger %v, CDI %v", a.Ledger().Slices(), g.cdi)
	}
	prepare(t, a, "0")
	close(slow.let)
	if err := <-other; err != nil || len(g.cdi) != 2 {
		t.Errorf("%v, CDI %v", err, g.cdi)
	}
}

// A slice whose entry is lost, or was never written before a kill, gets it at its start.
func TestAStartWithoutItsCDIEntryWritesIt(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	a := w.start(t)
	prepare(t, a, "a")
	w.cdi = nil
	prepare(t, a, "a")
	if len(w.cdi) != 1 {
		t.Errorf("CDI %v", w.cdi)
	}
}

func TestADiskThatFailsFailsAllOfThemAndPromisesNothing(t *testing.T) {
	g, a := crowded(t, 5)
	g.failAfter = 3 // the first one's ledger, directory and CDI entry
	errs := crowd(g, a, 5)
	if errs[0] != nil {
		t.Error(errs[0])
	}
	for i, err := range errs[1:] {
		if !errors.Is(err, errKilled) {
			t.Errorf("container %d: %v", i+1, err)
		}
	}
	if len(a.Ledger().Slices()) != 1 || len(g.files) != 1 {
		t.Errorf("%d slices, %d directories", len(a.Ledger().Slices()), len(g.files))
	}
}

// Two claims of one id in one breath: the kubelet has dealt it on, so the later one has it.
func TestIdsDealtOnInTheSameBreathAreTheLaterOnes(t *testing.T) {
	w := newWorld()
	a := w.start(t)
	claim := func(uid string) *order {
		return a.commits.add(xpu.Claim{Owner: xpu.Owner{PodUID: uid, Container: "c"}, Tokens: []string{"a"},
			Ask: xpu.Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 1024}})
	}
	first, second := claim("u1"), claim("u2")
	a.write(a.commits.take())
	if first.err != nil || second.err != nil {
		t.Errorf("%v, %v", first.err, second.err)
	}
	if len(w.files) != 1 || w.files["u2/c"].Key != second.slice.Key || len(w.cdi) != 1 {
		t.Errorf("files %v, cdi %v", w.files, w.cdi)
	}
}
