// SPDX-License-Identifier: Apache-2.0

package trim

import "math"

const (
	// compared is the busy time over which use and charges are compared.
	compared = int64(6e9)
	// prior is how much charged time "nothing to correct" weighs at the start; nothing once so much
	// as fading was charged.
	prior, fading = 50e6, 1e9
	// enough is the charged time below which a ratio is noise.
	enough = 100e6
	// idleAgain is how long nothing has to happen for the next work to count as a beginning.
	idleAgain = int64(5e9)
	// beginning is left out; see Ratio.
	beginning = int64(5e8)
	// Lowest and Highest: beyond them a correction can't be honest. xpu/limiter.h clamps alike.
	Lowest, Highest = 0.3, 1.2
)

// Ratio is the ratio of time used to time charged of one slice on one card over its last busy windows.
//
// Work is charged when it has been measured, up to some tenths of a second after it ran. So a sum over a
// while lacks the last charges and has those of what ran just before it; both cancel, as long as all
// windows weigh the same (an exponential average believes the newest, which lacks them) and the
// beginning, before which nothing ran, is left out.
type Ratio struct {
	windows              Use
	idle                 int64
	left                 int64 // of the beginning
	begun                bool
	busy, charged, doubt float64
}

// Doubt is how far NVML's word on a process may be off in a window: half of a percent.
func (w Window) Doubt() float64 { return truncation / 100 * float64(w.To-w.From) }

// Add takes what was used and charged within one window. A window without either teaches nothing and
// ages nothing. doubtNs is by how much charges may differ from the use without being wrong: those of a
// slice that had the card for itself can't hold anybody else's time, so there NVML's rounding is no
// reason to correct them.
func (r *Ratio) Add(lengthNs int64, busyNs, chargedNs, doubtNs float64) {
	if busyNs <= 0 && chargedNs <= 0 {
		r.idle += lengthNs
		r.left -= lengthNs
		return
	}
	if !r.begun || r.idle >= idleAgain {
		r.begun, r.left = true, beginning
	}
	r.idle = 0
	if r.left > 0 {
		r.left -= lengthNs
		return
	}
	r.windows.Add(lengthNs, busyNs, chargedNs, doubtNs, compared)
	_, r.busy, r.charged, r.doubt = r.windows.Sums()
}

// Trim is by what charges are to be multiplied; false while too little was seen.
func (r *Ratio) Trim() (float64, bool) {
	if r.charged < enough {
		return 1, false
	}
	// A use of whole percents is off by the whole doubt, so equality must do.
	if math.Abs(r.busy-r.charged) <= 1.05*r.doubt {
		return 1, true
	}
	assumed := prior * max(0, 1-r.charged/fading)
	return min(max((r.busy+assumed)/(r.charged+assumed), Lowest), Highest), true
}

// Use is what a slice used and was charged, and a third sum of its user's, over the last windows that were covered.
type Use struct {
	windows []used
}

type used struct {
	length               int64
	busy, charged, other float64
}

// Add takes a window and forgets those more than span before it.
func (u *Use) Add(lengthNs int64, busyNs, chargedNs, otherNs float64, span int64) {
	u.windows = append(u.windows, used{lengthNs, busyNs, chargedNs, otherNs})
	var total int64
	for i := len(u.windows) - 1; i >= 0; i-- {
		if total >= span {
			u.windows = append(u.windows[:0], u.windows[i+1:]...)
			return
		}
		total += u.windows[i].length
	}
}

// Sums are over all windows remembered.
func (u *Use) Sums() (lengthNs int64, busyNs, chargedNs, otherNs float64) {
	for _, one := range u.windows {
		lengthNs += one.length
		busyNs += one.busy
		chargedNs += one.charged
		otherNs += one.other
	}
	return
}
