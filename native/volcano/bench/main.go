// SPDX-License-Identifier: Apache-2.0

// Command bench measures what one decision costs the scheduler, and what a week of arrivals leaves
// of the cards. It prints one JSON object; tests/bench/scheduler.py runs it in turns and judges.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"volcano.sh/volcano/pkg/scheduler/framework"

	"flexai.io/xpu/volcano/bridge"
	"flexai.io/xpu/volcano/harness"
)

func main() {
	way := flag.String("way", "", "scalar | huawei-xpu | deviceshare | week")
	nodes := flag.Int("nodes", 1000, "nodes of 8 cards")
	pods := flag.Int("pods", 5000, "pods that wait")
	idle := flag.Int("idle", 5, "sessions that find nothing to do, afterwards")
	seed := flag.Int64("seed", 1, "of way week")
	policy := flag.String("policy", "", "of way week: a policy, or first-fit")
	flag.Parse()
	var result any
	var err error
	if *way == "week" {
		result, err = week(*policy, *seed, *nodes)
	} else {
		result, err = decide(*way, *nodes, *pods, *idle)
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// cost is what one run of Volcano's sessions took.
type cost struct {
	Bound         int     `json:"bound"`
	DecisionUs    float64 `json:"decision_us"`     // CPU of the session that placed the pods, per pod
	WallUs        float64 `json:"wall_us"`         // likewise by the clock
	IdleSessionUs float64 `json:"idle_session_us"` // CPU of a session that finds nothing to do
}

// decide schedules all pods in one session. Building the cluster is not measured; the garbage that
// the session makes is, for the collector runs within.
func decide(way string, nodes, pods, idle int) (cost, error) {
	framework.RegisterPluginBuilder(bridge.Name, bridge.New)
	configuration, cluster, err := prepare(way, nodes, pods)
	if err != nil {
		return cost{}, err
	}
	scheduler, err := harness.New(configuration, cluster)
	if err != nil {
		return cost{}, err
	}
	scheduler.Start()
	runtime.GC()
	debug.FreeOSMemory()
	before, started := cpu(), time.Now()
	scheduler.Cycle()
	spent, took := cpu()-before, time.Since(started)
	found := cost{
		DecisionUs: float64(spent.Microseconds()) / float64(pods), WallUs: float64(took.Microseconds()) / float64(pods),
	}
	for _, pod := range cluster.Pods {
		if pod.Spec.NodeName != "" {
			found.Bound++
		}
	}
	if idle > 0 {
		runtime.GC()
		before = cpu()
		for range idle {
			scheduler.Cycle()
		}
		found.IdleSessionUs = float64((cpu() - before).Microseconds()) / float64(idle)
	}
	return found, nil
}

// cpu is the processor time of this process, user and system.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // it can't fail with these arguments
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
