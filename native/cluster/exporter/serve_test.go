// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flexai.io/xpu/cluster/vxpu"
)

// served is a running exporter.
type served struct {
	url    string
	client *http.Client
}

func settings() Settings {
	return Settings{Address: "127.0.0.1", Concurrency: 5, ConnectionsEach: 100, ConnectionsAll: 100, Requests: 1000, Seconds: 1,
		LeastTLS: tls.VersionTLS12, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

func start(t *testing.T, s Settings, source Source) served {
	t.Helper()
	collector, _ := collect(t, source, 0)
	registry, err := Registry(collector, "gpu", "1")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := s.Listen() // port 0: any
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, listener, registry) }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	scheme := map[bool]string{false: "http://", true: "https://"}[s.CertFile != ""]
	return served{scheme + listener.Addr().String(), &http.Client{Transport: transport}}
}

func (s served) get(t *testing.T, path string, headers ...string) (int, string) {
	t.Helper()
	request, err := http.NewRequest("GET", s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	answer, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func TestPaths(t *testing.T) {
	s := start(t, settings(), &plugin{node: vxpu.Node{"GPU-0": aCard("GPU-0", 2)}})
	for path, want := range map[string]string{"/metrics": "xpu_vgpu_num", "/healthz": "ok\n", "/": "/metrics"} {
		if code, text := s.get(t, path); code != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if code, _ := s.get(t, "/etc/passwd"); code != 404 {
		t.Errorf("another path: %d", code)
	}
}

func TestATakenPortIsOneClearError(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := settings()
	s.Port = listener.Addr().(*net.TCPAddr).Port
	if _, err := s.Listen(); err == nil || !strings.Contains(err.Error(), "is taken") || !strings.Contains(err.Error(), "--port") {
		t.Error(err)
	}
}

// keyPair writes a certificate and its key, as a rotation does: by renaming over what was there.
func keyPair(t *testing.T, directory, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(directory, "tls.crt"), filepath.Join(directory, "tls.key")
	replace(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	replace(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	return certFile, keyFile
}

func replace(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// subject is whom a new connection finds, with at most this version of TLS.
func (s served) subject(most uint16) (string, error) {
	connection, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), &tls.Config{InsecureSkipVerify: true, MaxVersion: most})
	if err != nil {
		return "", err
	}
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

func TestARotatedCertificateIsServed(t *testing.T) {
	directory := t.TempDir()
	with := settings()
	with.CertFile, with.KeyFile = keyPair(t, directory, "first")
	s := start(t, with, &plugin{node: vxpu.Node{}})
	if name, err := s.subject(0); err != nil || name != "first" {
		t.Fatalf("%q, %v", name, err)
	}
	keyPair(t, directory, "second")
	if name, err := s.subject(0); err != nil || name != "second" {
		t.Errorf("after rotation: %q, %v", name, err)
	}
	replace(t, with.CertFile, "half a cert")
	if name, err := s.subject(0); err != nil || name != "second" {
		t.Errorf("with a broken file: %q, %v", name, err)
	}
	os.Remove(with.CertFile)
	if name, err := s.subject(0); err != nil || name != "second" {
		t.Errorf("with no file: %q, %v", name, err)
	}
	keyPair(t, directory, "third")
	if name, err := s.subject(0); err != nil || name != "third" {
		t.Errorf("repaired: %q, %v", name, err)
	}
	if code, text := s.get(t, "/metrics"); code != 200 || !strings.Contains(text, "xpu_exporter_up 1") {
		t.Errorf("%d %s", code, text)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	with := settings()
	with.CertFile, with.KeyFile = keyPair(t, t.TempDir(), "x")
	s := start(t, with, &plugin{})
	if _, err := s.subject(tls.VersionTLS11); err == nil {
		t.Error("TLS 1.1 was taken")
	}
	if _, err := s.subject(tls.VersionTLS12); err != nil {
		t.Error(err)
	}
}

func TestBrokenCertificatesAreAnErrorAtStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	replace(t, file, "no key pair")
	with := settings()
	with.CertFile, with.KeyFile = file, file
	listener, err := with.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	registry, _ := Registry(nil, "npu", "1")
	if err := with.Serve(context.Background(), listener, registry); err == nil || !strings.Contains(err.Error(), file) {
		t.Error(err)
	}
}

func TestTheTokenGuardsMetrics(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	replace(t, file, "first\n")
	with := settings()
	with.TokenFile = file
	s := start(t, with, &plugin{node: vxpu.Node{}})
	for header, want := range map[string]int{"": 401, "Bearer": 401, "Bearer second": 401, "Basic first": 401, "first": 401,
		"Bearer first": 200, "bearer first": 200} {
		if code, text := s.get(t, "/metrics", "Authorization", header); code != want {
			t.Errorf("%q: %d %s, want %d", header, code, text, want)
		}
	}
	if code, _ := s.get(t, "/healthz"); code != 200 {
		t.Errorf("the kubelet has no token: %d", code)
	}
	replace(t, file, "second, longer")
	if code, _ := s.get(t, "/metrics", "Authorization", "Bearer first"); code != 401 {
		t.Errorf("the old token after rotation: %d", code)
	}
	if code, _ := s.get(t, "/metrics", "Authorization", "Bearer second, longer"); code != 200 {
		t.Errorf("the new token: %d", code)
	}
	replace(t, file, "")
	if code, _ := s.get(t, "/metrics", "Authorization", "Bearer "); code != 401 {
		t.Errorf("an emptied token lets everybody in: %d", code)
	}
}

func TestRequestsOfOneAddressAreCounted(t *testing.T) {
	with := settings()
	with.Requests, with.Seconds = 3, 3600
	s := start(t, with, &plugin{node: vxpu.Node{}})
	for i := range 5 {
		code, _ := s.get(t, "/metrics", "X-Forwarded-For", strings.Repeat("1", i+1))
		if want := map[bool]int{true: 200, false: 429}[i < 3]; code != want {
			t.Errorf("request %d: %d, want %d", i, code, want)
		}
	}
	if code, _ := s.get(t, "/healthz"); code != 200 {
		t.Errorf("the kubelet's: %d", code)
	}
}

func TestConnectionsBeyondTheBoundsAreClosed(t *testing.T) {
	with := settings()
	with.ConnectionsEach = 2
	s := start(t, with, &plugin{})
	address := strings.TrimPrefix(s.url, "http://")
	var open []net.Conn
	for range 3 {
		connection, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		open = append(open, connection)
	}
	// The third is closed at once; the others wait for a request.
	open[2].SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := open[2].Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("the third: %d, %v", n, err)
	}
	open[0].Write([]byte("GET /healthz HTTP/1.0\r\n\r\n"))
	if text, err := io.ReadAll(open[0]); err != nil || !bytes.HasPrefix(text, []byte("HTTP/1.0 200")) {
		t.Errorf("the first: %s, %v", text, err)
	}
}

func TestCountsOfConnections(t *testing.T) {
	bound := limit(nil, 2, 3)
	dial := func(address string) net.Conn {
		return bound.count(fakeConn{address})
	}
	a1, a2 := dial("10.0.0.1:1"), dial("10.0.0.1:2")
	if a1 == nil || a2 == nil || dial("[::ffff:10.0.0.1]:3") != nil {
		t.Error("two of an address, however it is written")
	}
	if b := dial("[2001:db8::1]:1"); b == nil || dial("[2001:db8::2]:1") != nil {
		t.Error("three in all")
	}
	a1.Close()
	a1.Close()
	if dial("10.0.0.1:4") == nil || dial("10.0.0.1:5") != nil {
		t.Error("a place is given back once")
	}
}

type fakeConn struct{ address string }

func (c fakeConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.address))
}
func (fakeConn) Close() error                     { return nil }
func (fakeConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (fakeConn) Write([]byte) (int, error)        { return 0, io.EOF }
func (fakeConn) LocalAddr() net.Addr              { return nil }
func (fakeConn) SetDeadline(time.Time) error      { return nil }
func (fakeConn) SetReadDeadline(time.Time) error  { return nil }
func (fakeConn) SetWriteDeadline(time.Time) error { return nil }

func TestAddressesWithoutEndCostBoundedMemory(t *testing.T) {
	r := &rates{limit: 1, burst: 1}
	for i := range 10 * mostKnown {
		r.allow(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if len(r.known) > mostKnown {
		t.Errorf("%d addresses known", len(r.known))
	}
}

func TestScrapesAtOnceShareAnAnswer(t *testing.T) {
	source := &plugin{node: vxpu.Node{"GPU-0": aCard("GPU-0", 16)}}
	s := start(t, settings(), source)
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if code, text := s.get(t, "/metrics"); code != 200 && code != 503 { // more than the concurrency allows
				t.Errorf("%d %s", code, text)
			}
		})
	}
	group.Wait()
	if code, _ := s.get(t, "/metrics"); code != 200 {
		t.Errorf("afterwards: %d", code)
	}
}
