// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"flexai.io/xpu/cluster/xpu"
)

// TestInARealContainer has the shipped client tool in a real container of runc register itself, with this
// machine's procfs and whatever version of cgroups it has.
func TestInARealContainer(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and runc; apt-get install runc")
	}
	root, err := os.MkdirTemp("", "xpu") // short: unix sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	for _, name := range []string{"image", "slice"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(root+"/slice/config.page", nil, 0o444); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", root+"/image/tool", "../cmd/xpu-client-tool")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	slices := func() ([]xpu.Slice, error) { return []xpu.Slice{aSlice()}, nil }
	service := New(Deps{Procfs: "/proc", Slices: slices, ConfigPage: func(xpu.Slice) string { return root + "/slice/config.page" },
		WritePids: func(_ xpu.Slice, text []byte) error { return os.WriteFile(root+"/slice/pids.config", text, 0o444) },
		Node:      NodeDeps{Slices: slices, Gauges: &gauges{}, Cards: func() ([]xpu.Card, error) { return nil, nil }},
		Log:       slog.New(slog.NewTextHandler(io.Discard, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	sockets := Sockets{Public: root + "/socket", Link: root + "/pids.sock", Guarded: root + "/exporter", Group: 0}
	go func() { served <- service.Serve(ctx, sockets) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	id := fmt.Sprintf("%064x", os.Getpid())
	for name, spaces := range map[string][]string{
		"as a pod's":            {"mount", "pid"},
		"in a cgroup namespace": {"mount", "pid", "cgroup"},
		"with the host's pids":  {"mount"},
	} {
		t.Run(name, func(t *testing.T) {
			os.Remove(root + "/slice/pids.config")
			out := runTool(t, root, id, spaces, "--print", "--timeout", "1m")
			fields := strings.Fields(out)
			if len(fields) != 2 {
				t.Fatalf("the tool printed %q", out)
			}
			inner := fields[1] == "1"
			if strings.Contains(strings.Join(spaces, " "), "pid") != inner {
				t.Errorf("host and container pid %v", fields)
			}
			written, err := os.ReadFile(root + "/slice/pids.config")
			if err != nil || string(written) != out {
				t.Errorf("pids.config %q, %v; the tool printed %q", written, err, out)
			}
		})
	}
}

func runTool(t *testing.T, root, id string, spaces []string, args ...string) string {
	t.Helper()
	var namespaces []map[string]string
	for _, space := range spaces {
		namespaces = append(namespaces, map[string]string{"type": space})
	}
	bind := func(from, to string) map[string]any {
		return map[string]any{"destination": to, "source": from, "type": "bind", "options": []string{"rbind", "ro"}}
	}
	text, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process":    map[string]any{"user": map[string]int{"uid": 1000, "gid": 1000}, "args": append([]string{"/tool"}, args...), "cwd": "/"},
		"root":       map[string]any{"path": "image", "readonly": true},
		"mounts": []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"},
			bind(root+"/slice", "/etc/xpu"), bind(root+"/socket", "/var/lib/xpu")},
		"linux": map[string]any{"namespaces": namespaces, "cgroupsPath": "/kubepods/podu1/" + id},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/config.json", text, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"etc/xpu", "var/lib/xpu", "proc"} {
		if err := os.MkdirAll(filepath.Join(root, "image", place), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command("runc", "--root", root+"/state", "run", "--bundle", root, "pids-test-"+id[48:])
	var problems strings.Builder
	command.Stderr = &problems
	out, err := command.Output()
	if err != nil {
		t.Fatalf("runc: %v: %s", err, problems.String())
	}
	return string(out)
}
