// SPDX-License-Identifier: Apache-2.0

package xpu

// Room is what healthy cards could still give out, in the units of the three resources. A card to which
// no further share can come has no room, whatever is left of it: one with all its memory taken, for
// instance, has no cores to give. One whose cores are all promised has: best-effort shares need none.
func Room(cards []Card, held []Slice) Counts {
	used := use(held)
	var room Counts
	for _, card := range cards {
		u := used[card.UUID]
		if !card.Healthy || u.shares() >= card.Split || u.memory >= card.MemoryMiB {
			continue
		}
		room.Number += card.Split - u.shares()
		room.Cores += max(FullCores-u.cores, 0)
		room.MemoryGiB += int((card.MemoryMiB - u.memory) / MiBPerGiB)
	}
	return room
}
