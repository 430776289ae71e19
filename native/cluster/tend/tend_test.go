// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flexai.io/xpu/cluster/live/livetest"
	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/trim"
	"flexai.io/xpu/cluster/xpu"
)

func TestMain(m *testing.M) { livetest.Main(m) }

const (
	gpu = "GPU-0"
	mib = 1 << 20
	ms  = int64(1e6)
)

var container = "/kubepods/" + strings.Repeat("ab12", 16)

// fakeHost has all processes in one cgroup.
type fakeHost struct {
	cgroup string
	killed []int
}

func (h *fakeHost) Cgroup(int) (string, error) { return h.cgroup, nil }
func (h *fakeHost) Kill(pid int, _ string) error {
	h.killed = append(h.killed, pid)
	return nil
}

// bench is a keeper whose clock and NVML are the test's.
type bench struct {
	*keeper
	t      *testing.T
	root   string
	host   *fakeHost
	held   []xpu.Slice
	log    bytes.Buffer
	now    int64
	broken error // of the node ledger
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, root: t.TempDir(), host: &fakeHost{cgroup: container}, now: 1000e9}
	b.keeper = newKeeper(Deps{
		Slices: func() ([]xpu.Slice, error) { return b.held, b.broken },
		Pages: func(slice xpu.Slice) (string, string) {
			directory := filepath.Join(b.root, slice.Key)
			return directory + "/config.page", directory + "/ledger.page"
		},
		Regrant: store.Regrant, Host: b.host, Policy: Report, Now: func() Instant { return Instant{MonoNs: b.now} },
		Log: slog.New(slog.NewTextHandler(&b.log, nil)),
	})
	t.Cleanup(b.close)
	return b
}

func (b *bench) slice(key string, cards ...pages.Card) livetest.Pair {
	b.t.Helper()
	for i := range cards {
		if cards[i].UUID == "" {
			cards[i].UUID = gpu
		}
	}
	directory := filepath.Join(b.root, key)
	if err := os.MkdirAll(directory, 0o755); err != nil {
		b.t.Fatal(err)
	}
	b.held = append(b.held, xpu.Slice{Key: key, Owner: xpu.Owner{PodUID: "pod", Container: key}, Namespace: "n", Pod: "p"})
	return livetest.New(b.t, directory, cards...)
}

// pass lets time go by, with a tick each 25 ms; each runs before its tick.
func (b *bench) pass(duration int64, each ...func()) {
	for end := b.now + duration; b.now < end; {
		b.now += 25 * ms
		for _, do := range each {
			do()
		}
		b.tick(context.Background(), Instant{MonoNs: b.now})
	}
}

func (b *bench) logged(text string, times int) {
	b.t.Helper()
	if got := strings.Count(b.log.String(), text); got != times {
		b.t.Errorf("%q was said %d times, want %d, in\n%s", text, got, times, b.log.String())
	}
}

// load is a process that uses part of a card and is charged factor times that.
type load struct {
	pair   livetest.Pair
	pid    int
	part   float64
	factor float64
	use    pages.CardUse
}

func (l *load) run(b *bench) {
	l.use.ChargedNs += uint64(l.part * l.factor * float64(25*ms))
	l.use.Launches++
	l.pair.Use(b.t, 0, l.use)
}

// nvml shows loads as they are, a look at each tick.
func (b *bench) nvml(uuid string, loads ...*load) func() {
	const period = int64(1e9) / 6
	return func() {
		seen := trim.Look{At: b.now, Busy: -1}
		for _, one := range loads {
			seen.Samples = append(seen.Samples, trim.Sample{PID: one.pid, At: b.now / period * period, Percent: int(100 * one.part)})
		}
		b.took(look{uuid: uuid, began: b.now, seen: seen})
	}
}

// list is NVML's list of processes; a tick later it is settled.
func (b *bench) list(processes ...nvmlwatch.Process) {
	b.took(look{uuid: gpu, began: b.now, seen: trim.Look{At: b.now, Busy: 0}, processes: processes, listed: true})
	b.pass(25 * ms)
}

func (b *bench) joined(pair livetest.Pair, slot int, memory ...uint64) *livetest.Member {
	member := pair.Hold(b.t, slot)
	pair.Slot(b.t, slot, uint64(1000+slot), 10+slot, memory...)
	return member
}

