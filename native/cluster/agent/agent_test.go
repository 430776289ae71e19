// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"flexai.io/xpu/cluster/checkpoint"
	"flexai.io/xpu/cluster/xpu"
)

var names = Resources{"x/number", "x/cores", "x/memory"}

// world is a node in memory: a kubelet, an API server and a disk that can be told to fail.
type world struct {
	entries   []checkpoint.Entry
	holdings  []Holding
	pods      map[string]Pod
	noAPI     bool
	noList    bool
	watched   bool // somebody keeps the pods
	asked     int
	saved     xpu.Ledger
	files     map[string]xpu.Slice // by owner, as directories are
	pages     map[string]bool      // by key
	cdi       []string
	now       time.Time
	failAfter int // writes until the disk fails; negative: never
}

func newWorld() *world {
	empty, _ := xpu.NewLedger(nil)
	return &world{pods: map[string]Pod{}, saved: empty, files: map[string]xpu.Slice{}, pages: map[string]bool{}, failAfter: -1}
}

func (w *world) Checkpoint() ([]checkpoint.Entry, error) { return w.entries, nil }
func (w *world) Holdings(context.Context) ([]Holding, error) {
	if w.noList {
		return nil, errors.New("rate limit")
	}
	return w.holdings, nil
}
func (w *world) Pod(_ context.Context, namespace, name string) (Pod, error) {
	w.asked++
	if w.noAPI {
		return Pod{}, errors.New("connection refused")
	}
	pod, found := w.pods[namespace+"/"+name]
	if !found {
		return Pod{}, ErrNoPod
	}
	return pod, nil
}

func (w *world) known(uid string) (Pod, bool) {
	for _, pod := range w.pods {
		if w.watched && pod.UID == uid {
			return pod, true
		}
	}
	return Pod{}, false
}
func (w *world) PodOf(_ context.Context, uid string) (Pod, error) {
	w.asked++
	if w.noAPI {
		return Pod{}, errors.New("connection refused")
	}
	for _, pod := range w.pods {
		if pod.UID == uid {
			return pod, nil
		}
	}
	return Pod{}, ErrNoPod
}

var errKilled = errors.New("killed")

func (w *world) step() error {
	if w.failAfter == 0 {
		return errKilled
	}
	w.failAfter--
	return nil
}
func (w *world) Load() (xpu.Ledger, error) { return w.saved, nil }
func (w *world) Transact(change func(xpu.Ledger) error) error {
	if err := w.step(); err != nil { // as by somebody who keeps the lock
		return err
	}
	return change(w.saved)
}
func (w *world) Save(l xpu.Ledger) error {
	if err := w.step(); err != nil {
		return err
	}
	w.saved = l
	return nil
}
func (w *world) WriteSlice(s xpu.Slice) error {
	if err := w.step(); err != nil {
		return err
	}
	w.files[s.Owner.String()] = s
	w.pages[s.Key] = true
	return nil
}
func (w *world) RemoveSlice(s xpu.Slice) error {
	if err := w.step(); err != nil {
		return err
	}
	delete(w.files, s.Owner.String())
	delete(w.pages, s.Key)
	return nil
}
func (w *world) WriteCDI(l xpu.Ledger, _ []xpu.Card) error {
	if err := w.step(); err != nil {
		return err
	}
	w.cdi = nil
	for _, s := range l.Slices() {
		w.cdi = append(w.cdi, s.Key)
	}
	return nil
}
func (w *world) EntryStands(s xpu.Slice, _ []xpu.Card) (bool, error) {
	return slices.Contains(w.cdi, s.Key), nil
}
func (w *world) Sweep(l xpu.Ledger) error {
	keep := map[string]bool{}
	for _, s := range l.Slices() {
		keep[s.Owner.String()], keep[s.Key] = true, true
	}
	for owner := range w.files {
		if !keep[owner] {
			delete(w.files, owner)
		}
	}
	for key := range w.pages {
		if !keep[key] {
			delete(w.pages, key)
		}
	}
	return nil
}

func (w *world) Restore(l xpu.Ledger) error {
	for _, s := range l.Slices() {
		if _, there := w.files[s.Owner.String()]; !there && !s.Owner.OfHost() {
			w.files[s.Owner.String()], w.pages[s.Key] = s, true
		}
	}
	return nil
}

