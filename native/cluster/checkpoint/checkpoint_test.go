// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const number = "huawei.com/vgpu-number"

const sample = `{"Data":{"PodDeviceEntries":[
 {"PodUID":"u1","ContainerName":"init","ResourceName":"huawei.com/vgpu-number","DeviceIDs":{"-1":["a"]},"AllocResp":""},
 {"PodUID":"u1","ContainerName":"app","ResourceName":"huawei.com/vgpu-number","DeviceIDs":{"1":["b"],"0":["a"]},"AllocResp":"AA=="},
 {"PodUID":"u1","ContainerName":"app","ResourceName":"huawei.com/vgpu-cores","DeviceIDs":{"0":["c1","c2"]},"AllocResp":null},
 {"PodUID":"u2","ContainerName":"app","ResourceName":"huawei.com/vgpu-number","DeviceIDs":{"0":["d"]},"AllocResp":""}
],"RegisteredDevices":{"huawei.com/vgpu-number":["a","b","d"]}},"Checksum":123}`

func TestHoldersMatchWholeSets(t *testing.T) {
	entries, err := Decode([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		ids  []string
		want []string
	}{
		"one id of two is another container": {[]string{"a"}, []string{"u1/init"}},
		"both ids, any order":                {[]string{"b", "a"}, []string{"u1/app"}},
		"another pod":                        {[]string{"d"}, []string{"u2/app"}},
		"unknown":                            {[]string{"z"}, nil},
		"ids of two pods":                    {[]string{"a", "d"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, holder := range Holders(entries, number, test.ids) {
				got = append(got, holder.PodUID+"/"+holder.Name)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	app := Holders(entries, number, []string{"a", "b"})[0]
	if cores := app.IDs["huawei.com/vgpu-cores"]; len(cores) != 2 {
		t.Errorf("cores of app: %v, want two ids", cores)
	}
}

func TestReadNamesTheFileAndTheFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubelet_internal_checkpoint")
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: %v", err)
	}
	for _, text := range []string{"", "{}", "[]", `{"Data":{"PodDeviceEntries":{}}}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{sample, "", "{}", `{"Data":null}`, `{"Data":{"PodDeviceEntries":[null]}}`,
		`{"Data":{"PodDeviceEntries":[{"DeviceIDs":{"x":[]}}]}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := Decode(text)
		if err != nil {
			return
		}
		for _, entry := range entries {
			found := false
			for _, holder := range Holders(entries, entry.Resource, entry.IDs) {
				found = found || holder.PodUID == entry.PodUID && holder.Name == entry.Container
			}
			if !found {
				t.Errorf("entry %+v is not among the holders of its own ids", entry)
			}
		}
	})
}