func near(t *testing.T, what string, got, want, off float64) {
	t.Helper()
	if got < want-off || got > want+off {
		t.Errorf("%s is %.3f, want %.3f", what, got, want)
	}
}

func TestTrimFollowsNVML(t *testing.T) {
	b := newBench(t)
	first, second := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeHard}), b.slice("b", pages.Card{CoresPercent: 30, Mode: pages.ModeHard})
	one := &load{pair: first, pid: b.joined(first, 0).PID, part: 0.301, factor: 2}
	other := &load{pair: second, pid: b.joined(second, 0).PID, part: 0.501, factor: 1}
	see := b.nvml(gpu, one, other)
	b.pass(8e9, func() { one.run(b); other.run(b) }, see)
	near(t, "trim of one charged twice", first.Read(t).Cards[0].Trim(), 0.5, 0.01)
	near(t, "trim of its neighbour", second.Read(t).Cards[0].Trim(), 1, 0.01)
	if epoch := first.Read(t).Epoch; epoch%2 != 0 || epoch == 0 || epoch > 16 {
		t.Errorf("epoch %d after 8 s", epoch)
	}
	b.logged("level=WARN", 0)
}

func TestTrimIsFrozenWithoutSamplesAndThatIsSaidOnce(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeHard, TrimQ16: 40_000})
	one := &load{pair: pair, pid: b.joined(pair, 0).PID, part: 0.305, factor: 1}
	blind := func() { b.took(look{uuid: gpu, seen: trim.Look{At: b.now, Busy: 30}}) }
	b.pass(3e9, func() { one.run(b) }, blind)
	b.logged("cover less than 80 %", 0) // a moment of it is no news
	b.pass(20e9, func() { one.run(b) }, blind)
	if got := pair.Read(t).Cards[0].TrimQ16; got != 40_000 {
		t.Errorf("trim %d", got)
	}
	b.logged("cover less than 80 %", 1)
	b.pass(8e9, func() { one.run(b) }, b.nvml(gpu, one))
	near(t, "trim once samples come", pair.Read(t).Cards[0].Trim(), 1, 0.01)
	b.logged("cover a card again", 1)
}

func TestALostCardStopsItsOwnTrimsOnly(t *testing.T) {
	b := newBench(t)
	lost := b.slice("a", pages.Card{UUID: "GPU-9", CoresPercent: 30, Mode: pages.ModeHard, TrimQ16: 40_000})
	fine := b.slice("b", pages.Card{CoresPercent: 30, Mode: pages.ModeHard})
	gone := &load{pair: lost, pid: b.joined(lost, 0).PID, part: 0.3, factor: 2}
	one := &load{pair: fine, pid: b.joined(fine, 0).PID, part: 0.3, factor: 2}
	fail := func() { b.took(look{uuid: "GPU-9", err: fmt.Errorf("card GPU-9: %w", nvmlwatch.ErrLost)}) }
	b.pass(10e9, func() { one.run(b); gone.run(b) }, b.nvml(gpu, one), fail)
	near(t, "trim on the other card", fine.Read(t).Cards[0].Trim(), 0.5, 0.02)
	if got := lost.Read(t).Cards[0].TrimQ16; got != 40_000 {
		t.Errorf("trim %d on the lost card", got)
	}
	b.logged("card is lost", 1)
	b.took(look{uuid: "GPU-9", seen: trim.Look{At: b.now}})
	b.logged("NVML answers again", 1)
}

func TestTimestampsOfTheFutureAreSaidOnce(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeHard})
	b.joined(pair, 0)
	b.pass(2e9, func() {
		b.took(look{uuid: gpu, seen: trim.Look{At: b.now, Samples: []trim.Sample{{PID: 1, At: b.now + 5e9, Percent: 3}}}})
	})
	b.logged("timestamps lie in the future", 1)
}

// What one tenant does to his page is his own trouble.
func TestADamagedLedgerStopsItsOwnSliceOnly(t *testing.T) {
	b := newBench(t)
	bad, fine := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeHard}), b.slice("b", pages.Card{CoresPercent: 30, Mode: pages.ModeHard})
	one := &load{pair: fine, pid: b.joined(fine, 0).PID, part: 0.3, factor: 2}
	b.joined(bad, 0)
	b.pass(1e9, func() { one.run(b) }, b.nvml(gpu, one))
	if err := os.Truncate(bad.Ledger, 10); err != nil {
		t.Fatal(err)
	}
	b.pass(10e9, func() { one.run(b) }, b.nvml(gpu, one))
	near(t, "trim of the neighbour", fine.Read(t).Cards[0].Trim(), 0.5, 0.02)
	b.logged("ledger page of a slice is damaged", 1)
}

