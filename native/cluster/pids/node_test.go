// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/tend"
	"flexai.io/xpu/cluster/vxpu"
	"flexai.io/xpu/cluster/xpu"
)

var a100 = xpu.Card{UUID: "GPU-0", Index: 3, MemoryMiB: 40960, Model: "NVIDIA A100-SXM4-40GB", Healthy: true, Split: 20}

// gauges is an NVML.
type gauges struct {
	lost   error
	hangs  chan struct{}
	opened int
}

func (g *gauges) Driver() (nvmlwatch.Driver, error) {
	g.opened++
	if g.hangs != nil {
		<-g.hangs
	}
	return nvmlwatch.Driver{Version: "580.95.05", CUDA: "13.0"}, nil
}

func (g *gauges) Status(string) (nvmlwatch.Status, error) {
	busy, power, celsius, used := 42.0, 250_000.0, 61.0, uint64(5<<30)
	return nvmlwatch.Status{BusyPercent: &busy, PowerMw: &power, Celsius: &celsius, UsedBytes: &used}, g.lost
}

func (g *gauges) Close() { g.opened-- }

func aSlice() xpu.Slice {
	return xpu.Slice{Key: "k1", Owner: xpu.Owner{PodUID: "u1", Container: "app"}, Namespace: "ns", Pod: "p",
		Shares: []xpu.Share{{UUID: "GPU-0", VID: 4, CoresPercent: 20, MemoryMiB: 3072}}}
}

func newTestNode(g *gauges, slices ...xpu.Slice) *node {
	n := newNode(NodeDeps{Name: "n1", IP: "10.0.0.1", Gauges: g,
		Cards: func() ([]xpu.Card, error) { return []xpu.Card{a100}, nil }, Slices: func() ([]xpu.Slice, error) { return slices, nil }})
	n.gauges.interval = 0
	return n
}

func (n *node) tell(t *testing.T, period time.Duration) *vxpu.Card {
	t.Helper()
	text, err := n.describe(context.Background(), period)
	if err != nil {
		t.Fatal(err)
	}
	view, err := vxpu.Decode(text)
	if err != nil || view["GPU-0"] == nil {
		t.Fatalf("%v in %s", err, text)
	}
	return view["GPU-0"]
}

// at is what the keeper sees of aSlice at a second.
func at(second int64, use pages.CardUse) []tend.Seen {
	return []tend.Seen{{Slice: aSlice(), MonoNs: second * 1e9, Processes: 2, Cards: []tend.SeenCard{{
		Grant: pages.Card{UUID: "GPU-0", CoresPercent: 20, MemoryBytes: 3072 << 20, Mode: pages.ModeElastic,
			EffectiveQ16: 35 << 16, OverheadBytes: 64 << 20, Flags: pages.FlagPaused},
		Use: use, HeldBytes: 960 << 20}}}}
}

func TestWhatIsToldOfACardAndItsSlices(t *testing.T) {
	g := &gauges{}
	n := newTestNode(g, aSlice())
	n.observe(at(10, pages.CardUse{ChargedNs: 1e9}))
	n.observe(at(20, pages.CardUse{ChargedNs: 3e9, ThrottledNs: 5e8, TatNs: 21.5e9, Denied: 7, Launches: 8}))
	card := n.tell(t, time.Minute)
	slice := card.VxpuDeviceList[0]
	if card.Index != 3 || card.Type != "GPU-A100" || !card.Health || card.Count != 20 || card.MemoryTotal != 40960 ||
		card.MemoryUsed != 1024 || card.MemoryUtilization != 2.5 || *card.XpuUtilization != 42 || card.NodeName != "n1" ||
		card.NodeIp != "10.0.0.1" || card.DriverVersion != "580.95.05" || card.FrameworkVersion != "13.0" ||
		*card.PowerUsage != 250_000 || *card.Temperature != 61 || *card.CardMemoryUsed != 5120 {
		t.Errorf("%+v", card)
	}
	want := vxpu.Slice{Id: "GPU-0-4", GpuId: "GPU-0", PodUID: "u1", ContainerName: "app", VxpuMemoryUsed: 1024,
		VxpuMemoryUtilization: 2.5, VxpuCoreUtilization: 20, VxpuMemoryLimit: 3072, VxpuCoreLimit: 20, Namespace: "ns", Pod: "p",
		Mode: "elastic", MemoryBytes: 1 << 30, ShareInForce: 35, Paused: true, ChargedSeconds: 3, ThrottledSeconds: 0.5,
		Denied: 7, Launches: 8, DebtSeconds: 1.5, Processes: 2}
	if slice != want {
		t.Errorf("%+v, want %+v", slice, want)
	}
	if g.opened != 0 {
		t.Error("NVML was kept open")
	}
}

