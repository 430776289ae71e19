// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"context"
	"errors"
	"maps"
	"math"
	"slices"

	"flexai.io/xpu/cluster/live"
	"flexai.io/xpu/cluster/modes"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/trim"
	"flexai.io/xpu/cluster/xpu"
)

const (
	// stillActive is how long after its last sign of life a slice counts as active.
	stillActive = int64(200e6)
	// longestOwed: a TAT further ahead than this is nonsense, since a tenant can write it.
	longestOwed = int64(60e9)
	// abandoned is how long an epoch may stay odd before its writer counts as killed.
	abandoned = int64(1e9)
)

// keeper owns what is known of the slices. One goroutine uses it.
type keeper struct {
	Deps
	slices  map[string]*tended // by key
	cards   map[string]*card   // by UUID
	notices notices
	nextly  struct{ find, scan, second int64 }
}

// tended is one slice that is looked after.
type tended struct {
	slice    xpu.Slice
	pages    *live.Slice
	config   pages.Config
	members  map[int]*member // by slot
	parts    []*part         // as the cards of the config page
	oddSince int64
	obituary struct { // how many ends were told since when
		since int64
		told  int
	}
}

// part is one card of a slice.
type part struct {
	uuid     string
	use      pages.CardUse // as last read
	known    bool
	active   int64 // last sign of life
	held     uint64
	heldAt   int64 // when held changed last
	history  trim.History
	ratio    trim.Ratio
	recent   trim.Use
	greedy   bool   // used more than its share over the last seconds
	overFull int64  // since when NVML has seen it above its quota
	overhead uint64 // what NVML showed beyond the slots when nothing moved
	compared bool   // overhead is known
}

// card is what is known of one card.
type card struct {
	uuid     string
	timeline trim.Timeline
	windows  []trim.Window // waiting for the charges of their time
	listing  *look         // waiting for a tick without changes of memory
	context  uint64        // what a context costs here; 0 while not known
	foreign  map[int]int64 // pid: since when
	// unsampled says that there never are samples, so that their absence is no trouble.
	unsampled bool
	// coveredAt is when samples last covered it, or nobody computed.
	coveredAt int64
}

func newKeeper(deps Deps) *keeper {
	return &keeper{Deps: deps, slices: map[string]*tended{}, cards: map[string]*card{},
		notices: notices{log: deps.Log, said: map[string]bool{}}}
}

func (k *keeper) close() {
	for _, one := range k.slices {
		one.pages.Close()
	}
}

// tick is one turn: read all pages, decide, write what changed.
func (k *keeper) tick(ctx context.Context, at Instant) {
	now := at.MonoNs
	if now >= k.nextly.find {
		k.nextly.find = now + findEvery
		k.find()
	}
	scan := now >= k.nextly.scan
	if scan {
		k.nextly.scan = now + scanEvery
	}
	for _, one := range k.slices {
		k.read(one, now, scan)
	}
	k.settleWindows(now)
	for _, one := range k.cards {
		k.settleListing(ctx, one, now)
	}
	grants := k.decide(now)
	trims := map[*part]uint32{}
	if now >= k.nextly.second {
		k.nextly.second = now + secondEvery
		trims = k.trims(ctx, now)
		if k.Observe != nil {
			k.Observe(k.seen(now))
		}
	}
	for _, one := range k.slices {
		k.publish(one, grants, trims, now)
	}
}

// find opens the pages of slices that are new or started anew, and lets go of those that ended.
func (k *keeper) find() {
	held, err := k.Slices()
	if err != nil {
		k.notices.say("ledger", "node ledger not read; looking after the slices known so far", "error", err)
		return
	}
	k.notices.unsay("ledger", "node ledger read again")
	there := map[string]bool{}
	for _, slice := range held {
		there[slice.Key] = true
		known := k.slices[slice.Key]
		if known != nil && known.slice.Owner == slice.Owner && !known.pages.Replaced() {
			known.slice = slice // resized, perhaps
			continue
		}
		k.forget(slice.Key)
		k.open(slice)
	}
	for key := range k.slices {
		if !there[key] {
			k.forget(key)
		}
	}
}

