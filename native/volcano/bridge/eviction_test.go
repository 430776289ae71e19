// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	priorities "k8s.io/api/scheduling/v1"
	schedulingv1 "volcano.sh/apis/pkg/apis/scheduling/v1beta1"
	"volcano.sh/volcano/pkg/scheduler/api"
	"volcano.sh/volcano/pkg/scheduler/util"

	"flexai.io/xpu/volcano/harness"
)

// tenants run in PodGroups of their own, "low" in queue "queue"; the newcomer is in group "high".
func running(name string, card, cores int) *v1.Pod {
	pod := harness.Pod(namespace, name, "low", "n", 1, cores, 3)
	return annotated(pod, fmt.Sprintf("%d,GPU-n-%d,GPU,3072,%d,%d:", card, card, cores, len(name)))
}

func onNode(node string, pod *v1.Pod) *v1.Pod {
	pod.Spec.NodeName = node
	pod.Annotations[grantsAnnotation] = strings.ReplaceAll(pod.Annotations[grantsAnnotation], "GPU-n-", "GPU-"+node+"-")
	return pod
}

func leavingPod(pod *v1.Pod) *v1.Pod {
	now := pod.CreationTimestamp
	pod.DeletionTimestamp = &now
	return pod
}

func newcomer(name string, number, cores, memoryGiB int) *v1.Pod {
	return harness.Pod(namespace, name, "high", "", number, cores, memoryGiB)
}

func TestPreempt(t *testing.T) {
	cases := map[string]struct {
		cards   int
		nodes   []*v1.Node
		pods    []*v1.Pod
		evicted string
		waiting string // tasks that are promised room
	}{
		// Volcano alone evicts nobody here: 80 % are free on the node, but 40 % on each card.
		"one card is cleared, where the node's sum has room": {
			cards: 2, pods: []*v1.Pod{running("a", 0, 60), running("b", 1, 60), newcomer("z", 1, 80, 3)},
			evicted: "[b]", waiting: "[z]",
		},
		// Volcano alone evicts by sums: any three of the four.
		"tenants of one card, not scattered ones": {
			cards: 2, pods: []*v1.Pod{
				running("a", 0, 50), running("b", 1, 50), running("c", 0, 50), running("d", 1, 50), newcomer("z", 1, 100, 3),
			},
			evicted: "[b d]", waiting: "[z]",
		},
		"no more than needed": {
			cards: 1, pods: []*v1.Pod{running("a", 0, 40), running("b", 0, 40), running("c", 0, 20), newcomer("z", 1, 20, 3)},
			evicted: "[c]", waiting: "[z]",
		},
		"nobody, where evicting all would not help": {
			cards: 1, pods: []*v1.Pod{running("a", 0, 60), newcomer("z", 1, 20, 41)}, evicted: "[]", waiting: "[]",
		},
		"nobody, where those who may not be evicted stand in the way": {
			cards: 1, pods: []*v1.Pod{
				running("a", 0, 50), with(running("b", 0, 50), schedulingv1.PodPreemptable, "false"), newcomer("z", 1, 80, 3),
			},
			evicted: "[]", waiting: "[]",
		},
		"nobody, where nobody may be evicted": {
			cards: 2, pods: []*v1.Pod{
				with(running("a", 0, 60), schedulingv1.PodPreemptable, "false"),
				with(running("b", 1, 60), schedulingv1.PodPreemptable, "false"), newcomer("z", 1, 80, 3),
			},
			evicted: "[]", waiting: "[]",
		},
		"nobody of equal priority": {
			cards: 1, pods: []*v1.Pod{
				annotated(harness.Pod(namespace, "a", "high", "n", 1, 60, 3), "0,GPU-n-0,GPU,3072,60,0:"), newcomer("z", 1, 80, 3),
			},
			evicted: "[]", waiting: "[]",
		},
		"nobody, where it fits": {
			cards: 2, pods: []*v1.Pod{running("a", 0, 60), newcomer("z", 1, 80, 3)}, evicted: "[]", waiting: "[]",
		},
		"nobody more, while room is being made on the node": {
			cards: 2, pods: []*v1.Pod{leavingPod(running("a", 0, 60)), running("b", 1, 60), newcomer("z", 1, 80, 3)},
			evicted: "[]", waiting: "[z]",
		},
		"nobody more, while room is being made on another node": {
			cards: 1, nodes: []*v1.Node{harness.Node("m", 1)},
			pods:    []*v1.Pod{leavingPod(running("a", 0, 60)), onNode("m", running("b", 0, 60)), newcomer("z", 1, 80, 3)},
			evicted: "[]", waiting: "[z]",
		},
		"room that is being made is promised to one only": {
			cards: 2, pods: []*v1.Pod{
				leavingPod(running("a", 0, 100)), running("b", 1, 100), newcomer("y", 1, 80, 3), newcomer("z", 1, 80, 3),
			},
			evicted: "[b]", waiting: "[y z]",
		},
		"a gang is not begun where one of it could not end": {
			cards: 1, nodes: []*v1.Node{harness.Node("m", 1)},
			pods: []*v1.Pod{
				running("a", 0, 100), with(onNode("m", running("b", 0, 100)), schedulingv1.PodPreemptable, "false"),
				newcomer("y", 1, 80, 3), newcomer("z", 1, 80, 3),
			},
			evicted: "[]", waiting: "[]",
		},
		"two whole cards from the ones that are linked": {
			cards: 4, pods: []*v1.Pod{
				running("a", 0, 10), running("b", 1, 10), running("c", 2, 10), running("d", 3, 10), running("e", 3, 10),
				with(newcomer("z", 2, 0, 0), bandwidthAnnotation, "170"),
			},
			evicted: "[c d e]", waiting: "[z]",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			node := harness.Node("n", c.cards)
			gang := int32(0)
			for _, pod := range c.pods {
				if pod.Spec.NodeName == "" {
					gang++
				}
			}
			if c.cards == 4 {
				with(node, topologyAnnotation, "0,10,10,10;10,0,10,10;10,10,0,170;10,10,170,0")
			}
			s := start(t, harness.Configuration, harness.Cluster{
				Nodes: append(c.nodes, node), Pods: c.pods, Queues: []*schedulingv1.Queue{util.BuildQueue("queue", 1, nil)},
				Priorities: []*priorities.PriorityClass{util.BuildPriorityClass("low", 10), util.BuildPriorityClass("high", 1000)},
				Groups: []*schedulingv1.PodGroup{
					util.BuildPodGroupWithPrio("low", namespace, "queue", 1, nil, schedulingv1.PodGroupInqueue, "low"),
					util.BuildPodGroupWithPrio("high", namespace, "queue", gang, nil, schedulingv1.PodGroupInqueue, "high"),
				},
			})
			check(t, s, c.evicted, c.waiting)
		})
	}
}

