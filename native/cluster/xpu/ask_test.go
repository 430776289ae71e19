// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// vector is one line of the table that package place of huawei-xpu settles too.
type vector struct {
	Name   string
	Totals Counts
	Shape  *Shape
	Ask    struct {
		Cards        int
		CoresPercent int
		MemoryMiB    uint64
	}
	Refused string
	Class   Class
	// Beside are the shares that a card of 40 GiB holds; Joins says whether one of the ask may come.
	Beside []struct {
		Cores     int
		MemoryGiB uint64
		Class     Class
	}
	Joins *bool
}

func vectors(t *testing.T) []vector {
	t.Helper()
	text, err := os.ReadFile("../../common/vectors/slices.json")
	if err != nil {
		t.Fatal(err)
	}
	var found []vector
	if err := json.Unmarshal(text, &found); err != nil || len(found) < 33 {
		t.Fatalf("%d vectors, %v", len(found), err)
	}
	return found
}

func TestWhoMayJoinWhomByTheSharedVectors(t *testing.T) {
	for _, v := range vectors(t) {
		if v.Joins == nil {
			continue
		}
		t.Run(v.Name, func(t *testing.T) {
			var held []Share
			for _, beside := range v.Beside {
				one, err := Ask{Cards: 1, CoresPercent: beside.Cores, MemoryMiB: beside.MemoryGiB * MiBPerGiB}.Classed(beside.Class, "")
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, share(card(0, 40), use(holding(held...))["GPU-0"], one))
			}
			ask, err := Settle(v.Totals, v.Shape)
			if err == nil {
				ask, err = ask.Classed(v.Class, "")
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Place([]Card{card(0, 40)}, holding(held...), ask, nil); (err == nil) != *v.Joins {
				t.Errorf("%+v: %v", ask, err)
			}
		})
	}
}

func TestSettleByTheSharedVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			ask, err := Settle(v.Totals, v.Shape)
			if v.Refused != "" {
				if err == nil || !strings.Contains(err.Error(), v.Refused) {
					t.Errorf("%+v, %v; want an error with %q", ask, err, v.Refused)
				}
				return
			}
			if want := (Ask{Cards: v.Ask.Cards, CoresPercent: v.Ask.CoresPercent, MemoryMiB: v.Ask.MemoryMiB}); err != nil || ask != want {
				t.Errorf("%+v, %v; want %+v", ask, err, want)
			}
		})
	}
}

func TestSettleRefusesWhatCannotBeMeant(t *testing.T) {
	for name, test := range map[string]struct {
		counts Counts
		shape  *Shape
		want   string
	}{
		"negative":                        {Counts{1, -1, 0}, nil, "negative"},
		"a shape whose product overflows": {Counts{2, 0, 2}, &Shape{2, 0, 1<<62 + 1}, "vgpu-shape"},
		"whole cards shaped as slices":    {Counts{2, 200, 0}, &Shape{2, 100, 1}, "vgpu-shape"},
	} {
		if ask, err := Settle(test.counts, test.shape); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v; want %q", name, ask, err, test.want)
		}
	}
}

func TestShapesAreTheWebhooksFormOrRefused(t *testing.T) {
	shapes, err := ParseShapes(`{"app":{"number":2,"cores":20,"memoryGiB":3},"init":{"number":1}}`)
	if err != nil || shapes["app"] != (Shape{2, 20, 3}) || shapes["init"] != (Shape{Number: 1}) {
		t.Errorf("%v, %v", shapes, err)
	}
	if shapes, err := ParseShapes(""); shapes != nil || err != nil {
		t.Errorf("%v, %v", shapes, err)
	}
	for _, bad := range []string{"x", "[]", `{"a":1}`, `{"a":{"number":1,"gpus":2}}`, `{"a":{"number":1.5}}`,
		`{"a":{"number":1}} {}`, `{"a":{"number":99999999999999999999}}`} {
		if shapes, err := ParseShapes(bad); err == nil || !strings.Contains(err.Error(), "vgpu-shape") {
			t.Errorf("%s: %v, %v", bad, shapes, err)
		}
	}
}

