// SPDX-License-Identifier: Apache-2.0

package place

import (
	"fmt"
	"strconv"
	"strings"
)

// The formats are those of docs/interfaces.md section 7.
const (
	cardFields  = 7 // index,UUID,count,memMiB,TYPE,health,numa
	grantFields = 6 // index,UUID,GPU,memMiB,cores,vid
	boundFields = 6 // podUID,container,UUID,vid,cores,memMiB
	grantKind   = "GPU"
)

// DecodeCards reads a node's register annotation. One malformed card refuses all of them: half
// a node would look like a node with fewer cards.
func DecodeCards(text string) ([]Card, error) {
	var cards []Card
	seen := map[string]struct{}{}
	for _, entry := range entries(text) {
		card, err := decodeCard(entry)
		if err != nil {
			return nil, fmt.Errorf("card %q: %w", entry, err)
		}
		if _, twice := seen[card.UUID]; twice {
			return nil, fmt.Errorf("card %q: UUID listed twice", entry)
		}
		seen[card.UUID] = struct{}{}
		cards = append(cards, card)
	}
	return cards, nil
}

func decodeCard(entry string) (Card, error) {
	fields := strings.Split(entry, ",")
	if len(fields) != cardFields {
		return Card{}, fmt.Errorf("%d fields, %d wanted", len(fields), cardFields)
	}
	numbers, err := integers(fields[0], fields[2], fields[3])
	if err != nil {
		return Card{}, err
	}
	healthy, err := strconv.ParseBool(fields[5])
	if err != nil {
		return Card{}, fmt.Errorf("health %q is not true or false", fields[5])
	}
	// A card that belongs to no NUMA node says -1, or nothing.
	numa, err := strconv.ParseInt(fields[6], 10, 32)
	if err != nil && fields[6] != "" {
		return Card{}, fmt.Errorf("NUMA node %q is not a number", fields[6])
	}
	return Card{
		Index: int(numbers[0]), UUID: fields[1], Slots: int(numbers[1]), MemMiB: numbers[2],
		Type: fields[4], Healthy: healthy, NUMA: int(numa),
	}, nil
}

// EncodePlacement writes the pod annotation; a container without a slice keeps its empty place.
func EncodePlacement(p Placement) string {
	containers := make([]string, len(p.Containers))
	for i, grants := range p.Containers {
		var line strings.Builder
		for _, g := range grants {
			fmt.Fprintf(&line, "%d,%s,%s,%d,%d,%d:", g.Index, g.UUID, grantKind, g.MemMiB, g.Cores, g.Vid)
		}
		containers[i] = line.String()
	}
	return strings.Join(containers, ";")
}

// DecodePlacement reads it back.
func DecodePlacement(text string) (Placement, error) {
	var placement Placement
	for _, container := range strings.Split(text, ";") {
		var grants []Grant
		for _, entry := range entries(container) {
			grant, err := decodeGrant(entry)
			if err != nil {
				return Placement{}, fmt.Errorf("grant %q: %w", entry, err)
			}
			grants = append(grants, grant)
		}
		placement.Containers = append(placement.Containers, grants)
	}
	return placement, nil
}

func decodeGrant(entry string) (Grant, error) {
	fields := strings.Split(entry, ",")
	if len(fields) != grantFields {
		return Grant{}, fmt.Errorf("%d fields, %d wanted", len(fields), grantFields)
	}
	numbers, err := integers(fields[0], fields[3], fields[4], fields[5])
	if err != nil {
		return Grant{}, err
	}
	return Grant{
		Index: int(numbers[0]), UUID: fields[1], MemMiB: numbers[1], Cores: int(numbers[2]),
		Vid: int(numbers[3]),
	}, nil
}

// Bound is a share that the device plugin has really given a container.
type Bound struct {
	Pod       string // UID, or HostPod
	Container string
	UUID      string
	Vid       int
	Cores     int
	MemMiB    int64
}

// DecodeBound reads node annotation flexai.io/node-vgpu-slices. One malformed entry refuses all of
// them, as with cards.
func DecodeBound(text string) ([]Bound, error) {
	var bound []Bound
	for _, entry := range entries(text) {
		fields := strings.Split(entry, ",")
		if len(fields) != boundFields {
			return nil, fmt.Errorf("share %q: %d fields, %d wanted", entry, len(fields), boundFields)
		}
		numbers, err := integers(fields[3:]...)
		if err != nil {
			return nil, fmt.Errorf("share %q: %w", entry, err)
		}
		bound = append(bound, Bound{
			Pod: fields[0], Container: fields[1], UUID: fields[2],
			Vid: int(numbers[0]), Cores: int(numbers[1]), MemMiB: numbers[2],
		})
	}
	return bound, nil
}

func entries(text string) []string {
	var found []string
	for _, entry := range strings.Split(text, ":") {
		if entry != "" {
			found = append(found, entry)
		}
	}
	return found
}

// integers refuses negative numbers too: a tenant's annotation must not lower a card's usage.
func integers(texts ...string) ([]int64, error) {
	numbers := make([]int64, len(texts))
	for i, text := range texts {
		number, err := strconv.ParseInt(text, 10, 32)
		if err != nil || number < 0 {
			return nil, fmt.Errorf("%q is not a number from 0 to 2147483647", text)
		}
		numbers[i] = number
	}
	return numbers, nil
}
