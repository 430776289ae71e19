// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"flexai.io/xpu/cluster/vxpu"
)

var update = flag.Bool("update", false, "write testdata/metrics.txt anew")

// plugin is a gpu-device-plugin.
type plugin struct {
	mutex sync.Mutex
	node  vxpu.Node
	err   error
	asked int
}

func (p *plugin) Node(context.Context) (vxpu.Node, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.asked++
	return p.node, p.err
}

func (p *plugin) set(err error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.err = err
}

func number(value float64) *float64 { return &value }

// aCard has n slices of two pods.
func aCard(uuid string, n int) *vxpu.Card {
	used := uint64(5120)
	card := &vxpu.Card{Index: 3, Id: uuid, Type: "GPU-A100", Health: true, Count: 20, MemoryTotal: 40960, MemoryUsed: 1024,
		MemoryUtilization: 2.5, XpuUtilization: number(42), NodeName: "n1", NodeIp: "10.0.0.1", DriverVersion: "580.95.05",
		FrameworkVersion: "13.0", PowerUsage: number(250_000), Temperature: number(61), Model: "NVIDIA A100-SXM4-40GB",
		CardMemoryUsed: &used}
	for i := range n {
		card.VxpuDeviceList = append(card.VxpuDeviceList, vxpu.Slice{Id: fmt.Sprintf("%s-%d", uuid, i), GpuId: uuid,
			PodUID: fmt.Sprintf("u%d", i%2), ContainerName: "app", VxpuMemoryUsed: 1024, VxpuMemoryUtilization: 2.5,
			VxpuCoreUtilization: 19.5, VxpuMemoryLimit: 3072, VxpuCoreLimit: 20, Namespace: "default", Pod: "core-usage-test",
			Mode: "elastic", MemoryBytes: 1 << 30, ShareInForce: 35, Paused: true, ChargedSeconds: 3, ThrottledSeconds: 0.5,
			Denied: 7, Launches: 8, DebtSeconds: 1.5, Processes: 2})
	}
	return card
}

func collect(t *testing.T, source Source, fresh time.Duration) (*Collector, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	return NewCollector(source, "n1", "10.0.0.1", fresh, slog.New(slog.NewTextHandler(&said, nil))), &said
}

// TestTheMetrics fixes names, labels, units and help; the chart's tests read the file too.
func TestTheMetrics(t *testing.T) {
	const file = "testdata/metrics.txt"
	collector, _ := collect(t, &plugin{node: vxpu.Node{"GPU-0": aCard("GPU-0", 1)}}, 0)
	registry, err := Registry(collector, "gpu", "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	// In two parts: the licence of the file, not of this one's rest of the line.
	text := append([]byte("# SPDX-License"+"-Identifier: Apache-2.0\n"), scrape(t, registry)...)
	if *update {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, want) {
		t.Errorf("not as in %s (go test ./exporter -update writes it):\n%s", file, text)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Error(err)
	}
	for _, problem := range problems {
		if !contract[problem.Metric] { // the contract's names are as they are
			t.Errorf("%s: %s", problem.Metric, problem.Text)
		}
	}
}

var contract = map[string]bool{"gpu_exporter_version_info": true, "xpu_gpu_util": true, "xpu_gpu_mem_util": true,
	"xpu_gpu_status": true, "xpu_gpu_mem": true, "xpu_gpu_power_usage": true, "xpu_gpu_temperature": true, "xpu_gpu_num": true,
	"xpu_vgpu_util": true, "xpu_vgpu_mem_util": true, "xpu_vgpu_num": true, "xpu_vgpu_pod_num": true}

var taken = regexp.MustCompile(`(?m)^(xpu_exporter_read_seconds) .*$`)

// scrape is what Prometheus would get, less the one number that differs each time.
func scrape(t *testing.T, registry prometheus.Gatherer) []byte {
	t.Helper()
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	return taken.ReplaceAll(answer.Body.Bytes(), []byte("$1 0.002"))
}

func TestTheContractsNamesAndLabels(t *testing.T) {
	text, err := os.ReadFile("testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\ngpu_exporter_version_info{exporterVersion=\"1.2.3\"} 1\n") {
		t.Error("version not shown")
	}
	card := `{cuda_version="13.0",driver_version="580.95.05",gpu_uuid="GPU-0",model="NVIDIA A100-SXM4-40GB",node_ip="10.0.0.1",node_name="n1",nvml_index="3"}`
	slice := `{container_name="app",gpu_uuid="GPU-0",node_ip="10.0.0.1",node_name="n1",pod_uuid="u0",vgpu_core_limit="20",vgpu_id="GPU-0-0",vgpu_mem_limit="3072"}`
	count := `{gpu_uuid="GPU-0",node_ip="10.0.0.1",node_name="n1"}`
	for _, line := range []string{"xpu_gpu_util" + card + " 42", "xpu_gpu_mem_util" + card + " 2.5", "xpu_gpu_status" + card + " 1",
		"xpu_gpu_mem" + card + " 40960", "xpu_gpu_power_usage" + card + " 250000", "xpu_gpu_temperature" + card + " 61",
		`xpu_gpu_num{node_ip="10.0.0.1",node_name="n1"} 1`, "xpu_vgpu_util" + slice + " 19.5", "xpu_vgpu_mem_util" + slice + " 2.5",
		"xpu_vgpu_num" + count + " 1", "xpu_vgpu_pod_num" + count + " 1"} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("not shown: %s", line)
		}
	}
}

