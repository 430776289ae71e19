// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"reflect"
	"testing"

	"flexai.io/xpu/cluster/xpu"
)

// annotate changes a pod of the world.
func (w *world) annotate(pod string, change func(*Pod)) {
	known := w.pods["n/"+pod]
	change(&known)
	w.pods["n/"+pod] = known
}

func TestSeveralSlicesOfOneContainerByTheirShape(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a", "b"}, 40, 6)
	w.annotate("p1", func(p *Pod) { p.Shapes = `{"app":{"number":2,"cores":20,"memoryGiB":3},"side":{"number":1}}` })
	got := prepare(t, w.start(t), "a", "b")
	want := []xpu.Share{{UUID: "GPU-0", CoresPercent: 20, MemoryMiB: 3072}, {UUID: "GPU-1", CoresPercent: 20, MemoryMiB: 3072}}
	if !reflect.DeepEqual(got.Shares, want) {
		t.Errorf("%+v, want %+v", got.Shares, want)
	}
}

func TestAClassIsWrittenThroughToTheShare(t *testing.T) {
	for name, test := range map[string]struct {
		class         string
		site          xpu.Class
		cores, memory int
		want          xpu.Share
	}{
		"elastic":            {"elastic", "", 20, 3, xpu.Share{CoresPercent: 20, MemoryMiB: 3072, Mode: xpu.ModeElastic, Weight: 20}},
		"best-effort":        {"best-effort", "", 0, 3, xpu.Share{MemoryMiB: 3072, Mode: xpu.ModePriority}},
		"the site's elastic": {"", xpu.Elastic, 20, 3, xpu.Share{CoresPercent: 20, MemoryMiB: 3072, Mode: xpu.ModeElastic, Weight: 20}},
		"guaranteed":         {"guaranteed", xpu.Elastic, 20, 3, xpu.Share{CoresPercent: 20, MemoryMiB: 3072}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.admit("u1", "p1", "app", []string{"a"}, test.cores, test.memory)
			w.annotate("p1", func(p *Pod) { p.Class = test.class })
			a := w.start(t)
			a.Class = test.site
			test.want.UUID = "GPU-0"
			if got := prepare(t, a, "a").Shares; !reflect.DeepEqual(got, []xpu.Share{test.want}) {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}

func TestAnnotationsThatAreWrongAreRefusedByName(t *testing.T) {
	for name, test := range map[string]struct {
		cores, memory int
		change        func(*Pod)
		want          []string
	}{
		"class":         {20, 3, func(p *Pod) { p.Class = "gold" }, []string{"flexai.io/class", `"gold"`, "best-effort"}},
		"class of ask":  {20, 3, func(p *Pod) { p.Class = "best-effort" }, []string{"no vgpu-cores"}},
		"shape":         {20, 3, func(p *Pod) { p.Shapes = `{"app":{"number":1,"cores":90,"memoryGiB":3}}` }, []string{"vgpu-shape", "webhook"}},
		"no shape":      {20, 3, func(p *Pod) { p.Shapes = `all of it` }, []string{"vgpu-shape", "webhook"}},
		"bandwidth":     {20, 3, func(p *Pod) { p.Bandwidth = "fast" }, []string{"flexai.io/intra-bandwidth", `"fast"`}},
		"unknown model": {20, 3, func(p *Pod) { p.Models = "H200" }, []string{"of model H200", "no room"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.admit("u1", "p1", "app", []string{"a"}, test.cores, test.memory)
			w.annotate("p1", test.change)
			a := w.start(t)
			wantError(t, a.Prepare(context.Background(), []string{"a"}), test.want...)
			if len(a.Ledger().Slices()) > 0 {
				t.Error("it holds a slice")
			}
		})
	}
}

// A hundred containers that start at once wait for nobody's answer, and none waits for an API server that is away.
func TestAWatchedPodIsSettledWithoutAsking(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a", "b"}, 40, 6)
	w.annotate("p1", func(p *Pod) { p.Shapes, p.Preference = `{"app":{"number":2,"cores":20,"memoryGiB":3}}`, ";" })
	w.watched, w.noAPI, w.noList = true, true, true
	slice := prepare(t, w.start(t), "a", "b")
	if len(slice.Shares) != 2 || slice.Pod != "p1" || slice.Namespace != "n" || w.asked != 0 {
		t.Errorf("settled %+v after %d questions", slice, w.asked)
	}
}

// Which of two holders starts only PodResources tells, where neither is an init container.
func TestOfTwoHoldersTheOneThatStartsIsAskedFor(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	w.admit("u1", "p1", "side", []string{"a"}, 20, 3)
	w.watched = true
	if slice := prepare(t, w.start(t), "a"); slice.Owner.Container != "app" || w.asked == 0 {
		t.Errorf("settled for %s after %d questions", slice.Owner, w.asked)
	}
}

// Cores and class are never bypassed: what the pod's annotations might change waits for them.
func TestWhatAnnotationsDecideWaitsForTheAPIServer(t *testing.T) {
	for name, test := range map[string]struct {
		tokens        []string
		cores, memory int
		models        bool // the node has cards of several
		waits         bool
	}{
		"one card's cores":          {[]string{"a"}, 20, 3, false, false},
		"a whole card":              {[]string{"a"}, 0, 0, false, false},
		"a whole card by the hook":  {[]string{"a"}, 100, 0, false, false},
		"memory alone":              {[]string{"a"}, 0, 3, false, true},
		"several slices":            {[]string{"a", "b"}, 40, 6, false, true},
		"several whole cards":       {[]string{"a", "b"}, 0, 0, false, true},
		"cores on a node of models": {[]string{"a"}, 20, 3, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.admit("u1", "p1", "app", test.tokens, test.cores, test.memory)
			if len(test.tokens) > 1 && test.cores > 0 {
				w.annotate("p1", func(p *Pod) { p.Shapes = `{"app":{"number":2,"cores":20,"memoryGiB":3}}` })
			}
			a := w.start(t)
			if test.models {
				a.Cards[1].Model = "Tesla T4"
			}
			w.noAPI = true
			err := a.Prepare(context.Background(), test.tokens)
			if !test.waits {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantError(t, err, "annotations", "connection refused", "tries again")
			w.noAPI = false
			prepare(t, a, test.tokens...)
			w.noAPI, w.noList = true, true
			prepare(t, a, test.tokens...) // a restart needs nobody
		})
	}
}

// The kubelet shows no init containers, and no pod at all that only they hold ids of.
func TestAnInitContainersAnnotationsCountToo(t *testing.T) {
	w := newWorld()
	w.assign("u1", "init", []string{"a", "b"}, 40, 6)
	w.pods["n/p1"] = Pod{UID: "u1", Namespace: "n", Name: "p1", Containers: []string{"app"},
		Shapes: `{"init":{"number":2,"cores":20,"memoryGiB":3}}`, Class: "elastic"}
	slice := prepare(t, w.start(t), "a", "b")
	if slice.Pod != "p1" || slice.Namespace != "n" || len(slice.Shares) != 2 || slice.Shares[0].Mode != xpu.ModeElastic {
		t.Errorf("%+v", slice)
	}
}

// A restartable init container keeps its ids for the pod's life: it holds a slice beside the others'.
func TestARestartableInitContainerHoldsItsOwn(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "sidecar", []string{"a"}, 10, 1)
	w.admit("u1", "p1", "app", []string{"b"}, 20, 3)
	w.annotate("p1", func(p *Pod) { p.Containers, p.Preference = []string{"app"}, "1,GPU-1,GPU,3072,20,0:" })
	a := w.start(t)
	sidecar, app := prepare(t, a, "a"), prepare(t, a, "b")
	if app.Shares[0].UUID != "GPU-1" || sidecar.Shares[0].UUID != "GPU-0" {
		t.Errorf("app on %s, sidecar on %s", app.Shares[0].UUID, sidecar.Shares[0].UUID)
	}
	if again := prepare(t, a, "a"); !reflect.DeepEqual(again, sidecar) || len(a.Ledger().Slices()) != 2 {
		t.Errorf("after its restart %+v, before %+v", again, sidecar)
	}
}

// The watch tells init containers from the others, so nobody is asked which of two holders starts.
func TestOfAnInitContainerAndItsHeirTheSliceIsTheHeirs(t *testing.T) {
	w := newWorld()
	w.watched, w.noList, w.noAPI = true, true, true
	w.assign("u1", "init", []string{"a"}, 20, 3)
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	first := prepare(t, w.start(t), "a")
	if first.Owner.Container != "app" || first.Pod != "p1" || w.asked != 0 {
		t.Errorf("the slice is %s's of pod %q, after %d questions", first.Owner, first.Pod, w.asked)
	}
	if again := prepare(t, w.start(t), "a"); !reflect.DeepEqual(again, first) {
		t.Errorf("the heir's own start got %+v", again)
	}
}
