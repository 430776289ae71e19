// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"flexai.io/xpu/cluster/webhook/apitest"
)

const create = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u-1","operation":"CREATE",` +
	`"resource":{"group":"","version":"v1","resource":"pods"},"object":{"metadata":{"name":"p"},"spec":{"containers":[{"name":"main",` +
	`"resources":{"limits":{"huawei.com/vgpu-number":"2","huawei.com/vgpu-cores":"20"}}}]}}}}`

// until waits for what must come, however busy the machine is.
func until(t testing.TB, what string, reached func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !reached(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// replica is one running webhook.
type replica struct {
	address, probes string
	stop            context.CancelFunc
	ended           chan error
}

// site is an API server and the clock of everything.
type site struct {
	api   *apitest.Server
	http  *httptest.Server
	ahead atomic.Int64
	// wait is what a replica does between SIGTERM and the end of its answers.
	wait func(time.Duration)
}

func (s *site) now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

func newSite(t testing.TB) *site {
	s := &site{api: apitest.New("xpu", "xpu-webhook-authority", "xpu-webhook"), wait: func(time.Duration) {}}
	s.http = httptest.NewServer(s.api)
	t.Cleanup(s.http.Close)
	return s
}

func listen(t testing.TB) net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func (s *site) start(t testing.TB, flags ...string) *replica {
	t.Helper()
	cfg, err := parse(append([]string{"--namespace=xpu", "--look-every=10ms", "--log-level=error"}, flags...),
		func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := newAPI(&rest.Config{Host: s.http.URL, QPS: -1}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	d := deps{vault: cluster, publisher: cluster, reviews: listen(t), probes: listen(t),
		now: s.now, wait: s.wait, log: slog.New(slog.DiscardHandler)}
	r := &replica{d.reviews.Addr().String(), d.probes.Addr().String(), stop, make(chan error, 1)}
	go func() { r.ended <- run(ctx, cfg, d) }()
	t.Cleanup(func() {
		stop()
		if err, open := <-r.ended; open && err != nil {
			t.Error(err)
		}
	})
	return r
}

// ready says what the kubelet hears.
func (r *replica) ready() bool {
	response, err := http.Get("http://" + r.probes + "/readyz")
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// client trusts what the API server would: the published bundle, at the time of the site.
func (s *site) client(r *replica) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.api.Bundles()[0])
	transport := &http.Transport{ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "xpu-webhook.xpu.svc", Time: s.now},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, r.address)
		}}
	return &http.Client{Transport: transport}
}