// admit does what the kubelet does at admission: one container gets ids of three resources.
func (w *world) admit(uid, pod, container string, tokens []string, cores, memory int) {
	w.assign(uid, container, tokens, cores, memory)
	w.holdings = append(w.holdings, Holding{"n", pod, container, tokens})
	known := w.pods["n/"+pod]
	known.UID, known.Namespace, known.Name, known.Containers = uid, "n", pod, append(known.Containers, container)
	limits := map[string]Limits{container: {names.Number: len(tokens), names.Cores: cores, names.Memory: memory}}
	maps.Copy(limits, known.Limits)
	known.Limits = limits
	w.pods["n/"+pod] = known
}

func (w *world) assign(uid, container string, tokens []string, cores, memory int) {
	for resource, ids := range map[string][]string{names.Number: tokens,
		names.Cores: count("c", cores), names.Memory: count("m", memory)} {
		if len(ids) > 0 {
			w.entries = append(w.entries, checkpoint.Entry{PodUID: uid, Container: container, Resource: resource, IDs: ids})
		}
	}
}

func count(prefix string, n int) []string {
	var ids []string
	for i := range n {
		ids = append(ids, fmt.Sprint(prefix, i))
	}
	return ids
}

func (w *world) forget(uid string) {
	var kept []checkpoint.Entry
	for _, entry := range w.entries {
		if entry.PodUID != uid {
			kept = append(kept, entry)
		}
	}
	w.entries = kept
}

func (w *world) start(t *testing.T) *Agent {
	t.Helper()
	cards := []xpu.Card{}
	for i := range 2 {
		cards = append(cards, xpu.Card{UUID: fmt.Sprint("GPU-", i), Index: i, Minor: i, MemoryMiB: 40960, Split: 20, Healthy: true})
	}
	a, err := New(Deps{Resources: names, Cards: cards, Kubelet: w, Pods: w, Known: w.known, Store: w, Now: func() time.Time { return w.now }, Changed: func() {},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func prepare(t *testing.T, a *Agent, tokens ...string) xpu.Slice {
	t.Helper()
	if err := a.Prepare(context.Background(), tokens); err != nil {
		t.Fatal(err)
	}
	for _, slice := range a.Ledger().Slices() {
		if slice.Key == xpu.Key(tokens) {
			return slice
		}
	}
	t.Fatalf("no slice for %v", tokens)
	return xpu.Slice{}
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want %q in it", err, part)
		}
	}
}

func TestPrepareSettlesTheShareOfTheVeryContainer(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "small", []string{"a"}, 20, 3)
	w.admit("u2", "p2", "big", []string{"b"}, 50, 30)
	slice := prepare(t, w.start(t), "b")
	want := []xpu.Share{{UUID: "GPU-0", CoresPercent: 50, MemoryMiB: 30 * 1024}}
	if slice.Owner != (xpu.Owner{PodUID: "u2", Container: "big"}) || slice.Pod != "p2" || !reflect.DeepEqual(slice.Shares, want) {
		t.Errorf("got %+v", slice)
	}
	if w.files["u2/big"].Key != slice.Key || !reflect.DeepEqual(w.cdi, []string{slice.Key}) {
		t.Errorf("files %v, cdi %v", w.files, w.cdi)
	}
}

func TestTheSchedulersCardIsTakenWhileItFits(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "side", []string{"z"}, 0, 0)
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	pod := w.pods["n/p1"]
	pod.Preference = "0,GPU-0,GPU,0,100,0:;1,GPU-1,GPU,3072,20,0:"
	w.pods["n/p1"] = pod
	a := w.start(t)
	if got := prepare(t, a, "a").Shares[0].UUID; got != "GPU-1" {
		t.Errorf("app is on %s, the scheduler wanted GPU-1", got)
	}
}

func TestARestartAsksNobodyAndChangesNothing(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	first := prepare(t, w.start(t), "a")
	w.noAPI, w.noList, w.asked = true, true, 0
	again := w.start(t)
	if got := prepare(t, again, "a"); !reflect.DeepEqual(got, first) || w.asked != 0 {
		t.Errorf("after a restart %+v, before %+v, %d calls", got, first, w.asked)
	}
}

