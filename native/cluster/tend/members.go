// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"fmt"

	"flexai.io/xpu/cluster/pages"
)

const (
	obituaries    = pages.MaxProcesses // as many as can live at once
	obituaryEvery = int64(60e9)
)

// member is a process that holds a slot of a slice.
type member struct {
	owner   uint64
	pid     int // in its container
	hostPID int // in our pid namespace; 0 where it can't be seen from there
	cgroup  string
	memory  [pages.MaxCards]uint64
	// context0 says for which cards the page granted nothing for contexts when the process came, so
	// that its slot can't hold one.
	context0 [pages.MaxCards]bool
}

// scan keeps the members true to the slots. Whether an owner lives is asked when a slot changes hands,
// and of all of them on a full scan.
func (k *keeper) scan(one *tended, used int, now int64, full bool) {
	slots, err := one.pages.Slots(used)
	if err != nil {
		k.notices.say(one.slice.Key+" ledger", "ledger page of a slice is damaged; its tenant can write it",
			"key", one.slice.Key, "owner", one.slice.Owner.String(), "error", err)
		return
	}
	for slot := range slots {
		known := one.members[slot]
		if known != nil && known.owner != slots[slot].Owner {
			// Cleared, and perhaps taken over, by another process of the slice.
			k.ended(one, slot, "another process of the slice")
			known = nil
		}
		if slots[slot].Owner == 0 {
			continue
		}
		if known != nil {
			known.memory = slots[slot].MemoryBytes
		}
		if known == nil || full {
			k.look(one, slot, slots[slot])
		}
	}
	k.sum(one, now)
}

// look asks the kernel about the owner of a slot.
func (k *keeper) look(one *tended, slot int, process pages.Process) {
	pid, alive, err := one.pages.Holder(slot)
	if err != nil {
		k.notices.say(one.slice.Key+" locks", "locks of a ledger page can't be read", "key", one.slice.Key, "error", err)
		return
	}
	if one.members[slot] == nil {
		one.members[slot] = k.join(one, process, pid, alive)
	}
	if !alive {
		cleared, err := one.pages.Clear(slot, process.Owner)
		if err != nil {
			k.notices.say(one.slice.Key+" clear", "slot of a dead process not cleared", "key", one.slice.Key, "error", err)
		}
		if cleared {
			one.members[slot].memory = process.MemoryBytes
			k.ended(one, slot, "the node agent")
		}
	}
}

func (k *keeper) join(one *tended, process pages.Process, pid int, alive bool) *member {
	made := &member{owner: process.Owner, pid: process.PID, hostPID: pid, memory: process.MemoryBytes}
	for i := range one.config.Cards {
		made.context0[i] = one.config.Cards[i].ContextBytes == 0
	}
	if !alive {
		return made
	}
	if pid == 0 {
		k.notices.say(one.slice.Key+" pids", "processes of a slice can't be seen from our pid namespace, so NVML "+
			"can't be compared with its charges; run with the host's pid namespace (hostPID)", "key", one.slice.Key)
		return made
	}
	made.cgroup, _ = k.Host.Cgroup(pid) // gone already: then nothing is compared with it
	return made
}

// ended says once what a process left and who cleared it.
func (k *keeper) ended(one *tended, slot int, by string) {
	gone := one.members[slot]
	delete(one.members, slot)
	if !k.mayTell(one) {
		return
	}
	details := []any{"key", one.slice.Key, "owner", one.slice.Owner.String(), "pid", gone.pid, "host_pid", gone.hostPID}
	for i, p := range one.parts {
		if gone.memory[i] > 0 {
			details = append(details, "card", p.uuid, "held", fmt.Sprintf("%d bytes", gone.memory[i]))
		}
	}
	k.Log.Info("process ended, its slot was cleared", append(details, "by", by)...)
}

// mayTell bounds what a tenant who fills slots without end can write into the log.
func (k *keeper) mayTell(one *tended) bool {
	now := k.Now().MonoNs
	if now-one.obituary.since > obituaryEvery {
		one.obituary.since, one.obituary.told = now, 0
	}
	one.obituary.told++
	if one.obituary.told > obituaries {
		k.notices.say(one.slice.Key+" ends", "processes of a slice end without end; only the first of each minute are told",
			"key", one.slice.Key, "owner", one.slice.Owner.String())
		return false
	}
	return true
}

// sum notes when what the slots hold changed last.
func (k *keeper) sum(one *tended, now int64) {
	for i, p := range one.parts {
		held := uint64(0)
		for _, m := range one.members {
			held += m.memory[i]
		}
		if held != p.held {
			p.held, p.heldAt = held, now
		}
	}
}
