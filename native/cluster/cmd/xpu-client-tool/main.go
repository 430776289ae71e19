// SPDX-License-Identifier: Apache-2.0

// xpu-client-tool registers a container's processes: it has gpu-device-plugin find them and write them into
// the container's /etc/xpu/pids.config. Programs that read that file call it with --cgroup-path.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"flexai.io/xpu/cluster/pids/api"
	"flexai.io/xpu/cluster/pids/cgroup"
)

// The exit codes.
const (
	done   = 0
	failed = 1 // nobody answers, or the answer is no
	misled = 2 // wrong arguments
)

const usage = `Usage: xpu-client-tool [--cgroup-path PATH] [--print]
       xpu-client-tool --all [--period SECONDS]

The first form registers the processes of a container: gpu-device-plugin writes them into
its /etc/xpu/pids.config. Without --cgroup-path the container is the caller's own.
The second prints all cards of the node with their slices, as JSON; root of the host only.

Exit codes: 0 done, 1 nobody answers or the answer is no, 2 wrong arguments.

`

type options struct {
	cgroupPath string
	socket     string
	timeout    time.Duration
	period     string
	print, all bool
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, ownCgroup))
}

func ownCgroup() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return cgroup.Own(text), nil
}

func run(args []string, out, problems io.Writer, own func() (string, error)) int {
	chosen, err := parse(args, problems)
	if errors.Is(err, flag.ErrHelp) {
		return done
	}
	if err != nil {
		fmt.Fprintln(problems, "xpu-client-tool:", err)
		return misled
	}
	text, err := ask(chosen, own)
	if err != nil {
		fmt.Fprintf(problems, "xpu-client-tool: %s: %s\n", chosen.socket, status.Convert(err).Message())
		return failed
	}
	if chosen.all || chosen.print {
		fmt.Fprintln(out, text)
	}
	return done
}

func parse(args []string, problems io.Writer) (options, error) {
	var chosen options
	flags := flag.NewFlagSet("xpu-client-tool", flag.ContinueOnError)
	flags.SetOutput(problems)
	flags.Usage = func() {
		fmt.Fprint(problems, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&chosen.cgroupPath, "cgroup-path", "", "the container's cgroup, the last field of a line of /proc/<pid>/cgroup")
	flags.BoolVar(&chosen.print, "print", false, `print the processes, one "<host pid> <container pid>" a line`)
	flags.BoolVar(&chosen.all, "all", false, "print all cards and slices of the node")
	flags.StringVar(&chosen.period, "period", "60", "seconds over which utilisation is averaged, 1 to 60; with --all")
	flags.StringVar(&chosen.socket, "socket", "/var/lib/xpu/pids.sock", "socket of gpu-device-plugin")
	flags.DurationVar(&chosen.timeout, "timeout", 5*time.Second, "how long to wait for an answer")
	if err := flags.Parse(args); err != nil {
		return chosen, err
	}
	switch {
	case flags.NArg() > 0:
		return chosen, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case chosen.all && (chosen.cgroupPath != "" || chosen.print):
		return chosen, errors.New("--all goes with neither --cgroup-path nor --print")
	case chosen.timeout <= 0:
		return chosen, fmt.Errorf("--timeout %s is not above 0", chosen.timeout)
	}
	return chosen, nil
}

func ask(chosen options, own func() (string, error)) (string, error) {
	connection, err := grpc.NewClient("unix:"+chosen.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), chosen.timeout)
	defer cancel()
	client := api.NewPidsServiceClient(connection)
	if chosen.all {
		answer, err := client.GetAllVxpuInfo(ctx, &api.GetAllVxpuInfoRequest{Period: chosen.period})
		return answer.GetVxpuInfos(), err
	}
	path := chosen.cgroupPath
	if path == "" {
		if path, err = own(); err != nil {
			return "", err
		}
	}
	answer, err := client.GetPids(ctx, &api.GetPidsRequest{CgroupPath: path})
	return strings.ReplaceAll(answer.GetEncodedPids(), ",", "\n"), err
}
