// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"flexai.io/xpu/cluster/pids/api"
	"flexai.io/xpu/cluster/xpu"
)

const patient = 60 * time.Second

// served is a service on real sockets whose procfs says of this very process whatever a test wants.
type served struct {
	tree
	*Service
	sockets Sockets
	root    string
	slices  []xpu.Slice
	wrote   atomic.Int32
	ledger  error
}

func newServed(t *testing.T) *served {
	t.Helper()
	root, err := os.MkdirTemp("", "xpu") // short: unix sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	s := &served{tree: newTree(t), root: root}
	s.sockets = Sockets{Public: root + "/socket", Link: root + "/pids.sock", Guarded: root + "/exporter", Group: os.Getegid()}
	for _, name := range []string{"a", "b"} {
		slice := xpu.Slice{Key: "s" + name, Owner: xpu.Owner{PodUID: "u" + name, Container: "app"},
			Shares: []xpu.Share{{UUID: "GPU-0", VID: len(s.slices), CoresPercent: 20, MemoryMiB: 3072}}}
		s.slices = append(s.slices, slice)
		page := s.page(slice)
		if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(page, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	slices := func() ([]xpu.Slice, error) { return s.slices, s.ledger }
	s.Service = New(Deps{Procfs: s.Procfs, Slices: slices, ConfigPage: s.page, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		WritePids: func(slice xpu.Slice, text []byte) error {
			s.wrote.Add(1)
			return os.WriteFile(filepath.Join(filepath.Dir(s.page(slice)), "pids.config"), text, 0o644)
		},
		Node: NodeDeps{Name: "n1", IP: "10.0.0.1", Slices: slices, Gauges: &gauges{},
			Cards: func() ([]xpu.Card, error) { return []xpu.Card{a100}, nil }},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, s.sockets) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(root)
	})
	return s
}

// page lies in what is the container's root directory to the procfs.
func (s *served) page(slice xpu.Slice) string {
	return filepath.Join(s.root, slice.Key, "etc/xpu/config.page")
}

func (s *served) config(slice xpu.Slice) string {
	text, _ := os.ReadFile(filepath.Join(filepath.Dir(s.page(slice)), "pids.config"))
	return string(text)
}

func (s *served) dial(socket string) api.PidsServiceClient {
	connection, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { connection.Close() })
	return api.NewPidsServiceClient(connection)
}

func (s *served) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	s.t.Cleanup(cancel)
	return ctx
}

// ask is one question on a connection of its own, so that it is judged by what the procfs says now.
func (s *served) ask(path string) (string, error) {
	answer, err := s.dial(s.sockets.Link).GetPids(s.ctx(), &api.GetPidsRequest{CgroupPath: path}, grpc.WaitForReady(true))
	return answer.GetEncodedPids(), err
}

func (s *served) refused(path string, code codes.Code, words string) {
	s.t.Helper()
	answer, err := s.ask(path)
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), words) {
		s.t.Errorf("%q: %q, %v; want %s with %q", path, answer, err, code, words)
	}
}

// me makes this process one of a container with slice a.
func (s *served) me() string {
	own := "/kubepods/podua/" + idA
	s.process(own, filepath.Join(s.root, "sa"), os.Getpid(), 7)
	s.process(own, filepath.Join(s.root, "sa"), 900001, 1)
	s.process("/kubepods/podub/"+idB, filepath.Join(s.root, "sb"), 900002, 1)
	return own
}

