// SPDX-License-Identifier: Apache-2.0

package trim

import (
	"math"
	"math/rand/v2"
	"testing"
)

const ms = int64(1e6)

func TestHistory(t *testing.T) {
	var h History
	if _, known := h.Between(0, 0); known || h.Reaches(0) {
		t.Error("an empty history knows something")
	}
	h.Add(100, 1000)
	h.Add(200, 2000)
	h.Add(200, 9000) // two readings of one instant
	h.Add(300, 2000)
	for _, test := range []struct {
		from, to int64
		want     float64
		known    bool
	}{{100, 200, 1000, true}, {150, 250, 500, true}, {100, 300, 1000, true}, {200, 300, 0, true},
		{99, 200, 0, false}, {200, 301, 0, false}, {250, 150, 0, false}} {
		if got, known := h.Between(test.from, test.to); known != test.known || got != test.want {
			t.Errorf("%d to %d: %v %t, want %v %t", test.from, test.to, got, known, test.want, test.known)
		}
	}
	h.Add(400, 1) // the page is another one
	if _, known := h.Between(300, 400); known {
		t.Error("charges of two pages were compared")
	}
	for at := range int64(1000) {
		h.Add(500+at, uint64(at))
	}
	if len(h.readings) != history {
		t.Errorf("%d readings kept", len(h.readings))
	}
	if got, known := h.Between(1450, 1499); !known || got != 49 {
		t.Errorf("%v %t", got, known)
	}
}

// play is NVML as the simulator and the driver have it: windows on a grid, whole percents rounded down,
// of each process the newest window in which it ran.
type play struct {
	period  int64
	busy    func(window int64, pid int) float64 // part of the window
	missing func(window int64) bool
}

func (p play) look(at int64) Look {
	look := Look{At: at, Busy: -1}
	complete := at/p.period - 1
	total := 0.0
	for pid := 1; pid <= 2; pid++ {
		total += p.busy(complete, pid)
		for window := complete; window > complete-6 && window >= 0; window-- {
			if part := p.busy(window, pid); part > 0 && (p.missing == nil || !p.missing(window)) {
				look.Samples = append(look.Samples, Sample{pid, (window + 1) * p.period, int(part * 100)})
				break
			}
		}
	}
	look.Busy = int(total * 100)
	return look
}

// run looks at the card for a while and gives the ratio of process 1, which is charged factor times
// what it runs, lag later.
func (p play) run(duration, every int64, factor float64, lag int64) (Ratio, *Timeline, float64) {
	var timeline Timeline
	var ratio Ratio
	charged := func(at int64) float64 {
		at -= lag
		sum := 0.0
		for window := int64(0); window*p.period < at; window++ {
			part := min(float64(at-window*p.period)/float64(p.period), 1)
			sum += p.busy(window, 1) * part * float64(p.period) * factor
		}
		return sum
	}
	for at := p.period + 10*ms; at < duration; at += every {
		if window, complete := timeline.Observe(p.look(at)); complete {
			ratio.Add(window.To-window.From, window.Busy[1], charged(window.To)-charged(window.From), 0)
		}
	}
	return ratio, &timeline, timeline.Coverage(duration)
}

func steady(part float64) func(int64, int) float64 {
	return func(int64, int) float64 { return part }
}

func near(t *testing.T, what string, got, want, off float64) {
	t.Helper()
	if math.Abs(got-want) > off {
		t.Errorf("%s: %.3f, want %.3f", what, got, want)
	}
}

func TestTrimIsWhatWasUsedOfWhatWasCharged(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	noise := make([]float64, 1000)
	for i := range noise {
		noise[i] = random.Float64()
	}
	for name, test := range map[string]struct {
		busy   func(int64, int) float64
		factor float64
		lag    int64
		want   float64
	}{
		"nothing to correct":        {steady(0.303), 1, 0, 1},
		"charged twice":             {steady(0.303), 2, 0, 0.5},
		"charged late":              {steady(0.303), 2, 400 * ms, 0.5},
		"a restless tenant":         {func(w int64, _ int) float64 { return noise[w] }, 2.5, 150 * ms, 0.4},
		"one that idles in between": {func(w int64, _ int) float64 { return float64(w % 3 / 2) }, 2, 200 * ms, 0.5},
		"one kernel in a while":     {func(w int64, _ int) float64 { return float64(w % 18 / 17) }, 1, 170 * ms, 1},
		"no honest ratio, low":      {steady(0.503), 9, 0, Lowest},
		"no honest ratio, high":     {steady(0.503), 0.5, 0, Highest},
	} {
		t.Run(name, func(t *testing.T) {
			ratio, _, coverage := play{period: shortestPeriod, busy: test.busy}.run(30e9, 120*ms, test.factor, test.lag)
			got, known := ratio.Trim()
			if !known || coverage < MinCoverage {
				t.Fatalf("known %t, coverage %v", known, coverage)
			}
			near(t, "trim", got, test.want, 0.02*test.want)
		})
	}
}