func FuzzParseShapes(f *testing.F) {
	f.Add(`{"app":{"number":2,"cores":20,"memoryGiB":3}}`, 2, 40, 6)
	f.Add(`{"app":{"number":-2}}`, -2, 0, 0)
	f.Fuzz(func(t *testing.T, annotation string, number, cores, memory int) {
		shapes, err := ParseShapes(annotation)
		if err != nil {
			return
		}
		for _, shape := range shapes {
			ask, err := Settle(Counts{number, cores, memory}, &shape)
			if err == nil && (ask.Cards != number || ask.CoresPercent > FullCores || ask.Cards*ask.CoresPercent > max(cores, FullCores*number)) {
				t.Errorf("totals %d, %d, %d with %+v make %+v", number, cores, memory, shape, ask)
			}
		}
	})
}

func TestClasses(t *testing.T) {
	cores, memory, whole := Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 1}, Ask{Cards: 1, MemoryMiB: 1}, Ask{Cards: 2, CoresPercent: 100}
	with := func(ask Ask, mode Mode, weight int) Ask {
		ask.Mode, ask.Weight = mode, weight
		return ask
	}
	for name, test := range map[string]struct {
		ask       Ask
		own, site Class
		want      Ask
		wantError string
	}{
		"guaranteed is hard":                 {cores, Guaranteed, "", cores, ""},
		"elastic by its cores":               {cores, Elastic, "", with(cores, ModeElastic, 20), ""},
		"best-effort in idle time":           {memory, BestEffort, "", with(memory, ModePriority, 0), ""},
		"whole cards are guaranteed":         {whole, Guaranteed, "", whole, ""},
		"none with cores is guaranteed":      {cores, "", "", cores, ""},
		"none with memory is unlimited":      {memory, "", "", memory, ""},
		"the site's elastic":                 {cores, "", Elastic, with(cores, ModeElastic, 20), ""},
		"the site's elastic needs cores":     {memory, "", Elastic, memory, ""},
		"the site's best-effort":             {memory, "", BestEffort, with(memory, ModePriority, 0), ""},
		"the site's best-effort takes none":  {cores, "", BestEffort, cores, ""},
		"the pod's own before the site's":    {cores, Guaranteed, Elastic, cores, ""},
		"guaranteed without cores":           {memory, Guaranteed, "", Ask{}, "class guaranteed without vgpu-cores"},
		"elastic without cores":              {memory, Elastic, "", Ask{}, "class elastic without vgpu-cores"},
		"best-effort with cores":             {cores, BestEffort, "", Ask{}, "no vgpu-cores"},
		"best-effort of whole cards is none": {whole, BestEffort, "", Ask{}, "vgpu-memory-1Gi"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.ask.Classed(test.own, test.site)
			if test.wantError == "" && (err != nil || got != test.want) {
				t.Errorf("%+v, %v; want %+v", got, err, test.want)
			}
			if test.wantError != "" && (err == nil || !strings.Contains(err.Error(), test.wantError)) {
				t.Errorf("%v, want %q", err, test.wantError)
			}
		})
	}
	if _, err := ParseClass("gold"); err == nil || !strings.Contains(err.Error(), `"gold" is none of guaranteed, elastic, best-effort`) {
		t.Error(err)
	}
}

// linked are four cards: 0 and 1 by NVLink, 2 and 3 by NVLink, the pairs across the system.
func linked() []Card {
	cards := []Card{card(0, 40), card(1, 40), card(2, 40), card(3, 40)}
	for i := range cards {
		cards[i].Links = map[string]int{}
		for j := range cards {
			switch {
			case i/2 == j/2 && i != j:
				cards[i].Links[cards[j].UUID] = NVLink(4)
			case i != j:
				cards[i].Links[cards[j].UUID] = LinkSystem
			}
		}
	}
	return cards
}

func uuids(shares []Share) string {
	var names []string
	for _, share := range shares {
		names = append(names, share.UUID)
	}
	return strings.Join(names, " ")
}

