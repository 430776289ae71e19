// SPDX-License-Identifier: Apache-2.0

// Package release keeps the interception library and its tools under /opt/xpu on nodes that role
// xpu_runtime does not look after. Layout and record are the role's own (docs/interfaces.md §5), so that
// either of the two finds what the other left: releases in directories that never change, one link that
// is switched by rename.
//
// One of the two owns a node. The file `owner` says which; the role takes a node over by writing it, and
// nothing here ever takes one back. Both hold a lock on the directory from reading that file to their last
// write, so neither can undo what the other has just done.
package release

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Who may own the directory, as the file `owner` names them.
const (
	Role   = "xpu_runtime"
	Client = "client-update"
)

const (
	versions  = "versions"
	current   = "current"
	ownerFile = "owner"
	record    = "SHA256SUMS"
)

// links are document 000's paths; they follow `current`.
var links = map[string]string{"lib": "current/lib", "bin": "current/bin"}

// Facts are what a directory holds, with regard to one release.
type Facts struct {
	Owner     string   // what the file says; empty where there is none
	Current   string   // the release in force; empty where there is none
	Unlinked  []string // document 000's paths that do not lead where they should
	Obstacles []string // paths of ours that hold something else than a link
	Recorded  bool     // whether the wanted release is there
	Altered   []string // its files that differ from its record
}

// Observe looks at home without changing it.
func Observe(home, wanted string) (Facts, error) {
	facts := Facts{Current: strings.TrimPrefix(readLink(filepath.Join(home, current)), versions+"/")}
	owner, err := os.ReadFile(filepath.Join(home, ownerFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Facts{}, err
	}
	facts.Owner = strings.TrimSpace(string(owner))
	for _, name := range []string{"bin", current, "lib"} {
		path := filepath.Join(home, name)
		if _, err := os.Lstat(path); err == nil && readLink(path) == "" {
			facts.Obstacles = append(facts.Obstacles, path)
		}
		if target, ours := links[name]; ours && readLink(path) != target {
			facts.Unlinked = append(facts.Unlinked, path)
		}
	}
	directory := filepath.Join(home, versions, wanted)
	text, err := os.ReadFile(filepath.Join(directory, record))
	if errors.Is(err, fs.ErrNotExist) {
		return facts, nil
	}
	if err != nil {
		return Facts{}, err
	}
	facts.Recorded = true
	for name, digest := range parseRecord(string(text)) {
		if found, err := fileDigest(filepath.Join(directory, name)); err != nil || found != digest {
			facts.Altered = append(facts.Altered, name)
		}
	}
	sort.Strings(facts.Altered)
	return facts, nil
}

func readLink(path string) string {
	target, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	return target
}

// Action is what a directory needs of us.
type Action string

// The actions; the last is nobody's but the operator's.
const (
	HandedOver Action = "handed over"
	Nothing    Action = "nothing"
	Install    Action = "install"
	Refuse     Action = "refuse"
)

// Decision is an action with its reason.
type Decision struct {
	Action Action
	Reason string
}

// Ready tells whether the node has, or will get from its owner, what slices need.
func (d Decision) Ready() bool { return d.Action == Nothing || d.Action == HandedOver }

// Decide says what to do about facts, for a release of that name.
func Decide(facts Facts, wanted string) Decision {
	switch {
	case facts.Owner == Role:
		return Decision{HandedOver, "role " + Role + " looks after this node"}
	case facts.Owner == "" && facts.Current != "":
		return Decision{HandedOver, "release " + facts.Current + " is there without a record of its owner, as role " +
			Role + " left it before there were such records"}
	case facts.Owner != "" && facts.Owner != Client:
		return Decision{Refuse, fmt.Sprintf("file %s names %q, which is neither %s nor %s; remove it if nothing else looks after this node",
			ownerFile, facts.Owner, Role, Client)}
	case len(facts.Obstacles) > 0:
		return Decision{Refuse, strings.Join(facts.Obstacles, ", ") +
			" is no link of ours; move it away (an upstream client-update puts it there)"}
	}
	var reasons []string
	if facts.Owner == "" {
		reasons = append(reasons, "nobody looks after this node")
	}
	if !facts.Recorded {
		reasons = append(reasons, "release "+wanted+" is not installed")
	}
	if len(facts.Altered) > 0 {
		reasons = append(reasons, "altered: "+strings.Join(facts.Altered, ", "))
	}
	if facts.Current != wanted {
		reasons = append(reasons, "in force is "+orNone(facts.Current))
	}
	if len(facts.Unlinked) > 0 {
		reasons = append(reasons, "not linked: "+strings.Join(facts.Unlinked, ", "))
	}
	if len(reasons) == 0 {
		return Decision{Nothing, "release " + wanted + " is in force"}
	}
	return Decision{Install, strings.Join(reasons, "; ")}
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// ErrRemoved says that the directory which home led to is gone: a mount of it leads nowhere, and only
// a container that is started anew sees what took its place.
var ErrRemoved = errors.New("the directory was removed under us")

// Converge brings home to the release in tarball where that is ours to do, and says what it decided.
func Converge(home string, tarball *Tarball) (Decision, error) {
	unlock, err := lock(home)
	if err != nil {
		return Decision{}, err
	}
	defer unlock()
	facts, err := Observe(home, tarball.Name)
	if err != nil {
		return Decision{}, err
	}
	decision := Decide(facts, tarball.Name)
	if decision.Action != Install {
		return decision, nil
	}
	// Named before anything of ours is there: killed after this, the next run knows it as its own.
	if err := writeWhole(filepath.Join(home, ownerFile), Client+"\n"); err != nil {
		return Decision{}, err
	}
	if !facts.Recorded || len(facts.Altered) > 0 {
		if err := tarball.unpack(filepath.Join(home, versions)); err != nil {
			return Decision{}, fmt.Errorf("install %s: %w", tarball.Name, err)
		}
	}
	return decision, switchTo(home, tarball.Name)
}

// lock waits for whoever changes home at the moment.
func lock(home string) (unlock func(), err error) {
	directory, err := os.Open(home)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(directory.Fd()), unix.LOCK_EX); err != nil {
		directory.Close()
		return nil, fmt.Errorf("lock %s: %w", home, err)
	}
	var state unix.Stat_t
	if err := unix.Fstat(int(directory.Fd()), &state); err != nil || state.Nlink == 0 {
		directory.Close()
		return nil, errors.Join(fmt.Errorf("%s: %w", home, ErrRemoved), err)
	}
	return func() { directory.Close() }, nil
}

// switchTo puts a release in force; the links of document 000 come last, so that they never lead nowhere.
func switchTo(home, name string) error {
	if err := point(filepath.Join(home, current), versions+"/"+name); err != nil {
		return err
	}
	for link, target := range links {
		if readLink(filepath.Join(home, link)) == target {
			continue
		}
		if err := point(filepath.Join(home, link), target); err != nil {
			return err
		}
	}
	return syncDirectory(home)
}

// point makes path a link to target by one rename.
func point(path, target string) error {
	scratch := path + ".flexai-new"
	if err := os.Remove(scratch); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, scratch); err != nil {
		return err
	}
	return os.Rename(scratch, path)
}

// writeWhole replaces a file by rename, durably.
func writeWhole(path, text string) error {
	scratch := path + ".flexai-new"
	if err := writeFile(scratch, strings.NewReader(text), 0o644); err != nil {
		return err
	}
	if err := os.Rename(scratch, path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Sync()
}
