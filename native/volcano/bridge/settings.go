// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"fmt"
	"sort"
	"strings"

	"volcano.sh/volcano/pkg/scheduler/framework"

	"flexai.io/xpu/volcano/place"
)

// Arguments of the plugin in the scheduler's configuration.
const (
	policyArgument = Name + ".policy" // binpack (default) or spread
	weightArgument = Name + ".weight" // factor on the node score of 0 to 100; default 10
)

const defaultWeight = 10

type settings struct {
	policy place.Policy
	weight int
}

// parse reads the arguments once. What is wrong falls back to its default and is named in the
// second result: a typo in a scheduler's configuration must not stop all scheduling.
func parse(arguments framework.Arguments) (settings, []string) {
	parsed := settings{policy: place.Binpack, weight: defaultWeight}
	var complaints []string
	for key, value := range arguments {
		switch key {
		case policyArgument:
			policy, ok := place.PolicyByName(strings.ToLower(fmt.Sprint(value)))
			if ok {
				parsed.policy = policy
				continue
			}
			complaints = append(complaints,
				fmt.Sprintf("%s is %v; use binpack or spread; taking binpack", key, value))
		case weightArgument:
			weight, ok := value.(int)
			if ok && weight >= 0 {
				parsed.weight = weight
				continue
			}
			complaints = append(complaints,
				fmt.Sprintf("%s is %v; use a number from 0; taking %d", key, value, defaultWeight))
		default:
			complaints = append(complaints, fmt.Sprintf("argument %s is unknown; known are %s and %s",
				key, policyArgument, weightArgument))
		}
	}
	sort.Strings(complaints)
	return parsed, complaints
}
