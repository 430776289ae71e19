// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// ErrConflict says that another replica wrote first.
var ErrConflict = errors.New("changed by another replica meanwhile")

// Vault keeps the authorities for all replicas.
type Vault interface {
	// Load returns what is kept, nothing at first, and its version.
	Load(ctx context.Context) (text []byte, version string, err error)
	// Save replaces what has that version still, else it is ErrConflict.
	Save(ctx context.Context, text []byte, version string) error
}

// Publisher tells those who check our certificates.
type Publisher interface {
	Publish(ctx context.Context, bundle []byte) error
}

// Deps is the world of a keeper.
type Deps struct {
	Vault     Vault
	Publisher Publisher
	Names     []string
	Life      Lifetimes
	Now       func() time.Time
	Log       *slog.Logger
}

// Keeper holds one replica's certificate. All replicas do the same: the vault decides who was first, and
// each replica's own certificate never leaves its memory.
type Keeper struct {
	Deps
	held    []Authority
	signer  Authority
	serving atomic.Pointer[tls.Certificate]
}

// NewKeeper has no certificate before its first Step.
func NewKeeper(deps Deps) *Keeper { return &Keeper{Deps: deps} }

// Ready says that there is a certificate, and that those who check it were told.
func (k *Keeper) Ready() bool { return k.serving.Load() != nil }

// Certificate is for tls.Config: a new one is in effect with the next handshake.
func (k *Keeper) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if serving := k.serving.Load(); serving != nil {
		return serving, nil
	}
	return nil, errors.New("no certificate yet")
}

// attempts: as often another replica may be first in one step.
const attempts = 5

// Step looks once and does what is due. Broken off anywhere, the next step goes on. After an error the
// certificate is still renewed from what was known.
func (k *Keeper) Step(ctx context.Context) error {
	err := ErrConflict
	for try := 0; try < attempts && errors.Is(err, ErrConflict); try++ {
		err = k.settle(ctx)
	}
	if len(k.held) == 0 {
		return err
	}
	return errors.Join(err, k.refresh())
}

// settle brings vault, memory and the checkers to the same authorities, in this order: nobody signs
// with one that the checkers don't know.
func (k *Keeper) settle(ctx context.Context) error {
	text, version, err := k.Vault.Load(ctx)
	if err != nil {
		return err
	}
	kept, err := Decode(text)
	if err != nil {
		k.Log.Warn("the kept authorities can't be read; going on with those in memory", "error", err)
	}
	if len(kept) == 0 {
		kept = k.held
	}
	held, _, err := Renew(kept, k.Now(), k.Life)
	if err != nil {
		return err
	}
	next, err := Encode(held)
	if err != nil {
		return err
	}
	if !bytes.Equal(next, text) {
		if err := k.Vault.Save(ctx, next, version); err != nil {
			return err
		}
		k.Log.Info("authorities changed", "held", len(held), "until", held[len(held)-1].Certificate.NotAfter)
	}
	if err := k.Publisher.Publish(ctx, Bundle(held)); err != nil {
		return err
	}
	k.held = held
	return nil
}

// refresh replaces the certificate when it is due or its authority no longer signs.
func (k *Keeper) refresh() error {
	now := k.Now()
	signer := Signer(k.held, now, k.Life)
	if serving := k.serving.Load(); serving != nil && signer.Certificate.Equal(k.signer.Certificate) &&
		!due(serving.Leaf, now, k.Life.Serving) {
		return nil
	}
	issued, err := signer.Issue(k.Names, now, k.Life)
	if err != nil {
		return fmt.Errorf("signing a certificate: %w", err)
	}
	k.signer = signer
	k.serving.Store(&issued)
	k.Log.Info("certificate changed", "until", issued.Leaf.NotAfter)
	return nil
}

// Run steps until ctx ends; after an error it waits a fraction of the time.
func (k *Keeper) Run(ctx context.Context, every time.Duration) {
	for ctx.Err() == nil {
		wait := every
		if err := k.Step(ctx); err != nil && ctx.Err() == nil {
			wait = every / 10
			k.Log.Warn("certificates not looked after; trying again", "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}
