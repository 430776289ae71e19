// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	schedulingv1 "volcano.sh/apis/pkg/apis/scheduling/v1beta1"
	"volcano.sh/volcano/pkg/scheduler/api"
	"volcano.sh/volcano/pkg/scheduler/framework"
	"volcano.sh/volcano/pkg/scheduler/util"

	"flexai.io/xpu/volcano/harness"
	"flexai.io/xpu/volcano/place"
)

const namespace = "ns"

func init() { framework.RegisterPluginBuilder(Name, New) }

func slicePod(name, node string, number, cores, memoryGiB int) *v1.Pod {
	return harness.Pod(namespace, name, "group", node, number, cores, memoryGiB)
}

// with sets annotations, given as key, value, key, value, ….
func with[T interface {
	GetAnnotations() map[string]string
	SetAnnotations(map[string]string)
}](object T, pairs ...string) T {
	notes := object.GetAnnotations()
	if notes == nil {
		notes = map[string]string{}
		object.SetAnnotations(notes)
	}
	for i := 0; i < len(pairs); i += 2 {
		notes[pairs[i]] = pairs[i+1]
	}
	return object
}

func annotated(pod *v1.Pod, grants string) *v1.Pod { return with(pod, grantsAnnotation, grants) }

// initContainer puts one before the pod's containers.
func initContainer(pod *v1.Pod, restart *v1.ContainerRestartPolicy, number, cores, memoryGiB int) *v1.Pod {
	limits := harness.Slices(number, cores, memoryGiB)
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, v1.Container{
		Name: "init", RestartPolicy: restart, Resources: v1.ResourceRequirements{Requests: limits, Limits: limits},
	})
	return pod
}

// configured is the role's configuration with one policy instead of binpack.
func configured(policy string) string {
	return strings.Replace(harness.Configuration, "policy: binpack", "policy: "+policy, 1)
}

// scheduler has one queue and one PodGroup, of which minMember must run together.
func scheduler(t *testing.T, configuration string, minMember int32, nodes []*v1.Node, pods []*v1.Pod) *harness.Scheduler {
	t.Helper()
	return start(t, configuration, harness.Cluster{
		Nodes: nodes, Pods: pods, Queues: []*schedulingv1.Queue{util.BuildQueue("queue", 1, nil)},
		Groups: []*schedulingv1.PodGroup{
			util.BuildPodGroup("group", namespace, "queue", minMember, nil, schedulingv1.PodGroupInqueue),
		},
	})
}

