// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Time-sharing classes of docs/interfaces.md section 7.
const (
	guaranteed = "guaranteed"
	elastic    = "elastic"
	bestEffort = "best-effort"
)

// classes: what each needs of a container's shape; empty when it has it.
var classes = map[string]func(Shape) string{
	guaranteed: reserves,
	elastic:    reserves,
	bestEffort: leavesCores,
}

func reserves(s Shape) string {
	if s.Cores == 0 && !s.whole() {
		return "needs " + coresResource + ", or whole cards by " + numberResource + " alone"
	}
	return ""
}

func leavesCores(s Shape) string {
	switch {
	case s.MemoryGiB == 0:
		return "reserves no cores and needs " + memoryResource
	case s.Cores != 0:
		return "runs in time that others leave; take out " + coresResource
	}
	return ""
}

// checkClass judges the pod's class against the shapes of its containers, which are in order.
func checkClass(pod Pod, asked []asker) field.ErrorList {
	class, given := pod.Metadata.Annotations[classAnnotation]
	if !given {
		return nil
	}
	path := annotationPath(classAnnotation)
	need, known := classes[class]
	if !known {
		return field.ErrorList{field.NotSupported(path, class, []string{guaranteed, elastic, bestEffort})}
	}
	var problems field.ErrorList
	for _, a := range asked {
		if lack := need(a.shape); lack != "" {
			problems = append(problems, field.Invalid(path, class,
				fmt.Sprintf("%s in container %s", lack, a.container.Name)))
		}
	}
	return problems
}
