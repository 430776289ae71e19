// SPDX-License-Identifier: Apache-2.0

package hostslice

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"flexai.io/xpu/cluster/live"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/tend"
)

// inContainer is where a container has its slice's ledger page; see docs/interfaces.md section 6.
const inContainer = "/run/xpu/ledger.page"

// Use is who has a slice now.
type Use struct {
	// Processes hold a slot of the ledger page: they use the card.
	Processes []int `json:"processes"`
	// Containers have the ledger page mounted: their processes may use the card at any time.
	Containers []Container `json:"containers"`
	// MemoryBytes is what those processes hold of the card.
	MemoryBytes uint64 `json:"memory_bytes"`
}

// Container is one mount namespace that has a slice.
type Container struct {
	PID    int    `json:"pid"` // its first process that was seen
	Cgroup string `json:"cgroup"`
}

// idle says that taking the slice away takes it from nobody.
func (u Use) idle() bool { return len(u.Processes) == 0 && len(u.Containers) == 0 }

func (u Use) String() string {
	var parts []string
	for _, container := range u.Containers {
		parts = append(parts, fmt.Sprintf("container %s (pid %d)", container.Cgroup, container.PID))
	}
	if len(u.Processes) > 0 {
		parts = append(parts, fmt.Sprintf("processes %v with %d MiB", u.Processes, u.MemoryBytes>>20))
	}
	return strings.Join(parts, ", ")
}

// look asks the kernel: for the record locks on the ledger page and for the mounts of it. A slice
// without pages is in nobody's use.
func look(proc, config, ledger string) (Use, error) {
	use := Use{Processes: []int{}, Containers: []Container{}}
	opened, err := live.Open(config, ledger)
	switch {
	case err == nil:
		defer opened.Close()
		if err := use.count(opened); err != nil {
			return use, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return use, err
	}
	use.Containers, err = containers(proc, ledger)
	return use, err
}

// count goes by the locks, which are the kernel's; what the page says, its tenant can write.
func (u *Use) count(slice *live.Slice) error {
	slots, _ := slice.Slots(pages.MaxProcesses) // a page that was cut short holds no memory that we know of
	for slot := range pages.MaxProcesses {
		pid, held, err := slice.Holder(slot)
		if err != nil {
			return err
		}
		if !held {
			continue
		}
		u.Processes = append(u.Processes, pid)
		if slots != nil {
			u.MemoryBytes += slots[slot].MemoryBytes[0] // a slice of the host has one card
		}
	}
	if grant, err := slice.Config(); err == nil && len(grant.Cards) > 0 && len(u.Processes) > 0 {
		u.MemoryBytes += grant.Cards[0].OverheadBytes
	}
	return nil
}

// containers finds the mounts of a ledger page in every process' list, one for each mount namespace.
// Lists are the kernel's own text: no path of a tenant's is followed.
func containers(proc, ledger string) ([]Container, error) {
	found, seen := []Container{}, map[string]bool{}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	page, err := place(ledger)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil // and what isn't there isn't mounted anew
	}
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		directory := filepath.Join(proc, strconv.Itoa(pid))
		namespace, err := os.Readlink(filepath.Join(directory, "ns", "mnt"))
		if err != nil {
			// Root is refused only where a sandbox around this machine keeps a process of its own from it.
			if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
				return nil, fmt.Errorf("%w; run as root", err)
			}
			continue // it ended
		}
		if seen[namespace] {
			continue
		}
		seen[namespace] = true
		if mounts(filepath.Join(directory, "mountinfo"), page) {
			cgroup, _ := tend.Proc(proc).Cgroup(pid)
			found = append(found, Container{PID: pid, Cgroup: cgroup})
		}
	}
	return found, nil
}

// origin is where a file lies on its file system, as mountinfo names it: that tells it from a file of
// the same path on another machine that shares our kernel.
type origin struct{ device, path string }

const ownMounts = "/proc/self/mountinfo"

// place finds the mount that a file of ours is reached by.
func place(path string) (origin, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return origin{}, err
	}
	var found origin
	longest := -1
	err = eachMount(ownMounts, func(device, root, point string) {
		below, err := filepath.Rel(point, path)
		// Of several on one point, the last one covers the others.
		if err == nil && below != ".." && !strings.HasPrefix(below, "../") && len(point) >= longest {
			found, longest = origin{device, filepath.Join(root, below)}, len(point)
		}
	})
	if err == nil && longest < 0 {
		err = fmt.Errorf("%s names no mount that %s is on", ownMounts, path)
	}
	return found, err
}

// mounts says whether a list has the page where containers have theirs.
func mounts(list string, page origin) bool {
	has := false
	// A list that can't be read is that of a process that ended.
	_ = eachMount(list, func(device, root, point string) {
		has = has || point == inContainer && page == origin{device, root}
	})
	return has
}

func eachMount(list string, visit func(device, root, point string)) error {
	file, err := os.Open(list)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // overlays of many layers have long lines
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 {
			visit(fields[2], unescape.Replace(fields[3]), unescape.Replace(fields[4]))
		}
	}
	return lines.Err()
}

// unescape undoes what the kernel does to names in its lists.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
