// SPDX-License-Identifier: Apache-2.0

package cdi

import "testing"

// The base spec is written by another tool: it composes, and what is composed can be written and read, or
// the error says why.
func FuzzParseBase(f *testing.F) {
	for _, seed := range []string{"", "null", "[]", "{}", "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- {}\n",
		"cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n" +
			"- {name: \"0\", containerEdits: {deviceNodes: [{path: /dev/nvidia0}, null], mounts: [null], hooks: [null]}}\n" +
			"containerEdits:\n  mounts: [{hostPath: /lib/libcuda.so.1, containerPath: /lib/libcuda.so.1}, null]\n" +
			"  hooks: [{hookName: createContainer, args: [nvidia-ctk, hook, enable-cuda-compat]}]\n"} {
		f.Add([]byte(seed))
	}
	runtime := Runtime{Library: "/opt/xpu/lib/libcuda_direct.so", Tools: "/opt/xpu/bin"}
	slices := []Slice{{Key: "s1", Directory: "/etc/xpu/u/c", LedgerPage: "/var/lib/xpu/slices/s1/ledger.page", Minors: []int{0}}}
	f.Fuzz(func(t *testing.T, text []byte) {
		base, err := ParseBase(text)
		if err != nil {
			return
		}
		spec, err := Compose(base, runtime, slices)
		if err != nil {
			return
		}
		if _, err := Marshal(spec); err != nil {
			t.Errorf("composed from %q but can't be written: %v", text, err)
		}
	})
}
