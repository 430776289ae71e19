// SPDX-License-Identifier: Apache-2.0

// Package livetest makes slices with processes in them for tests. A record lock belongs to a process, so
// a member of a slice is the test's own program started anew; TestMain must hand over to Main.
package livetest

import (
	"bufio"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"flexai.io/xpu/cluster/pages"
)

const holdVariable = "XPU_LIVETEST_HOLD"

// Main runs the tests, or is the member that Hold started.
func Main(m *testing.M) {
	if path := os.Getenv(holdVariable); path != "" {
		hold(path)
	}
	os.Exit(m.Run())
}

// hold takes the lock of the slot that the argument names, says so, and keeps it while stdin is open.
func hold(path string) {
	slot, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: pages.SlotOffset(slot), Len: 1}
	if err := unix.FcntlFlock(file.Fd(), unix.F_SETLK, &lock); err != nil {
		panic(err)
	}
	os.Stdout.WriteString("held\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// Pair is a slice's two pages in a directory of a test.
type Pair struct{ Config, Ledger string }

// New writes fresh pages.
func New(t *testing.T, directory string, cards ...pages.Card) Pair {
	t.Helper()
	page, err := pages.Config{Cards: cards}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	pair := Pair{filepath.Join(directory, "config.page"), filepath.Join(directory, "ledger.page")}
	for path, content := range map[string][]byte{pair.Config: page, pair.Ledger: pages.NewLedger()} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return pair
}

// Read is the config page as it stands.
func (p Pair) Read(t *testing.T) pages.Config {
	t.Helper()
	text, err := os.ReadFile(p.Config)
	if err != nil {
		t.Fatal(err)
	}
	config, err := pages.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func (p Pair) put(t *testing.T, at int64, values ...uint64) {
	t.Helper()
	var bytes []byte
	for _, value := range values {
		bytes = binary.LittleEndian.AppendUint64(bytes, value)
	}
	file, err := os.OpenFile(p.Ledger, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(bytes, at); err != nil {
		t.Fatal(err)
	}
}

// Use sets what a card's account says.
func (p Pair) Use(t *testing.T, card int, use pages.CardUse) {
	p.put(t, 64+128*int64(card), uint64(use.TatNs), use.ChargedNs, use.ThrottledNs, use.MemoryBytes, use.Denied, use.Launches)
}

// Slot fills a slot as its owner does, after his lock; memory is by card.
func (p Pair) Slot(t *testing.T, slot int, owner uint64, pid int, memory ...uint64) {
	t.Helper()
	p.put(t, pages.SlotOffset(slot), append([]uint64{owner, uint64(pid)}, memory...)...)
	var used [4]byte
	binary.LittleEndian.PutUint32(used[:], uint32(slot+1))
	file, err := os.OpenFile(p.Ledger, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(used[:], 8); err != nil {
		t.Fatal(err)
	}
}

// Member is a process that holds a slot's lock.
type Member struct {
	command *exec.Cmd
	PID     int
}

// Hold starts one; it ends with the test or with Die.
func (p Pair) Hold(t *testing.T, slot int) *Member {
	t.Helper()
	command := exec.Command(os.Args[0], strconv.Itoa(slot))
	command.Env = append(os.Environ(), holdVariable+"="+p.Ledger)
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	member := &Member{command, command.Process.Pid}
	t.Cleanup(func() { stdin.Close(); member.Die() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("member said %q, %v", line, err)
	}
	return member
}

// Die kills the member; when it returns, the kernel has taken its lock away.
func (m *Member) Die() {
	if m.command.ProcessState == nil {
		_ = m.command.Process.Kill()
		_ = m.command.Wait()
	}
}
