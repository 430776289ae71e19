// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"fmt"
	"math/rand"
	"testing"
)

// Over random histories of host and pods: no card is promised beyond what it has, a slice keeps its card
// and virtual number through resizes, and the same request again changes nothing.
func TestRandomHistoriesOfHostAndPods(t *testing.T) {
	cards := []Card{{UUID: "GPU-0", MemoryMiB: 16384, Split: 6, Healthy: true}, {UUID: "GPU-1", Index: 1, MemoryMiB: 40960, Split: 6, Healthy: true}}
	modes := []Mode{ModeHard, ModeElastic, ModeFixedShare, ModePriority}
	for seed := range int64(60) {
		random := rand.New(rand.NewSource(seed))
		ledger, _ := NewLedger(nil)
		for step := range 60 {
			name := fmt.Sprint("h", random.Intn(5))
			switch random.Intn(4) {
			case 0:
				ledger = ledger.Release(HostOwner(name))
			case 1:
				token := fmt.Sprint("t", random.Intn(8))
				next, _, _, err := ledger.Reserve(cards, Claim{Owner: Owner{PodUID: "p" + token, Container: "c"}, Tokens: []string{token},
					Ask: Ask{Cards: 1, CoresPercent: random.Intn(60), MemoryMiB: uint64(1 + random.Intn(9000))}})
				if err == nil {
					ledger = next
				}
			default:
				grant := Grant{CoresPercent: random.Intn(60), MemoryMiB: uint64(1 + random.Intn(9000)), Mode: modes[random.Intn(len(modes))]}
				held, there := ledger.Of(HostOwner(name))
				next, slice, err := ledger.PutHost(cards, name, AnyCard, grant)
				if err != nil {
					break
				}
				if there && (held.Shares[0].UUID != slice.Shares[0].UUID || held.Shares[0].VID != slice.Shares[0].VID) {
					t.Fatalf("seed %d, step %d: %v moved to %v", seed, step, held.Shares, slice.Shares)
				}
				if _, again, err := next.PutHost(cards, name, AnyCard, grant); err != nil || again.Shares[0] != slice.Shares[0] {
					t.Fatalf("seed %d, step %d: the same again is %v, %v, not %v", seed, step, again.Shares, err, slice.Shares)
				}
				ledger = next
			}
			for _, card := range cards {
				used := use(ledger.Slices())[card.UUID]
				if used.cores > FullCores || used.memory > card.MemoryMiB || used.shares() > card.Split {
					t.Fatalf("seed %d, step %d: %s is promised %+v", seed, step, card.UUID, used)
				}
			}
			if _, err := NewLedger(ledger.Slices()); err != nil {
				t.Fatalf("seed %d, step %d: not a ledger any more: %v", seed, step, err)
			}
		}
	}
}
