// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/cards"
	"flexai.io/xpu/cluster/plugin"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/tend"
	"flexai.io/xpu/cluster/xpu"
)

// maxSplit keeps a full node's list of ids far below the kubelet's limit for one message.
const maxSplit = 256

// config is everything that flags and environment decide, read once.
type config struct {
	node          string
	split         int
	resources     agent.Resources
	strategy      plugin.Strategy
	nvml          string
	kubeconfig    string
	devicePlugins string
	podResources  string
	paths         store.Paths
	onError       store.OnError
	tend          tendConfig
	log           logConfig
	class         xpu.Class         // of pods that name none
	evictAfter    time.Duration     // of a pod that finds no room; 0: never
	xidQuiet      time.Duration     // after which a card with a critical XID is well again
	shortNames    map[string]string // of models
	pids          pidsConfig
}

// tendConfig is what looking after running slices needs; see package tend.
type tendConfig struct {
	policy tend.Policy
	proc   string
}

// pidsConfig is what PidsService needs; see package pids.
type pidsConfig struct {
	nodeIP string
	group  int
}

// hostFlags are those of every command: where this machine has what.
func (c *config) hostFlags(flags *flag.FlagSet, env func(string) string) {
	flags.StringVar(&c.nvml, "nvml-library", envOr(env, "NVML_LIBRARY", "libnvidia-ml.so.1"),
		"the driver's NVML library (environment NVML_LIBRARY)")
	flags.StringVar(&c.paths.Etc, "slice-dir", "/etc/xpu", "directory of the configuration of the host's slices")
	flags.StringVar(&c.paths.State, "state-dir", "/var/lib/xpu", "directory of the node ledger and the ledger pages of the host's slices")
	flags.StringVar(&c.paths.Run, "run-dir", "/run/xpu", "directory of both of the pods' slices, in memory; a boot may empty it")
	flags.StringVar(&c.tend.proc, "proc-dir", "/proc", "procfs of the host's pid namespace")
}

// entryFlags say what the slices' CDI entries are made of.
func (c *config) entryFlags(flags *flag.FlagSet) {
	flags.StringVar(&c.paths.Runtime, "runtime-dir", "/opt/xpu", "directory of our library and tools")
	flags.StringVar(&c.paths.BaseCDI, "cdi-base", "/etc/cdi/nvidia.yaml", "vendor's CDI spec")
	flags.StringVar(&c.paths.CDI, "cdi-file", "/etc/cdi/huawei.com-vgpu.yaml", "CDI spec of the slices")
}

// tendFlags are those that the device plugin and the agent share.
func (c *config) tendFlags(flags *flag.FlagSet, env func(string) string) (policy, level *string) {
	c.hostFlags(flags, env)
	flags.StringVar(&c.node, "node-name", env("NODE_NAME"), "this node's name (environment NODE_NAME)")
	flags.StringVar(&c.pids.nodeIP, "node-ip", env("HOST_IP"), "this node's address, for metrics (environment HOST_IP)")
	flags.IntVar(&c.pids.group, "exporter-group", 10001, "group that may enter <state-dir>/exporter, where xpu-exporter asks")
	return flags.String("on-misuse", string(tend.Report),
			"what happens to a tenant who uses a card past the library: report, kill, or (with Kubernetes) evict"),
		c.log.flags(flags)
}

// settle checks what tendFlags read.
func (c *config) settle(policy, level string) error {
	var unknown error
	c.tend.policy, unknown = tend.ParsePolicy(policy)
	return errors.Join(unknown, c.log.settle(level))
}

// parseAgent reads the arguments of `gpu-device-plugin agent`.
func parseAgent(args []string, env func(string) string) (config, error) {
	var cfg config
	flags := flag.NewFlagSet("gpu-device-plugin agent", flag.ContinueOnError)
	policy, level := cfg.tendFlags(flags, env)
	cfg.entryFlags(flags)
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	err := cfg.settle(*policy, *level)
	if cfg.tend.policy == tend.Evict {
		err = errors.Join(err, errors.New("--on-misuse evict: without Kubernetes there is nobody to evict; use report or kill"))
	}
	return cfg, err
}

