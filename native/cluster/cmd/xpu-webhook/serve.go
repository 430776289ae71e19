// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"

	"flexai.io/xpu/cluster/webhook"
)

const (
	// maxBody holds two pods of etcd's greatest object (1.5 MiB each), as an update has.
	maxBody = 4 << 20
	// smallBody holds nearly every pod. Who has sent no more than that waits for nobody else.
	smallBody = 64 << 10
	// largeBudget is how much of larger bodies is in memory at a time, whoever sends them.
	largeBudget = maxBody
	// deciding is how many reviews are decoded at a time: what JSON unfolds to is a multiple of it.
	deciding = 16
	// patience is how long a large body waits for its share of the budget. The API server waits 2 s.
	patience = 2 * time.Second
	// slowest is how long a client may take to send a request or to take its answer.
	slowest = 10 * time.Second
)

// answerer turns requests into decisions, within bounds that slow and greedy clients share among
// themselves.
type answerer struct {
	large, turns *semaphore.Weighted
	log          *slog.Logger
}

// reviews answers AdmissionReviews. What is none gets an error that says so, and no answer: with
// failurePolicy Ignore the API server then goes on without us.
func reviews(policy webhook.Policy, log *slog.Logger) http.Handler {
	a := answerer{semaphore.NewWeighted(largeBudget), semaphore.NewWeighted(deciding), log}
	mux := http.NewServeMux()
	mux.Handle("POST /mutate", a.answering(func(body []byte) ([]byte, error) { return webhook.Mutate(body, policy) }))
	mux.Handle("POST /validate", a.answering(webhook.Judge))
	return mux
}

func (a answerer) answering(decide func(body []byte) ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			http.Error(w, "send application/json", http.StatusUnsupportedMediaType)
			return
		}
		body, release, err := a.read(r.Context(), http.MaxBytesReader(w, r.Body, maxBody), r.ContentLength)
		defer release()
		if err != nil {
			http.Error(w, err.Error(), statusOf(err))
			return
		}
		if a.turns.Acquire(r.Context(), 1) != nil {
			return // the client is gone
		}
		answer, err := a.turn(decide, body)
		if err != nil {
			// Not above debug: whoever reaches this port could fill the log.
			a.log.Debug("no review", "from", r.RemoteAddr, "error", err)
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer) // the client is gone; there is nobody to tell
	})
}

// turn gives its place back before the answer is written, which a client can delay, and also where a
// decision panics, which the server survives.
func (a answerer) turn(decide func(body []byte) ([]byte, error), body []byte) ([]byte, error) {
	defer a.turns.Release(1)
	return decide(body)
}

var errBusy = errors.New("too much at once")

func statusOf(err error) int {
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, errBusy):
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest // it broke off
}

// read takes a body into memory. Only what has proved to be large needs a share of the budget, which
// release gives back: a length that was merely announced holds nobody up.
func (a answerer) read(ctx context.Context, body io.Reader, announced int64) ([]byte, func(), error) {
	keep := func() {}
	if announced > maxBody {
		return nil, keep, &http.MaxBytesError{Limit: maxBody}
	}
	head, err := io.ReadAll(io.LimitReader(body, smallBody))
	if err != nil || len(head) < smallBody {
		return head, keep, err
	}
	if announced < 0 {
		announced = maxBody
	}
	waiting, done := context.WithTimeout(ctx, patience)
	defer done()
	if a.large.Acquire(waiting, announced) != nil {
		return nil, keep, errBusy
	}
	rest, err := io.ReadAll(body)
	return append(head, rest...), func() { a.large.Release(announced) }, err
}

// probes answers the kubelet.
func probes(ready func() bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready() {
			http.Error(w, "no certificate that the API server knows, or stopping", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	return mux
}

func server(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: slowest,
		ReadTimeout:       slowest,
		WriteTimeout:      slowest + patience,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
