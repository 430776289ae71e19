// SPDX-License-Identifier: Apache-2.0

package hostslice

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"flexai.io/xpu/cluster/live"
	"flexai.io/xpu/cluster/live/livetest"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/xpu"
)

const (
	childRoot = "XPU_HOSTSLICE_ROOT" // makes the test's program a worker on that machine
	base      = `cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- {name: "0", containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}}
- {name: "1", containerEdits: {deviceNodes: [{path: /dev/nvidia1}]}}
containerEdits:
  mounts: [{hostPath: /lib/libcuda.so.580.95.05, containerPath: /lib/libcuda.so.580.95.05}]
`
)

var twoCards = []xpu.Card{
	{UUID: "GPU-0", Index: 0, Minor: 0, MemoryMiB: 40960, Split: 256, Healthy: true},
	{UUID: "GPU-1", Index: 1, Minor: 1, MemoryMiB: 40960, Split: 256, Healthy: true},
}

func TestMain(m *testing.M) {
	if root := os.Getenv(childRoot); root != "" {
		work(root, os.Args[1], os.Args[2:])
	}
	livetest.Main(m)
}

// work is a worker's life: calls as the arguments say, until it is killed or has done all.
func work(root, seed string, names []string) {
	number, err := strconv.ParseInt(seed, 10, 64)
	if err != nil {
		panic(err)
	}
	random, manager := rand.New(rand.NewSource(number)), manager(root)
	for range 40 {
		wish := want(names[random.Intn(len(names))], 1+random.Intn(60), uint64(1+random.Intn(20000)))
		call := func() (Change, error) { return manager.Ensure(wish, false) }
		if random.Intn(3) == 0 {
			call = func() (Change, error) { return manager.Remove(wish.Name, false) }
		}
		_, err := call()
		for errors.Is(err, store.ErrTaken) { // on a busy machine; it says to try again
			_, err = call()
		}
		var full *xpu.NoFit
		if err != nil && !errors.As(err, &full) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(0)
}

func manager(root string) Manager {
	return Manager{Paths: store.Paths{Etc: root + "/etc", State: root + "/var", Run: root + "/run", BaseCDI: root + "/nvidia.yaml", CDI: root + "/vgpu.yaml",
		Runtime: root + "/opt"}, OnError: store.Allow, Proc: root + "/proc", Discover: func() ([]xpu.Card, error) { return twoCards, nil }}
}

// machine is a host with two cards and no processes.
func machine(t *testing.T) Manager {
	t.Helper()
	root := t.TempDir()
	for path, text := range map[string]string{"/nvidia.yaml": base, "/opt/lib/libcuda_direct.so": "", "/opt/bin/gpu-monitor": "", "/proc/version": ""} {
		put(t, root+path, text)
	}
	return manager(root)
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func want(name string, cores int, memory uint64) Wish {
	return Wish{Name: name, Card: xpu.AnyCard, Cores: &cores, MemoryMiB: &memory}
}

func must(t *testing.T) func(Change, error) Change {
	return func(change Change, err error) Change {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return change
	}
}

func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("not refused")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q lacks %q", err, word)
		}
	}
}

func (m Manager) entry(t *testing.T, name string) bool {
	t.Helper()
	text, err := os.ReadFile(m.Paths.CDI)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := yaml.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(spec.Devices, func(device specs.Device) bool { return device.Name == name })
}

func (m Manager) grant(t *testing.T, name string) pages.Card {
	t.Helper()
	opened, err := live.Open(m.Paths.Pages(xpu.Slice{Key: name, Owner: xpu.HostOwner(name)}))
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	config, err := opened.Config()
	if err != nil || len(config.Cards) != 1 {
		t.Fatalf("%+v, %v", config, err)
	}
	return config.Cards[0]
}

// hold lets a process of the slice hold memory, as the library does.
func (m Manager) hold(t *testing.T, name string, bytes uint64) *livetest.Member {
	t.Helper()
	config, ledger := m.Paths.Pages(xpu.Slice{Key: name, Owner: xpu.HostOwner(name)})
	pair := livetest.Pair{Config: config, Ledger: ledger}
	member := pair.Hold(t, 0)
	pair.Slot(t, 0, 1<<32|1, 1, bytes)
	return member
}

