// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"flexai.io/xpu/cluster/xpu"
)

const (
	// ledgerWait bounds how long a change waits for another one, which is a few writes long.
	ledgerWait  = 10 * time.Second
	ledgerRetry = time.Millisecond
)

// ErrTaken says that another process holds a lock.
var ErrTaken = errors.New("lock is taken")

// lock is a held flock. It ends with its process, however that ends; so its file is never removed.
type lock struct{ file *os.File }

func (l lock) release() { l.file.Close() }

// take tries once, and returns ErrTaken while somebody else has it.
func take(path string) (lock, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return lock{}, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return lock{}, ErrTaken
		}
		return lock{}, fmt.Errorf("lock %s: %w", path, err)
	}
	sign(file)
	return lock{file}, nil
}

// sign leaves the holder's name for whoever waits in vain. It is a help, no part of the lock. Who takes it again
// and again writes once: on a busy disk even that is something to wait for.
func sign(file *os.File) {
	name := fmt.Appendf(nil, "pid %d: %s", os.Getpid(), strings.Join(os.Args, " "))
	there := make([]byte, len(name)+1)
	if n, _ := file.ReadAt(there, 0); bytes.Equal(there[:n], name) {
		return
	}
	if file.Truncate(0) == nil {
		_, _ = file.WriteAt(name, 0)
	}
}

func holder(path string) string {
	text, err := os.ReadFile(path)
	if err != nil || len(text) == 0 {
		return "a process that left no name"
	}
	return string(text[:min(len(text), 200)])
}

func (s *Store) ledgerLock() string { return filepath.Join(s.paths.State, "ledger.lock") }

// Transact runs change on the ledger as it stands on disk, while nobody else on this machine may change
// it: the device plugin and the host's own command promise the same cards. All writes that follow from
// what was read belong into change.
func (s *Store) Transact(change func(xpu.Ledger) error) error {
	path := s.ledgerLock()
	held, err := take(path)
	for deadline := time.Now().Add(s.wait); errors.Is(err, ErrTaken); held, err = take(path) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has been held for %s by %s (%w); look what keeps it, and try again", path, s.wait, holder(path), ErrTaken)
		}
		time.Sleep(ledgerRetry)
	}
	if err != nil {
		return err
	}
	defer held.release()
	ledger, err := s.Load()
	if err != nil {
		return fmt.Errorf("node ledger: %w", err)
	}
	return change(ledger)
}

// TakeTending is the right to write config pages of running slices, which one process of a machine has
// at a time. ErrTaken, and who has it, while somebody else does.
func (p Paths) TakeTending() (release func(), err error) {
	path := filepath.Join(p.State, "tend.lock")
	held, err := take(path)
	if errors.Is(err, ErrTaken) {
		return nil, fmt.Errorf("%s: %w by %s", path, err, holder(path))
	}
	if err != nil {
		return nil, err
	}
	return held.release, nil
}
