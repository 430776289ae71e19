// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"slices"
	"testing"
	"time"

	"flexai.io/xpu/cluster/xpu"
)

// dealing is a watched node whose kubelet has dealt ids to one container.
func dealing(t *testing.T) (*world, *Agent) {
	t.Helper()
	w := newWorld()
	w.watched = true
	a := w.start(t)
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	a.Dealt([]string{"a"})
	return w, a
}

func TestASliceSettledAheadLetsItsContainerStartWithoutAWrite(t *testing.T) {
	w, a := dealing(t)
	if left := a.settleDealt(); left != 0 || len(w.files) != 1 || len(w.cdi) != 1 {
		t.Fatalf("%d left, files %v, CDI %v", left, w.files, w.cdi)
	}
	w.failAfter = 0
	prepare(t, a, "a")
	// The next start of the same container gets files that know nothing of the first.
	wantError(t, a.Prepare(context.Background(), []string{"a"}), errKilled.Error())
}

func TestWhatTheKubeletHasNotWrittenDownYetIsLookedForAgain(t *testing.T) {
	w := newWorld()
	a := w.start(t)
	a.Dealt([]string{"a"})
	if left := a.settleDealt(); left != 1 {
		t.Errorf("%d left without a checkpoint", left)
	}
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	if left := a.settleDealt(); left != 1 {
		t.Errorf("%d left without the pod", left)
	}
	w.watched = true
	if left := a.settleDealt(); left != 0 || len(w.files) != 1 {
		t.Errorf("%d left, files %v", left, w.files)
	}
	a.Dealt([]string{"never"})
	w.now = w.now.Add(aheadFor + time.Second)
	if left := a.settleDealt(); left != 0 {
		t.Errorf("%d still waited for", left)
	}
}

// The kubelet deals resource by resource, and what else it writes its checkpoint for may come between two of them:
// the number alone would be a whole card.
func TestAContainerThatHasNotGotAllItAsksForIsLookedForAgain(t *testing.T) {
	w, a := dealing(t)
	whole := w.entries
	for missing := range whole {
		w.entries = slices.Delete(slices.Clone(whole), missing, missing+1)
		if left := a.settleDealt(); left != 1 || len(w.files) > 0 || len(a.Ledger().Slices()) > 0 {
			t.Fatalf("without %s: %d left, files %v", whole[missing].Resource, left, w.files)
		}
	}
	w.entries = whole
	if left := a.settleDealt(); left != 0 || len(w.files) != 1 {
		t.Fatalf("%d left, files %v", left, w.files)
	}
	if share := prepare(t, a, "a").Shares[0]; share.CoresPercent != 20 || share.MemoryMiB != 3<<10 {
		t.Errorf("%+v", share)
	}
}

// The kubelet hands an init container's ids to a later container of the pod, and writes its checkpoint in between.
func TestAnInitContainersSliceIsSettledAheadForItsHeir(t *testing.T) {
	w := newWorld()
	w.watched = true
	a := w.start(t)
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	w.annotate("p1", func(p *Pod) { p.Limits["init"] = p.Limits["app"] })
	w.entries = nil
	w.assign("u1", "init", []string{"a"}, 20, 3)
	a.Dealt([]string{"a"})
	a.Dealt([]string{"a"}) // for the app
	if left := a.settleDealt(); left != 1 || len(a.Ledger().Slices()) > 0 {
		t.Fatalf("%d left, %v before the heir is there", left, a.Ledger().Slices())
	}
	w.assign("u1", "app", []string{"a"}, 20, 3)
	if left := a.settleDealt(); left != 0 {
		t.Fatalf("%d left", left)
	}
	w.failAfter = 0
	if slice := prepare(t, a, "a"); slice.Owner.Container != "app" {
		t.Errorf("%+v", slice)
	}
	w.failAfter = 1 // a start writes its own files, and nothing else
	prepare(t, a, "a")
}

// What is unclear, refused or another's waits for the container's own start.
func TestNothingIsSettledAheadThatAStartMightSettleOtherwise(t *testing.T) {
	for name, change := range map[string]func(w *world, a *Agent){
		"an init container runs with one of the ids": func(w *world, _ *Agent) { w.assign("u1", "init", []string{"a", "b"}, 20, 3) },
		"two containers hold the ids":                func(w *world, _ *Agent) { w.admit("u1", "p1", "side", []string{"a"}, 20, 3) },
		"another pod is said to hold them":           func(w *world, _ *Agent) { w.admit("u2", "p2", "app", []string{"a"}, 20, 3) },
		"another pod's other container holds them":   func(w *world, _ *Agent) { w.admit("u2", "p2", "side", []string{"a"}, 20, 3) },
		"the pod has ended":                          func(w *world, _ *Agent) { w.annotate("p1", func(p *Pod) { p.Finished = true }) },
		"an annotation is wrong":                     func(w *world, _ *Agent) { w.annotate("p1", func(p *Pod) { p.Class = "gold" }) },
		"there is no room":                           func(_ *world, a *Agent) { a.SetCards(nil) },
		"the disk fails":                             func(w *world, _ *Agent) { w.failAfter = 0 },
		"the container has started":                  func(_ *world, a *Agent) { a.ahead.starts(xpu.Key([]string{"a"})) },
	} {
		t.Run(name, func(t *testing.T) {
			w, a := dealing(t)
			change(w, a)
			if left := a.settleDealt(); left != 0 || len(w.files) != 0 {
				t.Errorf("%d left, files %v", left, w.files)
			}
			if _, ready := a.ahead.starts(xpu.Key([]string{"a"})); ready {
				t.Error("a start would find it settled")
			}
		})
	}
}

