// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"context"
	"fmt"

	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/pages"
)

const (
	// step is the smallest change of a memory figure worth telling.
	step = 1 << 20
	// slack is what NVML may show above a quota before anyone is accused: code of modules, printf
	// buffers, granules.
	slack = 64 << 20
	// leastContext: less than this is no context of CUDA's.
	leastContext = 8 << 20
	// mostContext: more than this is memory that the library didn't count, or that a tenant hid.
	mostContext = 1 << 30
	// quiet is how long before NVML was asked no slot may have changed: charges come before memory is
	// taken, and both are read one after the other.
	quiet = int64(50e6)
)

// settleListing compares what NVML lists with what the slots hold, once a tick has shown that nothing
// moved meanwhile; otherwise the next listing may do.
func (k *keeper) settleListing(ctx context.Context, known *card, now int64) {
	listing := known.listing
	if listing == nil {
		return
	}
	known.listing = nil
	used := map[int]uint64{}
	for _, process := range listing.processes {
		used[process.PID] += process.Bytes
	}
	for _, one := range k.slices {
		for i, p := range one.parts {
			if p.uuid != known.uuid || len(one.members) == 0 {
				continue
			}
			k.compareQuota(ctx, one, i, used, now)
			if p.heldAt < listing.began-quiet {
				k.learn(known, one, i, used)
				total := one.total(used)
				p.overhead, p.compared = total-min(total, p.held), true
			}
		}
	}
	k.foreigners(ctx, known, listing.processes, now)
}

// total is what NVML shows of a slice's processes.
func (t *tended) total(used map[int]uint64) uint64 {
	sum := uint64(0)
	for _, m := range t.members {
		sum += used[m.hostPID]
	}
	return sum
}

// learn takes the least that a process held beyond its slot for the price of a context: of processes
// that came while contexts were charged nothing, for of the others the slot holds it already. Where such
// a slot holds more than NVML shows, the price was too high; so a tenant who hid memory from his slot to
// make contexts dear for his neighbours is put right by the first of them.
func (k *keeper) learn(known *card, one *tended, i int, used map[int]uint64) {
	for _, m := range one.members {
		shown := used[m.hostPID]
		if m.hostPID == 0 || shown == 0 {
			continue
		}
		price := int64(shown) - int64(m.memory[i])
		if !m.context0[i] {
			price = min(price, 0) + int64(known.context)
		}
		if price < leastContext || price > mostContext {
			continue
		}
		if known.context == 0 || uint64(price)+step <= known.context {
			known.context = uint64(price)
		}
	}
}

// applyMemory sets what contexts cost and what only NVML sees, where it changed by a step or more.
func (k *keeper) applyMemory(entry *pages.Card, one *tended, i int) {
	p := one.parts[i]
	if price := k.cards[p.uuid].context; distance(price, entry.ContextBytes) >= step {
		entry.ContextBytes = price
	}
	if len(one.members) == 0 {
		p.overhead, p.compared = 0, true
	}
	if p.compared && distance(p.overhead, entry.OverheadBytes) >= step {
		entry.OverheadBytes = p.overhead
	}
}

func distance(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// compareQuota accuses a slice whose processes hold more than its quota for a while.
func (k *keeper) compareQuota(ctx context.Context, one *tended, i int, used map[int]uint64, now int64) {
	p, entry := one.parts[i], one.config.Cards[i]
	allowed := entry.MemoryBytes + uint64(len(one.members))*k.cards[p.uuid].context + slack
	total := one.total(used)
	if entry.MemoryBytes == 0 || total <= allowed || entry.Flags&pages.FlagOversubscribe != 0 {
		p.overFull = 0
		return
	}
	if p.overFull == 0 {
		p.overFull = now
	}
	if p.overFull > 0 && now-p.overFull >= watched {
		p.overFull = -1 // said; until it is over
		k.accuse(ctx, one, 0, fmt.Sprintf("NVML shows %d MiB on card %s for 10 s, its quota is %d MiB",
			total>>20, p.uuid, entry.MemoryBytes>>20))
	}
}

// foreigners are processes on a card that are in a slice's container but hold none of its slots: they
// reached the driver past our library.
func (k *keeper) foreigners(ctx context.Context, known *card, listed []nvmlwatch.Process, now int64) {
	mine := map[int]bool{}
	for _, one := range k.slices {
		for _, m := range one.members {
			mine[m.hostPID] = true
		}
	}
	still := map[int]int64{}
	for _, process := range listed {
		if mine[process.PID] {
			continue
		}
		since, seen := known.foreign[process.PID]
		if !seen {
			since = now
		}
		// A process joins its slice with its first call that counts, so a new one gets some time.
		if since > 0 && now-since >= watched {
			since = -1 // judged; until it is gone
			k.judge(ctx, process)
		}
		still[process.PID] = since
	}
	known.foreign = still
}

func (k *keeper) judge(ctx context.Context, process nvmlwatch.Process) {
	cgroup, err := k.Host.Cgroup(process.PID)
	if err != nil || cgroup == "" || cgroup == "/" {
		return
	}
	for _, one := range k.slices {
		if one.houses(cgroup) {
			k.accuse(ctx, one, process.PID, fmt.Sprintf("process %d of its container uses a card past the library, "+
				"with %d MiB", process.PID, process.Bytes>>20))
			return
		}
	}
}

func (t *tended) houses(cgroup string) bool {
	for _, m := range t.members {
		if m.cgroup == cgroup {
			return true
		}
	}
	return ofPod(cgroup, t.slice.Owner)
}