// post sends one request of a client's and gives status and body.
func post(client *http.Client, path, kind string, body io.Reader) (int, string, error) {
	response, err := client.Post("https://xpu-webhook.xpu.svc"+path, kind, body)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

func TestAReviewIsAnsweredOverTLSThatTheAPIServerTrusts(t *testing.T) {
	s := newSite(t)
	r := s.start(t)
	until(t, "ready", r.ready)
	for _, bundle := range s.api.Bundles() {
		if !bytes.Equal(bundle, s.api.Bundles()[0]) || len(bundle) == 0 {
			t.Errorf("bundle %q", bundle)
		}
	}
	code, text, err := post(s.client(r), "/mutate", "application/json; charset=utf-8", strings.NewReader(create))
	if err != nil || code != 200 || !strings.Contains(text, `"allowed":true`) || !strings.Contains(text, `"patchType":"JSONPatch"`) {
		t.Errorf("%d %s %v", code, text, err)
	}
	code, text, err = post(s.client(r), "/validate", "application/json", strings.NewReader(create))
	if err != nil || code != 200 || !strings.Contains(text, "that the webhook has not seen") {
		t.Errorf("%d %s %v", code, text, err)
	}
}

func TestNothingIsWrittenWhileNothingIsDue(t *testing.T) {
	s := newSite(t)
	a, b := s.start(t), s.start(t)
	until(t, "both ready", func() bool { return a.ready() && b.ready() })
	before := s.api.Writes()
	time.Sleep(100 * time.Millisecond)
	if after := s.api.Writes(); after != before || before > 6 {
		t.Errorf("%d writes until ready, %d later", before, after)
	}
}

// Years go by in seconds: two replicas, one client that keeps its connections and one that makes new ones.
func TestCertificatesRotateUnderLoadWithoutARestart(t *testing.T) {
	s := newSite(t)
	replicas := []*replica{s.start(t), s.start(t)}
	until(t, "both ready", func() bool { return replicas[0].ready() && replicas[1].ready() })
	first := s.api.Bundles()[0]
	serials := map[string]bool{}
	for range 30 {
		s.ahead.Add(int64(24 * 24 * time.Hour))
		// Two looks of both replicas: what is due is done.
		for range 2 {
			for _, r := range replicas {
				until(t, "a certificate of today", func() bool {
					client := s.client(r)
					defer client.CloseIdleConnections()
					response, err := client.Post("https://xpu-webhook.xpu.svc/mutate", "application/json", strings.NewReader(create))
					if err != nil {
						return false
					}
					defer response.Body.Close()
					leaf := response.TLS.PeerCertificates[0]
					serials[leaf.SerialNumber.String()] = true
					return response.StatusCode == 200 && s.now().Before(leaf.NotAfter.Add(-9*24*time.Hour))
				})
			}
		}
	}
	if len(serials) < 40 {
		t.Errorf("%d certificates in two years", len(serials))
	}
	if bytes.Contains(s.api.Bundles()[0], first) {
		t.Error("the first authority is published still, after two years")
	}
}

func TestWhatIsNoReviewIsRefused(t *testing.T) {
	s := newSite(t)
	r := s.start(t)
	until(t, "ready", r.ready)
	client := s.client(r)
	huge := bytes.Repeat([]byte(" "), maxBody+1)
	for name, test := range map[string]struct {
		path, kind string
		body       io.Reader
		want       int
	}{
		"another path":            {"/", "application/json", strings.NewReader(create), 404},
		"another type":            {"/mutate", "application/yaml", strings.NewReader(create), 415},
		"no review":               {"/mutate", "application/json", strings.NewReader("{}"), 400},
		"binary":                  {"/validate", "application/json", bytes.NewReader([]byte{0, 255, 1}), 400},
		"too long":                {"/mutate", "application/json", bytes.NewReader(huge), 413},
		"too long, length untold": {"/mutate", "application/json", io.MultiReader(bytes.NewReader(huge)), 413},
		"nested without end":      {"/mutate", "application/json", strings.NewReader(strings.Repeat("[", 1<<20)), 400},
	} {
		if code, text, err := post(client, test.path, test.kind, test.body); err != nil || code != test.want {
			t.Errorf("%s: %d %.200s %v, want %d", name, code, text, err, test.want)
		}
	}
	if code, _, err := post(client, "/mutate", "application/json", strings.NewReader(create)); err != nil || code != 200 {
		t.Errorf("afterwards: %d %v", code, err)
	}
}

// podMemory is the limit that the chart gives the pod.
const podMemory = 320 << 20

// Bodies that unfold to many times their length, all at once.
func TestAFloodIsRefusedOrServedWithinBoundedMemory(t *testing.T) {
	s := newSite(t)
	r := s.start(t)
	until(t, "ready", r.ready)
	number := 0
	unfolding := string(replaceAll([]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u",`+
		`"operation":"CREATE","resource":{"resource":"pods"},"object":{"metadata":{"annotations":{`+strings.Repeat(`"%d":"",`, 340_000)+
		`"":""}},"spec":{"containers":[{"resources":{"limits":{"":1}}}]}}}}`), &number))
	// As the chart sets GOMEMLIMIT: beyond it the collector works all the time, so what is measured is what is held.
	before := debug.SetMemoryLimit(podMemory)
	defer debug.SetMemoryLimit(before)
	peak := watchHeap(t)
	codes := sync.Map{}
	var group sync.WaitGroup
	empty := `{"request":{"object":{"spec":{"containers":[{}` + strings.Repeat(",{}", maxBody/3-64) + `]}}}}`
	for i := range 32 {
		group.Go(func() {
			client := s.client(r)
			defer client.CloseIdleConnections()
			code, _, err := post(client, "/mutate", "application/json", strings.NewReader([]string{unfolding, empty}[i%2]))
			codes.Store(fmt.Sprint(code, err), true)
		})
	}
	group.Wait()
	codes.Range(func(key, _ any) bool {
		// 0 is a request that was cut off, as one that this machine took too long over is.
		if found := key.(string); !strings.HasPrefix(found, "200 ") && !strings.HasPrefix(found, "400 ") && !strings.HasPrefix(found, "503 ") && !strings.HasPrefix(found, "0 ") {
			t.Errorf("answered with %s", found)
		}
		return true
	})
	if got := peak(); got > podMemory {
		t.Errorf("the heap grew to %d MiB", got>>20)
	}
	if code, _, err := post(s.client(r), "/mutate", "application/json", strings.NewReader(create)); err != nil || code != 200 {
		t.Errorf("afterwards: %d %v", code, err)
	}
}