func start(t *testing.T, configuration string, cluster harness.Cluster) *harness.Scheduler {
	t.Helper()
	shared = &library{} // tests use the same names for different nodes
	s, err := harness.New(configuration, cluster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
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
	always := v1.ContainerRestartPolicyAlways
	linked := func(node *v1.Node) *v1.Node {
		return with(node, topologyAnnotation, "0,10,10,10;10,0,10,10;10,10,0,170;10,10,170,0")
	}
	cases := map[string]struct {
		minMember int32
		policy    string
		nodes     []*v1.Node
		pods      []*v1.Pod
		want      map[string]string
	}{
		"binpack puts two slices on one card": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 2)},
			pods: []*v1.Pod{slicePod("a", "", 1, 20, 3), slicePod("b", "", 1, 20, 3)},
			want: map[string]string{"a": "0,GPU-n-0,GPU,3072,20,0:", "b": "0,GPU-n-0,GPU,3072,20,1:"},
		},
		"spread puts two slices on two cards": {
			policy: "spread", nodes: []*v1.Node{harness.Node("n", 2)},
			pods: []*v1.Pod{slicePod("a", "", 1, 20, 3), slicePod("b", "", 1, 20, 3)},
			want: map[string]string{"a": "0,GPU-n-0,GPU,3072,20,0:", "b": "1,GPU-n-1,GPU,3072,20,0:"},
		},
		"topology puts whole cards on the linked pair": {
			policy: "topology", nodes: []*v1.Node{linked(harness.Node("n", 4))},
			pods: []*v1.Pod{slicePod("a", "", 2, 0, 0)},
			want: map[string]string{"a": "2,GPU-n-2,GPU,40960,100,0:3,GPU-n-3,GPU,40960,100,0:"},
		},
		"topology prefers the node that has a linked pair": {
			policy: "topology", nodes: []*v1.Node{harness.Node("m", 4), linked(harness.Node("n", 4)), harness.Node("o", 4)},
			pods: []*v1.Pod{slicePod("a", "", 2, 0, 0)},
			want: map[string]string{"a": "2,GPU-n-2,GPU,40960,100,0:3,GPU-n-3,GPU,40960,100,0:"},
		},
		"intra-bandwidth holds with binpack": {
			policy: "binpack", nodes: []*v1.Node{linked(harness.Node("n", 4))},
			pods: []*v1.Pod{with(slicePod("a", "", 2, 0, 0), bandwidthAnnotation, "170")},
			want: map[string]string{"a": "2,GPU-n-2,GPU,40960,100,0:3,GPU-n-3,GPU,40960,100,0:"},
		},
		"no node has links as wanted": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 4)},
			pods: []*v1.Pod{with(slicePod("a", "", 2, 0, 0), bandwidthAnnotation, "170")}, want: map[string]string{},
		},
		"a pod's own policy goes before the scheduler's": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 2)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 20, 3), "0,GPU-n-0,GPU,3072,20,0:"),
				with(slicePod("a", "", 1, 20, 3), policyAnnotation, "spread"),
			},
			want: map[string]string{"x": "0,GPU-n-0,GPU,3072,20,0:", "a": "1,GPU-n-1,GPU,3072,20,0:"},
		},
		"only a node with the model will do": {
			policy: "binpack",
			nodes: []*v1.Node{
				harness.Node("m", 1), with(harness.Node("n", 1), cardsAnnotation, "0,GPU-n-0,20,40960,GPU-H100,true,0:"),
			},
			pods: []*v1.Pod{with(slicePod("a", "", 1, 20, 3), modelsAnnotation, "h100,H200")},
			want: map[string]string{"a": "0,GPU-n-0,GPU,3072,20,0:"},
		},
		"a gang that does not fit leaves no annotation behind": {
			minMember: 3, policy: "binpack", nodes: []*v1.Node{harness.Node("n", 2)},
			pods: []*v1.Pod{
				slicePod("a", "", 1, 60, 3), slicePod("b", "", 1, 60, 3), slicePod("c", "", 1, 60, 3),
			},
			want: map[string]string{},
		},
		"two slices in one container, as the webhook has written them": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 2)},
			pods: []*v1.Pod{with(slicePod("a", "", 2, 40, 6), shapeAnnotation, `{"main":{"number":2,"cores":20,"memoryGiB":3}}`)},
			want: map[string]string{"a": "0,GPU-n-0,GPU,3072,20,0:1,GPU-n-1,GPU,3072,20,0:"},
		},
		"two slices in one container that the webhook hasn't seen": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 2)},
			pods: []*v1.Pod{slicePod("a", "", 2, 40, 6)}, want: map[string]string{},
		},
		"whole cards by number alone, beside slices": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 3)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 20, 3), "0,GPU-n-0,GPU,3072,20,0:"), slicePod("a", "", 2, 0, 0),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,3072,20,0:", "a": "1,GPU-n-1,GPU,40960,100,0:2,GPU-n-2,GPU,40960,100,0:",
			},
		},
		"best-effort joins a card whose cores are reserved": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 1)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 90, 3), "0,GPU-n-0,GPU,3072,90,0:"),
				with(slicePod("a", "", 1, 0, 30), classAnnotation, "best-effort"),
			},
			want: map[string]string{"x": "0,GPU-n-0,GPU,3072,90,0:", "a": "0,GPU-n-0,GPU,30720,0,1:"},
		},
		"an init container takes its turn on the pod's own card, and stands behind in the annotation": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 2)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 50, 3), "0,GPU-n-0,GPU,3072,50,0:"),
				initContainer(slicePod("a", "", 1, 50, 3), nil, 1, 50, 3),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,3072,50,0:", "a": "0,GPU-n-0,GPU,3072,50,1:;0,GPU-n-0,GPU,3072,50,2:",
			},
		},
		"an init container that lasts needs room of its own": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 2)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 50, 3), "0,GPU-n-0,GPU,3072,50,0:"),
				initContainer(slicePod("a", "", 1, 50, 3), &always, 1, 50, 3),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,3072,50,0:", "a": "0,GPU-n-0,GPU,3072,50,1:;1,GPU-n-1,GPU,3072,50,0:",
			},
		},
		"the node's sum would do, but no single card": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 2)},
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
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 1)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 10, 1), "0,GPU-n-0,GPU,40960,100,0:"),
				slicePod("a", "", 1, 50, 3),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,40960,100,0:", "a": "0,GPU-n-0,GPU,3072,50,1:",
			},
		},
		"a pod on the node without an annotation is counted too": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("n", 1)},
			pods: []*v1.Pod{slicePod("x", "n", 1, 60, 3), slicePod("a", "", 1, 50, 3)},
			want: map[string]string{},
		},
		"a pod that was bound elsewhere than annotated counts where it is": {
			policy: "binpack",
			nodes:  []*v1.Node{with(harness.Node("n", 2), boundAnnotation, "ns-x,main,GPU-n-1,0,60,3072:")},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 60, 3), "0,GPU-n-0,GPU,3072,60,0:"), slicePod("a", "", 1, 80, 3),
			},
			want: map[string]string{"x": "0,GPU-n-0,GPU,3072,60,0:", "a": "0,GPU-n-0,GPU,3072,80,0:"},
		},
		"a slice of the host counts": {
			policy: "binpack",
			nodes:  []*v1.Node{with(harness.Node("n", 2), boundAnnotation, "host,render,GPU-n-0,0,60,3072:")},
			pods:   []*v1.Pod{slicePod("a", "", 1, 80, 3)},
			want:   map[string]string{"a": "1,GPU-n-1,GPU,3072,80,0:"},
		},
		"a pod that has ended counts until the device plugin has let go": {
			policy: "binpack",
			nodes:  []*v1.Node{with(harness.Node("n", 2), boundAnnotation, "uid-of-old,main,GPU-n-0,0,60,3072:")},
			pods:   []*v1.Pod{slicePod("a", "", 1, 80, 3)},
			want:   map[string]string{"a": "1,GPU-n-1,GPU,3072,80,0:"},
		},
		"binpack prefers the node whose card is in use": {
			policy: "binpack", nodes: []*v1.Node{harness.Node("m", 1), harness.Node("n", 1)},
			pods: []*v1.Pod{
				annotated(slicePod("x", "n", 1, 50, 3), "0,GPU-n-0,GPU,3072,50,0:"),
				slicePod("a", "", 1, 20, 3),
			},
			want: map[string]string{
				"x": "0,GPU-n-0,GPU,3072,50,0:", "a": "0,GPU-n-0,GPU,3072,20,1:",
			},
		},
		"spread prefers the idle node": {
			policy: "spread", nodes: []*v1.Node{harness.Node("m", 1), harness.Node("n", 1)},
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
			scheduler(t, configured(c.policy), max(c.minMember, 1), c.nodes, c.pods).Cycle()
			if got := grantsOf(c.pods); !reflect.DeepEqual(got, c.want) {
				t.Errorf("grants %v, want %v", got, c.want)
			}
		})
	}
}