func TestATenantLearnsHisOwnProcesses(t *testing.T) {
	s := newServed(t)
	own := s.me()
	want := encode([]pair{{min(os.Getpid(), 900001), map[bool]int{true: 7, false: 1}[os.Getpid() < 900001]},
		{max(os.Getpid(), 900001), map[bool]int{true: 1, false: 7}[os.Getpid() < 900001]}})
	for _, path := range []string{own, "/", "/" + idA} { // the last two from a cgroup namespace
		if got, err := s.ask(path); err != nil || got != want {
			t.Fatalf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	if got := s.config(s.slices[0]); got != strings.ReplaceAll(want, ",", "\n")+"\n" {
		t.Errorf("pids.config %q", got)
	}
	if got := s.config(s.slices[1]); got != "" {
		t.Errorf("another's pids.config %q", got)
	}
}

func TestATenantLearnsNothingOfOthers(t *testing.T) {
	s := newServed(t)
	s.me()
	s.refused("/kubepods/podub/"+idB, codes.PermissionDenied, "is not yours")
	s.refused("/kubepods", codes.PermissionDenied, "is not yours")
	_, err := s.dial(s.sockets.Link).GetAllVxpuInfo(s.ctx(), &api.GetAllVxpuInfoRequest{}, grpc.WaitForReady(true))
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("all slices: %v", err)
	}
}

func TestATenantWhoIsRootOfTheHostsPidNamespaceIsATenant(t *testing.T) {
	s := newServed(t)
	own := "/kubepods/podua/" + idA
	s.process(own, filepath.Join(s.root, "sa"), os.Getpid()) // hostPID
	s.process("/kubepods/podub/"+idB, filepath.Join(s.root, "sb"), 900002, 1)
	if got, err := s.ask(own); err != nil || got != encode([]pair{{os.Getpid(), os.Getpid()}}) {
		t.Errorf("%q, %v", got, err)
	}
	s.refused("/kubepods/podub/"+idB, codes.PermissionDenied, "is not yours")
}

func TestALinkInAnImageLeadsNowhere(t *testing.T) {
	s := newServed(t)
	for name, plant := range map[string]func(image string) error{
		"page": func(image string) error {
			return os.Symlink(s.page(s.slices[1]), image+"/etc/xpu/config.page")
		},
		"directory": func(image string) error {
			os.Remove(image + "/etc/xpu")
			return os.Symlink(filepath.Dir(s.page(s.slices[1])), image+"/etc/xpu")
		},
	} {
		image := filepath.Join(s.root, name)
		if err := os.MkdirAll(image+"/etc/xpu", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := plant(image); err != nil {
			t.Fatal(err)
		}
		os.RemoveAll(s.tree.path(fmt.Sprint(os.Getpid())))
		s.process("/kubepods/podx/"+idA, image, os.Getpid(), 7)
		s.refused("/", codes.PermissionDenied, "only a slice's container")
	}
	if got := s.config(s.slices[1]); got != "" {
		t.Errorf("the victim's pids.config %q", got)
	}
}

func TestAContainerWithoutASliceIsToldSo(t *testing.T) {
	s := newServed(t)
	own := "/kubepods/podx/" + idA
	image := filepath.Join(s.root, "image") // with a page of its own making
	if err := os.MkdirAll(image+"/etc/xpu", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image+"/etc/xpu/config.page", []byte("forged"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.process(own, image, os.Getpid(), 7)
	s.refused(own, codes.FailedPrecondition, "no slice of this node")
}

func TestRootOfTheHostMayAskAnything(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s := newServed(t)
	s.process("/user.slice", s.root, os.Getpid())
	theirs := "/kubepods/podub/" + idB
	s.process(theirs, filepath.Join(s.root, "sb"), 900002, 1)
	s.process("/kubepods/podx/"+idA, s.root, 900003, 1)
	if got, err := s.ask(theirs + "/below"); err != nil || got != encode([]pair{{900002, 1}}) {
		t.Errorf("%q, %v", got, err)
	}
	if got := s.config(s.slices[1]); got != string(config(encode([]pair{{900002, 1}}))) {
		t.Errorf("pids.config %q", got)
	}
	s.refused("/kubepods/podx/"+idA, codes.FailedPrecondition, "no slice of this node")
	s.refused("/system.slice", codes.NotFound, "names no container")
	s.refused("/gone/"+strings.Repeat("c", 64), codes.NotFound, "no process")
	s.ledger = fmt.Errorf("torn")
	s.refused(theirs, codes.Unavailable, "node ledger")
}

func TestStrangersAreTurnedAway(t *testing.T) {
	s := newServed(t)
	s.process("/user.slice", s.root, os.Getpid(), 5) // another pid namespace
	s.refused("/kubepods/podub/"+idB, codes.PermissionDenied, "only a slice's container")
	who := newPeers(s.Procfs, false)
	if got := who.stands(0, 0); got.standing != stranger || !strings.Contains(refusal(got).Error(), "hostPID") {
		t.Errorf("a pid that can't be seen: %+v", got)
	}
	s.process("/user.slice", s.root, 900009)
	if got := who.stands(900009, 1000); got.standing != stranger {
		t.Errorf("a user of the host: %+v", got)
	}
	if got := who.stands(900009, 0); got.standing != root {
		t.Errorf("root of the host: %+v", got)
	}
}

func TestMalformedQuestions(t *testing.T) {
	s := newServed(t)
	s.me()
	for path, words := range map[string]string{
		"":                                    "doesn't begin with /",
		"kubepods/pod":                        "doesn't begin with /",
		"/a\nb":                               "control characters",
		"/a\x00b":                             "control characters",
		"/" + strings.Repeat("a", 5000):       "5001 bytes, at most 4096",
		"x" + strings.Repeat("secret", 100):   "…",
		"/" + strings.Repeat("../", 50) + "x": "",
	} {
		code := codes.InvalidArgument
		if words == "" {
			code = codes.PermissionDenied
		}
		s.refused(path, code, words)
	}
	s.refused("/"+strings.Repeat("a", 20_000), codes.ResourceExhausted, "larger than max")
	if _, err := s.ask("/\xff\xfe"); status.Code(err) != codes.Internal { // no text at all
		t.Errorf("bytes that are no text: %v", err)
	}
}

func TestTenThousandAtOnce(t *testing.T) {
	s := newServed(t)
	own := s.me()
	const connections, each = 20, 500
	var wrong atomic.Int32
	var group sync.WaitGroup
	for range connections {
		client := s.dial(s.sockets.Link)
		for range each {
			group.Go(func() {
				answer, err := client.GetPids(s.ctx(), &api.GetPidsRequest{CgroupPath: own}, grpc.WaitForReady(true))
				if err != nil || !strings.Contains(answer.EncodedPids, "900001") {
					wrong.Add(1)
				}
			})
		}
	}
	group.Wait()
	if wrong.Load() > 0 {
		t.Errorf("%d of %d without an answer", wrong.Load(), connections*each)
	}
	if wrote := s.wrote.Load(); wrote > connections*each/100 {
		t.Errorf("%d writes", wrote)
	}
	if _, err := s.ask(own); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestOneTenantsConnectionsLeaveRoomForOthers(t *testing.T) {
	who := newPeers(newTree(t).Procfs, false)
	greedy, other := caller{standing: tenant, cgroups: []string{"/pod/" + idA}}, caller{standing: tenant, cgroups: []string{"/pod/" + idB}}
	var first net.Conn
	for i := range connectionsEach {
		greedy.cgroups[0] = fmt.Sprintf("/pod/%s/%d", idA, i) // his own below his container's are still his
		made, err := who.count(&net.UnixConn{}, greedy)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		first = made
	}
	if _, err := who.count(&net.UnixConn{}, greedy); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("one too many: %v", err)
	}
	if _, err := who.count(&net.UnixConn{}, other); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	first.Close()
	first.Close() // counts once
	if _, err := who.count(&net.UnixConn{}, greedy); err != nil {
		t.Errorf("after one was closed: %v", err)
	}
	if _, err := who.count(&net.UnixConn{}, greedy); err == nil {
		t.Error("a place was given back twice")
	}
}

func TestHostileBytesOnTheSocket(t *testing.T) {
	s := newServed(t)
	own := s.me()
	if _, err := s.ask(own); err != nil { // served by now
		t.Fatal(err)
	}
	for _, bytes := range []string{"", "GET / HTTP/1.1\r\n\r\n", strings.Repeat("\xff", 1<<20),
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x04\x00\x00\x00\x00\x00", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\x00", 4096)} {
		connection, err := net.Dial("unix", s.sockets.Link)
		if err != nil {
			t.Fatal(err)
		}
		connection.Write([]byte(bytes)) // refused somewhere in it
		connection.Close()
	}
	if _, err := s.ask(own); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestTheSocketsAreWhereTheyBelong(t *testing.T) {
	s := newServed(t)
	if _, err := s.dial(s.sockets.Guarded+"/pids.sock").GetAllVxpuInfo(s.ctx(), &api.GetAllVxpuInfoRequest{Period: "60"},
		grpc.WaitForReady(true)); err != nil {
		t.Errorf("the exporter: %v", err)
	}
	_, err := s.dial(s.sockets.Guarded+"/pids.sock").GetPids(s.ctx(), &api.GetPidsRequest{CgroupPath: "/"})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("the exporter has no container to ask about: %v", err)
	}
	for path, want := range map[string]os.FileMode{s.sockets.Public: 0o755 | os.ModeDir, s.sockets.Link: 0o666 | os.ModeSocket,
		s.sockets.Guarded: 0o750 | os.ModeDir, s.sockets.Guarded + "/pids.sock": 0o660 | os.ModeSocket} {
		if found, err := os.Stat(path); err != nil || found.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, found.Mode(), err, want)
		}
	}
}

func TestASecondLifeTakesTheSocketsOver(t *testing.T) {
	s := newServed(t)
	own := s.me()
	if _, err := s.ask(own); err != nil {
		t.Fatal(err)
	}
	listener, err := listen(s.sockets.Public, 0o755, 0o666, -1) // while the first one still lives
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if connection, err := net.Dial("unix", s.sockets.Link); err != nil {
		t.Error(err)
	} else {
		connection.Close()
	}
}
