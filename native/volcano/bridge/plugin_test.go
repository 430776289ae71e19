// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	schedulingv1 "volcano.sh/apis/pkg/apis/scheduling/v1beta1"
	"volcano.sh/volcano/cmd/scheduler/app/options"
	"volcano.sh/volcano/pkg/scheduler/actions/allocate"
	"volcano.sh/volcano/pkg/scheduler/api"
	"volcano.sh/volcano/pkg/scheduler/conf"
	"volcano.sh/volcano/pkg/scheduler/framework"
	"volcano.sh/volcano/pkg/scheduler/plugins/gang"
	"volcano.sh/volcano/pkg/scheduler/plugins/predicates"
	"volcano.sh/volcano/pkg/scheduler/uthelper"
	"volcano.sh/volcano/pkg/scheduler/util"

	"flexai.io/xpu/volcano/place"
)

const namespace = "ns"

func sliceResources(number, cores, memoryGiB int) v1.ResourceList {
	return v1.ResourceList{
		numberResource: resource.MustParse(fmt.Sprint(number)),
		coresResource:  resource.MustParse(fmt.Sprint(cores)),
		memoryResource: resource.MustParse(fmt.Sprint(memoryGiB)),
	}
}

// gpuNode has cards of 40 GiB; its resources are what the device plugin would advertise.
func gpuNode(name string, cards int) *v1.Node {
	resources := sliceResources(cards*20, cards*100, cards*40)
	resources["cpu"], resources["memory"] = resource.MustParse("64"), resource.MustParse("512Gi")
	resources["pods"] = resource.MustParse("110")
	node := util.BuildNode(name, resources, nil)
	var register strings.Builder
	for i := range cards {
		fmt.Fprintf(&register, "%d,GPU-%s-%d,20,40960,GPU-A100,true,0:", i, name, i)
	}
	node.Annotations = map[string]string{cardsAnnotation: register.String()}
	return node
}

func slicePod(name, node string, number, cores, memoryGiB int) *v1.Pod {
	phase := v1.PodPending
	if node != "" {
		phase = v1.PodRunning
	}
	pod := util.BuildPod(namespace, name, node, phase, v1.ResourceList{}, "group", nil, nil)
	resources := sliceResources(number, cores, memoryGiB)
	pod.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: resources, Limits: resources}
	return pod
}

func annotated(pod *v1.Pod, grants string) *v1.Pod {
	pod.Annotations[grantsAnnotation] = grants
	return pod
}

// The allocate action reads the scheduler's options from a global.
func init() { options.Default() }

// schedule runs one allocate cycle of Volcano with gang, predicates and our plugin.
func schedule(t *testing.T, minMember int32, policy string, nodes []*v1.Node, pods []*v1.Pod) {
	t.Helper()
	queue := util.BuildQueue("queue", 1, nil)
	group := util.BuildPodGroup("group", namespace, "queue", minMember, nil, schedulingv1.PodGroupInqueue)
	yes := true
	harness := uthelper.TestCommonStruct{
		Plugins: map[string]framework.PluginBuilder{
			Name: New, gang.PluginName: gang.New, predicates.PluginName: predicates.New,
		},
		Nodes: nodes, Pods: pods,
		Queues:    []*schedulingv1.Queue{queue},
		PodGroups: []*schedulingv1.PodGroup{group},
	}
	tiers := []conf.Tier{{Plugins: []conf.PluginOption{
		{Name: gang.PluginName, EnabledJobReady: &yes, EnabledJobPipelined: &yes},
		{Name: predicates.PluginName, EnabledPredicate: &yes},
		{
			Name: Name, EnabledPredicate: &yes, EnabledNodeOrder: &yes,
			Arguments: map[string]interface{}{policyArgument: policy},
		},
	}}}
	harness.RegisterSession(tiers, nil)
	defer harness.Close()
	harness.Run([]framework.Action{allocate.New()})
}

func grantsOf(pods []*v1.Pod) map[string]string {
	grants := map[string]string{}
	for _, pod := range pods {
		if text, ok := pod.Annotations[grantsAnnotation]; ok {
			grants[pod.Name] = text
		}
	}
	return grants
}

