// SPDX-License-Identifier: Apache-2.0

// Package bridge joins package place to Volcano: a predicate, a node score, and the events that
// give cards out and take them back.
package bridge

import (
	"reflect"
	"sync"
	"time"

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
	nodes    map[string]*nodeCards
}

// complained remembers what was said: Volcano makes a new plugin for every session, once a second.
var complained sync.Map

// New is called by Volcano at the start of every session.
func New(arguments framework.Arguments) framework.Plugin {
	parsed, complaints := parse(arguments)
	for _, complaint := range complaints {
		if _, said := complained.LoadOrStore(complaint, true); !said {
			klog.Errorf("%s: %s", Name, complaint)
		}
	}
	return &plugin{settings: parsed, now: time.Now}
}

func (p *plugin) Name() string { return Name }

func (p *plugin) OnSessionOpen(session *framework.Session) {
	p.nodes = make(map[string]*nodeCards, len(session.Nodes))
	for name := range session.Nodes {
		p.nodes[name] = &nodeCards{policy: p.settings.policy}
	}
	session.AddPredicateFn(Name, p.predicate)
	session.AddBatchNodeOrderFn(Name, p.score)
	session.AddEventHandler(&framework.EventHandler{
		AllocateFunc: func(event *framework.Event) {
			if reason := p.allocate(event.Task, session.Nodes[event.Task.NodeName]); reason != "" {
				refuse(event, reason)
			}
		},
		DeallocateFunc: func(event *framework.Event) { p.deallocate(event.Task) },
	})
}

func (p *plugin) OnSessionClose(*framework.Session) { p.nodes = nil }

// cardsOf returns the node's cards, read at the first call, or nil for a node that came later
// than the session.
func (p *plugin) cardsOf(node *api.NodeInfo) *nodeCards {
	if node == nil {
		return nil
	}
	cards := p.nodes[node.Name]
	if cards != nil {
		cards.load(node)
	}
	return cards
}

func (p *plugin) predicate(task *api.TaskInfo, node *api.NodeInfo) error {
	ask, reason := askOf(task.Pod)
	if reason != "" {
		return unfit(task, node, api.UnschedulableAndUnresolvable, reason)
	}
	if ask.Empty() {
		return nil
	}
	cards := p.cardsOf(node)
	if cards == nil {
		return unfit(task, node, api.Unschedulable, "node is new to this scheduling session")
	}
	if _, reason := cards.try(task.Pod.UID, ask); reason != "" {
		return unfit(task, node, api.Unschedulable, reason)
	}
	return nil
}

func unfit(task *api.TaskInfo, node *api.NodeInfo, code int, reason place.Reason) error {
	return api.NewFitErrWithStatus(task, node,
		&api.Status{Code: code, Reason: Name + ": " + string(reason)})
}

func (p *plugin) score(task *api.TaskInfo, nodes []*api.NodeInfo) (map[string]float64, error) {
	ask, reason := askOf(task.Pod)
	if reason != "" || ask.Empty() {
		return nil, nil
	}
	scores := make(map[string]float64, len(nodes))
	for _, node := range nodes {
		cards := p.cardsOf(node)
		if cards == nil {
			continue
		}
		if placement, reason := cards.try(task.Pod.UID, ask); reason == "" {
			scores[node.Name] = placement.Score * float64(p.settings.weight)
		}
	}
	return scores, nil
}

func (p *plugin) allocate(task *api.TaskInfo, node *api.NodeInfo) place.Reason {
	ask, reason := askOf(task.Pod)
	if reason != "" || ask.Empty() {
		return reason
	}
	cards := p.cardsOf(node)
	if cards == nil {
		return "node is new to this scheduling session"
	}
	return cards.allocate(task.Pod.UID, ask, func(settled place.Placement) func() {
		if task.Status == api.Pipelined {
			// It waits for others to leave and is placed anew then; only the room is kept.
			return func() {}
		}
		return annotate(task.Pod, task.NodeName, settled, p.now())
	})
}

func (p *plugin) deallocate(task *api.TaskInfo) {
	// A node nobody asked about in this session has nothing of it to give back.
	if cards := p.nodes[task.NodeName]; cards != nil {
		cards.deallocate(task.Pod.UID)
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
