// SPDX-License-Identifier: Apache-2.0

// xpu-exporter shows the cards and slices of its node to Prometheus.
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

	"github.com/prometheus/client_golang/prometheus"

	"flexai.io/xpu/cluster/exporter"
)

// version is set by the build.
var version = "unknown"

func main() {
	cfg, err := parse(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "xpu-exporter:", err)
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.level}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, cfg, log); err != nil {
		fmt.Fprintln(os.Stderr, "xpu-exporter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg config, log *slog.Logger) error {
	cfg.settings.Log = log
	var collector prometheus.Collector
	if cfg.kind == gpu {
		plugin, err := exporter.NewPlugin(cfg.socket)
		if err != nil {
			return err
		}
		collector = exporter.NewCollector(plugin, cfg.node, cfg.nodeIP, cfg.fresh, log)
	}
	registry, err := exporter.Registry(collector, cfg.kind, version)
	if err != nil {
		return err
	}
	listener, err := cfg.settings.Listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	log.Info("serving", "address", listener.Addr().String(), "tls", cfg.settings.CertFile != "", "version", version)
	return cfg.settings.Serve(ctx, listener, registry)
}
