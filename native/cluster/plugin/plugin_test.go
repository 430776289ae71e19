// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"flexai.io/xpu/cluster/xpu"
)

const (
	poll    = 5 * time.Millisecond
	patient = 10 * time.Second
)

// kubelet is the registration side of a real one, on a real socket.
type kubelet struct {
	pluginapi.UnimplementedRegistrationServer
	directory string
	server    *grpc.Server
	mutex     sync.Mutex
	requests  []*pluginapi.RegisterRequest
	refuse    error
}

// boot empties the directory first, as a starting kubelet does.
func boot(t *testing.T, directory string) *kubelet {
	t.Helper()
	stale, _ := filepath.Glob(filepath.Join(directory, "*.sock"))
	for _, path := range stale {
		os.Remove(path)
	}
	listener, err := net.Listen("unix", filepath.Join(directory, kubeletSocket))
	if err != nil {
		t.Fatal(err)
	}
	k := &kubelet{directory: directory, server: grpc.NewServer()}
	pluginapi.RegisterRegistrationServer(k.server, k)
	go k.server.Serve(listener)
	t.Cleanup(k.server.Stop)
	return k
}

func (k *kubelet) Register(_ context.Context, r *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.requests = append(k.requests, r)
	return &pluginapi.Empty{}, k.refuse
}

func (k *kubelet) registered() []*pluginapi.RegisterRequest {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return append([]*pluginapi.RegisterRequest(nil), k.requests...)
}

func (k *kubelet) waitFor(t *testing.T, count int) []*pluginapi.RegisterRequest {
	t.Helper()
	for deadline := time.Now().Add(patient); time.Now().Before(deadline); time.Sleep(poll) {
		if got := k.registered(); len(got) >= count {
			return got
		}
	}
	t.Fatalf("%d registrations after %s, want %d", len(k.registered()), patient, count)
	return nil
}

func dial(t *testing.T, directory, endpoint string) pluginapi.DevicePluginClient {
	t.Helper()
	connection, err := grpc.NewClient("unix:"+filepath.Join(directory, endpoint),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return pluginapi.NewDevicePluginClient(connection)
}

// shortDirectory, because a unix socket's path may have 107 bytes only.
func shortDirectory(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "xpu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	return directory
}

func serve(t *testing.T, directory string, resources []Resource) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, directory, resources, poll, slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patient):
			t.Error("Serve did not end with its context")
		}
	})
}

var cards = []xpu.Card{{UUID: "GPU-0", Split: 2}, {UUID: "GPU-1", Split: 2}}

func two(prepare func(context.Context, []string) error) []Resource {
	split := func(c xpu.Card) int { return c.Split }
	return []Resource{
		{Name: "x/number", Socket: "n.sock", IDs: Tokens(cards, "", split), Allocate: Indirection(Mount, func([]string) {}), Prepare: prepare},
		{Name: "x/cores", Socket: "c.sock", IDs: Tokens(cards, "c", split), Allocate: Empty},
	}
}

