// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"reflect"
	"sort"
	"strings"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	schedulingv1 "volcano.sh/apis/pkg/apis/scheduling/v1beta1"
	"volcano.sh/volcano/pkg/scheduler/api"
	"volcano.sh/volcano/pkg/scheduler/util"

	"flexai.io/xpu/volcano/harness"
)

// written records whose state a scheduler writes.
type written struct {
	util.FakeStatusUpdater
	mutex  sync.Mutex
	groups map[string]bool
	queues map[string]bool
}

func (w *written) UpdatePodGroup(group *api.PodGroup) (*api.PodGroup, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.groups[group.Name] = true
	return group, nil
}

func (w *written) UpdateQueueStatus(queue *api.QueueInfo) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.queues[queue.Name] = true
	return nil
}

func names(set map[string]bool) []string {
	list := []string{}
	for name := range set {
		list = append(list, name)
	}
	sort.Strings(list)
	return list
}

const secondName = "flexai-volcano"

// second is the role's configuration beside a foreign Volcano.
func second() string {
	return strings.Replace(harness.Configuration, "    arguments:\n", "    arguments:\n      huawei-xpu.beside-as: "+secondName+"\n", 1)
}

func of(pod *v1.Pod, scheduler string) *v1.Pod {
	pod.Spec.SchedulerName = scheduler
	return pod
}

// Groups of both schedulers, waiting and running, and one of a Volcano job whose pods don't exist yet.
func twoVolcanos() harness.Cluster {
	group := func(name, queue string, phase schedulingv1.PodGroupPhase) *schedulingv1.PodGroup {
		return util.BuildPodGroup(name, namespace, queue, 1, nil, phase)
	}
	pod := func(name, group, node, scheduler string) *v1.Pod {
		return of(harness.Pod(namespace, name, group, node, 1, 20, 2), scheduler)
	}
	return harness.Cluster{
		Nodes: []*v1.Node{harness.Node("n1", 2)},
		Pods: []*v1.Pod{
			pod("ours-waits", "ours-waiting", "", secondName), pod("ours-runs", "ours-running", "n1", secondName),
			pod("theirs-runs", "theirs-running", "n1", "volcano"),
		},
		Queues: []*schedulingv1.Queue{util.BuildQueue("queue", 1, nil), util.BuildQueue("their-queue", 1, nil)},
		Groups: []*schedulingv1.PodGroup{
			group("ours-waiting", "queue", schedulingv1.PodGroupPending), group("ours-running", "queue", schedulingv1.PodGroupInqueue),
			group("theirs-running", "their-queue", schedulingv1.PodGroupInqueue),
			group("theirs-without-pods", "queue", schedulingv1.PodGroupPending),
		},
	}
}

func TestASecondVolcanoSchedulesItsOwnAndWritesNothingOfTheFirst(t *testing.T) {
	cluster := twoVolcanos()
	s := start(t, second(), cluster)
	record := &written{groups: map[string]bool{}, queues: map[string]bool{}}
	s.Cache.StatusUpdater = record
	s.Cycle()
	if got, want := names(record.groups), []string{"ours-running", "ours-waiting"}; !reflect.DeepEqual(got, want) {
		t.Errorf("it wrote the state of PodGroups %v, want %v", got, want)
	}
	if got := names(record.queues); len(got) > 0 {
		t.Errorf("it wrote the state of queues %v", got)
	}
	if got := grantsOf(cluster.Pods); got["ours-waits"] == "" || len(got) != 1 {
		t.Errorf("it placed %v", got)
	}
}

// What the test above would not see if Volcano wrote nothing anyway.
func TestTheOnlyVolcanoWritesOfAll(t *testing.T) {
	s := start(t, harness.Configuration, twoVolcanos())
	record := &written{groups: map[string]bool{}, queues: map[string]bool{}}
	s.Cache.StatusUpdater = record
	s.Cycle()
	want := []string{"ours-running", "ours-waiting", "theirs-running", "theirs-without-pods"}
	if got := names(record.groups); !reflect.DeepEqual(got, want) {
		t.Errorf("it wrote the state of PodGroups %v, want %v", got, want)
	}
	if got, want := names(record.queues), []string{"queue", "their-queue"}; !reflect.DeepEqual(got, want) {
		t.Errorf("it wrote the state of queues %v, want %v", got, want)
	}
}
