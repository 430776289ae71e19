// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/xpu"
)

var hosts = xpu.Slice{Key: "train", Owner: xpu.HostOwner("train"), Shares: []xpu.Share{{UUID: "GPU-0", VID: 1, CoresPercent: 30, MemoryMiB: 1024}}}

func all(t *testing.T, s *Store, slices ...xpu.Slice) {
	t.Helper()
	for _, one := range slices {
		if err := s.WriteSlice(one); err != nil {
			t.Fatal(err)
		}
	}
}

func absent(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is there", path)
		}
	}
}

func TestSlicesOfTheHostLieOnDiskAndThoseOfPodsInMemory(t *testing.T) {
	s, paths := open(t)
	all(t, s, hosts)
	absent(t, paths.Run) // a host without pods
	all(t, s, slice)
	read(t, paths.Etc+"/host/train/config.page")
	read(t, paths.State+"/slices/train/ledger.page")
	read(t, paths.Run+"/pods/u1/app/config.page")
	read(t, paths.Run+"/slices/s1/ledger.page")
	absent(t, paths.Etc+"/u1", paths.State+"/slices/s1")
	for _, directory := range []string{paths.State + "/slices", paths.Run + "/slices"} {
		if info, err := os.Stat(directory); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("pages that everyone may write lie in %s, %v", info.Mode(), err)
		}
	}
	// All that is known of a ledger that is lost.
	if got, err := s.Load(); err != nil || !reflect.DeepEqual(got.Slices(), ledger(t, hosts, slice).Slices()) {
		t.Errorf("rebuilt %+v, %v", got.Slices(), err)
	}
}

// older makes a slice's files where releases before the memory's had them.
func older(t *testing.T, s *Store, paths Paths, one xpu.Slice) {
	t.Helper()
	if err := os.MkdirAll(paths.onDisk(one).config, 0o755); err != nil {
		t.Fatal(err)
	}
	all(t, s, one)
	read(t, paths.State+"/slices/"+one.Key+"/ledger.page")
}

// A container of before an upgrade has the directory mounted, and so does each that starts from its entry.
func TestASliceOfAnOlderReleaseStaysWhereItIsUntilItEnds(t *testing.T) {
	s, paths := open(t)
	older(t, s, paths, slice)
	l := ledger(t, slice)
	if config, page := paths.Pages(slice); config != paths.Etc+"/u1/app/config.page" || page != paths.State+"/slices/s1/ledger.page" {
		t.Errorf("pages %s and %s", config, page)
	}
	before, _ := os.Stat(paths.Etc + "/u1/app/config.page")
	if err := s.Sweep(l); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(l); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteCDI(l, cards); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(paths.Etc + "/u1/app/config.page"); err != nil || !os.SameFile(before, after) {
		t.Errorf("the page that is mounted is another now, %v", err)
	}
	if text := read(t, paths.CDI); !strings.Contains(text, `"`+paths.Etc+`/u1/app"`) || strings.Contains(text, paths.Run) {
		t.Errorf("the entry names another directory:\n%s", text)
	}
	all(t, s, slice) // the container restarts
	absent(t, paths.Run)
	if err := s.RemoveSlice(slice); err != nil {
		t.Fatal(err)
	}
	absent(t, paths.Etc+"/u1", paths.State+"/slices/s1")
	all(t, s, slice)
	read(t, paths.Run+"/pods/u1/app/config.page")
	absent(t, paths.Etc+"/u1")
}

// Killed between the two directories, what is left of the slice is in neither place of another.
func TestARemovalThatWasKilledIsSweptOnBothSides(t *testing.T) {
	s, paths := open(t)
	other := slice
	other.Key, other.Owner.PodUID = "s2", "u2"
	older(t, s, paths, slice)
	all(t, s, other)
	for _, directory := range []string{paths.Etc + "/u1/app", paths.Run + "/pods/u2/app"} {
		if err := os.RemoveAll(directory); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sweep(ledger(t)); err != nil {
		t.Fatal(err)
	}
	absent(t, paths.State+"/slices/s1", paths.Run+"/slices/s2")
}

func TestWhatABootTookIsRestoredAndWhatIsThereStays(t *testing.T) {
	s, paths := open(t)
	all(t, s, slice, hosts)
	l := ledger(t, slice, hosts)
	if err := os.RemoveAll(paths.Run); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		t.Helper()
		if err := s.Restore(l); err != nil {
			t.Fatal(err)
		}
	}
	restore()
	if stands, err := s.Lacking(slice); err != nil || len(stands) > 0 {
		t.Errorf("lacking %v, %v", stands, err)
	}
	if info, err := os.Stat(paths.Run + "/slices"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory of the pages: %v", err)
	}
	page := paths.Run + "/slices/s1/ledger.page"
	write(t, page, "charged")
	restore()
	if read(t, page) != "charged" {
		t.Error("the page of a container that may run was replaced")
	}
	broken := slice
	broken.Key, broken.Owner, broken.Tokens, broken.Shares = "s0", xpu.Owner{PodUID: "u0", Container: "app"}, []string{"t0"}, nil
	if err := os.RemoveAll(paths.Run); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(ledger(t, broken, slice)); err == nil || !strings.Contains(err.Error(), "without a card") {
		t.Errorf("%v", err)
	}
	read(t, page)
	// The host's slices are mended by who looks after the host.
	if err := os.Remove(filepath.Join(paths.Etc, "host/train/on_error")); err != nil {
		t.Fatal(err)
	}
	restore()
	absent(t, paths.Etc+"/host/train/on_error")
	all(t, s, slice)
	if read(t, page) != string(pages.NewLedger()) {
		t.Error("a start didn't get a fresh page")
	}
}
