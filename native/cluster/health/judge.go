// SPDX-License-Identifier: Apache-2.0

// Package health tells which cards are fit to take new slices. What runs on a sick card stays: only its
// owner can tell whether it still works.
package health

import (
	"fmt"
	"slices"
	"time"
)

// misses is how many looks in a row a card may leave unanswered; one look may fall into a driver's hiccup.
const misses = 2

// harmless are the XIDs that speak of a program's error, not of the card's.
var harmless = map[uint64]bool{
	13:  true, // graphics engine exception
	31:  true, // memory page fault
	43:  true, // a program's channel was stopped
	45:  true, // clean-up after a program's end
	68:  true, // video processor exception
	109: true, // context switch timeout
}

// Judge keeps in mind what was heard of each card. Time is a parameter; nothing here asks a driver.
type Judge struct {
	// Quiet is how long a card must answer without another critical XID before it counts as well again:
	// no driver says that the cause of one is gone.
	Quiet time.Duration
	cards map[string]*record
}

type record struct {
	xid    uint64 // the last critical one; 0: none, or long ago
	at     time.Time
	missed int
	answer string // why it didn't answer
}

// NewJudge begins with cards that are well.
func NewJudge(uuids []string, quiet time.Duration) *Judge {
	j := &Judge{Quiet: quiet, cards: map[string]*record{}}
	for _, uuid := range uuids {
		j.cards[uuid] = &record{}
	}
	return j
}

// Event takes note of an XID of these cards; nil, of one that can't be named, are all.
func (j *Judge) Event(uuids []string, xid uint64, now time.Time) {
	if harmless[xid] {
		return
	}
	for name, card := range j.cards {
		if uuids == nil || slices.Contains(uuids, name) {
			card.xid, card.at = xid, now
		}
	}
}

// Looked takes note of what the cards answered: nil, or why they didn't. Those not in it are missing.
func (j *Judge) Looked(answers map[string]error) {
	for uuid, card := range j.cards {
		err, here := answers[uuid]
		switch {
		case !here:
			card.missed, card.answer = card.missed+1, "it is not on the node"
		case err != nil:
			card.missed, card.answer = card.missed+1, err.Error()
		default:
			card.missed, card.answer = 0, ""
		}
	}
}

// Sick are the cards that should take no new slice now, with the reason.
func (j *Judge) Sick(now time.Time) map[string]string {
	sick := map[string]string{}
	for uuid, card := range j.cards {
		if card.xid != 0 && now.Sub(card.at) >= j.Quiet {
			card.xid = 0
		}
		switch {
		case card.missed >= misses:
			sick[uuid] = card.answer
		case card.xid != 0:
			sick[uuid] = fmt.Sprintf("critical XID %d", card.xid)
		}
	}
	return sick
}
