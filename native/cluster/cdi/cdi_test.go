// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"strings"
	"testing"

	specs "tags.cncf.io/container-device-interface/specs-go"
)

const base = `cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes: [{path: /dev/nvidia0}]
- name: "1"
  containerEdits:
    deviceNodes: [{path: /dev/nvidia1}, {path: /dev/dri/card1}]
- name: all
  containerEdits:
    deviceNodes: [{path: /dev/nvidia0}, {path: /dev/nvidia1}]
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void]
  deviceNodes: [{path: /dev/nvidiactl}]
  hooks:
  - {hookName: createContainer, path: /usr/bin/nvidia-cdi-hook, args: [nvidia-cdi-hook, enable-cuda-compat, "--host-driver-version=580.95.05"]}
  - {hookName: createContainer, path: /usr/bin/nvidia-cdi-hook, args: [nvidia-cdi-hook, update-ldcache]}
  mounts:
  - {hostPath: /usr/lib/libcuda.so.580.95.05, containerPath: /usr/lib/libcuda.so.580.95.05, options: [ro]}
  - {hostPath: /usr/lib/libnvidia-ml.so.580.95.05, containerPath: /usr/lib/libnvidia-ml.so.580.95.05, options: [ro]}
  - {hostPath: /usr/lib/libcudadebugger.so.580.95.05, containerPath: /usr/lib/libcudadebugger.so.580.95.05}
  - {hostPath: /run/nvidia-persistenced/socket, containerPath: /run/nvidia-persistenced/socket}
`

var (
	runtime = Runtime{Library: "/opt/xpu/versions/v/lib/libcuda_direct.so", NVML: "/opt/xpu/versions/v/lib/libnvidia-ml_direct.so",
		Tools: "/opt/xpu/versions/v/bin", Empty: "/var/lib/xpu/empty", Sockets: "/var/lib/xpu/socket"}
	second = Slice{Key: "s1", Cards: []Card{{Minor: 1}}, Directory: "/etc/xpu/u/c", LedgerPage: "/var/lib/xpu/slices/s1/ledger.page"}
)

func compose(t *testing.T, slices ...Slice) *specs.Spec {
	t.Helper()
	return composeWith(t, runtime, slices...)
}

