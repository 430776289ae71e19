// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"flexai.io/xpu/cluster/pids/cgroup"
)

// shared lets any number of questions be answered by few looks: a look answers all who asked before it
// began, one look is under way at a time, and two begin at least the interval apart. So what a hostile client
// can make us do is bounded, and still nobody gets an answer older than his question.
type shared[T any] struct {
	look     func() (T, error)
	interval time.Duration

	mutex   sync.Mutex // of waiting
	waiting *round[T]
	turn    sync.Mutex // held by the look under way; guards last
	last    time.Time
}

type round[T any] struct {
	done  chan struct{}
	value T
	err   error
}

func (s *shared[T]) get(ctx context.Context) (T, error) {
	s.mutex.Lock()
	mine := s.waiting
	if mine == nil {
		mine = &round[T]{done: make(chan struct{})}
		s.waiting = mine
		go s.run(mine)
	}
	s.mutex.Unlock()
	select {
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (s *shared[T]) run(mine *round[T]) {
	s.turn.Lock()
	defer s.turn.Unlock()
	time.Sleep(time.Until(s.last.Add(s.interval)))
	s.mutex.Lock()
	s.waiting = nil // who comes from now on asked after this look began
	s.mutex.Unlock()
	s.last = time.Now()
	mine.value, mine.err = s.look()
	close(mine.done)
}

// census is who is in which cgroup at one moment.
type census struct {
	procfs    Procfs
	processes []process

	mutex   sync.Mutex
	answers map[string]func() (string, error) // by container cgroup
}

type process struct {
	pid     int
	cgroups []string
}

// takeCensus reads /proc rather than cgroup.procs: that needs no mount of any hierarchy, and is the same for
// cgroup v1, v2 and both at once.
func takeCensus(procfs Procfs) (*census, error) {
	directory, err := os.Open(string(procfs))
	if err != nil {
		return nil, err
	}
	defer directory.Close()
	entries, err := directory.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", procfs, err)
	}
	taken := &census{procfs: procfs, answers: map[string]func() (string, error){}}
	for _, name := range entries {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if cgroups, err := procfs.Cgroups(pid); err == nil && len(cgroups) > 0 { // else gone, or of no container
			taken.processes = append(taken.processes, process{pid, cgroups})
		}
	}
	slices.SortFunc(taken.processes, func(a, b process) int { return a.pid - b.pid })
	return taken, nil
}

// members are the processes of a container's cgroup and of those below it.
func (c *census) members(root string) []int {
	var pids []int
	for _, one := range c.processes {
		if slices.ContainsFunc(one.cgroups, func(path string) bool { return cgroup.Within(path, root) }) {
			pids = append(pids, one.pid)
		}
	}
	return pids
}

// once answers a question about a container once, for all who ask it of this census.
func (c *census) once(root string, answer func() (string, error)) (string, error) {
	c.mutex.Lock()
	known := c.answers[root]
	if known == nil {
		known = sync.OnceValues(answer)
		c.answers[root] = known
	}
	c.mutex.Unlock()
	return known()
}

// pair is one process, seen from the host and from its container.
type pair struct{ host, container int }

// pairs finds the container's own pid of each process. Processes in a namespace of their own within the
// container have one more; the container's level is that of the outermost of its processes. A process in our
// own namespace (a pod with hostPID, or one that a runtime is just bringing in) has one pid only.
func (c *census) pairs(pids []int) []pair {
	levels := make([][]int, 0, len(pids))
	level := 0
	for _, pid := range pids {
		seen, err := c.procfs.NSpid(pid)
		if err != nil {
			continue // gone meanwhile
		}
		levels = append(levels, seen)
		if inner := len(seen) - 1; inner > 0 && (level == 0 || inner < level) {
			level = inner
		}
	}
	found := make([]pair, 0, len(levels))
	for _, seen := range levels {
		found = append(found, pair{seen[0], seen[min(level, len(seen)-1)]})
	}
	return found
}

// lineWidth is that of one pair: programs that read pids.config skip lines of any other.
const lineWidth = 23

func (p pair) String() string { return fmt.Sprintf("%-11d %-11d", p.host, p.container) }

// encode is what GetPids answers with.
func encode(pairs []pair) string {
	lines := make([]string, len(pairs))
	for i, one := range pairs {
		lines[i] = one.String()
	}
	return strings.Join(lines, ",")
}

// config is pids.config of the same answer.
func config(encoded string) []byte {
	if encoded == "" {
		return nil
	}
	return []byte(strings.ReplaceAll(encoded, ",", "\n") + "\n")
}
