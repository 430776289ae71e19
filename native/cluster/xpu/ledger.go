// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"fmt"
	"sort"
)

// Ledger is which card holds what on one node. It is a value: every change makes a new one, so a
// change whose write to disk fails has not happened. Not safe for concurrent use by itself.
type Ledger struct {
	slices map[Owner]Slice
}

// NewLedger takes slices as they were stored. Two slices of one owner, a token held twice, or a
// virtual number used twice on a card can't come from a ledger of ours and are refused.
func NewLedger(stored []Slice) (Ledger, error) {
	ledger := Ledger{slices: map[Owner]Slice{}}
	tokens, vids := map[string]Owner{}, map[string]Owner{}
	for _, slice := range stored {
		if _, twice := ledger.slices[slice.Owner]; twice {
			return Ledger{}, fmt.Errorf("owner %s has two slices", slice.Owner)
		}
		for _, token := range slice.Tokens {
			if other, taken := tokens[token]; taken {
				return Ledger{}, fmt.Errorf("token %s is held by %s and %s", token, other, slice.Owner)
			}
			tokens[token] = slice.Owner
		}
		for _, share := range slice.Shares {
			if err := share.check(); err != nil {
				return Ledger{}, fmt.Errorf("slice of %s: %w", slice.Owner, err)
			}
			id := fmt.Sprintf("%s-%d", share.UUID, share.VID)
			if other, taken := vids[id]; taken {
				return Ledger{}, fmt.Errorf("virtual card %s is held by %s and %s", id, other, slice.Owner)
			}
			vids[id] = slice.Owner
		}
		ledger.slices[slice.Owner] = slice
	}
	return ledger, nil
}

// Slices lists what is held, in a stable order.
func (l Ledger) Slices() []Slice {
	all := make([]Slice, 0, len(l.slices))
	for _, slice := range l.slices {
		all = append(all, slice)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Owner.String() < all[j].Owner.String() })
	return all
}

// Of is the slice an owner holds.
func (l Ledger) Of(owner Owner) (Slice, bool) {
	slice, ok := l.slices[owner]
	return slice, ok
}

// Claim is a container that was given tokens and now needs its cards.
type Claim struct {
	Owner     Owner
	Namespace string
	Pod       string
	Tokens    []string
	Ask       Ask
	// Preferred are UUIDs the scheduler had in mind.
	Preferred []string
}

// Reserve settles a claim. The same claim again gives the same slice and changes nothing. Slices
// of others that hold one of the tokens end here and are returned: who deals the tokens out has
// handed them on, so the former owner no longer runs.
func (l Ledger) Reserve(cards []Card, claim Claim) (Ledger, Slice, []Slice, error) {
	key := Key(claim.Tokens)
	if held, ok := l.slices[claim.Owner]; ok && held.Key == key {
		return l, held, nil, nil
	}
	if claim.Ask.Cards < 1 {
		return l, Slice{}, nil, fmt.Errorf("%s holds no slice (any more) and the claim asks for no card", claim.Owner)
	}
	next, ended := l.without(claim)
	shares, err := Place(cards, next.Slices(), claim.Ask, claim.Preferred)
	if err != nil {
		return l, Slice{}, nil, err
	}
	slice := Slice{Key: key, Owner: claim.Owner, Namespace: claim.Namespace, Pod: claim.Pod,
		Tokens: append([]string(nil), claim.Tokens...), Shares: shares}
	next.slices[claim.Owner] = slice
	return next, slice, ended, nil
}

// without is the ledger after the claim's owner and former holders of its tokens let go.
func (l Ledger) without(claim Claim) (Ledger, []Slice) {
	wanted := map[string]bool{}
	for _, token := range claim.Tokens {
		wanted[token] = true
	}
	next := Ledger{slices: make(map[Owner]Slice, len(l.slices)+1)}
	var ended []Slice
	for _, slice := range l.Slices() {
		if slice.Owner == claim.Owner || holdsAny(slice, wanted) {
			ended = append(ended, slice)
			continue
		}
		next.slices[slice.Owner] = slice
	}
	return next, ended
}

func holdsAny(slice Slice, wanted map[string]bool) bool {
	for _, token := range slice.Tokens {
		if wanted[token] {
			return true
		}
	}
	return false
}

// Release ends the slice of an owner; an owner without one is no error.
func (l Ledger) Release(owner Owner) Ledger {
	next := Ledger{slices: make(map[Owner]Slice, len(l.slices))}
	for other, slice := range l.slices {
		if other != owner {
			next.slices[other] = slice
		}
	}
	return next
}
