// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestWhatIsNoReviewOfAPodIsAnError(t *testing.T) {
	good := string(reviewOf(t, "CREATE", podOf(asking("main", amounts{"vgpu-number": "1"})), nil))
	for name, test := range map[string]struct{ body, want string }{
		"nothing":               {"", "not an AdmissionReview"},
		"no JSON":               {"\x00\xff", "not an AdmissionReview"},
		"a list":                {"[]", "not an AdmissionReview"},
		"cut short":             {good[:len(good)/2], "not an AdmissionReview"},
		"old version":           {strings.Replace(good, "k8s.io/v1\"", "k8s.io/v1beta1\"", 1), `"AdmissionReview" of "admission.k8s.io/v1beta1" is not spoken here; send AdmissionReview of admission.k8s.io/v1`},
		"other kind":            {strings.Replace(good, "AdmissionReview", "Review", 1), "is not spoken here"},
		"no request":            {`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`, "without request or uid"},
		"no uid":                {strings.Replace(good, `"u-1"`, `""`, 1), "without request or uid"},
		"other things":          {strings.Replace(good, `"resource":"pods"`, `"resource":"nodes"`, 1), `not "nodes"`},
		"no pod":                {`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","resource":{"resource":"pods"}}}`, "no pod in it"},
		"containers of no kind": {`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","resource":{"resource":"pods"},"object":{"spec":{"containers":{}}}}}`, "cannot unmarshal object"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, decide := range []func([]byte) ([]byte, error){Judge, func(b []byte) ([]byte, error) { return Mutate(b, site) }} {
				if _, err := decide([]byte(test.body)); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, want %q", err, test.want)
				}
			}
		})
	}
}

// Kubernetes' own parser multiplies an exponent out; these would keep it busy for minutes.
func TestAbsurdAmountsAreRefusedUnread(t *testing.T) {
	done := make(chan bool)
	go func() {
		defer close(done)
		for _, text := range []string{"1e2147483647", "0e2147483647", "0E-999999999", strings.Repeat("9", 1<<20), "", "NaN", "1e", "--1", "1Ei1"} {
			if amount, ok := parse(text); ok {
				t.Errorf("%.20q is read as %d", text, amount)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("still reading")
	}
}

func FuzzReview(f *testing.F) {
	pods := []string{`{}`, `null`, `{"metadata":{"annotations":{"flexai.io/vgpu-shape":"{\"a\":{\"number\":2,\"cores\":9223372036854775807}}"}}}`,
		`{"spec":{"containers":[{"name":"a","resources":{"limits":{"huawei.com/vgpu-number":2,"huawei.com/vgpu-memory.1Gi":"3"}}}]}}`,
		`{"spec":{"containers":[null,{"resources":{"limits":null,"requests":{"huawei.com/vgpu-number":"1e9","huawei.com/vgpu-type./~":{}}}}]}}`}
	for _, pod := range pods {
		f.Add([]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","resource":{"resource":"pods"},"object":` + pod + `}}`))
		f.Add([]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"UPDATE","resource":{"resource":"pods"},"object":` + pod + `,"oldObject":` + pod + `}}`))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, decide := range []func([]byte) ([]byte, error){Judge, func(b []byte) ([]byte, error) { return Mutate(b, site) }} {
			if answer, err := decide(body); err == nil && !json.Valid(answer) {
				t.Errorf("%q answers %q", body, answer)
			}
		}
	})
}
