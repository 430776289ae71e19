// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"context"
	"errors"
)

// accuse says what a tenant did and acts by the policy. pid 0 means all processes of the slice.
func (k *keeper) accuse(ctx context.Context, one *tended, pid int, reason string) {
	k.Log.Warn("slice is used past its limits", "key", one.slice.Key, "owner", one.slice.Owner.String(),
		"pod", one.slice.Namespace+"/"+one.slice.Pod, "reason", reason, "policy", string(k.Policy))
	switch k.Policy {
	case Kill:
		k.kill(one, pid)
	case Evict:
		if k.Evictor == nil {
			k.Log.Warn("nobody here can evict; only reported", "key", one.slice.Key)
		} else if err := k.Evictor.Evict(ctx, one.slice, reason); err != nil {
			k.Log.Warn("not evicted", "key", one.slice.Key, "error", err)
		}
	}
}

var errShared = errors.New("its cgroup names no container, so others may live in it")

func (k *keeper) kill(one *tended, pid int) {
	pids := []int{pid}
	if pid == 0 {
		pids = nil
		for _, m := range one.members {
			if m.hostPID > 0 {
				pids = append(pids, m.hostPID)
			}
		}
	}
	for _, victim := range pids {
		cgroup, err := k.Host.Cgroup(victim)
		if err == nil && !namesContainer(cgroup) && !ofPod(cgroup, one.slice.Owner) {
			err = errShared
		}
		if err == nil {
			err = k.Host.Kill(victim, cgroup)
		}
		if err != nil {
			k.Log.Warn("not killed", "key", one.slice.Key, "host_pid", victim, "error", err)
			continue
		}
		k.Log.Warn("killed", "key", one.slice.Key, "host_pid", victim)
	}
}
