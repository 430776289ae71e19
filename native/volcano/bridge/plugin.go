// SPDX-License-Identifier: Apache-2.0

// Package bridge joins package place to Volcano: a predicate, a node score, the choice of victims,
// and the events that give cards out and take them back.
package bridge

import (
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"volcano.sh/volcano/pkg/scheduler/api"
	"volcano.sh/volcano/pkg/scheduler/framework"

	"flexai.io/xpu/volcano/place"
)

// Name of the plugin; its file must be named huawei-xpu.so.
const Name = "huawei-xpu"

type plugin struct {
	settings settings
	now      func() time.Time
	library  *library
	session  *framework.Session
	nodes    map[*api.NodeInfo]*nodeCards

	// Predicates of one task run on all nodes, so the last task's wish is the next one's too.
	last atomic.Pointer[wish]

	mutex   sync.Mutex
	kinds   map[string]*asked       // by key
	leaving map[*nodeCards]struct{} // nodes that are being left

	eviction eviction
}

// wish is what one pod wants, or why it can't be had anywhere.
type wish struct {
	pod    *v1.Pod
	asked  *asked // nil when it wants no slice
	reason place.Reason
}

// complained remembers what was said: Volcano makes a new plugin for every session, once a second.
var complained sync.Map

// New is called by Volcano at the start of every session.
func New(given framework.Arguments) framework.Plugin {
	parsed, complaints := parse(given)
	for _, complaint := range complaints {
		if _, said := complained.LoadOrStore(complaint, true); !said {
			klog.Errorf("%s: %s", Name, complaint)
		}
	}
	return &plugin{settings: parsed, now: time.Now, library: shared}
}

func (p *plugin) Name() string { return Name }

func (p *plugin) OnSessionOpen(session *framework.Session) {
	if p.settings.beside != "" {
		keepOwn(session, p.settings.beside)
	}
	p.open(session)
	session.AddPrePredicateFn(Name, p.prePredicate)
	session.AddPredicateFn(Name, p.predicate)
	session.AddNodeOrderFn(Name, p.score)
	session.AddPreemptableFn(Name, p.preemptable)
	session.AddReclaimableFn(Name, p.reclaimable)
	session.AddAllocatableFn(Name, p.allocatable)
	session.AddOverusedFn(Name, p.afterPreemption)
	session.AddEventHandler(&framework.EventHandler{
		AllocateFunc: func(event *framework.Event) {
			if reason := p.allocate(event.Task, session.Nodes[event.Task.NodeName]); reason != "" {
				refuse(event, reason)
			}
		},
		DeallocateFunc: func(event *framework.Event) { p.deallocate(event.Task) },
	})
}

func (p *plugin) open(session *framework.Session) {
	p.session = session
	p.kinds, p.leaving = map[string]*asked{}, map[*nodeCards]struct{}{}
	records := p.library.of(session.Nodes)
	p.nodes = make(map[*api.NodeInfo]*nodeCards, len(records))
	nodes := make([]nodeCards, len(records))
	for name, info := range session.Nodes {
		node := &nodes[len(p.nodes)]
		node.record, node.settings = records[name], &p.settings
		p.nodes[info] = node
	}
}

func (p *plugin) OnSessionClose(session *framework.Session) {
	if p.settings.beside != "" {
		leaveQueues(session)
	}
	p.nodes, p.session = nil, nil
}

// cardsOf returns the node's cards, read at the first call, or nil for a node that came later
// than the session.
func (p *plugin) cardsOf(node *api.NodeInfo) *nodeCards {
	cards := p.nodes[node]
	if cards != nil && !cards.loaded.Load() && cards.load(node, p.now()) {
		p.isLeft(cards)
	}
	return cards
}

func (p *plugin) isLeft(cards *nodeCards) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.leaving[cards] = struct{}{}
}

// wishOf reads a pod's annotations and limits once for all nodes.
func (p *plugin) wishOf(task *api.TaskInfo) *wish {
	if last := p.last.Load(); last != nil && last.pod == task.Pod {
		return last
	}
	var groupPolicy string
	if job := p.session.Jobs[task.Job]; job != nil && job.PodGroup != nil {
		groupPolicy = job.PodGroup.Annotations[policyAnnotation]
	}
	ask, reason := askOf(task.Pod, groupPolicy, p.settings.defaultClass)
	read := &wish{pod: task.Pod, reason: reason}
	if reason == "" && !ask.Empty() {
		read.asked = p.kindOf(ask)
	}
	p.last.Store(read)
	return read
}

