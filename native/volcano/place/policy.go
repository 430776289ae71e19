// SPDX-License-Identifier: Apache-2.0

package place

import "strings"

// Policy orders the cards that fit; prefers gets how full two cards would be afterwards.
type Policy struct {
	Name    string
	prefers func(a, b float64) bool
	worth   func(fill float64) float64
	linked  bool // several cards of a container are chosen as a group, by their links
	mixing  bool // see Mixing
}

// The policies differ by a comparator, and by whether links count. Topology orders single cards as
// binpack does, which keeps groups of cards whole.
var (
	Binpack = Policy{
		Name:    "binpack",
		prefers: func(a, b float64) bool { return a > b },
		worth:   func(fill float64) float64 { return fill },
	}
	Spread = Policy{
		Name:    "spread",
		prefers: func(a, b float64) bool { return a < b },
		worth:   func(fill float64) float64 { return 1 - fill },
	}
	Topology = Policy{
		Name: "topology", prefers: Binpack.prefers, worth: Binpack.worth, linked: true,
	}
)

// FirstFit is no policy that can be asked for; the others are measured beside it.
var FirstFit = Policy{
	Name: "first-fit", prefers: func(float64, float64) bool { return false },
	worth: func(float64) float64 { return 0 },
}

var policies = []Policy{Binpack, Spread, Topology}

// PolicyByName finds a policy; ok is false for a name that is none.
func PolicyByName(name string) (policy Policy, ok bool) {
	for _, known := range policies {
		if known.Name == name {
			return known, true
		}
	}
	return Policy{}, false
}

// PolicyNames lists the policies for messages.
func PolicyNames() string {
	names := make([]string, len(policies))
	for i, known := range policies {
		names[i] = known.Name
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

// Mixing is the policy that puts best-effort shares beside ones with reserved cores, whose idle
// time they use, rather than beside each other.
func (p Policy) Mixing() Policy {
	p.mixing = true
	return p
}

// candidate is a card that admits a share, and what the orders look at.
type candidate struct {
	card       int // position among the node's cards
	fill       float64
	reserved   bool // somebody has cores on it
	bestEffort int
	ties       int // its links to the other candidates
}

// better orders single cards; equal ones keep their order.
func (p Policy) better(a, b candidate, s Share) bool {
	if p.mixing && s.BestEffort {
		if a.bestEffort != b.bestEffort {
			return a.bestEffort < b.bestEffort
		}
		if a.reserved != b.reserved {
			return a.reserved
		}
	}
	if p.linked && a.fill == b.fill {
		return a.ties < b.ties // the one whose loss leaves the others linked best
	}
	return p.prefers(a.fill, b.fill)
}