func (k *keeper) forget(key string) {
	if known := k.slices[key]; known != nil {
		known.pages.Close()
		delete(k.slices, key)
		k.notices.drop(key)
	}
}

func (k *keeper) open(slice xpu.Slice) {
	opened, err := live.Open(k.Pages(slice))
	if err != nil {
		// Its files are written after the ledger, so a moment of this is no news; findEvery looks again.
		k.Log.Debug("slice has no pages yet", "key", slice.Key, "error", err)
		return
	}
	one := &tended{slice: slice, pages: opened, members: map[int]*member{}}
	k.slices[slice.Key] = one
	if !k.readConfig(one, k.Now().MonoNs) {
		return
	}
	for i, entry := range one.config.Cards {
		one.parts = append(one.parts, &part{uuid: entry.UUID})
		if k.cards[entry.UUID] == nil {
			k.cards[entry.UUID] = &card{uuid: entry.UUID, foreign: map[int]int64{}}
		}
		// What a predecessor of ours learned.
		if known := k.cards[entry.UUID]; known.context == 0 {
			known.context = one.config.Cards[i].ContextBytes
		}
	}
}

// readConfig keeps the former grant while somebody writes it.
func (k *keeper) readConfig(one *tended, now int64) bool {
	config, err := one.pages.Config()
	switch {
	case errors.Is(err, live.ErrBeingWritten):
		if one.oddSince == 0 {
			one.oddSince = now
		}
		return len(one.config.Cards) > 0
	case err != nil:
		k.notices.say(one.slice.Key+" config", "config page of a slice is damaged", "key", one.slice.Key, "error", err)
		return false
	}
	one.oddSince = 0
	if one.parts != nil && len(config.Cards) != len(one.parts) {
		k.notices.say(one.slice.Key+" config", "config page of a slice changed its cards", "key", one.slice.Key)
		return false
	}
	one.config = config
	return true
}

// read takes what the slice's pages say now.
func (k *keeper) read(one *tended, now int64, scan bool) {
	head, err := one.pages.Ledger()
	if err != nil {
		k.notices.say(one.slice.Key+" ledger", "ledger page of a slice is damaged; its tenant can write it",
			"key", one.slice.Key, "owner", one.slice.Owner.String(), "error", err)
		return
	}
	stirred := false
	for i, p := range one.parts {
		stirred = p.read(head.Cards[i], now) || stirred
	}
	if scan || stirred || len(one.members) > 0 {
		k.readConfig(one, now)
		k.scan(one, head.SlotsUsed, now, scan)
	}
}

// read notes what changed. Nothing of it is trusted further than its own tenant: who writes here as he
// likes changes his own correction within its limits and how long his neighbours wait to borrow.
func (p *part) read(use pages.CardUse, now int64) (stirred bool) {
	stirred = p.known && (use.Launches != p.use.Launches || use.ChargedNs != p.use.ChargedNs ||
		use.ThrottledNs != p.use.ThrottledNs)
	owes := use.TatNs > now && use.TatNs < now+longestOwed
	if stirred || owes {
		p.active = now
	}
	p.use, p.known = use, true
	p.history.Add(now, use.ChargedNs)
	return stirred
}

func (p *part) isActive(now int64) bool { return p.active != 0 && now-p.active < stillActive }

// wanted are the cards on which somebody of ours lives.
func (k *keeper) wanted() map[string]bool {
	wanted := map[string]bool{}
	for _, one := range k.slices {
		if len(one.members) == 0 {
			continue
		}
		for _, p := range one.parts {
			wanted[p.uuid] = true
		}
	}
	return wanted
}

