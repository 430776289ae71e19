// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"flexai.io/xpu/cluster/reread"
)

// A durable write of the ledger goes into the journal first: two places in a file of fixed size, written in
// turn. A new file would be durable only with all that the file system has in its own journal, what a
// hundred starting containers write included.
const (
	journalMagic = "XPUJRNL1"
	placeBytes   = 512 << 10
	headBytes    = 32
)

// errTooLong says that a text doesn't fit a place.
var errTooLong = errors.New("over the journal's place")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journal is the file at path; who writes holds the ledger's lock.
type journal struct{ path string }

// head is what precedes a text: magic, sequence (u64), length (u32), sum (u32), all little-endian.
type head struct {
	sequence uint64
	length   uint32
	sum      uint32
}

func sum(sequence uint64, text []byte) uint32 {
	var number [8]byte
	binary.LittleEndian.PutUint64(number[:], sequence)
	return crc32.Update(crc32.Checksum(number[:], castagnoli), castagnoli, text)
}

func (h head) encode() []byte {
	out := make([]byte, headBytes)
	copy(out, journalMagic)
	binary.LittleEndian.PutUint64(out[8:], h.sequence)
	binary.LittleEndian.PutUint32(out[16:], h.length)
	binary.LittleEndian.PutUint32(out[20:], h.sum)
	return out
}

func decodeHead(in []byte) (head, bool) {
	if len(in) < headBytes || string(in[:8]) != journalMagic {
		return head{}, false
	}
	h := head{binary.LittleEndian.Uint64(in[8:]), binary.LittleEndian.Uint32(in[16:]), binary.LittleEndian.Uint32(in[20:])}
	return h, h.sequence > 0 && h.length <= placeBytes-headBytes
}

// last is the newest whole text after sequence, and its own; nil where there is none. Reading one while it
// is written over gives none, too: the one that is being written is not promised yet.
func (j journal) last(after uint64) (text []byte, sequence uint64, err error) {
	file, err := reread.Open(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, after, nil
	}
	if err != nil {
		return nil, after, err
	}
	defer file.Close()
	sequence = after
	for place := range int64(2) {
		start := make([]byte, headBytes)
		if _, err := file.ReadAt(start, place*placeBytes); err != nil {
			continue // shorter than a journal is: a power cut while it was made
		}
		h, ok := decodeHead(start)
		if !ok || h.sequence <= sequence {
			continue
		}
		body := make([]byte, h.length)
		if _, err := file.ReadAt(body, place*placeBytes+headBytes); err != nil || sum(h.sequence, body) != h.sum {
			continue
		}
		text, sequence = body, h.sequence
	}
	return text, sequence, nil
}

// put makes a text durable; errTooLong leaves the journal as it is.
func (j journal) put(sequence uint64, text []byte) error {
	if len(text) > placeBytes-headBytes {
		return errTooLong
	}
	file, err := j.open()
	if err != nil {
		return fmt.Errorf("ledger's journal: %w", err)
	}
	defer file.Close()
	whole := append(head{sequence, uint32(len(text)), sum(sequence, text)}.encode(), text...)
	if _, err := file.WriteAt(whole, int64(sequence%2)*placeBytes); err != nil {
		return fmt.Errorf("ledger's journal: %w", err)
	}
	if err := unix.Fdatasync(int(file.Fd())); err != nil {
		return fmt.Errorf("ledger's journal %s: %w", j.path, err)
	}
	return nil
}

// open makes the journal where there is none of full size: every block is written once, so that later
// writes only change their content.
func (j journal) open() (*os.File, error) {
	file, err := os.OpenFile(j.path, os.O_RDWR, 0)
	if err == nil {
		if info, err := file.Stat(); err == nil && info.Size() == 2*placeBytes {
			return file, nil
		}
		file.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := writeDurably(j.path, make([]byte, 2*placeBytes), 0o600); err != nil {
		return nil, err
	}
	return os.OpenFile(j.path, os.O_RDWR, 0)
}