func TestElasticBorrowsAndGivesBackWithin100Ms(t *testing.T) {
	b := newBench(t)
	pair, other := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeElastic, VID: 1}), b.slice("b", pages.Card{CoresPercent: 60, Mode: pages.ModeHard, VID: 2})
	one, neighbour := &load{pair: pair}, &load{pair: other}
	b.joined(pair, 0)
	b.joined(other, 0)
	b.pass(500*ms, func() { one.run(b) })
	near(t, "share beside an idle neighbour", pair.Read(t).Cards[0].Share(), 100, 0)
	b.pass(75*ms, func() { one.run(b); neighbour.run(b) })
	near(t, "share beside a busy one", pair.Read(t).Cards[0].Share(), 40, 0)
	b.pass(500*ms, func() { one.run(b) })
	near(t, "share once it rests", pair.Read(t).Cards[0].Share(), 100, 0)
	// A neighbour that owes time counts as active without a launch.
	neighbour.use.TatNs = b.now + 2e9
	neighbour.run(b)
	b.pass(1500*ms, func() { one.run(b) })
	near(t, "share while it pays", pair.Read(t).Cards[0].Share(), 40, 0)
	b.pass(1000 * ms)
	if got := pair.Read(t).Cards[0].EffectiveQ16; got != 0 {
		t.Errorf("an idle slice has %d in force", got)
	}
}

func TestPriorityIsPausedBesideOthers(t *testing.T) {
	b := newBench(t)
	pair, other := b.slice("a", pages.Card{Mode: pages.ModePriority, VID: 1}), b.slice("b", pages.Card{CoresPercent: 60, Mode: pages.ModeHard, VID: 2})
	waiting, neighbour := &load{pair: pair}, &load{pair: other}
	b.joined(pair, 0)
	b.joined(other, 0)
	wait := func() { waiting.use.ThrottledNs += 1e6; pair.Use(t, 0, waiting.use) }
	b.pass(200*ms, wait, func() { neighbour.run(b) })
	if card := pair.Read(t).Cards[0]; card.Flags&pages.FlagPaused == 0 {
		t.Errorf("not paused: %+v", card)
	}
	b.pass(500*ms, wait)
	if card := pair.Read(t).Cards[0]; card.Flags&pages.FlagPaused != 0 || card.Share() != 100 {
		t.Errorf("alone it has %+v", card)
	}
}

func TestFixedSharesHaveWindows(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeFixedShare, VID: 2})
	b.slice("b", pages.Card{CoresPercent: 50, Mode: pages.ModeFixedShare, VID: 1})
	b.pass(50 * ms)
	if card := pair.Read(t).Cards[0]; card.FrameUs != 100_000 || card.WindowStartUs != 50_000 || card.WindowUs != 30_000 {
		t.Errorf("%+v", card)
	}
}

func TestContextIsLearnedOnceAndTheRestIsOverhead(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeHard, MemoryBytes: 4096 * mib})
	first := b.joined(pair, 0, 100*mib)
	b.pass(1e9)
	b.list(nvmlwatch.Process{PID: first.PID, Bytes: 514 * mib})
	b.pass(50 * ms)
	want := func(what string, context, overhead uint64) {
		t.Helper()
		if card := pair.Read(t).Cards[0]; card.ContextBytes != context*mib || card.OverheadBytes != overhead*mib {
			t.Errorf("%s: context %d, overhead %d MiB, want %d, %d", what, card.ContextBytes/mib, card.OverheadBytes/mib, context, overhead)
		}
	}
	want("one process", 414, 414)
	epoch := pair.Read(t).Epoch
	b.list(nvmlwatch.Process{PID: first.PID, Bytes: 514*mib + 1000})
	if now := pair.Read(t).Epoch; now != epoch {
		t.Errorf("epoch %d after %d for a thousand bytes", now, epoch)
	}
	// The library charges the second one's context to its slot; it isn't learned or counted again.
	second := b.joined(pair, 1, 434*mib)
	b.pass(1e9)
	b.list(nvmlwatch.Process{PID: first.PID, Bytes: 514 * mib}, nvmlwatch.Process{PID: second.PID, Bytes: 450 * mib})
	b.pass(50 * ms)
	want("two processes", 414, 430)
	// Memory that is being taken at this moment is no overhead.
	b.pass(25*ms, func() { pair.Slot(t, 1, 1001, 11, 834*mib) })
	b.list(nvmlwatch.Process{PID: first.PID, Bytes: 514 * mib}, nvmlwatch.Process{PID: second.PID, Bytes: 450 * mib})
	want("while memory is taken", 414, 430)
	first.Die()
	second.Die()
	b.pass(600 * ms)
	want("nobody", 414, 0)
}

