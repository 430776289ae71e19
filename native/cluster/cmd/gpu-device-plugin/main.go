// SPDX-License-Identifier: Apache-2.0

// gpu-device-plugin gives out slices of this node's cards to containers and looks after them while they
// run. `gpu-device-plugin agent` does the latter alone, on hosts without Kubernetes, `gpu-device-plugin
// slice` registers slices of the host itself, and `gpu-device-plugin check` is the probe of the plugin's pod.
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

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"flexai.io/xpu/cluster/cards"
	"flexai.io/xpu/cluster/health"
	"flexai.io/xpu/cluster/kube"
	"flexai.io/xpu/cluster/nvmlwatch"
)

func main() {
	command, read := start, parse
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "slice" {
		os.Exit(sliceCommand(args[1:], os.Getenv, os.Stdout, os.Stderr))
	}
	if len(args) > 0 && args[0] == "check" {
		if err := check(context.Background(), args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "gpu-device-plugin:", err)
			os.Exit(1)
		}
		return
	}
	if len(args) > 0 && args[0] == "agent" {
		command, read, args = startAgent, parseAgent, args[1:]
	}
	cfg, err := read(args, os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpu-device-plugin:", err)
		os.Exit(2)
	}
	log, err := cfg.log.open(os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpu-device-plugin:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command(ctx, cfg, log); err != nil {
		log.Error("stopped", "error", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, cfg config, log *slog.Logger) error {
	settings, err := connect(cfg.kubeconfig)
	if err != nil {
		return err
	}
	api, err := kube.NewAPI(settings, cfg.node)
	if err != nil {
		return err
	}
	pods, err := kube.NewNodePods(settings, cfg.node)
	if err != nil {
		return err
	}
	kubelet, err := kube.NewKubelet(cfg.devicePlugins, cfg.podResources, cfg.resources.Number)
	if err != nil {
		return err
	}
	finder := cards.Finder{Path: cfg.nvml, Proc: cfg.tend.proc, Split: cfg.split, ShortNames: cfg.shortNames, Log: log}
	reader := nvmlwatch.New(cfg.nvml)
	return run(ctx, cfg, deps{
		discover: finder.Find, kubelet: kubelet, api: api, pods: pods, now: time.Now, log: log,
		nvml: reader, driver: health.NewNVML(cfg.nvml), looks: health.Regular, inUse: reader.IsOpen,
		gauges: nvmlwatch.New(cfg.nvml),
	})
}

func connect(kubeconfig string) (*rest.Config, error) {
	var settings *rest.Config
	var err error
	if kubeconfig == "" {
		settings, err = rest.InClusterConfig()
	} else {
		settings, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("API server: %w; outside a pod pass --kubeconfig", err)
	}
	return settings, nil
}
