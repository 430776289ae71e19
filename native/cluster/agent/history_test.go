// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"flexai.io/xpu/cluster/xpu"
)

// kubelet is a model of what the kubelet does with ids (reference/device-binding.md): it admits pods whole,
// hands plain init containers' ids on within a pod, starts containers in its order, and gives ids of ended
// pods to others without a word.
type kubelet struct {
	*world
	t       *testing.T
	seed    int64
	random  *rand.Rand
	agent   *Agent
	pods    []*podModel
	free    []string
	names   int
	running map[xpu.Owner]xpu.Slice // what each running container was started with
	kills   int
	ahead   int // slices that were settled before a start asked for them
	late    int // those of them whose containers had found no room before
}

type podModel struct {
	uid, name  string
	containers []*containerModel
	ended      bool
}

type containerModel struct {
	name   string
	init   bool // runs once, before the others
	done   bool
	counts xpu.Counts
	tokens []string
}

func (p *podModel) owner(c *containerModel) xpu.Owner {
	return xpu.Owner{PodUID: p.uid, Container: c.name}
}

const historyTokens = 24

func newKubelet(t *testing.T, seed int64) *kubelet {
	k := &kubelet{world: newWorld(), t: t, seed: seed, random: rand.New(rand.NewSource(seed)), running: map[xpu.Owner]xpu.Slice{}}
	k.free = count("t", historyTokens)
	k.agent = k.world.start(t)
	return k
}

func (k *kubelet) fatalf(format string, args ...any) {
	k.t.Helper()
	k.t.Fatalf("seed %d: "+format, append([]any{k.seed}, args...)...)
}

// someCounts are asks of all kinds, impossible ones too.
func (k *kubelet) someCounts() (xpu.Counts, *xpu.Shape) {
	switch k.random.Intn(7) {
	case 0:
		return xpu.Counts{Number: 1 + k.random.Intn(2)}, nil
	case 1:
		shape := xpu.Shape{Number: 2, Cores: 5 * (1 + k.random.Intn(12)), MemoryGiB: 1 + k.random.Intn(12)}
		return xpu.Counts{Number: 2, Cores: 2 * shape.Cores, MemoryGiB: 2 * shape.MemoryGiB}, &shape
	case 2:
		return xpu.Counts{Number: 2, Cores: 40, MemoryGiB: 6}, nil // not seen by the webhook
	case 3:
		return xpu.Counts{Number: 1, MemoryGiB: 1 + k.random.Intn(44)}, nil
	default:
		return xpu.Counts{Number: 1, Cores: 5 * (1 + k.random.Intn(20)), MemoryGiB: k.random.Intn(20)}, nil
	}
}

// arrive admits a pod of one to three containers, if there are ids for all of them.
func (k *kubelet) arrive() {
	k.purge()
	k.names++
	pod := &podModel{uid: fmt.Sprint("u", k.names), name: fmt.Sprint("p", k.names)}
	known := Pod{UID: pod.uid, Namespace: "n", Name: pod.name, Class: []string{"", "", "elastic", "guaranteed", "best-effort"}[k.random.Intn(5)]}
	var reuse []string
	shapes := ""
	for i := range 1 + k.random.Intn(3) {
		c := &containerModel{name: fmt.Sprint("c", i), init: i == 0 && k.random.Intn(3) == 0}
		var shape *xpu.Shape
		c.counts, shape = k.someCounts()
		if i == 1 && pod.containers[0].init { // the same ids ask for the same; see choose
			c.counts, shape = pod.containers[0].counts, nil
		}
		if !c.init {
			known.Containers = append(known.Containers, c.name)
		}
		if shape != nil && i == 0 && !c.init {
			shapes = fmt.Sprintf(`{%q:{"number":%d,"cores":%d,"memoryGiB":%d}}`, c.name, shape.Number, shape.Cores, shape.MemoryGiB)
		}
		if need := c.counts.Number - len(reuse); need > len(k.free) {
			k.free = append(k.free, pod.ids()...) // not admitted
			return
		}
		for range c.counts.Number {
			c.tokens = append(c.tokens, k.take(&reuse))
		}
		if c.init {
			reuse = append([]string(nil), c.tokens...)
		}
		pod.containers = append(pod.containers, c)
	}
	known.Shapes = shapes
	if k.random.Intn(2) == 0 {
		known.Preference = fmt.Sprintf("0,GPU-%d,GPU,1,1,0:", k.random.Intn(3))
	}
	known.Limits = map[string]Limits{}
	for _, c := range pod.containers {
		known.Limits[c.name] = Limits{names.Number: c.counts.Number, names.Cores: c.counts.Cores, names.Memory: c.counts.MemoryGiB}
	}
	k.world.pods["n/"+pod.name] = known
	for _, c := range pod.containers {
		k.agent.Dealt(c.tokens) // before its checkpoint tells
		before := len(k.entries)
		k.assign(pod.uid, c.name, c.tokens, c.counts.Cores, c.counts.MemoryGiB)
		if whole := k.entries; k.random.Intn(2) == 0 && len(whole) > before {
			k.entries = whole[:before+1] // written between two of its resources
			k.foresees()
			k.entries = whole
		}
		k.free = slices.DeleteFunc(k.free, func(id string) bool { return slices.Contains(c.tokens, id) })
	}
	k.pods = append(k.pods, pod)
	k.show()
}

