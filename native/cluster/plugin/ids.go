// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"maps"
	"sync"
)

// Withdrawn are the ids of a resource that are not to be given out now. They change while the plugin
// runs; whoever watches is told.
type Withdrawn struct {
	mutex   sync.Mutex
	ids     map[string]bool
	changed chan struct{}
}

// NewWithdrawn withdraws nothing yet.
func NewWithdrawn() *Withdrawn { return &Withdrawn{changed: make(chan struct{})} }

// Set replaces them and says whether that changed anything.
func (w *Withdrawn) Set(ids map[string]bool) bool {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if maps.Equal(w.ids, ids) {
		return false
	}
	w.ids = maps.Clone(ids)
	close(w.changed)
	w.changed = make(chan struct{})
	return true
}

// now are the ids withdrawn, and what is closed as soon as they are others.
func (w *Withdrawn) now() (map[string]bool, <-chan struct{}) {
	if w == nil {
		return nil, nil
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.ids, w.changed
}

// Prefer chooses size of the available ids, those that must be among them first. As ids mean no card, one
// is as good as another but for one thing: the id of a slice that is about to end is left for later, so
// that its end is seen before its id turns up with another container.
func Prefer(available, must []string, size int, held func(id string) bool) []string {
	chosen := append([]string(nil), must...)
	taken := map[string]bool{}
	for _, id := range must {
		taken[id] = true
	}
	for _, ending := range []bool{false, true} {
		for _, id := range available {
			if len(chosen) >= size {
				return chosen
			}
			if !taken[id] && held(id) == ending {
				taken[id] = true
				chosen = append(chosen, id)
			}
		}
	}
	return chosen
}
