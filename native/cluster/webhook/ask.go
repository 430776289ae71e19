// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Resources of docs/interfaces.md section 7.
const (
	ours              = "huawei.com/vgpu-"
	numberResource    = ours + "number"
	coresResource     = ours + "cores"
	memoryResource    = ours + "memory-1Gi"
	memoryAlias       = ours + "memory.1Gi"
	typePrefix        = ours + "type."
	bandwidthResource = "huawei.com/intra-bandwidth"
)

// Bounds that catch a slip of the pen; what a node has is the scheduler's business.
const (
	maxNumber    = 1024
	maxMemoryGiB = 65536
	maxBandwidth = 1 << 20
)

// wants is what a container's resources say, in the numbers they were written in.
type wants struct {
	number, cores, memoryGiB int64
	types                    []string
	bandwidth                int64
}

func (w wants) slice() bool { return w.number != 0 || w.cores != 0 || w.memoryGiB != 0 }

// involved says whether a container names a resource of slices at all.
func (c Container) involved() bool {
	return len(c.names()) > 0
}

// names are the container's resources that are the webhook's business, in order. intra-bandwidth is
// so only beside a vGPU: NPUs have it too.
func (c Container) names() []string {
	found := map[string]bool{}
	bandwidth := false
	for _, list := range []Quantities{c.Resources.Limits, c.Resources.Requests} {
		for name := range list {
			bandwidth = bandwidth || name == bandwidthResource
			if strings.HasPrefix(name, ours) {
				found[name] = true
			}
		}
	}
	if len(found) > 0 && bandwidth {
		found[bandwidthResource] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// read turns a container's resources into numbers, or says what is wrong with them.
func (c Container) read(path *field.Path) (wants, field.ErrorList) {
	var w wants
	var problems field.ErrorList
	given := map[string]int64{}
	for _, name := range c.names() {
		amount, problem := c.amount(path, name)
		if problem == nil {
			problem = w.take(limit(path, name), name, amount)
		}
		if problem != nil {
			problems = append(problems, problem)
			continue
		}
		given[name] = amount
	}
	if alias, both := given[memoryAlias]; both && given[memoryResource] != 0 && given[memoryResource] != alias {
		problems = append(problems, field.Invalid(limit(path, memoryAlias), alias,
			fmt.Sprintf("is another name of %s, which says %d; give one of them", memoryResource, given[memoryResource])))
	}
	return w, problems
}

// take enters one amount; the error names what is allowed.
func (w *wants) take(path *field.Path, name string, amount int64) *field.Error {
	switch {
	case name == numberResource:
		w.number = amount
		return most(path, amount, maxNumber, "counts vGPUs")
	case name == coresResource:
		w.cores = amount
		return most(path, amount, maxNumber*fullCores, "counts percent of a card")
	case name == memoryResource || name == memoryAlias:
		w.memoryGiB = max(w.memoryGiB, amount)
		return most(path, amount, maxNumber*maxMemoryGiB, "counts GiB: write 3, not 3Gi")
	case name == bandwidthResource:
		w.bandwidth = amount
		return most(path, amount, maxBandwidth, "is a value of the node's topology matrix")
	case strings.HasPrefix(name, typePrefix):
		if model := strings.TrimPrefix(name, typePrefix); amount > 0 {
			w.types = append(w.types, model)
		}
		return nil
	}
	return field.NotSupported(path, name, []string{numberResource, coresResource, memoryResource, memoryAlias,
		typePrefix + "<model>"})
}

func most(path *field.Path, amount, limit int64, meaning string) *field.Error {
	if amount <= limit {
		return nil
	}
	return field.Invalid(path, amount, fmt.Sprintf("%s; at most %d", meaning, limit))
}

// amount is what limits and requests say together: either may be left out.
func (c Container) amount(path *field.Path, name string) (int64, *field.Error) {
	limited, isLimited := c.Resources.Limits[name]
	requested, isRequested := c.Resources.Requests[name]
	if !isLimited {
		return whole(path.Child("resources", "requests").Key(name), requested)
	}
	amount, problem := whole(limit(path, name), limited)
	if problem != nil || !isRequested {
		return amount, problem
	}
	at := path.Child("resources", "requests").Key(name)
	other, problem := whole(at, requested)
	if problem == nil && other != amount {
		problem = field.Invalid(at, other, fmt.Sprintf("differs from the limit, %d; give the limit alone", amount))
	}
	return amount, problem
}

// whole reads a whole number that is not negative.
func whole(path *field.Path, raw json.RawMessage) (int64, *field.Error) {
	text := strings.Trim(string(raw), `"`)
	amount, ok := parse(text)
	if !ok {
		return 0, field.Invalid(path, text[:min(len(text), 40)], "must be a whole number, 0 or more")
	}
	return amount, nil
}

// parse keeps long exponents from Kubernetes' parser, which multiplies them out.
func parse(text string) (int64, bool) {
	if i := strings.IndexAny(text, "eE"); len(text) > 20 || i >= 0 && len(text)-i > 3 {
		return 0, false
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, false
	}
	amount, exact := quantity.AsInt64()
	return amount, exact && amount >= 0
}

func limit(path *field.Path, name string) *field.Path {
	return path.Child("resources", "limits").Key(name)
}
