// SPDX-License-Identifier: Apache-2.0

package xpu

import "fmt"

// Counts are the totals a container requests, as the three resources state them.
type Counts struct {
	Number    int
	Cores     int
	MemoryGiB int
}

// Ask is what one container wants of each of its cards.
type Ask struct {
	Cards int
	// CoresPercent of each card; 0 is no compute limit.
	CoresPercent int
	// MemoryMiB of each card; 0 is all of the card's memory.
	MemoryMiB uint64
}

// Whole says that the ask is for cards nobody else shares.
func (a Ask) Whole() bool { return a.CoresPercent == FullCores && a.MemoryMiB == 0 }

func (a Ask) String() string {
	memory := "all memory"
	if a.MemoryMiB > 0 {
		memory = fmt.Sprintf("%d MiB", a.MemoryMiB)
	}
	return fmt.Sprintf("%d card(s) with %d %% cores and %s each", a.Cards, a.CoresPercent, memory)
}

// Settle turns a container's totals into an ask, or says why they make none.
//
// Several slices in one container are refused rather than divided: totals alone don't tell upstream's
// meaning (numbers per slice) from ours, and a wrong guess would grant a share nobody asked for.
func Settle(c Counts) (Ask, error) {
	switch {
	case c.Number < 0 || c.Cores < 0 || c.MemoryGiB < 0:
		return Ask{}, fmt.Errorf("negative request (vgpu-number %d, vgpu-cores %d, vgpu-memory-1Gi %d)",
			c.Number, c.Cores, c.MemoryGiB)
	case c.Number == 0:
		return Ask{}, fmt.Errorf("vgpu-cores %d and vgpu-memory-1Gi %d without vgpu-number; "+
			"add vgpu-number: 1", c.Cores, c.MemoryGiB)
	case c.Cores == 0 && c.MemoryGiB == 0:
		return Ask{Cards: c.Number, CoresPercent: FullCores}, nil
	case c.Number > 1:
		return Ask{}, fmt.Errorf("vgpu-number %d together with vgpu-cores %d, vgpu-memory-1Gi %d: several "+
			"slices in one container are not supported; ask for one, or for whole cards by number alone",
			c.Number, c.Cores, c.MemoryGiB)
	case c.Cores > FullCores:
		return Ask{}, fmt.Errorf("vgpu-cores %d on one card; the most is %d", c.Cores, FullCores)
	}
	return Ask{Cards: 1, CoresPercent: c.Cores, MemoryMiB: uint64(c.MemoryGiB) * MiBPerGiB}, nil
}
