// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"flexai.io/xpu/cluster/xpu"
)

const (
	number   = "huawei.com/vgpu-number"
	register = "huawei.com/node-vgpu-register"
)

func cardOf(index int) xpu.Card {
	return xpu.Card{UUID: "GPU-" + string(rune('0'+index)), Index: index, Minor: index, MemoryMiB: 40960, Model: "T4", Split: 4, Healthy: true}
}

// healthy follows how many ids of a resource the kubelet may give out.
func (h *host) healthy(t *testing.T, ctx context.Context, endpoint string) func(want int) {
	t.Helper()
	stream, err := h.dial(t, endpoint).ListAndWatch(ctx, &pluginapi.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	return func(want int) {
		t.Helper()
		for {
			list, err := stream.Recv()
			if err != nil {
				t.Fatalf("waiting for %d ids: %v", want, err)
			}
			count := 0
			for _, device := range list.Devices {
				if device.Health == pluginapi.Healthy {
					count++
				}
			}
			if count == want {
				return
			}
		}
	}
}

func TestALostCardsIdsAreWithdrawnUntilItIsBack(t *testing.T) {
	h := newHost(t)
	h.admit(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patient)
	defer cancel()
	well := map[string]error{"GPU-0": nil, "GPU-1": nil}
	h.driver.set(well)
	done := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() { done <- run(running, h.cfg, h.deps(cardOf(0), cardOf(1))) }()
	await := h.healthy(t, ctx, h.endpoints(t)[number])
	await(8)
	h.awaitAnnotation(t, register, "0,GPU-0,4,40960,GPU-T4,true,0:1,GPU-1,4,40960,GPU-T4,true,0:")
	h.driver.set(map[string]error{"GPU-0": nil, "GPU-1": errors.New("GPU is lost")})
	await(4)
	h.awaitAnnotation(t, register, "0,GPU-0,4,40960,GPU-T4,true,0:1,GPU-1,4,40960,GPU-T4,false,0:")
	h.driver.set(well)
	await(8)
	h.awaitAnnotation(t, register, "0,GPU-0,4,40960,GPU-T4,true,0:1,GPU-1,4,40960,GPU-T4,true,0:")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAnotherNumberOfCardsAtBootLosesNoSlice(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patient)
	defer cancel()
	stop := h.start(t, cardOf(0), cardOf(1))
	endpoints := h.endpoints(t)
	h.admit(t, map[string][]string{number: {"GPU-0-0"}})
	if _, err := h.dial(t, endpoints[number]).PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIDs: []string{"GPU-0-0"}}); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, boot := range []struct {
		cards []xpu.Card
		ids   int
	}{{[]xpu.Card{cardOf(1)}, 4}, {[]xpu.Card{cardOf(0), cardOf(1), cardOf(2)}, 9}} {
		h.kubelet.Stop()
		h.boot(t)
		stop := h.start(t, boot.cards...)
		h.healthy(t, ctx, h.endpoints(t)[number])(boot.ids)
		if text, err := os.ReadFile(h.cfg.paths.State + "/ledger.json"); err != nil || !strings.Contains(string(text), `"GPU-0"`) {
			t.Errorf("%d cards: the ledger lost the slice: %s, %v", len(boot.cards), text, err)
		}
		stop()
	}
}

func TestACardThatComesIsOffered(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patient)
	defer cancel()
	cards := []xpu.Card{cardOf(0)}
	h.driver.set(map[string]error{"GPU-0": nil})
	d := h.deps()
	d.discover = func() ([]xpu.Card, error) {
		h.driver.mutex.Lock()
		defer h.driver.mutex.Unlock()
		return cards[:len(h.driver.answers)], nil
	}
	cards = append(cards, cardOf(1))
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- run(running, h.cfg, d) }()
	h.healthy(t, ctx, h.endpoints(t)[number])(4)
	h.driver.set(map[string]error{"GPU-0": nil, "GPU-1": nil})
	h.healthy(t, ctx, h.endpoints(t)[number])(8)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAKubeletThatRestartsIsOfferedEverythingAgain(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patient)
	defer cancel()
	defer h.start(t, cardOf(0))()
	h.endpoints(t)
	h.kubelet.Stop()
	h.boot(t)
	h.healthy(t, ctx, h.endpoints(t)[number])(4)
}

func TestTheLogsFile(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "logs")
	cfg, err := parse([]string{"--node-name=n", "--log-dir=" + directory, "--logging-console=false", "--max-size=1", "--max-backups=2", "--log-level=warning"},
		func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	var console strings.Builder
	log, err := cfg.log.open(&console)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not this")
	for range 5 {
		log.Warn(strings.Repeat("x", 700<<10))
	}
	text, err := os.ReadFile(filepath.Join(directory, logFile))
	if err != nil || !strings.Contains(string(text), "level=WARN") || strings.Contains(string(text), "not this") || console.Len() > 0 {
		t.Errorf("%d bytes, %v; on the console %d", len(text), err, console.Len())
	}
	if files, _ := filepath.Glob(directory + "/*"); len(files) < 2 {
		t.Errorf("not rotated: %v", files)
	}
	cfg.log.directory = filepath.Join(directory, logFile) // a file, not a directory
	if _, err := cfg.log.open(&console); err == nil || !strings.Contains(err.Error(), "--log-dir") {
		t.Errorf("%v", err)
	}
	cfg.log = logConfig{console: true, level: slog.LevelInfo}
	if log, err = cfg.log.open(&console); err != nil {
		t.Fatal(err)
	}
	log.Info("this")
	if !strings.Contains(console.String(), "msg=this") {
		t.Error(console.String())
	}
}
