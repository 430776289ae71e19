// SPDX-License-Identifier: Apache-2.0

// Package cdi derives the CDI entries of slices from the base spec that NVIDIA's own
// "nvidia-ctk cdi generate" wrote on the host. What a driver needs in a container is the vendor's
// knowledge; this package only swaps the library and adds the slice's files.
package cdi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

// Kind of the devices; a slice's full name is Kind=key.
const Kind = "huawei.com/vgpu"

// specVersion is the lowest that has all fields used here; older runtimes refuse newer ones.
const specVersion = "0.5.0"

// Fixed places inside a container, docs/interfaces.md section 6.
const (
	originalLibrary = "/opt/xpu/lib/libcuda-original.so"
	originalNVML    = "/opt/xpu/lib/libnvidia-ml-original.so"
	toolsDirectory  = "/opt/xpu/bin"
	sliceDirectory  = "/etc/xpu"
	ledgerPage      = "/run/xpu/ledger.page"
	stateDirectory  = "/var/lib/xpu"
)

// compatDirectory is where NVIDIA's images keep a newer libcuda of their own, early in the search
// path. In them it is a link's target, /usr/local/cuda leading to one version's directory, and the
// runtime follows links inside the image. An image without it gets an empty directory there.
const compatDirectory = "/usr/local/cuda/compat"

// compatHook would put an image's own libcuda before ours.
const compatHook = "enable-cuda-compat"

var (
	driverLibrary = regexp.MustCompile(`^libcuda\.so\.\d+(\.\d+)+$`)
	nvmlLibrary   = regexp.MustCompile(`^libnvidia-ml\.so\.\d+(\.\d+)+$`)
	cardNode      = regexp.MustCompile(`^/dev/nvidia\d+$`)
	instanceNode  = regexp.MustCompile(`^/dev/nvidia-caps/nvidia-cap\d+$`)
)

// Runtime says where our libraries and tools are on the host. NVML is empty where an older
// release of ours is installed, and the driver's own is mounted then. Empty is an empty directory. Sockets
// holds pids.sock alone: a directory, so that a container finds the socket of a plugin that started anew.
type Runtime struct {
	Library string
	NVML    string
	Tools   string
	Empty   string
	Sockets string
}

// Slice is what one entry needs to know.
type Slice struct {
	Key   string
	Cards []Card
	// Directory and LedgerPage are host paths.
	Directory  string
	LedgerPage string
}

// Card is what of a card a container needs: its own device node and, of a MIG instance, those of its capabilities.
type Card struct {
	Minor        int
	Capabilities []int
}

// ParseBase reads the vendor's spec.
func ParseBase(text []byte) (*specs.Spec, error) {
	var spec specs.Spec
	if err := yaml.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("not a CDI spec: %w", err)
	}
	if spec.Kind == "" || len(spec.Devices) == 0 {
		return nil, fmt.Errorf("CDI spec of kind %q has %d devices", spec.Kind, len(spec.Devices))
	}
	edits := []specs.ContainerEdits{spec.ContainerEdits}
	for _, device := range spec.Devices {
		edits = append(edits, device.ContainerEdits)
	}
	if slices.ContainsFunc(edits, hasNull) {
		return nil, errors.New("CDI spec has an empty entry among its device nodes, mounts or hooks")
	}
	return &spec, nil
}

func hasNull(edits specs.ContainerEdits) bool {
	return slices.Contains(edits.DeviceNodes, nil) || slices.Contains(edits.Mounts, nil) || slices.Contains(edits.Hooks, nil)
}

// Compose makes the spec of all slices of a node: what they share once, then one device each.
func Compose(base *specs.Spec, runtime Runtime, slices []Slice) (*specs.Spec, error) {
	common, err := commonEdits(base.ContainerEdits, runtime)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{Version: specVersion, Kind: Kind, ContainerEdits: common, Devices: []specs.Device{}}
	for _, slice := range slices {
		edits, err := sliceEdits(base, slice)
		if err != nil {
			return nil, fmt.Errorf("slice %s: %w", slice.Key, err)
		}
		spec.Devices = append(spec.Devices, specs.Device{Name: slice.Key, ContainerEdits: edits})
	}
	return spec, nil
}

// Without is the text of a spec of ours less one slice.
func Without(text []byte, key string) ([]byte, error) {
	var spec specs.Spec
	if err := yaml.UnmarshalStrict(text, &spec); err != nil || spec.Kind != Kind {
		return nil, fmt.Errorf("no CDI spec of kind %s (kind %q): %v", Kind, spec.Kind, err)
	}
	spec.Devices = slices.DeleteFunc(spec.Devices, func(device specs.Device) bool { return device.Name == key })
	return Marshal(&spec)
}

// Entry is all that a runtime makes of one slice's name: the spec's own part and the device's, as text.
type Entry struct{ Shared, Own string }

// Entries are those of a text that Marshal wrote, by key.
func Entries(text []byte) (map[string]Entry, error) {
	var spec struct {
		Version string          `json:"cdiVersion"`
		Kind    string          `json:"kind"`
		Edits   json.RawMessage `json:"containerEdits"`
		Devices []struct {
			Name  string          `json:"name"`
			Edits json.RawMessage `json:"containerEdits"`
		} `json:"devices"`
	}
	if err := json.Unmarshal(bytes.TrimPrefix(text, []byte(header)), &spec); err != nil || spec.Kind != Kind {
		return nil, fmt.Errorf("no CDI spec that this release wrote (kind %q): %v", spec.Kind, err)
	}
	shared, entries := spec.Version+string(spec.Edits), make(map[string]Entry, len(spec.Devices))
	for _, device := range spec.Devices {
		entries[device.Name] = Entry{shared, string(device.Edits)}
	}
	return entries, nil
}

