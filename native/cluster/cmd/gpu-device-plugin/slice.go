// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"flexai.io/xpu/cluster/cards"
	"flexai.io/xpu/cluster/hostslice"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/xpu"
)

const sliceUsage = `Slices of this machine's cards, each a CDI device for Docker and Podman: --device huawei.com/vgpu=NAME

  gpu-device-plugin slice add NAME [--card auto|UUID|INDEX] [--cores PERCENT] [--memory-mib MIB] [--mode MODE] [--weight N]
  gpu-device-plugin slice ensure NAME …   add it, or resize the one that is there
  gpu-device-plugin slice resize NAME …   what isn't named stays as it is; --force: below the memory in use
  gpu-device-plugin slice remove NAME     --force: from under containers that have it
  gpu-device-plugin slice list

Every command takes --output text|json; those that change something, --dry-run. Run COMMAND --help for all flags.
`

// sliceConfig is what the arguments of `slice` decide.
type sliceConfig struct {
	config
	verb   string
	wish   hostslice.Wish
	force  bool
	dryRun bool
	json   bool
}

// sliceVerbs are the commands; those that put a slice take its terms.
var sliceVerbs = map[string]struct{ puts, forces bool }{
	"add": {puts: true}, "ensure": {puts: true, forces: true}, "resize": {puts: true, forces: true},
	"remove": {forces: true}, "list": {},
}

func parseSlice(args []string, env func(string) string, stderr io.Writer) (sliceConfig, error) {
	cfg := sliceConfig{}
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" {
		fmt.Fprint(stderr, sliceUsage)
		return cfg, flag.ErrHelp
	}
	cfg.verb, args = args[0], args[1:]
	verb, known := sliceVerbs[cfg.verb]
	if !known {
		return cfg, fmt.Errorf("slice %q: there are add, ensure, resize, remove and list", cfg.verb)
	}
	// The name comes first, as in `docker volume create NAME`, or after the flags.
	if cfg.verb != "list" && len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		cfg.wish.Name, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("gpu-device-plugin slice "+cfg.verb, flag.ContinueOnError)
	flags.SetOutput(stderr)
	cfg.hostFlags(flags, env)
	cfg.entryFlags(flags)
	var output, onError string
	flags.StringVar(&output, "output", "text", "text or json")
	flags.StringVar(&onError, "on-error", string(store.Allow), "policy of a new slice, as the device plugin's --on-error")
	if cfg.verb != "list" {
		flags.BoolVar(&cfg.dryRun, "dry-run", false, "say what would happen, or why it wouldn't, and change nothing")
	}
	if verb.forces {
		flags.BoolVar(&cfg.force, "force", false, "also what processes or containers are using")
	}
	if verb.puts {
		termFlags(flags, &cfg.wish)
	}
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	rest := flags.Args()
	if cfg.verb != "list" && cfg.wish.Name == "" && len(rest) > 0 {
		cfg.wish.Name, rest = rest[0], rest[1:]
	}
	var problems []error
	if len(rest) > 0 {
		problems = append(problems, fmt.Errorf("unexpected argument %q", rest[0]))
	}
	if cfg.verb != "list" {
		problems = append(problems, xpu.CheckHostName(cfg.wish.Name))
	}
	if output != "text" && output != "json" {
		problems = append(problems, fmt.Errorf("--output %q is neither text nor json", output))
	}
	cfg.json = output == "json"
	var err error
	cfg.onError, err = store.ParseOnError(onError)
	return cfg, errors.Join(append(problems, err)...)
}