func TestWhatNVMLDidNotTellIsLeftOut(t *testing.T) {
	card := aCard("GPU-0", 1)
	card.Health, card.XpuUtilization, card.PowerUsage, card.Temperature, card.CardMemoryUsed = false, nil, nil, nil, nil
	collector, _ := collect(t, &plugin{node: vxpu.Node{"GPU-0": card}}, 0)
	for name, want := range map[string]int{"xpu_gpu_util": 0, "xpu_gpu_power_usage": 0, "xpu_gpu_temperature": 0,
		"xpu_gpu_memory_used_bytes": 0, "xpu_gpu_status": 1, "xpu_vgpu_util": 1} {
		if got := testutil.CollectAndCount(collector, name); got != want {
			t.Errorf("%s: %d series, want %d", name, got, want)
		}
	}
}

func TestSeriesAreAsManyAsSlices(t *testing.T) {
	node := vxpu.Node{}
	for i := range 4 {
		uuid := fmt.Sprintf("GPU-%d", i)
		node[uuid] = aCard(uuid, 16)
	}
	collector, _ := collect(t, &plugin{node: node}, 0)
	for name, want := range map[string]int{"xpu_vgpu_util": 64, "xpu_vgpu_debt_seconds": 64, "xpu_gpu_util": 4, "xpu_vgpu_pod_num": 4} {
		if got := testutil.CollectAndCount(collector, name); got != want {
			t.Errorf("%s: %d series, want %d", name, got, want)
		}
	}
	if all := testutil.CollectAndCount(collector); all != 64*13+4*9+3 {
		t.Errorf("%d series in all", all)
	}
}

func TestANodeWithoutCardsIsStillANode(t *testing.T) {
	collector, _ := collect(t, &plugin{node: vxpu.Node{}}, 0)
	want := "# HELP xpu_gpu_num Cards of the node.\n# TYPE xpu_gpu_num gauge\nxpu_gpu_num{node_ip=\"10.0.0.1\",node_name=\"n1\"} 0\n"
	if err := testutil.CollectAndCompare(collector, strings.NewReader(want), "xpu_gpu_num"); err != nil {
		t.Error(err)
	}
}

func TestWithoutAnAnswerItSaysSoOnce(t *testing.T) {
	source := &plugin{node: vxpu.Node{"GPU-0": aCard("GPU-0", 1)}}
	collector, said := collect(t, source, 0)
	shows := func(up int, series int) {
		t.Helper()
		want := fmt.Sprintf("# HELP xpu_exporter_up 1 when gpu-device-plugin answered this scrape.\n# TYPE xpu_exporter_up gauge\nxpu_exporter_up %d\n", up)
		if err := testutil.CollectAndCompare(collector, strings.NewReader(want), "xpu_exporter_up"); err != nil {
			t.Error(err)
		}
		if got := testutil.CollectAndCount(collector, "xpu_vgpu_util"); got != series {
			t.Errorf("%d slices shown, want %d", got, series)
		}
	}
	shows(1, 1)
	source.set(errors.New("no such file"))
	shows(0, 0) // never what was true once
	source.set(nil)
	shows(1, 1)
	if text := said.String(); strings.Count(text, "no answer") != 1 || strings.Count(text, "answers again") != 1 {
		t.Errorf("said %s", text)
	}
}

func TestAFreshAnswerIsShownAgain(t *testing.T) {
	source := &plugin{node: vxpu.Node{}}
	collector, _ := collect(t, source, time.Hour)
	for range 5 {
		testutil.CollectAndCount(collector)
	}
	if source.asked != 1 {
		t.Errorf("asked %d times within updateTime", source.asked)
	}
}
