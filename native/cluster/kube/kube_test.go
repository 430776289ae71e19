// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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
 "annotations":{"huawei.com/vgpu-ids-new":"0,GPU-0,GPU,1,1,0:"}},
 "spec":{"initContainers":[{"name":"init"}],"containers":[{"name":"a"},{"name":"b"}]},"status":{"phase":"Failed"}}`

func api(t *testing.T, handler http.HandlerFunc) *API {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	client, err := NewAPI(&rest.Config{Host: server.URL})
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

func TestReportPatchesTwoAnnotations(t *testing.T) {
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
	berlin := time.FixedZone("CET", 3600)
	if err := client.Report(context.Background(), "node-1", cards, time.Date(2026, 1, 2, 4, 4, 5, 0, berlin)); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{registerAnnotation: "0,GPU-0,20,40960,GPU-A100,true,0:", handshakeAnnotation: "Reported_2026.01.02 03:04:05"}
	for key, value := range want {
		if patch.Metadata.Annotations[key] != value {
			t.Errorf("%s is %q, want %q", key, patch.Metadata.Annotations[key], value)
		}
	}
	if len(patch.Metadata.Annotations) != len(want) {
		t.Errorf("also patched: %v", patch.Metadata.Annotations)
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
