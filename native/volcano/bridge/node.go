// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"sync"
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

// verdictsKept is how many kinds of pods a node remembers between two changes.
const verdictsKept = 8

// nodeCards is one node's cards in one session. The record is brought up to date when a pod first
// asks for a slice, so that sessions without such pods cost nothing; it is copied when the session
// first changes something. The lock is for Volcano's 16 goroutines of predicates.
type nodeCards struct {
	name     string
	record   *record
	settings settings

	once     sync.Once
	mutex    sync.Mutex
	broken   place.Reason
	changed  *place.Books
	undo     map[api.TaskID]func() // annotations written in this session
	verdicts []verdict
	oldest   int
}

func (n *nodeCards) load(node *api.NodeInfo, now func() time.Time, leaving func(*nodeCards)) {
	n.once.Do(func() {
		n.broken = n.record.refresh(node, n.settings, now())
		if n.broken == "" && n.record.books.AnyLeaving() {
			leaving(n)
		}
	})
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
	n.verdicts = n.verdicts[:0]
	return n.changed
}

// judge answers whether and how well an ask fits, and changes nothing.
func (n *nodeCards) judge(a *asked) verdict {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	for i := range n.verdicts {
		if n.verdicts[i].asked == a {
			return n.verdicts[i]
		}
	}
	if n.broken != "" {
		return verdict{asked: a, reason: n.broken, never: true}
	}
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
	if len(n.verdicts) < verdictsKept {
		n.verdicts = append(n.verdicts, judged)
	} else {
		n.verdicts[n.oldest] = judged
		n.oldest = (n.oldest + 1) % verdictsKept
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
