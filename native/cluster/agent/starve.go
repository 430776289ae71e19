// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"time"

	"flexai.io/xpu/cluster/xpu"
)

// forgetAfter is longer than the kubelet ever waits between two tries of a container.
const forgetAfter = 6 * time.Minute

// Starved is a container that found no room for too long.
type Starved struct {
	Pod     Pod
	Owner   xpu.Owner
	Message string
}

// note keeps in mind who finds no room. Other refusals don't get better elsewhere.
func (a *Agent) note(claim xpu.Claim, err error) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	var noFit *xpu.NoFit
	if errors.As(err, &noFit) {
		a.waiting.Refused(claim, noFit.Error(), a.Now())
	} else if err == nil {
		a.waiting.Settled(claim.Owner)
	}
}

func noRoom(err error) bool {
	var noFit *xpu.NoFit
	return errors.As(err, &noFit)
}

// Starving are those who have found no room for patience, each once.
func (a *Agent) Starving(patience time.Duration) []Starved {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	var starving []Starved
	for _, one := range a.waiting.Due(a.Now(), patience, forgetAfter) {
		owner := one.Claim.Owner
		starving = append(starving, Starved{
			Pod:   Pod{UID: owner.PodUID, Namespace: one.Claim.Namespace, Name: one.Claim.Pod},
			Owner: owner,
			Message: fmt.Sprintf("container %s found no room for %s: %s", owner.Container,
				a.Now().Sub(one.Since).Round(time.Second), one.Why),
		})
	}
	return starving
}

// Starves says whether an owner still finds no room.
func (a *Agent) Starves(owner xpu.Owner) bool {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.waiting.Still(owner)
}