func TestTheGroupsPolicyHoldsForPodsThatNameNone(t *testing.T) {
	pods := []*v1.Pod{
		annotated(slicePod("x", "n", 1, 20, 3), "0,GPU-n-0,GPU,3072,20,0:"), slicePod("a", "", 1, 20, 3),
	}
	group := util.BuildPodGroupWithAnno("group", namespace, "queue", 1, nil, schedulingv1.PodGroupInqueue,
		map[string]string{policyAnnotation: "spread"})
	start(t, configured("binpack"), harness.Cluster{
		Nodes: []*v1.Node{harness.Node("n", 2)}, Pods: pods, Groups: []*schedulingv1.PodGroup{group},
		Queues: []*schedulingv1.Queue{util.BuildQueue("queue", 1, nil)},
	}).Cycle()
	if got := grantsOf(pods)["a"]; got != "1,GPU-n-1,GPU,3072,20,0:" {
		t.Errorf("grants %q, want the idle card", got)
	}
}

// bare is a plugin in a session that knows only these nodes.
func bare(nodes ...*api.NodeInfo) *plugin {
	session := &framework.Session{Nodes: map[string]*api.NodeInfo{}}
	for _, node := range nodes {
		session.Nodes[node.Name] = node
	}
	plug := New(nil).(*plugin)
	plug.library = &library{}
	plug.open(session)
	return plug
}