// Clients that never finish: their head, their body, or a body large enough to use up the budget.
func TestSlowClientsHoldNoOrdinaryPodUp(t *testing.T) {
	s := newSite(t)
	r := s.start(t)
	until(t, "ready", r.ready)
	for i := range 60 {
		slow, err := tls.Dial("tcp", r.address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		_, _ = io.WriteString(slow, "POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
		if i%3 > 0 {
			_, _ = fmt.Fprintf(slow, "Content-Length: %d\r\n\r\n{", maxBody)
		}
		if i%3 > 1 {
			_, _ = io.WriteString(slow, strings.Repeat(" ", smallBody))
		}
	}
	for range 20 {
		if code, _, err := post(s.client(r), "/mutate", "application/json", strings.NewReader(create)); err != nil || code != 200 {
			t.Errorf("%d %v", code, err)
		}
	}
}

// replaceAll numbers the keys, so that none repeats.
func replaceAll(text []byte, number *int) []byte {
	var out bytes.Buffer
	for part := range bytes.SplitSeq(text, []byte("%d")) {
		if out.Len() > 0 {
			fmt.Fprintf(&out, "%x", *number)
			*number++
		}
		out.Write(part)
	}
	return out.Bytes()
}

// watchHeap starts to watch what is in use, and ends with the most it saw.
func watchHeap(t *testing.T) func() uint64 {
	t.Helper()
	over, most := make(chan bool), make(chan uint64)
	go func() {
		var top uint64
		for {
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			top = max(top, stats.HeapInuse)
			select {
			case <-over:
				most <- top
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(over); return <-most }
}

// Told to stop it is no longer ready, and answers whoever has not heard of that yet.
func TestStoppingLosesNoReview(t *testing.T) {
	s := newSite(t)
	told := make(chan bool)
	s.wait = func(time.Duration) { <-told }
	r := s.start(t)
	until(t, "ready", r.ready)
	client := s.client(r)
	var answered, early atomic.Int64
	var group sync.WaitGroup
	leave := make(chan bool)
	for range 20 {
		group.Go(func() {
			for {
				select {
				case <-leave:
					return
				default:
				}
				if code, _, err := post(client, "/mutate", "application/json", strings.NewReader(create)); err != nil || code != 200 {
					early.Add(1)
					return
				}
				answered.Add(1)
			}
		})
	}
	until(t, "load", func() bool { return answered.Load() > 100 })
	r.stop()
	until(t, "not ready", func() bool { return !r.ready() })
	before := answered.Load()
	until(t, "answers while draining", func() bool { return answered.Load() > before })
	close(leave)
	group.Wait()
	close(told)
	if early.Load() > 0 {
		t.Errorf("%d reviews were lost", early.Load())
	}
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	close(r.ended)
}

func TestNotReadyWithoutTheSecretAndSaysWhatToDo(t *testing.T) {
	s := newSite(t)
	r := s.start(t, "--secret=other")
	time.Sleep(50 * time.Millisecond)
	if r.ready() {
		t.Error("ready")
	}
	response, err := http.Get("http://" + r.probes + "/healthz")
	if err != nil || response.StatusCode != 200 {
		t.Errorf("alive: %v %v", response, err)
	}
}

func TestParseNamesWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no namespace":      {nil, "pass --namespace or set POD_NAMESPACE"},
		"unknown level":     {[]string{"--namespace=x", "--log-level=loud"}, `--log-level "loud" is none of`},
		"argument":          {[]string{"--namespace=x", "more"}, `unexpected argument "more"`},
		"never looks":       {[]string{"--namespace=x", "--look-every=0s"}, "0 and --look-every"},
		"settles too early": {[]string{"--namespace=x", "--authority-settle=1m"}, "twice --look-every and --authority-settle: 2m0s is not less than 1m0s"},
		"outlives":          {[]string{"--namespace=x", "--certificate-validity=9000h"}, "--certificate-validity and --authority-validity"},
	} {
		if _, err := parse(test.args, func(string) string { return "" }); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg, err := parse(nil, func(string) string { return "xpu" })
	if err != nil || cfg.names()[0] != "xpu-webhook.xpu.svc" || cfg.policy.Scheduler != "volcano" || cfg.policy.RuntimeClass != "flexai-xpu" {
		t.Errorf("%+v, %v", cfg, err)
	}
}
