// SPDX-License-Identifier: Apache-2.0

// Package hostslice registers slices of this machine's cards for containers that Docker or Podman
// start: each is a CDI device by its name. It shares ledger, files and rules with the device plugin, so
// that host and cluster can't promise the same share of a card.
//
// Order of writes, as the device plugin's: ledger, files, CDI entry; the way back begins with the
// entry. Killed after any of them, the same call again comes to the same end.
package hostslice

import (
	"errors"
	"fmt"
	"time"

	"flexai.io/xpu/cluster/cdi"
	"flexai.io/xpu/cluster/live"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/xpu"
)

const (
	// appliedWait bounds how long a resize waits for the process that looks after running slices.
	appliedWait  = 10 * time.Second
	appliedRetry = 20 * time.Millisecond
)

// Manager changes the host's slices.
type Manager struct {
	Paths    store.Paths
	OnError  store.OnError
	Discover func() ([]xpu.Card, error)
	// Proc is the procfs of the host's pid namespace.
	Proc string
	// DryRun says what would happen, or why it wouldn't, and changes nothing.
	DryRun bool
}

// Wish is what a caller wants of a slice; what is nil stays as it is, and in a new slice is no compute
// limit, all of the card's memory, mode hard, weight 0.
type Wish struct {
	Name string
	// Card is a UUID, an index or xpu.AnyCard.
	Card      string
	Cores     *int
	MemoryMiB *uint64
	Mode      *xpu.Mode
	Weight    *int
}

// Action is what a call did, or with DryRun would do.
type Action string

// The actions.
const (
	None    Action = "none"
	Added   Action = "added"
	Resized Action = "resized"
	Mended  Action = "mended" // files that a killed call or a reboot left wrong
	Removed Action = "removed"
)

// Change is the outcome of a call: the slice before and after it.
type Change struct {
	Action  Action `json:"action"`
	Changed bool   `json:"changed"`
	Before  *Terms `json:"before"`
	After   *Terms `json:"after"`
	Warning string `json:"warning,omitempty"`
	slice   xpu.Slice
}

// Terms are what a slice was given.
type Terms struct {
	Name         string   `json:"name"`
	Device       string   `json:"device"` // for --device of Docker and Podman
	Card         string   `json:"card"`
	CoresPercent int      `json:"cores_percent"`
	MemoryMiB    uint64   `json:"memory_mib"`
	Mode         xpu.Mode `json:"mode"`
	Weight       int      `json:"weight"`
}

func terms(key string, share xpu.Share) *Terms {
	mode := share.Mode
	if mode == "" {
		mode = xpu.ModeHard
	}
	return &Terms{Name: key, Device: cdi.Kind + "=" + key, Card: share.UUID, CoresPercent: share.CoresPercent,
		MemoryMiB: share.MemoryMiB, Mode: mode, Weight: share.Weight}
}

func termsOf(slice xpu.Slice) *Terms { return terms(slice.Key, slice.Shares[0]) }

// Add registers a slice. One that is there with the same terms is no change, with others an error.
func (m Manager) Add(wish Wish) (Change, error) {
	return m.put(wish, func(held xpu.Slice, there bool, wanted xpu.Slice) error {
		if there && *termsOf(held) != *termsOf(wanted) {
			return fmt.Errorf("slice %s is there already, with %s; change it with `slice resize`, or remove it first",
				wish.Name, termsOf(held))
		}
		return nil
	})
}

// Resize changes a slice that is there, while its processes run.
func (m Manager) Resize(wish Wish, force bool) (Change, error) {
	return m.put(wish, func(held xpu.Slice, there bool, wanted xpu.Slice) error {
		if !there {
			return fmt.Errorf("no slice %s of the host to resize; add it first", wish.Name)
		}
		return m.fits(held, wanted, force)
	})
}

// Ensure adds a slice, or resizes the one that is there.
func (m Manager) Ensure(wish Wish, force bool) (Change, error) {
	return m.put(wish, func(held xpu.Slice, there bool, wanted xpu.Slice) error {
		if !there {
			return nil
		}
		return m.fits(held, wanted, force)
	})
}

// fits refuses to take memory from under processes: they would keep it, and the card would be promised
// beyond what it has.
func (m Manager) fits(held, wanted xpu.Slice, force bool) error {
	if wanted.Shares[0].MemoryMiB >= held.Shares[0].MemoryMiB || force {
		return nil
	}
	use, err := m.use(held)
	if err != nil {
		return err
	}
	if least := (use.MemoryBytes + mib - 1) / mib; least > wanted.Shares[0].MemoryMiB {
		return fmt.Errorf("slice %s is to shrink to %d MiB, but its processes %v hold %d MiB; stop some, keep at least "+
			"that, or pass --force: they keep what they have and get no more", held.Key, wanted.Shares[0].MemoryMiB, use.Processes, least)
	}
	return nil
}

