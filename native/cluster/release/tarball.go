// SPDX-License-Identifier: Apache-2.0

package release

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const (
	versionFile = "VERSION"
	// digestLength tells two builds of one version apart, in the name of their directories.
	digestLength = 12
	maxVersion   = 64
)

// Tarball is the artefact xpu-runtime: `lib/`, `bin/` and `VERSION`.
type Tarball struct {
	// Name of the release, as role xpu_runtime would name it for the same file.
	Name string
	path string
}

// Open reads a tarball through once, for its digest and its version.
func Open(file string) (*Tarball, error) {
	digest, err := fileDigest(file)
	if err != nil {
		return nil, err
	}
	version := ""
	err = walk(file, func(header *tar.Header, content io.Reader) error {
		if header.Name != versionFile {
			return nil
		}
		text, err := io.ReadAll(io.LimitReader(content, maxVersion))
		version = strings.TrimSpace(string(text))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if version == "" || strings.ContainsAny(version, "/\\ \n") || strings.HasPrefix(version, ".") {
		return nil, fmt.Errorf("%s: %s says %q, which is no version; build the tarball with `make dist`", file, versionFile, version)
	}
	return &Tarball{Name: version + "-" + digest[:digestLength], path: file}, nil
}

// walk gives every member with a cleaned name; one that could leave its directory is an error.
func walk(file string, each func(*tar.Header, io.Reader) error) error {
	stream, err := os.Open(file)
	if err != nil {
		return err
	}
	defer stream.Close()
	unzipped, err := gzip.NewReader(stream)
	if err != nil {
		return err
	}
	archive := tar.NewReader(unzipped)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		header.Name = path.Clean(header.Name)
		if header.Name == "." {
			continue
		}
		if !belongs(header) {
			return fmt.Errorf("%s is no file or directory under lib, bin, %s; build the tarball with `make dist`", header.Name, versionFile)
		}
		if err := each(header, archive); err != nil {
			return err
		}
	}
}

// belongs tells whether a member has a place in a release. Of links only those beside what they lead to
// have a use (xpu-monitor is one to gpu-monitor).
func belongs(header *tar.Header) bool {
	top, _, _ := strings.Cut(header.Name, "/")
	if top != "lib" && top != "bin" && header.Name != versionFile {
		return false
	}
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeDir:
		return true
	case tar.TypeSymlink:
		return !strings.Contains(header.Linkname, "/") && header.Linkname != ".."
	}
	return false
}

// unpack makes the release's directory below parent; it appears by one rename or not at all.
func (t *Tarball) unpack(parent string) error {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	if err := clearScratch(parent); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(parent, "."+t.Name+".")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	if err := os.Chmod(scratch, 0o755); err != nil {
		return err
	}
	if err := t.fill(scratch); err != nil {
		return err
	}
	final := filepath.Join(parent, t.Name)
	// An altered release: containers that have its files mounted keep them open.
	altered := scratch + ".altered"
	if err := os.Rename(final, altered); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer os.RemoveAll(altered)
	if err := os.Rename(scratch, final); err != nil {
		return err
	}
	return syncDirectory(parent)
}

// clearScratch removes what a killed run left: whoever holds the lock is the only one at work.
func clearScratch(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			if err := os.RemoveAll(filepath.Join(parent, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Tarball) fill(directory string) error {
	digests := map[string]string{}
	var symlinks []string
	err := walk(t.path, func(header *tar.Header, content io.Reader) error {
		target := filepath.Join(directory, header.Name)
		if header.Typeflag == tar.TypeDir {
			return os.MkdirAll(target, 0o755)
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if header.Typeflag == tar.TypeSymlink {
			symlinks = append(symlinks, header.Name)
			return os.Symlink(header.Linkname, target)
		}
		mode := fs.FileMode(0o644)
		if header.Mode&0o100 != 0 {
			mode = 0o755
		}
		total := sha256.New()
		if err := writeFile(target, io.TeeReader(content, total), mode); err != nil {
			return err
		}
		digests[header.Name] = hex.EncodeToString(total.Sum(nil))
		return nil
	})
	if err != nil {
		return err
	}
	// What a link leads to may come after it in the archive.
	for _, name := range symlinks {
		if digests[name], err = fileDigest(filepath.Join(directory, name)); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(directory, record), strings.NewReader(renderRecord(digests)), 0o644)
}

func parseRecord(text string) map[string]string {
	digests := map[string]string{}
	for line := range strings.Lines(text) {
		if digest, name, found := strings.Cut(strings.TrimSuffix(line, "\n"), "  "); found {
			digests[name] = digest
		}
	}
	return digests
}

func renderRecord(digests map[string]string) string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(digests)) {
		fmt.Fprintf(&text, "%s  %s\n", digests[name], name)
	}
	return text.String()
}

// writeFile makes a file with that mode, whatever the umask, and waits until it is on the disk.
func writeFile(path string, content io.Reader, mode fs.FileMode) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := io.Copy(file, content); err != nil {
		return err
	}
	if err := file.Chmod(mode); err != nil {
		return err
	}
	return file.Sync()
}

func fileDigest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	total := sha256.New()
	if _, err := io.Copy(total, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(total.Sum(nil)), nil
}
