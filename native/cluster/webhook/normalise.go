// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Annotations of docs/interfaces.md section 7.
const (
	shapeAnnotation     = "flexai.io/vgpu-shape"
	classAnnotation     = "flexai.io/class"
	typeAnnotation      = "flexai.io/vgpu-type"
	bandwidthAnnotation = "flexai.io/intra-bandwidth"
)

// bindAnnotations come with the bind, from the scheduler: upstream's names, all of them.
var bindAnnotations = []string{
	"huawei.com/vgpu-ids-new", "huawei.com/vgpu-node", "huawei.com/bind-time",
	"huawei.com/vgpu-devices-to-allocate", "huawei.com/bind-phase",
}

// Policy is what a site decides.
type Policy struct {
	// Scheduler of pods with slices that name none; empty leaves them alone.
	Scheduler string
	// RuntimeClass of pods with slices that name none; empty leaves them alone.
	RuntimeClass string
}

// defaultScheduler is what the API server writes where a pod names none.
const defaultScheduler = "default-scheduler"

// asker is a container that asks for slices.
type asker struct {
	container *Container
	path      *field.Path
	wants     wants
	shape     Shape
}

// askers finds the containers that ask for slices, init ones first, and what they mean.
func askers(pod *Pod) ([]asker, field.ErrorList) {
	var found []asker
	var problems field.ErrorList
	known := parseShapes(pod.Metadata.Annotations[shapeAnnotation])
	spec := field.NewPath("spec")
	look := func(path *field.Path, all containers) {
		for i := range all {
			container := &all[i]
			if !container.involved() {
				continue
			}
			at := path.Index(i)
			wants, wrong := container.read(at)
			problems = append(problems, wrong...)
			if len(wrong) > 0 || !wants.slice() && len(wants.types) == 0 && wants.bandwidth == 0 {
				continue
			}
			shape := shapeOf(wants, entry(known, container.Name))
			problems = append(problems, shape.check(at)...)
			found = append(found, asker{container, at, wants, shape})
		}
	}
	look(spec.Child("initContainers"), pod.Spec.InitContainers)
	look(spec.Child("containers"), pod.Spec.Containers)
	return found, problems
}

// Normalise turns a new pod's asks per vGPU into totals and keeps them as its shape. Done twice it
// changes nothing more. The pod given is left as it is.
func Normalise(given Pod, policy Policy) (Pod, []string, field.ErrorList) {
	pod := given.clone()
	warnings := strip(pod.Metadata.Annotations)
	asked, problems := askers(&pod)
	problems = append(problems, checkClass(pod, asked)...)
	if len(problems) > 0 {
		return given, nil, problems
	}
	warnings = append(warnings, setShapes(pod.Metadata.Annotations, asked)...)
	if len(asked) == 0 {
		return pod, warnings, nil
	}
	for _, a := range asked {
		a.container.write(a.shape.Totals())
	}
	moved, problems := moveLimits(pod.Metadata.Annotations, asked)
	warnings = append(warnings, moved...)
	return pod, append(warnings, place(&pod, policy)...), problems
}

// strip takes out what only the scheduler may say.
func strip(annotations map[string]string) []string {
	var warnings []string
	for _, key := range bindAnnotations {
		if _, given := annotations[key]; given {
			delete(annotations, key)
			warnings = append(warnings, fmt.Sprintf("annotation %s is the scheduler's; removed", key))
		}
	}
	return warnings
}

func setShapes(annotations map[string]string, asked []asker) []string {
	found, given := annotations[shapeAnnotation]
	delete(annotations, shapeAnnotation)
	if len(asked) > 0 {
		shapes := map[string]Shape{}
		for _, a := range asked {
			shapes[a.container.Name] = a.shape
		}
		annotations[shapeAnnotation] = writeShapes(shapes)
	}
	if given && found != annotations[shapeAnnotation] {
		return []string{fmt.Sprintf("annotation %s is the webhook's and did not agree with the pod's resources, "+
			"which were read as what each vGPU gets; written anew", shapeAnnotation)}
	}
	return nil
}

