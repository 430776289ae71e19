// SPDX-License-Identifier: Apache-2.0

package place

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Reason says why something is refused; empty means it is not. Its text depends on the ask only,
// never on the node, because Volcano counts nodes by equal texts.
type Reason string

func refusal(format string, values ...any) Reason { return Reason(fmt.Sprintf(format, values...)) }

// ContainerAsk is what one container wants: Count virtual cards of one share each, on Count
// different cards. A Passing container (an init container that ends before the others start) takes
// its share in turn with the pod's other containers, not beside them.
type ContainerAsk struct {
	Name    string
	Count   int
	Share   Share
	Passing bool
	// Lasting init containers (sidecars) run beside everything; plain containers don't run beside
	// passing ones.
	Lasting bool
}

// Ask is what a pod wants: its containers in their order in the pod, then its init containers in
// theirs; those without a slice have Count 0.
type Ask struct {
	Containers []ContainerAsk
	Models     []string // cards of these models will do; empty is any
	Bandwidth  int      // least link between any two cards of one container
	Policy     string   // name of the policy that the pod chose itself; empty is the scheduler's
}

// Empty says that no container wants a slice.
func (a Ask) Empty() bool {
	for i := range a.Containers {
		if a.Containers[i].Count > 0 {
			return false
		}
	}
	return true
}

// Key is equal for asks that are placed alike.
func (a Ask) Key() string {
	key := make([]byte, 0, 64)
	for i := range a.Containers {
		c := &a.Containers[i]
		for _, number := range []int64{int64(c.Count), int64(c.Share.Cores), c.Share.MemMiB} {
			key = append(strconv.AppendInt(key, number, 36), ',')
		}
		for _, flag := range []bool{c.Share.BestEffort, c.Passing, c.Lasting} {
			key = strconv.AppendBool(key, flag)
		}
		key = append(key, ';')
	}
	key = append(strconv.AppendInt(key, int64(a.Bandwidth), 36), '/')
	key = append(append(key, strings.Join(a.Models, ",")...), '/')
	return string(append(key, a.Policy...))
}

// Class is how a slice shares its card's compute (docs/interfaces.md section 7).
type Class string

// The classes. NoClass is what a pod says that says nothing.
const (
	NoClass    Class = ""
	Guaranteed Class = "guaranteed"
	Elastic    Class = "elastic"
	BestEffort Class = "best-effort"
)

// ParseClass reads a class as users and sites write it.
func ParseClass(text string) (Class, Reason) {
	class := Class(text)
	switch class {
	case NoClass, Guaranteed, Elastic, BestEffort:
		return class, ""
	}
	return NoClass, refusal("class %q is unknown; use %s, %s or %s", text, Guaranteed, Elastic, BestEffort)
}

// apply turns a settled ask into one of the class, or says why it can't be. A site's default class
// speaks only where the pod says nothing, and only of asks that can have it.
func (c Class) apply(ask *ContainerAsk, siteDefault Class) Reason {
	switch {
	case c == NoClass:
		ask.Share.BestEffort = siteDefault == BestEffort && ask.Share.Cores == 0
	case c == BestEffort && ask.Share.Cores > 0:
		return refusal("container %s asks for cores or whole cards in class %s, which reserves none; "+
			"ask for vgpu-memory-1Gi without vgpu-cores, or for another class", ask.Name, c)
	case c == BestEffort:
		ask.Share.BestEffort = true
	case ask.Share.Cores == 0:
		return refusal("container %s asks for class %s without vgpu-cores; "+
			"add vgpu-cores, or ask for class %s", ask.Name, c, BestEffort)
	}
	return ""
}

// Totals are a container's three quantities as the pod's resources state them: totals over its
// virtual cards.
type Totals struct {
	Number    int64
	Cores     int64
	MemoryGiB int64
}

// Shape is what was written per virtual card before the webhook made totals of it.
type Shape struct {
	Number    int64 `json:"number"`
	Cores     int64 `json:"cores"`
	MemoryGiB int64 `json:"memoryGiB"`
}

// largest is the most of any quantity: products of two stay far from overflow.
const largest = 1 << 30

// DecodeShapes reads annotation flexai.io/vgpu-shape: container → shape. Unknown keys are refused,
// for they would be a promise nobody keeps.
func DecodeShapes(text string) (map[string]Shape, Reason) {
	if text == "" {
		return nil, ""
	}
	var shapes map[string]Shape
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&shapes); err != nil {
		return nil, refusal("annotation flexai.io/vgpu-shape is malformed (%v); "+
			"leave it to the webhook", err)
	}
	if decoder.More() {
		return nil, "annotation flexai.io/vgpu-shape has text after its end; leave it to the webhook"
	}
	return shapes, ""
}

