// SPDX-License-Identifier: Apache-2.0

// Package checkpoint reads the kubelet's own record of which container holds which device ids:
// file kubelet_internal_checkpoint in the device-plugin directory. It is the only place that names
// pod UIDs and init containers, and reading it costs the kubelet nothing.
package checkpoint

import (
	"encoding/json"
	"fmt"
	"sort"

	"flexai.io/xpu/cluster/reread"
)

// maxBytes bounds what is read; a node with 10,000 containers stays far below.
const maxBytes = 64 << 20

// Entry is what one container holds of one resource.
type Entry struct {
	PodUID    string
	Container string
	Resource  string
	IDs       []string
}

// file mirrors the kubelet's JSON. Its checksum is not verified: it is a hash over a print-out of
// the kubelet's Go structs that differs between its releases, and the kubelet writes the file by
// rename, so a torn one can't be read.
type file struct {
	Data *struct {
		PodDeviceEntries []struct {
			PodUID        string
			ContainerName string
			ResourceName  string
			DeviceIDs     map[int64][]string
		}
	}
}

// Decode reads the kubelet's text.
func Decode(text []byte) ([]Entry, error) {
	var f file
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("not a device manager checkpoint: %w", err)
	}
	if f.Data == nil {
		return nil, fmt.Errorf("not a device manager checkpoint: no field Data")
	}
	entries := make([]Entry, 0, len(f.Data.PodDeviceEntries))
	for _, e := range f.Data.PodDeviceEntries {
		entry := Entry{PodUID: e.PodUID, Container: e.ContainerName, Resource: e.ResourceName}
		for _, ids := range e.DeviceIDs {
			entry.IDs = append(entry.IDs, ids...)
		}
		sort.Strings(entry.IDs)
		entries = append(entries, entry)
	}
	return entries, nil
}

// Read decodes the file at path.
func Read(path string) ([]Entry, error) {
	reader := NewReader(path)
	defer reader.Close()
	return reader.Read()
}

// Reader reads one file again and again: each start of a container asks, and the kubelet writes, by rename,
// when it admits a pod.
type Reader struct{ file *reread.File[[]Entry] }

// NewReader reads nothing yet.
func NewReader(path string) Reader { return Reader{reread.New(path, maxBytes, Decode)} }

// Close lets go of the file.
func (r Reader) Close() { r.file.Close() }

// Read is what the file says now; callers share the answer and must not change it.
func (r Reader) Read() ([]Entry, error) {
	entries, err := r.file.Read()
	if err != nil {
		return nil, fmt.Errorf("kubelet's checkpoint: %w", err)
	}
	return entries, nil
}

// Container is one container with the ids it holds, by resource.
type Container struct {
	PodUID string
	Name   string
	IDs    map[string][]string
}

// Holders are the containers that hold exactly these ids of a resource. It is one container, or
// several of one pod: the kubelet hands an init container's ids on to a later container.
func Holders(entries []Entry, resource string, ids []string) []Container {
	wanted := append([]string(nil), ids...)
	sort.Strings(wanted)
	var holders []Container
	for _, entry := range entries {
		if entry.Resource == resource && equal(entry.IDs, wanted) {
			holders = append(holders, Container{PodUID: entry.PodUID, Name: entry.Container,
				IDs: Held(entries, entry.PodUID, entry.Container)})
		}
	}
	return holders
}

// Held is what one container holds, by resource.
func Held(entries []Entry, podUID, container string) map[string][]string {
	ids := map[string][]string{}
	for _, entry := range entries {
		if entry.PodUID == podUID && entry.Container == container {
			ids[entry.Resource] = entry.IDs
		}
	}
	return ids
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