// Who hides memory from his slot makes contexts look dear; his neighbours' slots put that right.
func TestAContextThatWasLearnedTooDearIsPutRight(t *testing.T) {
	b := newBench(t)
	pair, other := b.slice("a", pages.Card{CoresPercent: 30, VID: 1}), b.slice("b", pages.Card{CoresPercent: 30, VID: 2})
	liar := b.joined(pair, 0)
	price := func(what string, want uint64) {
		t.Helper()
		b.pass(50 * ms)
		if got := other.Read(t).Cards[0].ContextBytes; got != want*mib {
			t.Errorf("%s: a context costs %d MiB, want %d", what, got/mib, want)
		}
	}
	b.pass(1e9)
	b.list(nvmlwatch.Process{PID: liar.PID, Bytes: 9000 * mib})
	price("absurd", 0)
	b.list(nvmlwatch.Process{PID: liar.PID, Bytes: 900 * mib})
	price("dear", 900)
	honest := b.joined(other, 0, 1000*mib) // 100 MiB and a context at that price
	b.pass(1e9)
	b.list(nvmlwatch.Process{PID: liar.PID, Bytes: 900 * mib}, nvmlwatch.Process{PID: honest.PID, Bytes: 514 * mib})
	price("put right", 414)
}

func TestAFreshSliceOfTheCardIsToldWhatAContextCosts(t *testing.T) {
	b := newBench(t)
	b.slice("a", pages.Card{ContextBytes: 414 * mib}) // by a predecessor of ours
	b.pass(25 * ms)
	fresh := b.slice("b", pages.Card{CoresPercent: 30, Mode: pages.ModeHard})
	b.pass(600 * ms)
	if got := fresh.Read(t).Cards[0].ContextBytes; got != 414*mib {
		t.Errorf("%d", got)
	}
}

func TestTheDeadAreClearedAndNamedOnce(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30}, pages.Card{UUID: "GPU-1"})
	living, dying := b.joined(pair, 0, 5*mib), b.joined(pair, 1, 7*mib, 9*mib)
	b.pass(300 * ms)
	b.logged("process ended", 0)
	dying.Die()
	b.pass(600 * ms)
	b.logged("process ended, its slot was cleared", 1)
	for _, part := range []string{"key=a", "owner=pod/a", " pid=11 ", fmt.Sprintf("host_pid=%d", dying.PID),
		`card=GPU-0 held="7340032 bytes"`, `card=GPU-1 held="9437184 bytes"`, "by=\"the node agent\""} {
		b.logged(part, 1)
	}
	if got := b.keeper.slices["a"].members; len(got) != 1 || got[0].hostPID != living.PID {
		t.Errorf("members %v", got)
	}
}

// A tenant can write owners into slots whose locks nobody holds, as fast as we clear them.
func TestATenantCantFloodTheLog(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30})
	b.pass(25 * ms)
	b.pass(20e9, func() {
		for slot := range 40 {
			pair.Slot(t, slot, uint64(b.now)+uint64(slot), slot, mib)
		}
	})
	if lines := strings.Count(b.log.String(), "\n"); lines < obituaries || lines > obituaries+1 {
		t.Errorf("%d lines", lines)
	}
	b.logged("end without end", 1)
}

// Another process of the slice may be faster; the operator is told all the same.
func TestTheDeadThatOthersClearedAreNamedToo(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30})
	dying := b.joined(pair, 0, 5*mib)
	b.pass(300 * ms)
	dying.Die()
	pair.Slot(t, 0, 0, 0)
	b.pass(300 * ms)
	b.logged("held=\"5242880 bytes\" by=\"another process of the slice\"", 1)
}