func TestPredicateTellsWhy(t *testing.T) {
	cases := map[string]struct {
		pod      *v1.Pod
		want     string
		hopeless bool // no eviction can help
	}{
		"fits":         {pod: slicePod("a", "", 1, 20, 3)},
		"asks nothing": {pod: slicePod("a", "", 0, 0, 0)},
		"too big": {
			slicePod("a", "", 1, 20, 41), "huawei-xpu: no healthy card has 20 % cores and 41984 MiB free", true,
		},
		"taken":      {slicePod("a", "", 1, 80, 3), "huawei-xpu: no healthy card has 80 % cores and 3072 MiB free", false},
		"no count":   {slicePod("a", "", 0, 20, 3), "without vgpu-number", true},
		"several":    {slicePod("a", "", 2, 40, 6), "the webhook hasn't seen it", true},
		"class":      {with(slicePod("a", "", 1, 20, 3), classAnnotation, "gold"), `class "gold" is unknown`, true},
		"shape":      {with(slicePod("a", "", 2, 40, 6), shapeAnnotation, `{"main":{"number":2,"cores":2}}`), "vgpu-shape", true},
		"model":      {with(slicePod("a", "", 1, 20, 3), modelsAnnotation, "H100"), "no healthy H100 card", true},
		"link":       {with(slicePod("a", "", 2, 0, 0), bandwidthAnnotation, "90"), "linked by 90 or better", true},
		"bad policy": {with(slicePod("a", "", 1, 20, 3), policyAnnotation, "best"), "use binpack, spread or topology", true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			node := api.NewNodeInfo(harness.Node("n", 1))
			if err := node.AddTask(api.NewTaskInfo(annotated(slicePod("x", "n", 1, 50, 3), "0,GPU-n-0,GPU,3072,50,0:"))); err != nil {
				t.Fatal(err)
			}
			err := bare(node).predicate(api.NewTaskInfo(c.pod), node)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if err != nil && err.(*api.FitError).Status.ContainsUnschedulableAndUnresolvable() != c.hopeless {
				t.Errorf("hopeless: %v, want %v", !c.hopeless, c.hopeless)
			}
		})
	}
}

func TestMalformedNodesAreNamedAndTakeNothing(t *testing.T) {
	for annotation, text := range map[string]string{
		cardsAnnotation: "0,GPU-n-0,20,40960:", boundAnnotation: "uid,main,GPU-n-0,x,60,3072:",
	} {
		node := api.NewNodeInfo(with(harness.Node("n", 1), annotation, text))
		err := bare(node).predicate(api.NewTaskInfo(slicePod("a", "", 1, 20, 3)), node)
		if err == nil || !strings.Contains(err.Error(), "annotation "+annotation+" of the node is malformed") {
			t.Errorf("%s: error %v", annotation, err)
		}
	}
	node := api.NewNodeInfo(with(harness.Node("n", 2), topologyAnnotation, "X"))
	if err := bare(node).predicate(api.NewTaskInfo(slicePod("a", "", 2, 0, 0)), node); err != nil {
		t.Errorf("a topology nobody asked about stops the node: %v", err)
	}
}

