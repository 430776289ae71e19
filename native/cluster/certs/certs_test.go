// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"sync"
	"testing"
	"time"
)

var (
	life  = Lifetimes{Authority: 90 * time.Hour, Serving: 12 * time.Hour, Settle: time.Hour}
	began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	names = []string{"xpu-webhook.xpu.svc"}
)

// cluster is the API server as the keepers know it: one Secret, one webhook configuration, one clock.
type cluster struct {
	sync.Mutex
	now     time.Time
	text    []byte
	version int
	bundle  []byte
	away    error
	saves   int
}

func (c *cluster) Load(context.Context) ([]byte, string, error) {
	c.Lock()
	defer c.Unlock()
	return bytes.Clone(c.text), fmt.Sprint(c.version), c.away
}

func (c *cluster) Save(_ context.Context, text []byte, version string) error {
	c.Lock()
	defer c.Unlock()
	if c.away != nil {
		return c.away
	}
	if version != fmt.Sprint(c.version) {
		return ErrConflict
	}
	c.text, c.saves = text, c.saves+1
	c.version++
	return nil
}

func (c *cluster) Publish(_ context.Context, bundle []byte) error {
	c.Lock()
	defer c.Unlock()
	if c.away == nil {
		c.bundle = bundle
	}
	return c.away
}

func (c *cluster) clock() time.Time {
	c.Lock()
	defer c.Unlock()
	return c.now
}

func (c *cluster) replica() *Keeper {
	return NewKeeper(Deps{Vault: c, Publisher: c, Names: names, Life: life, Now: c.clock, Log: slog.New(slog.DiscardHandler)})
}

