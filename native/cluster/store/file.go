// SPDX-License-Identifier: Apache-2.0

// Package store keeps on disk what a node has promised: the ledger, each slice's files, and the CDI
// entries. Every file appears whole or not at all.
package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// writeDurably replaces a file by rename; when it returns, the file survives a power cut.
func writeDurably(path string, content []byte, mode os.FileMode) error {
	return replace(path, content, mode, true)
}

// writeWhole replaces a file by rename; after a power cut it may be the old one.
func writeWhole(path string, content []byte, mode os.FileMode) error {
	return replace(path, content, mode, false)
}

func replace(path string, content []byte, mode os.FileMode, durable bool) (err error) {
	directory := filepath.Dir(path)
	scratch, err := os.CreateTemp(directory, "."+filepath.Base(path)+"-")
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
	if err = os.Rename(scratch.Name(), path); err != nil || !durable {
		return err
	}
	return syncDirectory(directory)
}

func fill(file *os.File, content []byte, mode os.FileMode, durable bool) error {
	_, err := file.Write(content)
	if err == nil {
		// CreateTemp made it 0600, and a umask must not decide what a container can read.
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

func isNotEmpty(err error) bool {
	return errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST)
}
