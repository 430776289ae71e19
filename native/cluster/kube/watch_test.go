// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

const patient = 20 * time.Second

func until(t *testing.T, what string, true func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patient); !true(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after %s: %s", patient, what)
		}
	}
}

// A pod of this node is known by its UID as long as it is there, and costs a start no call.
func TestPodsOfTheNodeAreKnownWithoutAsking(t *testing.T) {
	events := make(chan string)
	var gets, lists atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		switch {
		case r.URL.Path != "/api/v1/pods":
			gets.Add(1)
			reply(w, 404, `{}`)
		case query.Get("fieldSelector") != "spec.nodeName=n1":
			t.Errorf("asked for pods of %q", query.Get("fieldSelector"))
			reply(w, 403, `{}`)
		case query.Get("watch") == "":
			lists.Add(1)
			reply(w, 200, fmt.Sprintf(`{"apiVersion":"v1","kind":"PodList","metadata":{"resourceVersion":"5"},"items":[%s]}`, podText))
		default:
			w.Header().Set("Content-Type", "application/json")
			w.(http.Flusher).Flush()
			for event := range events {
				io.WriteString(w, event)
				w.(http.Flusher).Flush()
			}
		}
	}))
	t.Cleanup(server.Close)
	pods, err := NewNodePods(&rest.Config{Host: server.URL}, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, known := pods.Known("u1"); known {
		t.Error("a pod is known before anybody was asked")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); pods.Run(ctx) }()
	t.Cleanup(func() { close(events); cancel(); <-done })

	until(t, "the listed pod is known", func() bool { _, known := pods.Known("u1"); return known })
	pod, _ := pods.Known("u1")
	if pod.UID != "u1" || pod.Name != "p" || pod.Namespace != "n" || pod.Preference == "" {
		t.Errorf("known is %+v", pod)
	}
	const other = `{"type":"ADDED","object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q","namespace":"n","uid":"u2","resourceVersion":"6"}}}`
	events <- other
	until(t, "the added pod is known", func() bool { _, known := pods.Known("u2"); return known })
	events <- `{"type":"DELETED","object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q","namespace":"n","uid":"u2","resourceVersion":"7"}}}`
	until(t, "the deleted pod is forgotten", func() bool { _, known := pods.Known("u2"); return !known })
	if gets.Load() != 0 || lists.Load() != 1 {
		t.Errorf("%d pods were asked for singly, %d times all", gets.Load(), lists.Load())
	}
}
