// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/checkpoint"
	"flexai.io/xpu/cluster/health"
	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/pids/api"
	"flexai.io/xpu/cluster/vxpu"
	"flexai.io/xpu/cluster/xpu"
)

const (
	patient = 20 * time.Second
	pause   = 20 * time.Millisecond // between two looks at the cards
)

const baseCDI = `cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- {name: "0", containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}}
containerEdits:
  mounts: [{hostPath: /lib/libcuda.so.580.95.05, containerPath: /lib/libcuda.so.580.95.05}]
`

// unwatched knows no pod.
type unwatched struct{}

func (unwatched) Run(ctx context.Context)        { <-ctx.Done() }
func (unwatched) Known(string) (agent.Pod, bool) { return agent.Pod{}, false }

// host is a node's directories under one root.
type host struct {
	cfg        config
	registered chan *pluginapi.RegisterRequest
	annotated  chan map[string]string
	driver     *driver
	kubelet    *grpc.Server
	pluginapi.UnimplementedRegistrationServer
}

func (h *host) Register(_ context.Context, r *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	h.registered <- r
	return &pluginapi.Empty{}, nil
}

func (h *host) Checkpoint() ([]checkpoint.Entry, error) {
	return checkpoint.Read(filepath.Join(h.cfg.devicePlugins, "kubelet_internal_checkpoint"))
}
func (h *host) Holdings(context.Context) ([]agent.Holding, error) { return nil, errors.New("not here") }
func (h *host) Pod(context.Context, string, string) (agent.Pod, error) {
	return agent.Pod{}, errors.New("not here")
}

func (h *host) PodOf(context.Context, string) (agent.Pod, error) {
	return agent.Pod{}, errors.New("not here")
}
func (h *host) Warn(context.Context, agent.Pod, string, string) error { return errors.New("not here") }
func (h *host) Evict(context.Context, agent.Pod) error                { return errors.New("not here") }

func (h *host) Annotate(_ context.Context, annotations map[string]string) error {
	h.annotated <- annotations
	return nil
}

// driver tells of cards what the test wants.
type driver struct {
	mutex   sync.Mutex
	answers map[string]error
}

func (d *driver) set(answers map[string]error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.answers = answers
}
func (d *driver) Look() (map[string]error, error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.answers, nil
}
func (d *driver) Wait(ctx context.Context, limit time.Duration) (*health.Event, error) {
	select {
	case <-ctx.Done():
	case <-time.After(limit):
	}
	return nil, nil
}
func (d *driver) Close() {}

func newHost(t *testing.T, extra ...string) *host {
	t.Helper()
	root, err := os.MkdirTemp("", "xpu") // short: unix sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	cfg, err := parse(append([]string{"--node-name=n1", "--device-split-count=4", "--on-error=deny-new-memory", "--device-plugin-dir=" + root + "/dp",
		"--slice-dir=" + root + "/etc", "--state-dir=" + root + "/var", "--run-dir=" + root + "/run", "--runtime-dir=" + root + "/opt",
		"--cdi-base=" + root + "/base.yaml", "--cdi-file=" + root + "/vgpu.yaml"}, extra...), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{"/base.yaml": baseCDI, "/opt/lib/libcuda_direct.so": "", "/opt/bin/gpu-monitor": "", "/dp/x": ""} {
		os.MkdirAll(filepath.Dir(root+path), 0o755)
		if err := os.WriteFile(root+path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := &host{cfg: cfg, registered: make(chan *pluginapi.RegisterRequest, 9), annotated: make(chan map[string]string, 99), driver: &driver{}}
	h.boot(t)
	return h
}

// boot starts a kubelet, which empties the directory first.
func (h *host) boot(t *testing.T) {
	t.Helper()
	stale, _ := filepath.Glob(h.cfg.devicePlugins + "/*.sock")
	for _, path := range stale {
		os.Remove(path)
	}
	listener, err := net.Listen("unix", h.cfg.devicePlugins+"/kubelet.sock")
	if err != nil {
		t.Fatal(err)
	}
	h.kubelet = grpc.NewServer()
	pluginapi.RegisterRegistrationServer(h.kubelet, h)
	go h.kubelet.Serve(listener)
	t.Cleanup(h.kubelet.Stop)
}

// awaitAnnotation waits until an annotation of the node is as wanted.
func (h *host) awaitAnnotation(t *testing.T, key, want string) {
	t.Helper()
	last := ""
	for limit := time.After(patient); ; {
		select {
		case annotations := <-h.annotated:
			if last = annotations[key]; last == want {
				return
			}
		case <-limit:
			t.Fatalf("annotation %s is %q, want %q", key, last, want)
		}
	}
}

func (h *host) deps(cards ...xpu.Card) deps {
	return deps{
		discover: func() ([]xpu.Card, error) { return cards, nil },
		kubelet:  h, api: h, pods: unwatched{}, now: time.Now, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		nvml:   nvmlwatch.New(h.cfg.paths.State + "/no-nvml.so"),
		driver: h.driver, looks: health.Pace{Wait: pause, InUse: pause, Idle: pause}, inUse: func() bool { return false },
		gauges: nvmlwatch.New(h.cfg.paths.State + "/no-nvml.so"),
	}
}

func (h *host) start(t *testing.T, cards ...xpu.Card) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	answers := map[string]error{}
	for _, card := range cards {
		answers[card.UUID] = nil
	}
	h.driver.set(answers)
	go func() { done <- run(ctx, h.cfg, h.deps(cards...)) }()
	return func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patient):
			t.Error("run did not end with its context")
		}
	}
}