func TestAContainerThatWasDealtOtherIdsGetsASliceOfThose(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	a := w.start(t)
	prepare(t, a, "a")
	w.forget("u1")
	w.assign("u1", "app", []string{"b"}, 50, 6)
	if slice := prepare(t, a, "b"); slice.Shares[0].CoresPercent != 50 || len(a.Ledger().Slices()) != 1 {
		t.Errorf("%+v of %+v", slice, a.Ledger().Slices())
	}
}

func TestBindingDoesWithoutAPIAndPodResources(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	w.admit("u2", "p2", "app", []string{"b"}, 20, 3)
	a := w.start(t)
	w.noAPI = true
	prepare(t, a, "a")
	w.noList = true
	prepare(t, a, "b")
}

func TestRefusals(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "several", []string{"a", "b"}, 40, 6)
	w.admit("u2", "p2", "huge", []string{"c"}, 10, 41)
	w.admit("u3", "p3", "twin", []string{"d"}, 20, 3)
	w.assign("u4", "other", []string{"d"}, 20, 3)
	w.admit("u5", "p5", "replaced", []string{"e"}, 20, 3)
	w.pods["n/p5"] = Pod{UID: "u6", Containers: []string{"replaced"}}
	w.admit("u7", "p7", "deleted", []string{"f"}, 20, 3)
	delete(w.pods, "n/p7")
	a := w.start(t)
	for tokens, parts := range map[string][]string{
		"a b": {"container several", "several slices", "webhook"},
		"c":   {"no room", "GPU-0: 100 % cores and 40960 MiB free"},
		"d":   {"u3", "u4"},
		"e":   {"u5", "u6", "n/p5"},
		"f":   {"n/p7", "deleted"},
		"x":   {"no container", "[x]"},
	} {
		wantError(t, a.Prepare(context.Background(), strings.Fields(tokens)), parts...)
	}
	if len(a.Ledger().Slices()) != 0 || len(w.files) != 0 {
		t.Errorf("refused claims left %v, %v", a.Ledger().Slices(), w.files)
	}
}

// The kubelet hands an init container's ids on to an app container: the same set, or with more.
func TestInitContainersLetGo(t *testing.T) {
	w := newWorld()
	w.assign("u1", "init", []string{"a"}, 0, 0)
	w.admit("u1", "p1", "app", []string{"a", "b"}, 0, 0)
	w.admit("u2", "p2", "app", []string{"c"}, 20, 3)
	w.assign("u2", "init", []string{"c"}, 20, 3)
	w.admit("u3", "p3", "app", []string{"d"}, 20, 3)
	w.assign("u3", "init", []string{"d"}, 10, 3)
	a := w.start(t)
	prepare(t, a, "a")
	app := prepare(t, a, "a", "b")
	if len(a.Ledger().Slices()) != 1 || len(app.Shares) != 2 || len(w.files) != 1 {
		t.Errorf("both cards should be app's now: %+v", a.Ledger().Slices())
	}
	w.forget("u1")
	for range 2 {
		if err := a.ReapOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if got := prepare(t, a, "c"); got.Owner.Container != "app" {
		t.Errorf("the slice is %s's", got.Owner)
	}
	wantError(t, a.Prepare(context.Background(), []string{"d"}), "init", "same requests")
}

func TestReaping(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "running", []string{"a"}, 20, 3)
	w.admit("u2", "p2", "finished", []string{"b"}, 20, 3)
	w.admit("u3", "p3", "forgotten", []string{"c"}, 20, 3)
	a := w.start(t)
	for _, token := range []string{"a", "b", "c"} {
		prepare(t, a, token)
	}
	w.holdings = nil // the API server must now tell the running from the finished
	finished := w.pods["n/p2"]
	finished.Finished = true
	w.pods["n/p2"] = finished
	w.forget("u3")
	for look, want := range []int{3, 1, 1} {
		if err := a.ReapOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := len(a.Ledger().Slices()); got != want {
			t.Errorf("after look %d: %d slices, want %d", look+1, got, want)
		}
	}
	if _, held := a.Ledger().Of(xpu.Owner{PodUID: "u1", Container: "running"}); !held || len(w.files) != 1 || len(w.cdi) != 1 {
		t.Errorf("the running container's slice: held %t, files %v, cdi %v", held, w.files, w.cdi)
	}
	w.noAPI = true
	for range 3 {
		if err := a.ReapOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.Ledger().Slices()) != 1 {
		t.Error("a slice ended because the API server was away")
	}
}

