// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"flexai.io/xpu/cluster/hostslice"
	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/xpu"
)

// journal is a log that a test reads while it is written.
type journal struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (j *journal) Write(line []byte) (int, error) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	return j.text.Write(line)
}

func (j *journal) reset() {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	j.text.Reset()
}

func (j *journal) has(text string) bool {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	return strings.Contains(j.text.String(), text)
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patient); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// machine is a host without Kubernetes; the driver may be away.
type machine struct {
	cfg    config
	cards  []xpu.Card
	broken error
	log    journal
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	h := newHost(t)
	m := &machine{cfg: h.cfg, cards: []xpu.Card{{UUID: "GPU-0", MemoryMiB: 40960, Split: 9, Healthy: true}}}
	return m
}

func (m *machine) discover() ([]xpu.Card, error) { return m.cards, m.broken }

func (m *machine) manager() hostslice.Manager {
	return hostslice.Manager{Paths: m.cfg.paths, OnError: store.Allow, Proc: m.cfg.paths.State, Discover: m.discover}
}

// agent starts one; what it returns ends it.
func (m *machine) agent(t *testing.T) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan bool, 1), make(chan error, 1)
	go func() {
		done <- runAgent(ctx, m.cfg, agentDeps{discover: m.discover, nvml: nvmlwatch.New(m.cfg.paths.State + "/none.so"),
			gauges: nvmlwatch.New(m.cfg.paths.State + "/none.so"),
			ready:  func() { ready <- true }, log: slog.New(slog.NewTextHandler(&m.log, nil))})
	}()
	select {
	case <-ready:
	case <-time.After(patient):
		t.Fatal("not ready")
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (m *machine) add(t *testing.T, name string) {
	t.Helper()
	cores, memory := 20, uint64(1024)
	if _, err := m.manager().Add(hostslice.Wish{Name: name, Card: xpu.AnyCard, Cores: &cores, MemoryMiB: &memory}); err != nil {
		t.Fatal(err)
	}
}

// After a reboot the card may have another minor number and /run is empty; what was registered stands.
func TestTheAgentRestoresTheEntriesAtItsStart(t *testing.T) {
	m := newMachine(t)
	m.add(t, "train")
	m.cards[0].Minor = 1
	moved := strings.ReplaceAll(baseCDI, "/dev/nvidia0", "/dev/nvidia1")
	err := errors.Join(os.WriteFile(m.cfg.paths.BaseCDI, []byte(moved), 0o644), os.RemoveAll(m.cfg.paths.Etc+"/host"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.agent(t)()
	entry, err := os.ReadFile(m.cfg.paths.CDI)
	if err != nil || !strings.Contains(string(entry), "/dev/nvidia1") || strings.Contains(string(entry), "/dev/nvidia0") {
		t.Errorf("%v\n%s", err, entry)
	}
	listing, err := m.manager().List()
	if err != nil || len(listing.Slices) != 1 || listing.Slices[0].State != hostslice.Ready {
		t.Errorf("%+v, %v", listing.Slices, err)
	}
}

func TestABrokenDriverKeepsNobodyWaiting(t *testing.T) {
	m := newMachine(t)
	m.add(t, "train")
	if err := os.Remove(m.cfg.paths.CDI); err != nil {
		t.Fatal(err)
	}
	m.broken = errors.New("NVML library: not found")
	defer m.agent(t)()
	await(t, "the failure is told", func() bool { return m.log.has("not found") })
}

func TestTheRestorerFollowsTheDriverAndAsksItOnlyThen(t *testing.T) {
	m := newMachine(t)
	m.add(t, "train")
	disk, err := store.Open(m.cfg.paths)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	r := restorer{disk: disk, log: slog.New(slog.NewTextHandler(&m.log, nil)),
		discover: func() ([]xpu.Card, error) { asked++; return m.discover() }}
	for range 3 {
		r.look()
	}
	if asked != 1 {
		t.Errorf("the driver was asked %d times", asked)
	}
	newer := strings.ReplaceAll(baseCDI, "580.95.05", "595.10.01")
	if err := os.WriteFile(m.cfg.paths.BaseCDI, []byte(newer), 0o644); err != nil {
		t.Fatal(err)
	}
	m.broken = errors.New("being exchanged")
	r.look()
	m.broken = nil
	r.look()
	if entry, _ := os.ReadFile(m.cfg.paths.CDI); !strings.Contains(string(entry), "libcuda.so.595.10.01") || asked != 3 {
		t.Errorf("asked %d times\n%s", asked, entry)
	}
}

func TestTheSecondOfTwoStandsByAndTakesOver(t *testing.T) {
	m := newMachine(t)
	first := m.agent(t)
	await(t, "the first looks after the slices", func() bool { return m.log.has("looking after") })
	m.log.reset()
	second := m.agent(t)
	defer second()
	await(t, "the second says why it doesn't", func() bool { return m.log.has("standing by") && m.log.has("pid ") })
	if m.log.has("looking after running slices\" ledger") {
		t.Error("both look after the slices")
	}
	first()
	await(t, "it takes over", func() bool { return m.log.has("looking after running slices") })
}

// run is the command as a caller has it.
func (m *machine) run(args ...string) (code int, out, complaint string) {
	var stdout, stderr bytes.Buffer
	paths := []string{"--slice-dir=" + m.cfg.paths.Etc, "--state-dir=" + m.cfg.paths.State, "--run-dir=" + m.cfg.paths.Run, "--nvml-library=/none.so"}
	code = sliceCommand(append(args, paths...), func(string) string { return "" }, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestSliceErrorsAreOneTextForPeopleAndOneForPrograms(t *testing.T) {
	m := newMachine(t)
	for _, one := range []struct {
		args, want string
		code       int
	}{
		{"grow x", `slice "grow": there are add, ensure, resize, remove and list`, 2},
		{"add", `name ""`, 2},
		{"add a b", `unexpected argument "b"`, 2},
		{"add -x", "flag provided but not defined: -x", 2},
		{"add x --cores=many", `invalid value "many"`, 2},
		{"add x --memory-mib=-1", `invalid value "-1"`, 2},
		{"add x --force", "not defined: -force", 2},
		{"list --dry-run", "not defined: -dry-run", 2},
		{"list --output=xml", `--output "xml" is neither text nor json`, 2},
		{"add x --cores=20", "NVML", 1},
		{"remove x --cores=20", "not defined: -cores", 2},
	} {
		code, out, complaint := m.run(strings.Fields(one.args)...)
		if code != one.code || out != "" || !strings.Contains(complaint, one.want) {
			t.Errorf("%s: exit %d, %q, %q; want %d with %q", one.args, code, out, complaint, one.code, one.want)
		}
	}
	code, out, complaint := m.run("add", "x", "--output=json")
	var told map[string]string
	if err := json.Unmarshal([]byte(out), &told); err != nil || code != 1 || complaint != "" || !strings.Contains(told["error"], "NVML") {
		t.Errorf("exit %d, %q, %q, %v", code, out, complaint, err)
	}
}

func TestSliceTermsAreNilWhereNotGiven(t *testing.T) {
	none := func(string) string { return "" }
	cfg, err := parseSlice([]string{"resize", "x", "--cores=0"}, none, os.Stderr)
	wish := cfg.wish
	if err != nil || *wish.Cores != 0 || wish.MemoryMiB != nil || wish.Mode != nil || wish.Weight != nil || wish.Card != "auto" {
		t.Errorf("%+v, %v", wish, err)
	}
	cfg, err = parseSlice(strings.Fields("ensure --mode elastic --weight 3 --memory-mib 5 --card 1 --dry-run --force --output json x"), none, os.Stderr)
	wish = cfg.wish
	if err != nil || wish.Name != "x" || *wish.Mode != xpu.ModeElastic || *wish.Weight != 3 || *wish.MemoryMiB != 5 || wish.Card != "1" ||
		!cfg.dryRun || !cfg.force || !cfg.json {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestAListReadsWithoutADriver(t *testing.T) {
	m := newMachine(t)
	m.add(t, "train")
	code, out, complaint := m.run("list")
	if code != 0 || !strings.Contains(out, "huawei.com/vgpu=train") || !strings.Contains(out, "unknown") || !strings.Contains(out, "cards not read") {
		t.Errorf("exit %d\n%s%s", code, out, complaint)
	}
	code, out, _ = m.run("remove", "train", "--proc-dir="+m.cfg.paths.State, "--cdi-file="+m.cfg.paths.CDI)
	if code != 0 || out != "train: removed\n" {
		t.Errorf("exit %d, %q", code, out)
	}
}