func TestASliceThatStartsAnewIsFollowed(t *testing.T) {
	b := newBench(t)
	b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeFixedShare})
	b.pass(600 * ms)
	directory := filepath.Join(b.root, "a")
	if err := os.RemoveAll(directory); err != nil {
		t.Fatal(err)
	}
	b.pass(600 * ms) // between the ledger's entry and its files
	b.held = nil
	fresh := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeFixedShare})
	b.pass(1200 * ms)
	if fresh.Read(t).Cards[0].WindowUs != 30_000 {
		t.Error("the new page has no window")
	}
	b.broken = errors.New("disk gone")
	b.pass(1200 * ms)
	b.logged("node ledger not read", 1)
	b.broken, b.held = nil, nil
	b.pass(600 * ms)
	if len(b.keeper.slices) != 0 {
		t.Error("a slice that ended is still looked after")
	}
}

func TestAnEpochLeftOddByAKilledWriterIsMended(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeFixedShare})
	b.pass(50 * ms)
	file, err := os.OpenFile(pair.Config, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte{99}, 8); err != nil {
		t.Fatal(err)
	}
	b.pass(500 * ms)
	if epoch := pair.Read(t).Epoch; epoch != 99 {
		t.Errorf("epoch %d: a writer at work was pushed aside", epoch)
	}
	b.pass(2e9)
	if epoch := pair.Read(t).Epoch; epoch != 100 {
		t.Errorf("epoch %d: readers wait for ever", epoch)
	}
}

// stranger lets 12 s pass in which NVML lists a process that holds no slot.
func (b *bench) stranger(pid int) {
	for range 12 {
		b.list(nvmlwatch.Process{PID: pid, Bytes: 100 * mib})
		b.pass(975 * ms)
	}
}

func TestForeignProcesses(t *testing.T) {
	for name, test := range map[string]struct {
		policy   Policy
		cgroup   string
		reported int
		killed   bool
	}{
		"reported":                        {Report, container, 1, false},
		"killed":                          {Kill, container, 1, true},
		"not where others live":           {Kill, "/user.slice/session-1.scope", 1, false},
		"of no cgroup we could tell from": {Kill, "/", 0, false},
		"nobody evicts here":              {Evict, container, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.Policy, b.host.cgroup = test.policy, test.cgroup
			pair := b.slice("a", pages.Card{CoresPercent: 30})
			b.joined(pair, 0)
			b.stranger(4711)
			b.logged("process 4711 of its container uses a card past the library, with 100 MiB", test.reported)
			if killed := len(b.host.killed) == 1 && b.host.killed[0] == 4711; killed != test.killed || len(b.host.killed) > 1 {
				t.Errorf("killed %v", b.host.killed)
			}
		})
	}
}

func TestMembersAndStrangersElsewhereAreLeftAlone(t *testing.T) {
	b := newBench(t)
	b.Policy = Kill
	pair := b.slice("a", pages.Card{CoresPercent: 30})
	member := b.joined(pair, 0)
	b.stranger(member.PID)
	b.host.cgroup = "/kubepods/" + strings.Repeat("cd34", 16)
	b.stranger(4711)
	b.logged("past", 0)
	if b.host.killed != nil {
		t.Errorf("killed %v", b.host.killed)
	}
}

func TestMemoryAboveTheQuotaIsReported(t *testing.T) {
	b := newBench(t)
	pair := b.slice("a", pages.Card{CoresPercent: 30, MemoryBytes: 1024 * mib, ContextBytes: 400 * mib})
	member := b.joined(pair, 0)
	use := func(bytes uint64, seconds int) {
		for range seconds {
			b.list(nvmlwatch.Process{PID: member.PID, Bytes: bytes})
			b.pass(975 * ms)
		}
	}
	use(1424*mib, 20) // quota and one context
	use(4096*mib, 5)  // not for long
	use(1000*mib, 1)
	b.logged("its quota is", 0)
	use(4096*mib, 20)
	b.logged("NVML shows 4096 MiB on card GPU-0 for 10 s, its quota is 1024 MiB", 1)
}

