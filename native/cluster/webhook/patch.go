// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
)

// operation is one step of a JSON patch (RFC 6902). "add" replaces what is there, so nothing here
// depends on what another webhook put in between.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}

// diff is what leads from one pod to the other, in the parts that Normalise changes.
func diff(before, after Pod) []operation {
	var patch []operation
	add := func(path string, value any) { patch = append(patch, operation{"add", path, value}) }
	if !maps.Equal(before.Metadata.Annotations, after.Metadata.Annotations) {
		add("/metadata/annotations", after.Metadata.Annotations)
	}
	if before.Spec.SchedulerName != after.Spec.SchedulerName {
		add("/spec/schedulerName", after.Spec.SchedulerName)
	}
	if before.Spec.RuntimeClassName != after.Spec.RuntimeClassName {
		add("/spec/runtimeClassName", after.Spec.RuntimeClassName)
	}
	each := func(path string, before, after containers) {
		for i := range after {
			was, is := before[i].Resources, after[i].Resources
			if !was.Limits.equal(is.Limits) {
				add(fmt.Sprintf("%s/%d/resources/limits", path, i), is.Limits)
			}
			if !was.Requests.equal(is.Requests) {
				add(fmt.Sprintf("%s/%d/resources/requests", path, i), is.Requests)
			}
		}
	}
	each("/spec/initContainers", before.Spec.InitContainers, after.Spec.InitContainers)
	each("/spec/containers", before.Spec.Containers, after.Spec.Containers)
	return patch
}

func (q Quantities) equal(other Quantities) bool {
	return maps.EqualFunc(q, other, func(a, b json.RawMessage) bool {
		return bytes.Equal(bytes.Trim(a, `"`), bytes.Trim(b, `"`))
	})
}
