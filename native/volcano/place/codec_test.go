// SPDX-License-Identifier: Apache-2.0

package place

import (
	"reflect"
	"strings"
	"testing"
)

func TestDecodeCards(t *testing.T) {
	got, err := DecodeCards("0,GPU-a,20,40960,GPU-A100,true,0:1,GPU-b,20,40960,GPU-A100,false,:")
	if err != nil {
		t.Fatal(err)
	}
	want := []Card{
		{Index: 0, UUID: "GPU-a", Slots: 20, MemMiB: 40960, Type: "GPU-A100", Healthy: true,
			tenants: map[int]struct{}{}},
		{Index: 1, UUID: "GPU-b", Slots: 20, MemMiB: 40960, Type: "GPU-A100",
			tenants: map[int]struct{}{}},
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

func FuzzDecode(f *testing.F) {
	f.Add("0,GPU-a,20,40960,GPU-A100,true,0:")
	f.Add("0,GPU-a,GPU,3072,20,0:;")
	f.Fuzz(func(t *testing.T, text string) {
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