const mib = 1 << 20

// put is add, resize and mend in one: to the ledger as it stands, then to the files.
func (m Manager) put(wish Wish, allowed func(held xpu.Slice, there bool, wanted xpu.Slice) error) (Change, error) {
	cards, err := m.Discover()
	if err != nil {
		return Change{}, err
	}
	var change Change
	err = m.transact(func(disk *store.Store, ledger xpu.Ledger) error {
		held, there := ledger.Of(xpu.HostOwner(wish.Name))
		next, slice, err := ledger.PutHost(cards, wish.Name, wish.Card, wish.grant(held, there))
		if err != nil {
			return err
		}
		if err := allowed(held, there, slice); err != nil {
			return err
		}
		if change, err = m.compare(disk, next, cards, held, there, slice); err != nil || !change.Changed || m.DryRun {
			return err
		}
		return write(disk, next, cards, slice, change.Action)
	})
	if err != nil || !change.Changed || m.DryRun {
		return change, err
	}
	// Not under the ledger's lock: who looks after the slices may take a moment, and pods start meanwhile.
	return change, m.apply(wish.Name)
}

func write(disk *store.Store, next xpu.Ledger, cards []xpu.Card, slice xpu.Slice, action Action) error {
	files := disk.Mend
	if action == Added {
		files = disk.WriteSlice // over what a killed removal left of that name
	}
	if action != Mended {
		if err := disk.Save(next); err != nil {
			return err
		}
	}
	if err := files(slice); err != nil {
		return err
	}
	return disk.WriteCDI(next, cards)
}

// grant is the wish on top of what is there. What a mode has no use for goes with the mode that had.
func (w Wish) grant(held xpu.Slice, there bool) xpu.Grant {
	grant := xpu.Grant{Mode: xpu.ModeHard}
	if there {
		old := termsOf(held)
		grant = xpu.Grant{CoresPercent: old.CoresPercent, MemoryMiB: old.MemoryMiB, Mode: old.Mode, Weight: old.Weight}
	}
	if w.Mode != nil && *w.Mode != grant.Mode {
		grant.Mode, grant.Weight = *w.Mode, 0
		if grant.Mode == xpu.ModePriority {
			grant.CoresPercent = 0
		}
	}
	if w.Cores != nil {
		grant.CoresPercent = *w.Cores
	}
	if w.MemoryMiB != nil {
		grant.MemoryMiB = *w.MemoryMiB
	}
	if w.Weight != nil {
		grant.Weight = *w.Weight
	}
	return grant
}

// compare says what putting the slice comes to. That its entry can be written at all is known before
// anything is promised.
func (m Manager) compare(disk *store.Store, next xpu.Ledger, cards []xpu.Card, held xpu.Slice, there bool, slice xpu.Slice) (Change, error) {
	change := Change{Action: None, After: termsOf(slice)}
	stands, err := disk.CDIStands(next, cards)
	if err != nil {
		return change, err
	}
	if !there {
		change.Action, change.Changed = Added, true
		return change, nil
	}
	change.Before = termsOf(held)
	if *change.Before != *change.After {
		change.Action, change.Changed = Resized, true
		return change, nil
	}
	lacking, err := disk.Lacking(slice)
	if err != nil {
		return change, err
	}
	if !stands || len(lacking) > 0 || !m.applied(slice) {
		change.Action, change.Changed = Mended, true
	}
	return change, nil
}

// Remove ends a slice. While containers or processes have it, only with force: they keep what they have
// mapped, within the limits they had, and the card is promised anew all the same.
func (m Manager) Remove(name string, force bool) (Change, error) {
	if err := xpu.CheckHostName(name); err != nil {
		return Change{}, err
	}
	change := Change{Action: None}
	err := m.transact(func(disk *store.Store, ledger xpu.Ledger) error {
		slice, there := ledger.Of(xpu.HostOwner(name))
		if !there {
			if m.DryRun {
				return nil
			}
			return withdraw(disk, xpu.Slice{Key: name, Owner: xpu.HostOwner(name)}) // what a killed call left
		}
		use, err := m.use(slice)
		if err != nil {
			return err
		}
		if !use.idle() && !force {
			return fmt.Errorf("slice %s is in use by %s; stop them, or pass --force: they keep what they have, "+
				"and its share of the card is free for others all the same", name, use)
		}
		change = Change{Action: Removed, Changed: true, Before: termsOf(slice)}
		if !use.idle() {
			change.Warning = fmt.Sprintf("slice %s was taken from under %s", name, use)
		}
		if m.DryRun {
			return nil
		}
		return m.remove(disk, ledger, slice, force)
	})
	return change, err
}