func TestASliceIsADeviceByItsName(t *testing.T) {
	m := machine(t)
	change := must(t)(m.Add(want("train", 20, 3072)))
	after := Terms{Name: "train", Device: "huawei.com/vgpu=train", Card: "GPU-0", CoresPercent: 20, MemoryMiB: 3072, Mode: xpu.ModeHard}
	if change.Action != Added || !change.Changed || change.Before != nil || *change.After != after {
		t.Errorf("%+v", change)
	}
	if !m.entry(t, "train") {
		t.Error("no CDI device train")
	}
	limits, err := os.ReadFile(m.Paths.Etc + "/host/train/vgpu.config")
	if err != nil || string(limits) != "UsedMem:3072\nUsedCores:20\n" {
		t.Errorf("vgpu.config %q, %v", limits, err)
	}
	if again := must(t)(m.Add(want("train", 20, 3072))); again.Changed || again.Action != None || *again.Before != after {
		t.Errorf("the same again: %+v", again)
	}
	_, err = m.Add(want("train", 30, 3072))
	refused(t, err, "train is there already", "20 %", "slice resize")
}

func TestRefusalsNameWhatIsWrongAndWhatIsFree(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("big", 80, 40000)))
	must(t)(m.Add(want("other", 80, 40000)))
	_, err := m.Add(want("more", 30, 1024))
	refused(t, err, "GPU-0: 20 % cores and 960 MiB free", "GPU-1: 20 % cores and 960 MiB free")
	on := func(card string) Wish { w := want("x", 10, 100); w.Card = card; return w }
	_, err = m.Add(on("GPU-7"))
	refused(t, err, `card "GPU-7" is not here`, "0 (GPU-0), 1 (GPU-1)")
	mode := func(mode xpu.Mode, cores, weight int) Wish {
		w := want("x", cores, 100)
		w.Mode, w.Weight = &mode, &weight
		return w
	}
	for text, wish := range map[string]Wish{
		"mode \"soft\"": mode("soft", 10, 0), "mode elastic needs cores": mode(xpu.ModeElastic, 0, 0),
		"mode fixed-share needs cores": mode(xpu.ModeFixedShare, 0, 0), "promised no cores": mode(xpu.ModePriority, 10, 0),
		"weight 3: only modes": mode(xpu.ModeHard, 10, 3), "weight 10001": mode(xpu.ModeElastic, 10, 10001),
		"cores 101": want("x", 101, 100), "cores -1": want("x", -1, 100),
		`name "-x"`: want("-x", 1, 1), `name "a/b"`: want("a/b", 1, 1), `name ".."`: want("..", 1, 1), `name ""`: want("", 1, 1),
		"name the slices of pods": want("s0123456789abcdef0123", 1, 1), `"all" means`: want("all", 1, 1),
	} {
		_, err := m.Add(wish)
		refused(t, err, text)
	}
	if held, err := store.Read(m.Paths); err != nil || len(held.Slices()) != 2 {
		t.Errorf("%v, %v", held.Slices(), err)
	}
}

func TestWithoutDriverOrLibraryNothingIsPromised(t *testing.T) {
	for file, remedy := range map[string]string{"BaseCDI": "nvidia-ctk cdi generate", "Runtime": "xpu_runtime"} {
		m := machine(t)
		if file == "BaseCDI" {
			m.Paths.BaseCDI += "-gone"
		} else {
			m.Paths.Runtime += "-gone"
		}
		_, err := m.Add(want("x", 10, 100))
		refused(t, err, remedy)
		if held, err := store.Read(m.Paths); err != nil || len(held.Slices()) != 0 {
			t.Errorf("promised all the same: %v, %v", held.Slices(), err)
		}
	}
}