func parse(args []string, env func(string) string) (config, error) {
	var cfg config
	var strategy, onError, class, types string
	flags := flag.NewFlagSet("gpu-device-plugin", flag.ContinueOnError)
	flags.IntVar(&cfg.split, "device-split-count", 2, "most slices a card holds at a time")
	flags.StringVar(&cfg.resources.Number, "resource-name", "huawei.com/vgpu-number", "resource that counts slices")
	flags.StringVar(&cfg.resources.Cores, "cores-resource-name", "huawei.com/vgpu-cores", "resource of compute, in percent of a card")
	flags.StringVar(&cfg.resources.Memory, "memory-resource-name", "huawei.com/vgpu-memory-1Gi", "resource of memory, in GiB")
	flags.StringVar(&strategy, "cdi-strategy", string(plugin.Mount),
		"how a container's slice is named to the runtime: mount (NVIDIA's runtime in CDI mode) or field (runtimes that speak CDI to the kubelet)")
	policy, level := cfg.tendFlags(flags, env)
	flags.StringVar(&cfg.kubeconfig, "kubeconfig", "", "API server to use outside a pod")
	flags.StringVar(&cfg.devicePlugins, "device-plugin-dir", "/var/lib/kubelet/device-plugins", "kubelet's device-plugin directory")
	flags.StringVar(&cfg.podResources, "pod-resources-socket", "/var/lib/kubelet/pod-resources/kubelet.sock", "kubelet's PodResources socket")
	cfg.entryFlags(flags)
	flags.StringVar(&onError, "on-error", string(store.Allow),
		"what becomes of a process whose slice's pages are unusable: allow (it runs, without limits or within its own) or deny-new-memory (it gets no device memory)")
	flags.StringVar(&class, "default-class", "", "class of pods without annotation flexai.io/class: guaranteed, elastic or best-effort; "+
		"empty: guaranteed with cores, no compute limit with memory alone")
	flags.DurationVar(&cfg.evictAfter, "evict-after", time.Minute, "how long a pod may find no room before it is evicted; 0: it waits on")
	flags.DurationVar(&cfg.xidQuiet, "xid-quiet", 5*time.Minute, "how long after its last critical XID a card that answers takes slices again")
	flags.StringVar(&types, "gpu-type-config", "", "YAML file of short names of models: lines `<NVML's name>: <short name>`")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var problems []error
	keep := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	var err error
	cfg.strategy, err = plugin.ParseStrategy(strategy)
	keep(err)
	cfg.onError, err = store.ParseOnError(onError)
	keep(err)
	if cfg.class, err = xpu.ParseClass(class); err != nil {
		keep(fmt.Errorf("--default-class: %w", err))
	}
	if types != "" {
		if cfg.shortNames, err = cards.LoadShortNames(types); err != nil {
			keep(fmt.Errorf("--gpu-type-config: %w", err))
		}
	}
	keep(cfg.settle(*policy, *level))
	keep(cfg.check())
	return cfg, errors.Join(problems...)
}

func (c config) check() error {
	var problems []error
	if c.node == "" {
		problems = append(problems, errors.New("no node name; pass --node-name or set NODE_NAME"))
	}
	if c.split < 1 || c.split > maxSplit {
		problems = append(problems, fmt.Errorf("--device-split-count %d is not 1 to %d", c.split, maxSplit))
	}
	for name, value := range map[string]time.Duration{"--evict-after": c.evictAfter, "--xid-quiet": c.xidQuiet} {
		if value < 0 {
			problems = append(problems, fmt.Errorf("%s %s is below 0", name, value))
		}
	}
	for _, name := range []string{c.resources.Number, c.resources.Cores, c.resources.Memory} {
		if domain, rest, found := strings.Cut(name, "/"); !found || domain == "" || rest == "" {
			problems = append(problems, fmt.Errorf("resource name %q is not <domain>/<name>", name))
		}
	}
	return errors.Join(problems...)
}

// parseLevel takes upstream's names; there "fatal" logs nothing but the end, which error shows too.
func parseLevel(text string) (slog.Level, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo,
		"warning": slog.LevelWarn, "error": slog.LevelError, "fatal": slog.LevelError}
	level, known := levels[text]
	if !known {
		return 0, fmt.Errorf("--log-level %q is none of debug, info, warning, error, fatal", text)
	}
	return level, nil
}

func envOr(env func(string) string, name, fallback string) string {
	if value := env(name); value != "" {
		return value
	}
	return fallback
}
