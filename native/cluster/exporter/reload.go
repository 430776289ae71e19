// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// reloaded is a value read from files, anew whenever one of them changes: secrets and certificates rotate
// under a running exporter. While the new ones can't be read the former value stays.
type reloaded[T any] struct {
	files []string
	parse func(texts [][]byte) (T, error)
	log   *slog.Logger

	mutex sync.Mutex
	stamp string
	value T
}

func newReloaded[T any](files []string, parse func([][]byte) (T, error), log *slog.Logger) (*reloaded[T], error) {
	made := &reloaded[T]{files: files, parse: parse, log: log}
	stamp, err := made.look()
	if err != nil {
		return nil, err
	}
	made.value, err = made.read()
	made.stamp = stamp
	return made, err
}

// look follows links, as a mounted Secret changes by one of them.
func (r *reloaded[T]) look() (string, error) {
	var stamp strings.Builder
	for _, file := range r.files {
		found, err := os.Stat(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&stamp, "%d %s\n", found.Size(), found.ModTime().Format(time.RFC3339Nano))
	}
	return stamp.String(), nil
}

func (r *reloaded[T]) read() (T, error) {
	var texts [][]byte
	for _, file := range r.files {
		text, err := os.ReadFile(file)
		if err != nil {
			var none T
			return none, err
		}
		texts = append(texts, text)
	}
	value, err := r.parse(texts)
	if err != nil {
		return value, fmt.Errorf("%s: %w", strings.Join(r.files, ", "), err)
	}
	return value, nil
}

func (r *reloaded[T]) get() T {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	stamp, err := r.look()
	if err == nil && stamp == r.stamp {
		return r.value
	}
	var value T
	if err == nil {
		value, err = r.read()
	}
	if err != nil {
		if r.stamp != "" {
			r.log.Warn("changed files can't be used; going on with what they held before", "error", err)
		}
		r.stamp = "" // said; looked at again each time
		return r.value
	}
	r.log.Info("read anew", "files", strings.Join(r.files, ", "))
	r.value, r.stamp = value, stamp
	return value
}

// certificates serves a key pair; connections that are open keep the one they began with.
func certificates(certFile, keyFile string, least uint16, log *slog.Logger) (*tls.Config, error) {
	pair, err := newReloaded([]string{certFile, keyFile}, func(texts [][]byte) (*tls.Certificate, error) {
		pair, err := tls.X509KeyPair(texts[0], texts[1])
		return &pair, err
	}, log)
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return &tls.Config{MinVersion: least, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.get(), nil }}, nil
}

// bearer lets in who knows the token of a file. It needs no right at the API server, as TokenReview would.
func bearer(file string, next http.Handler, log *slog.Logger) (http.Handler, error) {
	token, err := newReloaded([]string{file}, func(texts [][]byte) ([sha256.Size]byte, error) {
		text := bytes.TrimSpace(texts[0])
		if len(text) == 0 {
			return [sha256.Size]byte{}, errors.New("the token is empty")
		}
		return sha256.Sum256(text), nil
	}, log)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		// Digests, so that the time taken doesn't tell the token's length either.
		got, want := sha256.Sum256([]byte(given)), token.get()
		if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="xpu-exporter"`)
			http.Error(w, "a bearer token is needed", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}), nil
}
