// SPDX-License-Identifier: Apache-2.0

package xpu

// Absence remembers which owners were missing when last looked for. An owner is gone when two looks
// in a row miss it: one look may fall into a restart of whoever is asked.
type Absence struct {
	missing map[Owner]bool
}

// Look takes the owners that hold slices and those seen alive, and returns the owners now gone.
func (a *Absence) Look(holding []Owner, alive func(Owner) bool) []Owner {
	var gone []Owner
	missing := map[Owner]bool{}
	for _, owner := range holding {
		if alive(owner) {
			continue
		}
		missing[owner] = true
		if a.missing[owner] {
			gone = append(gone, owner)
		}
	}
	a.missing = missing
	return gone
}
