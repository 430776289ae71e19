// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

const fullCores = 100

// Shape is what a container asks of each vGPU. Neither cores nor memory means whole cards.
type Shape struct {
	Number    int64 `json:"number"`
	Cores     int64 `json:"cores,omitempty"`
	MemoryGiB int64 `json:"memoryGiB,omitempty"`
}

// Totals are what the three resources say after the webhook: what a node's sums count.
type Totals struct {
	Number, Cores, MemoryGiB int64
}

// Totals multiplies a shape out. A whole card is all of its cores; its memory is known on the node.
func (s Shape) Totals() Totals {
	if s.whole() {
		return Totals{s.Number, s.Number * fullCores, 0}
	}
	return Totals{s.Number, s.Number * s.Cores, s.Number * s.MemoryGiB}
}

func (s Shape) whole() bool { return s.Cores == 0 && s.MemoryGiB == 0 }

// plausible keeps numbers that a user can have written into the annotation from overflowing.
func (s Shape) plausible() bool {
	return s.Number > 0 && s.Number <= maxNumber && s.Cores >= 0 && s.Cores <= fullCores &&
		s.MemoryGiB >= 0 && s.MemoryGiB <= maxMemoryGiB
}

// shapeOf says what a container's numbers mean per vGPU. known is its entry in the annotation.
//
// Whether they have been multiplied already can't be told from who wrote the annotation, since anybody
// can. It is told from the annotation multiplying to exactly these numbers: then they are totals, as in
// a second pass of one admission or a copy of a running pod. Who forges such a pair gets what the totals
// count, n slices of what the shape says, and could have asked for just that.
func shapeOf(w wants, known *Shape) Shape {
	if known != nil && known.plausible() && known.Totals() == (Totals{w.number, w.cores, w.memoryGiB}) {
		return *known
	}
	if w.memoryGiB == 0 && w.cores == w.number*fullCores {
		return Shape{Number: w.number}
	}
	return Shape{w.number, w.cores, w.memoryGiB}
}

// check says what no card could give.
func (s Shape) check(path *field.Path) field.ErrorList {
	var problems field.ErrorList
	if s.Number == 0 {
		problems = append(problems, field.Required(limit(path, numberResource),
			"cores, memory and models are asked of a vGPU, and none is; add "+numberResource+": 1"))
	}
	if s.Cores > fullCores {
		problems = append(problems, field.Invalid(limit(path, coresResource), s.Cores,
			fmt.Sprintf("is percent of one card, for each vGPU; 1 to %d, or %d for %d whole cards",
				fullCores, s.Number*fullCores, s.Number)))
	}
	if s.MemoryGiB > maxMemoryGiB {
		problems = append(problems, field.Invalid(limit(path, memoryResource), s.MemoryGiB,
			fmt.Sprintf("is GiB of one card, for each vGPU (write 3, not 3Gi); at most %d", maxMemoryGiB)))
	}
	return problems
}

// parseShapes reads the annotation; nil where it is absent or not one of ours.
func parseShapes(annotation string) map[string]Shape {
	var shapes map[string]Shape
	if annotation == "" || json.Unmarshal([]byte(annotation), &shapes) != nil {
		return nil
	}
	return shapes
}

// writeShapes is the annotation, the same text for the same shapes.
func writeShapes(shapes map[string]Shape) string {
	text, err := json.Marshal(shapes)
	if err != nil {
		panic(err) // strings and integers always can be
	}
	return string(text)
}

func entry(shapes map[string]Shape, container string) *Shape {
	if shape, known := shapes[container]; known {
		return &shape
	}
	return nil
}
