// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"fmt"
	"strconv"
	"strings"
)

// RegisterValue is the node annotation by which a scheduler learns the cards: upstream's format,
// per card "index,UUID,slices,memMiB,TYPE,health,numa:".
func RegisterValue(cards []Card) string {
	var text strings.Builder
	for _, card := range cards {
		fmt.Fprintf(&text, "%d,%s,%d,%d,GPU-%s,%t,%d:",
			card.Index, card.UUID, card.Split, card.MemoryMiB, card.Short(), card.Healthy, card.NUMA)
	}
	return text.String()
}

// UsedValue is what is promised of each card: "index,UUID,slices,memMiB,cores:".
func UsedValue(cards []Card, held []Slice) string {
	used := use(held)
	var text strings.Builder
	for _, card := range cards {
		u := used[card.UUID]
		fmt.Fprintf(&text, "%d,%s,%d,%d,%d:", card.Index, card.UUID, u.shares(), u.memory, u.cores)
	}
	return text.String()
}

// SlicesValue is what is really bound, also on cards that are lost: "podUID,container,UUID,vid,cores,memMiB:".
func SlicesValue(held []Slice) string {
	var text strings.Builder
	for _, slice := range held {
		for _, share := range slice.Shares {
			fmt.Fprintf(&text, "%s,%s,%s,%d,%d,%d:", slice.Owner.PodUID, slice.Owner.Container,
				share.UUID, share.VID, share.CoresPercent, share.MemoryMiB)
		}
	}
	return text.String()
}

// TopologyValue is the matrix of links between the cards, in their order; a card to itself is 0.
func TopologyValue(cards []Card) string {
	rows := make([]string, len(cards))
	for i, card := range cards {
		values := make([]string, len(cards))
		for j, other := range cards {
			values[j] = strconv.Itoa(card.Links[other.UUID])
		}
		rows[i] = strings.Join(values, ",")
	}
	return strings.Join(rows, ";")
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