func (p *plugin) kindOf(ask place.Ask) *asked {
	key := ask.Key()
	p.mutex.Lock()
	defer p.mutex.Unlock()
	kind := p.kinds[key]
	if kind == nil {
		kind = &asked{Ask: ask}
		p.kinds[key] = kind
	}
	return kind
}

// prePredicate refuses for all nodes at once what none can serve.
func (p *plugin) prePredicate(task *api.TaskInfo) error {
	if reason := p.wishOf(task).reason; reason != "" {
		return unfit(task, &api.NodeInfo{}, api.UnschedulableAndUnresolvable, reason)
	}
	return nil
}

// predicate answers for the cards as they are now. Where the node's sums say that the task will
// wait for others to leave (Volcano then pipelines it), the cards may be as they will be then.
func (p *plugin) predicate(task *api.TaskInfo, node *api.NodeInfo) error {
	wish := p.wishOf(task)
	if wish.reason != "" {
		return unfit(task, node, api.UnschedulableAndUnresolvable, wish.reason)
	}
	if wish.asked == nil {
		return nil
	}
	cards := p.cardsOf(node)
	if cards == nil {
		return unfit(task, node, api.Unschedulable, newNode)
	}
	judged := cards.judge(wish.asked)
	switch {
	case judged.reason == "":
		return nil
	case judged.later && !task.InitResreq.LessEqual(node.Idle, api.Zero):
		return nil
	case judged.never:
		return unfit(task, node, api.UnschedulableAndUnresolvable, judged.reason)
	}
	return unfit(task, node, api.Unschedulable, judged.reason)
}

const newNode = place.Reason("node is new to this scheduling session")

func unfit(task *api.TaskInfo, node *api.NodeInfo, code int, reason place.Reason) error {
	return api.NewFitErrWithStatus(task, node,
		&api.Status{Code: code, Reason: Name + ": " + string(reason)})
}

// score is asked node by node: Volcano's batch form would want a map of all nodes for every task.
func (p *plugin) score(task *api.TaskInfo, node *api.NodeInfo) (float64, error) {
	wish := p.wishOf(task)
	if wish.asked == nil {
		return 0, nil
	}
	cards := p.cardsOf(node)
	if cards == nil {
		return 0, nil
	}
	return cards.judge(wish.asked).score * float64(p.settings.weight), nil
}

func (p *plugin) allocate(task *api.TaskInfo, node *api.NodeInfo) place.Reason {
	wish := p.wishOf(task)
	if wish.reason != "" || wish.asked == nil {
		return wish.reason
	}
	cards := p.cardsOf(node)
	if cards == nil {
		return newNode
	}
	return cards.allocate(task, wish.asked, func(settled place.Placement) func() {
		return annotate(task.Pod, task.NodeName, settled, p.now())
	})
}

func (p *plugin) deallocate(task *api.TaskInfo) {
	if cards := p.cardsOf(p.session.Nodes[task.NodeName]); cards != nil && p.wishOf(task).asked != nil {
		cards.deallocate(task)
		if task.Status == api.Releasing {
			p.isLeft(cards)
		}
	}
}

// refuse lets the event fail where this Volcano can: Event.Err came with 1.10.1, and the same
// source builds against 1.10.0. There the pod is bound without our annotation, and the device
// plugin's own choice, or its refusal, is the guard.
func refuse(event *framework.Event, reason place.Reason) {
	klog.Errorf("%s: pod %s/%s on node %s: %s", Name, event.Task.Namespace, event.Task.Name,
		event.Task.NodeName, reason)
	if field := reflect.ValueOf(event).Elem().FieldByName("Err"); field.IsValid() && field.CanSet() {
		field.Set(reflect.ValueOf(api.NewFitError(event.Task, &api.NodeInfo{Name: event.Task.NodeName},
			Name+": "+string(reason))))
	}
}
