// SPDX-License-Identifier: Apache-2.0

// xpu-webhook is the admission webhook of pods that ask for slices of GPUs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	cfg, err := parse(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "xpu-webhook:", err)
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.logLevel}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := start(ctx, cfg, log); err != nil {
		log.Error("stopped", "error", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, cfg config, log *slog.Logger) error {
	settings, err := connect(cfg.kubeconfig)
	if err != nil {
		return err
	}
	cluster, err := newAPI(settings, cfg)
	if err != nil {
		return err
	}
	reviews, err := net.Listen("tcp", cfg.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	probes, err := net.Listen("tcp", cfg.probes)
	if err != nil {
		return fmt.Errorf("--listen-probes: %w", err)
	}
	log.Info("answering reviews", "address", reviews.Addr().String(), "scheduler", cfg.policy.Scheduler,
		"runtimeClass", cfg.policy.RuntimeClass)
	return run(ctx, cfg, deps{vault: cluster, publisher: cluster, reviews: reviews, probes: probes,
		now: time.Now, wait: time.Sleep, log: log})
}

func connect(kubeconfig string) (*rest.Config, error) {
	settings, err := rest.InClusterConfig()
	if kubeconfig != "" {
		settings, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("API server: %w; outside a pod pass --kubeconfig", err)
	}
	return settings, nil
}
