// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"flexai.io/xpu/cluster/cdi"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/xpu"
)

const base = `cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- {name: "0", containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}}
containerEdits:
  mounts: [{hostPath: /lib/libcuda.so.580.95.05, containerPath: /lib/libcuda.so.580.95.05},
    {hostPath: /lib/libnvidia-ml.so.580.95.05, containerPath: /lib/libnvidia-ml.so.580.95.05}]
`

var (
	owner = xpu.Owner{PodUID: "u1", Container: "app"}
	slice = xpu.Slice{Key: "s1", Owner: owner, Namespace: "n", Pod: "p", Tokens: []string{"t"},
		Shares: []xpu.Share{{UUID: "GPU-0", VID: 3, CoresPercent: 20, MemoryMiB: 3072}}}
	cards = []xpu.Card{{UUID: "GPU-0", Minor: 0, MemoryMiB: 40960, Split: 20, Healthy: true}}
)

func open(t *testing.T) (*Store, Paths) {
	t.Helper()
	root := t.TempDir()
	paths := Paths{Etc: root + "/etc/xpu", State: root + "/var/xpu", Run: root + "/run/xpu", BaseCDI: root + "/nvidia.yaml",
		CDI: root + "/vgpu.yaml", Runtime: root + "/opt/xpu"}
	write(t, paths.BaseCDI, base)
	write(t, root+"/opt/xpu/versions/1/lib/libcuda_direct.so", "")
	write(t, root+"/opt/xpu/versions/1/bin/gpu-monitor", "")
	for link, target := range map[string]string{"current": "versions/1", "lib": "current/lib", "bin": "current/bin"} {
		if err := os.Symlink(target, filepath.Join(paths.Runtime, link)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(paths)
	if err != nil {
		t.Fatal(err)
	}
	return s, paths
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func ledger(t *testing.T, slices ...xpu.Slice) xpu.Ledger {
	t.Helper()
	l, err := xpu.NewLedger(slices)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSliceFilesFollowTheContract(t *testing.T) {
	s, paths := open(t)
	if err := s.WriteSlice(slice); err != nil {
		t.Fatal(err)
	}
	directory := paths.Run + "/pods/u1/app"
	for name, want := range map[string]string{"vgpu.config": "UsedMem:3072\nUsedCores:20\n",
		"vgpu-ids.config": "GPU-0-3\n", "pids.config": "", "on_error": "allow\n"} {
		if got := read(t, directory+"/"+name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	want, _ := pages.Config{Cards: []pages.Card{{UUID: "GPU-0", MemoryBytes: 3 << 30, TauNs: burstNs,
		CoresPercent: 20, Mode: pages.ModeHard, TrimQ16: pages.TrimOne, VID: 3}}}.Encode()
	if read(t, directory+"/config.page") != string(want) {
		t.Error("config.page is not what the slice says")
	}
	page := paths.Run + "/slices/s1/ledger.page"
	info, err := os.Stat(page)
	if err != nil || info.Size() != pages.LedgerBytes || info.Mode().Perm() != 0o666 {
		t.Errorf("ledger page: %v, %v", info, err)
	}
}

func TestARestartedContainerGetsAFreshLedgerPage(t *testing.T) {
	s, paths := open(t)
	page := paths.Run + "/slices/s1/ledger.page"
	for range 2 {
		if err := s.WriteSlice(slice); err != nil {
			t.Fatal(err)
		}
		if read(t, page) != string(pages.NewLedger()) {
			t.Fatal("the ledger page holds what dead processes charged")
		}
		write(t, page, "charged")
	}
}

func TestLimitModes(t *testing.T) {
	for cores, want := range map[int]pages.Mode{0: pages.ModeNone, 1: pages.ModeHard, 99: pages.ModeHard, 100: pages.ModeNone} {
		if got := Entry(xpu.Share{CoresPercent: cores}).Mode; got != want {
			t.Errorf("%d %% is mode %d, want %d", cores, got, want)
		}
	}
}

func TestModesOfTheLedgerStandInThePage(t *testing.T) {
	for mode, want := range map[xpu.Mode]pages.Mode{"": pages.ModeHard, xpu.ModeHard: pages.ModeHard,
		xpu.ModeElastic: pages.ModeElastic, xpu.ModeFixedShare: pages.ModeFixedShare, xpu.ModePriority: pages.ModePriority} {
		got := Entry(xpu.Share{CoresPercent: 20, Mode: mode, Weight: 3})
		if got.Mode != want || got.Weight != 3 {
			t.Errorf("mode %q is %d with weight %d, want %d and 3", mode, got.Mode, got.Weight, want)
		}
	}
	// Without a share of its own a slice of mode priority must not start as one without a limit.
	if got := Entry(xpu.Share{Mode: xpu.ModePriority}); got.Mode != pages.ModePriority || got.EffectiveQ16 != pages.TrimOne {
		t.Errorf("%+v", got)
	}
}

func TestALedgerOfBeforeTheModesIsRead(t *testing.T) {
	s, paths := open(t)
	write(t, paths.State+"/ledger.json", `{"version": 1, "slices": [{"key": "k", "owner": {"pod_uid": "u", "container": "c"},
		"shares": [{"uuid": "GPU-0", "vid": 0, "cores_percent": 20, "memory_mib": 1024}]}]}`)
	read, err := Read(paths)
	if err != nil || len(read.Slices()) != 1 || Entry(read.Slices()[0].Shares[0]).Mode != pages.ModeHard {
		t.Fatalf("%+v, %v", read.Slices(), err)
	}
	if err := s.Save(read); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(paths.State + "/ledger.json"); strings.Contains(string(text), "mode") {
		t.Errorf("a default is written out: %s", text)
	}
}

// On a disk that is busy with starting containers each write is something to wait for.
func TestWhatStandsIsNotWrittenAgain(t *testing.T) {
	s, paths := open(t)
	start := func() {
		t.Helper()
		err := s.Transact(func(xpu.Ledger) error {
			if err := s.WriteSlice(slice); err != nil {
				return err
			}
			return s.WriteCDI(ledger(t, slice), cards)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	files := func() map[string]os.FileInfo {
		t.Helper()
		found := map[string]os.FileInfo{}
		for _, directory := range []string{paths.Run + "/pods/u1/app", paths.Run + "/slices/s1", filepath.Dir(paths.CDI), paths.State} {
			entries, err := os.ReadDir(directory)
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range entries {
				if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
					found[filepath.Join(directory, entry.Name())] = info
				}
			}
		}
		return found
	}
	altered := func(before, after map[string]os.FileInfo) (names []string) {
		for path, info := range after {
			if old := before[path]; old == nil || !os.SameFile(old, info) || !old.ModTime().Equal(info.ModTime()) {
				names = append(names, filepath.Base(path))
			}
		}
		return names
	}
	start()
	before := files()
	start()
	if again := altered(before, files()); len(again) > 0 {
		t.Errorf("written again: %v", again)
	}
	page := paths.Run + "/slices/s1/ledger.page"
	write(t, page, "charged")
	if err := os.Chmod(paths.Run+"/pods/u1/app/on_error", 0o600); err != nil {
		t.Fatal(err)
	}
	start()
	again := altered(before, files())
	slices.Sort(again)
	if !reflect.DeepEqual(again, []string{"ledger.page", "on_error"}) {
		t.Errorf("written again: %v", again)
	}
}

func TestLedgerReadsBackAndIsRebuilt(t *testing.T) {
	s, paths := open(t)
	if empty, err := s.Load(); err != nil || len(empty.Slices()) != 0 {
		t.Fatalf("a new node has %v, %v", empty, err)
	}
	want := ledger(t, slice)
	if err := s.WriteSlice(slice); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(){
		"whole":     func() {},
		"lost":      func() { os.Remove(paths.State + "/ledger.json") },
		"torn":      func() { write(t, paths.State+"/ledger.json", `{"version": 1, "sl`) },
		"from Mars": func() { write(t, paths.State+"/ledger.json", `{"version": 7}`) },
	} {
		damage()
		got, err := s.Load()
		if err != nil || !reflect.DeepEqual(got.Slices(), want.Slices()) {
			t.Errorf("%s: got %+v, %v", name, got.Slices(), err)
		}
	}
}

func TestRemoveSliceLeavesOtherContainersOfThePod(t *testing.T) {
	s, paths := open(t)
	other := slice
	other.Owner.Container, other.Key = "side", "s2"
	for _, one := range []xpu.Slice{slice, other} {
		if err := s.WriteSlice(one); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RemoveSlice(slice); err != nil {
		t.Fatal(err)
	}
	read(t, paths.Run+"/pods/u1/side/vgpu.config")
	for range 2 {
		if err := s.RemoveSlice(other); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(paths.Run + "/pods/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSweepKeepsTheLedgersSlicesAndForeignFiles(t *testing.T) {
	s, paths := open(t)
	orphan := slice
	orphan.Owner.PodUID, orphan.Key = "u2", "s2"
	for _, one := range []xpu.Slice{slice, orphan} {
		if err := s.WriteSlice(one); err != nil {
			t.Fatal(err)
		}
	}
	write(t, paths.Etc+"/site/notes/readme", "kept")
	if err := s.Sweep(ledger(t, slice)); err != nil {
		t.Fatal(err)
	}
	read(t, paths.Run+"/pods/u1/app/config.page")
	read(t, paths.Run+"/slices/s1/ledger.page")
	read(t, paths.Etc+"/site/notes/readme")
	for _, path := range []string{paths.Run + "/pods/u2/app", paths.Run + "/slices/s2"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was left", path)
		}
	}
}

// A slice that is made or removed file by file may be killed after each of them; so may the removal of its directories.
func TestSweepLeavesNothingOfASliceThatWasKilledHalfway(t *testing.T) {
	s, paths := open(t)
	all(t, s, slice)
	files, err := os.ReadDir(paths.Run + "/pods/u1/app")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	left := [][]string{nil, {""}} // the pod's directory, the container's
	for _, file := range files {
		left = append(left, []string{file.Name()}, []string{scratchPrefix(file.Name()) + "123"})
	}
	for _, inMemory := range []bool{true, false} {
		for _, files := range left {
			s, paths := open(t)
			all(t, s, slice)
			pods := paths.Etc
			if inMemory {
				pods = paths.Run + "/pods"
			}
			if err := os.MkdirAll(pods+"/u2", 0o755); err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				directory := pods + "/u2/app"
				if err := os.Mkdir(directory, 0o755); err != nil {
					t.Fatal(err)
				}
				if file != "" {
					write(t, directory+"/"+file, "")
				}
			}
			write(t, paths.Etc+"/notes", "kept")
			if err := s.Sweep(ledger(t, slice)); err != nil {
				t.Fatal(err)
			}
			absent(t, pods+"/u2")
			read(t, paths.Run+"/pods/u1/app/config.page")
			read(t, paths.Etc+"/notes")
		}
	}
}

func TestCDIFileNamesResolvedPaths(t *testing.T) {
	s, paths := open(t)
	lost := slice
	lost.Key, lost.Owner.PodUID, lost.Tokens = "s9", "u9", []string{"t9"}
	lost.Shares = []xpu.Share{{UUID: "GPU-9"}}
	if err := s.WriteCDI(ledger(t, slice, lost), cards); err != nil {
		t.Fatal(err)
	}
	text := read(t, paths.CDI)
	spec, err := cdi.ParseBase([]byte(text))
	if err != nil || len(spec.Devices) != 1 || spec.Devices[0].Name != "s1" {
		t.Fatalf("%v: %s", err, text)
	}
	if !strings.Contains(text, "/opt/xpu/versions/1/lib/libcuda_direct.so") {
		t.Errorf("the library is named through a link:\n%s", text)
	}
	if strings.Contains(text, "libnvidia-ml_direct.so") {
		t.Errorf("a library is named that this release lacks:\n%s", text)
	}
	if entries, err := os.ReadDir(paths.State + "/empty"); err != nil || len(entries) > 0 {
		t.Errorf("the empty directory: %v, %v", entries, err)
	}
	write(t, paths.Runtime+"/versions/1/lib/libnvidia-ml_direct.so", "")
	if err := s.WriteCDI(ledger(t, slice), cards); err != nil {
		t.Fatal(err)
	}
	if text := read(t, paths.CDI); !strings.Contains(text, "/opt/xpu/versions/1/lib/libnvidia-ml_direct.so") {
		t.Errorf("NVML's place is not taken:\n%s", text)
	}
}

func TestThePolicyForErrorsStandsBesideTheGrant(t *testing.T) {
	s, paths := open(t)
	s.OnError = DenyNewMemory
	if err := s.WriteSlice(slice); err != nil {
		t.Fatal(err)
	}
	if got := read(t, paths.Run+"/pods/u1/app/on_error"); got != "deny-new-memory\n" {
		t.Errorf("on_error is %q", got)
	}
	for text, known := range map[string]bool{"allow": true, "deny-new-memory": true, "": false, "deny": false, "Allow": false} {
		if _, err := ParseOnError(text); (err == nil) != known {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestErrorsNameTheRemedy(t *testing.T) {
	s, paths := open(t)
	os.Remove(paths.BaseCDI)
	if err := s.WriteCDI(ledger(t), cards); err == nil || !strings.Contains(err.Error(), "nvidia-ctk cdi generate") {
		t.Errorf("no base spec: %v", err)
	}
	write(t, paths.BaseCDI, base)
	os.RemoveAll(paths.Runtime)
	if err := s.WriteCDI(ledger(t), cards); err == nil || !strings.Contains(err.Error(), "xpu_runtime") {
		t.Errorf("no library: %v", err)
	}
}

func TestOwnersCannotLeaveTheirDirectory(t *testing.T) {
	s, _ := open(t)
	for _, bad := range []xpu.Owner{{PodUID: "..", Container: "x"}, {PodUID: "u", Container: "../../x"}, {PodUID: "", Container: "x"}} {
		evil := slice
		evil.Owner = bad
		if s.WriteSlice(evil) == nil || s.RemoveSlice(evil) == nil {
			t.Errorf("owner %q was accepted", bad)
		}
	}
}

func TestPidsAreWrittenWholeAndOnlyWhenTheyChange(t *testing.T) {
	s, paths := open(t)
	if err := s.WriteSlice(slice); err != nil {
		t.Fatal(err)
	}
	file := paths.Run + "/pods/u1/app/pids.config"
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string) os.FileInfo {
		t.Helper()
		if err := paths.WritePids(slice, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got := read(t, file); got != text {
			t.Errorf("%q, want %q", got, text)
		}
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	written := put("100         1          \n")
	if os.SameFile(before, written) || written.Mode() != 0o444 {
		t.Errorf("not replaced whole, or mode %v", written.Mode())
	}
	if again := put("100         1          \n"); !os.SameFile(written, again) {
		t.Error("the same text was written again")
	}
	put("")
}

func TestPidsOfASliceThatEndedAreAnError(t *testing.T) {
	s, paths := open(t)
	if err := s.WriteSlice(slice); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveSlice(slice); err != nil {
		t.Fatal(err)
	}
	if err := paths.WritePids(slice, []byte("x")); err == nil {
		t.Error("its directory was made anew")
	}
	escaping := slice
	escaping.Owner.Container = ".."
	if err := paths.WritePids(escaping, []byte("x")); err == nil {
		t.Error("an owner left his directory")
	}
}

// Who asks first must be told what the write would do.
func TestACDIFileStandsWhereItsWriteWouldChangeNothing(t *testing.T) {
	s, paths := open(t)
	l := ledger(t, slice)
	for name, spoil := range map[string]func(){
		"none":           func() { os.Remove(paths.CDI) },
		"another text":   func() { write(t, paths.CDI, "cdiVersion: 0.5.0\n") },
		"another's mode": func() { os.Chmod(paths.CDI, 0o600) },
	} {
		spoil()
		if stands, err := s.CDIStands(l, cards); stands || err != nil {
			t.Errorf("%s: stands %t, %v", name, stands, err)
		}
		if err := s.WriteCDI(l, cards); err != nil {
			t.Fatal(err)
		}
		if stands, err := s.CDIStands(l, cards); !stands || err != nil {
			t.Errorf("%s, written: stands %t, %v", name, stands, err)
		}
	}
}

// A start asks for its own entry: whether another's is there yet is nothing to wait for.
func TestAnEntryStandsWhateverTheFileSaysOfOthers(t *testing.T) {
	s, paths := open(t)
	other := slice
	other.Key, other.Owner.PodUID, other.Tokens = "s2", "u2", []string{"t2"}
	other.Shares = []xpu.Share{{UUID: "GPU-0", VID: 4, CoresPercent: 10, MemoryMiB: 1024}}
	stands := func(what string, want bool) {
		t.Helper()
		if got, err := s.EntryStands(slice, cards); got != want || err != nil {
			t.Errorf("%s: stands %t, %v", what, got, err)
		}
	}
	put := func(slices ...xpu.Slice) {
		t.Helper()
		if err := s.WriteCDI(ledger(t, slices...), cards); err != nil {
			t.Fatal(err)
		}
	}
	stands("no file", false)
	put(slice)
	stands("alone", true)
	put(slice, other)
	stands("beside another", true)
	put(other)
	stands("another alone", false)
	write(t, paths.CDI, "devices: []\n")
	stands("not ours", false)
	put(slice)
	write(t, paths.BaseCDI, strings.Replace(base, "/dev/nvidia0", "/dev/nvidia0, permissions: r", 1))
	stands("the driver's devices are others", false)
	put(slice)
	stands("written anew", true)
	write(t, paths.Runtime+"/versions/1/lib/libnvidia-ml_direct.so", "")
	stands("our release is another", false)
	if got, err := s.EntryStands(slice, nil); got || err != nil {
		t.Errorf("a card that is gone: stands %t, %v", got, err)
	}
}
