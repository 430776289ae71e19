// SPDX-License-Identifier: Apache-2.0

package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

type member struct {
	name, content string
	mode          int64
	link          string
}

var shipped = []member{
	{name: "bin/gpu-monitor", content: "monitor", mode: 0o755},
	{name: "bin/xpu-monitor", link: "gpu-monitor"},
	{name: "lib/libcuda_direct.so", content: "library", mode: 0o644},
	{name: "VERSION", content: "0.1.0\n", mode: 0o644},
}

func pack(t *testing.T, members ...member) string {
	t.Helper()
	var text bytes.Buffer
	zipped := gzip.NewWriter(&text)
	archive := tar.NewWriter(zipped)
	for _, m := range members {
		header := &tar.Header{Name: m.name, Mode: m.mode, Size: int64(len(m.content)), Typeflag: tar.TypeReg}
		if m.link != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, m.link
		}
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write([]byte(m.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "xpu-runtime.tar.gz")
	write(t, path, text.String())
	return path
}

func write(t *testing.T, path, text string) {
	t.Helper()
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

func opened(t *testing.T, members ...member) *Tarball {
	t.Helper()
	tarball, err := Open(pack(t, members...))
	if err != nil {
		t.Fatal(err)
	}
	return tarball
}

func converge(t *testing.T, home string, tarball *Tarball) Decision {
	t.Helper()
	decision, err := Converge(home, tarball)
	if err != nil {
		t.Fatal(err)
	}
	return decision
}

// tree is every path below home with what it holds or leads to.
func tree(t *testing.T, home string) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(home, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text.WriteString(strings.TrimPrefix(path, home) + " ")
		if target := readLink(path); target != "" {
			text.WriteString("→ " + target + "\n")
			return nil
		}
		text.WriteString(read(t, path) + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestDecide(t *testing.T) {
	good := Facts{Owner: Client, Current: "r1", Recorded: true}
	with := func(change func(*Facts)) Facts { facts := good; change(&facts); return facts }
	for name, c := range map[string]struct {
		facts  Facts
		action Action
		reason string
	}{
		"all there":                {good, Nothing, "release r1 is in force"},
		"bare node":                {Facts{}, Install, "nobody looks after this node; release r1 is not installed; in force is none"},
		"another release":          {with(func(f *Facts) { f.Current = "r0" }), Install, "in force is r0"},
		"altered file":             {with(func(f *Facts) { f.Altered = []string{"lib/x"} }), Install, "altered: lib/x"},
		"link lost":                {with(func(f *Facts) { f.Unlinked = []string{"/opt/xpu/lib"} }), Install, "not linked: /opt/xpu/lib"},
		"the role's":               {Facts{Owner: Role}, HandedOver, "role xpu_runtime looks after this node"},
		"the role's, of before":    {Facts{Current: "r0"}, HandedOver, "release r0 is there without a record of its owner, as role xpu_runtime left it before there were such records"},
		"the role's, though other": {Facts{Owner: Role, Current: "r0", Obstacles: []string{"/x"}}, HandedOver, "role xpu_runtime looks after this node"},
		"unknown owner":            {Facts{Owner: "puppet"}, Refuse, `file owner names "puppet", which is neither xpu_runtime nor client-update; remove it if nothing else looks after this node`},
		"upstream's":               {Facts{Obstacles: []string{"/opt/xpu/lib"}}, Refuse, "/opt/xpu/lib is no link of ours; move it away (an upstream client-update puts it there)"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Decide(c.facts, "r1"); got != (Decision{c.action, c.reason}) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestABareNodeGetsTheRelease(t *testing.T) {
	home, tarball := t.TempDir(), opened(t, shipped...)
	if got := converge(t, home, tarball); got.Action != Install {
		t.Fatalf("got %+v", got)
	}
	if got := read(t, filepath.Join(home, "lib/libcuda_direct.so")); got != "library" {
		t.Errorf("lib leads to %q", got)
	}
	if got := read(t, filepath.Join(home, "bin/xpu-monitor")); got != "monitor" {
		t.Errorf("bin/xpu-monitor leads to %q", got)
	}
	for path, mode := range map[string]os.FileMode{"bin/gpu-monitor": 0o755, "lib/libcuda_direct.so": 0o644} {
		if info, err := os.Stat(filepath.Join(home, path)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
	if got := converge(t, home, tarball); got.Action != Nothing {
		t.Errorf("a second look found %+v", got)
	}
}

func TestAnUpgradeKeepsTheFormerRelease(t *testing.T) {
	home, former := t.TempDir(), opened(t, shipped...)
	converge(t, home, former)
	newer := opened(t, append([]member{{name: "lib/new", content: "x"}}, shipped...)...)
	converge(t, home, newer)
	if got := readLink(filepath.Join(home, current)); got != "versions/"+newer.Name {
		t.Errorf("current → %s", got)
	}
	if got := read(t, filepath.Join(home, versions, former.Name, "lib/libcuda_direct.so")); got != "library" {
		t.Errorf("a container that has it mounted would see %q", got)
	}
}

func TestAnAlteredFileIsMended(t *testing.T) {
	home, tarball := t.TempDir(), opened(t, shipped...)
	converge(t, home, tarball)
	whole := tree(t, home)
	write(t, filepath.Join(home, "lib/libcuda_direct.so"), "tampered")
	if got := converge(t, home, tarball); got.Reason != "altered: lib/libcuda_direct.so" {
		t.Errorf("got %+v", got)
	}
	if got := tree(t, home); got != whole {
		t.Errorf("left\n%s", got)
	}
}

func TestWhatTheRoleOwnsIsNotTouched(t *testing.T) {
	home, tarball := t.TempDir(), opened(t, shipped...)
	converge(t, home, tarball)
	write(t, filepath.Join(home, ownerFile), Role+"\n")
	write(t, filepath.Join(home, "lib/libcuda_direct.so"), "the role's business")
	before := tree(t, home)
	if got := converge(t, home, tarball); got.Action != HandedOver || !got.Ready() {
		t.Errorf("got %+v", got)
	}
	if got := tree(t, home); got != before {
		t.Errorf("changed to\n%s", got)
	}
}

func TestWhatUpstreamPutThereIsNotTouched(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := converge(t, home, opened(t, shipped...)); got.Action != Refuse || got.Ready() {
		t.Errorf("got %+v", got)
	}
	if got := tree(t, home); got != "" {
		t.Errorf("left\n%s", got)
	}
}

// Killed between any two of its writes, the next run ends where an undisturbed one does.
func TestABrokenOffRunIsFinished(t *testing.T) {
	tarball := opened(t, shipped...)
	undisturbed := t.TempDir()
	converge(t, undisturbed, tarball)
	want := tree(t, undisturbed)
	for name, remains := range map[string]func(home string){
		"owner named": func(home string) { write(t, filepath.Join(home, ownerFile), Client+"\n") },
		"half unpacked": func(home string) {
			write(t, filepath.Join(home, ownerFile), Client+"\n")
			half := filepath.Join(home, versions, "."+tarball.Name+".123")
			if err := os.MkdirAll(half, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(half, "VERSION"), "0")
		},
		"half switched": func(home string) {
			converge(t, home, tarball)
			if err := errors.Join(os.Remove(filepath.Join(home, "lib")), os.Symlink("x", filepath.Join(home, "lib.flexai-new"))); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			remains(home)
			converge(t, home, tarball)
			if got := tree(t, home); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestItWaitsForWhoeverHoldsTheLock(t *testing.T) {
	home, tarball := t.TempDir(), opened(t, shipped...)
	directory, err := os.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(directory.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan Decision)
	go func() { done <- converge(t, home, tarball) }()
	// The role takes the node while the other waits; had it not waited, its release would be there.
	write(t, filepath.Join(home, ownerFile), Role+"\n")
	directory.Close()
	if got := <-done; got.Action != HandedOver {
		t.Errorf("got %+v", got)
	}
}

func TestARemovedDirectoryIsSaid(t *testing.T) {
	home := filepath.Join(t.TempDir(), "xpu")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	handle, err := os.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	if err := os.Remove(home); err != nil {
		t.Fatal(err)
	}
	// As a mount does, the handle still leads to the directory that has no name any more.
	through := fmt.Sprintf("/proc/self/fd/%d", handle.Fd())
	if _, err := Converge(through, opened(t, shipped...)); !errors.Is(err, ErrRemoved) {
		t.Errorf("got %v", err)
	}
}

func TestATarballThatIsNoReleaseIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		members []member
		says    string
	}{
		"leaves its directory": {[]member{{name: "../etc/passwd"}}, "../etc/passwd is no file or directory under lib, bin, VERSION"},
		"absolute":             {[]member{{name: "/etc/passwd"}}, "/etc/passwd is no file"},
		"something else":       {[]member{{name: "share/doc"}}, "share/doc is no file"},
		"link out of it":       {[]member{{name: "lib/x", link: "../../../etc"}}, "lib/x is no file"},
		"no version":           {shipped[:3], `VERSION says "", which is no version`},
		"version as a path":    {[]member{{name: "VERSION", content: "../0.1"}}, `VERSION says "../0.1"`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Open(pack(t, c.members...)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}
