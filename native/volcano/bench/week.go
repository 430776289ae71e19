// SPDX-License-Identifier: Apache-2.0

package main

import (
	"container/heap"
	"fmt"
	"math/rand"

	"flexai.io/xpu/volcano/place"
)

// A random week: pods come at random (one every 96 s on 100 cards), live from minutes to days, and
// go. Half ask for a tenth to a half of a card, a fifth for less memory than their cores would
// suggest or more, and one in eight for whole cards, up to a node of them. The rate is such that
// about three quarters of the cores would be used if nothing were ever refused.
const (
	weekSeconds = 7 * 24 * 3600
	sampleEvery = 3600.0
)

// leftover is what one week showed.
type leftover struct {
	Policy          string  `json:"policy"`
	Asked           int     `json:"asked"`
	Refused         float64 `json:"refused_percent"`       // of all pods
	WholeRefused    float64 `json:"whole_refused_percent"` // of those that asked for whole cards
	CoresUsed       float64 `json:"cores_used_percent"`    // mean over the week
	Fragmented      float64 `json:"fragmented_percent"`    // mean: free cores that lie on cards in use
	FragmentedAtEnd float64 `json:"fragmented_at_end_percent"`
	LinkedWell      float64 `json:"linked_percent"` // pods of two cards whose cards are paired
	wholeAsked      int
	refused, wholes int
	pairs, paired   int
}

// week plays the same arrivals for every policy: they come of the seed alone.
func week(policy string, seed int64, nodes int) (leftover, error) {
	choose, err := chooser(policy)
	if err != nil {
		return leftover{}, err
	}
	random := rand.New(rand.NewSource(seed))
	cluster := make([]*place.Books, nodes)
	for i := range cluster {
		cluster[i] = place.NewBooks(describe(i), pairs())
	}
	found := leftover{Policy: policy}
	leave := &departures{}
	var samples, used, fragmented float64
	nextSample := weekSeconds / 7.0 // the first day fills the cards
	between := 9600.0 / float64(nodes*cards)
	for now, number := 0.0, 0; now < weekSeconds; number++ {
		now += random.ExpFloat64() * between
		ask, whole, lasts := arrival(random)
		for ; nextSample <= now; nextSample += sampleEvery {
			leave.until(nextSample, cluster)
			cores, stranded := survey(cluster)
			used, fragmented, samples = used+cores, fragmented+stranded, samples+1
		}
		leave.until(now, cluster)
		found.Asked++
		if whole {
			found.wholeAsked++
		}
		pod := fmt.Sprint("pod-", number)
		node, placement := choose(cluster, pod, ask)
		if node < 0 {
			found.refused++
			if whole {
				found.wholes++
			}
			continue
		}
		if grants := placement.Containers[0]; len(grants) == 2 {
			found.pairs++
			if grants[0].Index/2 == grants[1].Index/2 {
				found.paired++
			}
		}
		heap.Push(leave, departure{now + lasts, node, pod})
	}
	leave.until(weekSeconds, cluster)
	_, atEnd := survey(cluster)
	percent := func(part, all float64) float64 { return 100 * part / max(all, 1) }
	found.Refused = percent(float64(found.refused), float64(found.Asked))
	found.WholeRefused = percent(float64(found.wholes), float64(found.wholeAsked))
	found.LinkedWell = percent(float64(found.paired), float64(found.pairs))
	found.CoresUsed, found.Fragmented = percent(used, samples), percent(fragmented, samples)
	found.FragmentedAtEnd = percent(atEnd, 1)
	return found, nil
}

func describe(node int) []place.Card {
	described := make([]place.Card, cards)
	for i := range described {
		described[i] = place.Card{
			Index: i, UUID: fmt.Sprintf("GPU-%d-%d", node, i), Type: "GPU-A100", Slots: 20,
			MemMiB: 40960, Healthy: true, NUMA: i / 4,
		}
	}
	return described
}