// termFlags leave what isn't given nil.
func termFlags(flags *flag.FlagSet, wish *hostslice.Wish) {
	wish.Card = xpu.AnyCard
	flags.StringVar(&wish.Card, "card", xpu.AnyCard, "card by UUID or index, or the best one: auto")
	flags.Func("cores", "percent of the card's compute, 1 to 100; 0: no compute limit", func(text string) error {
		value, err := strconv.Atoi(text)
		wish.Cores = &value
		return err
	})
	flags.Func("memory-mib", "memory in MiB; 0: all of the card's", func(text string) error {
		value, err := strconv.ParseUint(text, 10, 44) // in bytes it fits 64 bits
		wish.MemoryMiB = &value
		return err
	})
	flags.Func("mode", "hard (never above its cores), elastic (above while others are idle), fixed-share (in windows of its own) or "+
		"priority (in what others leave)", func(text string) error {
		value := xpu.Mode(text)
		wish.Mode = &value
		return nil
	})
	flags.Func("weight", "part in what others leave, for elastic and priority", func(text string) error {
		value, err := strconv.Atoi(text)
		wish.Weight = &value
		return err
	})
}

// sliceCommand is `gpu-device-plugin slice`; it returns the exit code. With --output json an error is an
// object, too, so that a caller reads one text whatever happens.
func sliceCommand(args []string, env func(string) string, stdout, stderr io.Writer) int {
	cfg, err := parseSlice(args, env, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fail(cfg, err, stdout, stderr)
		return 2
	}
	manager := hostslice.Manager{Paths: cfg.paths, OnError: cfg.onError, Proc: cfg.tend.proc, DryRun: cfg.dryRun,
		Discover: func() ([]xpu.Card, error) { return cards.Discover(cfg.nvml, cfg.tend.proc, maxSplit) }}
	if err := cfg.do(manager, stdout, stderr); err != nil {
		fail(cfg, err, stdout, stderr)
		return 1
	}
	return 0
}

func fail(cfg sliceConfig, err error, stdout, stderr io.Writer) {
	if cfg.json {
		_ = json.NewEncoder(stdout).Encode(map[string]string{"error": err.Error()})
		return
	}
	fmt.Fprintln(stderr, "gpu-device-plugin:", err)
}

func (c sliceConfig) do(m hostslice.Manager, stdout, stderr io.Writer) error {
	if c.verb == "list" {
		listing, err := m.List()
		if err != nil {
			return err
		}
		if c.json {
			return json.NewEncoder(stdout).Encode(listing)
		}
		return printListing(listing, stdout)
	}
	change, err := c.change(m)
	if err != nil {
		return err
	}
	if c.json {
		return json.NewEncoder(stdout).Encode(change)
	}
	if change.Warning != "" {
		fmt.Fprintln(stderr, "gpu-device-plugin: warning:", change.Warning)
	}
	_, err = fmt.Fprintln(stdout, told(c.wish.Name, change))
	return err
}

func (c sliceConfig) change(m hostslice.Manager) (hostslice.Change, error) {
	switch c.verb {
	case "add":
		return m.Add(c.wish)
	case "resize":
		return m.Resize(c.wish, c.force)
	case "ensure":
		return m.Ensure(c.wish, c.force)
	default:
		return m.Remove(c.wish.Name, c.force)
	}
}

func told(name string, change hostslice.Change) string {
	switch {
	case change.After != nil:
		return fmt.Sprintf("%s: %s; --device %s: %s", name, change.Action, change.After.Device, change.After)
	case change.Changed:
		return fmt.Sprintf("%s: removed", name)
	default:
		return fmt.Sprintf("%s: not there", name)
	}
}

func printListing(listing hostslice.Listing, out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "DEVICE\tOWNER\tCARD\tCORES %\tMEMORY MiB\tMODE\tWEIGHT\tSTATE\tIN USE BY")
	for _, slice := range listing.Slices {
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%s\t%d\t%s\t%s\n", slice.Device, slice.Owner, slice.Card, slice.CoresPercent,
			slice.MemoryMiB, slice.Mode, slice.Weight, slice.State, slice.Use)
	}
	fmt.Fprintln(table, "\nINDEX\tCARD\tMODEL\tFREE CORES %\tFREE MEMORY MiB\tMEMORY MiB")
	for _, card := range listing.Cards {
		fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%d\t%d\n", card.Index, card.UUID, card.Model, card.FreeCoresPercent, card.FreeMemoryMiB, card.MemoryMiB)
	}
	if listing.Problem != "" {
		fmt.Fprintf(table, "\ncards not read: %s\n", listing.Problem)
	}
	return table.Flush()
}
