// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

func many(count int, prefix string) []string {
	ids := make([]string, count)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s%d", prefix, i)
	}
	return ids
}

func allocation(containers ...[]string) *pluginapi.AllocateRequest {
	request := &pluginapi.AllocateRequest{}
	for _, ids := range containers {
		request.ContainerRequests = append(request.ContainerRequests, &pluginapi.ContainerAllocateRequest{DevicesIDs: ids})
	}
	return request
}

// prepared counts who got past the guard.
type prepared struct {
	mutex sync.Mutex
	calls int
}

func (p *prepared) prepare(context.Context, []string) error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.calls++
	return nil
}

func TestAHostileClientIsRefused(t *testing.T) {
	directory := shortDirectory(t)
	k := boot(t, directory)
	var reached prepared
	serve(t, directory, two(reached.prepare))
	k.waitFor(t, 2)
	client := dial(t, directory, "n.sock")
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	preferred := func(size int32, available, must []string) error {
		_, err := client.GetPreferredAllocation(ctx, &pluginapi.PreferredAllocationRequest{ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{
			{AvailableDeviceIDs: available, MustIncludeDeviceIDs: must, AllocationSize: size}}})
		return err
	}
	allocate := func(containers ...[]string) error {
		_, err := client.Allocate(ctx, allocation(containers...))
		return err
	}
	start := func(ids ...string) error {
		_, err := client.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIDs: ids})
		return err
	}
	for name, c := range map[string]struct {
		err  error
		code codes.Code
		want string
	}{
		"an id twice":                       {allocate([]string{"GPU-0-0", "GPU-0-0"}), codes.InvalidArgument, "id GPU-0-0 stands there twice"},
		"an id for two containers":          {allocate([]string{"GPU-0-0"}, []string{"GPU-0-0"}), codes.InvalidArgument, "id GPU-0-0 stands there twice"},
		"an id never offered":               {allocate([]string{"GPU-7-0"}), codes.InvalidArgument, "id GPU-7-0 was never offered"},
		"an id of a neighbouring resource":  {allocate([]string{"GPU-0-c0"}), codes.InvalidArgument, "id GPU-0-c0 was never offered"},
		"more ids than a node has":          {allocate(many(5000, "a")), codes.InvalidArgument, "5000 ids in one request; at most 4096 are allowed"},
		"more containers than a pod has":    {allocate(make([][]string, 300)...), codes.InvalidArgument, "300 containers in one request; at most 256 are allowed"},
		"a message beyond all measure":      {allocate(many(200_000, "an-id-that-is-long-enough-")), codes.ResourceExhausted, "larger than max"},
		"an empty id":                       {start(""), codes.InvalidArgument, `id "" is not 1 to 128 printable ASCII characters`},
		"a path":                            {start("../../etc/passwd\x00"), codes.InvalidArgument, "printable ASCII"},
		"a line break, for the log's sake":  {start("a\nlevel=ERROR"), codes.InvalidArgument, "printable ASCII"},
		"an id as long as a novel":          {start(strings.Repeat("x", 100_000)), codes.InvalidArgument, "printable ASCII"},
		"an id twice at a start":            {start("x", "x"), codes.InvalidArgument, "id x stands there twice"},
		"more ids than a node has, a start": {start(many(4097, "a")...), codes.InvalidArgument, "at most 4096"},
		"a preference below zero":           {preferred(-1, []string{"GPU-0-0"}, nil), codes.InvalidArgument, "allocation size -1 is not 0 to 1"},
		"a preference for more than all":    {preferred(9, []string{"GPU-0-0"}, nil), codes.InvalidArgument, "allocation size 9 is not 0 to 1"},
		"a preference for the unknown":      {preferred(1, []string{"GPU-0-0"}, []string{"GPU-9-9"}), codes.InvalidArgument, "id GPU-9-9 was never offered"},
	} {
		if status.Code(c.err) != c.code || !strings.Contains(status.Convert(c.err).Message(), c.want) {
			t.Errorf("%s: answered %.200v, want %s with %q", name, c.err, c.code, c.want)
		}
		if text := status.Convert(c.err).Message(); len(text) > 300 {
			t.Errorf("%s: the refusal has %d bytes; it repeats what it was sent", name, len(text))
		}
	}
	if reached.calls != 0 {
		t.Errorf("%d malformed starts reached the binder", reached.calls)
	}
	// A card that left at the last boot: its ids may still be those of a container that starts again.
	if err := start("GPU-7-0"); err != nil || reached.calls != 1 {
		t.Errorf("a start with ids that are offered no more: %v", err)
	}
}

