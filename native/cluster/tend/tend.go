// SPDX-License-Identifier: Apache-2.0

// Package tend looks after the slices of a node while their containers run: it publishes what only the
// node knows (NVML's correction of the charges, memory that only NVML sees, what idle neighbours leave),
// clears what dead processes left, and compares what NVML shows with what the slices admit.
//
// One goroutine, the keeper's, owns all state and touches files only. NVML is asked in goroutines of
// its own, one for each card, so that a driver that takes its time delays nothing but its own answer.
package tend

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/xpu"
)

const (
	// tickEvery is how soon a slice that asks gets its share back from those it was lent to.
	tickEvery    = 25 * time.Millisecond
	tickIdle     = 100 * time.Millisecond // nobody of ours lives
	lookEvery    = 120 * time.Millisecond // under NVML's shortest sample period, so that none is missed
	lookIdle     = 250 * time.Millisecond
	lookAgain    = 2 * time.Second // after an error
	processEvery = int64(time.Second)
	scanEvery    = int64(250 * time.Millisecond)
	secondEvery  = int64(time.Second)
	findEvery    = int64(500 * time.Millisecond)
)

// NVML is what of NVML is needed; see package nvmlwatch.
type NVML interface {
	Samples(uuid string, sinceUs uint64) ([]nvmlwatch.Sample, error)
	Busy(uuid string) (int, error)
	Processes(uuid string) ([]nvmlwatch.Process, error)
	Close()
}

// Policy is what happens to a tenant who uses a card past the library.
type Policy string

// The policies.
const (
	Report Policy = "report" // say it, once
	Evict  Policy = "evict"  // and have the pod evicted
	Kill   Policy = "kill"   // and kill the process
)

// ParsePolicy reads a policy's name.
func ParsePolicy(text string) (Policy, error) {
	switch policy := Policy(text); policy {
	case Report, Evict, Kill:
		return policy, nil
	}
	return "", fmt.Errorf("policy %q is none of report, evict, kill", text)
}

// Evictor has the pod of a slice evicted.
type Evictor interface {
	Evict(ctx context.Context, slice xpu.Slice, reason string) error
}

// Host is this machine's processes.
type Host interface {
	// Cgroup is the path of a process' cgroup, as one line.
	Cgroup(pid int) (string, error)
	// Kill kills a process, if it is still in that cgroup.
	Kill(pid int, cgroup string) error
}

// Instant is a point in time by both clocks: the monotonic one, which pages and cards go by, and the
// wall clock, which NVML's timestamps go by.
type Instant struct {
	MonoNs int64
	WallNs int64
}

// Now reads both clocks.
func Now() Instant {
	var mono, wall unix.Timespec
	// Neither can fail with these clocks.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono)
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &wall)
	return Instant{mono.Nano(), wall.Nano()}
}

// Deps is the world around a keeper.
type Deps struct {
	// Slices are those the node's ledger holds now.
	Slices func() ([]xpu.Slice, error)
	// Pages are the files of a slice.
	Pages func(xpu.Slice) (config, ledger string)
	// Regrant makes the entry of a share's card grant that share, and says whether that was a change.
	Regrant func(entry *pages.Card, share xpu.Share) bool
	NVML    NVML
	Host    Host
	Policy  Policy
	Evictor Evictor // nil: policy evict reports
	// Observe is told each second what the slices' pages say; nil where nobody wants to know. It must not wait.
	Observe func([]Seen)
	Now     func() Instant
	Log     *slog.Logger
}

// pause is how long until the next tick.
func pause(inUse bool) time.Duration {
	if inUse {
		return tickEvery
	}
	return tickIdle
}

// Run looks after the slices until ctx ends.
func Run(ctx context.Context, deps Deps) {
	k := newKeeper(deps)
	defer k.close()
	looks := make(chan look)
	pollers := newPollers(ctx, deps, looks)
	defer pollers.wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case one := <-looks:
			k.took(one)
		case <-timer.C:
			k.tick(ctx, deps.Now())
			wanted := k.wanted()
			pollers.want(wanted)
			timer.Reset(pause(len(wanted) > 0))
		}
	}
}