// The rule that windows without samples are left out: counted as idle, 15 % missing ones would look
// like 15 % charged too much.
func TestMissingSamplesDontMoveTheTrim(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	gone := map[int64]bool{}
	for window := range int64(400) {
		gone[window] = random.Float64() < 0.15
	}
	p := play{period: shortestPeriod, busy: steady(0.303), missing: func(w int64) bool { return gone[w] }}
	ratio, _, _ := p.run(30e9, 120*ms, 2, 0)
	got, _ := ratio.Trim()
	near(t, "trim", got, 0.5, 0.01)
}

func TestCoverage(t *testing.T) {
	for name, test := range map[string]struct {
		every   int64
		missing func(int64) bool
		busy    func(int64, int) float64
		covered bool
	}{
		"every period seen":       {120 * ms, nil, steady(0.3), true},
		"every second one missed": {120 * ms, func(w int64) bool { return w%2 == 0 }, steady(0.3), false},
		"a slow driver":           {600 * ms, nil, steady(0.3), false},
		"no samples at all":       {120 * ms, func(int64) bool { return true }, steady(0.3), false},
		"none, but idle":          {120 * ms, nil, func(w int64, _ int) float64 { return map[bool]float64{true: 0.5}[w < 20] }, true},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, coverage := play{shortestPeriod, test.busy, test.missing}.run(10e9, test.every, 1, 0)
			if (coverage >= MinCoverage) != test.covered {
				t.Errorf("coverage %.2f", coverage)
			}
		})
	}
}

func TestCoverageIsNotKnownAtOnce(t *testing.T) {
	var timeline Timeline
	if got := timeline.Coverage(5e9); got != 0 {
		t.Errorf("%v before the first look", got)
	}
	_, _, coverage := play{period: shortestPeriod, busy: steady(0.3)}.run(1000*ms, 120*ms, 1, 0)
	if coverage != 0 {
		t.Errorf("%v after less than a second of looks", coverage)
	}
}

func TestAPauseIsNobodysFault(t *testing.T) {
	p := play{period: shortestPeriod, busy: steady(0.3)}
	_, timeline, _ := p.run(10e9, 120*ms, 1, 0)
	for at := int64(60e9); at < 63e9; at += 120 * ms {
		timeline.Observe(p.look(at))
	}
	if coverage := timeline.Coverage(63e9); coverage < MinCoverage {
		t.Errorf("coverage %.2f after a pause", coverage)
	}
}

func TestTheOtherProcessProvesThatOneIdles(t *testing.T) {
	var timeline Timeline
	timeline.Observe(Look{At: 1000 * ms, Samples: []Sample{{1, 990 * ms, 50}, {2, 990 * ms, 50}}, Busy: -1})
	timeline.Observe(Look{At: 1170 * ms, Samples: []Sample{{1, 1157 * ms, 50}, {2, 1157 * ms, 50}}, Busy: -1})
	window, complete := timeline.Observe(Look{At: 1340 * ms, Samples: []Sample{{1, 1157 * ms, 50}, {2, 1324 * ms, 99}}, Busy: -1})
	if !complete || window.Busy[1] != 0 || window.Busy[2] == 0 {
		t.Errorf("%+v %t", window, complete)
	}
}

func TestEachInstantCountsOnce(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	p := play{period: shortestPeriod, busy: func(w int64, pid int) float64 { return float64((w/int64(pid)+w/7)%3) / 4 }}
	var timeline Timeline
	until := int64(0)
	for at := p.period; at < 60e9; at += 1 + random.Int64N(300*ms) {
		window, complete := timeline.Observe(p.look(at))
		if !complete {
			continue
		}
		if window.From < until || window.To <= window.From || window.To > at {
			t.Fatalf("window %+v after %d, at %d", window, until, at)
		}
		for pid, busy := range window.Busy {
			if busy > float64(window.To-window.From) {
				t.Fatalf("process %d ran %v in %+v", pid, busy, window)
			}
		}
		until = window.To
	}
}