func step(t *testing.T, k *Keeper) {
	t.Helper()
	if err := k.Step(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// trusted says whether somebody who knows bundle takes the replica's certificate at that time.
func trusted(k *Keeper, bundle []byte, now time.Time) error {
	serving, err := k.Certificate(nil)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err = serving.Leaf.Verify(x509.VerifyOptions{DNSName: names[0], Roots: roots, CurrentTime: now})
	return err
}

func TestFirstStepMakesEverything(t *testing.T) {
	world := &cluster{now: began}
	k := world.replica()
	if k.Ready() {
		t.Error("ready before there is a certificate")
	}
	if _, err := k.Certificate(nil); err == nil {
		t.Error("a certificate out of nothing")
	}
	step(t, k)
	if err := trusted(k, world.bundle, world.now); err != nil || !k.Ready() {
		t.Errorf("ready %t: %v", k.Ready(), err)
	}
}

// A year and more, two replicas that look at odd times and restart, an API server that was told of a new
// authority up to half the settling time late: no handshake ever fails.
func TestNobodyIsEverServedACertificateTheyDoNotTrust(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	world := &cluster{now: began}
	replicas := []*Keeper{world.replica(), world.replica()}
	for _, k := range replicas {
		step(t, k)
	}
	type told struct {
		at     time.Time
		bundle []byte
	}
	history := []told{{began, world.bundle}}
	leaves, signers := map[string]bool{}, map[string]bool{}
	for world.now.Before(began.Add(4 * life.Authority)) {
		world.now = world.now.Add(time.Duration(rng.Int63n(int64(life.Settle / 3))))
		which := rng.Intn(2)
		if rng.Intn(200) == 0 {
			replicas[which] = world.replica()
		}
		step(t, replicas[which])
		history = append(history, told{world.now, world.bundle})
		late := history[0]
		for len(history) > 1 && world.now.Sub(history[1].at) > life.Settle/2 {
			history = history[1:]
			late = history[0]
		}
		for i, k := range replicas {
			if err := trusted(k, late.bundle, world.now); err != nil && k.Ready() {
				t.Fatalf("replica %d at %s: %v", i, world.now, err)
			}
		}
		serving, _ := replicas[which].Certificate(nil)
		leaves[serving.Leaf.SerialNumber.String()] = true
		signers[string(serving.Leaf.AuthorityKeyId)] = true
	}
	if len(leaves) < 30 || len(signers) < 4 {
		t.Errorf("%d certificates of %d authorities: too few to have rotated", len(leaves), len(signers))
	}
}

func TestTwoReplicasAtOnceMakeOneAuthority(t *testing.T) {
	for range 20 {
		world := &cluster{now: began}
		var group sync.WaitGroup
		replicas := []*Keeper{world.replica(), world.replica(), world.replica()}
		for _, k := range replicas {
			group.Go(func() {
				if err := k.Step(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if world.saves != 1 {
			t.Errorf("%d authorities were made", world.saves)
		}
		for _, k := range replicas {
			if err := trusted(k, world.bundle, began); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestALookWithNothingDueWritesNothing(t *testing.T) {
	world := &cluster{now: began}
	k := world.replica()
	step(t, k)
	serving, _ := k.Certificate(nil)
	world.now = world.now.Add(life.Serving / 2)
	step(t, k)
	if again, _ := k.Certificate(nil); world.saves != 1 || again != serving {
		t.Errorf("%d saves, same certificate %t", world.saves, again == serving)
	}
}

func TestANewAuthorityWaitsBeforeItSigns(t *testing.T) {
	first, _ := NewAuthority(began, life)
	late := began.Add(life.Authority * 2 / 3).Add(time.Minute)
	held, changed, err := Renew([]Authority{first}, late, life)
	if err != nil || !changed || len(held) != 2 {
		t.Fatalf("%d held, %v", len(held), err)
	}
	if got := Signer(held, late.Add(life.Settle-time.Second), life); !got.Certificate.Equal(first.Certificate) {
		t.Error("signs before it has settled")
	}
	if got := Signer(held, late.Add(life.Settle), life); !got.Certificate.Equal(held[1].Certificate) {
		t.Error("never signs")
	}
	if held, _, _ = Renew(held, first.Certificate.NotAfter, life); len(held) != 1 {
		t.Errorf("an expired authority stays: %d held", len(held))
	}
}

func TestWhileTheAPIServerIsAwayTheCertificateIsRenewed(t *testing.T) {
	world := &cluster{now: began}
	k := world.replica()
	step(t, k)
	world.away = errors.New("away")
	world.now = began.Add(life.Serving)
	if err := k.Step(context.Background()); !errors.Is(err, world.away) {
		t.Errorf("%v", err)
	}
	if err := trusted(k, world.bundle, world.now); err != nil {
		t.Error(err)
	}
	fresh := world.replica()
	if err := fresh.Step(context.Background()); err == nil || fresh.Ready() {
		t.Errorf("ready without having told anybody: %v", err)
	}
}

// Who empties or spoils the Secret costs nothing while a replica remembers.
func TestASpoiledVaultIsWrittenAnew(t *testing.T) {
	for _, spoiled := range []string{"", "no PEM at all"} {
		world := &cluster{now: began}
		k := world.replica()
		step(t, k)
		kept := world.text
		world.text = []byte(spoiled)
		step(t, k)
		if !bytes.Equal(world.text, kept) {
			t.Errorf("after %q other authorities are kept", spoiled)
		}
	}
}

func TestDecodeRefusesHalfAnAuthority(t *testing.T) {
	one, _ := NewAuthority(began, life)
	two, _ := NewAuthority(began, life)
	whole, _ := Encode([]Authority{one, two})
	if held, err := Decode(whole); err != nil || len(held) != 2 || !held[1].Key.Equal(two.Key) {
		t.Fatalf("%d held, %v", len(held), err)
	}
	mixed, _ := Encode([]Authority{{one.Certificate, two.Key}})
	leaf, _ := one.Issue(names, began, life)
	many, _ := Encode([]Authority{one, one, one, one, one, one, one, one, one})
	noAuthority, _ := Encode([]Authority{{leaf.Leaf, one.Key}})
	for name, text := range map[string][]byte{"without key": Bundle([]Authority{one}), "another's key": mixed,
		"a leaf": noAuthority, "too many": many, "cut": whole[:len(whole)-9]} {
		if _, err := Decode(text); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	one, _ := NewAuthority(began, life)
	text, _ := Encode([]Authority{one, one})
	f.Add(text)
	f.Add(Bundle([]Authority{one}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, text []byte) {
		held, err := Decode(text)
		if err != nil {
			return
		}
		if _, err := Encode(held); err != nil {
			t.Error(err)
		}
	})
}