func TestASliceIsResizedWhileItsProcessesRun(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("train", 20, 3072)))
	m.hold(t, "train", 1000<<20)
	cores := 40
	change := must(t)(m.Resize(Wish{Name: "train", Card: xpu.AnyCard, Cores: &cores}, false))
	if change.Action != Resized || change.Before.CoresPercent != 20 || change.After.CoresPercent != 40 || change.After.MemoryMiB != 3072 {
		t.Errorf("%+v", change)
	}
	if page := m.grant(t, "train"); page.CoresPercent != 40 || page.MemoryBytes != 3072<<20 {
		t.Errorf("the page that processes have mapped says %+v", page)
	}
	_, err := m.Resize(want("train", 40, 900), false)
	refused(t, err, "shrink to 900 MiB", "hold 1000 MiB", "--force")
	if m.grant(t, "train").MemoryBytes != 3072<<20 {
		t.Error("a refused resize changed the page")
	}
	must(t)(m.Resize(want("train", 40, 1000), false))
	must(t)(m.Resize(want("train", 40, 900), true))
	if m.grant(t, "train").MemoryBytes != 900<<20 {
		t.Error("forced, it doesn't shrink")
	}
	_, err = m.Resize(want("train", 40, 99999), false)
	refused(t, err, "no room", "GPU-0: 100 % cores and 40960 MiB free")
	elsewhere := want("train", 40, 900)
	elsewhere.Card = "1"
	_, err = m.Resize(elsewhere, false)
	refused(t, err, "can't be moved")
	_, err = m.Resize(want("nobody", 1, 1), false)
	refused(t, err, "no slice nobody", "add it first")
}

func TestANewModeDropsWhatTheOldOneHad(t *testing.T) {
	m := machine(t)
	elastic, priority, hard, weight := xpu.ModeElastic, xpu.ModePriority, xpu.ModeHard, 3
	wish := want("train", 20, 3072)
	wish.Mode, wish.Weight = &elastic, &weight
	must(t)(m.Add(wish))
	if page := m.grant(t, "train"); page.Mode != pages.ModeElastic || page.Weight != 3 {
		t.Errorf("%+v", page)
	}
	change := must(t)(m.Ensure(Wish{Name: "train", Card: xpu.AnyCard, Mode: &priority}, false))
	if change.After.CoresPercent != 0 || change.After.Weight != 0 || m.grant(t, "train").Mode != pages.ModePriority {
		t.Errorf("%+v", change.After)
	}
	cores := 50
	change = must(t)(m.Ensure(Wish{Name: "train", Card: xpu.AnyCard, Mode: &hard, Cores: &cores}, false))
	if page := m.grant(t, "train"); page.Mode != pages.ModeHard || page.CoresPercent != 50 || page.EffectiveQ16 != 0 {
		t.Errorf("%+v, %+v", change.After, page)
	}
}