// ids are what the pod holds, each once.
func (p *podModel) ids() []string {
	var ids []string
	for _, c := range p.containers {
		for _, id := range c.tokens {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

func (k *kubelet) take(reuse *[]string) string {
	from := reuse
	if len(*reuse) == 0 {
		from = &k.free
	}
	i := k.random.Intn(len(*from))
	id := (*from)[i]
	*from = slices.Delete(*from, i, i+1)
	return id
}

// show is what PodResources tells: no ended pods, no plain init containers.
func (k *kubelet) show() {
	k.holdings = nil
	for _, pod := range k.pods {
		for _, c := range pod.containers {
			if !pod.ended && !c.init {
				k.holdings = append(k.holdings, Holding{"n", pod.name, c.name, c.tokens})
			}
		}
	}
}

// purge forgets ended pods: the kubelet does so when it admits the next one.
func (k *kubelet) purge() {
	k.pods = slices.DeleteFunc(k.pods, func(pod *podModel) bool {
		if pod.ended {
			k.forget(pod.uid)
			k.free = append(k.free, pod.ids()...)
		}
		return pod.ended
	})
}

// runs starts a container that may start now.
func (k *kubelet) runs(pod *podModel, c *containerModel) {
	if pod.ended || c.done {
		return
	}
	for _, other := range pod.containers {
		if other.init && other != c && !other.done {
			return
		}
	}
	if _, already := k.running[pod.owner(c)]; already {
		return
	}
	err := k.agent.Prepare(context.Background(), c.tokens)
	if errors.Is(err, errKilled) {
		k.revive()
		return
	}
	if err != nil {
		return // refused: what it may have cost others is judged below
	}
	for _, slice := range k.agent.Ledger().Slices() {
		if slice.Key == xpu.Key(c.tokens) {
			k.running[pod.owner(c)] = slice
			return
		}
	}
	k.fatalf("%s was started without a slice", pod.owner(c))
}

// revive is a new life of the plugin.
func (k *kubelet) revive() {
	k.kills++
	k.failAfter = -1
	k.agent = k.world.start(k.t)
}

func (k *kubelet) each(do func(*podModel, *containerModel)) {
	for _, pod := range k.pods {
		for _, c := range pod.containers {
			do(pod, c)
		}
	}
}

func (k *kubelet) stops(pod *podModel, c *containerModel) {
	delete(k.running, pod.owner(c))
	c.done = c.done || c.init
}

func (k *kubelet) ends(pod *podModel) {
	for _, c := range pod.containers {
		delete(k.running, pod.owner(c))
	}
	pod.ended = true
	if k.random.Intn(2) == 0 {
		delete(k.world.pods, "n/"+pod.name)
	} else {
		k.annotate(pod.name, func(p *Pod) { p.Finished = true })
	}
	k.show()
}

func (k *kubelet) somePod(do func(*podModel)) {
	if len(k.pods) > 0 {
		do(k.pods[k.random.Intn(len(k.pods))])
	}
}

func (k *kubelet) someContainer(do func(*podModel, *containerModel)) {
	k.somePod(func(pod *podModel) { do(pod, pod.containers[k.random.Intn(len(pod.containers))]) })
}

// foresees is a look at what was dealt. A write that fails is the plugin's end.
func (k *kubelet) foresees() {
	before, dealt := len(k.saved.Slices()), maps.Clone(k.agent.ahead.dealt)
	k.agent.settleDealt()
	k.ahead += max(0, len(k.saved.Slices())-before)
	for key := range k.agent.ahead.settled {
		if dealt[key].noRoom {
			k.late++
		}
	}
	if k.failAfter == 0 {
		k.revive()
	}
}

func (k *kubelet) reaps() {
	if err := k.agent.ReapOnce(context.Background()); errors.Is(err, errKilled) {
		k.revive()
	}
}

// step does one thing of those that happen to a node.
func (k *kubelet) step() string {
	k.noAPI, k.noList, k.watched = k.random.Intn(8) == 0, k.random.Intn(8) == 0, k.random.Intn(3) > 0
	k.failAfter = -1
	if k.random.Intn(6) == 0 {
		k.failAfter = k.random.Intn(4)
	}
	what := k.random.Intn(23)
	switch {
	case what < 5:
		k.arrive()
		return "a pod arrives"
	case what < 12:
		k.someContainer(k.runs)
		return "a container starts"
	case what < 15:
		k.someContainer(k.stops)
		return "a container dies"
	case what < 17:
		k.somePod(k.ends)
		return "a pod ends"
	case what < 18:
		k.reaps()
		return "a look for the ended"
	case what < 19:
		cards := append([]xpu.Card(nil), k.agent.Cards...)
		sick := &cards[k.random.Intn(len(cards))]
		sick.Healthy = !sick.Healthy
		k.agent.SetCards(cards)
		return "a card's health changes"
	case what < 22:
		k.foresees()
		return "slices are settled ahead"
	case k.random.Intn(2) == 0:
		k.revive()
		return "the plugin starts anew"
	default:
		k.running = map[xpu.Owner]xpu.Slice{}
		k.each(func(_ *podModel, c *containerModel) { c.done = false })
		clear(k.files)
		clear(k.world.pages)
		k.revive()
		k.each(k.runs)
		return "the node boots"
	}
}

// judge checks what must hold at every instant.
func (k *kubelet) judge(after string) {
	k.t.Helper()
	ledger := k.agent.Ledger()
	if !reflect.DeepEqual(ledger.Slices(), k.saved.Slices()) {
		k.fatalf("after %s: disk and memory tell different ledgers", after)
	}
	if _, err := xpu.NewLedger(ledger.Slices()); err != nil {
		k.fatalf("after %s: %v", after, err)
	}
	k.sums(after, ledger.Slices())
	seen := map[string]xpu.Owner{}
	for owner, slice := range k.running {
		for _, token := range slice.Tokens {
			if other, twice := seen[token]; twice {
				k.fatalf("after %s: %s and %s run with id %s", after, owner, other, token)
			}
			seen[token] = owner
		}
		held, ok := ledger.Of(slice.Owner)
		if !ok || !reflect.DeepEqual(held, slice) {
			k.fatalf("after %s: %s runs with %+v, the ledger says %+v", after, owner, slice, held)
		}
		if !reflect.DeepEqual(k.files[slice.Owner.String()], slice) || !k.world.pages[slice.Key] || !slices.Contains(k.cdi, slice.Key) {
			k.fatalf("after %s: %s runs, and its files are gone", after, owner)
		}
	}
}

// sums: no card is promised more than it has.
func (k *kubelet) sums(after string, held []xpu.Slice) {
	k.t.Helper()
	cores, memory, vids := map[string]int{}, map[string]uint64{}, map[string]bool{}
	for _, slice := range held {
		for _, share := range slice.Shares {
			cores[share.UUID] += share.CoresPercent
			memory[share.UUID] += share.MemoryMiB
			vid := share.UUID + "/" + strconv.Itoa(share.VID)
			if vids[vid] || cores[share.UUID] > xpu.FullCores || memory[share.UUID] > 40960 {
				k.fatalf("after %s: card %s is over-promised: %d %%, %d MiB, virtual card twice: %t",
					after, share.UUID, cores[share.UUID], memory[share.UUID], vids[vid])
			}
			vids[vid] = true
		}
	}
}

// leaves: when all pods have ended, nothing is left of them.
func (k *kubelet) leaves() {
	k.t.Helper()
	k.noAPI, k.noList, k.failAfter = false, false, -1
	for _, pod := range k.pods {
		k.ends(pod)
	}
	k.purge()
	for range 2 {
		k.reaps()
	}
	if left := k.agent.Ledger().Slices(); len(left)+len(k.files)+len(k.world.pages)+len(k.cdi) > 0 {
		k.fatalf("left behind: ledger %v, files %v, pages %v, CDI %v", left, k.files, k.world.pages, k.cdi)
	}
	if len(k.free) != historyTokens {
		k.fatalf("the model lost ids: %d of %d", len(k.free), historyTokens)
	}
}

// TestInvariantsOverRandomHistories checks reference/device-binding.md's invariants while all of this
// happens in any order: Σ slices ≤ card, one owner per id, a running container's slice never changes,
// nothing is forgotten or left behind. HISTORIES sets how many.
func TestInvariantsOverRandomHistories(t *testing.T) {
	histories := int64(100)
	if text := os.Getenv("HISTORIES"); text != "" {
		var err error
		if histories, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	started, kills, crowded, ahead, late := 0, 0, 0, 0, 0
	for seed := range histories {
		k := newKubelet(t, seed)
		for range 200 {
			k.judge(k.step())
			started += len(k.running)
			if len(k.running) > 4 {
				crowded++
			}
		}
		kills += k.kills
		ahead += k.ahead
		late += k.late
		k.leaves()
	}
	// A model that admits nobody would prove nothing.
	told := fmt.Sprintf("%d histories: %d container-steps, %d lives of the plugin, %d crowded steps, %d slices ahead, %d of them late", histories,
		started, kills, crowded, ahead, late)
	if started == 0 || int64(kills) < histories || int64(crowded) < histories || int64(ahead) < histories || 10*int64(late) < histories {
		t.Error(told)
	}
	t.Log(told)
}