func TestALostCardIsNamed(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	a := w.start(t)
	uuid := prepare(t, a, "a").Shares[0].UUID
	a.Cards = a.Cards[1:]
	wantError(t, a.Prepare(context.Background(), []string{"a"}), uuid, "not on the node")
}

// Pods' files don't outlast a boot; who looks after slices before their containers start finds them all the same.
func TestFilesThatABootTookAreThereBeforeAnyContainerStarts(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	slice := prepare(t, w.start(t), "a")
	clear(w.files)
	clear(w.pages)
	w.start(t)
	if !reflect.DeepEqual(w.files["u1/app"], slice) || !w.pages[slice.Key] {
		t.Errorf("files %v, pages %v", w.files, w.pages)
	}
}

// Killed at every write, then restarted: the same calls succeed, nothing is leaked or given twice.
func TestKilledAtEveryStep(t *testing.T) {
	completed := false
	for steps := 0; !completed; steps++ {
		w := newWorld()
		w.assign("u1", "init", []string{"a"}, 0, 0)
		w.admit("u1", "p1", "app", []string{"a", "b"}, 0, 0)
		history := func(a *Agent) error {
			for _, tokens := range [][]string{{"a"}, {"a", "b"}} {
				if err := a.Prepare(context.Background(), tokens); err != nil {
					return err
				}
			}
			w.forget("u1")
			w.admit("u2", "p2", "app", []string{"c"}, 100, 40)
			for range 2 {
				if err := a.ReapOnce(context.Background()); err != nil {
					return err
				}
			}
			return a.Prepare(context.Background(), []string{"c"})
		}
		a := w.start(t)
		w.failAfter = steps
		err := history(a)
		completed = err == nil
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatalf("step %d: %v", steps, err)
		}
		w.failAfter = -1
		a = w.start(t)
		for _, slice := range a.Ledger().Slices() {
			err := a.Prepare(context.Background(), slice.Tokens)
			if listed := len(checkpoint.Holders(w.entries, names.Number, slice.Tokens)) > 0; listed && err != nil {
				t.Fatalf("step %d: a settled container does not start again: %v", steps, err)
			}
		}
		w.forget("u1")
		if !completed && len(w.pods["n/p2"].Containers) == 0 {
			w.admit("u2", "p2", "app", []string{"c"}, 100, 40)
		}
		for range 2 {
			if err := a.ReapOnce(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		last := prepare(t, a, "c")
		if len(a.Ledger().Slices()) != 1 || !reflect.DeepEqual(w.saved.Slices(), []xpu.Slice{last}) ||
			len(w.files) != 1 || len(w.pages) != 1 || !reflect.DeepEqual(w.cdi, []string{last.Key}) {
			t.Fatalf("killed after %d writes, left: ledger %v, disk %v, files %v, pages %v, cdi %v",
				steps, a.Ledger().Slices(), w.saved.Slices(), w.files, w.pages, w.cdi)
		}
	}
}

// The host's own command writes the same ledger while the agent runs.
func TestSlicesOfTheHostAreNeitherGivenAgainNorReaped(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 60, 30)
	a := w.start(t)
	for i, card := range a.Cards { // 50 % of each card
		next, _, err := w.saved.PutHost(a.Cards, fmt.Sprintf("h%d", i), card.UUID, xpu.Grant{CoresPercent: 50, MemoryMiB: 1024})
		if err != nil {
			t.Fatal(err)
		}
		w.saved = next
	}
	hosts := len(a.Cards)
	wantError(t, a.Prepare(context.Background(), []string{"a"}), "no room", "50 % cores")
	for range 3 {
		if err := a.ReapOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(a.Ledger().Slices()); got != hosts {
		t.Fatalf("%d slices of the host are left of %d", got, hosts)
	}
	w.saved = w.saved.Release(xpu.HostOwner("h0"))
	prepare(t, a, "a")
	if len(w.cdi) != hosts {
		t.Errorf("CDI entries %v, want those of the host and the pod", w.cdi)
	}
}