func TestCardsOfOneContainerAreJoinedAsAsked(t *testing.T) {
	ask := Ask{Cards: 2, CoresPercent: FullCores, Bandwidth: 90}
	taken := holding(Share{UUID: "GPU-0", CoresPercent: 10, MemoryMiB: 1})
	for name, test := range map[string]struct {
		held      []Slice
		ask       Ask
		preferred []string
		want      string
	}{
		"a pair":                                {nil, ask, nil, "GPU-0 GPU-1"},
		"past a card whose partner is taken":    {taken, ask, nil, "GPU-2 GPU-3"},
		"a plan that keeps it":                  {nil, ask, []string{"GPU-3", "GPU-2"}, "GPU-3 GPU-2"},
		"a plan that breaks it is not followed": {nil, ask, []string{"GPU-1", "GPU-2"}, "GPU-1 GPU-0"},
		"what any two cards have":               {taken, Ask{Cards: 3, CoresPercent: FullCores, Bandwidth: 10}, nil, "GPU-1 GPU-2 GPU-3"},
		"one card needs no link":                {nil, Ask{Cards: 1, CoresPercent: 100, Bandwidth: 500}, nil, "GPU-0"},
	} {
		shares, err := Place(linked(), test.held, test.ask, test.preferred)
		if err != nil || uuids(shares) != test.want {
			t.Errorf("%s: %s, %v; want %s", name, uuids(shares), err, test.want)
		}
	}
	ask.Cards = 3
	if _, err := Place(linked(), nil, ask, nil); err == nil || !strings.Contains(err.Error(), "no 3 of the cards with room are joined by 90") {
		t.Errorf("a plan that can't be kept: %v", err)
	}
}

func TestAModelIsPinned(t *testing.T) {
	cards := []Card{card(0, 40), card(1, 16)}
	cards[1].Model = "Tesla T4"
	for models, want := range map[string]string{"t4": "GPU-1", "A100": "GPU-0", "h100, T4": "GPU-1", "": "GPU-1"} {
		shares, err := Place(cards, nil, Ask{Cards: 1, CoresPercent: 10, MemoryMiB: 1, Models: models}, nil)
		if err != nil || uuids(shares) != want {
			t.Errorf("%q: %s, %v; want %s", models, uuids(shares), err, want)
		}
	}
	_, err := Place(cards, nil, Ask{Cards: 1, CoresPercent: 10, MemoryMiB: 1, Models: "H100"}, []string{"GPU-0"})
	if err == nil || !strings.Contains(err.Error(), "of model H100") || !strings.Contains(err.Error(), "(model A100)") {
		t.Errorf("%v", err)
	}
	cards[0].ShortName = "A100X"
	if _, err := Place(cards, nil, Ask{Cards: 1, MemoryMiB: 1, Models: "A100"}, nil); err == nil {
		t.Error("the site's name for the model is not what counts")
	}
}

func TestSeveralSlicesLieOnDifferentCards(t *testing.T) {
	cards := []Card{card(0, 40), card(1, 40)}
	shares, err := Place(cards, nil, Ask{Cards: 2, CoresPercent: 20, MemoryMiB: 1024, Mode: ModeElastic, Weight: 20}, nil)
	if err != nil || uuids(shares) != "GPU-0 GPU-1" {
		t.Fatalf("%v, %v", shares, err)
	}
	for _, share := range shares {
		if share.CoresPercent != 20 || share.MemoryMiB != 1024 || share.Mode != ModeElastic || share.Weight != 20 {
			t.Errorf("%+v", share)
		}
	}
}

func TestWhatNodesSayOfTheirCards(t *testing.T) {
	cards := linked()[1:3]
	held := holding(Share{UUID: "GPU-1", VID: 3, CoresPercent: 20, MemoryMiB: 1024}, Share{UUID: "GPU-9", CoresPercent: 100, MemoryMiB: 7})
	for name, test := range map[string]struct{ got, want string }{
		"used":     {UsedValue(cards, held), "1,GPU-1,1,1024,20:2,GPU-2,0,0,0:"},
		"slices":   {SlicesValue(held), "u,c,GPU-1,3,20,1024:u,c,GPU-9,0,100,7:"},
		"topology": {TopologyValue(linked()), "0,90,10,10;90,0,10,10;10,10,0,90;10,10,90,0"},
		"one card": {TopologyValue(cards[:1]), "0"},
	} {
		if test.got != test.want {
			t.Errorf("%s: %s, want %s", name, test.got, test.want)
		}
	}
}
