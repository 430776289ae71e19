// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"testing"
	"time"

	"flexai.io/xpu/cluster/xpu"
)

func TestWhoFindsNoRoomForTooLongIsNamedOnce(t *testing.T) {
	const patience = time.Minute
	w := newWorld()
	w.admit("u0", "p0", "whole", []string{"w", "x"}, 0, 0)
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	w.admit("u2", "p2", "shape", []string{"b"}, 150, 3)
	a := w.start(t)
	prepare(t, a, "w", "x")
	refused := func(token string) {
		t.Helper()
		if a.Prepare(context.Background(), []string{token}) == nil {
			t.Fatalf("%s found room", token)
		}
	}
	refused("a")
	refused("b") // not for want of room: it would be refused anywhere
	w.now = w.now.Add(59 * time.Second)
	refused("a")
	if early := a.Starving(patience); len(early) > 0 {
		t.Fatalf("after 59 s: %+v", early)
	}
	w.now = w.now.Add(2 * time.Second)
	starving := a.Starving(patience)
	if len(starving) != 1 || starving[0].Pod.UID != "u1" || starving[0].Pod.Name != "p1" || starving[0].Pod.Namespace != "n" {
		t.Fatalf("%+v", starving)
	}
	want := "container app found no room for 1m1s: no room for 1 card(s) with 20 % cores and 3072 MiB each; GPU-0: 0 % cores and 0 MiB free"
	if got := starving[0].Message; len(got) < len(want) || got[:len(want)] != want {
		t.Errorf("%q, want it to begin %q", got, want)
	}
	if again := a.Starving(patience); len(again) > 0 || !a.Starves(starving[0].Owner) {
		t.Errorf("told twice: %+v", again)
	}
	w.forget("u0")
	for range 2 {
		if err := a.ReapOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	prepare(t, a, "a")
	if a.Starves(starving[0].Owner) {
		t.Error("it starves with a slice")
	}
}

func TestWhoAsksNoMoreDoesNotStarve(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 41)
	a := w.start(t)
	wantError(t, a.Prepare(context.Background(), []string{"a"}), "no room")
	w.now = w.now.Add(2 * time.Minute)
	if starving := a.Starving(time.Minute); len(starving) > 0 {
		t.Errorf("it may be deleted by now: %+v", starving)
	}
	w.now = w.now.Add(forgetAfter)
	if starving := a.Starving(time.Minute); len(starving) > 0 || a.Starves(xpu.Owner{PodUID: "u1", Container: "app"}) {
		t.Errorf("%+v", starving)
	}
}
