// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"flexai.io/xpu/cluster/cards"
	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/pids"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/tend"
	"flexai.io/xpu/cluster/xpu"
)

const (
	tendRetry    = 500 * time.Millisecond
	tendPatience = 3 * time.Second // a `slice resize` has the right to tend for a moment
	basisPoll    = 5 * time.Second
)

// tendAlone looks after the slices as soon as nobody else on this machine does, and stands by until then:
// a successor that starts before its predecessor has ended, or a unit on a node that has a device plugin.
// What is told of the slices is told by who looks after them, so serve runs beside that.
func tendAlone(ctx context.Context, paths store.Paths, deps tend.Deps, serve func(context.Context)) {
	since, said := time.Now(), false
	for ctx.Err() == nil {
		release, err := paths.TakeTending()
		if err == nil {
			defer release()
			deps.Log.Info("looking after running slices", "ledger", paths.State, "policy", string(deps.Policy))
			var group sync.WaitGroup
			group.Go(func() { serve(ctx) })
			tend.Run(ctx, deps)
			group.Wait()
			return
		}
		patient := errors.Is(err, store.ErrTaken) && time.Since(since) < tendPatience
		if !said && !patient {
			deps.Log.Warn("somebody else looks after running slices; standing by", "error", err)
			said = true
		}
		sleep(ctx, tendRetry)
	}
}

func sleep(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// startAgent looks after the slices of a host without Kubernetes: those that its node ledger names.
func startAgent(ctx context.Context, cfg config, log *slog.Logger) error {
	return runAgent(ctx, cfg, agentDeps{
		discover: func() ([]xpu.Card, error) { return cards.Discover(cfg.nvml, cfg.tend.proc, maxSplit) },
		nvml:     nvmlwatch.New(cfg.nvml), gauges: nvmlwatch.New(cfg.nvml), ready: func() { tellSystemd("READY=1") }, log: log,
	})
}

// agentDeps is the world as the agent sees it.
type agentDeps struct {
	discover func() ([]xpu.Card, error)
	nvml     tend.NVML
	gauges   pids.Gauges
	ready    func()
	log      *slog.Logger
}

// runAgent ends with ctx. It is ready once the CDI entries were written, or couldn't be: container
// engines start after it, and a broken driver must not keep them from that.
func runAgent(ctx context.Context, cfg config, d agentDeps) error {
	disk, err := store.Open(cfg.paths)
	if err != nil {
		return err
	}
	r := restorer{disk: disk, discover: d.discover, log: d.log}
	r.look()
	d.ready()
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			sleep(ctx, basisPoll)
			r.look()
		}
	})
	service := cfg.pidsService(onceFound(d.discover), d.gauges, d.log)
	tendAlone(ctx, cfg.paths, cfg.tendDeps(d.nvml, d.log, service.Observe), cfg.servePids(service, d.log))
	group.Wait()
	return nil
}

// restorer keeps the slices' files and CDI entries true to what they rest on: after a reboot a card may
// have another minor number, after an upgrade the driver has other files.
type restorer struct {
	disk     *store.Store
	discover func() ([]xpu.Card, error)
	log      *slog.Logger
	basis    string // the one that was restored; empty after a failure
	said     string
}

// look asks the driver only where there is something to do, so that it never keeps one from being exchanged.
func (r *restorer) look() {
	basis := r.disk.Basis()
	if basis == r.basis {
		return
	}
	err := r.restore()
	switch {
	case err == nil:
		r.basis, r.said = basis, ""
		r.log.Info("CDI entries of all slices are true to the driver and library in force")
	case err.Error() != r.said:
		r.said = err.Error()
		r.log.Warn("CDI entries of the slices not written; trying again", "error", err)
	}
}

func (r *restorer) restore() error {
	return r.disk.Transact(func(ledger xpu.Ledger) error {
		if err := r.disk.Sweep(ledger); err != nil {
			return err
		}
		for _, slice := range ledger.Slices() {
			if !slice.Owner.OfHost() {
				continue // the kubelet has its files written at each start
			}
			if err := r.disk.Mend(slice); err != nil {
				return err
			}
		}
		if len(ledger.Slices()) == 0 {
			return nil // and no entry, so nothing to ask the driver for
		}
		found, err := r.discover()
		if err != nil {
			return err
		}
		return r.disk.WriteCDI(ledger, found)
	})
}

// tellSystemd says a state to systemd, where that waits for it (Type=notify).
func tellSystemd(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	// An abstract socket is written with @ for the leading NUL, which Go takes as it is.
	connection, err := net.Dial("unixgram", strings.TrimSpace(path))
	if err != nil {
		return // then systemd ends the start by its own limit, and says so
	}
	defer connection.Close()
	_, _ = connection.Write([]byte(state))
}