func TestASliceWhosePagesWereNotReadShowsItsGrant(t *testing.T) {
	n := newTestNode(&gauges{}, aSlice())
	slice := n.tell(t, time.Minute).VxpuDeviceList[0]
	if slice.VxpuMemoryLimit != 3072 || slice.VxpuCoreLimit != 20 || slice.VxpuCoreUtilization != 0 {
		t.Errorf("%+v", slice)
	}
	other := at(1, pages.CardUse{Launches: 9})
	other[0].Slice.Owner.PodUID = "u0" // who had the tokens before
	n.observe(other)
	if slice := n.tell(t, time.Minute).VxpuDeviceList[0]; slice.Launches != 0 {
		t.Errorf("a predecessor's account: %+v", slice)
	}
}

func TestUtilisationIsOverThePeriod(t *testing.T) {
	n := newTestNode(&gauges{}, aSlice())
	charged := uint64(0)
	for second := range int64(120) {
		if second > 110 {
			charged += 5e8 // half of each of the last seconds
		}
		n.observe(at(second, pages.CardUse{ChargedNs: charged}))
	}
	for period, want := range map[time.Duration]float64{time.Second: 50, 9 * time.Second: 50, time.Minute: 7.5} {
		if got := n.tell(t, period).VxpuDeviceList[0].VxpuCoreUtilization; math.Abs(got-want) > 0.01 {
			t.Errorf("over %s: %v, want %v", period, got, want)
		}
	}
	if marks := len(n.trails[place{"k1", 0}].marks); marks > 62 {
		t.Errorf("%d marks kept of 120", marks)
	}
	n.observe(nil)
	if len(n.trails) != 0 {
		t.Error("a slice that ended is remembered")
	}
}

func TestWhatATenantWritesStaysWithinReason(t *testing.T) {
	n := newTestNode(&gauges{}, aSlice())
	n.observe(at(1, pages.CardUse{ChargedNs: 5}))
	n.observe(at(2, pages.CardUse{ChargedNs: math.MaxUint64, TatNs: math.MaxInt64}))
	slice := n.tell(t, time.Minute).VxpuDeviceList[0]
	if slice.VxpuCoreUtilization != 100 || slice.DebtSeconds != 60 {
		t.Errorf("%+v", slice)
	}
	n.observe(at(3, pages.CardUse{ChargedNs: 1, TatNs: math.MinInt64}))
	slice = n.tell(t, time.Minute).VxpuDeviceList[0]
	if slice.VxpuCoreUtilization != 0 || slice.DebtSeconds != 0 {
		t.Errorf("%+v", slice)
	}
}

func TestALostCardSaysWhyAndKeepsItsSlices(t *testing.T) {
	card := newTestNode(&gauges{lost: errors.New("card is lost")}, aSlice()).tell(t, time.Minute)
	if card.Health || card.XpuUtilization != nil || card.Trouble != "card is lost" || len(card.VxpuDeviceList) != 1 {
		t.Errorf("%+v", card)
	}
}

func TestADriverThatHangsDelaysNobodyForLong(t *testing.T) {
	g := &gauges{hangs: make(chan struct{})}
	n := newTestNode(g, aSlice())
	n.patience = 10 * time.Millisecond
	for range 2 {
		card := n.tell(t, time.Minute)
		if card.Health || !strings.Contains(card.Trouble, "did not answer") || len(card.VxpuDeviceList) != 1 {
			t.Errorf("%+v", card)
		}
	}
	close(g.hangs)
}

func TestPeriods(t *testing.T) {
	for text, want := range map[string]time.Duration{"": time.Minute, "60": time.Minute, "1": time.Second} {
		if got, err := parsePeriod(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"0", "61", "-1", "1.5", "x", "99999999999999999999", "65536", "\x00"} {
		if _, err := parsePeriod(text); err == nil || !strings.Contains(err.Error(), "1 to 60") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
