// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"volcano.sh/volcano/pkg/scheduler/api"
	"volcano.sh/volcano/pkg/scheduler/plugins/util"
	scheduling "volcano.sh/volcano/pkg/scheduler/util"

	"flexai.io/xpu/volcano/place"
)

// eviction is what Volcano's preempt and reclaim actions are being told. These look at a node's
// sums alone: they would evict whoever sums up, or nobody, where 60 % of two cards are free and
// 100 % of one are wanted. So we name the victims (never more than one card needs), and hold the
// action back (allocatable) until they are all evicted.
type eviction struct {
	consulting bool // we are asking the other plugins, and have no say ourselves
	task       api.TaskID
	held       bool         // the task must not be pipelined to the node under consideration
	cards      *nodeCards   // or only when these victims leave it
	victims    []api.TaskID // empty: whenever Volcano likes
}

// preemptable names victims of lower priority. Jobs of the same queue are compared by the job's
// priority, tasks of one job by their own, as Volcano's plugin "priority" does.
func (p *plugin) preemptable(task *api.TaskInfo, tenants []*api.TaskInfo) ([]*api.TaskInfo, int) {
	return p.victims(task, tenants, p.session.Preemptable, func(tenant *api.TaskInfo) (int32, bool) {
		mine, theirs := p.session.Jobs[task.Job], p.session.Jobs[tenant.Job]
		switch {
		case mine == nil || theirs == nil:
			return 0, false
		case mine == theirs:
			return tenant.Priority, tenant.Priority < task.Priority
		}
		return theirs.Priority, theirs.Priority < mine.Priority
	}, false)
}

// reclaimable names victims of other queues; whether their queue owes something is said by others.
func (p *plugin) reclaimable(task *api.TaskInfo, tenants []*api.TaskInfo) ([]*api.TaskInfo, int) {
	return p.victims(task, tenants, p.session.Reclaimable, func(tenant *api.TaskInfo) (int32, bool) {
		return tenant.Priority, true
	}, true)
}

// victims picks from those whom the other plugins would let go, so that what Volcano makes of all
// opinions, their intersection, is exactly what we name. It names nobody while room is being made
// for such a task on another node, else each session would evict somebody more until the first has
// left. The reclaim action (evictsFirst) evicts before it looks whether it must, so it is told
// nobody where enough are leaving already.
func (p *plugin) victims(
	task *api.TaskInfo, tenants []*api.TaskInfo,
	others func(*api.TaskInfo, []*api.TaskInfo) []*api.TaskInfo,
	priority func(*api.TaskInfo) (int32, bool), evictsFirst bool,
) ([]*api.TaskInfo, int) {
	if p.eviction.consulting {
		return nil, util.Abstain
	}
	p.eviction = eviction{}
	wish := p.wishOf(task)
	if wish.asked == nil {
		return nil, util.Abstain
	}
	p.eviction = eviction{task: task.UID, held: true}
	if len(tenants) == 0 {
		return nil, util.Permit // which node is meant is not said; what it may have free is allocate's
	}
	node := p.session.Nodes[tenants[0].NodeName]
	cards := p.cardsOf(node)
	if cards == nil || p.roomComes(wish.asked, cards) {
		return nil, util.Permit
	}
	p.eviction.consulting = true
	allowed := others(task, tenants)
	p.eviction.consulting = false
	switch judged := cards.judge(wish.asked); {
	case judged.reason == "", judged.later && !evictsFirst:
		p.eviction = eviction{} // the cards are not what is missing
		return allowed, util.Permit
	case judged.later:
		return nil, util.Permit
	}
	chosen := p.choose(cards, wish.asked, allowed, priority)
	if len(chosen) == 0 || scheduling.ValidateVictims(task, node, chosen) != nil {
		return nil, util.Permit
	}
	p.eviction = eviction{task: task.UID, cards: cards}
	for _, victim := range chosen {
		p.eviction.victims = append(p.eviction.victims, victim.UID)
	}
	return chosen, util.Permit
}

// roomComes says whether another node that is being left will have room for such a task.
func (p *plugin) roomComes(a *asked, but *nodeCards) bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for cards := range p.leaving {
		if cards != but && cards.judge(a).later {
			return true
		}
	}
	return false
}

func (p *plugin) choose(
	cards *nodeCards, a *asked, allowed []*api.TaskInfo, priority func(*api.TaskInfo) (int32, bool),
) []*api.TaskInfo {
	byPod := make(map[string]*api.TaskInfo, len(allowed))
	candidates := make([]place.Candidate, 0, len(allowed))
	for _, tenant := range allowed {
		if rank, may := priority(tenant); may {
			byPod[string(tenant.UID)] = tenant
			candidates = append(candidates, place.Candidate{Pod: string(tenant.UID), Priority: rank})
		}
	}
	var chosen []*api.TaskInfo
	for _, pod := range cards.victims(a, candidates) {
		chosen = append(chosen, byPod[pod])
	}
	return chosen
}

func (n *nodeCards) victims(a *asked, candidates []place.Candidate) []string {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if n.broken != "" {
		return nil
	}
	return n.books().Victims(a.Ask, n.settings.policy, candidates)
}

// afterPreemption ends what was being told. Allocate and reclaim ask whether a queue is overused
// before they take up a task, and preempt never does: without this, reclaim would be held back by
// the last node that preempt looked at.
func (p *plugin) afterPreemption(any) (overused bool) {
	p.eviction = eviction{}
	return false
}

// allocatable holds the preempt action back until the victims are evicted; it asks before and after
// each of them.
func (p *plugin) allocatable(_ *api.QueueInfo, task *api.TaskInfo) bool {
	if p.eviction.task != task.UID {
		return true
	}
	if p.eviction.held {
		return false
	}
	for _, victim := range p.eviction.victims {
		if !p.eviction.cards.isLeft(victim) {
			return false
		}
	}
	return true
}

func (n *nodeCards) isLeft(task api.TaskID) bool {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return n.books().IsLeaving(string(task))
}