// remove looks again once the entry is gone, since a container may have started before. What a runtime
// has read of the entry by then, but not yet mounted, finds no file any more and doesn't start.
func (m Manager) remove(disk *store.Store, ledger xpu.Ledger, slice xpu.Slice, force bool) error {
	if err := disk.DropCDI(slice.Key); err != nil {
		return err
	}
	use, err := m.use(slice)
	if err != nil {
		return err
	}
	if !use.idle() && !force {
		return fmt.Errorf("slice %s was taken into use meanwhile by %s; stop them and remove it again, "+
			"or add it again to bring its CDI device back", slice.Key, use)
	}
	if err := disk.Save(ledger.Release(slice.Owner)); err != nil {
		return err
	}
	return disk.RemoveSlice(slice)
}

func withdraw(disk *store.Store, slice xpu.Slice) error {
	if err := disk.DropCDI(slice.Key); err != nil {
		return err
	}
	return disk.RemoveSlice(slice)
}

// transact is Store.Transact; a dry run reads without lock and without making a directory.
func (m Manager) transact(change func(*store.Store, xpu.Ledger) error) error {
	if m.DryRun {
		disk := store.At(m.Paths)
		ledger, err := disk.Load()
		if err != nil {
			return err
		}
		return change(disk, ledger)
	}
	disk, err := store.Open(m.Paths)
	if err != nil {
		return err
	}
	disk.OnError = m.OnError
	return disk.Transact(func(ledger xpu.Ledger) error { return change(disk, ledger) })
}

func (m Manager) use(slice xpu.Slice) (Use, error) {
	config, ledger := m.Paths.Pages(slice)
	return look(m.Proc, config, ledger)
}

// applied says whether the config page grants what the ledger promises.
func (m Manager) applied(slice xpu.Slice) bool {
	opened, err := live.Open(m.Paths.Pages(slice))
	if err != nil {
		return false
	}
	defer opened.Close()
	config, err := opened.Config()
	return err == nil && len(config.Cards) == 1 && store.Grants(config.Cards[0], slice.Shares[0])
}

// apply sees to it that a running slice gets what the ledger says now, whoever wrote that. Its page has
// one writer: who looks after the slices, and only where nobody does we.
func (m Manager) apply(name string) error {
	for deadline := time.Now().Add(appliedWait); ; time.Sleep(appliedRetry) {
		release, taken := m.Paths.TakeTending()
		if taken == nil {
			defer release()
		} else if !errors.Is(taken, store.ErrTaken) {
			return taken
		}
		ledger, err := store.Read(m.Paths)
		if err != nil {
			return err
		}
		slice, there := ledger.Of(xpu.HostOwner(name))
		if !there || m.applied(slice) {
			return nil // removed meanwhile, or done
		}
		if taken == nil {
			return m.regrantHeld(name)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("slice %s has its new terms in the ledger, but who looks after running slices has not put them "+
				"into force within %s (%w); restart it, then call again", name, appliedWait, taken)
		}
	}
}

// regrantHeld has the ledger's lock, lest somebody removes the slice between the look at it and its page.
func (m Manager) regrantHeld(name string) error {
	return m.transact(func(_ *store.Store, ledger xpu.Ledger) error {
		slice, there := ledger.Of(xpu.HostOwner(name))
		if !there {
			return nil
		}
		return m.regrant(slice)
	})
}

func (m Manager) regrant(slice xpu.Slice) error {
	opened, err := live.Open(m.Paths.Pages(slice))
	if err != nil {
		return err
	}
	defer opened.Close()
	// An odd epoch is that of a writer who was killed: we have the right to write, so nobody else does.
	_, err = opened.Change(func(cards []pages.Card) {
		for i := range cards {
			store.Regrant(&cards[i], slice.Shares[0])
		}
	}, true)
	return err
}

// String is the terms as one reads them.
func (t Terms) String() string {
	return fmt.Sprintf("%d %% cores and %d MiB of card %s, mode %s, weight %d", t.CoresPercent, t.MemoryMiB, t.Card, t.Mode, t.Weight)
}