func composeWith(t *testing.T, with Runtime, slices ...Slice) *specs.Spec {
	t.Helper()
	parsed, err := ParseBase([]byte(base))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := Compose(parsed, with, slices)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func mounts(edits specs.ContainerEdits) map[string]string {
	all := map[string]string{}
	for _, mount := range edits.Mounts {
		access := "as given"
		if len(mount.Options) > 0 {
			access = mount.Options[0]
		}
		all[mount.ContainerPath] = mount.HostPath + " " + access
	}
	return all
}

func TestOurLibraryTakesTheDriversPlace(t *testing.T) {
	common := compose(t).ContainerEdits
	found := mounts(common)
	for place, want := range map[string]string{
		"/usr/lib/libcuda.so.580.95.05":         runtime.Library,
		"/opt/xpu/lib/libcuda-original.so":      "/usr/lib/libcuda.so.580.95.05",
		"/usr/lib/libnvidia-ml.so.580.95.05":    runtime.NVML,
		"/opt/xpu/lib/libnvidia-ml-original.so": "/usr/lib/libnvidia-ml.so.580.95.05",
		"/opt/xpu/bin":                          runtime.Tools,
		"/usr/local/cuda/compat":                runtime.Empty,
		"/var/lib/xpu":                          runtime.Sockets,
	} {
		if got := found[place]; got != want+" ro" {
			t.Errorf("%s holds %q, want %s", place, got, want)
		}
	}
	if len(common.Mounts) != 9 || len(common.DeviceNodes) != 1 || len(common.Env) != 1 {
		t.Errorf("the rest was not copied: %+v", common)
	}
	if len(common.Hooks) != 1 || common.Hooks[0].Args[1] != "update-ldcache" {
		t.Errorf("hooks: %+v, wanted update-ldcache alone", common.Hooks)
	}
}

func TestAnOlderReleaseHasNoNVMLOfOurs(t *testing.T) {
	older := runtime
	older.NVML = ""
	found := mounts(composeWith(t, older).ContainerEdits)
	if got := found["/usr/lib/libnvidia-ml.so.580.95.05"]; got != "/usr/lib/libnvidia-ml.so.580.95.05 ro" {
		t.Errorf("NVML's place holds %q", got)
	}
	if got, there := found["/opt/xpu/lib/libnvidia-ml-original.so"]; there {
		t.Errorf("an original is mounted that nobody needs: %q", got)
	}
}

func TestASliceSeesItsOwnCardOnly(t *testing.T) {
	spec := compose(t, second)
	edits := spec.Devices[0].ContainerEdits
	if got := cardNodes(edits); len(got) != 1 || got[0] != "/dev/nvidia1" || len(edits.DeviceNodes) != 2 {
		t.Errorf("device nodes %+v", edits.DeviceNodes)
	}
	found := mounts(edits)
	if found["/etc/xpu"] != "/etc/xpu/u/c ro" || found["/run/xpu/ledger.page"] != second.LedgerPage+" rw" {
		t.Errorf("slice files: %v", found)
	}
}

func TestMarshalledSpecReadsBack(t *testing.T) {
	text, err := Marshal(compose(t, second))
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseBase(text)
	if err != nil || again.Kind != Kind || again.Devices[0].Name != "s1" {
		t.Errorf("%v %+v", err, again)
	}
}

// nodes are the device nodes of the only entry composed for a slice of these cards.
func nodes(t *testing.T, base string, cards ...Card) ([]string, error) {
	t.Helper()
	parsed, err := ParseBase([]byte(base))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := Compose(parsed, runtime, []Slice{{Key: "s1", Cards: cards, Directory: "/d", LedgerPage: "/l"}})
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, node := range spec.Devices[0].ContainerEdits.DeviceNodes {
		paths = append(paths, node.Path)
	}
	return paths, nil
}

// What `nvidia-ctk cdi generate` writes of a card in MIG mode: an entry an instance, none of the card itself.
const migBase = `
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0:0"
  containerEdits: {deviceNodes: [{path: /dev/nvidia0}, {path: /dev/nvidia-caps/nvidia-cap12}, {path: /dev/nvidia-caps/nvidia-cap13}]}
- name: "0:1"
  containerEdits: {deviceNodes: [{path: /dev/nvidia0}, {path: /dev/nvidia-caps/nvidia-cap84}, {path: /dev/nvidia-caps/nvidia-cap85}]}
- name: "1"
  containerEdits: {deviceNodes: [{path: /dev/nvidia1}]}
- name: all
  containerEdits: {deviceNodes: [{path: /dev/nvidia0}, {path: /dev/nvidia1}, {path: /dev/nvidia-caps/nvidia-cap12}]}
containerEdits:
  mounts: [{hostPath: /usr/lib/libcuda.so.580.95.05, containerPath: /usr/lib/libcuda.so.580.95.05}]
`

func TestAnInstanceIsOpenedByItsCardsNodeAndItsOwnCapabilities(t *testing.T) {
	for name, test := range map[string]struct {
		card Card
		want string
	}{
		"an instance the base names": {Card{0, []int{84, 85}}, "/dev/nvidia0 /dev/nvidia-caps/nvidia-cap84 /dev/nvidia-caps/nvidia-cap85"},
		"one that was made later":    {Card{0, []int{93, 94}}, "/dev/nvidia0 /dev/nvidia-caps/nvidia-cap93 /dev/nvidia-caps/nvidia-cap94"},
		"a card put into MIG mode later": {Card{1, []int{147, 148}},
			"/dev/nvidia1 /dev/nvidia-caps/nvidia-cap147 /dev/nvidia-caps/nvidia-cap148"},
		"a whole card beside": {Card{1, nil}, "/dev/nvidia1"},
	} {
		got, err := nodes(t, migBase, test.card)
		if err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v, %v; want %s", name, got, err, test.want)
		}
	}
	// A card that has left MIG mode since: the base's entries would open instances that are no more.
	if got, err := nodes(t, migBase, Card{Minor: 0}); err == nil || !strings.Contains(err.Error(), "/dev/nvidia0") {
		t.Errorf("%v, %v", got, err)
	}
}

func TestComposeRefusesWhatTheBaseLacks(t *testing.T) {
	parsed, _ := ParseBase([]byte(base))
	lost := second
	lost.Cards = []Card{{Minor: 7}}
	if _, err := Compose(parsed, runtime, []Slice{lost}); err == nil || !strings.Contains(err.Error(), "/dev/nvidia7") {
		t.Errorf("missing card: %v", err)
	}
	parsed.ContainerEdits.Mounts = nil
	if _, err := Compose(parsed, runtime, nil); err == nil || !strings.Contains(err.Error(), "0 times") {
		t.Errorf("no driver library: %v", err)
	}
	for _, text := range []string{"", "a: [", "kind: nvidia.com/gpu"} {
		if _, err := ParseBase([]byte(text)); err == nil {
			t.Errorf("%q was taken for a spec", text)
		}
	}
}