// What time the handshake states plays no part: clocks may differ by hours (reference: upstream's
// scheduler read UTC as Shanghai's time and never scheduled).
func TestOnlySilenceByOurOwnClockStopsANode(t *testing.T) {
	object := with(harness.Node("n", 1), handshakeAnnotation, "Reported_1999.12.31 23:59:59")
	node := api.NewNodeInfo(object)
	plug := bare(node)
	clock := time.Unix(1e9, 0)
	try := func() error {
		plug.now = func() time.Time { return clock }
		plug.open(plug.session)
		return plug.predicate(api.NewTaskInfo(slicePod("a", "", 1, 20, 3)), node)
	}
	if err := try(); err != nil {
		t.Errorf("the first word of a node is believed, whatever time it states: %v", err)
	}
	clock = clock.Add(silentAfter)
	if err := try(); err != nil {
		t.Errorf("not silent for longer than %v yet: %v", silentAfter, err)
	}
	clock = clock.Add(time.Second)
	if err := try(); err == nil || !strings.Contains(err.Error(), "device plugin of the node is silent") {
		t.Errorf("silent for longer than %v: %v", silentAfter, err)
	}
	object.Annotations[handshakeAnnotation] = "Reported_1999.12.31 23:59:58"
	if err := try(); err != nil {
		t.Errorf("it has spoken again, if of an earlier time: %v", err)
	}
	delete(object.Annotations, handshakeAnnotation)
	if clock = clock.Add(time.Hour); try() != nil || func() error { clock = clock.Add(time.Hour); return try() }() != nil {
		t.Error("a node that reports without a handshake is believed")
	}
}

// Sessions are once a second; what hasn't changed is not read again.
func TestUnchangedNodesAreNotReadAgain(t *testing.T) {
	object := with(harness.Node("n", 2), handshakeAnnotation, "Reported_1")
	node := api.NewNodeInfo(object)
	first := api.NewTaskInfo(annotated(slicePod("x", "n", 1, 20, 3), "0,GPU-n-0,GPU,3072,20,0:"))
	if err := node.AddTask(first); err != nil {
		t.Fatal(err)
	}
	plug := bare(node)
	books := func() *place.Books {
		plug.open(plug.session)
		return plug.cardsOf(node).record.books
	}
	before := books()
	unchanged := map[string]func(){
		"nothing":                 func() {},
		"a heartbeat":             func() { object.Annotations[handshakeAnnotation] = "Reported_2" },
		"a pod without slices":    func() { _ = node.AddTask(api.NewTaskInfo(slicePod("cpu", "n", 0, 0, 0))) },
		"another session's trial": func() { plug.allocate(pending(node, "trial"), node) },
	}
	for name, change := range unchanged {
		if change(); books() != before {
			t.Errorf("%s: the node was read again", name)
		}
	}
	changed := map[string]func(){
		"a card more": func() { object.Annotations[cardsAnnotation] += "2,GPU-n-2,20,40960,GPU-A100,true,0:" },
		"a binding":   func() { object.Annotations[boundAnnotation] = "ns-x,main,GPU-n-1,0,20,3072:" },
		"links":       func() { object.Annotations[topologyAnnotation] = "0,1,1;1,0,1;1,1,0" },
		"a pod more":  func() { _ = node.AddTask(api.NewTaskInfo(slicePod("y", "n", 1, 20, 3))) },
		"an annotation": func() {
			with(first.Pod, grantsAnnotation, "1,GPU-n-1,GPU,3072,20,0:")
		},
		"a pod that leaves": func() { node.Tasks[api.PodKey(first.Pod)].Status = api.Releasing },
		"a pod that left":   func() { delete(node.Tasks, api.PodKey(first.Pod)) },
	}
	for _, name := range []string{
		"a card more", "a binding", "links", "a pod more", "an annotation", "a pod that leaves", "a pod that left",
	} {
		before = books()
		if changed[name](); books() == before {
			t.Errorf("%s: not noticed", name)
		}
	}
}