func (h *host) endpoints(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for range 3 {
		select {
		case r := <-h.registered:
			found[r.ResourceName] = r.Endpoint
		case <-time.After(patient):
			t.Fatalf("registered only %v", found)
		}
	}
	return found
}

func (h *host) dial(t *testing.T, endpoint string) pluginapi.DevicePluginClient {
	t.Helper()
	connection, err := grpc.NewClient("unix:"+filepath.Join(h.cfg.devicePlugins, endpoint),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	return pluginapi.NewDevicePluginClient(connection)
}

// admit writes the kubelet's checkpoint as the kubelet does.
func (h *host) admit(t *testing.T, held map[string][]string) {
	t.Helper()
	var entries []map[string]any
	for resource, ids := range held {
		entries = append(entries, map[string]any{"PodUID": "u1", "ContainerName": "app", "ResourceName": resource,
			"DeviceIDs": map[string][]string{"-1": ids}, "AllocResp": ""})
	}
	text, _ := json.Marshal(map[string]any{"Data": map[string]any{"PodDeviceEntries": entries}, "Checksum": 1})
	if err := os.WriteFile(h.cfg.devicePlugins+"/kubelet_internal_checkpoint", text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// told is what xpu-exporter hears.
func (h *host) told(t *testing.T) vxpu.Node {
	t.Helper()
	connection, err := grpc.NewClient("unix:"+h.cfg.paths.State+"/exporter/pids.sock",
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	answer, err := api.NewPidsServiceClient(connection).GetAllVxpuInfo(ctx, &api.GetAllVxpuInfoRequest{Period: "60"}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	node, err := vxpu.Decode(answer.VxpuInfos)
	if err != nil {
		t.Fatal(err)
	}
	return node
}

func TestTheProgramGivesTheDemosSlice(t *testing.T) {
	h := newHost(t)
	card := xpu.Card{UUID: "GPU-0", MemoryMiB: 40960, Split: 4, Healthy: true}
	stop := h.start(t, card)
	endpoints := h.endpoints(t)
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	held := map[string][]string{}
	for resource, want := range map[string]struct{ offered, asked int }{
		"huawei.com/vgpu-number": {4, 1}, "huawei.com/vgpu-cores": {100, 20}, "huawei.com/vgpu-memory-1Gi": {40, 3}} {
		client := h.dial(t, endpoints[resource])
		stream, err := client.ListAndWatch(ctx, &pluginapi.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		list, err := stream.Recv()
		if err != nil || len(list.Devices) != want.offered {
			t.Fatalf("%s offers %d, want %d (%v)", resource, len(list.GetDevices()), want.offered, err)
		}
		for _, device := range list.Devices[:want.asked] {
			held[resource] = append(held[resource], device.ID)
		}
	}
	h.admit(t, held)
	number := h.dial(t, endpoints["huawei.com/vgpu-number"])
	start := &pluginapi.PreStartContainerRequest{DevicesIDs: held["huawei.com/vgpu-number"]}
	if _, err := number.PreStartContainer(ctx, start); err != nil {
		t.Fatal(err)
	}
	limits, err := os.ReadFile(h.cfg.paths.Run + "/pods/u1/app/vgpu.config")
	if err != nil || string(limits) != "UsedMem:3072\nUsedCores:20\n" {
		t.Errorf("vgpu.config %q, %v", limits, err)
	}
	if policy, err := os.ReadFile(h.cfg.paths.Run + "/pods/u1/app/on_error"); err != nil || string(policy) != "deny-new-memory\n" {
		t.Errorf("on_error %q, %v", policy, err)
	}
	entry, _ := os.ReadFile(h.cfg.paths.CDI)
	if !strings.Contains(string(entry), xpu.Key(start.DevicesIDs)) {
		t.Errorf("no entry for the slice in\n%s", entry)
	}
	h.awaitAnnotation(t, "flexai.io/node-vgpu-slices", "u1,app,GPU-0,0,20,3072:")
	preferred, err := number.GetPreferredAllocation(ctx, &pluginapi.PreferredAllocationRequest{
		ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{{AvailableDeviceIDs: []string{"GPU-0-0", "GPU-0-1"}, AllocationSize: 1}}})
	if err != nil || !slices.Equal(preferred.ContainerResponses[0].DeviceIDs, []string{"GPU-0-1"}) {
		t.Errorf("with GPU-0-0 in the ledger preferred are %v, %v", preferred, err)
	}
	if told := h.told(t); told["GPU-0"] == nil || len(told["GPU-0"].VxpuDeviceList) != 1 || told["GPU-0"].NodeName != "n1" ||
		told["GPU-0"].VxpuDeviceList[0].PodUID != "u1" || told["GPU-0"].VxpuDeviceList[0].VxpuMemoryLimit != 3072 {
		t.Errorf("the exporter is told %+v", told)
	}
	stop()

	// A new life of the program after a boot: the container restarts on the same share.
	before, _ := os.ReadFile(h.cfg.paths.State + "/ledger.json")
	if err := os.RemoveAll(h.cfg.paths.Run); err != nil {
		t.Fatal(err)
	}
	stop = h.start(t, card)
	defer stop()
	endpoints = h.endpoints(t)
	if restored, err := os.ReadFile(h.cfg.paths.Run + "/pods/u1/app/vgpu.config"); err != nil || !slices.Equal(restored, limits) {
		t.Errorf("before its start the container's limits are %q, %v", restored, err)
	}
	if _, err := h.dial(t, endpoints["huawei.com/vgpu-number"]).PreStartContainer(ctx, start); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(h.cfg.paths.State + "/ledger.json")
	if !slices.Equal(before, after) {
		t.Errorf("the ledger changed from %s to %s", before, after)
	}
}

func TestRunRefusesANodeWithoutCards(t *testing.T) {
	h := newHost(t)
	err := run(context.Background(), h.cfg, h.deps())
	if err == nil || !strings.Contains(err.Error(), "n1") || !strings.Contains(err.Error(), "no card") {
		t.Errorf("%v", err)
	}
}

func TestParseAgent(t *testing.T) {
	none := func(string) string { return "" }
	cfg, err := parseAgent(nil, none)
	if err != nil || cfg.paths.State != "/var/lib/xpu" || cfg.paths.Etc != "/etc/xpu" || cfg.tend.proc != "/proc" || cfg.tend.policy != "report" {
		t.Errorf("%+v, %v", cfg, err)
	}
	if cfg, err = parseAgent([]string{"--on-misuse=kill"}, none); err != nil || cfg.tend.policy != "kill" {
		t.Errorf("%+v, %v", cfg, err)
	}
	for args, want := range map[string]string{
		"--on-misuse=shout": `policy "shout" is none of report, evict, kill`,
		"--on-misuse=evict": "nobody to evict",
		"--log-level=loud":  `"loud" is none`,
		"--kubeconfig=x":    "not defined",
		"extra":             `unexpected argument "extra"`,
	} {
		if _, err := parseAgent(strings.Fields(args), none); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func TestParse(t *testing.T) {
	env := func(name string) string {
		return map[string]string{"NODE_NAME": "env-node", "NVML_LIBRARY": "/driver/x"}[name]
	}
	cfg, err := parse(nil, env)
	if err != nil || cfg.node != "env-node" || cfg.nvml != "/driver/x" || cfg.split != 2 || cfg.resources.Memory != "huawei.com/vgpu-memory-1Gi" ||
		cfg.class != "" || cfg.evictAfter != time.Minute || cfg.log.directory != "" || !cfg.log.console {
		t.Errorf("%+v, %v", cfg, err)
	}
	for args, want := range map[string]string{
		"--device-split-count=0":        "not 1 to 256",
		"--cdi-strategy=auto":           `"auto" is neither`,
		"--on-error=stop":               `"stop" is neither allow nor deny-new-memory`,
		"--log-level=loud --node-name=": "no node name",
		"--log-level=loud":              `"loud" is none`,
		"--resource-name=vgpu":          `"vgpu" is not`,
		"--default-class=gold":          `--default-class: class "gold" is none of guaranteed, elastic, best-effort`,
		"--evict-after=-1s":             "--evict-after -1s is below 0",
		"--evict-after=soon":            "invalid value",
		"--xid-quiet=-1s":               "--xid-quiet -1s is below 0",
		"--gpu-type-config=/nowhere":    "--gpu-type-config: open /nowhere",
		"--logging-console=false":       "nothing would be logged",
		"--max-size=0":                  "--max-size 0 is not 1 or more",
		"--max-backups=-1":              "--max-backups -1 is below 0",
		"--max-age=-1":                  "--max-age -1 is below 0",
		"extra":                         `unexpected argument "extra"`,
	} {
		if _, err := parse(strings.Fields(args), env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}
