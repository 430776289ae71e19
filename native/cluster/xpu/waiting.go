// SPDX-License-Identifier: Apache-2.0

package xpu

import "time"

// Waiting remembers since when owners ask for room in vain. Who asks no more is forgotten: the kubelet
// retries for as long as the pod is to run here.
type Waiting struct {
	since map[Owner]refused
}

type refused struct {
	first, last time.Time
	claim       Claim
	why         string
	told        bool
}

// Starved is an owner that found no room for too long.
type Starved struct {
	Claim Claim
	Since time.Time
	Why   string
}

// Refused takes note of a claim that found no room.
func (w *Waiting) Refused(claim Claim, why string, now time.Time) {
	if w.since == nil {
		w.since = map[Owner]refused{}
	}
	one, known := w.since[claim.Owner]
	if !known {
		one.first = now
	}
	one.last, one.claim, one.why = now, claim, why
	w.since[claim.Owner] = one
}

// Settled takes note that an owner asks no more.
func (w *Waiting) Settled(owner Owner) { delete(w.since, owner) }

// Still says whether an owner waits.
func (w *Waiting) Still(owner Owner) bool {
	_, waits := w.since[owner]
	return waits
}

// lately is how recently an owner has to have asked to count as waiting: it may be gone since.
const lately = 30 * time.Second

// Due are those that have waited for patience and asked lately, each once. An owner that hasn't asked for
// as long as forget is gone.
func (w *Waiting) Due(now time.Time, patience, forget time.Duration) []Starved {
	var due []Starved
	for owner, one := range w.since {
		switch {
		case now.Sub(one.last) > forget:
			delete(w.since, owner)
		case !one.told && now.Sub(one.first) >= patience && now.Sub(one.last) <= lately:
			one.told = true
			w.since[owner] = one
			due = append(due, Starved{Claim: one.claim, Since: one.first, Why: one.why})
		}
	}
	return due
}
