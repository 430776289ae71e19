// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"flexai.io/xpu/cluster/xpu"
)

// Proc is a machine's processes below a procfs root.
type Proc string

// Cgroup is the most telling of a process' cgroups: the one of the unified hierarchy, or, where that
// names no container, the longest of the others.
func (p Proc) Cgroup(pid int) (string, error) {
	text, err := os.ReadFile(filepath.Join(string(p), strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", err
	}
	return chooseCgroup(string(text)), nil
}

func chooseCgroup(text string) string {
	chosen := ""
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) == 3 && len(fields[2]) > len(chosen) {
			chosen = fields[2]
		}
	}
	return chosen
}

// Kill names the process by a descriptor before it looks at it again, so that a pid which was given to
// another process meanwhile harms nobody.
func (p Proc) Kill(pid int, cgroup string) error {
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(handle)
	if now, err := p.Cgroup(pid); err != nil || now != cgroup {
		return fmt.Errorf("process %d is not in %s any more", pid, cgroup)
	}
	return unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0)
}

var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// namesContainer tells the cgroup of a container from one that a login or a service shares with others.
func namesContainer(cgroup string) bool { return containerID.MatchString(cgroup) }

// ofPod says whether a cgroup is one of a pod's containers; systemd's names have _ for -.
func ofPod(cgroup string, owner xpu.Owner) bool {
	const shortest = 32 // a UID has 36 characters, a static pod's hash 32
	uid := owner.PodUID
	return len(uid) >= shortest &&
		(strings.Contains(cgroup, uid) || strings.Contains(cgroup, strings.ReplaceAll(uid, "-", "_")))
}
