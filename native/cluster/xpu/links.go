// SPDX-License-Identifier: Apache-2.0

package xpu

// Values of the topology matrix: how fast two cards reach each other. NVLink adds 10 for each link.
const (
	LinkNVLink = 50
	LinkPIX    = 50 // one PCIe bridge between them
	LinkPXB    = 40 // several PCIe bridges
	LinkPHB    = 30 // a PCIe host bridge
	LinkNode   = 20 // within a NUMA node
	LinkSystem = 10 // across NUMA nodes
)

// NVLink is the value of two cards joined by so many NVLinks.
func NVLink(links int) int { return LinkNVLink + 10*links }

// joined are the first count of these cards, in their order, of which each two are joined by at least
// bandwidth; nil when there are none. Nodes have few cards, so trying in order is quick.
func joined(cards []Card, count, bandwidth int) []Card {
	return join(nil, cards, count, bandwidth)
}

func join(chosen, rest []Card, count, bandwidth int) []Card {
	if len(chosen) == count {
		return chosen
	}
	for i, card := range rest {
		if len(rest)-i < count-len(chosen) {
			return nil
		}
		if !reaches(card, chosen, bandwidth) {
			continue
		}
		with := append(append([]Card(nil), chosen...), card)
		if found := join(with, rest[i+1:], count, bandwidth); found != nil {
			return found
		}
	}
	return nil
}

func reaches(card Card, chosen []Card, bandwidth int) bool {
	for _, other := range chosen {
		if card.Links[other.UUID] < bandwidth {
			return false
		}
	}
	return true
}
