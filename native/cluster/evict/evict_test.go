// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/tend"
	"flexai.io/xpu/cluster/xpu"
)

var _ tend.Evictor = (*Queue)(nil)

// server is an API server that refuses evictions while it has an error to give.
type server struct {
	mutex   sync.Mutex
	refuse  error
	calls   []string
	nobody  bool
	stalled chan struct{} // nil: it answers at once
}

func (s *server) note(call string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.calls = append(s.calls, call)
}

// set changes what it answers from now on.
func (s *server) set(change func()) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	change()
}

func (s *server) PodOf(_ context.Context, uid string) (agent.Pod, error) {
	s.note("find " + uid)
	return agent.Pod{UID: uid, Namespace: "n", Name: "found"}, nil
}

func (s *server) Warn(_ context.Context, pod agent.Pod, reason, message string) error {
	s.note("warn " + pod.Name + " " + reason + " " + message)
	return nil
}

func (s *server) Evict(ctx context.Context, pod agent.Pod) error {
	if s.stalled != nil {
		select {
		case <-s.stalled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.note("evict " + pod.Name)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.nobody {
		return agent.ErrNoPod
	}
	return s.refuse
}

// beside runs a queue beside test, in time that passes when nobody has anything to do.
func beside(t *testing.T, s *server, test func(*Queue)) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue(s, slog.New(slog.NewTextHandler(io.Discard, nil)))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); q.Run(ctx) }()
		test(q)
		cancel()
		<-done
	})
}

func want(t *testing.T, s *server, calls ...string) {
	t.Helper()
	synctest.Wait()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if !slices.Equal(s.calls, calls) {
		t.Errorf("%q, want %q", s.calls, calls)
	}
	s.calls = nil
}

var victim = Victim{Pod: agent.Pod{UID: "u1", Namespace: "n", Name: "p"}, Reason: NoRoom, Message: "full"}

func TestAPodIsWarnedThenEvictedOnce(t *testing.T) {
	s := &server{}
	beside(t, s, func(q *Queue) {
		q.Add(victim)
		q.Add(victim)
		want(t, s, "warn p NoRoomForSlice full", "evict p")
		time.Sleep(time.Hour)
		want(t, s)
	})
}

func TestARefusedEvictionIsTriedAgainWithoutANewEvent(t *testing.T) {
	s := &server{refuse: errors.New("disruption budget")}
	beside(t, s, func(q *Queue) {
		q.Add(victim)
		want(t, s, "warn p NoRoomForSlice full", "evict p")
		time.Sleep(2 * again)
		want(t, s, "evict p", "evict p")
		s.set(func() { s.refuse = nil })
		time.Sleep(again)
		want(t, s, "evict p")
		time.Sleep(time.Hour)
		want(t, s)
	})
}

func TestAPodThatFoundRoomOrLeftIsLeftAlone(t *testing.T) {
	s := &server{refuse: errors.New("disruption budget")}
	var still atomic.Bool
	still.Store(true)
	beside(t, s, func(q *Queue) {
		waiting := victim
		waiting.Still = still.Load
		q.Add(waiting)
		want(t, s, "warn p NoRoomForSlice full", "evict p")
		still.Store(false)
		time.Sleep(time.Hour)
		want(t, s)
		s.set(func() { s.nobody = true })
		q.Add(victim)
		want(t, s, "warn p NoRoomForSlice full", "evict p")
		time.Sleep(time.Hour)
		want(t, s)
	})
}

func TestAMisusedSlicesPodIsFoundAndToldWhichContainer(t *testing.T) {
	s := &server{}
	beside(t, s, func(q *Queue) {
		slice := xpu.Slice{Owner: xpu.Owner{PodUID: "u7", Container: "app"}}
		if err := q.Evict(context.Background(), slice, "uses a card past the library"); err != nil {
			t.Fatal(err)
		}
		want(t, s, "find u7", "warn found SliceMisused container app: uses a card past the library", "evict found")
		slice.Owner.PodUID = "host"
		if err := q.Evict(context.Background(), slice, "x"); err == nil {
			t.Error("a slice of the host has a pod")
		}
	})
}

// The keeper, which asks, looks after slices every 25 ms.
func TestWhoAsksDoesNotWaitForTheAPIServer(t *testing.T) {
	s := &server{}
	beside(t, s, func(q *Queue) {
		s.stalled = make(chan struct{})
		q.Add(victim)
		synctest.Wait()
		began := time.Now()
		for range 100 {
			if err := q.Evict(context.Background(), xpu.Slice{Owner: xpu.Owner{PodUID: "u8"}, Pod: "other"}, "x"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("it waited %s", took)
		}
		close(s.stalled)
	})
}
