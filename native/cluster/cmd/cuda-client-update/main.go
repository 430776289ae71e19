// SPDX-License-Identifier: Apache-2.0

// cuda-client-update keeps the interception library and its tools under /opt/xpu on nodes that role
// xpu_runtime does not look after; it never touches the driver. `cuda-client-update check` says by its
// exit code whether the node has them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"flexai.io/xpu/cluster/release"
)

type config struct {
	home     string
	tarball  string
	interval time.Duration
	check    bool
}

func main() {
	cfg, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cuda-client-update:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "cuda-client-update:", err)
		os.Exit(1)
	}
}

func parse(args []string) (config, error) {
	cfg := config{check: len(args) > 0 && args[0] == "check"}
	if cfg.check {
		args = args[1:]
	}
	flags := flag.NewFlagSet("cuda-client-update", flag.ContinueOnError)
	flags.StringVar(&cfg.home, "home", "/opt/xpu", "the node's directory of library and tools")
	flags.StringVar(&cfg.tarball, "release", "/release/xpu-runtime.tar.gz", "artefact xpu-runtime to have there")
	flags.DurationVar(&cfg.interval, "interval", time.Minute, "how often to look again")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q; the one command is check, before any flag", flags.Arg(0))
	}
	if cfg.interval <= 0 {
		return config{}, fmt.Errorf("--interval %v is not above 0", cfg.interval)
	}
	return cfg, nil
}

func run(ctx context.Context, cfg config, log *slog.Logger) error {
	tarball, err := release.Open(cfg.tarball)
	if err != nil {
		return err
	}
	if cfg.check {
		return check(cfg.home, tarball.Name)
	}
	return keep(ctx, cfg, tarball, log)
}

// check fails with the reason where the node lacks something.
func check(home, wanted string) error {
	facts, err := release.Observe(home, wanted)
	if err != nil {
		return err
	}
	if decision := release.Decide(facts, wanted); !decision.Ready() {
		return errors.New(decision.Reason)
	}
	return nil
}

// keep looks again and again until ctx ends, and says what it finds when that changes.
func keep(ctx context.Context, cfg config, tarball *release.Tarball, log *slog.Logger) error {
	last := ""
	for {
		decision, err := release.Converge(cfg.home, tarball)
		if errors.Is(err, release.ErrRemoved) {
			return err
		}
		said := decision.Reason
		if err != nil {
			said = err.Error()
		}
		if said != last {
			report(log, decision, err)
			last = said
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(cfg.interval):
		}
	}
}

func report(log *slog.Logger, decision release.Decision, err error) {
	switch {
	case err != nil:
		log.Error("not done; trying again", "error", err)
	case decision.Action == release.Refuse:
		log.Error("nothing done", "reason", decision.Reason)
	default:
		log.Info(string(decision.Action), "reason", decision.Reason)
	}
}
