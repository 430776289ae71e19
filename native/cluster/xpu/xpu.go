// SPDX-License-Identifier: Apache-2.0

// Package xpu decides which card holds which slice. It knows cards, asks and owners, and nothing of
// kubelets, files or clocks, so that the same rules serve the device plugin, the client of a host
// without Kubernetes, and DRA.
package xpu

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sort"
	"strings"
)

// FullCores is the compute of one card, in percent.
const FullCores = 100

// MiBPerGiB converts the unit of resource vgpu-memory-1Gi into the unit of a share.
const MiBPerGiB = 1024

// Card is one physical card, or a MIG instance of one. Its identity is the UUID; index and minor change with
// the boot.
type Card struct {
	UUID      string `json:"uuid"`
	Index     int    `json:"index"`
	Minor     int    `json:"minor"`
	MemoryMiB uint64 `json:"memory_mib"`
	Model     string `json:"model"`
	NUMA      int    `json:"numa"`
	Healthy   bool   `json:"healthy"`
	// Split is the most slices this card may hold at once.
	Split int `json:"split"`
	// ShortName stands for the model where the site's table names it; see Short.
	ShortName string `json:"short_name,omitempty"`
	// Links are the values of the topology matrix to the other cards, by UUID.
	Links map[string]int `json:"links,omitempty"`
	// Instance is nil for a physical card.
	Instance *Instance `json:"instance,omitempty"`
}

// Short is the model's short name, by which pods pin it. An instance is another model than the card that it is
// part of: who pins A100 means all of one.
func (c Card) Short() string {
	switch {
	case c.ShortName != "":
		return c.ShortName
	case c.Instance != nil:
		return c.Instance.short(ShortModel(c.Model))
	}
	return ShortModel(c.Model)
}

// isOf says whether the card's model is one of models, joined by ","; none means any. Case doesn't
// count: resource names, where pods write models, are often lower case.
func (c Card) isOf(models string) bool {
	if models == "" {
		return true
	}
	for _, model := range strings.Split(models, ",") {
		if strings.EqualFold(strings.TrimSpace(model), c.Short()) {
			return true
		}
	}
	return false
}

// Owner is the container a slice belongs to.
type Owner struct {
	PodUID    string `json:"pod_uid"`
	Container string `json:"container"`
}

func (o Owner) String() string { return o.PodUID + "/" + o.Container }

// Share is what an owner holds of one card.
type Share struct {
	UUID         string `json:"uuid"`
	VID          int    `json:"vid"`
	CoresPercent int    `json:"cores_percent"`
	MemoryMiB    uint64 `json:"memory_mib"`
	// Mode says how CoresPercent is enforced; empty is ModeHard.
	Mode Mode `json:"mode,omitempty"`
	// Weight is the part in what others leave, for ModeElastic and ModePriority.
	Weight int `json:"weight,omitempty"`
}

// Mode is how a compute share is enforced.
type Mode string

// The modes a share can have.
const (
	ModeHard       Mode = "hard"        // never above the share
	ModeElastic    Mode = "elastic"     // above it while others are idle
	ModeFixedShare Mode = "fixed-share" // in windows of its own
	ModePriority   Mode = "priority"    // in what others leave; Weight 0: while all others are idle
)

// MaxWeight keeps sums of weights far from overflow.
const MaxWeight = 10_000

func (s Share) check() error {
	switch s.Mode {
	case "", ModeHard, ModeElastic, ModeFixedShare, ModePriority:
	default:
		return fmt.Errorf("card %s: mode %q is none of hard, elastic, fixed-share, priority", s.UUID, s.Mode)
	}
	if s.Weight < 0 || s.Weight > MaxWeight {
		return fmt.Errorf("card %s: weight %d is not 0 to %d", s.UUID, s.Weight, MaxWeight)
	}
	return nil
}

// Slice is a settled claim: the owner, the tokens it was given, and the shares they stand for.
type Slice struct {
	Key       string   `json:"key"`
	Owner     Owner    `json:"owner"`
	Namespace string   `json:"namespace"`
	Pod       string   `json:"pod"`
	Tokens    []string `json:"tokens"`
	Shares    []Share  `json:"shares"`
}

// Key names the indirection that a set of tokens stands for: the same set in any order gives the
// same key, and no key says anything about a card.
func Key(tokens []string) string {
	sorted := append([]string(nil), tokens...)
	sort.Strings(sorted)
	sum := sha256.Sum256([]byte(strings.Join(sorted, "\n")))
	return "s" + hex.EncodeToString(sum[:10])
}