// decide gives every part of every slice its grant by mode.
func (k *keeper) decide(now int64) map[*part]modes.Grant {
	type seat struct {
		part  *part
		slice modes.Slice
	}
	seats := map[string][]seat{}
	// In the order of keys: who is first in a draw must not change from tick to tick.
	for _, key := range slices.Sorted(maps.Keys(k.slices)) {
		one := k.slices[key]
		for i, p := range one.parts {
			entry := one.config.Cards[i]
			unmetered := entry.Mode == pages.ModeNone || entry.Mode != pages.ModePriority && entry.CoresPercent == 0
			seats[p.uuid] = append(seats[p.uuid], seat{p, modes.Slice{Mode: entry.Mode, Cores: entry.CoresPercent,
				Weight: entry.Weight, VID: entry.VID, Active: p.isActive(now),
				Unseen: unmetered && len(one.members) > 0}})
		}
	}
	grants := map[*part]modes.Grant{}
	for _, row := range seats {
		snapshot := make([]modes.Slice, len(row))
		for i := range row {
			snapshot[i] = row[i].slice
		}
		for i, grant := range modes.Decide(snapshot) {
			grants[row[i].part] = grant
		}
	}
	return grants
}

// publish writes a slice's page where it says something else than it should.
func (k *keeper) publish(one *tended, grants map[*part]modes.Grant, trims map[*part]uint32, now int64) {
	force := one.oddSince != 0 && now-one.oddSince > abandoned
	if len(one.parts) == 0 || one.oddSince != 0 && !force {
		return
	}
	edit := func(cards []pages.Card) {
		for i := range min(len(cards), len(one.parts)) {
			p := one.parts[i]
			if !k.resize(&cards[i], one.slice.Shares) {
				apply(&cards[i], grants[p])
			}
			if value, new := trims[p]; new {
				cards[i].TrimQ16 = value
			}
			k.applyMemory(&cards[i], one, i)
		}
		one.config.Cards = cards
	}
	// Decided on the copy first: most ticks change nothing, and then no page is read again.
	wanted := append([]pages.Card(nil), one.config.Cards...)
	before := append([]pages.Card(nil), wanted...)
	edit(wanted)
	if !force && slices.Equal(before, wanted) {
		return
	}
	_, err := one.pages.Change(edit, force)
	switch {
	case errors.Is(err, live.ErrBeingWritten):
	case err != nil:
		k.notices.say(one.slice.Key+" write", "config page of a slice not written", "key", one.slice.Key, "error", err)
	default:
		one.oddSince = 0
	}
}

// resize writes what the ledger promises now, and says whether that was new. Grants are of before then;
// the next tick decides anew.
func (k *keeper) resize(entry *pages.Card, shares []xpu.Share) bool {
	changed := false
	for _, share := range shares {
		changed = k.Regrant(entry, share) || changed
	}
	return changed
}

func apply(entry *pages.Card, grant modes.Grant) {
	entry.EffectiveQ16 = grant.EffectiveQ16
	entry.FrameUs, entry.WindowStartUs, entry.WindowUs = grant.FrameUs, grant.WindowStartUs, grant.WindowUs
	entry.Flags &^= pages.FlagPaused
	if grant.Paused {
		entry.Flags |= pages.FlagPaused
	}
}

// took takes a look at a card that NVML answered, or didn't.
func (k *keeper) took(one look) {
	known := k.cards[one.uuid]
	if known == nil {
		return
	}
	if one.err != nil {
		k.notices.say("nvml "+one.uuid, "NVML does not answer for a card; its trims stay as they are",
			"card", one.uuid, "error", one.err)
		return
	}
	k.notices.unsay("nvml "+one.uuid, "NVML answers again", "card", one.uuid)
	known.unsampled = one.unsampled
	if one.unsampled {
		k.notices.say("samples "+one.uuid, "NVML samples no processes of this card (a MIG instance); what its slices are charged "+
			"stays uncorrected", "card", one.uuid)
	} else if window, complete := known.timeline.Observe(one.seen); complete {
		known.windows = append(known.windows, window)
	}
	if known.timeline.Strange() {
		k.notices.say("clock "+one.uuid, "NVML's timestamps lie in the future; its samples are left out",
			"card", one.uuid)
	} else if len(one.seen.Samples) > 0 {
		k.notices.unsay("clock "+one.uuid, "NVML's timestamps are right again", "card", one.uuid)
	}
	if one.listed {
		known.listing = &one
	}
}

// clampQ16 is a ratio in 16.16.
func clampQ16(ratio float64) uint32 { return uint32(math.Round(ratio * pages.TrimOne)) }
