// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"flexai.io/xpu/cluster/cdi"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/reread"
	"flexai.io/xpu/cluster/xpu"
)

// burstNs is how far a slice may run ahead of its share: half of the one second over which the
// share is promised, so that a short request under the quota isn't delayed.
const burstNs = 500_000_000

const mib = 1 << 20

// maxBytes bounds what is read of a file; ledgers and specs stay far below.
const maxBytes = 64 << 20

// Paths are host paths. The plugin must see each of them at the same path, for what it writes into
// a CDI entry is read by the container runtime of the host.
type Paths struct {
	Etc     string // directories of the host's slices, /etc/xpu
	State   string // ledger, and ledger pages of the host's slices, /var/lib/xpu
	Run     string // both of pods' slices, /run/xpu; empty after a boot
	BaseCDI string // vendor's spec, /etc/cdi/nvidia.yaml
	CDI     string // our spec, /etc/cdi/huawei.com-vgpu.yaml
	Runtime string // our library and tools, /opt/xpu
}

// OnError says what becomes of a container's process whose grant or ledger is unusable.
type OnError string

// The policies; the library reads the word from the file on_error beside the config page.
const (
	Allow         OnError = "allow"           // it runs, without limits or within its own
	DenyNewMemory OnError = "deny-new-memory" // it runs, but gets no device memory
)

// ParseOnError refuses anything else.
func ParseOnError(text string) (OnError, error) {
	if policy := OnError(text); policy == Allow || policy == DenyNewMemory {
		return policy, nil
	}
	return "", fmt.Errorf("%q is neither %s nor %s", text, Allow, DenyNewMemory)
}

// Store is the disk of one node. Who changes something does so within Transact.
type Store struct {
	paths Paths
	wait  time.Duration // for the ledger's lock
	// OnError of slices written from now on; Allow from Open.
	OnError OnError

	ledger  *reread.File[stored]
	journal journal
	base    *reread.File[*specs.Spec]
	own     *reread.File[map[string]cdi.Entry]
}

// At is a store for someone who only reads; it makes nothing.
func At(paths Paths) *Store {
	s := &Store{paths: paths, wait: ledgerWait, OnError: Allow, base: reread.New(paths.BaseCDI, maxBytes, cdi.ParseBase)}
	s.own = reread.New(paths.CDI, maxBytes, cdi.Entries)
	s.ledger = reread.New(s.ledgerFile(), maxBytes, decode)
	s.journal = journal{filepath.Join(paths.State, "ledger.journal")}
	return s
}

// Open makes the directories.
func Open(paths Paths) (*Store, error) {
	s := At(paths)
	if err := os.MkdirAll(paths.Etc, 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.paths.pageDirectories()[0], 0o700); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.emptyDirectory(), 0o555); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.paths.Sockets(), 0o755); err != nil {
		return nil, err
	}
	return s, s.catchUp()
}

// emptyDirectory covers what a container must not see.
func (s *Store) emptyDirectory() string { return filepath.Join(s.paths.State, "empty") }

func (s *Store) ledgerFile() string { return filepath.Join(s.paths.State, "ledger.json") }

// Read loads the ledger of paths for someone who writes nothing.
func Read(paths Paths) (xpu.Ledger, error) {
	s := At(paths)
	defer s.ledger.Close()
	return s.Load()
}

// Pages are the two page files of a slice.
func (p Paths) Pages(slice xpu.Slice) (config, ledger string) {
	at := p.place(slice)
	return filepath.Join(at.config, "config.page"), filepath.Join(at.page, "ledger.page")
}

// Sockets is the directory of pids.sock, all that a container sees of State.
func (p Paths) Sockets() string { return filepath.Join(p.State, "socket") }

// WritePids makes a slice's pids.config hold pids, where that is news. A slice that ended meanwhile has no
// directory any more, which is an error.
func (p Paths) WritePids(slice xpu.Slice, pids []byte) error {
	if err := checkNames(slice); err != nil {
		return err
	}
	return content{path: filepath.Join(p.place(slice).config, "pids.config"), bytes: pids, mode: 0o444}.put()
}

// stored is the ledger's text, as its file and the journal hold it.
type stored struct {
	Version int `json:"version"`
	// Sequence counts what was written. A release from before the journal writes none; what it wrote counts.
	Sequence uint64      `json:"sequence,omitempty"`
	Slices   []xpu.Slice `json:"slices"`

	ledger xpu.Ledger
}

// errDamaged says that a text can't be a ledger of ours.
var errDamaged = errors.New("damaged")

func decode(text []byte) (stored, error) {
	var found stored
	if err := json.Unmarshal(text, &found); err != nil || found.Version != 1 {
		return stored{}, fmt.Errorf("%w: version %d, %v", errDamaged, found.Version, err)
	}
	var err error
	found.ledger, err = xpu.NewLedger(found.Slices)
	return found, err
}