// Who writes his own page: charges that are hidden are reported, charges that are invented give no
// larger share for long.
func TestUseAboveTheShareIsReportedAndGainsNothingLasting(t *testing.T) {
	for name, test := range map[string]struct {
		factor   float64
		part     float64
		reported int
		trim     float64
	}{
		"an honest tenant":      {1, 0.30, 0, 1},
		"charged beside others": {2.5, 0.30, 0, 0.4},
		"hidden charges":        {0.1, 0.90, 1, trim.Highest},
		"invented charges":      {3, 0.90, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			pair := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeHard, TauNs: 500e6})
			one := &load{pair: pair, pid: b.joined(pair, 0).PID, part: test.part, factor: test.factor}
			b.pass(30e9, func() { one.run(b) }, b.nvml(gpu, one))
			b.logged("its share is 30 %", test.reported)
			near(t, "trim", pair.Read(t).Cards[0].Trim(), test.trim, 0.02)
		})
	}
}

// hanging is an NVML that never answers until the test ends.
type hanging struct {
	until  chan struct{}
	asked  atomic.Int32
	closed atomic.Int32
}

func (h *hanging) Samples(string, uint64) ([]nvmlwatch.Sample, error) {
	h.asked.Add(1)
	<-h.until
	return nil, errors.New("too late")
}
func (h *hanging) Busy(string) (int, error)                      { return 0, nil }
func (h *hanging) Processes(string) ([]nvmlwatch.Process, error) { return nil, nil }
func (h *hanging) Close()                                        { h.closed.Add(1) }

func TestADriverThatHangsDelaysNothingElse(t *testing.T) {
	b := newBench(t)
	nvml := &hanging{until: make(chan struct{})}
	defer close(nvml.until)
	deps := b.Deps
	deps.NVML, deps.Now = nvml, Now
	pair := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeFixedShare})
	b.joined(pair, 0)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { Run(ctx, deps); close(ended) }()
	eventually(t, func() bool { return nvml.asked.Load() > 0 && pair.Read(t).Cards[0].WindowUs == 30_000 })
	// With the question still open, a new slice is served.
	if err := os.Remove(pair.Config); err != nil {
		t.Fatal(err)
	}
	again := livetest.New(t, filepath.Dir(pair.Config), pages.Card{UUID: gpu, CoresPercent: 70, Mode: pages.ModeFixedShare})
	eventually(t, func() bool { return again.Read(t).Cards[0].WindowUs == 70_000 })
	cancel()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("Run waits for a driver that hangs")
	}
}

// unsampled is the NVML of a MIG instance: it lists processes, samples none, and has no utilisation.
type unsampled struct{ counting }

func (*unsampled) Samples(string, uint64) ([]nvmlwatch.Sample, error) {
	return nil, nvmlwatch.ErrUnsupported
}
func (*unsampled) Busy(string) (int, error) { return 0, nvmlwatch.ErrUnsupported }
func (*unsampled) Processes(string) ([]nvmlwatch.Process, error) {
	return []nvmlwatch.Process{{PID: 1, Bytes: 5}}, nil
}

func TestAnInstanceIsLookedAtWithoutSamples(t *testing.T) {
	one := &poller{uuid: gpu}
	found := one.look(Deps{NVML: &unsampled{}, Now: Now})
	if found.err != nil || !found.unsampled || !found.listed || len(found.processes) != 1 {
		t.Errorf("%+v", found)
	}
}

func TestThatAnInstanceHasNoSamplesIsNoTrouble(t *testing.T) {
	b := newBench(t)
	var log strings.Builder
	b.Deps.Log = slog.New(slog.NewTextHandler(&log, nil))
	k := newKeeper(b.Deps)
	k.cards[gpu] = &card{uuid: gpu, foreign: map[int]int64{}}
	for second := range int64(60) {
		k.took(look{uuid: gpu, began: second * 1e9, unsampled: true})
		if k.covered(k.cards[gpu], second*1e9) {
			t.Fatal("trims of a card without samples")
		}
	}
	if got := strings.Count(log.String(), "\n"); got != 1 || !strings.Contains(log.String(), "what its slices are charged stays uncorrected") {
		t.Errorf("said %d times:\n%s", got, log.String())
	}
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came about")
		}
	}
}

// counting answers at once that nothing runs.
type counting struct{ opened, closed atomic.Int32 }

func (c *counting) Samples(string, uint64) ([]nvmlwatch.Sample, error) {
	c.opened.Add(1)
	return nil, nil
}
func (c *counting) Busy(string) (int, error)                      { return 0, nil }
func (c *counting) Processes(string) ([]nvmlwatch.Process, error) { return nil, nil }
func (c *counting) Close()                                        { c.closed.Add(1) }

