// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// BenchmarkMutate: a pod of 12 KiB, most of which is none of our business.
func BenchmarkMutate(b *testing.B) {
	c := asking("main", amounts{"vgpu-number": "2", "vgpu-cores": "20", "vgpu-memory.1Gi": "3"})
	for i := range 150 {
		c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprint("VARIABLE_", i), Value: fmt.Sprint("some value that is not short ", i)})
	}
	body := reviewOf(b, "CREATE", podOf(c), nil)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Mutate(body, site); err != nil {
			b.Fatal(err)
		}
	}
}