// Load reads the ledger. The journal is ahead of its file after a kill or a power cut between the two. Where
// both are missing or damaged it is rebuilt from the record that lies beside each slice's ledger page.
func (s *Store) Load() (xpu.Ledger, error) {
	found, err := s.newest()
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
		return found.ledger, err
	}
	slices, err := s.records()
	if err != nil {
		return xpu.Ledger{}, fmt.Errorf("rebuild %s: %w", s.ledgerFile(), err)
	}
	return xpu.NewLedger(slices)
}

// newest is what the file or the journal says, whichever was written last.
func (s *Store) newest() (stored, error) {
	found, err := s.ledger.Read()
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) || err == nil && found.Sequence == 0 {
		return found, err
	}
	text, _, reading := s.journal.last(found.Sequence)
	if reading != nil {
		return stored{}, reading
	}
	if text == nil {
		return found, err
	}
	return decode(text)
}

func (s *Store) records() ([]xpu.Slice, error) {
	paths, err := s.paths.each()
	if err != nil {
		return nil, err
	}
	var slices []xpu.Slice
	for _, path := range paths {
		text, err := os.ReadFile(filepath.Join(path, "slice.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // what its container sees
		}
		if err != nil {
			return nil, err
		}
		var slice xpu.Slice
		if err := json.Unmarshal(text, &slice); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		slices = append(slices, slice)
	}
	return slices, nil
}

// Save makes the ledger durable, within Transact.
func (s *Store) Save(ledger xpu.Ledger) error {
	file, _ := s.ledger.Read() // nothing readable is 0, as in a new directory
	_, sequence, err := s.journal.last(file.Sequence)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(stored{Version: 1, Sequence: sequence + 1, Slices: ledger.Slices()}, "", " ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	err = s.journal.put(sequence+1, text)
	if errors.Is(err, errTooLong) {
		return writeDurably(s.ledgerFile(), text, 0o600)
	}
	if err != nil {
		return err
	}
	return writeWhole(s.ledgerFile(), text, 0o600)
}

// catchUp makes the file say what the journal does, after a kill between the two, and gives one of an older
// release its number.
func (s *Store) catchUp() error {
	return s.Transact(func(xpu.Ledger) error {
		file, err := s.ledger.Read()
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
			return nil // Load says it
		}
		newest, whole := s.newest()
		if whole != nil || err == nil && file.Sequence == newest.Sequence && file.Sequence > 0 {
			return nil
		}
		return s.Save(newest.ledger)
	})
}

// WriteSlice makes a slice's files what they are at a start; those that are stay. Its container isn't running
// now: the kubelet asks before each start, so a fresh ledger page forgets what dead processes had charged.
func (s *Store) WriteSlice(slice xpu.Slice) error {
	if err := checkNames(slice); err != nil {
		return err
	}
	files, err := s.files(slice)
	if err != nil {
		return err
	}
	return s.write(slice, files)
}

// Restore writes what the pods' slices lack, after a boot all of it. What is there stays as it is, for their
// containers may run; those that start get theirs by WriteSlice. One that can't be restored keeps no other from it.
func (s *Store) Restore(ledger xpu.Ledger) error {
	var failed []error
	for _, slice := range ledger.Slices() {
		if !slice.Owner.OfHost() {
			failed = append(failed, s.restore(slice))
		}
	}
	return errors.Join(failed...)
}

func (s *Store) restore(slice xpu.Slice) error {
	if err := checkNames(slice); err != nil {
		return err
	}
	files, err := s.files(slice)
	if err != nil {
		return err
	}
	return s.write(slice, slices.DeleteFunc(files, content.exists))
}

// fileNames are those that files gives a slice's files.
var fileNames = []string{"vgpu.config", "vgpu-ids.config", "pids.config", "on_error", "config.page", "ledger.page", "slice.json"}

// files are a slice's, as they are when its container starts.
func (s *Store) files(slice xpu.Slice) ([]content, error) {
	config, err := configPage(slice.Shares)
	if err != nil {
		return nil, err
	}
	record, err := json.Marshal(slice)
	if err != nil {
		return nil, err
	}
	at := s.paths.place(slice)
	return []content{
		{filepath.Join(at.config, "vgpu.config"), limits(slice.Shares), 0o444, same},
		{filepath.Join(at.config, "vgpu-ids.config"), identities(slice.Shares), 0o444, same},
		{filepath.Join(at.config, "pids.config"), nil, 0o444, there},
		{filepath.Join(at.config, "on_error"), []byte(s.OnError + "\n"), 0o444, there},
		{filepath.Join(at.config, "config.page"), config, 0o444, isConfig},
		{filepath.Join(at.page, "ledger.page"), pages.NewLedger(), 0o666, isLedger},
		{filepath.Join(at.page, "slice.json"), record, 0o600, same},
	}, nil
}

type content struct {
	path  string
	bytes []byte
	mode  os.FileMode
	// stands says whether what is found in its place does; see Lacking.
	stands func(found, wanted []byte) bool
}

// is says whether the file is there, byte for byte.
func (c content) is() bool {
	file, err := os.Open(c.path)
	if err != nil {
		return false
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Mode() != c.mode || info.Size() != int64(len(c.bytes)) {
		return false
	}
	found, err := io.ReadAll(file)
	return err == nil && bytes.Equal(found, c.bytes)
}

func (c content) exists() bool {
	_, err := os.Lstat(c.path)
	return err == nil
}

// put makes the file so, where it isn't.
func (c content) put() error {
	if c.is() {
		return nil
	}
	return writeWhole(c.path, c.bytes, c.mode)
}

// write makes these files of a slice so.
func (s *Store) write(slice xpu.Slice, files []content) error {
	if err := s.paths.makePages(slice); err != nil {
		return err
	}
	for _, file := range files {
		if err := os.MkdirAll(filepath.Dir(file.path), 0o755); err != nil {
			return err
		}
		if err := file.put(); err != nil {
			return err
		}
	}
	return nil
}

// checkNames keeps names that come from outside, or from a damaged record, from leaving their directories.
func checkNames(slice xpu.Slice) error {
	for _, name := range []string{slice.Owner.PodUID, slice.Owner.Container, slice.Key} {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("owner %q with slice %q can't name a directory", slice.Owner, slice.Key)
		}
	}
	return nil
}

// limits is upstream's vgpu.config: the shares of one container are equal.
func limits(shares []xpu.Share) []byte {
	return fmt.Appendf(nil, "UsedMem:%d\nUsedCores:%d\n", shares[0].MemoryMiB, shares[0].CoresPercent)
}

func identities(shares []xpu.Share) []byte {
	var text []byte
	for _, share := range shares {
		text = fmt.Appendf(text, "%s-%d\n", share.UUID, share.VID)
	}
	return text
}

func configPage(shares []xpu.Share) ([]byte, error) {
	if len(shares) == 0 {
		return nil, errors.New("a slice without a card")
	}
	var config pages.Config
	for _, share := range shares {
		config.Cards = append(config.Cards, Entry(share))
	}
	return config.Encode()
}

// modes are the ledger's words in the page's numbers.
var modes = map[xpu.Mode]pages.Mode{"": pages.ModeHard, xpu.ModeHard: pages.ModeHard, xpu.ModeElastic: pages.ModeElastic,
	xpu.ModeFixedShare: pages.ModeFixedShare, xpu.ModePriority: pages.ModePriority}

// Entry is what a config page says of a share when its container starts.
func Entry(share xpu.Share) pages.Card {
	entry := pages.Card{UUID: share.UUID, MemoryBytes: share.MemoryMiB * mib, TauNs: burstNs,
		CoresPercent: uint32(share.CoresPercent), Mode: modes[share.Mode], Weight: uint32(share.Weight),
		TrimQ16: pages.TrimOne, VID: uint32(share.VID)}
	// Until the node agent has looked at the card's other slices.
	if share.Mode == xpu.ModePriority {
		entry.EffectiveQ16 = pages.TrimOne
	}
	// A whole card's compute and one without a limit need no admission at all, but who runs in what
	// others leave does.
	if share.Mode != xpu.ModePriority && (share.CoresPercent == 0 || share.CoresPercent == xpu.FullCores) {
		entry.Mode = pages.ModeNone
	}
	return entry
}

// Grants says whether a page's entry grants a share. Of the entry's other fields the node agent decides.
func Grants(entry pages.Card, share xpu.Share) bool {
	regranted := entry
	return entry.UUID == share.UUID && entry.VID == uint32(share.VID) && !Regrant(&regranted, share)
}

// Regrant makes a running slice's entry grant a share, and says whether that was a change. What the node
// agent had granted on top begins anew with it.
func Regrant(entry *pages.Card, share xpu.Share) bool {
	wanted := Entry(share)
	if entry.UUID != wanted.UUID || entry.VID != wanted.VID {
		return false // not this share's entry
	}
	before := *entry
	entry.MemoryBytes, entry.CoresPercent, entry.Mode, entry.Weight = wanted.MemoryBytes, wanted.CoresPercent, wanted.Mode, wanted.Weight
	if *entry == before {
		return false
	}
	entry.EffectiveQ16, entry.FrameUs, entry.WindowStartUs, entry.WindowUs = wanted.EffectiveQ16, 0, 0, 0
	entry.Flags &^= pages.FlagPaused
	return true
}

// RemoveSlice removes a slice's files. What other containers of the pod have stays.
func (s *Store) RemoveSlice(slice xpu.Slice) error {
	if err := checkNames(slice); err != nil {
		return err
	}
	return s.paths.place(slice).remove()
}

// WriteCDI writes the entries of all slices on these cards.
func (s *Store) WriteCDI(ledger xpu.Ledger, cards []xpu.Card) error {
	file, err := s.cdiFile(ledger, cards)
	if err != nil {
		return err
	}
	return file.put()
}

// cdiFile is our spec as it ought to be.
func (s *Store) cdiFile(ledger xpu.Ledger, cards []xpu.Card) (content, error) {
	base, err := s.base.Read()
	if err != nil {
		return content{}, fmt.Errorf("base CDI spec: %w; role container_toolkit writes it with `nvidia-ctk cdi generate`", err)
	}
	runtime, err := s.runtime()
	if err != nil {
		return content{}, err
	}
	spec, err := cdi.Compose(base, runtime, s.entries(ledger, cards))
	if err != nil {
		return content{}, err
	}
	text, err := cdi.Marshal(spec)
	return content{path: s.paths.CDI, bytes: text, mode: 0o644}, err
}

// runtime finds the libraries behind /opt/xpu/lib, with every link resolved: an upgrade that switches
// the link must not change what an entry names. An older release has none for NVML.
func (s *Store) runtime() (cdi.Runtime, error) {
	library, err := filepath.EvalSymlinks(filepath.Join(s.paths.Runtime, "lib", "libcuda_direct.so"))
	if err != nil {
		return cdi.Runtime{}, fmt.Errorf("interception library: %w; role xpu_runtime installs it", err)
	}
	nvml, err := filepath.EvalSymlinks(filepath.Join(filepath.Dir(library), "libnvidia-ml_direct.so"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cdi.Runtime{}, fmt.Errorf("NVML library: %w; role xpu_runtime installs it", err)
	}
	tools, err := filepath.EvalSymlinks(filepath.Join(s.paths.Runtime, "bin"))
	if err != nil {
		return cdi.Runtime{}, fmt.Errorf("tools: %w; role xpu_runtime installs them", err)
	}
	return cdi.Runtime{Library: library, NVML: nvml, Tools: tools, Empty: s.emptyDirectory(), Sockets: s.paths.Sockets()}, nil
}

// entries leaves out slices with a card that isn't there: one lost card must not keep the
// containers of the others from starting.
func (s *Store) entries(ledger xpu.Ledger, cards []xpu.Card) []cdi.Slice {
	nodes := map[string]cdi.Card{}
	for _, card := range cards {
		nodes[card.UUID] = cdi.Card{Minor: card.Minor}
		if card.Instance != nil {
			nodes[card.UUID] = cdi.Card{Minor: card.Minor, Capabilities: card.Instance.Capabilities}
		}
	}
	var entries []cdi.Slice
	for _, slice := range ledger.Slices() {
		at := s.paths.place(slice)
		entry := cdi.Slice{Key: slice.Key, Directory: at.config, LedgerPage: filepath.Join(at.page, "ledger.page")}
		for _, share := range slice.Shares {
			if card, present := nodes[share.UUID]; present {
				entry.Cards = append(entry.Cards, card)
			}
		}
		if len(entry.Cards) == len(slice.Shares) {
			entries = append(entries, entry)
		}
	}
	return entries
}

// Sweep removes files of slices that the ledger doesn't hold, and what a kill left of some: any part of a slice's
// files, and empty directories.
func (s *Store) Sweep(ledger xpu.Ledger) error {
	keep := map[string]bool{}
	for _, slice := range ledger.Slices() {
		at := s.paths.place(slice)
		keep[at.config], keep[filepath.Dir(at.config)], keep[at.page] = true, true, true
	}
	paths, err := s.paths.each()
	if err != nil {
		return err
	}
	for _, path := range paths {
		if keep[path] || !isSlice(path) {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	pods, err := s.paths.pods()
	if err != nil {
		return err
	}
	for _, path := range pods {
		if !keep[path] {
			if err := removeEmpty(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// isSlice tells our directories from whatever else somebody keeps under /etc/xpu: they are empty, or have a file
// of ours, written whole or not.
func isSlice(path string) bool {
	entries, err := os.ReadDir(path)
	ours := func(entry fs.DirEntry) bool {
		return slices.ContainsFunc(fileNames, func(name string) bool {
			return entry.Name() == name || strings.HasPrefix(entry.Name(), scratchPrefix(name))
		})
	}
	return err == nil && (len(entries) == 0 || slices.ContainsFunc(entries, ours))
}
