// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"context"
	"fmt"

	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/trim"
)

const (
	// smallest change of a trim worth telling: every change has all processes read their grant again.
	smallest = 0.003 * pages.TrimOne
	// watched is over how long use and share are compared.
	watched = int64(10e9)
	// lateCharges is how long a window waits for them.
	lateCharges = int64(1e9)
	// settled is how much of it must be covered before anyone is accused.
	settled = int64(8e9)
)

// settleWindows compares windows of NVML with the charges of the same time, as far as those were read.
func (k *keeper) settleWindows(now int64) {
	for _, known := range k.cards {
		rest := known.windows[:0]
		for _, window := range known.windows {
			if !k.settle(known.uuid, window, now) {
				rest = append(rest, window)
			}
		}
		known.windows = rest
	}
}

// settle is false while charges up to the window's end are still to be read. Of a slice whose ledger
// can't be read they never come; its neighbours don't wait for it.
func (k *keeper) settle(uuid string, window trim.Window, now int64) bool {
	waited := now-window.To > lateCharges
	for _, one := range k.slices {
		for _, p := range one.parts {
			if p.uuid == uuid && !waited && !p.history.Reaches(window.To) {
				return false
			}
		}
	}
	for _, one := range k.slices {
		for i, p := range one.parts {
			if p.uuid == uuid {
				one.compare(i, window)
			}
		}
	}
	return true
}

func (t *tended) compare(i int, window trim.Window) {
	p, entry := t.parts[i], t.config.Cards[i]
	charged, known := p.history.Between(window.From, window.To)
	if !known {
		return
	}
	busy, others := 0.0, 0.0
	for _, ran := range window.Busy {
		others += ran
	}
	for _, m := range t.members {
		if m.hostPID == 0 {
			return
		}
		busy += window.Busy[m.hostPID]
	}
	others -= busy
	doubt := 0.0
	if busy > 0 && others < window.Doubt() {
		doubt = window.Doubt()
	}
	length := window.To - window.From
	p.ratio.Add(length, busy, charged, doubt)
	p.recent.Add(length, busy, charged, entry.Share()/100*float64(length), watched)
}

// trims are the new ones, of parts whose card was covered by samples.
func (k *keeper) trims(ctx context.Context, now int64) map[*part]uint32 {
	covered := map[string]bool{}
	for uuid, known := range k.cards {
		covered[uuid] = k.covered(known, now)
	}
	trims := map[*part]uint32{}
	for _, one := range k.slices {
		for i, p := range one.parts {
			entry := one.config.Cards[i]
			if len(one.members) == 0 || !limited(entry) || !covered[p.uuid] {
				continue
			}
			k.compareUse(ctx, one, i)
			if value, changed := p.trim(entry); changed {
				trims[p] = value
			}
		}
	}
	return trims
}

// covered says whether samples cover a card, and tells of a change that lasts while somebody computes.
func (k *keeper) covered(known *card, now int64) bool {
	covers := known.timeline.Coverage(now) >= trim.MinCoverage
	switch {
	case covers:
		known.coveredAt = now
		k.notices.unsay("coverage "+known.uuid, "NVML's samples cover a card again; its trims follow", "card", known.uuid)
	case known.coveredAt == 0 || known.unsampled || !k.computes(known.uuid, now):
		known.coveredAt = now
	case now-known.coveredAt > watched/2:
		k.notices.say("coverage "+known.uuid, "NVML's samples cover less than 80 % of the time; trims of this card stay "+
			"as they are", "card", known.uuid)
	}
	return covers
}

func (k *keeper) computes(uuid string, now int64) bool {
	for _, one := range k.slices {
		for _, p := range one.parts {
			if p.uuid == uuid && len(one.members) > 0 && p.isActive(now) {
				return true
			}
		}
	}
	return false
}

// limited says whether charges of this entry mean anything.
func limited(entry pages.Card) bool { return entry.Mode != pages.ModeNone && entry.Share() > 0 }

// trim is the value to publish; false where the page says it already.
func (p *part) trim(entry pages.Card) (uint32, bool) {
	ratio, known := p.ratio.Trim()
	if !known {
		return 0, false
	}
	if p.greedy {
		// Charges that are higher than the use would make a trim that hands out more.
		ratio = max(ratio, 1)
	}
	value := clampQ16(ratio)
	difference := float64(value) - entry.Trim()*pages.TrimOne
	return value, difference > smallest || difference < -smallest
}

// compareUse accuses a slice that NVML has seen above its share for a while. Credit for bursts, steps of
// the share and what NVML rounds are allowed for.
func (k *keeper) compareUse(ctx context.Context, one *tended, i int) {
	p, entry := one.parts[i], one.config.Cards[i]
	length, busy, charged, allowed := p.recent.Sums()
	if length < settled {
		return
	}
	credit := float64(entry.TauNs) * entry.Share() / 100
	greedy := busy > allowed*1.1+credit+0.05*float64(length)
	if greedy && !p.greedy {
		why := "NVML saw it use %.0f %% of the card for %d s, its share is %.0f %%, and its own ledger admits %.0f %%"
		k.accuse(ctx, one, 0, fmt.Sprintf(why, 100*busy/float64(length), length/1e9,
			100*allowed/float64(length), 100*charged/float64(length)))
	}
	p.greedy = greedy
}
