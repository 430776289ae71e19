// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"volcano.sh/volcano/pkg/scheduler/api"
	"volcano.sh/volcano/pkg/scheduler/framework"
	"volcano.sh/volcano/pkg/scheduler/util"
)

// A Volcano keeps other schedulers' waiting pods out of its cache, but neither their PodGroups nor the
// queues: of all of them a session takes in, judges and writes the state. So the second of two Volcanos
// would let the first one's PodGroups in by its own rules and write its own view of every queue.

// keepOwn takes jobs of other schedulers out of a session, before another plugin or action has seen
// them: they are neither queued, nor evicted, nor is their state written. Whose a PodGroup is, only its
// pods tell; one without pods yet is let in by the first Volcano, whose controllers then make them.
func keepOwn(session *framework.Session, scheduler string) {
	for id, job := range session.Jobs {
		if !isScheduledBy(job, scheduler) {
			delete(session.Jobs, id)
		}
	}
}

func isScheduledBy(job *api.JobInfo, scheduler string) bool {
	for _, task := range job.Tasks {
		if task.Pod != nil && task.Pod.Spec.SchedulerName == scheduler {
			return true
		}
	}
	return false
}

// leaveQueues lets a session find that there is nothing to write of any queue when it closes. It would
// write what runs there by the jobs it knows, and these are not all.
func leaveQueues(session *framework.Session) {
	runs := map[api.QueueID]*api.Resource{}
	for _, job := range session.Jobs {
		if runs[job.Queue] == nil {
			runs[job.Queue] = api.EmptyResource()
		}
		for _, task := range job.TaskStatusIndex[api.Running] {
			runs[job.Queue].Add(task.Resreq)
		}
	}
	for id, queue := range session.Queues {
		if runs[id] == nil {
			delete(session.Queues, id)
			continue
		}
		same := queue.Clone()
		same.Queue = same.Queue.DeepCopy() // the original is the cache's
		same.Queue.Status.Allocated = util.ConvertRes2ResList(runs[id])
		session.Queues[id] = same
	}
}
