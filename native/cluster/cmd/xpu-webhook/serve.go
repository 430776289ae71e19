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
	// maxBody holds two pods of etcd's greatest object (1.5 MiB each, in JSON).
	maxBody = 6 << 20
	// bodyBudget is how much of bodies is in memory at a time, whoever sends them; what JSON unfolds to
	// is a multiple of it.
	bodyBudget = 2 * maxBody
	// patience is how long a request waits for its share of the budget. The API server waits 2 s.
	patience = 2 * time.Second
	// slowest is how long a client may take to send a request or to take its answer.
	slowest = 10 * time.Second
)

type decision func(body []byte) ([]byte, error)

// reviews answers AdmissionReviews. What is none gets an error that says so, and no answer: with
// failurePolicy Ignore the API server then goes on without us.
func reviews(policy webhook.Policy, log *slog.Logger) http.Handler {
	budget := semaphore.NewWeighted(bodyBudget)
	mux := http.NewServeMux()
	mux.Handle("POST /mutate", answering(budget, log, func(body []byte) ([]byte, error) { return webhook.Mutate(body, policy) }))
	mux.Handle("POST /validate", answering(budget, log, webhook.Judge))
	return mux
}

func answering(budget *semaphore.Weighted, log *slog.Logger, decide decision) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			http.Error(w, "send application/json", http.StatusUnsupportedMediaType)
			return
		}
		length := r.ContentLength
		if length > maxBody {
			http.Error(w, "longer than a pod can be", http.StatusRequestEntityTooLarge)
			return
		}
		if length < 0 {
			length = maxBody
		}
		waiting, done := context.WithTimeout(r.Context(), patience)
		defer done()
		if budget.Acquire(waiting, length) != nil {
			http.Error(w, "too much at once", http.StatusServiceUnavailable)
			return
		}
		defer budget.Release(length)
		body, err := read(w, r)
		var tooLong *http.MaxBytesError
		switch {
		case errors.As(err, &tooLong):
			http.Error(w, "longer than a pod can be", http.StatusRequestEntityTooLarge)
			return
		case err != nil:
			http.Error(w, "the request broke off", http.StatusBadRequest)
			return
		}
		answer, err := decide(body)
		if err != nil {
			// Not above debug: whoever reaches this port could fill the log.
			log.Debug("no review", "from", r.RemoteAddr, "error", err)
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer) // the client is gone; there is nobody to tell
	})
}

// read takes the body into memory of its announced length, where one is.
func read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	limited := http.MaxBytesReader(w, r.Body, maxBody)
	if r.ContentLength < 0 {
		return io.ReadAll(limited)
	}
	body := make([]byte, r.ContentLength)
	_, err := io.ReadFull(limited, body)
	return body, err
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