func TestNVMLIsGivenBackWhenNobodyComputes(t *testing.T) {
	b := newBench(t)
	nvml := &counting{}
	deps := b.Deps
	deps.NVML, deps.Now = nvml, Now
	deps.Log = slog.New(slog.DiscardHandler)
	pair := b.slice("a", pages.Card{CoresPercent: 30, Mode: pages.ModeHard})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { Run(ctx, deps); close(ended) }()
	defer func() { cancel(); <-ended }()
	time.Sleep(100 * time.Millisecond)
	if nvml.opened.Load() != 0 {
		t.Error("NVML was opened for a slice without a process")
	}
	member := b.joined(pair, 0)
	eventually(t, func() bool { return nvml.opened.Load() > 0 })
	member.Die()
	eventually(t, func() bool { return nvml.closed.Load() > 0 })
}

func TestCgroups(t *testing.T) {
	id := strings.Repeat("0f", 32)
	for text, want := range map[string]string{
		"0::/system.slice/docker-" + id + ".scope\n":                    "/system.slice/docker-" + id + ".scope",
		"12:memory:/kubepods/pod1/" + id + "\n1:name=systemd:/\n0::/\n": "/kubepods/pod1/" + id,
		"": "",
	} {
		if got := chooseCgroup(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	owner := xpu.Owner{PodUID: "0f0f0f0f-1111-2222-3333-444444444444"}
	for cgroup, want := range map[string]bool{
		"/kubepods/burstable/pod0f0f0f0f-1111-2222-3333-444444444444/x":                  true,
		"/../../kubepods-pod0f0f0f0f_1111_2222_3333_444444444444.slice/cri-containerd-x": true,
		"/kubepods/pod1f0f0f0f-1111-2222-3333-444444444444/x":                            false,
		"/": false,
	} {
		if got := ofPod(cgroup, owner); got != want {
			t.Errorf("%s: %t", cgroup, got)
		}
	}
	if ofPod("/kubepods/app", xpu.Owner{PodUID: "app"}) {
		t.Error("a short name is taken for a pod's UID")
	}
}

// The real procfs and a real process: what is killed is what was meant.
func TestKillChecksTheCgroupAgain(t *testing.T) {
	pair := livetest.New(t, t.TempDir())
	member := pair.Hold(t, 0)
	proc := Proc("/proc")
	cgroup, err := proc.Cgroup(member.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Kill(member.PID, cgroup+"/elsewhere"); err == nil {
		t.Fatal("a process of another cgroup was killed")
	}
	if err := proc.Kill(member.PID, cgroup); err != nil {
		t.Fatal(err)
	}
	if err := proc.Kill(1<<22+1, cgroup); err == nil {
		t.Error("a pid nobody has was killed")
	}
}

// A resize writes the ledger; who looks after the slice brings its page to it, and nothing else of it.
func TestTheLedgersTermsReachARunningSlice(t *testing.T) {
	b := newBench(t)
	pair := b.slice("s1", pages.Card{MemoryBytes: 3 << 30, CoresPercent: 20, Mode: pages.ModeHard, TrimQ16: 5})
	b.held[0].Shares = []xpu.Share{{UUID: gpu, CoresPercent: 20, MemoryMiB: 3072}}
	b.pass(1e9)
	epoch := pair.Read(t).Epoch
	b.held[0].Shares = []xpu.Share{{UUID: gpu, CoresPercent: 40, MemoryMiB: 4096, Mode: xpu.ModeElastic, Weight: 2}}
	b.pass(1e9)
	got := pair.Read(t).Cards[0]
	if got.CoresPercent != 40 || got.MemoryBytes != 4<<30 || got.Mode != pages.ModeElastic || got.Weight != 2 || got.TrimQ16 != 5 {
		t.Errorf("%+v", got)
	}
	settled := pair.Read(t).Epoch
	if b.pass(1e9); settled == epoch || pair.Read(t).Epoch != settled {
		t.Errorf("written at %d and %d, then again", epoch, settled)
	}
	b.held[0].Shares = []xpu.Share{{UUID: "GPU-other", CoresPercent: 90}}
	if b.pass(1e9); pair.Read(t).Cards[0].CoresPercent != 40 {
		t.Error("another card's terms were written")
	}
}
