// SPDX-License-Identifier: Apache-2.0

// Package evict has pods leave this node through the Eviction API: those that find no room, and those
// that use cards past the library. Who asks never waits for the API server.
package evict

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/xpu"
)

// again is how long after an eviction that was refused (a disruption budget) it is tried once more.
const again = 30 * time.Second

// Reasons of the events.
const (
	NoRoom  = "NoRoomForSlice"
	Misused = "SliceMisused"
)

// Victim is a pod that is to leave.
type Victim struct {
	agent.Pod
	Reason, Message string
	// Still says whether it must still leave; nil: it must.
	Still func() bool
}

// API is what of the API server is needed.
type API interface {
	PodOf(ctx context.Context, uid string) (agent.Pod, error)
	// Warn puts an event on a pod.
	Warn(ctx context.Context, pod agent.Pod, reason, message string) error
	// Evict asks for an eviction, of the pod with this UID only; ErrNoPod when there is none.
	Evict(ctx context.Context, pod agent.Pod) error
}

// Queue evicts one pod after the other.
type Queue struct {
	api     API
	log     *slog.Logger
	mutex   sync.Mutex
	victims map[string]*waiting // by pod UID
	wake    chan struct{}
}

type waiting struct {
	victim Victim
	due    time.Time
	warned bool
}

// NewQueue makes a queue; Run empties it.
func NewQueue(api API, log *slog.Logger) *Queue {
	return &Queue{api: api, log: log, victims: map[string]*waiting{}, wake: make(chan struct{}, 1)}
}

// Add queues a pod; one that is queued already stays as it is.
func (q *Queue) Add(victim Victim) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	if _, queued := q.victims[victim.UID]; queued {
		return
	}
	q.victims[victim.UID] = &waiting{victim: victim}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Evict queues the pod of a slice that is misused; see tend.Evictor.
func (q *Queue) Evict(_ context.Context, slice xpu.Slice, reason string) error {
	if slice.Owner.OfHost() {
		return errors.New("the slice is the host's own; there is no pod to evict")
	}
	q.Add(Victim{Pod: agent.Pod{UID: slice.Owner.PodUID, Namespace: slice.Namespace, Name: slice.Pod},
		Reason: Misused, Message: "container " + slice.Owner.Container + ": " + reason})
	return nil
}

// Run evicts until ctx ends.
func (q *Queue) Run(ctx context.Context) {
	for {
		next := q.next(time.Now())
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-q.wake:
			timer.Stop()
		case <-timer.C:
		}
		for _, one := range q.due(time.Now()) {
			if q.attempt(ctx, one) {
				q.drop(one)
			}
		}
	}
}

// next is how long until somebody is due.
func (q *Queue) next(now time.Time) time.Duration {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	shortest := time.Hour
	for _, one := range q.victims {
		shortest = min(shortest, max(one.due.Sub(now), 0))
	}
	return shortest
}

func (q *Queue) due(now time.Time) []*waiting {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	var due []*waiting
	for _, one := range q.victims {
		if !one.due.After(now) {
			one.due = now.Add(again)
			due = append(due, one)
		}
	}
	return due
}

func (q *Queue) drop(one *waiting) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	delete(q.victims, one.victim.UID)
}

// attempt says whether the matter is settled.
func (q *Queue) attempt(ctx context.Context, one *waiting) bool {
	victim := &one.victim
	if victim.Still != nil && !victim.Still() {
		return true
	}
	err := q.named(ctx, victim)
	if err == nil && !one.warned {
		// The event first: after the eviction there may be no pod to look at.
		if err := q.api.Warn(ctx, victim.Pod, victim.Reason, victim.Message); err != nil {
			q.log.Warn("no event written", "pod", victim.Namespace+"/"+victim.Name, "error", err)
		}
		one.warned = true
	}
	if err == nil {
		err = q.api.Evict(ctx, victim.Pod)
	}
	pod := victim.Namespace + "/" + victim.Name
	switch {
	case errors.Is(err, agent.ErrNoPod):
		return true
	case err != nil:
		q.log.Warn("not evicted; trying again", "pod", pod, "uid", victim.UID, "reason", victim.Reason, "error", err)
		return false
	}
	q.log.Warn("evicted", "pod", pod, "uid", victim.UID, "reason", victim.Reason, "message", victim.Message)
	return true
}

// named finds the name of a pod that was bound while nobody could tell it.
func (q *Queue) named(ctx context.Context, victim *Victim) error {
	if victim.Name != "" {
		return nil
	}
	pod, err := q.api.PodOf(ctx, victim.UID)
	if err == nil {
		victim.Pod = pod
	}
	return err
}
