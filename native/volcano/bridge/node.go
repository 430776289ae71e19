// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"sync"
	"sync/atomic"
	"time"

	"volcano.sh/volcano/pkg/scheduler/api"

	"flexai.io/xpu/volcano/place"
)

// asked is what pods of a kind want; pods that want the same share it within a session.
type asked struct {
	place.Ask
}

// verdict is what a node's books say of an ask, as long as they don't change.
type verdict struct {
	asked  *asked
	reason place.Reason // empty: it fits now
	score  float64
	later  bool // it fits once those that leave have left
	never  bool // it would not fit an empty node either
}

// verdicts are those on the last kinds of pods, latest first.
type verdicts [8]verdict

// nodeCards is one node's cards in one session. The record is brought up to date when a pod first
// asks for a slice, so that sessions without such pods cost nothing; it is copied when the session
// first changes something. Volcano asks from 16 goroutines, for every task about every node, so
// what has been judged is read without a lock: verdicts are replaced, never written to.
type nodeCards struct {
	loaded   atomic.Bool
	verdicts atomic.Pointer[verdicts]
	record   *record
	settings *settings

	mutex   sync.Mutex
	broken  place.Reason
	changed *place.Books
	undo    map[api.TaskID]func() // annotations written in this session
}

// load brings the record up to date; true when this call did and the node is being left.
func (n *nodeCards) load(node *api.NodeInfo, now time.Time) (isLeft bool) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if n.loaded.Load() {
		return false
	}
	n.broken = n.record.refresh(node, *n.settings, now)
	n.loaded.Store(true)
	return n.broken == "" && n.record.books.AnyLeaving()
}

func (n *nodeCards) books() *place.Books {
	if n.changed != nil {
		return n.changed
	}
	return n.record.books
}

// change is books to write in.
func (n *nodeCards) change() *place.Books {
	if n.changed == nil {
		n.changed = n.record.books.Copy()
	}
	n.verdicts.Store(nil)
	return n.changed
}

// judge answers whether and how well an ask fits, and changes nothing.
func (n *nodeCards) judge(a *asked) *verdict {
	if known := n.known(a); known != nil {
		return known
	}
	n.mutex.Lock()
	defer n.mutex.Unlock()
	judged := verdict{asked: a, reason: n.broken, never: true}
	if n.broken == "" {
		judged = n.ask(a)
	}
	fresh := &verdicts{judged}
	if earlier := n.verdicts.Load(); earlier != nil {
		copy(fresh[1:], earlier[:])
	}
	n.verdicts.Store(fresh)
	return &fresh[0]
}

func (n *nodeCards) known(a *asked) *verdict {
	kept := n.verdicts.Load()
	if kept == nil {
		return nil
	}
	for i := range kept {
		if kept[i].asked == a {
			return &kept[i]
		}
	}
	return nil
}

func (n *nodeCards) ask(a *asked) verdict {
	books := n.books()
	placement, reason := books.Place(a.Ask, n.settings.policy)
	judged := verdict{asked: a, reason: reason, score: placement.Score}
	if reason != "" {
		if books.AnyLeaving() {
			_, still := books.PlaceLater(a.Ask, n.settings.policy)
			judged.later = still == ""
		}
		judged.never = books.PlaceEmpty(a.Ask, n.settings.policy) != ""
	}
	return judged
}

// allocate gives the task its cards, or promises them where it waits for others to leave
// (pipelined). annotate is called with a settled placement and returns how to undo it. A task that
// has its cards, because an eviction was taken back, keeps them.
func (n *nodeCards) allocate(
	task *api.TaskInfo, a *asked, annotate func(place.Placement) func(),
) place.Reason {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if n.broken != "" {
		return n.broken
	}
	pod := string(task.UID)
	if _, holds := n.books().Holds(pod); holds {
		n.change().Stay(pod)
		return ""
	}
	if task.Status == api.Pipelined {
		// It is placed anew when they have left; only the room is kept.
		return n.change().Expect(pod, a.Ask, n.settings.policy)
	}
	placement, reason := n.change().Give(pod, a.Ask, n.settings.policy)
	if reason != "" {
		return reason
	}
	if n.undo == nil {
		n.undo = map[api.TaskID]func(){}
	}
	n.undo[task.UID] = annotate(placement)
	return ""
}

// deallocate takes back what this session gave or promised. A task that is evicted keeps its cards
// until it is gone: it still runs on them.
func (n *nodeCards) deallocate(task *api.TaskInfo) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if n.broken != "" {
		return
	}
	if task.Status == api.Releasing {
		n.change().Leave(string(task.UID))
		return
	}
	n.change().Release(string(task.UID))
	if undo := n.undo[task.UID]; undo != nil {
		undo()
		delete(n.undo, task.UID)
	}
}
