// SPDX-License-Identifier: Apache-2.0

// Package cards finds the cards of this machine through the driver's own library.
package cards

import (
	"fmt"
	"log/slog"
	"os"
	"regexp"

	"sigs.k8s.io/yaml"

	"flexai.io/xpu/cluster/xpu"
)

// Finder lists the cards that the NVML library at Path shows, with how they are joined. Cards that can't
// be sliced are left out, and Log says which.
type Finder struct {
	Path  string
	Split int    // most slices of a card
	Proc  string // procfs, where the driver tells the device nodes of MIG instances
	// ShortNames stand for models, by NVML's name of them; see LoadShortNames.
	ShortNames map[string]string
	Log        *slog.Logger
}

// Discover is Find without short names and words.
func Discover(path, proc string, split int) ([]xpu.Card, error) {
	return Finder{Path: path, Proc: proc, Split: split, Log: slog.New(slog.DiscardHandler)}.Find()
}

// shortName is what may stand in a resource's name and between the commas of an annotation.
var shortName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,40}[A-Za-z0-9])?$`)

// LoadShortNames reads a YAML file of lines `<NVML's name of a model>: <short name>`.
func LoadShortNames(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var names map[string]string
	if err := yaml.UnmarshalStrict(text, &names); err != nil {
		return nil, fmt.Errorf("%s is no YAML of lines `<NVML's name of a model>: <short name>`: %w", path, err)
	}
	for model, short := range names {
		if !shortName.MatchString(short) {
			return nil, fmt.Errorf("%s: short name %q of %q: 1 to 42 letters, digits, '.', '_' and '-' are allowed, "+
				"with a letter or digit at both ends", path, short, model)
		}
	}
	return names, nil
}