func commonEdits(base specs.ContainerEdits, runtime Runtime) (specs.ContainerEdits, error) {
	edits := base
	edits.Hooks = withoutCompat(base.Hooks)
	edits.Mounts = nil
	swapped := 0
	for _, mount := range base.Mounts {
		name := path.Base(mount.ContainerPath)
		switch {
		case driverLibrary.MatchString(name):
			swapped++
			edits.Mounts = append(edits.Mounts, inPlace(mount, runtime.Library, originalLibrary)...)
		case nvmlLibrary.MatchString(name) && runtime.NVML != "":
			edits.Mounts = append(edits.Mounts, inPlace(mount, runtime.NVML, originalNVML)...)
		default:
			edits.Mounts = append(edits.Mounts, mount)
		}
	}
	if swapped != 1 {
		return edits, fmt.Errorf("base CDI spec mounts libcuda.so.<version> %d times, wanted once; "+
			"is the driver installed? run `nvidia-ctk cdi generate` again", swapped)
	}
	edits.Mounts = append(edits.Mounts, bind(runtime.Tools, toolsDirectory, "ro"),
		bind(runtime.Empty, compatDirectory, "ro"), bind(runtime.Sockets, stateDirectory, "ro"))
	return edits, nil
}

// inPlace mounts ours where the driver's library would be, and the driver's where ours looks for it.
func inPlace(theirs *specs.Mount, ours, original string) []*specs.Mount {
	return []*specs.Mount{bind(ours, theirs.ContainerPath, "ro"), bind(theirs.HostPath, original, "ro")}
}

func withoutCompat(hooks []*specs.Hook) []*specs.Hook {
	var kept []*specs.Hook
	for _, hook := range hooks {
		if !strings.Contains(strings.Join(hook.Args, " "), compatHook) {
			kept = append(kept, hook)
		}
	}
	return kept
}

func sliceEdits(base *specs.Spec, slice Slice) (specs.ContainerEdits, error) {
	edits := specs.ContainerEdits{Mounts: []*specs.Mount{
		bind(slice.Directory, sliceDirectory, "ro"),
		bind(slice.LedgerPage, ledgerPage, "rw"),
	}}
	for _, held := range slice.Cards {
		card, err := cardEdits(base, held)
		if err != nil {
			return edits, err
		}
		edits.DeviceNodes = append(edits.DeviceNodes, card.DeviceNodes...)
		edits.Mounts = append(edits.Mounts, card.Mounts...)
		edits.Hooks = append(edits.Hooks, withoutCompat(card.Hooks)...)
		edits.Env = append(edits.Env, card.Env...)
	}
	return edits, nil
}

// cardEdits finds the base entry of exactly one card by its device node: names are indexes in one
// release of the toolkit and UUIDs in another. For an instance any entry of its card does, whichever instances
// that spec was generated for: instances come and go without anybody generating it anew.
func cardEdits(base *specs.Spec, card Card) (specs.ContainerEdits, error) {
	wanted := fmt.Sprintf("/dev/nvidia%d", card.Minor)
	instance := len(card.Capabilities) > 0
	for _, device := range base.Devices {
		cards := cardNodes(device.ContainerEdits)
		if len(cards) == 1 && cards[0] == wanted && (instance || !slices.ContainsFunc(device.ContainerEdits.DeviceNodes, opensInstance)) {
			return withCapabilities(device.ContainerEdits, card.Capabilities), nil
		}
	}
	return specs.ContainerEdits{}, fmt.Errorf("base CDI spec has no entry for %s alone; "+
		"run `nvidia-ctk cdi generate` again", wanted)
}

func opensInstance(node *specs.DeviceNode) bool { return instanceNode.MatchString(node.Path) }

// withCapabilities opens the instance of these numbers and no other one.
func withCapabilities(edits specs.ContainerEdits, numbers []int) specs.ContainerEdits {
	edits.DeviceNodes = slices.DeleteFunc(slices.Clone(edits.DeviceNodes), opensInstance)
	for _, number := range numbers {
		edits.DeviceNodes = append(edits.DeviceNodes, &specs.DeviceNode{Path: fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", number)})
	}
	return edits
}

func cardNodes(edits specs.ContainerEdits) []string {
	var nodes []string
	for _, node := range edits.DeviceNodes {
		if cardNode.MatchString(node.Path) {
			nodes = append(nodes, node.Path)
		}
	}
	return nodes
}

func bind(host, container, access string) *specs.Mount {
	return &specs.Mount{HostPath: host, ContainerPath: container,
		Options: []string{access, "nosuid", "nodev", "rbind", "rprivate"}}
}

const header = "# Written by gpu-device-plugin, one device per slice; changes are lost.\n"

// Marshal is the file's text: JSON, which is YAML too. A container's start waits for it, and in YAML's own
// style a hundred slices take ten times as long.
func Marshal(spec *specs.Spec) ([]byte, error) {
	text, err := json.MarshalIndent(spec, "", " ")
	if err != nil {
		return nil, fmt.Errorf("CDI spec: %w", err)
	}
	return append(append([]byte(header), text...), '\n'), nil
}
