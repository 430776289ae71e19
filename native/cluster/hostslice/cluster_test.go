// SPDX-License-Identifier: Apache-2.0

package hostslice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/checkpoint"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/xpu"
)

// kubelet has admitted a pod for each id: 20 % and 4 GiB each.
type kubelet struct{ pods int }

var names = agent.Resources{Number: "number", Cores: "cores", Memory: "memory"}

func (k kubelet) Checkpoint() ([]checkpoint.Entry, error) {
	var entries []checkpoint.Entry
	for pod := range k.pods {
		for resource, count := range map[string]int{names.Number: 1, names.Cores: 20, names.Memory: 4} {
			var ids []string
			for i := range count {
				ids = append(ids, fmt.Sprintf("%s-%d-%d", resource, pod, i))
			}
			entries = append(entries, checkpoint.Entry{PodUID: fmt.Sprint("pod", pod), Container: "app", Resource: resource, IDs: ids})
		}
	}
	return entries, nil
}
func (kubelet) Holdings(context.Context) ([]agent.Holding, error) { return nil, errors.New("not here") }
func (kubelet) Pod(context.Context, string, string) (agent.Pod, error) {
	return agent.Pod{}, errors.New("not here")
}
func (kubelet) PodOf(context.Context, string) (agent.Pod, error) {
	return agent.Pod{}, errors.New("not here")
}

// Workers of the host and a device plugin at the same time, on one disk.
func TestHostAndClusterNeverPromiseTheSameShare(t *testing.T) {
	m := machine(t)
	disk, err := store.Open(m.Paths)
	if err != nil {
		t.Fatal(err)
	}
	const pods = 30
	plugin, err := agent.New(agent.Deps{Resources: names, Cards: twoCards, Kubelet: kubelet{pods}, Pods: kubelet{},
		Store: disk, Now: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 4 {
		command := worker(t, m, int64(100+i), fmt.Sprintf("own%d", i), "shared")
		group.Go(func() {
			if err := command.Wait(); err != nil {
				t.Errorf("worker %d: %v", i, err)
			}
		})
	}
	settled, full := 0, 0
	for pod := range pods {
		err := plugin.Prepare(context.Background(), []string{fmt.Sprintf("number-%d-0", pod)})
		switch {
		case err == nil:
			settled++
		case strings.Contains(err.Error(), "no room"):
			full++
		default:
			t.Error(err)
		}
		overbooked(t, m)
	}
	group.Wait()
	overbooked(t, m)
	if settled == 0 || full == 0 {
		t.Errorf("%d pods settled, %d found no room; the test wants both", settled, full)
	}
	// The plugin knows the host's slices, and the host those of pods.
	listing, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	ofPods := 0
	for _, slice := range listing.Slices {
		if slice.Owner != xpu.HostPodUID {
			ofPods++
		}
		if slice.State != Ready || !m.entry(t, slice.Name) {
			t.Errorf("%s of %s is %s, entry %t", slice.Name, slice.Owner, slice.State, m.entry(t, slice.Name))
		}
	}
	if ofPods != settled || len(plugin.Ledger().Slices()) != len(listing.Slices) {
		t.Errorf("%d pods settled, listed are %+v, the plugin knows %d", settled, listing.Slices, len(plugin.Ledger().Slices()))
	}
}