func pending(node *api.NodeInfo, name string) *api.TaskInfo {
	task := api.NewTaskInfo(slicePod(name, "", 1, 30, 3))
	task.NodeName, task.Status = node.Name, api.Allocated
	return task
}

func TestDeallocateGivesBackExactly(t *testing.T) {
	node := api.NewNodeInfo(harness.Node("n", 2))
	resident := api.NewTaskInfo(annotated(slicePod("x", "n", 1, 20, 3), "0,GPU-n-0,GPU,3072,20,0:"))
	if err := node.AddTask(resident); err != nil {
		t.Fatal(err)
	}
	plug := bare(node)
	state := func() string { return plug.cardsOf(node).books().String() }
	fresh := state()
	steps := map[string]func(*api.TaskInfo){
		"allocated": func(*api.TaskInfo) {},
		"pipelined": func(task *api.TaskInfo) { task.Status = api.Pipelined },
	}
	for name, prepare := range steps {
		task := pending(node, name)
		notes := fmt.Sprint(task.Pod.Annotations)
		prepare(task)
		if reason := plug.allocate(task, node); reason != "" || state() == fresh {
			t.Fatalf("%s: %q, books %s", name, reason, state())
		}
		task.Status = api.Pending
		plug.deallocate(task)
		if state() != fresh || fmt.Sprint(task.Pod.Annotations) != notes {
			t.Errorf("%s and taken back: books %s, were %s; annotations %v", name, state(), fresh, task.Pod.Annotations)
		}
	}
	evicted := resident.Clone()
	evicted.Status = api.Releasing
	plug.deallocate(evicted)
	if err := plug.predicate(pending(node, "next"), node); err != nil {
		t.Error(err)
	}
	if books := plug.cardsOf(node).books(); !books.IsLeaving("ns-x") {
		t.Error("an evicted pod runs on its card until it is gone")
	}
	evicted.Status = api.Running
	if reason := plug.allocate(evicted, node); reason != "" || state() != fresh {
		t.Errorf("eviction taken back: %q, books %s, were %s", reason, state(), fresh)
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

func TestArguments(t *testing.T) {
	parsed, complaints := parse(framework.Arguments{
		Name + ".policy": "Topology", Name + ".weight": 3, Name + ".default-class": "best-effort", Name + ".mix-classes": true,
		Name + ".beside-as": secondName,
	})
	if parsed.policy.Name != "topology" || parsed.weight != 3 || parsed.defaultClass != place.BestEffort ||
		!parsed.mixing || parsed.beside != secondName || len(complaints) != 0 {
		t.Errorf("%+v %v", parsed, complaints)
	}
	parsed, complaints = parse(framework.Arguments{
		Name + ".policy": "bestfit", Name + ".weight": "many", Name + ".default-class": "gold", Name + ".polcy": "spread",
		Name + ".beside-as": "",
	})
	if parsed.policy.Name != "binpack" || parsed.weight != defaultWeight || parsed.defaultClass != place.NoClass || parsed.beside != "" || len(complaints) != 5 {
		t.Errorf("%+v %v", parsed, complaints)
	}
	for i, want := range []string{
		`argument huawei-xpu.polcy is unknown; known are huawei-xpu.beside-as, huawei-xpu.default-class, huawei-xpu.mix-classes, `,
		`huawei-xpu.beside-as is ; use a scheduler's name`,
		`huawei-xpu.default-class is gold; use guaranteed, elastic or best-effort`,
		`huawei-xpu.policy is bestfit; use binpack, spread or topology`, `huawei-xpu.weight is many; use a number from 0`,
	} {
		if !strings.Contains(complaints[i], want) {
			t.Errorf("complaint %q, want %q", complaints[i], want)
		}
	}
}
