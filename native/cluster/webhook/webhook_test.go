// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flexai.io/xpu/cluster/xpu"
)

var site = Policy{Scheduler: "volcano", RuntimeClass: "flexai-xpu"}

// amounts are a container's limits, by the last part of the resource's name.
type amounts map[string]string

func list(a amounts) corev1.ResourceList {
	found := corev1.ResourceList{}
	for name, amount := range a {
		if !strings.Contains(name, "/") && name != "cpu" {
			name = "huawei.com/" + name
		}
		found[corev1.ResourceName(name)] = resource.MustParse(amount)
	}
	return found
}

// asking is a container with these limits; the API server writes the same requests before we see it.
func asking(name string, limits amounts) corev1.Container {
	return corev1.Container{Name: name, Image: "i",
		Resources: corev1.ResourceRequirements{Limits: list(limits), Requests: list(limits)}}
}

func podOf(containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n"},
		Spec:       corev1.PodSpec{SchedulerName: "default-scheduler", Containers: containers},
	}
}

func annotated(pod *corev1.Pod, pairs ...string) *corev1.Pod {
	pod.Annotations = map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		pod.Annotations[pairs[i]] = pairs[i+1]
	}
	return pod
}

// reviewOf is what the API server sends about a pod.
func reviewOf(t testing.TB, operation string, pod, old *corev1.Pod) []byte {
	t.Helper()
	request := map[string]any{"uid": "u-1", "operation": operation, "namespace": "n",
		"resource": map[string]string{"group": "", "version": "v1", "resource": "pods"}, "object": pod}
	if old != nil {
		request["oldObject"] = old
	}
	body, err := json.Marshal(map[string]any{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

type answer struct {
	Response struct {
		UID       string
		Allowed   bool
		Patch     []byte
		PatchType string
		Warnings  []string
		Status    struct {
			Message, Reason string
			Code            int
		}
	}
}

func decodeAnswer(t testing.TB, body []byte, err error) answer {
	t.Helper()
	var got answer
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	if got.Response.UID != "u-1" {
		t.Errorf("answer to %q", got.Response.UID)
	}
	return got
}

// mutate sends a pod through the webhook and applies the patch as the API server does.
func mutate(t testing.TB, pod *corev1.Pod) (*corev1.Pod, answer) {
	t.Helper()
	body, err := Mutate(reviewOf(t, "CREATE", pod, nil), site)
	got := decodeAnswer(t, body, err)
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Response.Patch) > 0 {
		patch, err := jsonpatch.DecodePatch(got.Response.Patch)
		if err != nil {
			t.Fatal(err)
		}
		if text, err = patch.Apply(text); err != nil {
			t.Fatalf("%s does not apply: %v", got.Response.Patch, err)
		}
	}
	var after corev1.Pod
	if err := json.Unmarshal(text, &after); err != nil {
		t.Fatal(err)
	}
	return &after, got
}

// numbers are a container's limits of slices, as "number/cores/memory", "-" where absent.
func numbers(t testing.TB, c corev1.Container) string {
	t.Helper()
	if !reflect.DeepEqual(c.Resources.Limits, c.Resources.Requests) {
		t.Errorf("container %s: limits %v, requests %v", c.Name, c.Resources.Limits, c.Resources.Requests)
	}
	var parts []string
	for _, name := range []corev1.ResourceName{numberResource, coresResource, memoryResource} {
		part := "-"
		if amount, given := c.Resources.Limits[name]; given {
			part = amount.String()
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "/")
}

func TestAsksBecomeTotals(t *testing.T) {
	for name, test := range map[string]struct {
		limits amounts
		want   string
		shape  string
	}{
		"one slice":           {amounts{"vgpu-number": "1", "vgpu-cores": "20", "vgpu-memory-1Gi": "3"}, "1/20/3", `{"number":1,"cores":20,"memoryGiB":3}`},
		"two slices":          {amounts{"vgpu-number": "2", "vgpu-cores": "20", "vgpu-memory-1Gi": "3"}, "2/40/6", `{"number":2,"cores":20,"memoryGiB":3}`},
		"two of memory":       {amounts{"vgpu-number": "2", "vgpu-memory-1Gi": "3"}, "2/-/6", `{"number":2,"memoryGiB":3}`},
		"three of cores":      {amounts{"vgpu-number": "3", "vgpu-cores": "7"}, "3/21/-", `{"number":3,"cores":7}`},
		"a whole card":        {amounts{"vgpu-number": "1"}, "1/100/-", `{"number":1}`},
		"whole cards":         {amounts{"vgpu-number": "4"}, "4/400/-", `{"number":4}`},
		"whole cards, totals": {amounts{"vgpu-number": "4", "vgpu-cores": "400"}, "4/400/-", `{"number":4}`},
		"all cores of two":    {amounts{"vgpu-number": "2", "vgpu-cores": "100"}, "2/200/-", `{"number":2,"cores":100}`},
		"all cores, memory":   {amounts{"vgpu-number": "2", "vgpu-cores": "100", "vgpu-memory-1Gi": "1"}, "2/200/2", `{"number":2,"cores":100,"memoryGiB":1}`},
		"any percent":         {amounts{"vgpu-number": "1", "vgpu-cores": "1"}, "1/1/-", `{"number":1,"cores":1}`},
		"upstream's alias":    {amounts{"vgpu-number": "2", "vgpu-memory.1Gi": "3"}, "2/-/6", `{"number":2,"memoryGiB":3}`},
		"both names, alike":   {amounts{"vgpu-number": "2", "vgpu-memory.1Gi": "3", "vgpu-memory-1Gi": "3"}, "2/-/6", `{"number":2,"memoryGiB":3}`},
		"other forms of 2":    {amounts{"vgpu-number": "2000m", "vgpu-memory-1Gi": "1k"}, "2/-/2k", `{"number":2,"memoryGiB":1000}`},
	} {
		t.Run(name, func(t *testing.T) {
			after, got := mutate(t, podOf(asking("main", test.limits)))
			if !got.Response.Allowed {
				t.Fatal(got.Response.Status.Message)
			}
			if found := numbers(t, after.Spec.Containers[0]); found != test.want {
				t.Errorf("totals %s, want %s", found, test.want)
			}
			if want := `{"main":` + test.shape + `}`; after.Annotations[shapeAnnotation] != want {
				t.Errorf("shape %s, want %s", after.Annotations[shapeAnnotation], want)
			}
			if _, left := after.Spec.Containers[0].Resources.Limits[memoryAlias]; left {
				t.Error("the alias stays, and no node offers it")
			}
		})
	}
}

func TestWhatIsRefusedSaysWhy(t *testing.T) {
	one := amounts{"vgpu-number": "1", "vgpu-cores": "20", "vgpu-memory-1Gi": "3"}
	unequal := asking("main", one)
	unequal.Resources.Requests[coresResource] = resource.MustParse("10")
	for name, test := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"over a card": {podOf(asking("main", amounts{"vgpu-number": "2", "vgpu-cores": "120"})),
			`spec.containers[0].resources.limits[huawei.com/vgpu-cores]: Invalid value: 120: is percent of one card, for each vGPU; 1 to 100, or 200 for 2 whole cards`},
		"cores alone": {podOf(asking("main", amounts{"vgpu-cores": "20"})),
			`spec.containers[0].resources.limits[huawei.com/vgpu-number]: Required value: cores, memory and models are asked of a vGPU, and none is; add huawei.com/vgpu-number: 1`},
		"memory alone":  {podOf(asking("main", amounts{"vgpu-memory-1Gi": "3"})), "add huawei.com/vgpu-number: 1"},
		"a model alone": {podOf(asking("main", amounts{"vgpu-type.A100": "1"})), "add huawei.com/vgpu-number: 1"},
		"bytes for GiB": {podOf(asking("main", amounts{"vgpu-number": "1", "vgpu-memory-1Gi": "3Gi"})),
			`spec.containers[0].resources.limits[huawei.com/vgpu-memory-1Gi]: Invalid value: 3221225472: counts GiB: write 3, not 3Gi; at most 67108864`},
		"half a vGPU": {podOf(asking("main", amounts{"vgpu-number": "500m"})),
			`spec.containers[0].resources.limits[huawei.com/vgpu-number]: Invalid value: "500m": must be a whole number, 0 or more`},
		"less than nothing": {podOf(asking("main", amounts{"vgpu-number": "-1"})), `"-1": must be a whole number, 0 or more`},
		"a slip of the pen": {podOf(asking("main", amounts{"vgpu-number": "1", "vgpu-core": "20"})),
			`spec.containers[0].resources.limits[huawei.com/vgpu-core]: Unsupported value: "huawei.com/vgpu-core": supported values: "huawei.com/vgpu-number", "huawei.com/vgpu-cores", "huawei.com/vgpu-memory-1Gi", "huawei.com/vgpu-memory.1Gi", "huawei.com/vgpu-type.<model>"`},
		"two names, two amounts": {podOf(asking("main", amounts{"vgpu-number": "1", "vgpu-memory.1Gi": "3", "vgpu-memory-1Gi": "4"})),
			`spec.containers[0].resources.limits[huawei.com/vgpu-memory.1Gi]: Invalid value: 3: is another name of huawei.com/vgpu-memory-1Gi, which says 4; give one of them`},
		"requests unlike limits": {podOf(unequal),
			`spec.containers[0].resources.requests[huawei.com/vgpu-cores]: Invalid value: 10: differs from the limit, 20; give the limit alone`},
		"unknown class": {annotated(podOf(asking("main", one)), classAnnotation, "gold"),
			`metadata.annotations[flexai.io/class]: Unsupported value: "gold": supported values: "guaranteed", "elastic", "best-effort"`},
		"best effort with cores": {annotated(podOf(asking("main", one)), classAnnotation, bestEffort),
			`metadata.annotations[flexai.io/class]: Invalid value: "best-effort": runs in time that others leave; take out huawei.com/vgpu-cores in container main`},
		"best effort of a whole card": {annotated(podOf(asking("main", amounts{"vgpu-number": "1"})), classAnnotation, bestEffort),
			`reserves no cores and needs huawei.com/vgpu-memory-1Gi in container main`},
		"guaranteed memory": {annotated(podOf(asking("main", amounts{"vgpu-number": "1", "vgpu-memory-1Gi": "3"})), classAnnotation, guaranteed),
			`needs huawei.com/vgpu-cores, or whole cards by huawei.com/vgpu-number alone in container main`},
		"elastic memory": {annotated(podOf(asking("main", amounts{"vgpu-number": "1", "vgpu-memory-1Gi": "3"})), classAnnotation, elastic), `needs huawei.com/vgpu-cores`},
		"models that differ": {podOf(asking("a", amounts{"vgpu-number": "1", "vgpu-type.A100": "1"}), asking("b", amounts{"vgpu-number": "1", "vgpu-type.T4": "1"})),
			`spec.containers[1].resources.limits[huawei.com/vgpu-type.T4]: Invalid value: "T4": container a names A100; all containers of a pod must name the same models`},
		"models of no form": {annotated(podOf(asking("main", one)), typeAnnotation, "A100,;"), "must be models joined by commas, as A100,T4"},
		"links of no form":  {annotated(podOf(asking("main", one)), bandwidthAnnotation, "many"), "must be a whole number, a value of the node's topology matrix"},
	} {
		t.Run(name, func(t *testing.T) {
			_, got := mutate(t, test.pod)
			if got.Response.Allowed || !strings.Contains(got.Response.Status.Message, test.want) {
				t.Errorf("allowed %t: %s\nwant %s", got.Response.Allowed, got.Response.Status.Message, test.want)
			}
			if got.Response.Status.Code != 422 || got.Response.Patch != nil {
				t.Errorf("code %d, patch %s", got.Response.Status.Code, got.Response.Patch)
			}
		})
	}
}

func TestEveryMistakeIsNamedAtOnce(t *testing.T) {
	pod := podOf(asking("a", amounts{"vgpu-number": "1", "vgpu-cores": "101"}), asking("b", amounts{"vgpu-cores": "5"}))
	pod.Spec.InitContainers = []corev1.Container{asking("i", amounts{"vgpu-number": "1", "vgpu-what": "1"})}
	_, got := mutate(t, annotated(pod, classAnnotation, "gold"))
	for _, want := range []string{"spec.initContainers[0].resources.limits[huawei.com/vgpu-what]", "spec.containers[0]", "spec.containers[1]", "gold"} {
		if !strings.Contains(got.Response.Status.Message, want) {
			t.Errorf("%s is missing in: %s", want, got.Response.Status.Message)
		}
	}
}

func TestPodWithoutSlicesIsLeftAlone(t *testing.T) {
	for name, pod := range map[string]*corev1.Pod{
		"plain":      podOf(asking("main", amounts{"cpu": "1"})),
		"an NPU":     podOf(asking("main", amounts{"vnpu-number": "1", "intra-bandwidth": "50"})),
		"none asked": podOf(asking("main", amounts{"vgpu-number": "0"})),
		"a class":    annotated(podOf(asking("main", amounts{"cpu": "1"})), classAnnotation, elastic),
	} {
		if _, got := mutate(t, pod); !got.Response.Allowed || got.Response.Patch != nil {
			t.Errorf("%s: allowed %t, patch %s", name, got.Response.Allowed, got.Response.Patch)
		}
	}
}

func TestOtherResourcesStay(t *testing.T) {
	c := asking("main", amounts{"vgpu-number": "1", "cpu": "2"})
	c.Resources.Requests["cpu"] = resource.MustParse("1")
	after, _ := mutate(t, podOf(c))
	got := after.Spec.Containers[0].Resources
	if got.Limits.Cpu().String() != "2" || got.Requests.Cpu().String() != "1" {
		t.Errorf("%v", got)
	}
}

func TestHalfGivenResourcesAreCompleted(t *testing.T) {
	two := list(amounts{"vgpu-number": "2", "vgpu-cores": "20"})
	for name, resources := range map[string]corev1.ResourceRequirements{
		"limits alone":   {Limits: two},
		"requests alone": {Requests: two},
		"one of each": {Limits: list(amounts{"vgpu-number": "2"}),
			Requests: list(amounts{"vgpu-cores": "20"})},
	} {
		after, _ := mutate(t, podOf(corev1.Container{Name: "main", Resources: resources}))
		if got := numbers(t, after.Spec.Containers[0]); got != "2/40/-" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestEveryKindOfContainerIsNormalised(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	sidecar := asking("sidecar", amounts{"vgpu-number": "2", "vgpu-memory-1Gi": "1"})
	sidecar.RestartPolicy = &always
	pod := podOf(asking("a", amounts{"vgpu-number": "1", "vgpu-cores": "20"}), asking("plain", amounts{"cpu": "1"}),
		asking("b", amounts{"vgpu-number": "3", "vgpu-cores": "5"}))
	pod.Spec.InitContainers = []corev1.Container{asking("init", amounts{"vgpu-number": "2"}), sidecar}
	after, _ := mutate(t, pod)
	var got []string
	for _, c := range append(after.Spec.InitContainers, after.Spec.Containers...) {
		got = append(got, c.Name+" "+numbers(t, c))
	}
	want := []string{"init 2/200/-", "sidecar 2/-/2", "a 1/20/-", "plain -/-/-", "b 3/15/-"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	const shape = `{"a":{"number":1,"cores":20},"b":{"number":3,"cores":5},"init":{"number":2},"sidecar":{"number":2,"memoryGiB":1}}`
	if after.Annotations[shapeAnnotation] != shape {
		t.Errorf("shape %s, want %s", after.Annotations[shapeAnnotation], shape)
	}
}

func TestSchedulerAndRuntimeClassAreSetWhereLeftOpen(t *testing.T) {
	for name, test := range map[string]struct {
		change        func(*corev1.PodSpec)
		wantScheduler string
		wantClass     string
		wantWarning   string
	}{
		"left open":                    {func(*corev1.PodSpec) {}, "volcano", "flexai-xpu", ""},
		"none named":                   {func(s *corev1.PodSpec) { s.SchedulerName = "" }, "volcano", "flexai-xpu", ""},
		"own scheduler":                {func(s *corev1.PodSpec) { s.SchedulerName = "mine" }, "mine", "flexai-xpu", ""},
		"own class":                    {func(s *corev1.PodSpec) { s.RuntimeClassName = new(string); *s.RuntimeClassName = "kata" }, "volcano", "kata", "runtimeClassName kata is kept"},
		"bound by hand":                {func(s *corev1.PodSpec) { s.NodeName = "gpu1" }, "default-scheduler", "flexai-xpu", ""},
		"bound by hand, none named":    {func(s *corev1.PodSpec) { s.NodeName, s.SchedulerName = "gpu1", "" }, "", "flexai-xpu", ""},
		"bound by hand, own scheduler": {func(s *corev1.PodSpec) { s.NodeName, s.SchedulerName = "gpu1", "mine" }, "mine", "flexai-xpu", ""},
		"class as ours":                {func(s *corev1.PodSpec) { s.RuntimeClassName = new(string); *s.RuntimeClassName = "flexai-xpu" }, "volcano", "flexai-xpu", ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(asking("main", amounts{"vgpu-number": "1"}))
			test.change(&pod.Spec)
			after, got := mutate(t, pod)
			if after.Spec.SchedulerName != test.wantScheduler || *after.Spec.RuntimeClassName != test.wantClass {
				t.Errorf("scheduler %s, class %s", after.Spec.SchedulerName, *after.Spec.RuntimeClassName)
			}
			warnings := strings.Join(got.Response.Warnings, "\n")
			if (test.wantWarning == "") != (warnings == "") || !strings.Contains(warnings, test.wantWarning) {
				t.Errorf("warnings %q, want %q", warnings, test.wantWarning)
			}
		})
	}
	var pod Pod
	text := `{"spec":{"containers":[{"name":"c","resources":{"limits":{"huawei.com/vgpu-number":"1"}}}]}}`
	if err := json.Unmarshal([]byte(text), &pod); err != nil {
		t.Fatal(err)
	}
	left, _, _ := Normalise(pod, Policy{})
	if left.Spec.SchedulerName != "" || left.Spec.RuntimeClassName != "" {
		t.Errorf("a site that sets neither got %q, %q", left.Spec.SchedulerName, left.Spec.RuntimeClassName)
	}
}

func TestModelAndLinksBecomeAnnotations(t *testing.T) {
	after, got := mutate(t, podOf(
		asking("a", amounts{"vgpu-number": "2", "vgpu-type.A100": "1", "vgpu-type.H100-80G": "1", "intra-bandwidth": "50"}),
		asking("b", amounts{"vgpu-number": "2", "intra-bandwidth": "60"})))
	if !got.Response.Allowed {
		t.Fatal(got.Response.Status.Message)
	}
	if after.Annotations[typeAnnotation] != "A100,H100-80G" || after.Annotations[bandwidthAnnotation] != "60" {
		t.Errorf("%v", after.Annotations)
	}
	for _, c := range after.Spec.Containers {
		if len(c.Resources.Limits) != 2 {
			t.Errorf("%s keeps what no node offers: %v", c.Name, c.Resources.Limits)
		}
	}
	if !strings.Contains(strings.Join(got.Response.Warnings, ""), "differ in huawei.com/intra-bandwidth") {
		t.Errorf("%q", got.Response.Warnings)
	}
	again, second := mutate(t, after)
	if second.Response.Patch != nil || again.Annotations[typeAnnotation] != "A100,H100-80G" {
		t.Errorf("a second pass: %s", second.Response.Patch)
	}
}

func TestForgedAnnotationsAreRemoved(t *testing.T) {
	pod := podOf(asking("main", amounts{"vgpu-number": "2", "vgpu-cores": "20"}))
	annotated(pod, "huawei.com/vgpu-ids-new", "0,GPU-1,GPU,3072,100,0:", "huawei.com/vgpu-node", "gpu9", "huawei.com/bind-time", "1",
		"huawei.com/vgpu-devices-to-allocate", "x", "huawei.com/bind-phase", "success", "mine", "stays",
		shapeAnnotation, `{"main":{"number":2,"cores":90},"ghost":{"number":8}}`)
	after, got := mutate(t, pod)
	want := map[string]string{"mine": "stays", shapeAnnotation: `{"main":{"number":2,"cores":20}}`}
	if !reflect.DeepEqual(after.Annotations, want) {
		t.Errorf("%v", after.Annotations)
	}
	if len(got.Response.Warnings) != 6 {
		t.Errorf("%q", got.Response.Warnings)
	}
	plain, _ := mutate(t, annotated(podOf(asking("main", amounts{"cpu": "1"})), "huawei.com/vgpu-node", "gpu9", shapeAnnotation, "{}"))
	if len(plain.Annotations) != 0 {
		t.Errorf("a pod without slices keeps %v", plain.Annotations)
	}
}

// Whoever writes a shape that fits gets what the totals count: no more than by asking for it.
func TestAForgedShapeGainsNothing(t *testing.T) {
	rng := rand.New(rand.NewSource(3))
	for range 800 {
		claimed := Shape{int64(rng.Intn(5) - 1), int64(rng.Intn(130) - 10), int64(rng.Intn(6) - 1)}
		asked := Totals{int64(rng.Intn(4)), int64(rng.Intn(8) * 25), int64(rng.Intn(7))}
		limits := amounts{"vgpu-number": fmt.Sprint(asked.Number), "vgpu-cores": fmt.Sprint(asked.Cores), "vgpu-memory-1Gi": fmt.Sprint(asked.MemoryGiB)}
		after, got := mutate(t, annotated(podOf(asking("main", limits)), shapeAnnotation, writeShapes(map[string]Shape{"main": claimed})))
		if !got.Response.Allowed {
			continue
		}
		shape, known := parseShapes(after.Annotations[shapeAnnotation])["main"]
		if !known {
			continue
		}
		counted := count(after.Spec.Containers[0])
		if each := settle(t, counted, &shape); counted.Cores != asked.Number*each.cores ||
			each.cores > 100 || each.memoryGiB > 0 && counted.MemoryGiB != asked.Number*each.memoryGiB {
			t.Fatalf("%+v claimed, %+v asked: %+v counted, each gets %+v", claimed, asked, counted, each)
		}
	}
}

func TestASecondPassChangesNothing(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	for range 800 {
		after, got := mutate(t, randomPod(rng))
		if !got.Response.Allowed {
			continue
		}
		if _, second := mutate(t, after); !second.Response.Allowed || second.Response.Patch != nil {
			t.Fatalf("second pass of %v: %s %s", after, second.Response.Patch, second.Response.Status.Message)
		}
	}
}

// Another webhook may add a container in between: only the new one is multiplied.
func TestAContainerThatCameBetweenTwoPassesIsNormalisedAlone(t *testing.T) {
	after, _ := mutate(t, podOf(asking("a", amounts{"vgpu-number": "2", "vgpu-cores": "20"})))
	after.Spec.Containers = append(after.Spec.Containers, asking("b", amounts{"vgpu-number": "2", "vgpu-cores": "30"}))
	again, _ := mutate(t, after)
	if a, b := numbers(t, again.Spec.Containers[0]), numbers(t, again.Spec.Containers[1]); a != "2/40/-" || b != "2/60/-" {
		t.Errorf("a %s, b %s", a, b)
	}
}

// meant is what a user wrote for each vGPU of a container; whole cards are all cores.
type meant struct{ cards, cores, memoryGiB int64 }

// settle is what the device plugin makes of it.
func settle(t testing.TB, totals Totals, shape *Shape) meant {
	t.Helper()
	ask, err := xpu.Settle(xpu.Counts{Number: int(totals.Number), Cores: int(totals.Cores), MemoryGiB: int(totals.MemoryGiB)}, shape.settling())
	if err != nil {
		t.Fatal(err)
	}
	return meant{int64(ask.Cards), int64(ask.CoresPercent), int64(ask.MemoryMiB / xpu.MiBPerGiB)}
}

func count(c corev1.Container) Totals {
	of := func(name corev1.ResourceName) int64 {
		amount := c.Resources.Limits[name]
		return amount.Value()
	}
	return Totals{of(numberResource), of(coresResource), of(memoryResource)}
}

func randomPod(rng *rand.Rand) *corev1.Pod {
	pod := podOf()
	for i := range 1 + rng.Intn(3) {
		pod.Spec.Containers = append(pod.Spec.Containers, asking(fmt.Sprintf("c%d", i), randomAsk(rng)))
	}
	for i := range rng.Intn(3) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, asking(fmt.Sprintf("i%d", i), randomAsk(rng)))
	}
	if class := []string{"", "", guaranteed, elastic, bestEffort, "odd"}[rng.Intn(6)]; class != "" {
		annotated(pod, classAnnotation, class)
	}
	return pod
}

func randomAsk(rng *rand.Rand) amounts {
	ask := amounts{}
	give := func(name string, amount int) {
		if rng.Intn(3) > 0 {
			ask[name] = fmt.Sprint(amount)
		}
	}
	if rng.Intn(4) == 0 {
		return amounts{"cpu": "1"}
	}
	ask["vgpu-number"] = fmt.Sprint(1 + rng.Intn(8))
	give("vgpu-cores", 1+rng.Intn(100))
	if give("vgpu-memory-1Gi", 1+rng.Intn(80)); rng.Intn(4) == 0 {
		give("vgpu-memory.1Gi", 1+rng.Intn(80))
	}
	return ask
}

// The property that everything else serves: normalised and settled is what the user meant.
func TestWhatIsWrittenSettlesToWhatWasMeant(t *testing.T) {
	rng := rand.New(rand.NewSource(2))
	judged := 0
	for range 800 {
		pod := randomPod(rng)
		after, got := mutate(t, pod)
		if !got.Response.Allowed {
			continue
		}
		shapes := parseShapes(after.Annotations[shapeAnnotation])
		before := append(slices.Clone(pod.Spec.InitContainers), pod.Spec.Containers...)
		for i, c := range append(slices.Clone(after.Spec.InitContainers), after.Spec.Containers...) {
			asked := count(before[i])
			if alias, given := before[i].Resources.Limits[memoryAlias]; given {
				asked.MemoryGiB = alias.Value()
			}
			if asked.Number == 0 {
				continue
			}
			want := meant{asked.Number, asked.Cores, asked.MemoryGiB}
			if asked.Cores == 0 && asked.MemoryGiB == 0 {
				want.cores = 100
			}
			shape := shapes[c.Name]
			if found := settle(t, count(c), &shape); found != want {
				t.Fatalf("%v asked, %v granted", want, found)
			}
			judged++
		}
		body, err := Judge(reviewOf(t, "CREATE", after, nil))
		if judge := decodeAnswer(t, body, err); !judge.Response.Allowed {
			t.Fatalf("what the webhook wrote, it refuses: %s", judge.Response.Status.Message)
		}
	}
	if judged < 300 {
		t.Errorf("only %d containers judged", judged)
	}
}

func TestAPodThatMutationMissedIsRefusedWithTheReason(t *testing.T) {
	two := amounts{"vgpu-number": "2", "vgpu-cores": "20"}
	for name, test := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"several slices":   {podOf(asking("main", two)), "that the webhook has not seen"},
		"the alias":        {podOf(asking("main", amounts{"vgpu-number": "1", "vgpu-memory.1Gi": "3"})), "no node offers it"},
		"a bind":           {annotated(podOf(asking("main", amounts{"vgpu-number": "1"})), "huawei.com/vgpu-node", "gpu1"), "is the scheduler's, written with the bind"},
		"a shape too wide": {annotated(podOf(asking("main", amounts{"vgpu-number": "1", "vgpu-cores": "20"})), shapeAnnotation, `{"main":{"number":1,"cores":90}}`), "annotation vgpu-shape (1 virtual card(s) of 90 % cores and 0 GiB) doesn't multiply"},
		"one slice":        {podOf(asking("main", amounts{"vgpu-number": "1", "vgpu-cores": "20"})), ""},
		"a whole card":     {podOf(asking("main", amounts{"vgpu-number": "1"})), ""},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := Judge(reviewOf(t, "CREATE", test.pod, nil))
			got := decodeAnswer(t, body, err)
			if got.Response.Allowed != (test.want == "") || !strings.Contains(got.Response.Status.Message, test.want) {
				t.Errorf("allowed %t: %s, want %q", got.Response.Allowed, got.Response.Status.Message, test.want)
			}
		})
	}
}

func TestAnUpdateMayChangeAnythingButWhatDecidesAboutSlices(t *testing.T) {
	old, _ := mutate(t, podOf(asking("main", amounts{"vgpu-number": "2", "vgpu-cores": "20"})))
	for _, key := range append(slices.Clone(guarded), "mine") {
		changed := old.DeepCopy()
		changed.Annotations[key] = "other"
		body, err := Judge(reviewOf(t, "UPDATE", changed, old))
		if got := decodeAnswer(t, body, err); got.Response.Allowed != (key == "mine") {
			t.Errorf("%s: allowed %t", key, got.Response.Allowed)
		}
	}
	gone := old.DeepCopy()
	delete(gone.Annotations, shapeAnnotation)
	body, err := Judge(reviewOf(t, "UPDATE", gone, old))
	const want = "metadata.annotations[flexai.io/vgpu-shape]: Forbidden: decides about the pod's slices and stays"
	if got := decodeAnswer(t, body, err); got.Response.Allowed || !strings.Contains(got.Response.Status.Message, want) {
		t.Errorf("%q", got.Response.Status.Message)
	}
	if _, err := Mutate(reviewOf(t, "UPDATE", gone, old), site); err != nil {
		t.Error(err)
	}
}
