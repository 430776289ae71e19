// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"flexai.io/xpu/cluster/agent"
)

func TestAnEvictionIsOfOnePodAndRespectsBudgets(t *testing.T) {
	calls := 0
	client := api(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		var eviction struct {
			APIVersion, Kind string
			DeleteOptions    struct{ Preconditions struct{ UID string } }
		}
		if err := json.NewDecoder(r.Body).Decode(&eviction); err != nil || eviction.Kind != "Eviction" ||
			eviction.APIVersion != "policy/v1" || eviction.DeleteOptions.Preconditions.UID != "u1" || r.Method != "POST" {
			t.Errorf("%s %+v, %v", r.Method, eviction, err)
		}
		status := func(code int, reason string) {
			w.Header().Set("Retry-After", "1")
			reply(w, code, `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"`+reason+`","code":`+map[int]string{404: "404", 409: "409", 429: "429"}[code]+`}`)
		}
		switch r.URL.Path {
		case "/api/v1/namespaces/n/pods/goes/eviction":
			reply(w, 201, `{"apiVersion":"v1","kind":"Status","status":"Success"}`)
		case "/api/v1/namespaces/n/pods/gone/eviction":
			status(404, "NotFound")
		case "/api/v1/namespaces/n/pods/another/eviction":
			status(409, "Conflict")
		case "/api/v1/namespaces/n/pods/guarded/eviction":
			status(429, "TooManyRequests")
		default:
			t.Errorf("path %s", r.URL.Path)
		}
	})
	evict := func(name string) error {
		return client.Evict(context.Background(), agent.Pod{UID: "u1", Namespace: "n", Name: name})
	}
	if err := evict("goes"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"gone", "another"} {
		if err := evict(name); !errors.Is(err, agent.ErrNoPod) {
			t.Errorf("%s: %v", name, err)
		}
	}
	before := calls
	if err := evict("guarded"); !apierrors.IsTooManyRequests(err) || calls != before+1 {
		t.Errorf("%v after %d calls", err, calls-before)
	}
}

func TestTheEventSaysWhoWhyAndWhere(t *testing.T) {
	var event corev1.Event
	client := api(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.URL.Path != "/api/v1/namespaces/n/events" {
			t.Errorf("%s %s", r.Method, r.URL.Path)
		}
		if err := json.NewDecoder(r.Body).Decode(&event); err != nil {
			t.Error(err)
		}
		reply(w, 201, `{"apiVersion":"v1","kind":"Event"}`)
	})
	pod := agent.Pod{UID: "u1", Namespace: "n", Name: "p"}
	if err := client.Warn(context.Background(), pod, "NoRoomForSlice", strings.Repeat("é", 2000)); err != nil {
		t.Fatal(err)
	}
	of := event.InvolvedObject
	if of.Kind != "Pod" || of.Name != "p" || of.UID != "u1" || event.Source.Host != "node-1" || event.Reason != "NoRoomForSlice" ||
		event.Type != "Warning" || event.GenerateName != "p." || event.FirstTimestamp.IsZero() {
		t.Errorf("%+v", event)
	}
	if len(event.Message) > maxMessage || !utf8.ValidString(event.Message) || !strings.HasSuffix(event.Message, cut) {
		t.Errorf("a message of %d bytes", len(event.Message))
	}
}
