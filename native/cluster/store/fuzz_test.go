// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"flexai.io/xpu/cluster/xpu"
)

// Whatever stands in the ledger's file: it loads or says why, what loads reads back, and no slice in it
// writes outside its directories.
func FuzzLoad(f *testing.F) {
	good, err := json.Marshal(stored{Version: 1, Slices: []xpu.Slice{slice}})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(good), "", "{}", "null", `{"version":1}`, `{"version":1,"slices":[{}]}`,
		`{"version":1,"slices":[{"Key":"../../x","Owner":{"PodUID":"..","Container":"/"},"Shares":null}]}`,
		strings.Replace(string(good), `"s1"`, `"../s1"`, 1), `{"version":2,"slices":[]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		root := t.TempDir()
		s, err := Open(Paths{Etc: root + "/etc/xpu", State: root + "/var/xpu", Run: root + "/run/xpu"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.ledgerFile(), text, 0o600); err != nil {
			t.Fatal(err)
		}
		ledger, err := s.Load()
		if err != nil {
			return
		}
		if err := s.Save(ledger); err != nil {
			t.Fatal(err)
		}
		again, err := s.Load()
		if err != nil || !reflect.DeepEqual(again.Slices(), ledger.Slices()) {
			t.Errorf("%v reads back as %v, %v", ledger.Slices(), again.Slices(), err)
		}
		for _, one := range ledger.Slices() {
			_ = s.WriteSlice(one)
		}
		assertOnly(t, root, "etc/xpu", "var/xpu/slices", "run/xpu/pods", "run/xpu/slices", "var/xpu/ledger.json", "var/xpu/ledger.journal", "var/xpu/ledger.lock")
	})
}

// assertOnly fails on a file under root that is none of these and not below one.
func assertOnly(t *testing.T, root string, allowed ...string) {
	t.Helper()
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, root+"/")
		for _, one := range allowed {
			if name == one || strings.HasPrefix(name, one+"/") {
				return nil
			}
		}
		t.Errorf("a slice wrote %s", name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