// raw sends bytes as they are, in place of a message.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                       { return "proto" }

var _ encoding.Codec = raw{}

// The server must be there for the kubelet whatever others send to its socket.
func TestBytesThatMakeNoRequestHarmNobody(t *testing.T) {
	directory := shortDirectory(t)
	k := boot(t, directory)
	serve(t, directory, two((&prepared{}).prepare))
	k.waitFor(t, 2)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patient)
	defer cancel()
	listing, cancelList := context.WithCancel(ctx)
	defer cancelList()
	stream, err := dial(t, directory, "n.sock").ListAndWatch(listing, &pluginapi.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}

	random := rand.New(rand.NewSource(1))
	noise := make([]byte, 64<<10)
	random.Read(noise)
	for _, garbage := range [][]byte{nil, noise, []byte("GET / HTTP/1.1\r\n\r\n"), append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), noise...)} {
		connection, err := net.Dial("unix", filepath.Join(directory, "n.sock"))
		if err != nil {
			t.Fatal(err)
		}
		connection.SetDeadline(time.Now().Add(patient))
		connection.Write(garbage) //nolint:errcheck // the server may hang up in the middle
		connection.Close()
	}
	connection, err := grpc.NewClient("unix:"+filepath.Join(directory, "n.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	for _, method := range []string{"Allocate", "PreStartContainer", "GetPreferredAllocation", "GetDevicePluginOptions", "NoSuchMethod"} {
		for range 200 {
			message := make([]byte, random.Intn(200))
			random.Read(message)
			var answer []byte
			// Some noise is a valid message (unknown fields, no ids); that it was answered at all is the point.
			connection.Invoke(ctx, "/v1beta1.DevicePlugin/"+method, message, &answer) //nolint:errcheck
		}
	}

	answer, err := dial(t, directory, "n.sock").Allocate(ctx, allocation([]string{"GPU-0-0"}))
	if err != nil || len(answer.ContainerResponses) != 1 {
		t.Errorf("after the noise the kubelet got %v, %v", answer, err)
	}
	// Had the kubelet's list ended meanwhile, Recv would say how instead of what we do now.
	cancelList()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("the kubelet's list ended: %v", err)
	}
}

func TestOnlyRootReachesTheSocket(t *testing.T) {
	directory := shortDirectory(t)
	k := boot(t, directory)
	serve(t, directory, two(nil))
	k.waitFor(t, 2)
	info, err := os.Stat(filepath.Join(directory, "n.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, %v; want 0600", info.Mode(), err)
	}
}

func TestEachCallIsTimedAtLevelDebugAlone(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
		var text bytes.Buffer
		options := &slog.HandlerOptions{Level: level}
		call := timed("x/number", slog.New(slog.NewJSONHandler(&text, options)))
		info := &grpc.UnaryServerInfo{FullMethod: "/v1beta1.DevicePlugin/PreStartContainer"}
		refusing := func(context.Context, any) (any, error) { return nil, status.Error(codes.ResourceExhausted, "no room") }
		if _, err := call(context.Background(), &pluginapi.PreStartContainerRequest{DevicesIDs: []string{"a", "b"}}, info, refusing); err == nil {
			t.Error("the refusal was swallowed")
		}
		if level == slog.LevelInfo {
			if text.Len() > 0 {
				t.Errorf("level info tells %s", text.String())
			}
			continue
		}
		var line struct {
			Msg, Method, Resource, Code string
			IDs                         int
			NS                          int64
		}
		if err := json.Unmarshal(text.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.Msg != "call" || line.Method != "PreStartContainer" || line.Resource != "x/number" ||
			line.Code != "ResourceExhausted" || line.IDs != 2 || line.NS <= 0 {
			t.Errorf("told %+v", line)
		}
	}
}