// pairs links cards two by two by NVLink, the others over PCI and between sockets.
func pairs() place.Links {
	links := make(place.Links, cards)
	for i := range links {
		links[i] = make([]int, cards)
		for j := range links[i] {
			switch {
			case i == j:
			case i/2 == j/2:
				links[i][j] = 170
			case i/4 == j/4:
				links[i][j] = 30
			default:
				links[i][j] = 10
			}
		}
	}
	return links
}

func arrival(random *rand.Rand) (ask place.Ask, whole bool, lasts float64) {
	container := place.ContainerAsk{Name: "main", Count: 1}
	switch kind := random.Intn(16); {
	case kind < 2:
		whole = true
		container.Count = []int{1, 1, 2, 2, 4, 8}[random.Intn(6)]
		container.Share.Cores = place.FullCores
	case kind < 10:
		cores := 10 * (1 + random.Intn(5))
		container.Share = place.Share{Cores: cores, MemMiB: int64(cores) * 40960 / 100 * int64(1+random.Intn(4)) / 2}
	case kind < 13:
		container.Share = place.Share{Cores: 60 + 10*random.Intn(3), MemMiB: 4096}
	default:
		container.Share = place.Share{Cores: 5, MemMiB: 16384}
	}
	lasts = 600 + random.ExpFloat64()*6000
	if random.Intn(20) == 0 {
		lasts += random.ExpFloat64() * 86400
	}
	return place.Ask{Containers: []place.ContainerAsk{container}}, whole, lasts
}

type choice func(cluster []*place.Books, pod string, ask place.Ask) (int, place.Placement)

// chooser is a policy over nodes and cards as the scheduler has it: the best node by the policy's
// score, the first of equals. first-fit is the first node, and on it the first cards, that will do.
func chooser(name string) (choice, error) {
	if name == "first-fit" {
		return func(cluster []*place.Books, pod string, ask place.Ask) (int, place.Placement) {
			for i, books := range cluster {
				if placement, reason := books.Give(pod, ask, place.FirstFit); reason == "" {
					return i, placement
				}
			}
			return -1, place.Placement{}
		}, nil
	}
	policy, ok := place.PolicyByName(name)
	if !ok {
		return nil, fmt.Errorf("policy %q is unknown; use %s, or first-fit", name, place.PolicyNames())
	}
	return func(cluster []*place.Books, pod string, ask place.Ask) (int, place.Placement) {
		best, score := -1, 0.0
		for i, books := range cluster {
			if placement, reason := books.Place(ask, policy); reason == "" && (best < 0 || placement.Score > score) {
				best, score = i, placement.Score
			}
		}
		if best < 0 {
			return -1, place.Placement{}
		}
		placement, _ := cluster[best].Give(pod, ask, policy)
		return best, placement
	}, nil
}

// survey is the part of all cores that is used, and the part of the free ones that lies on cards
// which somebody uses: no whole card can be made of them.
func survey(cluster []*place.Books) (used, fragmented float64) {
	var taken, stranded, all float64
	for _, books := range cluster {
		for _, cores := range books.CoresTaken() {
			all += place.FullCores
			taken += float64(cores)
			if cores > 0 {
				stranded += float64(place.FullCores - cores)
			}
		}
	}
	return taken / all, stranded / max(all-taken, 1)
}

type departure struct {
	at   float64
	node int
	pod  string
}

// departures are ordered by time.
type departures []departure

func (d departures) Len() int           { return len(d) }
func (d departures) Less(a, b int) bool { return d[a].at < d[b].at }
func (d departures) Swap(a, b int)      { d[a], d[b] = d[b], d[a] }
func (d *departures) Push(one any)      { *d = append(*d, one.(departure)) }
func (d *departures) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}

func (d *departures) until(now float64, cluster []*place.Books) {
	for len(*d) > 0 && (*d)[0].at <= now {
		gone := heap.Pop(d).(departure)
		cluster[gone.node].Release(gone.pod)
	}
}
