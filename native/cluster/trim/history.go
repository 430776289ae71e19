// SPDX-License-Identifier: Apache-2.0

package trim

// history is how many readings a History keeps: over three seconds at 40 a second, so that a sample of
// NVML that comes late still finds what was charged meanwhile.
const history = 128

// History is what a slice had been charged at the instants of its readings, oldest first.
type History struct {
	readings []charge
}

type charge struct {
	at int64
	ns uint64
}

// Add takes a reading. A count that went back is a new count: the page was replaced, or its tenant wrote
// to it; what was known before says nothing about it.
func (h *History) Add(at int64, chargedNs uint64) {
	if n := len(h.readings); n > 0 {
		last := h.readings[n-1]
		switch {
		case chargedNs < last.ns:
			h.readings = h.readings[:0]
		case at <= last.at:
			return
		}
	}
	if len(h.readings) == history {
		copy(h.readings, h.readings[1:])
		h.readings = h.readings[:history-1]
	}
	h.readings = append(h.readings, charge{at, chargedNs})
}

// Between is what was charged from one instant to another, evenly spread between readings; not known
// where the readings don't reach.
func (h *History) Between(from, to int64) (ns float64, known bool) {
	n := len(h.readings)
	if n < 2 || from < h.readings[0].at || to > h.readings[n-1].at || to < from {
		return 0, false
	}
	return h.until(to) - h.until(from), true
}

func (h *History) until(at int64) float64 {
	for i := len(h.readings) - 2; i >= 0; i-- {
		before, after := h.readings[i], h.readings[i+1]
		if before.at <= at {
			part := float64(at-before.at) / float64(after.at-before.at)
			return float64(before.ns) + part*float64(after.ns-before.ns)
		}
	}
	return float64(h.readings[0].ns)
}

// Reaches says whether readings up to that instant have been taken.
func (h *History) Reaches(at int64) bool {
	return len(h.readings) > 0 && h.readings[len(h.readings)-1].at >= at
}