func TestJumpingTimestamps(t *testing.T) {
	p := play{period: shortestPeriod, busy: steady(0.3)}
	_, timeline, _ := p.run(10e9, 120*ms, 1, 0)
	for at := int64(10e9); at < 13e9; at += 120 * ms {
		look := p.look(at)
		for i := range look.Samples {
			look.Samples[i].At += 5e9
		}
		if _, complete := timeline.Observe(look); complete || !timeline.Strange() {
			t.Fatal("a sample of the future was taken")
		}
	}
	if coverage := timeline.Coverage(13e9); coverage >= MinCoverage {
		t.Errorf("coverage %.2f", coverage)
	}
	for at := int64(13e9); at < 16e9; at += 120 * ms {
		timeline.Observe(p.look(at))
	}
	if coverage := timeline.Coverage(16e9); coverage < MinCoverage || timeline.Strange() {
		t.Errorf("coverage %.2f once the clock is right again", coverage)
	}
}

func TestALongerSamplePeriodIsLearnedFromABusyCard(t *testing.T) {
	second := int64(1e9)
	_, timeline, coverage := play{period: second, busy: steady(0.45)}.run(30e9, 120*ms, 1, 0)
	if timeline.period != second || coverage < MinCoverage {
		t.Errorf("period %d, coverage %.2f", timeline.period, coverage)
	}
	// Half idle, the same samples may as well be of short periods with idle ones between.
	_, timeline, coverage = play{period: second, busy: steady(0.2)}.run(30e9, 120*ms, 1, 0)
	if timeline.period != shortestPeriod || coverage >= MinCoverage {
		t.Errorf("period %d, coverage %.2f", timeline.period, coverage)
	}
	// A driver that answers late must not be taken for one that samples seldom.
	_, timeline, _ = play{period: shortestPeriod, busy: steady(0.5)}.run(30e9, 600*ms, 1, 0)
	if timeline.period != shortestPeriod {
		t.Errorf("period %d", timeline.period)
	}
}

func TestAbsurdPercents(t *testing.T) {
	for whole, want := range map[int]float64{-5: 0, 0: 0.5, 99: 99.5, 100: 100, 4000: 100} {
		if got := percent(whole); got != want {
			t.Errorf("%d is %v, want %v", whole, got, want)
		}
	}
}

func TestRatioForgets(t *testing.T) {
	var ratio Ratio
	add := func(seconds int, busy, charged float64) {
		for range seconds * 10 {
			ratio.Add(100*ms, busy*float64(100*ms), charged*float64(100*ms), 0)
		}
	}
	if got, known := ratio.Trim(); known || got != 1 {
		t.Errorf("%v %t before anything ran", got, known)
	}
	add(20, 0.3, 0.6)
	got, _ := ratio.Trim()
	near(t, "beside a neighbour", got, 0.5, 0.001)
	add(60, 0, 0)
	got, _ = ratio.Trim()
	near(t, "after a pause", got, 0.5, 0.001)
	add(11, 0.3, 0.3)
	got, _ = ratio.Trim()
	near(t, "alone", got, 1, 0.001)
}

func TestUseKeepsItsSpan(t *testing.T) {
	var use Use
	for i := range 100 {
		use.Add(1e9, float64(i), 1, 2, 10e9)
	}
	length, busy, charged, allowed := use.Sums()
	if length != 10e9 || busy != 945 || charged != 10 || allowed != 20 {
		t.Errorf("%v %v %v %v", length, busy, charged, allowed)
	}
}

// 10 ms in a window of 1/6 s are 6 % to NVML, and half a point more is a twelfth too much. Alone on the
// card the charges are right; beside others they may be anything.
func TestRoundingIsNoReasonToCorrectWhoIsAlone(t *testing.T) {
	window := Window{To: shortestPeriod}
	for name, test := range map[string]struct{ charged, doubt, want float64 }{
		"alone, charged right":     {0.06, window.Doubt(), 1},
		"alone, charged a lot":     {0.12, window.Doubt(), 0.54},
		"beside others":            {0.06, 0, 1.08},
		"alone, charged much less": {0.03, window.Doubt(), Highest},
	} {
		t.Run(name, func(t *testing.T) {
			var ratio Ratio
			for range 200 {
				length := float64(shortestPeriod)
				ratio.Add(shortestPeriod, percent(6)/100*length, test.charged*length, test.doubt)
			}
			got, _ := ratio.Trim()
			near(t, "trim", got, test.want, 0.06)
		})
	}
}