// While somebody looks after running slices, he alone writes their pages: the command waits for him.
func TestAResizeIsLeftToWhoLooksAfterTheSlices(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("train", 20, 3072)))
	release, err := m.Paths.TakeTending()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	done := make(chan error)
	go func() { _, err := m.Resize(want("train", 30, 4096), false); done <- err }()
	for {
		held, err := store.Read(m.Paths)
		if err != nil {
			t.Fatal(err)
		}
		if slice, _ := held.Of(xpu.HostOwner("train")); slice.Shares[0].CoresPercent == 30 {
			if m.grant(t, "train").CoresPercent != 20 {
				t.Error("the command wrote the page itself")
			}
			if err := m.regrant(slice); err != nil { // as package tend does
				t.Fatal(err)
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestASliceInUseIsNotRemoved(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("train", 20, 3072)))
	process := m.hold(t, "train", 5<<20)
	_, err := m.Remove("train", false)
	refused(t, err, "in use by processes", strconv.Itoa(process.PID), "--force")
	if !m.entry(t, "train") {
		t.Error("a refused removal took the device away")
	}
	change := must(t)(m.Remove("train", true))
	if !strings.Contains(change.Warning, strconv.Itoa(process.PID)) || change.Action != Removed {
		t.Errorf("%+v", change)
	}
}

// A container that has computed nothing yet has its slice all the same.
func TestAContainerWithoutProcessesOnTheCardHoldsItsSlice(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("train", 20, 3072)))
	process := m.Proc + "/77"
	page, err := place(m.Paths.State + "/slices/train/ledger.page")
	if err != nil {
		t.Fatal(err)
	}
	list := func(device, path, point string) string {
		return "900 1 " + device + " " + path + " " + point + " rw - ext4 /dev/sda1 rw\n"
	}
	foreign := list("999:1", page.path, inContainer) + // a nested machine's
		list(page.device, page.path+"/x", inContainer) + list(page.device, page.path, "/mnt")
	put(t, process+"/mountinfo", foreign+list(page.device, page.path, inContainer))
	put(t, process+"/cgroup", "0::/docker/abc\n")
	if err := errors.Join(os.MkdirAll(process+"/ns", 0o755), os.Symlink("mnt:[1]", process+"/ns/mnt")); err != nil {
		t.Fatal(err)
	}
	_, err = m.Remove("train", false)
	refused(t, err, "container /docker/abc (pid 77)")
	listing, err := m.List()
	if err != nil || !slices.Equal(listing.Slices[0].Use.Containers, []Container{{77, "/docker/abc"}}) {
		t.Errorf("%+v, %v", listing.Slices, err)
	}
	put(t, process+"/mountinfo", foreign)
	must(t)(m.Remove("train", false))
}

func TestARemovedSliceLeavesNothing(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("train", 20, 3072)))
	must(t)(m.Add(want("other", 20, 3072)))
	must(t)(m.Remove("train", false))
	if again := must(t)(m.Remove("train", false)); again.Changed {
		t.Errorf("removed twice: %+v", again)
	}
	if m.entry(t, "train") || !m.entry(t, "other") {
		t.Error("the wrong CDI devices are left")
	}
	for _, path := range []string{m.Paths.Etc + "/host/train", m.Paths.State + "/slices/train"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was left", path)
		}
	}
}

func TestASliceEndsWithoutADriver(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("train", 20, 3072)))
	m.Discover = func() ([]xpu.Card, error) { return nil, errors.New("NVML library: not found") }
	if err := errors.Join(os.Remove(m.Paths.BaseCDI), os.RemoveAll(m.Paths.Runtime)); err != nil {
		t.Fatal(err)
	}
	listing, err := m.List()
	if err != nil || listing.Slices[0].State != Unknown || listing.Problem != "NVML library: not found" {
		t.Errorf("%+v, %v", listing, err)
	}
	must(t)(m.Remove("train", false))
	if m.entry(t, "train") {
		t.Error("its device is left")
	}
}

func TestALostCard(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("train", 20, 3072)))
	m.Discover = func() ([]xpu.Card, error) { return twoCards[1:], nil }
	listing, err := m.List()
	if err != nil || listing.Slices[0].State != CardMissing {
		t.Errorf("%+v, %v", listing.Slices, err)
	}
	_, err = m.Ensure(want("train", 20, 3072), false)
	refused(t, err, "card GPU-0 of slice train is not here any more")
	must(t)(m.Add(want("other", 20, 3072))) // the other card's are none the worse, and the lost one's entry goes
	if m.entry(t, "train") || !m.entry(t, "other") {
		t.Error("CDI devices")
	}
	m.Discover = func() ([]xpu.Card, error) { return twoCards, nil }
	if change := must(t)(m.Ensure(want("train", 20, 3072), false)); change.Action != Mended || !m.entry(t, "train") {
		t.Errorf("the card is back: %+v", change)
	}
}

