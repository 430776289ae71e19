// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"sort"
	"strings"

	"volcano.sh/volcano/pkg/scheduler/framework"

	"flexai.io/xpu/volcano/place"
)

// defaultWeight is the factor on the node score of 0 to 100.
const defaultWeight = 10

type settings struct {
	policy       place.Policy
	weight       int
	defaultClass place.Class
	mixing       bool
	beside       string // this scheduler's name where another Volcano runs; empty where none does
}

// argument is one of the plugin's arguments in the scheduler's configuration.
type argument struct {
	allowed string
	read    func(value any, into *settings) bool
}

var arguments = map[string]argument{
	Name + ".policy": {place.PolicyNames(), func(value any, into *settings) bool {
		policy, ok := place.PolicyByName(strings.ToLower(fmt.Sprint(value)))
		if ok {
			into.policy = policy
		}
		return ok
	}},
	Name + ".weight": {"a number from 0", func(value any, into *settings) bool {
		weight, ok := value.(int)
		if ok = ok && weight >= 0; ok {
			into.weight = weight
		}
		return ok
	}},
	// What the device plugin's --default-class says of pods without a class.
	Name + ".default-class": {"guaranteed, elastic or best-effort", func(value any, into *settings) bool {
		class, reason := place.ParseClass(fmt.Sprint(value))
		if reason == "" {
			into.defaultClass = class
		}
		return reason == ""
	}},
	// This scheduler's own name, where it is the second Volcano of its cluster.
	Name + ".beside-as": {"a scheduler's name", func(value any, into *settings) bool {
		name, ok := value.(string)
		into.beside = name
		return ok && name != ""
	}},
	// Best-effort shares rather beside ones with reserved cores than beside each other.
	Name + ".mix-classes": {"true or false", func(value any, into *settings) bool {
		mixing, ok := value.(bool)
		into.mixing = mixing
		return ok
	}},
}

// parse reads the arguments once. What is wrong falls back to its default and is named in the
// second result: a typo in a scheduler's configuration must not stop all scheduling.
func parse(given framework.Arguments) (settings, []string) {
	parsed := settings{policy: place.Binpack, weight: defaultWeight}
	var complaints []string
	for key, value := range given {
		known, ok := arguments[key]
		switch {
		case !ok:
			complaints = append(complaints, fmt.Sprintf("argument %s is unknown; known are %s", key, argumentNames()))
		case !known.read(value, &parsed):
			complaints = append(complaints,
				fmt.Sprintf("%s is %v; use %s; its default is taken", key, value, known.allowed))
		}
	}
	sort.Strings(complaints)
	if parsed.mixing {
		parsed.policy = parsed.policy.Mixing()
	}
	return parsed, complaints
}

func argumentNames() string {
	names := make([]string, 0, len(arguments))
	for name := range arguments {
		names = append(names, name)
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}
