// SPDX-License-Identifier: Apache-2.0

// load measures xpu-webhook as the API server meets it: HTTPS, one kept HTTP/2 connection, mixed pods. By
// turns it asks a bare HTTPS echo the same. It prints nanoseconds as JSON; tests/bench/webhook.py runs it.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"flexai.io/xpu/cluster/certs"
	"flexai.io/xpu/cluster/webhook/apitest"
)

const host = "xpu-webhook.xpu.svc"

func main() {
	program := flag.String("program", "", "xpu-webhook")
	rounds := flag.Int("rounds", 5, "turns of each")
	requests := flag.Int("requests", 2000, "requests a turn")
	workers := flag.Int("workers", 4, "requests at a time")
	echo := flag.String("echo", "", "be the echo, on this address (used by itself)")
	authority := flag.String("authority", "", "where the echo writes whom to trust")
	flag.Parse()
	run := func() error { return measure(*program, *rounds, *requests, *workers) }
	if *echo != "" {
		run = func() error { return serveEcho(*echo, *authority) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// serveEcho is the floor: TLS, HTTP and the body there and back, in a process of its own like the webhook.
func serveEcho(address, authority string) error {
	life := certs.Lifetimes{Authority: time.Hour, Serving: time.Hour}
	own, err := certs.NewAuthority(time.Now(), life)
	if err != nil {
		return err
	}
	serving, err := own.Issue([]string{host}, time.Now(), life)
	if err != nil {
		return err
	}
	server := http.Server{Addr: address, TLSConfig: &tls.Config{Certificates: []tls.Certificate{serving}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err == nil {
				_, _ = w.Write(body)
			}
		})}
	if err := os.WriteFile(authority, certs.Bundle([]certs.Authority{own}), 0o600); err != nil {
		return err
	}
	return server.ListenAndServeTLS("", "")
}

func measure(program string, rounds, requests, workers int) error {
	scratch, err := os.MkdirTemp("", "webhook-load-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	webhook, err := startWebhook(ctx, program, scratch)
	if err != nil {
		return err
	}
	echo, err := startEcho(ctx, scratch)
	if err != nil {
		return err
	}
	bodies := mixed(rand.New(rand.NewSource(1)))
	found := map[string][][]int64{"webhook": nil, "echo": nil}
	for round := range rounds + 1 {
		for name, client := range map[string]*http.Client{"webhook": webhook, "echo": echo} {
			taken, err := ask(client, bodies, requests, workers)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if round > 0 { // the first warms up
				found[name] = append(found[name], taken)
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

func startWebhook(ctx context.Context, program, scratch string) (*http.Client, error) {
	cluster := apitest.New("xpu", "xpu-webhook-authority", "xpu-webhook")
	api := httptest.NewServer(cluster)
	kubeconfig := filepath.Join(scratch, "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],`+
		`"clusters":[{"name":"c","cluster":{"server":%q}}],"users":[{"name":"u","user":{}}]}`, api.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		return nil, err
	}
	address, probes := free(), free()
	child := exec.CommandContext(ctx, program, "--namespace=xpu", "--kubeconfig="+kubeconfig, "--listen="+address, "--listen-probes="+probes)
	if err := start(child, func() bool {
		response, err := http.Get("http://" + probes + "/readyz")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	}); err != nil {
		return nil, err
	}
	return client(address, cluster.Bundles()[0]), nil
}

func startEcho(ctx context.Context, scratch string) (*http.Client, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	address, authority := free(), filepath.Join(scratch, "echo.pem")
	child := exec.CommandContext(ctx, self, "-echo", address, "-authority", authority)
	if err := start(child, func() bool {
		connection, err := net.Dial("tcp", address)
		if err == nil {
			connection.Close()
		}
		return err == nil
	}); err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(authority)
	return client(address, bundle), err
}

func start(child *exec.Cmd, ready func() bool) error {
	var said bytes.Buffer
	child.Stderr = &said
	if err := child.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s is not ready within a minute: %s", child.Path, said.String())
		}
	}
	return nil
}

func free() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		slog.Error("no free port", "error", err)
		os.Exit(1)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func client(address string, bundle []byte) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	return &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: host},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}}}
}

// ask sends bodies by turns and gives what each took, in nanoseconds.
func ask(client *http.Client, bodies [][]byte, requests, workers int) ([]int64, error) {
	taken := make([]int64, requests)
	failures := make([]error, workers)
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < requests; i += workers {
				began := time.Now()
				if err := one(client, bodies[i%len(bodies)]); err != nil {
					failures[worker] = err
					return
				}
				taken[i] = time.Since(began).Nanoseconds()
			}
		})
	}
	group.Wait()
	return taken, errors.Join(failures...)
}

func one(client *http.Client, body []byte) error {
	response, err := client.Post("https://"+host+"/mutate", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || response.ProtoMajor != 2) {
		err = fmt.Errorf("%s by %s: %.200s", response.Status, response.Proto, answer)
	}
	return err
}

// mixed are reviews of pods as clusters have them: 1 to 3 containers with environment, probes and mounts,
// 3 to 30 KiB of JSON; slices, whole cards, refused ones, second passes.
func mixed(rng *rand.Rand) [][]byte {
	var bodies [][]byte
	for number := range 64 {
		var containers []map[string]any
		for i := range 1 + rng.Intn(3) {
			var env []map[string]string
			for range 10 + rng.Intn(90) {
				env = append(env, map[string]string{"name": fmt.Sprintf("VARIABLE_%d", rng.Intn(1e6)), "value": fmt.Sprint(rng.Int63(), rng.Int63())})
			}
			limits := map[string]string{"cpu": "4", "memory": "16Gi", "huawei.com/vgpu-number": fmt.Sprint(1 + rng.Intn(4))}
			if rng.Intn(3) > 0 {
				limits["huawei.com/vgpu-cores"] = fmt.Sprint(5 * (1 + rng.Intn(22))) // some over 100: refused
				limits["huawei.com/vgpu-memory.1Gi"] = fmt.Sprint(1 + rng.Intn(40))
			}
			containers = append(containers, map[string]any{"name": fmt.Sprintf("c%d", i), "image": "registry.site/model:v1", "env": env,
				"resources":      map[string]any{"limits": limits, "requests": limits},
				"volumeMounts":   []map[string]string{{"name": "data", "mountPath": "/data"}},
				"readinessProbe": map[string]any{"httpGet": map[string]any{"path": "/healthz", "port": 8000}, "periodSeconds": 2}})
		}
		pod := map[string]any{"kind": "Pod", "apiVersion": "v1",
			"metadata": map[string]any{"generateName": "model-", "namespace": "team", "labels": map[string]string{"app": "model"},
				"annotations": map[string]string{"huawei.com/vgpu-node": "forged", "team/notes": fmt.Sprint(rng.Int63())}},
			"spec": map[string]any{"containers": containers, "schedulerName": "default-scheduler",
				"volumes": []map[string]any{{"name": "data", "emptyDir": map[string]any{}}}}}
		body, err := json.Marshal(map[string]any{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
			"request": map[string]any{"uid": fmt.Sprint("u-", number), "operation": "CREATE", "namespace": "team",
				"resource": map[string]string{"group": "", "version": "v1", "resource": "pods"}, "object": pod}})
		if err != nil {
			slog.Error("no body", "error", err)
			os.Exit(1)
		}
		bodies = append(bodies, body)
	}
	return bodies
}
