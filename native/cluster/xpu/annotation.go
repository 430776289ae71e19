// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"fmt"
	"strings"
)

// RegisterValue is the node annotation by which a scheduler learns the cards: upstream's format,
// per card "index,UUID,slices,memMiB,TYPE,health,numa:".
func RegisterValue(cards []Card) string {
	var text strings.Builder
	for _, card := range cards {
		fmt.Fprintf(&text, "%d,%s,%d,%d,GPU-%s,%t,%d:",
			card.Index, card.UUID, card.Split, card.MemoryMiB, ShortModel(card.Model), card.Healthy, card.NUMA)
	}
	return text.String()
}

// ShortModel is the part of a product name that tells models apart: its first word that begins with
// a capital letter and holds a digit ("NVIDIA A100-SXM4-40GB" is A100, "Tesla T4" is T4).
func ShortModel(name string) string {
	words := strings.FieldsFunc(name, func(r rune) bool { return !isAlphanumeric(r) })
	for _, word := range words {
		if word[0] >= 'A' && word[0] <= 'Z' && strings.ContainsAny(word, "0123456789") {
			return word
		}
	}
	return strings.Join(words, "")
}

func isAlphanumeric(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z'
}

// Preferred reads the cards of one container out of pod annotation vgpu-ids-new (containers joined
// by ";", devices "index,UUID,GPU,memMiB,cores,vid:"). Whatever is malformed counts as no preference:
// a pod's owner can write that annotation, so it must never be able to stop or steer more than that.
func Preferred(annotation string, container int) []string {
	containers := strings.Split(annotation, ";")
	if container < 0 || container >= len(containers) {
		return nil
	}
	var uuids []string
	for _, device := range strings.Split(containers[container], ":") {
		if fields := strings.Split(device, ","); len(fields) == 6 {
			uuids = append(uuids, fields[1])
		}
	}
	return uuids
}