// Settle turns a container's totals, and its shape where the webhook has seen it, into the share of
// one virtual card. It settles as native/cluster/xpu does at PreStart; both are held to
// native/common/vectors/slices.json, so that nothing is bound to a node and refused there.
func Settle(name string, t Totals, shape *Shape) (ContainerAsk, Reason) {
	ask := ContainerAsk{Name: name}
	if reason := t.check(name); reason != "" {
		return ask, reason
	}
	if t.Number == 0 {
		return ask, ""
	}
	per := Shape{Number: t.Number, Cores: t.Cores, MemoryGiB: t.MemoryGiB}
	whole := t.MemoryGiB == 0 && (t.Cores == 0 || t.Cores == t.Number*FullCores)
	switch {
	case shape != nil && !shape.multipliesTo(t):
		return ask, refusal("container %s has annotation flexai.io/vgpu-shape %+v, which doesn't "+
			"multiply to vgpu-number %d, vgpu-cores %d, vgpu-memory-1Gi %d; leave it to the webhook",
			name, *shape, t.Number, t.Cores, t.MemoryGiB)
	case whole:
		per.Cores = FullCores
	case shape != nil:
		per = *shape
	case t.Number > 1:
		return ask, refusal("container %s asks for vgpu-number %d together with vgpu-cores %d and "+
			"vgpu-memory-1Gi %d, and the webhook hasn't seen it, so it isn't known whether these are "+
			"totals; see that the webhook runs and create the pod anew",
			name, t.Number, t.Cores, t.MemoryGiB)
	}
	if per.Cores > FullCores {
		return ask, refusal("container %s asks for vgpu-cores %d on one card; ask for at most %d",
			name, per.Cores, FullCores)
	}
	ask.Count = int(t.Number)
	ask.Share = Share{Cores: int(per.Cores), MemMiB: per.MemoryGiB * 1024}
	return ask, ""
}

func (t Totals) check(name string) Reason {
	for _, value := range []int64{t.Number, t.Cores, t.MemoryGiB} {
		if value < 0 || value > largest {
			return refusal("container %s asks for vgpu-number %d, vgpu-cores %d, vgpu-memory-1Gi %d; "+
				"each may be 0 to %d", name, t.Number, t.Cores, t.MemoryGiB, largest)
		}
	}
	if t.Number == 0 && (t.Cores > 0 || t.MemoryGiB > 0) {
		return refusal("container %s asks for vgpu-cores %d and vgpu-memory-1Gi %d without vgpu-number; "+
			"add vgpu-number: 1", name, t.Cores, t.MemoryGiB)
	}
	return ""
}

// multipliesTo compares a shape with totals; whole cards by number may stand as 100 cores each.
func (s Shape) multipliesTo(t Totals) bool {
	if s.Number != t.Number || s.Cores < 0 || s.Cores > largest || s.MemoryGiB < 0 || s.MemoryGiB > largest {
		return false
	}
	if s.Cores == 0 && s.MemoryGiB == 0 {
		return t.MemoryGiB == 0 && (t.Cores == 0 || t.Cores == t.Number*FullCores)
	}
	return s.Number*s.Cores == t.Cores && s.Number*s.MemoryGiB == t.MemoryGiB
}

// Container is what the pod's description says of one container.
type Container struct {
	Name    string
	Totals  Totals
	Passing bool
	Lasting bool
}

// Wishes are a pod's annotations as users and the webhook write them.
type Wishes struct {
	Shapes    string
	Class     string
	Models    string
	Bandwidth string
	Policy    string
}

// NewAsk reads what a pod wants of cards: containers first, then init containers. Annotations of a
// pod that asks for no slice are nobody's business and not read.
func NewAsk(containers []Container, wishes Wishes, siteDefault Class) (Ask, Reason) {
	if !slices.ContainsFunc(containers, func(c Container) bool { return c.Totals != Totals{} }) {
		return Ask{}, ""
	}
	shapes, reason := DecodeShapes(wishes.Shapes)
	if reason != "" {
		return Ask{}, reason
	}
	class, reason := ParseClass(wishes.Class)
	if reason != "" {
		return Ask{}, reason
	}
	ask := Ask{Containers: make([]ContainerAsk, len(containers)), Policy: wishes.Policy}
	for i, container := range containers {
		var shape *Shape
		if found, ok := shapes[container.Name]; ok {
			shape = &found
		}
		settled, reason := Settle(container.Name, container.Totals, shape)
		if reason == "" && settled.Count > 0 {
			reason = class.apply(&settled, siteDefault)
		}
		if reason != "" {
			return Ask{}, reason
		}
		settled.Passing, settled.Lasting = container.Passing, container.Lasting
		ask.Containers[i] = settled
	}
	return ask, ask.readPins(wishes)
}

func (a *Ask) readPins(wishes Wishes) Reason {
	for _, model := range strings.Split(wishes.Models, ",") {
		if model = strings.TrimSpace(model); model != "" {
			a.Models = append(a.Models, model)
		}
	}
	if wishes.Bandwidth != "" {
		least, err := strconv.Atoi(wishes.Bandwidth)
		if err != nil || least < 0 {
			return refusal("annotation flexai.io/intra-bandwidth is %q; use a number from 0", wishes.Bandwidth)
		}
		a.Bandwidth = least
	}
	if _, known := PolicyByName(wishes.Policy); wishes.Policy != "" && !known {
		return refusal("annotation flexai.io/policy is %q; use %s", wishes.Policy, PolicyNames())
	}
	return ""
}
