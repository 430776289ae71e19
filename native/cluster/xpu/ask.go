// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Counts are the totals a container requests, as the three resources state them.
type Counts struct {
	Number    int
	Cores     int
	MemoryGiB int
}

func (c Counts) String() string {
	return fmt.Sprintf("vgpu-number %d, vgpu-cores %d, vgpu-memory-1Gi %d", c.Number, c.Cores, c.MemoryGiB)
}

// Ask is what one container wants of each of its cards.
type Ask struct {
	Cards int
	// CoresPercent of each card; 0 is no compute limit, or none of one's own (mode priority).
	CoresPercent int
	// MemoryMiB of each card; 0 is all of the card's memory.
	MemoryMiB uint64
	// Mode and Weight of each share; empty is ModeHard.
	Mode   Mode
	Weight int
	// Models are the short model names that will do, joined by ","; empty is any.
	Models string
	// Bandwidth is the least value of the topology matrix between any two of the cards; 0 is any.
	Bandwidth int
}

// Whole says that the ask is for cards nobody else shares.
func (a Ask) Whole() bool { return a.CoresPercent == FullCores && a.MemoryMiB == 0 }

func (a Ask) String() string {
	memory := "all memory"
	if a.MemoryMiB > 0 {
		memory = fmt.Sprintf("%d MiB", a.MemoryMiB)
	}
	text := fmt.Sprintf("%d card(s) with %d %% cores and %s each", a.Cards, a.CoresPercent, memory)
	if a.Models != "" {
		text += " of model " + a.Models
	}
	if a.Bandwidth > 0 {
		text += fmt.Sprintf(", joined by at least %d", a.Bandwidth)
	}
	return text
}

// Shape is what a container wants of each of its virtual cards, as its pod wrote it before the
// webhook turned it into totals.
type Shape struct {
	Number    int `json:"number"`
	Cores     int `json:"cores"`
	MemoryGiB int `json:"memoryGiB"`
}

// maxShape bounds each number of a shape, so that products can't overflow.
const maxShape = 1 << 20

func (s Shape) sound() bool {
	for _, number := range []int{s.Number, s.Cores, s.MemoryGiB} {
		if number < 0 || number > maxShape {
			return false
		}
	}
	return true
}

// multiplies says whether the shape's virtual cards make these totals.
func (s Shape) multiplies(c Counts) bool {
	each := Counts{s.Number, s.Number * s.Cores, s.Number * s.MemoryGiB}
	return s.sound() && (each == c || s.whole() && c == wholeCards(s.Number))
}

func (s Shape) whole() bool { return s.Cores == 0 && s.MemoryGiB == 0 }

// wholeCards are the totals that the webhook makes of cards asked for by number alone.
func wholeCards(number int) Counts { return Counts{Number: number, Cores: FullCores * number} }

// ParseShapes reads pod annotation flexai.io/vgpu-shape: container → shape. Nothing written is no
// container; anything but the webhook's own form is an error, for a guess would grant something else.
func ParseShapes(annotation string) (map[string]Shape, error) {
	if annotation == "" {
		return nil, nil
	}
	var shapes map[string]Shape
	decoder := json.NewDecoder(bytes.NewReader([]byte(annotation)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&shapes); err != nil || decoder.More() {
		return nil, fmt.Errorf(`annotation vgpu-shape is not {"<container>": {"number", "cores", "memoryGiB"}}; `+
			"leave it to the webhook: %w", errOr(err, "something follows the object"))
	}
	return shapes, nil
}

func errOr(err error, otherwise string) error {
	if err == nil {
		return fmt.Errorf("%s", otherwise)
	}
	return err
}

// Settle turns a container's totals into an ask, or says why they make none. shape is nil where the
// webhook left none. The vectors are native/common/vectors/slices.json.
//
// Without a shape several slices are refused rather than divided: totals alone don't tell upstream's
// meaning (numbers per slice) from ours, and a wrong guess would grant a share nobody asked for.
func Settle(c Counts, shape *Shape) (Ask, error) {
	switch {
	case c.Number < 0 || c.Cores < 0 || c.MemoryGiB < 0:
		return Ask{}, fmt.Errorf("negative request (%s)", c)
	case c.Number == 0:
		return Ask{}, fmt.Errorf("vgpu-cores %d and vgpu-memory-1Gi %d without vgpu-number; "+
			"add vgpu-number: 1", c.Cores, c.MemoryGiB)
	case shape != nil && !shape.multiplies(c):
		return Ask{}, fmt.Errorf("annotation vgpu-shape (%d virtual card(s) of %d %% cores and %d GiB) doesn't multiply to "+
			"the container's totals (%s); leave that annotation to the webhook", shape.Number, shape.Cores, shape.MemoryGiB, c)
	case c == Counts{Number: c.Number} || c == wholeCards(c.Number) && (shape == nil || shape.whole()):
		return Ask{Cards: c.Number, CoresPercent: FullCores}, nil
	case shape == nil && c.Number > 1:
		return Ask{}, fmt.Errorf("several slices in one container (%s) that the webhook has not seen: whether these are "+
			"totals is not known; create the pod anew when the webhook runs, or ask for one slice or whole cards", c)
	}
	return divided(c)
}

// divided are totals that are known to be some.
func divided(c Counts) (Ask, error) {
	ask := Ask{Cards: c.Number, CoresPercent: c.Cores / c.Number, MemoryMiB: uint64(c.MemoryGiB/c.Number) * MiBPerGiB}
	if ask.CoresPercent > FullCores {
		return Ask{}, fmt.Errorf("vgpu-cores %d on one card; the most is %d", ask.CoresPercent, FullCores)
	}
	return ask, nil
}
