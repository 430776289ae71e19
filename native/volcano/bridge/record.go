// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"sort"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"volcano.sh/volcano/pkg/scheduler/api"

	"flexai.io/xpu/volcano/place"
)

// silentAfter is how long a device plugin may say nothing: three of its heartbeats. It is the time
// by our own clock in which the handshake annotation has not changed. What time the annotation
// states is not looked at, so no difference between two machines' clocks can stop scheduling. A
// scheduler that has just started gives every node that long.
const silentAfter = 90 * time.Second

// library keeps what was read of the nodes between sessions, of which Volcano has one a second.
type library struct {
	mutex   sync.Mutex
	records map[string]*record
}

var shared = &library{}

// of returns the records of exactly these nodes; those of others are forgotten.
func (l *library) of(nodes map[string]*api.NodeInfo) map[string]*record {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	records := make(map[string]*record, len(nodes))
	for name := range nodes {
		if records[name] = l.records[name]; records[name] == nil {
			records[name] = &record{}
		}
	}
	l.records = records
	return records
}

// source is everything that a node's books are made of, but its tenants.
type source struct {
	cards, bound, links string
	policy              string
	defaultClass        place.Class
}

// tenant is a pod on the node that asks for slices, as it was read.
type tenant struct {
	pod     *v1.Pod
	grants  string
	leaving bool
	ask     place.Ask
}

// record is one node as it was last read. It is read again only where source or tenants changed;
// then books are made anew, and earlier ones stay as they are for whoever has a copy.
type record struct {
	source  source
	tenants map[api.TaskID]tenant
	books   *place.Books
	broken  place.Reason

	handshake string
	heard     time.Time
}

// refresh brings the record up to date and says why the node can take nothing, if so.
func (r *record) refresh(node *api.NodeInfo, with settings, now time.Time) place.Reason {
	if node.Node == nil {
		return "node is not known to the API server"
	}
	notes := node.Node.Annotations
	if text := notes[handshakeAnnotation]; r.heard.IsZero() || text != r.handshake {
		r.handshake, r.heard = text, now
	}
	read := source{
		cards: notes[cardsAnnotation], bound: notes[boundAnnotation], links: notes[topologyAnnotation],
		policy: with.policy.Name, defaultClass: with.defaultClass,
	}
	if r.tenants == nil || read != r.source || !r.sameTenants(node.Tasks) {
		r.source = read
		r.readTenants(node.Tasks, with.defaultClass)
		r.read(node.Name, with.policy)
	}
	if r.broken == "" && r.handshake != "" && now.Sub(r.heard) > silentAfter {
		return "device plugin of the node is silent"
	}
	return r.broken
}

func asksForSlices(task *api.TaskInfo) bool {
	_, asks := task.InitResreq.ScalarResources[numberResource]
	return asks && task.Status != api.Pipelined
}

func isLeaving(task *api.TaskInfo) bool {
	return task.Status == api.Releasing || task.Pod.DeletionTimestamp != nil
}

func (r *record) sameTenants(tasks map[api.TaskID]*api.TaskInfo) bool {
	count := 0
	for _, task := range tasks {
		if !asksForSlices(task) {
			continue
		}
		known, ok := r.tenants[task.UID]
		if !ok || known.pod != task.Pod || known.leaving != isLeaving(task) ||
			known.grants != task.Pod.Annotations[grantsAnnotation] {
			return false
		}
		count++
	}
	return count == len(r.tenants)
}

// readTenants reads the pods that are new or have changed.
func (r *record) readTenants(tasks map[api.TaskID]*api.TaskInfo, defaultClass place.Class) {
	tenants := make(map[api.TaskID]tenant, len(r.tenants))
	for _, task := range tasks {
		if !asksForSlices(task) {
			continue
		}
		one := tenant{pod: task.Pod, grants: task.Pod.Annotations[grantsAnnotation], leaving: isLeaving(task)}
		if known, ok := r.tenants[task.UID]; ok && known.pod == task.Pod {
			one.ask = known.ask
		} else if ask, reason := askOf(task.Pod, "", defaultClass); reason == "" {
			one.ask = ask
		}
		tenants[task.UID] = one
	}
	r.tenants = tenants
}

// read makes the books. What the node itself says is bound counts before what pods say, and that
// before our guess.
func (r *record) read(node string, policy place.Policy) {
	r.books, r.broken = nil, ""
	malformed := func(annotation string, err error) {
		klog.Errorf("%s: node %s: annotation %s: %v", Name, node, annotation, err)
		r.broken = place.Reason("annotation " + annotation + " of the node is malformed")
	}
	cards, err := place.DecodeCards(r.source.cards)
	if err != nil {
		malformed(cardsAnnotation, err)
		return
	}
	bound, err := place.DecodeBound(r.source.bound)
	if err != nil {
		malformed(boundAnnotation, err)
		return
	}
	// Cards whose links can't be read still serve whoever needs none.
	links, err := place.DecodeLinks(r.source.links, len(cards))
	if err != nil {
		klog.Warningf("%s: node %s: annotation %s: %v; taken for no links", Name, node, topologyAnnotation, err)
	}
	r.books = place.NewBooks(cards, links)
	for _, tenancy := range r.tenancies(bound) {
		if unplaced := r.books.Reside(tenancy, policy); unplaced != "" {
			klog.Warningf("%s: pod %s is on node %s, whose cards have no room for it: %s",
				Name, tenancy.Pod, node, unplaced)
		}
	}
}

// tenancies joins pods and bound shares. A bound pod that the scheduler doesn't know has ended, and
// its cards come free when the device plugin has seen that too; the host's own slices stay.
func (r *record) tenancies(bound []place.Bound) []place.Tenancy {
	byPod := map[string]*place.Tenancy{}
	for uid, one := range r.tenants {
		annotated, err := place.DecodePlacement(one.grants)
		if err != nil {
			annotated = place.Placement{}
		}
		byPod[string(uid)] = &place.Tenancy{Pod: string(uid), Ask: one.ask, Annotated: annotated, Leaving: one.leaving}
	}
	for _, share := range bound {
		if byPod[share.Pod] == nil {
			byPod[share.Pod] = &place.Tenancy{Pod: share.Pod, Leaving: share.Pod != place.HostPod}
		}
		byPod[share.Pod].Bound = append(byPod[share.Pod].Bound, share)
	}
	all := make([]place.Tenancy, 0, len(byPod))
	for _, tenancy := range byPod {
		all = append(all, *tenancy)
	}
	sort.Slice(all, func(a, b int) bool {
		if x, y := all[a].Rank(), all[b].Rank(); x != y {
			return x < y
		}
		return all[a].Pod < all[b].Pod
	})
	return all
}
