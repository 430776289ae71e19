// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"path/filepath"

	"flexai.io/xpu/cluster/xpu"
)

// place is where a slice's files lie: what its container sees as /etc/xpu, and its ledger page.
type place struct{ config, page string }

// Those of the host lie on disk, for they are kept through reboots. Those of a pod follow from the ledger and are
// written before each start, so they lie in memory: while a hundred containers start, the disk takes tens of
// milliseconds for a few small files.

func (p Paths) onDisk(slice xpu.Slice) place {
	return place{filepath.Join(p.Etc, slice.Owner.PodUID, slice.Owner.Container), filepath.Join(p.State, "slices", slice.Key)}
}

func (p Paths) inMemory(slice xpu.Slice) place {
	return place{filepath.Join(p.Run, "pods", slice.Owner.PodUID, slice.Owner.Container), filepath.Join(p.Run, "slices", slice.Key)}
}

// place is where this slice has its files. What a pod has on disk is of a release that knew no other place; its
// containers have that mounted, so it stays there until the slice ends.
func (p Paths) place(slice xpu.Slice) place {
	disk := p.onDisk(slice)
	if slice.Owner.OfHost() {
		return disk
	}
	if _, err := os.Lstat(disk.config); err == nil {
		return disk
	}
	return p.inMemory(slice)
}

// remove takes a slice's files away; what other containers of its pod have stays.
func (p place) remove() error {
	for _, directory := range []string{p.config, p.page} {
		if err := os.RemoveAll(directory); err != nil {
			return err
		}
	}
	return removeEmpty(filepath.Dir(p.config))
}

// pageDirectories hold a directory for each slice's ledger page. 0700: the pages are writable for everyone, so that
// any user of a container can charge its slice; nobody else on the host may reach them.
func (p Paths) pageDirectories() []string {
	return []string{filepath.Join(p.State, "slices"), filepath.Join(p.Run, "slices")}
}

// makePages makes the directory in which this slice's page directory lies, which Open does for those on disk only:
// a host without pods has no use for the other.
func (p Paths) makePages(slice xpu.Slice) error {
	directory := filepath.Dir(p.place(slice).page)
	if err := os.MkdirAll(filepath.Dir(directory), 0o755); err != nil {
		return err
	}
	return os.MkdirAll(directory, 0o700)
}

// each is every slice's directory that matches one of the places, the ledger's or not.
func (p Paths) each() ([]string, error) {
	patterns := []string{filepath.Join(p.Etc, "*", "*"), filepath.Join(p.Run, "pods", "*", "*")}
	for _, directory := range p.pageDirectories() {
		patterns = append(patterns, filepath.Join(directory, "*"))
	}
	var all []string
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		all = append(all, paths...)
	}
	return all, nil
}

// pods is every pod's directory, and what else lies beside them.
func (p Paths) pods() ([]string, error) {
	disk, err := filepath.Glob(filepath.Join(p.Etc, "*"))
	if err != nil {
		return nil, err
	}
	memory, err := filepath.Glob(filepath.Join(p.Run, "pods", "*"))
	return append(disk, memory...), err
}
