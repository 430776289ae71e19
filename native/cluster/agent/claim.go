// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"flexai.io/xpu/cluster/checkpoint"
	"flexai.io/xpu/cluster/xpu"
)

// location is where PodResources and the API server see the ids. All of it may be unknown: ids of an
// init container are not shown, and the API server may be away.
type location struct {
	namespace, name, container string
	pod                        *Pod
	away                       error // why pod is nil
}

// claim finds out what a container that has no slice yet is to get.
func (a *Agent) claim(ctx context.Context, holders []checkpoint.Container, tokens []string) (xpu.Claim, error) {
	uid := holders[0].PodUID
	place, err := a.locate(ctx, holders, tokens)
	if err != nil {
		return xpu.Claim{}, err
	}
	if place.pod != nil && place.pod.UID != uid {
		return xpu.Claim{}, fmt.Errorf("ids %v: kubelet's checkpoint says pod %s, its PodResources %s/%s (%s); "+
			"the kubelet tries again", tokens, uid, place.namespace, place.name, place.pod.UID)
	}
	holder, err := a.choose(holders, place.container)
	if err != nil {
		return xpu.Claim{}, err
	}
	claim := xpu.Claim{Owner: xpu.Owner{PodUID: uid, Container: holder.Name}, Namespace: place.namespace,
		Pod: place.name, Tokens: tokens}
	// Of an init container and its heir, which ask for the same and run one after the other, nobody needs to
	// know which one starts.
	if before, ok := a.settled(holders, tokens); ok && place.pod == nil {
		return before, nil
	}
	if place.pod == nil {
		claim.Ask, err = a.unread(a.counts(holder), place.away)
	} else {
		claim.Preferred = place.pod.preferred(holder.Name)
		claim.Ask, err = place.pod.ask(holder.Name, a.counts(holder), a.Class)
	}
	if err != nil {
		return xpu.Claim{}, fmt.Errorf("container %s: %w", holder.Name, err)
	}
	return claim, nil
}

// locate asks PodResources for the pod's name, and the API server for the rest, unless the pod is known: with
// a hundred containers starting at once their answers are what each of them waits for. Of several holders that
// are no init containers only PodResources tells which one starts.
func (a *Agent) locate(ctx context.Context, holders []checkpoint.Container, tokens []string) (location, error) {
	uid := holders[0].PodUID
	if pod, known := a.Known(uid); known {
		if container, certain := pod.heir(holders); certain {
			return location{namespace: pod.Namespace, name: pod.Name, container: container, pod: &pod}, nil
		}
	}
	where, err := a.name(ctx, tokens)
	if err != nil {
		a.Log.Warn("PodResources did not answer; going by the kubelet's checkpoint alone", "error", err)
	}
	shown := where.name != ""
	var pod Pod
	if shown {
		pod, err = a.Pods.Pod(ctx, where.namespace, where.name)
	} else {
		pod, err = a.Pods.PodOf(ctx, uid)
		where.namespace, where.name = pod.Namespace, pod.Name
	}
	switch {
	case errors.Is(err, ErrNoPod) && shown:
		return location{}, fmt.Errorf("pod %s/%s was deleted while its container started", where.namespace, where.name)
	case err != nil:
		where.away = err
	default:
		where.pod = &pod
	}
	return where, nil
}

// heir is the one holder, or of several the only one that is no init container: their slice is its, for it has
// the ids when they have ended.
func (p Pod) heir(holders []checkpoint.Container) (string, bool) {
	if len(holders) == 1 {
		return holders[0].Name, true
	}
	var heirs []string
	for _, holder := range holders {
		if slices.Contains(p.Containers, holder.Name) {
			heirs = append(heirs, holder.Name)
		}
	}
	if len(heirs) != 1 {
		return "", false
	}
	return heirs[0], true
}

func (a *Agent) name(ctx context.Context, tokens []string) (location, error) {
	holdings, err := a.Kubelet.Holdings(ctx)
	if err != nil {
		return location{}, err
	}
	holding, found := holderOf(holdings, tokens)
	if !found {
		return location{}, nil
	}
	return location{namespace: holding.Namespace, name: holding.Pod, container: holding.Container}, nil
}

// holderOf prefers the container that holds exactly the ids over one that was handed them with more.
func holderOf(holdings []Holding, tokens []string) (Holding, bool) {
	key, wanted := xpu.Key(tokens), map[string]bool{}
	for _, token := range tokens {
		wanted[token] = true
	}
	var partial *Holding
	for i, holding := range holdings {
		if xpu.Key(holding.IDs) == key {
			return holding, true
		}
		for _, id := range holding.IDs {
			if wanted[id] {
				partial = &holdings[i]
			}
		}
	}
	if partial == nil {
		return Holding{}, false
	}
	return *partial, true
}

// unread settles an ask whose pod could not be read. What an annotation might give another meaning
// waits: several slices for their shape, memory alone for its class, several cards for their links,
// any ask on a node of several models for its pin. One card's cores are guaranteed, never more, and
// bound without the scheduler's preference.
func (a *Agent) unread(counts xpu.Counts, why error) (xpu.Ask, error) {
	ask, err := xpu.Settle(counts, nil)
	if err == nil && ask.Cards == 1 && ask.CoresPercent > 0 && a.oneModel() {
		a.Log.Warn("API server did not answer; binding without the scheduler's preference", "error", why)
		return ask, nil
	}
	return xpu.Ask{}, fmt.Errorf("what %s means stands in the pod's annotations, and the pod can't be read (%w); "+
		"the kubelet tries again", counts, why)
}

func (a *Agent) oneModel() bool {
	cards := a.KnownCards()
	for _, card := range cards {
		if card.Short() != cards[0].Short() {
			return false
		}
	}
	return true
}

// preferred is the scheduler's wish for a container.
func (p Pod) preferred(container string) []string {
	for i, name := range p.Containers {
		if name == container {
			return xpu.Preferred(p.Preference, i)
		}
	}
	return nil
}

// ask settles what a container's totals mean in this pod.
func (p Pod) ask(container string, counts xpu.Counts, site xpu.Class) (xpu.Ask, error) {
	shapes, err := xpu.ParseShapes(p.Shapes)
	if err != nil {
		return xpu.Ask{}, err
	}
	var shape *xpu.Shape
	if one, written := shapes[container]; written {
		shape = &one
	}
	ask, err := xpu.Settle(counts, shape)
	if err != nil {
		return xpu.Ask{}, err
	}
	class, err := xpu.ParseClass(p.Class)
	if err != nil {
		return xpu.Ask{}, fmt.Errorf("annotation flexai.io/class: %w", err)
	}
	if ask, err = ask.Classed(class, site); err != nil {
		return xpu.Ask{}, err
	}
	ask.Models = p.Models
	ask.Bandwidth, err = parseBandwidth(p.Bandwidth)
	return ask, err
}

func parseBandwidth(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	value, err := strconv.Atoi(text)
	if err != nil || value < 0 {
		return 0, fmt.Errorf("annotation flexai.io/intra-bandwidth %q is not a whole number from 0 up: the least value of the "+
			"node's topology matrix between two cards", text)
	}
	return value, nil
}
