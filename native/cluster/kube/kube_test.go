// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"k8s.io/client-go/rest"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/xpu"
)

const podText = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"n","uid":"u1",
 "annotations":{"huawei.com/vgpu-ids-new":"0,GPU-0,GPU,1,1,0:","flexai.io/vgpu-shape":"{\"a\":{\"number\":1}}",
 "flexai.io/class":"elastic","flexai.io/vgpu-type":"A100,T4","flexai.io/intra-bandwidth":"50"}},
 "spec":{"initContainers":[{"name":"init","resources":{"limits":{"huawei.com/vgpu-number":"1"}}}],"containers":[
 {"name":"a","resources":{"limits":{"huawei.com/vgpu-number":"1","huawei.com/vgpu-memory-1Gi":"3"}}},{"name":"b"}]},"status":{"phase":"Failed"}}`

func api(t *testing.T, handler http.HandlerFunc) *API {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	client, err := NewAPI(&rest.Config{Host: server.URL}, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func reply(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	io.WriteString(w, text)
}

func TestPodIsReadOnce(t *testing.T) {
	client := api(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /api/v1/namespaces/n/pods/p":
			reply(w, 200, podText)
		case "GET /api/v1/namespaces/n/pods/gone":
			reply(w, 404, `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"NotFound","code":404}`)
		default:
			reply(w, 403, `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"Forbidden","code":403}`)
		}
	})
	pod, err := client.Pod(context.Background(), "n", "p")
	if err != nil || pod.UID != "u1" || !pod.Finished || len(pod.Containers) != 2 || pod.Containers[0] != "a" || pod.Preference == "" {
		t.Errorf("%+v, %v", pod, err)
	}
	if _, err := client.Pod(context.Background(), "n", "gone"); !errors.Is(err, agent.ErrNoPod) {
		t.Errorf("missing pod: %v", err)
	}
	if _, err := client.Pod(context.Background(), "n", "secret"); err == nil || errors.Is(err, agent.ErrNoPod) {
		t.Errorf("forbidden is not missing: %v", err)
	}
}

func TestAnInitContainersPodIsFoundByItsUID(t *testing.T) {
	client := api(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/pods" || r.URL.Query().Get("fieldSelector") != "spec.nodeName=node-1" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		reply(w, 200, `{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"other","uid":"u0"}},`+podText+`]}`)
	})
	pod, err := client.PodOf(context.Background(), "u1")
	const number = "huawei.com/vgpu-number"
	want := agent.Pod{UID: "u1", Namespace: "n", Name: "p", Finished: true, Containers: []string{"a", "b"},
		Limits:     map[string]agent.Limits{"init": {number: 1}, "a": {number: 1, "huawei.com/vgpu-memory-1Gi": 3}, "b": {}},
		Preference: "0,GPU-0,GPU,1,1,0:", Shapes: `{"a":{"number":1}}`, Class: "elastic", Models: "A100,T4", Bandwidth: "50"}
	if err != nil || !reflect.DeepEqual(pod, want) {
		t.Errorf("%+v, %v; want %+v", pod, err, want)
	}
	if _, err := client.PodOf(context.Background(), "u9"); !errors.Is(err, agent.ErrNoPod) {
		t.Errorf("%v", err)
	}
}

func TestTheNodesAnnotationsAreOnePatch(t *testing.T) {
	var patch struct {
		Metadata struct{ Annotations map[string]string }
	}
	client := api(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "PATCH" || r.URL.Path != "/api/v1/nodes/node-1" || r.Header.Get("Content-Type") != "application/merge-patch+json" {
			t.Errorf("%s %s as %s", r.Method, r.URL.Path, r.Header.Get("Content-Type"))
		}
		if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
			t.Error(err)
		}
		reply(w, 200, `{"apiVersion":"v1","kind":"Node"}`)
	})
	cards := []xpu.Card{{UUID: "GPU-0", MemoryMiB: 40960, Model: "A100", Split: 20, Healthy: true}}
	held := []xpu.Slice{{Owner: xpu.Owner{PodUID: "host", Container: "box"}, Shares: []xpu.Share{{UUID: "GPU-0", VID: 1, CoresPercent: 20, MemoryMiB: 512}}}}
	at := time.Date(2026, 1, 2, 4, 4, 5, 0, time.FixedZone("CET", 3600))
	if err := client.Annotate(context.Background(), NodeAnnotations(cards, held, at)); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"huawei.com/node-vgpu-register":  "0,GPU-0,20,40960,GPU-A100,true,0:",
		"huawei.com/node-vgpu-handshake": "Reported_2026.01.02 03:04:05",
		"huawei.com/node-gpu-topology":   "0",
		"huawei.com/node-vgpu-used":      "0,GPU-0,1,512,20:",
		"flexai.io/node-vgpu-slices":     "host,box,GPU-0,1,20,512:",
	}
	if !reflect.DeepEqual(patch.Metadata.Annotations, want) {
		t.Errorf("%v, want %v", patch.Metadata.Annotations, want)
	}
}

// An object's annotations are refused as a whole above 256 KiB; then the node would look dead.
func TestAnnotationsOfTheFullestNodeStayAccepted(t *testing.T) {
	var cards []xpu.Card
	var held []xpu.Slice
	for i := range 16 {
		cards = append(cards, xpu.Card{UUID: fmt.Sprintf("GPU-%08d-1111-2222-3333-0123456789ab", i), MemoryMiB: 1 << 20, Split: 256})
		for j := range 256 {
			held = append(held, xpu.Slice{Owner: xpu.Owner{PodUID: strings.Repeat("u", 36), Container: strings.Repeat("c", 63)},
				Shares: []xpu.Share{{UUID: cards[i].UUID, VID: j, MemoryMiB: 4096}}})
		}
	}
	for count, whole := range map[int]bool{700: true, len(held): false} {
		size := 0
		annotations := NodeAnnotations(cards, held[:count], time.Now())
		for key, value := range annotations {
			size += len(key) + len(value)
		}
		if size > 200<<10 || whole != (annotations[slicesAnnotation] != "") {
			t.Errorf("%d slices: %d bytes, the list has %d", count, size, len(annotations[slicesAnnotation]))
		}
	}
}

// lister answers slowly and counts.
type lister struct {
	podresources.UnimplementedPodResourcesListerServer
	calls, inside, most atomic.Int32
	answer              *podresources.ListPodResourcesResponse
}

func (l *lister) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	l.calls.Add(1)
	if now := l.inside.Add(1); now > l.most.Load() {
		l.most.Store(now)
	}
	time.Sleep(10 * time.Millisecond)
	l.inside.Add(-1)
	return l.answer, nil
}

func node(t *testing.T, l *lister) *Kubelet {
	t.Helper()
	directory, err := os.MkdirTemp("", "xpu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	socket := filepath.Join(directory, "kubelet.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(server, l)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	k, err := NewKubelet(directory, socket, "x/number")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func container(name, resource string, ids ...string) *podresources.ContainerResources {
	return &podresources.ContainerResources{Name: name,
		Devices: []*podresources.ContainerDevices{{ResourceName: resource, DeviceIds: ids}}}
}

func TestHoldingsShowTheOneResource(t *testing.T) {
	l := &lister{answer: &podresources.ListPodResourcesResponse{PodResources: []*podresources.PodResources{
		{Namespace: "n", Name: "p", Containers: []*podresources.ContainerResources{
			container("a", "x/number", "1", "2"), container("b", "x/cores", "c1"), {Name: "c"}}},
	}}}
	got, err := node(t, l).Holdings(context.Background())
	if err != nil || len(got) != 1 || got[0].Container != "a" || len(got[0].IDs) != 2 || got[0].Pod != "p" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCallersShareListCalls(t *testing.T) {
	l := &lister{answer: &podresources.ListPodResourcesResponse{}}
	k := node(t, l)
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			if _, err := k.Holdings(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if l.most.Load() != 1 || l.calls.Load() > 10 {
		t.Errorf("100 callers made %d calls, %d at once", l.calls.Load(), l.most.Load())
	}
	before := l.calls.Load()
	if _, err := k.Holdings(context.Background()); err != nil || l.calls.Load() != before+1 {
		t.Errorf("a later caller got an answer from before he asked (%v)", err)
	}
}

func TestAnAbsentKubeletIsAnErrorInTime(t *testing.T) {
	k, err := NewKubelet(t.TempDir(), "/nonexistent/kubelet.sock", "x/number")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Holdings(context.Background()); err == nil {
		t.Error("no error")
	}
	if _, err := k.Checkpoint(); err == nil {
		t.Error("no error")
	}
}
