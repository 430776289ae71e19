// SPDX-License-Identifier: Apache-2.0

// Package reread reads one file again and again and decodes only what it has not seen before: each start of
// a container asks for the same few files, and they seldom change.
package reread

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// File is one file and what its text means. Safe for concurrent use.
type File[T any] struct {
	path   string
	limit  int64
	decode func(text []byte) (T, error)

	mutex sync.Mutex
	// What value was decoded from stays open: so no other file can have its inode, and of a file that is
	// replaced by rename nothing is missed.
	held  *os.File
	last  os.FileInfo
	value T
}

// New reads nothing yet. A text over limit bytes is refused.
func New[T any](path string, limit int64, decode func(text []byte) (T, error)) *File[T] {
	return &File[T]{path: path, limit: limit, decode: decode}
}

// Open opens a file for reading that leaves no access time. To note one is a change of the file system, which waits
// while its journal is written, and a start must not.
func Open(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
	if errors.Is(err, fs.ErrPermission) { // somebody else's file
		return os.Open(path)
	}
	return file, err
}

// Read is what the file says now; callers share the value and must not change it. The error of a file that
// isn't there wraps fs.ErrNotExist.
func (f *File[T]) Read() (T, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	var none T
	info, err := os.Stat(f.path)
	if err != nil {
		return none, err
	}
	if f.held != nil && same(f.last, info) {
		return f.value, nil
	}
	stream, err := Open(f.path)
	if err != nil {
		return none, err
	}
	info, err = stream.Stat()
	var value T
	if err == nil {
		value, err = f.parse(stream)
	}
	if err != nil {
		stream.Close()
		return none, err
	}
	f.forget()
	f.held, f.last, f.value = stream, info, value
	return value, nil
}

// Close lets go of the file.
func (f *File[T]) Close() {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.forget()
}

func (f *File[T]) forget() {
	if f.held != nil {
		f.held.Close()
	}
	var none T
	f.held, f.last, f.value = nil, nil, none
}

func (f *File[T]) parse(stream io.Reader) (T, error) {
	var none T
	text, err := io.ReadAll(io.LimitReader(stream, f.limit+1))
	if err != nil {
		return none, fmt.Errorf("%s: %w", f.path, err)
	}
	if int64(len(text)) > f.limit {
		return none, fmt.Errorf("%s is over %d bytes", f.path, f.limit)
	}
	value, err := f.decode(text)
	if err != nil {
		return none, fmt.Errorf("%s: %w", f.path, err)
	}
	return value, nil
}

// same also sees a file that was written in place, as far as its times tell.
func same(before, now os.FileInfo) bool {
	return os.SameFile(before, now) && before.Size() == now.Size() && before.ModTime().Equal(now.ModTime())
}