// write makes totals the container's limits and requests; extended resources need both, and equal.
func (c *Container) write(totals Totals) {
	named := c.names()
	for _, list := range []*Quantities{&c.Resources.Limits, &c.Resources.Requests} {
		if *list == nil {
			*list = Quantities{}
		}
		for _, name := range named {
			delete(*list, name)
		}
		for name, amount := range map[string]int64{
			numberResource: totals.Number, coresResource: totals.Cores, memoryResource: totals.MemoryGiB,
		} {
			if amount > 0 {
				(*list)[name] = json.RawMessage(strconv.Quote(strconv.FormatInt(amount, 10)))
			}
		}
	}
}

// moveLimits writes into annotations what upstream's users write as limits that no node advertises.
func moveLimits(annotations map[string]string, asked []asker) ([]string, field.ErrorList) {
	var warnings []string
	var first *asker
	var bandwidth int64
	for i, a := range asked {
		if bandwidth > 0 && a.wants.bandwidth > 0 && a.wants.bandwidth != bandwidth {
			warnings = append(warnings, "containers differ in "+bandwidthResource+"; the greatest holds for all")
		}
		bandwidth = max(bandwidth, a.wants.bandwidth)
		switch {
		case len(a.wants.types) == 0:
		case first == nil:
			first = &asked[i]
		case !slices.Equal(first.wants.types, a.wants.types):
			// A pod runs on one node and its annotation is one: a wider set would not be what was asked.
			return nil, field.ErrorList{field.Invalid(limit(a.path, typePrefix+a.wants.types[0]), strings.Join(a.wants.types, ","),
				fmt.Sprintf("container %s names %s; all containers of a pod must name the same models",
					first.container.Name, strings.Join(first.wants.types, ",")))}
		}
	}
	if first != nil {
		annotations[typeAnnotation] = strings.Join(first.wants.types, ",")
	}
	if bandwidth > 0 {
		annotations[bandwidthAnnotation] = strconv.FormatInt(bandwidth, 10)
	}
	return warnings, checkMoved(annotations)
}

// checkMoved judges what stands in the annotations at last, whoever wrote it.
func checkMoved(annotations map[string]string) field.ErrorList {
	var problems field.ErrorList
	if models, given := annotations[typeAnnotation]; given {
		for model := range strings.SplitSeq(models, ",") {
			if len(validation.IsQualifiedName(model)) > 0 {
				problems = append(problems, field.Invalid(annotationPath(typeAnnotation), models,
					"must be models joined by commas, as A100,T4"))
				break
			}
		}
	}
	if least, given := annotations[bandwidthAnnotation]; given {
		if amount, ok := parse(least); !ok || amount > maxBandwidth {
			problems = append(problems, field.Invalid(annotationPath(bandwidthAnnotation), least,
				"must be a whole number, a value of the node's topology matrix"))
		}
	}
	return problems
}

// place sets scheduler and runtime class where the pod leaves them open. A pod that names its node asks no
// scheduler; with Volcano's name it would get a PodGroup all the same, which holds its queue's share for as
// long as the kubelet refuses the pod.
func place(pod *Pod, policy Policy) []string {
	spec := &pod.Spec
	if policy.Scheduler != "" && spec.NodeName == "" &&
		(spec.SchedulerName == "" || spec.SchedulerName == defaultScheduler) {
		spec.SchedulerName = policy.Scheduler
	}
	switch {
	case policy.RuntimeClass == "" || spec.RuntimeClassName == policy.RuntimeClass:
	case spec.RuntimeClassName == "":
		spec.RuntimeClassName = policy.RuntimeClass
	default:
		return []string{fmt.Sprintf("runtimeClassName %s is kept; slices are made for %s, and this pod's may not work",
			spec.RuntimeClassName, policy.RuntimeClass)}
	}
	return nil
}

func annotationPath(key string) *field.Path {
	return field.NewPath("metadata", "annotations").Key(key)
}

func (p Pod) clone() Pod {
	p.Metadata.Annotations = maps.Clone(p.Metadata.Annotations)
	if p.Metadata.Annotations == nil {
		p.Metadata.Annotations = map[string]string{}
	}
	p.Spec.InitContainers = p.Spec.InitContainers.clone()
	p.Spec.Containers = p.Spec.Containers.clone()
	return p
}

func (c containers) clone() containers {
	all := slices.Clone(c)
	for i := range all {
		all[i].Resources.Limits = maps.Clone(all[i].Resources.Limits)
		all[i].Resources.Requests = maps.Clone(all[i].Resources.Requests)
	}
	return all
}