func TestAllocateCycle(t *testing.T) {
	cases := map[string]struct {
		minMember int32
		policy    string
		nodes     []*v1.Node
		pods      []*v1.Pod
		want      map[string]string
	}{
		"binpack puts two slices on one card": {
			minMember: 1, policy: "binpack", nodes: []*v1.Node{gpuNode("n", 2)},
			pods: []*v1.Pod{slicePod("a", "", 1, 20, 3), slicePod("b", "", 1, 20, 3)},
			want: map[string]string{"a": "0,GPU-n-0,GPU,3072,20,0:", "b": "0,GPU-n-0,GPU,3072,20,1:"},
		},
		"spread puts two slices on two cards": {
			minMember: 1, policy: "spread", nodes: []*v1.Node{gpuNode("n", 2)},
			pods: []*v1.Pod{slicePod("a", "", 1, 20, 3), slicePod("b", "", 1, 20, 3)},
			want: map[string]string{"a": "0,GPU-n-0,GPU,3072,20,0:", "b": "1,GPU-n-1,GPU,3072,20,0:"},
		},
		"a gang that does not fit leaves no annotation behind": {
			minMember: 3, policy: "binpack", nodes: []*v1.Node{gpuNode("n", 2)},
			pods: []*v1.Pod{
				slicePod("a", "", 1, 60, 3), slicePod("b", "", 1, 60, 3), slicePod("c", "", 1, 60, 3),
			},
			want: map[string]string{},
		},
		"several slices in one container are refused, though both cards are free": {
			minMember: 1, policy: "binpack", nodes: []*v1.Node{gpuNode("n", 2)},
			pods: []*v1.Pod{slicePod("a", "", 2, 40, 6)},
			want: map[string]string{},
		},
		"whole cards are asked for by number alone": {
			minMember: 1, policy: "binpack", nodes: []*v1.Node{gpuNode("n", 2)},
			pods: []*v1.Pod{slicePod("a", "", 2, 0, 0)},
			want: map[string]string{"a": "0,GPU-n-0,GPU,40960,100,0:1,GPU-n-1,GPU,40960,100,0:"},
		},
		"the node's sum would do, but no single card": {
			minMember: 1, policy: "binpack", nodes: []*v1.Node{gpuNode("n", 2)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 60, 3), "0,GPU-n-0,GPU,3072,60,0:"),
				annotated(slicePod("y", "n", 1, 60, 3), "1,GPU-n-1,GPU,3072,60,0:"),
				slicePod("a", "", 1, 50, 3),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,3072,60,0:", "y": "1,GPU-n-1,GPU,3072,60,0:",
			},
		},
		"a forged annotation claims no more than its pod asks for": {
			minMember: 1, policy: "binpack", nodes: []*v1.Node{gpuNode("n", 1)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 10, 1), "0,GPU-n-0,GPU,40960,100,0:"),
				slicePod("a", "", 1, 50, 3),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,40960,100,0:", "a": "0,GPU-n-0,GPU,3072,50,1:",
			},
		},
		"a pod on the node without an annotation is counted too": {
			minMember: 1, policy: "binpack", nodes: []*v1.Node{gpuNode("n", 1)},
			pods: []*v1.Pod{slicePod("x", "n", 1, 60, 3), slicePod("a", "", 1, 50, 3)},
			want: map[string]string{},
		},
		"binpack prefers the node whose card is in use": {
			minMember: 1, policy: "binpack", nodes: []*v1.Node{gpuNode("m", 1), gpuNode("n", 1)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 50, 3), "0,GPU-n-0,GPU,3072,50,0:"),
				slicePod("a", "", 1, 20, 3),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,3072,50,0:", "a": "0,GPU-n-0,GPU,3072,20,1:",
			},
		},
		"spread prefers the idle node": {
			minMember: 1, policy: "spread", nodes: []*v1.Node{gpuNode("m", 1), gpuNode("n", 1)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 50, 3), "0,GPU-n-0,GPU,3072,50,0:"),
				slicePod("a", "", 1, 20, 3),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,3072,50,0:", "a": "0,GPU-m-0,GPU,3072,20,0:",
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			schedule(t, c.minMember, c.policy, c.nodes, c.pods)
			if got := grantsOf(c.pods); !reflect.DeepEqual(got, c.want) {
				t.Errorf("grants %v, want %v", got, c.want)
			}
		})
	}
}

func TestPredicateTellsWhy(t *testing.T) {
	node := api.NewNodeInfo(gpuNode("n", 1))
	plug := New(nil).(*plugin)
	cases := map[string]struct {
		pod  *v1.Pod
		want string
	}{
		"fits":     {slicePod("a", "", 1, 20, 3), ""},
		"too big":  {slicePod("a", "", 1, 20, 41), "huawei-xpu: no healthy card has 20 % cores and 41984 MiB free"},
		"no count": {slicePod("a", "", 0, 20, 3), "without vgpu-number"},
		"several":  {slicePod("a", "", 2, 40, 6), "asks for vgpu-number 2 together with vgpu-cores 40"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			plug.nodes = map[string]*nodeCards{"n": {policy: plug.settings.policy}}
			err := plug.predicate(api.NewTaskInfo(c.pod), node)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestInitContainersWithSlicesAreRefused(t *testing.T) {
	pod := slicePod("a", "", 1, 20, 3)
	pod.Spec.InitContainers = []v1.Container{*pod.Spec.Containers[0].DeepCopy()}
	if _, reason := askOf(pod); !strings.Contains(string(reason), "init container") {
		t.Errorf("reason %q", reason)
	}
}

func TestUndoKeepsWhatOthersWrote(t *testing.T) {
	pod := &v1.Pod{}
	pod.Annotations = map[string]string{"mine": "1", nodeAnnotation: "forged"}
	reader := pod.Annotations
	undo := annotate(pod, "n", place.Placement{Containers: [][]place.Grant{nil}}, time.Unix(1, 0))
	if len(reader) != 2 || reader[nodeAnnotation] != "forged" {
		t.Error("the map that others may be reading was written to")
	}
	if pod.Annotations[nodeAnnotation] != "n" || pod.Annotations[bindTimeAnnotation] != "1000000000" {
		t.Errorf("annotations %v", pod.Annotations)
	}
	pod.Annotations["later"] = "2"
	undo()
	want := map[string]string{"mine": "1", "later": "2", nodeAnnotation: "forged"}
	if !reflect.DeepEqual(pod.Annotations, want) {
		t.Errorf("annotations %v, want %v", pod.Annotations, want)
	}
}

func TestWrongArgumentsFallBackAndAreNamed(t *testing.T) {
	parsed, complaints := parse(framework.Arguments{
		policyArgument: "bestfit", weightArgument: "many", "huawei-xpu.polcy": "spread",
	})
	if parsed.policy.Name != "binpack" || parsed.weight != defaultWeight || len(complaints) != 3 {
		t.Errorf("%v %v", parsed, complaints)
	}
}
