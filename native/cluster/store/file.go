// SPDX-License-Identifier: Apache-2.0

// Package store keeps on disk what a node has promised: the ledger, each slice's files, and the CDI
// entries. Every file appears whole or not at all.
package store

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// writeDurably replaces a file by rename; when it returns, the file survives a power cut.
func writeDurably(path string, content []byte, mode os.FileMode) error {
	return replace(path, content, mode, true)
}

// writeWhole replaces a file by rename; after a power cut it may be the old one.
func writeWhole(path string, content []byte, mode os.FileMode) error {
	return replace(path, content, mode, false)
}

// scratchMode is what CreateTemp gives a file.
const scratchMode = os.FileMode(0o600)

// scratchPrefix begins the name of what becomes the file of this name.
func scratchPrefix(name string) string { return "." + name + "-" }

func replace(path string, content []byte, mode os.FileMode, durable bool) (err error) {
	directory := filepath.Dir(path)
	scratch, err := os.CreateTemp(directory, scratchPrefix(filepath.Base(path)))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(scratch.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err = fill(scratch, content, mode, durable); err != nil {
		return err
	}
	if !durable {
		return exchange(scratch.Name(), path)
	}
	if err = os.Rename(scratch.Name(), path); err != nil {
		return err
	}
	return syncDirectory(directory)
}

// exchange puts scratch in path's place and removes what was there. A rename over a file makes ext4 write out
// the new one's content at once; who asked for no durability must not wait for that.
func exchange(scratch, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, scratch, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if err != nil { // nothing there yet, or a file system that can't
		return os.Rename(scratch, path)
	}
	return os.Remove(scratch)
}

func fill(file *os.File, content []byte, mode os.FileMode, durable bool) error {
	_, err := file.Write(content)
	if err == nil && mode != scratchMode {
		// A umask must not decide what a container can read.
		err = file.Chmod(mode)
	}
	if err == nil && durable {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	return err
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	return directory.Sync()
}

// removeEmpty removes a directory that nothing is in, and nothing else.
func removeEmpty(path string) error {
	err := unix.Rmdir(path)
	if slices.Contains([]error{unix.ENOENT, unix.ENOTEMPTY, unix.EEXIST, unix.ENOTDIR}, err) {
		return nil
	}
	return err
}
