// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"flexai.io/xpu/cluster/pids/cgroup"
)

// Procfs is a machine's processes below the procfs root of our own pid namespace.
type Procfs string

func (p Procfs) file(pid int, name string) string {
	return filepath.Join(string(p), strconv.Itoa(pid), name)
}

// Cgroups are the paths a process is in, one for each hierarchy (one in all under cgroup v2).
func (p Procfs) Cgroups(pid int) ([]string, error) {
	text, err := os.ReadFile(p.file(pid, "cgroup"))
	if err != nil {
		return nil, err
	}
	return cgroup.Parse(text), nil
}

// NSpid are a process' pids from our namespace inwards.
func (p Procfs) NSpid(pid int) ([]int, error) {
	text, err := os.ReadFile(p.file(pid, "status"))
	if err != nil {
		return nil, err
	}
	return parseNSpid(text)
}

func parseNSpid(status []byte) ([]int, error) {
	for line := range bytes.Lines(status) {
		rest, found := bytes.CutPrefix(line, []byte("NSpid:"))
		if !found {
			continue
		}
		var pids []int
		for _, field := range bytes.Fields(rest) {
			pid, err := strconv.ParseInt(string(field), 10, 32)
			if err != nil || pid < 1 {
				return nil, fmt.Errorf("NSpid line %q has no pid %q", bytes.TrimSpace(line), field)
			}
			pids = append(pids, int(pid))
		}
		if len(pids) == 0 {
			return nil, errors.New("NSpid line is empty")
		}
		return pids, nil
	}
	return nil, errors.New("no NSpid line: Linux has it since 4.1")
}

// InOurNamespace says whether a process is in the pid namespace that we are in ourselves.
func (p Procfs) InOurNamespace(pid int) bool {
	ours, err := os.Readlink(filepath.Join(string(p), "self/ns/pid"))
	if err != nil {
		return false
	}
	its, err := os.Readlink(p.file(pid, "ns/pid"))
	return err == nil && its == ours
}

// fileID is what makes two paths one file.
type fileID struct{ device, inode uint64 }

// ConfigPage identifies the config page that a process sees as a container's is. A path is never followed
// as a path: a link in a tenant's image would lead into our own file system, where others' pages are.
func (p Procfs) ConfigPage(pid int) (fileID, error) {
	at, err := unix.Open(p.file(pid, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileID{}, err
	}
	for _, name := range []string{"etc", "xpu", "config.page"} {
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(at)
		if err != nil {
			return fileID{}, err
		}
		at = next
	}
	defer unix.Close(at)
	return identify(at)
}

func identify(descriptor int) (fileID, error) {
	var status unix.Stat_t
	if err := unix.Fstat(descriptor, &status); err != nil {
		return fileID{}, err
	}
	if status.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileID{}, errors.New("not a regular file")
	}
	return fileID{uint64(status.Dev), status.Ino}, nil
}

// identifyPath is for paths of our own.
func identifyPath(file string) (fileID, error) {
	descriptor, err := unix.Open(file, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileID{}, err
	}
	defer unix.Close(descriptor)
	return identify(descriptor)
}
