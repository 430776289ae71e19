// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const (
	idA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	idB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// tree is a procfs that a test writes.
type tree struct {
	t *testing.T
	Procfs
}

func newTree(t *testing.T) tree {
	made := tree{t, Procfs(t.TempDir())}
	made.link("self/ns/pid", "pid:[1]")
	return made
}

func (p tree) path(name string) string { return filepath.Join(string(p.Procfs), name) }

func (p tree) write(name, text string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.path(name), []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p tree) link(name, target string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Symlink(target, p.path(name)); err != nil {
		p.t.Fatal(err)
	}
}

// process is one with a cgroup, its pids from the host's inwards, and its root directory.
func (p tree) process(cgroup, root string, nspid ...int) {
	p.t.Helper()
	pid := strconv.Itoa(nspid[0])
	var words []string
	for _, one := range nspid {
		words = append(words, strconv.Itoa(one))
	}
	p.write(pid+"/cgroup", "0::"+cgroup+"\n")
	p.write(pid+"/status", "Name:\tx\nNSpid:\t"+strings.Join(words, "\t")+"\n")
	if root != "" {
		p.link(pid+"/root", root)
	}
	p.link(pid+"/ns/pid", map[bool]string{true: "pid:[1]", false: "pid:[2]"}[len(nspid) == 1])
}

func TestPairsAreHostAndContainer(t *testing.T) {
	for name, one := range map[string]struct {
		nspids [][]int
		want   []pair
	}{
		"a container":                      {[][]int{{100, 1}, {101, 7}}, []pair{{100, 1}, {101, 7}}},
		"hostPID":                          {[][]int{{100}, {101}}, []pair{{100, 100}, {101, 101}}},
		"a sandbox of its own within":      {[][]int{{100, 1}, {101, 7, 1}, {102, 8, 2, 1}}, []pair{{100, 1}, {101, 7}, {102, 8}}},
		"nodes in containers":              {[][]int{{100, 50, 1}, {101, 51, 7}}, []pair{{100, 1}, {101, 7}}},
		"a process just being brought in":  {[][]int{{100, 1}, {101}}, []pair{{100, 1}, {101, 101}}},
		"deeper than anybody's namespaces": {[][]int{{9, 8, 7, 6, 5, 4, 3, 2, 1}}, []pair{{9, 1}}},
	} {
		procfs := newTree(t)
		var pids []int
		for _, nspid := range one.nspids {
			procfs.process("/pod/"+idA, "", nspid...)
			pids = append(pids, nspid[0])
		}
		taken, err := takeCensus(procfs.Procfs)
		if err != nil {
			t.Fatal(err)
		}
		if got := taken.pairs(append(pids, 4194304)); !slices.Equal(got, one.want) { // the last is gone by now
			t.Errorf("%s: %v, want %v", name, got, one.want)
		}
	}
}

func TestMembersAreThoseOfTheContainersCgroup(t *testing.T) {
	procfs := newTree(t)
	procfs.process("/pod/"+idA, "", 10, 1)
	procfs.process("/pod/"+idA+"/app", "", 11, 2)
	procfs.process("/pod/"+idB, "", 12, 1)
	procfs.process("/pod", "", 13)
	procfs.write("14/cgroup", "7:memory:/pod/"+idA+"\n0::/\n")
	procfs.write("meminfo", "")
	taken, err := takeCensus(procfs.Procfs)
	if err != nil {
		t.Fatal(err)
	}
	if got := taken.members("/pod/" + idA); !slices.Equal(got, []int{10, 11, 14}) {
		t.Errorf("%v", got)
	}
}

func TestLinesAreAsReadersExpect(t *testing.T) {
	encoded := encode([]pair{{4194303, 1}, {77, 4194303}})
	if encoded != "4194303     1          ,77          4194303    " {
		t.Errorf("%q", encoded)
	}
	for line := range strings.Lines(string(config(encoded))) {
		if len(strings.TrimSuffix(line, "\n")) != lineWidth {
			t.Errorf("line %q", line)
		}
	}
	if config("") != nil {
		t.Error("no process, no line")
	}
}

func TestNSpidLines(t *testing.T) {
	for text, want := range map[string]string{
		"Name:\tx\n":                  "no NSpid line",
		"NSpid:\n":                    "empty",
		"NSpid:\t1\t-2\n":             `no pid "-2"`,
		"NSpid:\t99999999999999999\n": "no pid",
		"NSpid:\t\xff\n":              "no pid",
	} {
		if _, err := parseNSpid([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzNSpid(f *testing.F) {
	f.Add([]byte("Name:\tx\nNSpid:\t1\t2\n"))
	f.Fuzz(func(t *testing.T, status []byte) {
		pids, err := parseNSpid(status)
		if (err == nil) != (len(pids) > 0) || slices.ContainsFunc(pids, func(pid int) bool { return pid < 1 }) {
			t.Errorf("%v, %v", pids, err)
		}
	})
}

func TestAnyNumberOfQuestionsIsFewLooks(t *testing.T) {
	const questions = 10_000
	var looks atomic.Int32
	began, goOn := make(chan struct{}, questions), make(chan struct{})
	s := shared[int32]{look: func() (int32, error) {
		began <- struct{}{}
		<-goOn
		return looks.Add(1), nil
	}}
	var group, asking sync.WaitGroup
	group.Go(func() { s.get(context.Background()) })
	<-began // the first look is under way: whoever asks now must get the second
	asking.Add(questions)
	for range questions {
		group.Go(func() {
			asking.Done()
			if got, err := s.get(context.Background()); got < 2 || err != nil {
				t.Errorf("look %d began before the question, %v", got, err)
			}
		})
	}
	asking.Wait()
	close(goOn)
	group.Wait()
	// A goroutine that was late to ask after the second look began had a third.
	if looks.Load() > 20 {
		t.Errorf("%d looks", looks.Load())
	}
}

func TestWhoGivesUpDoesNotWaitForALookThatHangs(t *testing.T) {
	hanging := make(chan struct{})
	defer close(hanging)
	s := shared[int]{look: func() (int, error) { <-hanging; return 0, nil }}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.get(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
