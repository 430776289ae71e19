// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"slices"
	"testing"

	"sigs.k8s.io/yaml"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

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
	wanted := []Slice{{Key: "s1", Directory: "/etc/xpu/u/c", LedgerPage: "/var/lib/xpu/slices/s1/ledger.page", Cards: []Card{{Minor: 0}}}}
	f.Fuzz(func(t *testing.T, text []byte) {
		base, err := ParseBase(text)
		if err != nil {
			return
		}
		spec, err := Compose(base, runtime, wanted)
		if err != nil {
			return
		}
		if _, err := Marshal(spec); err != nil {
			t.Errorf("composed from %q but can't be written: %v", text, err)
		}
	})
}

// A file of ours that somebody has edited: one entry goes, the others stay, or the error says why.
func FuzzWithout(f *testing.F) {
	for _, seed := range []string{"", "null", "kind: x", "kind: huawei.com/vgpu", "kind: huawei.com/vgpu\nsurprise: 1\n",
		"cdiVersion: 0.5.0\nkind: huawei.com/vgpu\ndevices:\n- {name: s1, containerEdits: {mounts: [null]}}\n- {name: s2, containerEdits: {}}\n"} {
		f.Add([]byte(seed), "s1")
	}
	f.Fuzz(func(t *testing.T, text []byte, key string) {
		left, err := Without(text, key)
		if err != nil {
			return
		}
		var before, after specs.Spec
		if yaml.Unmarshal(text, &before) != nil || yaml.Unmarshal(left, &after) != nil {
			t.Fatalf("%q made %q of it", text, left)
		}
		kept := slices.DeleteFunc(names(before), func(name string) bool { return name == key })
		if !slices.Equal(kept, names(after)) || after.Kind != Kind {
			t.Errorf("%q less %q has %q, want %q", text, key, names(after), kept)
		}
	})
}

func names(spec specs.Spec) []string {
	found := []string{}
	for _, device := range spec.Devices {
		found = append(found, device.Name)
	}
	return found
}
