// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"sync"

	"flexai.io/xpu/cluster/xpu"
)

// order is a claim that is to be written, and what becomes of it.
type order struct {
	claim xpu.Claim
	slice xpu.Slice
	ended []xpu.Slice // whose tokens it was dealt
	err   error
	done  chan struct{}
}

// commits lets claims that come together be written together: a hundred containers that start at once wait
// for a few durable writes and not for a hundred.
type commits struct {
	turn chan struct{} // taken by who writes

	mutex sync.Mutex
	next  []*order
}

func (c *commits) add(claim xpu.Claim) *order {
	one := &order{claim: claim, done: make(chan struct{})}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.next = append(c.next, one)
	return one
}

func (c *commits) take() []*order {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	orders := c.next
	c.next = nil
	return orders
}

// start has a container's slice as it must be when it starts; ready are the files of one settled ahead. Two need
// not wait for who writes just now: one that finds no room, for the kubelet tries again, and one that has its
// slice, whose files are nobody else's.
func (a *Agent) start(claim xpu.Claim, ready bool) error {
	ledger, cards := a.Ledger(), a.KnownCards()
	slice, held := ledger.Of(claim.Owner)
	if !held || slice.Key != xpu.Key(claim.Tokens) || present(slice, cards) != nil {
		if _, _, _, err := ledger.Reserve(cards, claim); noRoom(err) {
			return err
		}
		return a.commit(claim)
	}
	if ready {
		return nil
	}
	if err := a.Store.WriteSlice(slice); err != nil {
		return err
	}
	if stands, err := a.Store.EntryStands(slice, cards); err == nil && stands {
		return nil
	}
	return a.commit(claim)
}

// commit is the only way to a new slice.
func (a *Agent) commit(claim xpu.Claim) error { return a.await(a.commits.add(claim)) }

// await has an order written. Whoever gets the turn writes for all who wait.
func (a *Agent) await(one *order) error {
	select {
	case <-one.done:
	case a.commits.turn <- struct{}{}:
		a.write(a.commits.take()) // with one, unless the last who had the turn took it
		<-a.commits.turn
	}
	<-one.done
	return one.err
}

// write settles orders, in turn, in one transaction.
func (a *Agent) write(orders []*order) {
	if len(orders) == 0 {
		return
	}
	err := a.Store.Transact(func(fresh xpu.Ledger) error { return a.settle(fresh, orders) })
	for _, one := range orders {
		if one.err == nil {
			one.err = err
		}
		close(one.done)
	}
}

// settle writes what these orders come to. The ledger is durable before anything that depends on it exists;
// a kill after any step leaves a state in which the same calls succeed. What it returns befell all of them.
func (a *Agent) settle(ledger xpu.Ledger, orders []*order) error {
	cards := a.KnownCards()
	next, changed := ledger, false
	var settled []*order
	for _, one := range orders {
		after, slice, ended, err := next.Reserve(cards, one.claim)
		if err == nil {
			err = present(slice, cards)
		}
		if err != nil {
			one.err = err
			continue
		}
		_, held := next.Of(one.claim.Owner)
		changed = changed || !held || len(ended) > 0
		one.slice, one.ended, next = slice, ended, after
		settled = append(settled, one)
	}
	if len(settled) == 0 {
		return nil
	}
	if changed {
		if err := a.Store.Save(next); err != nil {
			return err
		}
	}
	a.wrote(next)
	// Before any new slice is written: it may have the key or the directory of one that ended.
	for _, one := range settled {
		one.err = a.remove(one.ended)
	}
	for _, one := range settled {
		// One whose tokens were dealt on in the same breath has nothing to be written.
		if held, still := next.Of(one.claim.Owner); one.err == nil && still && held.Key == one.slice.Key {
			one.err = a.show(one.slice, ledger)
		}
	}
	return a.Store.WriteCDI(next, cards)
}

func (a *Agent) remove(ended []xpu.Slice) error {
	for _, old := range ended {
		if err := a.Store.RemoveSlice(old); err != nil {
			return err
		}
	}
	return nil
}

// show writes what a container sees of its slice.
func (a *Agent) show(slice xpu.Slice, before xpu.Ledger) error {
	if old, held := before.Of(slice.Owner); !held || old.Key != slice.Key {
		a.Log.Info("slice settled", "pod", slice.Namespace+"/"+slice.Pod, "owner", slice.Owner.String(),
			"key", slice.Key, "shares", slice.Shares)
	}
	return a.Store.WriteSlice(slice)
}

// present refuses to start a container on a card that has left the node: its slice stays what it
// was, and only its end makes room for another.
func present(slice xpu.Slice, cards []xpu.Card) error {
	here := map[string]bool{}
	for _, card := range cards {
		here[card.UUID] = true
	}
	for _, share := range slice.Shares {
		if !here[share.UUID] {
			return fmt.Errorf("card %s of this container's slice is not on the node any more; "+
				"bring it back or delete the pod", share.UUID)
		}
	}
	return nil
}
