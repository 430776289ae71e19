// SPDX-License-Identifier: Apache-2.0

package hostslice

import (
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/xpu"
)

// Listing is all that a machine has promised, and what is left of its cards.
type Listing struct {
	Slices []Listed `json:"slices"`
	Cards  []Card   `json:"cards"`
	// Problem says why the cards are not known: without them the ledger can be read all the same.
	Problem string `json:"problem"`
}

// Listed is one slice of one card.
type Listed struct {
	Terms
	// Owner is "host", or the pod's namespace/pod/container, or its UID where those aren't known.
	Owner string `json:"owner"`
	State State  `json:"state"`
	Use   Use    `json:"use"`
}

// State is whether a container can start with a slice.
type State string

// The states.
const (
	Ready       State = "ready"
	CardMissing State = "card-missing" // the card has left the machine
	Incomplete  State = "incomplete"   // files are missing or not what the ledger says; add it again
	Unknown     State = "unknown"      // the cards can't be read
)

// Card is one card and what is free of it.
type Card struct {
	Index            int    `json:"index"`
	UUID             string `json:"uuid"`
	Model            string `json:"model"`
	MemoryMiB        uint64 `json:"memory_mib"`
	FreeCoresPercent int    `json:"free_cores_percent"`
	FreeMemoryMiB    uint64 `json:"free_memory_mib"`
}

// List reads; it takes no lock and changes nothing.
func (m Manager) List() (Listing, error) {
	listing := Listing{Slices: []Listed{}, Cards: []Card{}}
	disk := store.At(m.Paths)
	ledger, err := disk.Load()
	if err != nil {
		return listing, err
	}
	cards, err := m.Discover()
	if err != nil {
		listing.Problem = err.Error()
	}
	held := ledger.Slices()
	for _, card := range cards {
		free := xpu.FreeOf(card, held)
		listing.Cards = append(listing.Cards, Card{Index: card.Index, UUID: card.UUID, Model: card.Model, MemoryMiB: card.MemoryMiB,
			FreeCoresPercent: free.CoresPercent, FreeMemoryMiB: free.MemoryMiB})
	}
	stands, err := disk.CDIStands(ledger, cards)
	entries := err == nil && stands
	for _, slice := range held {
		use, err := m.use(slice)
		if err != nil {
			return listing, err
		}
		state, err := m.state(disk, slice, cards, entries)
		if err != nil {
			return listing, err
		}
		if listing.Problem != "" {
			state = Unknown
		}
		for _, share := range slice.Shares {
			listing.Slices = append(listing.Slices, Listed{Terms: *terms(slice.Key, share), Owner: ownerOf(slice), State: state, Use: use})
		}
	}
	return listing, nil
}

func (m Manager) state(disk *store.Store, slice xpu.Slice, cards []xpu.Card, entries bool) (State, error) {
	for _, share := range slice.Shares {
		if !has(cards, share.UUID) {
			return CardMissing, nil
		}
	}
	if !slice.Owner.OfHost() {
		return Ready, nil // the kubelet has its files written at each start
	}
	lacking, err := disk.Lacking(slice)
	if len(lacking) > 0 || !entries || !m.applied(slice) {
		return Incomplete, err
	}
	return Ready, err
}

func has(cards []xpu.Card, uuid string) bool {
	for _, card := range cards {
		if card.UUID == uuid {
			return true
		}
	}
	return false
}

func ownerOf(slice xpu.Slice) string {
	switch {
	case slice.Owner.OfHost():
		return xpu.HostPodUID
	case slice.Pod != "":
		return slice.Namespace + "/" + slice.Pod + "/" + slice.Owner.Container
	default:
		return slice.Owner.String()
	}
}