func TestADryRunTellsTheTruthAndChangesNothing(t *testing.T) {
	m := machine(t)
	dry := m
	dry.DryRun = true
	if change := must(t)(dry.Add(want("train", 20, 3072))); change.Action != Added || change.After.Card != "GPU-0" {
		t.Errorf("%+v", change)
	}
	if _, err := os.Stat(m.Paths.State); err == nil {
		t.Error("a dry run made a directory")
	}
	must(t)(m.Add(want("train", 20, 3072)))
	before := snapshot(t, m)
	if change := must(t)(dry.Ensure(want("train", 30, 3072), false)); change.Action != Resized || change.Before.CoresPercent != 20 {
		t.Errorf("%+v", change)
	}
	if change := must(t)(dry.Ensure(want("train", 20, 3072), false)); change.Changed {
		t.Errorf("%+v", change)
	}
	_, err := dry.Add(want("huge", 20, 99999))
	refused(t, err, "no room")
	if change := must(t)(dry.Remove("train", false)); change.Action != Removed {
		t.Errorf("%+v", change)
	}
	if change := must(t)(dry.Remove("nobody", false)); change.Changed {
		t.Errorf("%+v", change)
	}
	m.hold(t, "train", 1<<20)
	_, err = dry.Remove("train", false)
	refused(t, err, "in use")
	if after := snapshot(t, m); after["/vgpu.yaml"] != before["/vgpu.yaml"] || after["/var/ledger.json"] != before["/var/ledger.json"] || len(after) != len(before) {
		t.Error("a dry run changed something")
	}
}

