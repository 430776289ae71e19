// SPDX-License-Identifier: Apache-2.0

package xpu

import "fmt"

// Class is how a pod shares its cards in time, as annotation flexai.io/class names it.
type Class string

// The classes. A pod without one is guaranteed where it asks for cores, and has no compute limit
// where it asks for memory alone, unless the site has a default class.
const (
	Guaranteed Class = "guaranteed"  // its cores, never more
	Elastic    Class = "elastic"     // its cores, and what others leave
	BestEffort Class = "best-effort" // memory only; runs while all others are idle
)

// ParseClass reads a class; none is the empty one.
func ParseClass(text string) (Class, error) {
	switch class := Class(text); class {
	case "", Guaranteed, Elastic, BestEffort:
		return class, nil
	}
	return "", fmt.Errorf("class %q is none of %s, %s, %s", text, Guaranteed, Elastic, BestEffort)
}

// Classed is the ask with the mode and weight of the pod's class, or of the site's where it has none.
func (a Ask) Classed(own, site Class) (Ask, error) {
	class := own
	if class == "" {
		class = a.otherwise(site)
	}
	switch class {
	case Guaranteed, Elastic:
		if a.CoresPercent == 0 {
			return Ask{}, fmt.Errorf("class %s without vgpu-cores: there is nothing to reserve; ask for vgpu-cores or whole "+
				"cards, or take class %s", class, BestEffort)
		}
		if class == Elastic {
			a.Mode, a.Weight = ModeElastic, a.CoresPercent
		}
	case BestEffort:
		if a.CoresPercent > 0 || a.MemoryMiB == 0 {
			return Ask{}, fmt.Errorf("class %s reserves memory only: ask for vgpu-memory-1Gi and no vgpu-cores", class)
		}
		a.Mode = ModePriority
	}
	return a, nil
}

// otherwise is the class of an ask whose pod names none; empty is no compute limit.
func (a Ask) otherwise(site Class) Class {
	switch {
	case a.CoresPercent > 0 && site == Elastic:
		return Elastic
	case a.CoresPercent > 0:
		return Guaranteed
	case site == BestEffort:
		return BestEffort
	}
	return ""
}
