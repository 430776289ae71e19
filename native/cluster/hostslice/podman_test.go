// SPDX-License-Identifier: Apache-2.0

package hostslice

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"flexai.io/xpu/cluster/xpu"
)

// podman runs the program look of a container that has the named slices by --device. Podman reads
// /etc/cdi only, so ours is put there in a mount namespace of the test's own.
const podman = `set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc
mkdir -p /etc/cdi
cp "$2" /etc/cdi/huawei.com-vgpu.yaml
device=$3
shift 3
exec podman --root "$SCRATCH/root" --runroot "$SCRATCH/run" --cgroup-manager=cgroupfs run --interactive --rm --network=none \
    --log-driver=none --ulimit=nofile=1000:1000 --ulimit=nproc=1000:1000 "--device=huawei.com/vgpu=$device" --rootfs "$SCRATCH/rootfs" /look "$@"`

func TestPodmanGivesAContainerExactlyItsSlice(t *testing.T) {
	if _, err := exec.LookPath("podman"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and podman; apt-get install podman")
	}
	m := machine(t)
	m.Proc = "/proc"
	scratch, err := os.MkdirTemp("", "xpu") // short: podman limits its paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(scratch) })
	cards := strings.NewReplacer("path: /dev/nvidia0", "path: /dev/nvidia0, hostPath: /dev/null",
		"path: /dev/nvidia1", "path: /dev/nvidia1, hostPath: /dev/null", "hostPath: /lib", "hostPath: "+scratch+"/lib")
	put(t, m.Paths.BaseCDI, cards.Replace(base))
	put(t, scratch+"/lib/libcuda.so.580.95.05", "the driver's")
	put(t, m.Paths.Runtime+"/lib/libcuda_direct.so", "ours")
	build := exec.Command("go", "build", "-o", scratch+"/rootfs/look", "../cdi/testdata/look")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, directory := range []string{"upper", "work"} { // of the overlay over /etc
		if err := os.Mkdir(scratch+"/"+directory, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, card := range map[string]string{"train": "1", "other": "0"} {
		wish := want(name, 20, 3072)
		wish.Card = card
		must(t)(m.Add(wish))
	}

	run := exec.Command("unshare", append([]string{"--mount", "sh", "-c", podman, "sh", scratch, m.Paths.CDI, "train"},
		"/dev/nvidia0", "/dev/nvidia1", "/etc/xpu/vgpu.config", "/lib/libcuda.so.580.95.05", "/opt/xpu/lib/libcuda-original.so",
		"write:/etc/xpu/vgpu.config", "/dev/stdin")...)
	run.Env = append(os.Environ(), "SCRATCH="+scratch)
	var complaint strings.Builder
	run.Stderr = &complaint
	stdin, err := run.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan []byte)
	go func() {
		said, _ := io.ReadAll(bufio.NewReader(out))
		ended <- said
	}()
	await := func() Use {
		for {
			select {
			case said := <-ended:
				t.Fatalf("ended early: %v, %s%s", run.Wait(), said, complaint.String())
			case <-time.After(20 * time.Millisecond):
			}
			use, err := m.use(xpu.Slice{Key: "train", Owner: xpu.HostOwner("train")})
			if err != nil {
				t.Fatal(err)
			}
			if len(use.Containers) > 0 {
				return use
			}
		}
	}

	// It computes nothing, and waits for its standard input: the slice is its own all the same.
	use := await()
	if len(use.Containers) != 1 || len(use.Processes) != 0 {
		t.Errorf("%+v", use)
	}
	_, err = m.Remove("train", false)
	refused(t, err, "in use by container")
	must(t)(m.Remove("other", false))

	stdin.Close()
	said := <-ended
	if err := run.Wait(); err != nil {
		t.Fatalf("%v, %s", err, complaint.String())
	}
	var found map[string]string
	if err := json.Unmarshal(said, &found); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for path, want := range map[string]string{
		"/dev/nvidia0":                     "open /dev/nvidia0: no such file or directory",
		"/dev/nvidia1":                     "",
		"/etc/xpu/vgpu.config":             "UsedMem:3072\nUsedCores:20\n",
		"/lib/libcuda.so.580.95.05":        "ours",
		"/opt/xpu/lib/libcuda-original.so": "the driver's",
		"write:/etc/xpu/vgpu.config":       "open /etc/xpu/vgpu.config: read-only file system",
	} {
		if found[path] != want {
			t.Errorf("%s: %q, want %q", path, found[path], want)
		}
	}
	must(t)(m.Remove("train", false))
}