// check runs a session and compares who is evicted and who is promised room.
func check(t *testing.T, s *harness.Scheduler, evicted, waiting string) {
	t.Helper()
	gone, promised := []string{}, []string{}
	s.CycleWith(func(tasks []*api.TaskInfo) {
		for _, task := range tasks {
			switch {
			case task.Status == api.Pipelined:
				promised = append(promised, task.Name)
			case task.Status == api.Releasing && task.Pod.DeletionTimestamp == nil:
				gone = append(gone, task.Name)
			}
		}
	})
	slices.Sort(gone)
	slices.Sort(promised)
	if got := fmt.Sprint(gone); got != evicted {
		t.Errorf("evicted %s, want %s", got, evicted)
	}
	if got := fmt.Sprint(promised); got != waiting {
		t.Errorf("promised room: %s, want %s", got, waiting)
	}
}

func TestReclaim(t *testing.T) {
	poor := func(name string, cores int) *v1.Pod { return harness.Pod(namespace, name, "poor", "", 1, cores, 3) }
	cases := map[string]struct {
		pods    []*v1.Pod
		evicted string
		waiting string
	}{
		"from one card of the other queue": {
			pods: []*v1.Pod{
				running("a", 0, 50), running("b", 1, 50), running("c", 0, 50), running("d", 1, 50), poor("z", 100),
			},
			evicted: "[b d]", waiting: "[z]",
		},
		"nobody, where it would not help": {
			pods: []*v1.Pod{
				running("a", 0, 50), with(running("b", 0, 50), schedulingv1.PodPreemptable, "false"),
				running("c", 1, 50), with(running("d", 1, 50), schedulingv1.PodPreemptable, "false"), poor("z", 100),
			},
			evicted: "[]", waiting: "[]",
		},
		"nobody more, while enough are leaving": {
			pods: []*v1.Pod{
				leavingPod(running("a", 0, 60)), running("b", 1, 60), poor("z", 80),
			},
			evicted: "[]", waiting: "[]",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			yes := true
			rich, other := util.BuildQueue("queue", 1, nil), util.BuildQueue("other", 1, nil)
			rich.Spec.Reclaimable, other.Spec.Reclaimable = &yes, &yes
			s := start(t, harness.Configuration, harness.Cluster{
				Nodes: []*v1.Node{harness.Node("n", 2)}, Pods: c.pods, Queues: []*schedulingv1.Queue{rich, other},
				Groups: []*schedulingv1.PodGroup{
					util.BuildPodGroup("low", namespace, "queue", 0, nil, schedulingv1.PodGroupInqueue),
					util.BuildPodGroup("poor", namespace, "other", 1, nil, schedulingv1.PodGroupInqueue),
				},
			})
			check(t, s, c.evicted, c.waiting)
		})
	}
}
