// SPDX-License-Identifier: Apache-2.0

package trim

import "math"

const (
	// smoothing is over how much busy time the ratio forgets.
	smoothing = 5e9
	// prior is how much charged time "nothing to correct" weighs at the start.
	prior = 50e6
	// enough is the charged time below which a ratio is noise.
	enough = 100e6
	// Lowest and Highest: beyond them a correction can't be honest. xpu/limiter.h clamps alike.
	Lowest, Highest = 0.3, 1.2
)

// Ratio is the smoothed ratio of time used to time charged of one slice on one card. The sums decay,
// not their quotients: a window in which charges of an earlier one arrive would else count for much.
type Ratio struct {
	busy, charged float64
}

// Add takes what was used and charged within one window. A window without either teaches nothing and
// ages nothing.
func (r *Ratio) Add(lengthNs int64, busyNs, chargedNs float64) {
	if busyNs <= 0 && chargedNs <= 0 {
		return
	}
	keep := math.Exp(-float64(lengthNs) / smoothing)
	r.busy = r.busy*keep + busyNs
	r.charged = r.charged*keep + chargedNs
}

// Trim is by what charges are to be multiplied; false while too little was seen.
func (r *Ratio) Trim() (float64, bool) {
	if r.charged < enough {
		return 1, false
	}
	return min(max((r.busy+prior)/(r.charged+prior), Lowest), Highest), true
}

// Use is what a slice used, was charged and was allowed over the last windows that were covered.
type Use struct {
	windows []used
}

type used struct {
	length                 int64
	busy, charged, allowed float64
}

// Add takes a window and forgets those more than span before it.
func (u *Use) Add(lengthNs int64, busyNs, chargedNs, allowedNs float64, span int64) {
	u.windows = append(u.windows, used{lengthNs, busyNs, chargedNs, allowedNs})
	var total int64
	for i := len(u.windows) - 1; i >= 0; i-- {
		if total >= span {
			u.windows = append(u.windows[:0], u.windows[i+1:]...)
			return
		}
		total += u.windows[i].length
	}
}

// Sums are over all windows remembered: their length, time used, charged, and allowed by the share.
func (u *Use) Sums() (lengthNs int64, busyNs, chargedNs, allowedNs float64) {
	for _, one := range u.windows {
		lengthNs += one.length
		busyNs += one.busy
		chargedNs += one.charged
		allowedNs += one.allowed
	}
	return
}

// Forget starts anew.
func (u *Use) Forget() { u.windows = u.windows[:0] }
