// SPDX-License-Identifier: Apache-2.0

package place

import (
	"reflect"
	"strings"
	"testing"
)

func TestDecodeCards(t *testing.T) {
	got, err := DecodeCards("0,GPU-a,20,40960,GPU-A100,true,1:1,GPU-b,20,40960,GPU-A100,false,:")
	if err != nil {
		t.Fatal(err)
	}
	want := []Card{
		{Index: 0, UUID: "GPU-a", Slots: 20, MemMiB: 40960, Type: "GPU-A100", Healthy: true, NUMA: 1},
		{Index: 1, UUID: "GPU-b", Slots: 20, MemMiB: 40960, Type: "GPU-A100"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if none, err := DecodeCards(""); len(none) != 0 || err != nil {
		t.Errorf("no annotation: %v, %v", none, err)
	}
}

func TestMalformedCardsAreNamed(t *testing.T) {
	for text, fault := range map[string]string{
		"0,GPU-a,20,40960,GPU-A100,true:":                               "6 fields, 7 wanted",
		"0,GPU-a,20,40960,GPU-A100,true,left:":                          `NUMA node "left"`,
		"0,GPU-a,20,-1,GPU-A100,true,0:":                                `"-1" is not a number`,
		"0,GPU-a,20,40960,GPU-A100,well,0:":                             `health "well"`,
		"0,GPU-a,2,4,GPU-A100,true,0:1,GPU-a,2,4,GPU-A100,true,0:":      "listed twice",
		"0,GPU-a,20,99999999999999999999999999999999,GPU-A100,true,0::": "is not a number",
	} {
		if _, err := DecodeCards(text); err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: error %v, want %q", text, err, fault)
		}
	}
}

func TestPlacementRoundTrip(t *testing.T) {
	text := "0,GPU-a,GPU,3072,20,0:1,GPU-b,GPU,3072,20,4:;;1,GPU-b,GPU,1024,0,1:"
	placement, err := DecodePlacement(text)
	if err != nil || len(placement.Containers) != 3 || len(placement.Containers[1]) != 0 {
		t.Fatalf("%v, %v", placement, err)
	}
	if got := EncodePlacement(placement); got != text {
		t.Errorf("%s, want %s", got, text)
	}
}

func TestDecodeBound(t *testing.T) {
	got, err := DecodeBound("uid-1,main,GPU-a,2,20,3072:host,render,GPU-b,0,0,1024:")
	want := []Bound{
		{Pod: "uid-1", Container: "main", UUID: "GPU-a", Vid: 2, Cores: 20, MemMiB: 3072},
		{Pod: "host", Container: "render", UUID: "GPU-b", MemMiB: 1024},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
	for text, fault := range map[string]string{
		"uid,main,GPU-a,2,20:":         "5 fields, 6 wanted",
		"uid,main,GPU-a,2,twenty,100:": `"twenty" is not a number`,
	} {
		if _, err := DecodeBound(text); err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: error %v, want %q", text, err, fault)
		}
	}
}

func TestDecodeLinks(t *testing.T) {
	links, err := DecodeLinks("0,170,10;170,0,10;10,10,0", 3)
	if err != nil || links.between(0, 1) != 170 || links.between(2, 1) != 10 {
		t.Errorf("%v %v", links, err)
	}
	if none, err := DecodeLinks("", 3); none != nil || err != nil || none.between(0, 2) != 0 {
		t.Errorf("no annotation: %v %v", none, err)
	}
	for text, fault := range map[string]string{
		"0,1;1,0":              "2 rows for 3 cards",
		"0,1,2;1,0;2,1,0":      "row 1 has 2 values for 3 cards",
		"0,1,2;1,0,NV12;2,1,0": `"NV12" is not a number`,
		"0,1,2;1,0,-5;2,1,0":   `"-5" is not a number`,
	} {
		if _, err := DecodeLinks(text, 3); err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: error %v, want %q", text, err, fault)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("0,GPU-a,20,40960,GPU-A100,true,0:")
	f.Add("0,GPU-a,GPU,3072,20,0:;")
	f.Add("uid-1,main,GPU-a,2,20,3072:")
	f.Add("0,170;170,0")
	f.Add(`{"main":{"number":2,"cores":20,"memoryGiB":3}}`)
	f.Fuzz(func(t *testing.T, text string) {
		if bound, err := DecodeBound(text); err == nil {
			for _, share := range bound {
				if share.MemMiB < 0 || share.Cores < 0 || share.Vid < 0 {
					t.Errorf("negative %+v", share)
				}
			}
		}
		if links, err := DecodeLinks(text, 2); err == nil && links != nil && links.between(0, 1) < 0 {
			t.Errorf("negative link in %v", links)
		}
		if shapes, reason := DecodeShapes(text); reason == "" {
			for name, shape := range shapes {
				Settle(name, Totals{Number: shape.Number, Cores: shape.Number * shape.Cores}, &shape)
			}
		}
		if cards, err := DecodeCards(text); err == nil {
			for _, card := range cards {
				if card.MemMiB < 0 || card.Slots < 0 {
					t.Errorf("negative %+v", card)
				}
			}
		}
		if placement, err := DecodePlacement(text); err == nil {
			again, err := DecodePlacement(EncodePlacement(placement))
			if err != nil || EncodePlacement(again) != EncodePlacement(placement) {
				t.Errorf("%q does not survive encoding", text)
			}
		}
	})
}
