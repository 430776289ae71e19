// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"k8s.io/apimachinery/pkg/util/validation/field"

	"flexai.io/xpu/cluster/xpu"
)

// guarded annotations must not change once a pod is there: what it may use was decided by them.
var guarded = append([]string{shapeAnnotation, classAnnotation, typeAnnotation, bandwidthAnnotation}, bindAnnotations...)

// Validate judges a new pod as it will be stored, after every webhook's mutations: the device plugin
// would refuse the same, but only when the pod starts.
func Validate(pod Pod) field.ErrorList {
	var problems field.ErrorList
	for _, key := range bindAnnotations {
		if _, given := pod.Metadata.Annotations[key]; given {
			problems = append(problems, field.Forbidden(annotationPath(key), "is the scheduler's, written with the bind"))
		}
	}
	asked, wrong := askers(&pod)
	problems = append(problems, wrong...)
	problems = append(problems, checkClass(pod, asked)...)
	if len(problems) > 0 {
		return problems
	}
	known := parseShapes(pod.Metadata.Annotations[shapeAnnotation])
	for _, a := range asked {
		problems = append(problems, a.settled(entry(known, a.container.Name))...)
	}
	return problems
}

// settled says whether a container's resources are what Normalise leaves behind.
func (a asker) settled(known *Shape) field.ErrorList {
	for _, name := range a.container.names() {
		if name != numberResource && name != coresResource && name != memoryResource {
			return field.ErrorList{field.Forbidden(limit(a.path, name), unseen("no node offers it"))}
		}
	}
	counts := xpu.Counts{Number: int(a.wants.number), Cores: int(a.wants.cores), MemoryGiB: int(a.wants.memoryGiB)}
	_, err := xpu.Settle(counts, known.settling())
	if err == nil {
		return nil
	}
	return field.ErrorList{field.Invalid(a.path.Child("resources", "limits"), counts.String(), err.Error())}
}

// settling is the shape as the device plugin will read it.
func (s *Shape) settling() *xpu.Shape {
	if s == nil {
		return nil
	}
	return &xpu.Shape{Number: int(s.Number), Cores: int(s.Cores), MemoryGiB: int(s.MemoryGiB)}
}

func unseen(what string) string {
	return what + ": the mutating webhook did not see this pod; create it again"
}

// Guard judges an update: only annotations are looked at, since a pod's resources can't change.
func Guard(old, updated Pod) field.ErrorList {
	var problems field.ErrorList
	for _, key := range guarded {
		before, had := old.Metadata.Annotations[key]
		after, has := updated.Metadata.Annotations[key]
		if had != has || before != after {
			problems = append(problems, field.Forbidden(annotationPath(key),
				"decides about the pod's slices and stays as it was when the pod was created or bound; make a new pod"))
		}
	}
	return problems
}
