// SPDX-License-Identifier: Apache-2.0

package cdi

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "tags.cncf.io/container-device-interface/specs-go"
)

// The composed mounts in a real runc, in images unlike the host. What the vendor's hooks do is the
// vendor's; here is whether every file gets to its place, and what it costs the image.

// hostBase has the driver's libraries at a Debian host's path.
const hostBase = `cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices: [{name: "0", containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}}]
containerEdits:
  mounts:
  - {hostPath: HOST/libcuda, containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05, options: [ro, nosuid, nodev, bind]}
  - {hostPath: HOST/libnvidia-ml, containerPath: /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05, options: [ro, nosuid, nodev, bind]}
`

// want is what a slice looks like in any image.
var want = map[string]string{
	"/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05":      "our libcuda",
	"/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05": "our libnvidia-ml",
	"/opt/xpu/lib/libcuda-original.so":                    "the driver's libcuda",
	"/opt/xpu/lib/libnvidia-ml-original.so":               "the driver's libnvidia-ml",
	"/opt/xpu/bin/gpu-monitor":                            "the monitor",
	"/etc/xpu/config.page":                                "the grant",
	"/run/xpu/ledger.page":                                "the ledger",
	"/usr/local/cuda/compat":                              "directory of []",
	"/var/lib/xpu":                                        "directory of [pids.sock]",
	"connect:/var/lib/xpu/pids.sock":                      "done",
	"write:/etc/xpu/config.page":                          "open /etc/xpu/config.page: read-only file system",
	"write:/opt/xpu/bin/gpu-monitor":                      "open /opt/xpu/bin/gpu-monitor: read-only file system",
}

func fill(t *testing.T, files map[string]string) {
	t.Helper()
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// host makes a node's files and composes the slice's edits from them.
func host(t *testing.T, root string) []*specs.Mount {
	t.Helper()
	fill(t, map[string]string{
		root + "/libcuda": "the driver's libcuda", root + "/libnvidia-ml": "the driver's libnvidia-ml",
		root + "/v/lib/cuda": "our libcuda", root + "/v/lib/nvml": "our libnvidia-ml", root + "/v/bin/gpu-monitor": "the monitor",
		root + "/slice/config.page": "the grant", root + "/ledger.page": "the ledger",
	})
	if err := os.Mkdir(root+"/empty", 0o555); err != nil {
		t.Fatal(err)
	}
	listen(t, root+"/socket")
	parsed, err := ParseBase([]byte(strings.ReplaceAll(hostBase, "HOST", root)))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := Compose(parsed, Runtime{Library: root + "/v/lib/cuda", NVML: root + "/v/lib/nvml", Tools: root + "/v/bin", Empty: root + "/empty",
		Sockets: root + "/socket"},
		[]Slice{{Key: "s1", Cards: []Card{{Minor: 0}}, Directory: root + "/slice", LedgerPage: root + "/ledger.page"}})
	if err != nil {
		t.Fatal(err)
	}
	return append(spec.ContainerEdits.Mounts, spec.Devices[0].ContainerEdits.Mounts...)
}

// listen makes pids.sock in a directory. A test's own path is longer than a socket's may be, hence the descriptor.
func listen(t *testing.T, directory string) {
	t.Helper()
	if err := os.Mkdir(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	opened, err := os.Open(directory)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	listener, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/pids.sock", opened.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	t.Cleanup(func() { listener.Close() })
}

// bundle writes what a runtime makes of an image and CDI mounts.
func bundle(t *testing.T, directory string, readOnly bool, mounts []*specs.Mount, paths []string) {
	t.Helper()
	entries := []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}}
	for _, mount := range mounts {
		entries = append(entries, map[string]any{"destination": mount.ContainerPath, "source": mount.HostPath,
			"type": "bind", "options": append([]string{"rbind"}, mount.Options...)})
	}
	text, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"process":    map[string]any{"user": map[string]int{"uid": 0, "gid": 0}, "args": append([]string{"/look"}, paths...), "cwd": "/"},
		"root":       map[string]any{"path": "rootfs", "readonly": readOnly},
		"mounts":     entries,
		"linux":      map[string]any{"namespaces": []map[string]string{{"type": "mount"}, {"type": "pid"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, map[string]string{directory + "/config.json": string(text)})
}

func TestInARealRunc(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and runc; apt-get install runc")
	}
	look := filepath.Join(t.TempDir(), "look")
	build := exec.Command("go", "build", "-o", look, "./testdata/look")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// All of them without ldconfig, shell or C library.
	images := map[string]func(t *testing.T, rootfs string){
		"NVIDIAs with compat behind two links": func(t *testing.T, rootfs string) {
			fill(t, map[string]string{rootfs + "/usr/local/cuda-12.9/compat/libcuda.so.1": "the image's libcuda", rootfs + "/etc/alternatives/x": ""})
			link(t, "/etc/alternatives/cuda", rootfs+"/usr/local/cuda")
			link(t, "/usr/local/cuda-12.9", rootfs+"/etc/alternatives/cuda")
		},
		"another library directory": func(t *testing.T, rootfs string) {
			fill(t, map[string]string{rootfs + "/usr/lib64/libc.so.6": ""})
			link(t, "usr/lib64", rootfs+"/lib64")
		},
		"empty": func(*testing.T, string) {},
		"a link that leads out of the image": func(t *testing.T, rootfs string) {
			fill(t, map[string]string{rootfs + "/usr/local/cuda/x": ""})
			link(t, "../../../../../../../tmp", rootfs+"/usr/local/cuda/compat")
		},
	}
	for name, image := range images {
		for _, readOnly := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				directory := t.TempDir()
				rootfs := directory + "/rootfs"
				program, err := os.ReadFile(look)
				if err != nil {
					t.Fatal(err)
				}
				fill(t, map[string]string{rootfs + "/look": string(program)})
				if err := os.Chmod(rootfs+"/look", 0o755); err != nil {
					t.Fatal(err)
				}
				image(t, rootfs)
				paths := []string{"write:/new"}
				for path := range want {
					paths = append(paths, path)
				}
				bundle(t, directory, readOnly, host(t, directory+"/host"), paths)
				found := runc(t, directory)
				for path, text := range want {
					if found[path] != text {
						t.Errorf("%s: %q, want %q", path, found[path], text)
					}
				}
				if written := found["write:/new"] == "done"; written == readOnly {
					t.Errorf("read-only root %v, writing: %s", readOnly, found["write:/new"])
				}
			})
		}
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func runc(t *testing.T, directory string) map[string]string {
	t.Helper()
	name := fmt.Sprintf("cdi-test-%d", os.Getpid())
	command := exec.Command("runc", "--root", directory+"/state", "run", "--bundle", directory, name)
	command.Stderr = &strings.Builder{}
	out, err := command.Output()
	if err != nil {
		t.Fatalf("runc: %v: %v", err, command.Stderr)
	}
	found := map[string]string{}
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return found
}
