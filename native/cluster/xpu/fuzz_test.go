// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"strings"
	"testing"
)

// A pod's owner writes this annotation: whatever stands there is at most a preference.
func FuzzPreferred(f *testing.F) {
	for _, seed := range []string{"", "0,GPU-0,GPU,3072,20,1:", "0,GPU-0,GPU,3072,20,1:;1,GPU-1,GPU,1,2,3:", ";;;",
		",,,,,:", "0,GPU-0,GPU,3072,20:", strings.Repeat("0,a,GPU,1,2,3:", 64)} {
		f.Add(seed, 0)
		f.Add(seed, 1)
	}
	f.Add("0,GPU-0,GPU,3072,20,1:", -1)
	f.Fuzz(func(t *testing.T, annotation string, container int) {
		for _, uuid := range Preferred(annotation, container) {
			if strings.ContainsAny(uuid, ",:;") || !strings.Contains(annotation, uuid) {
				t.Errorf("%q of %q, container %d", uuid, annotation, container)
			}
		}
	})
}
