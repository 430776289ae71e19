// SPDX-License-Identifier: Apache-2.0

// Package apitest is an API server as far as the webhook needs one: its Secret and its two webhook
// configurations, with versions that are checked. For tests and benchmarks.
package apitest

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"sync"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Server answers for one Secret and both configurations of one name.
type Server struct {
	mu         sync.Mutex
	secret     corev1.Secret
	mutating   admissionregistrationv1.MutatingWebhookConfiguration
	validating admissionregistrationv1.ValidatingWebhookConfiguration
	version    int
	writes     int
}

// New is the cluster right after the chart came: an empty Secret, webhooks without a bundle.
func New(namespace, secret, configuration string) *Server {
	s := &Server{version: 1}
	s.secret.TypeMeta = metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}
	s.secret.Namespace, s.secret.Name, s.secret.ResourceVersion = namespace, secret, "1"
	registration := admissionregistrationv1.SchemeGroupVersion.String()
	s.mutating.TypeMeta = metav1.TypeMeta{Kind: "MutatingWebhookConfiguration", APIVersion: registration}
	s.validating.TypeMeta = metav1.TypeMeta{Kind: "ValidatingWebhookConfiguration", APIVersion: registration}
	s.mutating.Name, s.validating.Name = configuration, configuration
	s.mutating.Webhooks = []admissionregistrationv1.MutatingWebhook{{Name: "mutate.vgpu.flexai.io"}}
	s.validating.Webhooks = []admissionregistrationv1.ValidatingWebhook{{Name: "validate.vgpu.flexai.io"}}
	return s
}

// Bundles are the caBundle of every webhook.
func (s *Server) Bundles() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return [][]byte{s.mutating.Webhooks[0].ClientConfig.CABundle, s.validating.Webhooks[0].ClientConfig.CABundle}
}

// Writes is how often something was changed.
func (s *Server) Writes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	const registration = "/apis/admissionregistration.k8s.io/v1/"
	switch r.Method + " " + r.URL.Path {
	case "GET /api/v1/namespaces/" + s.secret.Namespace + "/secrets/" + s.secret.Name:
		answer(w, http.StatusOK, s.secret)
	case "PUT /api/v1/namespaces/" + s.secret.Namespace + "/secrets/" + s.secret.Name:
		s.replaceSecret(w, body)
	case "GET " + registration + "mutatingwebhookconfigurations/" + s.mutating.Name:
		answer(w, http.StatusOK, s.mutating)
	case "GET " + registration + "validatingwebhookconfigurations/" + s.validating.Name:
		answer(w, http.StatusOK, s.validating)
	case "PATCH " + registration + "mutatingwebhookconfigurations/" + s.mutating.Name:
		s.patched(w, r, body, func(name string) *[]byte {
			return only(name, s.mutating.Webhooks[0].Name, &s.mutating.Webhooks[0].ClientConfig.CABundle)
		})
	case "PATCH " + registration + "validatingwebhookconfigurations/" + s.validating.Name:
		s.patched(w, r, body, func(name string) *[]byte {
			return only(name, s.validating.Webhooks[0].Name, &s.validating.Webhooks[0].ClientConfig.CABundle)
		})
	default:
		status(w, http.StatusForbidden, metav1.StatusReasonForbidden)
	}
}

func (s *Server) replaceSecret(w http.ResponseWriter, body []byte) {
	var given corev1.Secret
	if json.Unmarshal(body, &given) != nil {
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	if given.ResourceVersion != s.secret.ResourceVersion {
		status(w, http.StatusConflict, metav1.StatusReasonConflict)
		return
	}
	s.version++
	s.writes++
	s.secret.Data, s.secret.ResourceVersion = given.Data, strconv.Itoa(s.version)
	answer(w, http.StatusOK, s.secret)
}

// patched takes bundles by the webhooks' names, all that a strategic merge from us holds.
func (s *Server) patched(w http.ResponseWriter, r *http.Request, body []byte, bundle func(name string) *[]byte) {
	var patch struct {
		Webhooks []struct {
			Name         string
			ClientConfig struct{ CABundle []byte }
		}
	}
	if r.Header.Get("Content-Type") != "application/strategic-merge-patch+json" || json.Unmarshal(body, &patch) != nil {
		status(w, http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType)
		return
	}
	for _, hook := range patch.Webhooks {
		if into := bundle(hook.Name); into != nil {
			*into = hook.ClientConfig.CABundle
			s.writes++
		}
	}
	answer(w, http.StatusOK, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess})
}

func only(name, ours string, bundle *[]byte) *[]byte {
	if name != ours {
		return nil
	}
	return bundle
}

func status(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	answer(w, code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status: metav1.StatusFailure, Code: int32(code), Reason: reason})
}

func answer(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // the client is gone; there is nobody to tell
}