func TestAKubeletGetsIdsAnswersAndErrors(t *testing.T) {
	directory := shortDirectory(t)
	k := boot(t, directory)
	serve(t, directory, two(func(_ context.Context, ids []string) error {
		return fmt.Errorf("container a: %w", &xpu.NoFit{Free: strings.Join(ids, " ")})
	}))
	for i, r := range k.waitFor(t, 2) {
		if want := []bool{true, false}[i]; r.Options.PreStartRequired != want || r.Version != pluginapi.Version {
			t.Errorf("registered %+v", r)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	client := dial(t, directory, "n.sock")
	stream, err := client.ListAndWatch(ctx, &pluginapi.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	list, err := stream.Recv()
	if err != nil || len(list.Devices) != 4 || list.Devices[3].ID != "GPU-1-1" || list.Devices[3].Health != pluginapi.Healthy {
		t.Errorf("devices %v, %v", list, err)
	}
	answer, err := client.Allocate(ctx, &pluginapi.AllocateRequest{
		ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIDs: []string{"GPU-1-0"}}, {DevicesIDs: []string{"GPU-0-0"}}}})
	if err != nil || len(answer.ContainerResponses) != 2 {
		t.Fatal(answer, err)
	}
	mount := answer.ContainerResponses[0].Mounts[0]
	want := "/var/run/nvidia-container-devices/cdi/huawei.com/vgpu/" + xpu.Key([]string{"GPU-1-0"})
	if mount.HostPath != "/dev/null" || mount.ContainerPath != want || len(answer.ContainerResponses[0].Envs) > 0 {
		t.Errorf("answer %+v, want a mount at %s and nothing else", answer.ContainerResponses[0], want)
	}
	_, err = client.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIDs: []string{"a", "b"}})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "; a b") {
		t.Errorf("the reason is lost: %v", err)
	}
	if empty, err := dial(t, directory, "c.sock").Allocate(ctx, &pluginapi.AllocateRequest{
		ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIDs: []string{"GPU-0-c0"}}}}); err != nil ||
		len(empty.ContainerResponses[0].Mounts)+len(empty.ContainerResponses[0].CDIDevices) != 0 {
		t.Errorf("a resource that only counts answered %v, %v", empty, err)
	}
}

func TestANewKubeletIsOfferedEverythingAgain(t *testing.T) {
	directory := shortDirectory(t)
	serve(t, directory, two(func(context.Context, []string) error { return nil }))
	time.Sleep(3 * poll) // no kubelet yet: the plugin waits for one
	first := boot(t, directory)
	first.waitFor(t, 2)
	first.server.Stop()
	boot(t, directory).waitFor(t, 2)
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	if _, err := dial(t, directory, "n.sock").PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{}); err != nil {
		t.Error(err)
	}
}

func TestARefusedRegistrationIsTriedAgain(t *testing.T) {
	directory := shortDirectory(t)
	k := boot(t, directory)
	k.refuse = errors.New("not today")
	serve(t, directory, two(nil))
	k.waitFor(t, 3)
	k.mutex.Lock()
	k.refuse, k.requests = nil, nil
	k.mutex.Unlock()
	k.waitFor(t, 2)
}

func TestStrategies(t *testing.T) {
	for text, want := range map[string]int{"mount": 0, "field": 1} {
		strategy, err := ParseStrategy(text)
		var dealt []string
		answer := Indirection(strategy, func(ids []string) { dealt = ids })([]string{"a"})
		if !reflect.DeepEqual(dealt, []string{"a"}) {
			t.Errorf("told of %v", dealt)
		}
		if err != nil || len(answer.CDIDevices) != want || len(answer.Mounts) != 1-want {
			t.Errorf("%s: %v, %v", text, answer, err)
		}
		if want == 1 && answer.CDIDevices[0].Name != "huawei.com/vgpu="+xpu.Key([]string{"a"}) {
			t.Errorf("field names %s", answer.CDIDevices[0].Name)
		}
	}
	if _, err := ParseStrategy("auto"); err == nil {
		t.Error("auto was accepted")
	}
}

// The kubelet reads no message over 16 MiB; a full node must stay far below.
func TestTheLargestListIsSmall(t *testing.T) {
	var many []xpu.Card
	for i := range 16 {
		many = append(many, xpu.Card{UUID: fmt.Sprintf("GPU-%08x-1111-2222-3333-0123456789ab", i)})
	}
	list := &pluginapi.ListAndWatchResponse{}
	for _, id := range Tokens(many, "m", func(xpu.Card) int { return 256 }) {
		list.Devices = append(list.Devices, &pluginapi.Device{ID: id, Health: pluginapi.Healthy})
	}
	if size := list.Size(); size > 1<<20 {
		t.Errorf("16 cards of 256 ids make a message of %d bytes", size)
	}
}
