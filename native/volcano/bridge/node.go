// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"sort"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"volcano.sh/volcano/pkg/scheduler/api"

	"flexai.io/xpu/volcano/place"
)

// holding is what a pod has of a node's cards in this session; undo takes the annotations back and
// is nil for pods that were placed before the session.
type holding struct {
	placement place.Placement
	undo      func()
}

// nodeCards is one node's cards in one session. They are read when a pod first asks for a slice,
// so that sessions without such pods cost nothing. Volcano calls predicates of one node from
// several goroutines, hence the lock.
type nodeCards struct {
	once   sync.Once
	mutex  sync.Mutex
	policy place.Policy
	cards  []place.Card
	held   map[types.UID]holding
	broken place.Reason
}

func (n *nodeCards) load(node *api.NodeInfo) {
	n.once.Do(func() {
		n.held = map[types.UID]holding{}
		if node.Node == nil {
			n.broken = "node is not known to the API server"
			return
		}
		cards, err := place.DecodeCards(node.Node.Annotations[cardsAnnotation])
		if err != nil {
			klog.Errorf("%s: node %s: annotation %s: %v", Name, node.Name, cardsAnnotation, err)
			n.broken = "annotation " + cardsAnnotation + " of the node is malformed"
			return
		}
		n.cards = cards
		n.loadTenants(node.Tasks)
	})
}

// loadTenants counts the pods that are on the node. Those with a believable annotation come
// first, at the places it names; the others get a place by our own policy, which keeps the
// node's sum right though the card may be another.
func (n *nodeCards) loadTenants(tasks map[api.TaskID]*api.TaskInfo) {
	var unplaced []*v1.Pod
	for _, task := range tasks {
		ask, reason := askOf(task.Pod)
		if reason != "" || ask.Empty() {
			continue
		}
		placement, err := place.DecodePlacement(task.Pod.Annotations[grantsAnnotation])
		if err != nil || !placement.Matches(ask) || !n.hold(task.Pod.UID, placement) {
			unplaced = append(unplaced, task.Pod)
		}
	}
	sort.Slice(unplaced, func(a, b int) bool { return unplaced[a].UID < unplaced[b].UID })
	for _, pod := range unplaced {
		ask, _ := askOf(pod)
		placement, reason := place.Place(n.cards, ask, n.policy)
		if reason != "" || !n.hold(pod.UID, placement) {
			klog.Warningf("%s: pod %s/%s is on a node whose cards have no room for it: %s",
				Name, pod.Namespace, pod.Name, reason)
		}
	}
}

func (n *nodeCards) hold(pod types.UID, placement place.Placement) bool {
	settled, err := place.Commit(n.cards, placement)
	if err != nil {
		return false
	}
	n.held[pod] = holding{placement: settled}
	return true
}

// try answers where a pod would go, and changes nothing. A pod that holds its place already (an
// eviction that was taken back) fits.
func (n *nodeCards) try(pod types.UID, ask place.Ask) (place.Placement, place.Reason) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if n.broken != "" {
		return place.Placement{}, n.broken
	}
	if has, ok := n.held[pod]; ok {
		return has.placement, ""
	}
	return place.Place(n.cards, ask, n.policy)
}

// allocate gives the pod its cards. annotate is called with the settled placement, unless the pod
// has its cards already, and returns how to undo it.
func (n *nodeCards) allocate(
	pod types.UID, ask place.Ask, annotate func(place.Placement) func(),
) place.Reason {
	placement, reason := n.try(pod, ask)
	if reason != "" {
		return reason
	}
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if _, ok := n.held[pod]; ok {
		return ""
	}
	settled, err := place.Commit(n.cards, placement)
	if err != nil {
		return place.Reason(err.Error())
	}
	n.held[pod] = holding{placement: settled, undo: annotate(settled)}
	return ""
}

// deallocate takes back what this session gave. A pod that was on the node before keeps its
// cards while it is being evicted: it still runs on them.
func (n *nodeCards) deallocate(pod types.UID) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	has, ok := n.held[pod]
	if !ok || has.undo == nil {
		return
	}
	place.Release(n.cards, has.placement)
	has.undo()
	delete(n.held, pod)
}
