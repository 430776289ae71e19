// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation/field"
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
	totals := Totals{a.wants.number, a.wants.cores, a.wants.memoryGiB}
	_, err := Settle(totals, known)
	if err == nil {
		return nil
	}
	return field.ErrorList{field.Invalid(a.path.Child("resources", "limits"), totals.String(), err.Error())}
}

func unseen(what string) string {
	return what + ": the mutating webhook did not see this pod; create it again"
}

// Settle says what totals and a shape mean per vGPU, by the vectors of native/common/vectors/slices.json.
func Settle(totals Totals, shape *Shape) (Shape, error) {
	n := totals.Number
	switch {
	case n < 0 || totals.Cores < 0 || totals.MemoryGiB < 0:
		return Shape{}, fmt.Errorf("%s: less than nothing", totals)
	case n == 0:
		return Shape{}, fmt.Errorf("%s: add %s: 1", totals, numberResource)
	case shape != nil && !shape.plausible() && shape.Cores > fullCores:
		return Shape{}, fmt.Errorf("%d %% cores of one card; at most %d", shape.Cores, fullCores)
	case shape != nil && shape.plausible() && shape.Totals() == totals:
		return *shape, nil
	case totals.MemoryGiB == 0 && (totals.Cores == 0 || totals.Cores == n*fullCores) && (shape == nil || *shape == Shape{Number: n}):
		return Shape{Number: n}, nil
	case shape != nil:
		return Shape{}, fmt.Errorf("%s is not what annotation %s makes", totals, shapeAnnotation)
	case n > 1:
		return Shape{}, fmt.Errorf("%s: %s", totals, unseen("whether these are totals can't be told"))
	case totals.Cores > fullCores:
		return Shape{}, fmt.Errorf("%d %% cores of one card; at most %d", totals.Cores, fullCores)
	}
	return Shape(totals), nil
}

func (t Totals) String() string {
	return fmt.Sprintf("%s %d, %s %d, %s %d", numberResource, t.Number, coresResource, t.Cores, memoryResource, t.MemoryGiB)
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