func snapshot(t *testing.T, m Manager) map[string]string {
	t.Helper()
	root, found := filepath.Dir(m.Paths.State), map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		found[strings.TrimPrefix(path, root)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Each file that a kill or a reboot can leave missing or wrong is mended by the same call again.
func TestTheSameCallMendsWhatIsBroken(t *testing.T) {
	for name, damage := range map[string]func(m Manager) error{
		"no CDI file":  func(m Manager) error { return os.Remove(m.Paths.CDI) },
		"old CDI file": func(m Manager) error { return os.WriteFile(m.Paths.CDI, []byte("kind: x"), 0o644) },
		"no directory": func(m Manager) error { return os.RemoveAll(m.Paths.Etc + "/host/train") },
		"no pages":     func(m Manager) error { return os.RemoveAll(m.Paths.State + "/slices/train") },
		"torn config page": func(m Manager) error {
			return os.WriteFile(m.Paths.Etc+"/host/train/config.page", []byte("XPUC"), 0o444)
		},
		"cut ledger page": func(m Manager) error { return os.Truncate(m.Paths.State+"/slices/train/ledger.page", 100) },
		"page of other terms": func(m Manager) error {
			return m.regrant(xpu.Slice{Key: "train", Owner: xpu.HostOwner("train"), Shares: []xpu.Share{{UUID: "GPU-0", CoresPercent: 90}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := machine(t)
			must(t)(m.Add(want("train", 20, 3072)))
			os.Chmod(m.Paths.Etc+"/host/train/config.page", 0o644) // tests may run without root
			if err := damage(m); err != nil {
				t.Fatal(err)
			}
			if listing, err := m.List(); err != nil || listing.Slices[0].State != Incomplete {
				t.Errorf("%+v, %v", listing.Slices, err)
			}
			dry := m
			dry.DryRun = true
			if change := must(t)(dry.Ensure(want("train", 20, 3072), false)); change.Action != Mended {
				t.Errorf("%+v", change)
			}
			if change := must(t)(m.Ensure(want("train", 20, 3072), false)); change.Action != Mended {
				t.Errorf("%+v", change)
			}
			sound(t, m)
			if change := must(t)(m.Ensure(want("train", 20, 3072), false)); change.Changed {
				t.Errorf("mended twice: %+v", change)
			}
		})
	}
}

// sound checks what must hold at every moment between calls: no card promised beyond what it has, and
// every slice usable.
func sound(t *testing.T, m Manager) {
	t.Helper()
	listing, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	cores, memory := map[string]int{}, map[string]uint64{}
	for _, slice := range listing.Slices {
		cores[slice.Card] += slice.CoresPercent
		memory[slice.Card] += slice.MemoryMiB
		if slice.State != Ready {
			t.Errorf("%s is %s", slice.Name, slice.State)
		}
		if page := m.grant(t, slice.Name); page.CoresPercent != uint32(slice.CoresPercent) || page.MemoryBytes != slice.MemoryMiB<<20 {
			t.Errorf("%s: the ledger says %+v, its page %+v", slice.Name, slice.Terms, page)
		}
	}
	for _, card := range twoCards {
		if cores[card.UUID] > 100 || memory[card.UUID] > card.MemoryMiB {
			t.Errorf("%s is promised %d %% and %d MiB", card.UUID, cores[card.UUID], memory[card.UUID])
		}
	}
}

func worker(t *testing.T, m Manager, seed int64, names ...string) *exec.Cmd {
	t.Helper()
	command := exec.Command(os.Args[0], append([]string{strconv.FormatInt(seed, 10)}, names...)...)
	command.Env = append(os.Environ(), childRoot+"="+filepath.Dir(m.Paths.State))
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	return command
}

func TestManyProcessesNeverPromiseACardTwice(t *testing.T) {
	m := machine(t)
	var group sync.WaitGroup
	for i := range 8 {
		command := worker(t, m, int64(i), fmt.Sprintf("own%d", i), "shared-a", "shared-b")
		group.Go(func() {
			if err := command.Wait(); err != nil {
				t.Errorf("worker %d: %v", i, err)
			}
		})
	}
	ended := make(chan struct{})
	go func() { group.Wait(); close(ended) }()
	for looking := true; looking; {
		select {
		case <-ended:
			looking = false
		case <-time.After(time.Millisecond):
			overbooked(t, m)
		}
	}
	sound(t, m)
}

// overbooked looks at the ledger alone, as it may while others write.
func overbooked(t *testing.T, m Manager) {
	t.Helper()
	held, err := store.Read(m.Paths)
	if err != nil {
		t.Error(err)
	}
	for _, card := range twoCards {
		if free := xpu.FreeOf(card, held.Slices()); free.CoresPercent < 0 {
			t.Errorf("%s: %+v", card.UUID, held.Slices())
		}
	}
}

// Killed anywhere, a worker leaves a state from which the next call goes on.
func TestKilledAtRandomWhileAddingAndRemoving(t *testing.T) {
	m := machine(t)
	random := rand.New(rand.NewSource(6))
	names := []string{"a", "b", "c"}
	for round := range 40 {
		command := worker(t, m, int64(round), names...)
		time.Sleep(time.Duration(random.Intn(20)) * time.Millisecond)
		_ = command.Process.Kill() // it may have ended
		_ = command.Wait()
		overbooked(t, m)
		held, err := store.Read(m.Paths)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for _, slice := range held.Slices() {
			must(t)(m.Ensure(Wish{Name: slice.Key, Card: xpu.AnyCard}, false))
		}
		sound(t, m)
	}
	for _, name := range names {
		must(t)(m.Remove(name, false))
	}
	left, _ := filepath.Glob(m.Paths.State + "/slices/*")
	more, _ := filepath.Glob(m.Paths.Etc + "/*")
	if held, err := store.Read(m.Paths); err != nil || len(held.Slices())+len(left)+len(more) > 0 {
		t.Errorf("left: %v, %v, %v, %v", held.Slices(), left, more, err)
	}
}

func TestAListIsWhatTheModuleReads(t *testing.T) {
	m := machine(t)
	must(t)(m.Add(want("train", 20, 3072)))
	listing, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(listing)
	if err != nil {
		t.Fatal(err)
	}
	const wanted = `{"slices":[{"name":"train","device":"huawei.com/vgpu=train","card":"GPU-0","cores_percent":20,"memory_mib":3072,` +
		`"mode":"hard","weight":0,"owner":"host","state":"ready","use":{"processes":[],"containers":[],"memory_bytes":0}}],` +
		`"cards":[{"index":0,"uuid":"GPU-0","model":"","memory_mib":40960,"free_cores_percent":80,"free_memory_mib":37888},` +
		`{"index":1,"uuid":"GPU-1","model":"","memory_mib":40960,"free_cores_percent":100,"free_memory_mib":40960}],"problem":""}`
	if string(text) != wanted {
		t.Errorf("%s", text)
	}
}
