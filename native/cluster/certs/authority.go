// SPDX-License-Identifier: Apache-2.0

// Package certs keeps a server's TLS certificate valid without anybody's help: an authority of its own,
// replaced before it expires, and certificates signed by it. Time is a parameter everywhere.
package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Lifetimes decide when what is replaced. Everything is, once two thirds of its life are over.
type Lifetimes struct {
	// Authority is how long an authority is valid.
	Authority time.Duration
	// Serving is how long a server's certificate is.
	Serving time.Duration
	// Settle is how long a new authority waits until it signs: until then whoever checks our
	// certificates has heard of it. Many times as long as a replica waits between two looks.
	Settle time.Duration
}

// backdate makes a new certificate valid for whoever's clock is behind.
const backdate = time.Hour

// maxAuthorities: more can't come of rotation, in which two overlap.
const maxAuthorities = 8

// Authority signs servers' certificates.
type Authority struct {
	Certificate *x509.Certificate
	Key         *ecdsa.PrivateKey
}

// NewAuthority makes one, valid from now on.
func NewAuthority(now time.Time, life Lifetimes) (Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Authority{}, err
	}
	template, err := template("xpu-webhook authority of "+now.UTC().Format(time.RFC3339), now, now.Add(life.Authority))
	if err != nil {
		return Authority{}, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	signed, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Authority{}, err
	}
	parsed, err := x509.ParseCertificate(signed)
	return Authority{parsed, key}, err
}

// Issue makes a server's certificate for names. It never outlives its authority.
func (a Authority) Issue(names []string, now time.Time, life Lifetimes) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	until := now.Add(life.Serving)
	if until.After(a.Certificate.NotAfter) {
		until = a.Certificate.NotAfter
	}
	template, err := template(names[0], now, until)
	if err != nil {
		return tls.Certificate{}, err
	}
	template.DNSNames = names
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	signed, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, key.Public(), a.Key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(signed)
	return tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: key, Leaf: leaf}, err
}

func template(name string, now, until time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: until}, nil
}

// due says that two thirds of a certificate's life are over.
func due(certificate *x509.Certificate, now time.Time, life time.Duration) bool {
	return now.After(certificate.NotAfter.Add(-life / 3))
}

// Renew is what should be held from now on, oldest first: expired authorities go, and a new one comes
// while the last still has a third of its life.
func Renew(held []Authority, now time.Time, life Lifetimes) (next []Authority, changed bool, err error) {
	for _, authority := range held {
		if now.Before(authority.Certificate.NotAfter) {
			next = append(next, authority)
		}
	}
	changed = len(next) != len(held)
	if len(next) > 0 && !due(next[len(next)-1].Certificate, now, life.Authority) {
		return next, changed, nil
	}
	fresh, err := NewAuthority(now, life)
	return append(next, fresh), true, err
}

// Signer is the newest authority that has settled, else the oldest.
func Signer(held []Authority, now time.Time, life Lifetimes) Authority {
	for i := len(held) - 1; i > 0; i-- {
		if !now.Before(held[i].Certificate.NotBefore.Add(backdate + life.Settle)) {
			return held[i]
		}
	}
	return held[0]
}

// Bundle is what those who check our certificates must know: every authority's certificate.
func Bundle(held []Authority) []byte {
	var text bytes.Buffer
	for _, authority := range held {
		text.Write(certificatePEM(authority))
	}
	return text.Bytes()
}

func certificatePEM(a Authority) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw})
}

// Encode writes authorities as PEM, each certificate before its key.
func Encode(held []Authority) ([]byte, error) {
	var text bytes.Buffer
	for _, authority := range held {
		key, err := x509.MarshalECPrivateKey(authority.Key)
		if err != nil {
			return nil, err
		}
		text.Write(certificatePEM(authority))
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}))
	}
	return text.Bytes(), nil
}

// Decode reads what Encode wrote; nothing is no authority.
func Decode(text []byte) ([]Authority, error) {
	var held []Authority
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		var certificate, key *pem.Block
		if certificate, rest = pem.Decode(rest); certificate == nil {
			return nil, errors.New("text that is no PEM")
		}
		if key, rest = pem.Decode(rest); key == nil {
			return nil, errors.New("an authority without its key")
		}
		authority, err := decode(certificate, key)
		if err != nil {
			return nil, err
		}
		if held = append(held, authority); len(held) > maxAuthorities {
			return nil, fmt.Errorf("more than %d authorities", maxAuthorities)
		}
	}
	return held, nil
}

func decode(certificate, key *pem.Block) (Authority, error) {
	parsed, err := x509.ParseCertificate(certificate.Bytes)
	if err != nil {
		return Authority{}, fmt.Errorf("an authority's certificate: %w", err)
	}
	private, err := x509.ParseECPrivateKey(key.Bytes)
	if err != nil {
		return Authority{}, fmt.Errorf("an authority's key: %w", err)
	}
	if !parsed.IsCA || !private.PublicKey.Equal(parsed.PublicKey) {
		return Authority{}, errors.New("certificate and key are no authority together")
	}
	return Authority{parsed, private}, nil
}
