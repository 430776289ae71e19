// SPDX-License-Identifier: Apache-2.0

package reread

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestEveryReplacementIsSeenAndNothingIsDecodedTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	decoded := 0
	file := New(path, 100, func(text []byte) (string, error) { decoded++; return string(text), nil })
	defer file.Close()
	if _, err := file.Read(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	// All of one size, as fast as it goes: neither size nor inode tells them apart.
	for i := range 200 {
		text := fmt.Sprintf("text-%03d", i)
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if got, err := file.Read(); err != nil || got != text {
				t.Fatalf("read %q, %v; the file says %q", got, err, text)
			}
		}
		if decoded != i+1 {
			t.Fatalf("decoded %d times what was written %d times", decoded, i+1)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Read(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was read before stands for a file that is gone: %v", err)
	}
}

func TestAFileWrittenInPlaceIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	file := New(path, 100, func(text []byte) (string, error) { return string(text), nil })
	defer file.Close()
	for i, text := range []string{"one", "two", "three"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		if got, err := file.Read(); err != nil || got != text {
			t.Errorf("read %q, %v; the file says %q", got, err, text)
		}
	}
}

func TestWhatCannotBeReadIsNamedAndReadOnceItCan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	file := New(path, 8, func(text []byte) (string, error) {
		if strings.Contains(string(text), "!") {
			return "", errors.New("not a text")
		}
		return string(text), nil
	})
	defer file.Close()
	for _, c := range []struct{ text, says string }{{"much too long", "over 8 bytes"}, {"no!", "not a text"}} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := file.Read(); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
	if err := os.WriteFile(path, []byte("good"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := file.Read(); err != nil || got != "good" {
		t.Errorf("read %q, %v", got, err)
	}
}

// An access time that is written makes a reader wait for what the file system writes.
func TestReadingLeavesNoAccessTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	long := time.Unix(1, 0)
	if err := errors.Join(os.WriteFile(path, []byte("1"), 0o600), os.Chtimes(path, long, time.Now())); err != nil {
		t.Fatal(err)
	}
	file := New(path, 10, func(text []byte) (string, error) { return string(text), nil })
	defer file.Close()
	if value, err := file.Read(); err != nil || value != "1" {
		t.Fatal(value, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Atim.Sec != long.Unix() {
		t.Errorf("accessed at %d", stat.Atim.Sec)
	}
}