// Ids that are dealt again mean another container, whose start must not take what was settled for the last.
func TestIdsDealtAgainAreNotReady(t *testing.T) {
	w, a := dealing(t)
	a.settleDealt()
	w.forget("u1")
	w.admit("u2", "p2", "app", []string{"a"}, 50, 6)
	a.Dealt([]string{"a"})
	if slice := prepare(t, a, "a"); slice.Owner.PodUID != "u2" || slice.Shares[0].CoresPercent != 50 {
		t.Errorf("%+v", slice)
	}
}

// The kubelet tells its plugin of a dealing before it writes it down, and an ended pod may still be seen: what is
// settled in that moment is the former owner's, and only the checkpoint at the start says so.
func TestWhatWasSettledForTheFormerOwnerIsNotItsSuccessors(t *testing.T) {
	w, a := dealing(t)
	a.Dealt([]string{"a"}) // to u2
	a.settleDealt()
	w.forget("u1")
	w.admit("u2", "p2", "app", []string{"a"}, 50, 6)
	if slice := prepare(t, a, "a"); slice.Owner.PodUID != "u2" || slice.Shares[0].CoresPercent != 50 {
		t.Errorf("%+v", slice)
	}
}

func TestIdsDealtToAnotherPodAreSettledForIt(t *testing.T) {
	w, a := dealing(t)
	a.settleDealt()
	w.forget("u1")
	w.admit("u2", "p2", "app", []string{"a"}, 50, 6)
	a.Dealt([]string{"a"})
	a.settleDealt()
	slices := a.Ledger().Slices()
	if len(slices) != 1 || slices[0].Owner.PodUID != "u2" || slices[0].Shares[0].CoresPercent != 50 {
		t.Errorf("%+v", slices)
	}
}

// refusing is a watched node on whose only card with room the first of these containers runs; the others, who want
// half of it each, were refused at their starts.
func refusing(t *testing.T, refused ...string) (*world, *Agent) {
	t.Helper()
	w := newWorld()
	w.watched = true
	a := w.start(t)
	a.SetCards(a.Cards[:1])
	w.admit("u0", "p0", "app", []string{"0"}, 60, 3)
	prepare(t, a, "0")
	for _, id := range refused {
		w.admit("u"+id, "p"+id, "app", []string{id}, 50, 3)
		a.Dealt([]string{id})
		wantError(t, a.Prepare(context.Background(), []string{id}), "no room")
		w.now = w.now.Add(time.Second)
	}
	return w, a
}

// leave ends the pod that has the card.
func leave(t *testing.T, w *world, a *Agent) {
	t.Helper()
	w.forget("u0")
	for range 2 {
		if err := a.ReapOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhoFoundNoRoomIsSettledAsSoonAsThereIsSome(t *testing.T) {
	w, a := refusing(t, "1")
	w.failAfter = 0 // looking costs no write
	w.now = w.now.Add(aheadFor + time.Hour)
	if left := a.settleDealt(); left != 0 || len(w.files) != 1 {
		t.Fatalf("%d left, files %v", left, w.files)
	}
	w.failAfter = -1
	leave(t, w, a)
	select {
	case <-a.ahead.news:
	default:
		t.Error("nobody said that there might be room")
	}
	a.settleDealt()
	owner := xpu.Owner{PodUID: "u1", Container: "app"}
	if a.Starves(owner) {
		t.Error("it has its slice, and would be evicted for want of room")
	}
	w.failAfter = 0
	if slice := prepare(t, a, "1"); slice.Owner != owner {
		t.Errorf("%+v", slice)
	}
}

// Of two who wait for the same room, who asked first gets it, and the other one waits on.
func TestRoomGoesToWhoWaitsLongest(t *testing.T) {
	w, a := refusing(t, "2", "1", "3")
	leave(t, w, a)
	a.settleDealt()
	var got []string
	for _, slice := range a.Ledger().Slices() {
		got = append(got, slice.Owner.PodUID)
	}
	if !slices.Equal(got, []string{"u1", "u2"}) {
		t.Errorf("%v have slices", got)
	}
	if a.settleDealt(); len(a.Ledger().Slices()) != 2 || len(a.ahead.dealt) != 1 || !a.Starves(xpu.Owner{PodUID: "u3", Container: "app"}) {
		t.Errorf("%v wait", a.ahead.dealt)
	}
}

func TestWhoWaitsForRoomIsForgottenWithItsPod(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"the kubelet forgets it":    func(w *world) { w.forget("u1") },
		"it has ended":              func(w *world) { w.annotate("p1", func(p *Pod) { p.Finished = true }) },
		"the API server forgets it": func(w *world) { delete(w.pods, "n/p1") },
	} {
		t.Run(name, func(t *testing.T) {
			w, a := refusing(t, "1")
			end(w)
			leave(t, w, a)
			if left := a.settleDealt(); left != 0 || len(w.files) != 0 || len(a.ahead.dealt) != 0 {
				t.Errorf("%d left, files %v, waiting %v", left, w.files, a.ahead.dealt)
			}
		})
	}
}

// The loop settles what was dealt before and after it began, and ends with its context.
func TestTheLoopSettlesAndEnds(t *testing.T) {
	w, a := dealing(t)
	settled := make(chan struct{}, 2)
	a.Changed = func() { settled <- struct{}{} }
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { a.SettleAhead(ctx); close(ended) }()
	<-settled
	if len(w.cdi) != 1 {
		t.Errorf("CDI %v", w.cdi)
	}
	end()
	<-ended
}
