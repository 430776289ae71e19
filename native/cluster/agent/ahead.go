// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"flexai.io/xpu/cluster/checkpoint"
	"flexai.io/xpu/cluster/xpu"
)

const (
	// The kubelet notes what it dealt at once; a pod that isn't seen by aheadFor is left to its start.
	aheadFor   = 10 * time.Second
	aheadFirst = 2 * time.Millisecond
	aheadMost  = 250 * time.Millisecond
)

// dealt is a set of ids that the kubelet has dealt to a container that has not started.
type dealt struct {
	tokens []string
	at     time.Time
	// noRoom: what it asks for didn't fit when it was looked at last.
	noRoom bool
}

// ahead is what is known of containers between their admission and their first start. A sandbox takes the
// kubelet a while; meanwhile their slices are settled, so that the start itself waits for no disk. Those that find
// no room are settled when there is some: the kubelet comes back to them after a pause.
type ahead struct {
	news chan struct{}

	mutex   sync.Mutex
	dealt   map[string]dealt     // by key
	settled map[string]xpu.Owner // by key; its files are as a start wants them
}

func newAhead() ahead {
	return ahead{news: make(chan struct{}, 1), dealt: map[string]dealt{}, settled: map[string]xpu.Owner{}}
}

// Dealt notes that the kubelet has dealt these ids. It never waits.
func (a *Agent) Dealt(tokens []string) {
	key := xpu.Key(tokens)
	a.ahead.mutex.Lock()
	a.ahead.dealt[key] = dealt{tokens: slices.Clone(tokens), at: a.Now()}
	delete(a.ahead.settled, key) // whom they were settled for has ended, or isn't the only one to hold them
	a.ahead.mutex.Unlock()
	a.ahead.poke()
}

// poke asks for a look. It never waits.
func (h *ahead) poke() {
	select {
	case h.news <- struct{}{}:
	default:
	}
}

// wait keeps the ids of a container whose start found no room, until it starts again.
func (h *ahead) wait(tokens []string, now time.Time) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.dealt[xpu.Key(tokens)] = dealt{tokens: slices.Clone(tokens), at: now, noRoom: true}
}

// starts is the owner for whom these ids' slice stands ready, once: every later start wants fresh files.
func (h *ahead) starts(key string) (owner xpu.Owner, ready bool) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	owner, ready = h.settled[key]
	delete(h.dealt, key)
	delete(h.settled, key)
	return owner, ready
}

// ready marks a slice, unless its container has started meanwhile.
func (h *ahead) ready(key string, owner xpu.Owner) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if _, waits := h.dealt[key]; waits {
		h.settled[key] = owner
	}
	delete(h.dealt, key)
}

// crowded marks ids as waiting for room, unless their container has started meanwhile.
func (h *ahead) crowded(key string) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if one, waits := h.dealt[key]; waits {
		one.noRoom = true
		h.dealt[key] = one
	}
}

func (h *ahead) drop(key string) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	delete(h.dealt, key)
}

// waiting are those dealt since, and those that wait for room, who came first first; others are forgotten.
func (h *ahead) waiting(since time.Time) []dealt {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	var all []dealt
	for key, one := range h.dealt {
		if !one.noRoom && one.at.Before(since) {
			delete(h.dealt, key)
			continue
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(one, other dealt) int { return one.at.Compare(other.at) })
	return all
}

// SettleAhead settles what was dealt until ctx ends.
func (a *Agent) SettleAhead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.ahead.news:
		}
		// The kubelet's checkpoint and the watch of its pods follow within moments.
		for pause := aheadFirst; a.settleDealt() > 0; pause = min(2*pause, aheadMost) {
			select {
			case <-ctx.Done():
				return
			case <-a.ahead.news:
				pause = aheadFirst
			case <-time.After(pause):
			}
		}
	}
}

// settleDealt is one look; how many still wait to be seen. Refusals are no concern of it: a start says them.
func (a *Agent) settleDealt() int {
	waiting := a.ahead.waiting(a.Now().Add(-aheadFor))
	if len(waiting) == 0 {
		return 0
	}
	entries, err := a.Kubelet.Checkpoint()
	if err != nil {
		return unseen(waiting)
	}
	ledger, cards := a.Ledger(), a.KnownCards()
	var orders []*order
	left := 0
	for _, one := range waiting {
		key := xpu.Key(one.tokens)
		claim, seen := a.foresee(entries, one.tokens)
		switch held, ok := ledger.Of(claim.Owner); {
		case !seen && !one.noRoom:
			left++
		case !seen, claim.Ask.Cards == 0, ok && held.Key == key:
			a.ahead.drop(key) // its start decides
		case one.noRoom && !fits(ledger, cards, claim):
		default:
			orders = append(orders, a.commits.add(claim))
		}
	}
	for _, one := range orders {
		a.settledAhead(one, a.await(one))
	}
	if len(orders) > 0 {
		a.Changed()
	}
	return left
}

// settledAhead takes note of what became of an order.
func (a *Agent) settledAhead(one *order, err error) {
	key := xpu.Key(one.claim.Tokens)
	switch {
	case err == nil:
		a.ahead.ready(key, one.claim.Owner)
		a.note(one.claim, nil)
	case noRoom(err):
		a.ahead.crowded(key)
	default:
		a.ahead.drop(key)
	}
}

func unseen(waiting []dealt) int {
	count := 0
	for _, one := range waiting {
		if !one.noRoom {
			count++
		}
	}
	return count
}

func fits(ledger xpu.Ledger, cards []xpu.Card, claim xpu.Claim) bool {
	_, _, _, err := ledger.Reserve(cards, claim)
	return err == nil
}

// foresee is the claim that the start of these ids' container will make, as far as nobody needs to be asked;
// not seen are ids whose container isn't known yet. One that asks for no card is none to be foreseen.
func (a *Agent) foresee(entries []checkpoint.Entry, tokens []string) (claim xpu.Claim, seen bool) {
	holders := checkpoint.Holders(entries, a.Resources.Number, tokens)
	if len(holders) == 0 {
		return claim, false
	}
	pod, known := a.Known(holders[0].PodUID)
	if !known {
		return claim, false
	}
	name, certain := pod.heir(holders)
	if pod.Finished || !certain || a.shared(entries, holders, tokens) {
		return claim, true
	}
	if !a.whole(entries, pod) {
		return claim, false
	}
	holder, err := a.choose(holders, name)
	if err != nil {
		return claim, true
	}
	ask, err := pod.ask(name, a.counts(holder), a.Class)
	if err != nil {
		return claim, true
	}
	return xpu.Claim{Owner: xpu.Owner{PodUID: pod.UID, Container: name}, Namespace: pod.Namespace, Pod: pod.Name,
		Tokens: tokens, Ask: ask, Preferred: pod.preferred(name)}, true
}

// shared says whether a container other than these, or of another pod than the first of them, has some of the
// ids: an init container may be running with them.
func (a *Agent) shared(entries []checkpoint.Entry, holders []checkpoint.Container, tokens []string) bool {
	return slices.ContainsFunc(entries, func(entry checkpoint.Entry) bool {
		holds := func(c checkpoint.Container) bool { return c.PodUID == entry.PodUID && c.Name == entry.Container }
		one := entry.PodUID == holders[0].PodUID && slices.ContainsFunc(holders, holds)
		dealt := func(id string) bool { return slices.Contains(tokens, id) }
		return entry.Resource == a.Resources.Number && !one && slices.ContainsFunc(entry.IDs, dealt)
	})
}
