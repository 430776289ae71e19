// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func environment(words ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(words); i += 2 {
			if words[i] == name {
				return words[i+1]
			}
		}
		return ""
	}
}

func TestTheContractsDefaults(t *testing.T) {
	cfg, err := parse(nil, environment("HOST_IP", "10.0.0.1", "NODE_NAME", "n1"))
	to := cfg.settings
	if err != nil || cfg.kind != gpu || to.Port != 8082 || cfg.nodeIP != "10.0.0.1" || cfg.node != "n1" || cfg.fresh != 5*time.Second ||
		to.Concurrency != 5 || to.ConnectionsEach != 5 || to.ConnectionsAll != 20 || to.Requests != 20 || to.Seconds != 1 ||
		to.CertFile != "" || to.LeastTLS != tls.VersionTLS12 {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestTheContractsFlags(t *testing.T) {
	cfg, err := parse(strings.Fields("--type npu --port 18082 --ip 10.0.0.2 --updateTime 1 --concurrency 2 --limitIPConn 3 "+
		"--limitTotalConn 4 --LimitIPReq 30/60 --tls-min-version 1.3"), environment())
	to := cfg.settings
	if err != nil || cfg.kind != npu || to.Port != 18082 || cfg.nodeIP != "10.0.0.2" || cfg.fresh != time.Second || to.Concurrency != 2 ||
		to.ConnectionsEach != 3 || to.ConnectionsAll != 4 || to.Requests != 30 || to.Seconds != 60 || to.LeastTLS != tls.VersionTLS13 {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestHTTPSEnableTakesThePairOfItsDirectory(t *testing.T) {
	directory := t.TempDir()
	for _, name := range []string{"b.crt", "a.crt", "a.key", "x.pem"} {
		if err := os.WriteFile(filepath.Join(directory, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	on := environment("HTTPS_ENABLE", "on")
	cfg, err := parse([]string{"--tls-dir", directory}, on)
	to := cfg.settings
	if err != nil || to.CertFile != directory+"/a.crt" || to.KeyFile != directory+"/a.key" || to.LeastTLS != tls.VersionTLS13 {
		t.Errorf("%+v, %v", to, err)
	}
	os.Remove(directory + "/a.key")
	if _, err := parse([]string{"--tls-dir", directory}, on); err == nil || !strings.Contains(err.Error(), "no *.key in "+directory) {
		t.Error(err)
	}
}

func TestTheAuthorityBesideACertificateIsNotTakenForIt(t *testing.T) {
	for _, want := range [][2]string{{"tls.crt", "tls.key"}, {"server.crt", "tls.key"}} {
		directory := t.TempDir()
		for _, name := range []string{"ca.crt", want[0], want[1]} {
			if err := os.WriteFile(filepath.Join(directory, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cfg, err := parse([]string{"--tls-dir", directory}, environment("HTTPS_ENABLE", "on"))
		to := cfg.settings
		if err != nil || to.CertFile != filepath.Join(directory, want[0]) || to.KeyFile != filepath.Join(directory, want[1]) {
			t.Errorf("%v: %+v, %v", want, to, err)
		}
		os.Remove(filepath.Join(directory, want[0]))
		if _, err := parse([]string{"--tls-dir", directory}, environment("HTTPS_ENABLE", "on")); err == nil ||
			!strings.Contains(err.Error(), "no *.crt in "+directory) {
			t.Errorf("%v: %v", want, err)
		}
	}
}

func TestEveryWrongValueIsNamed(t *testing.T) {
	for args, want := range map[string]string{
		"--type=tpu":                 `--type "tpu" is none of ["gpu" "npu"]`,
		"--port=80":                  "--port 80 is not 1025 to 65535",
		"--updateTime=61":            "--updateTime 61 is not 0 to 60",
		"--concurrency=0":            "--concurrency 0 is not 1 to 512",
		"--limitIPConn=999":          "--limitIPConn 999 is not 1 to 128",
		"--limitTotalConn=0":         "--limitTotalConn 0 is not 1 to 512",
		"--LimitIPReq=20":            `--LimitIPReq "20" is not`,
		"--LimitIPReq=20/1/2":        `--LimitIPReq "20/1/2" is not`,
		"--LimitIPReq=0/1":           `--LimitIPReq "0/1" is not`,
		"--ip=n1":                    `--ip "n1" is no IP address`,
		"--listen-address=localhost": `--listen-address "localhost" is no IP address`,
		"--tls-cert-file=x":          "go together",
		"--tls-min-version=1.1":      `--tls-min-version "1.1" is none`,
		"--log-level=loud":           "loud",
		"extra":                      `unexpected argument "extra"`,
	} {
		if _, err := parse(strings.Fields(args), environment()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
	if _, err := parse(nil, environment("HTTPS_ENABLE", "yes")); err == nil || !strings.Contains(err.Error(), `HTTPS_ENABLE="yes" is neither`) {
		t.Error(err)
	}
	_, err := parse([]string{"--port=1", "--type=x"}, environment())
	if err == nil || !strings.Contains(err.Error(), "--port") || !strings.Contains(err.Error(), "--type") {
		t.Errorf("both are told at once: %v", err)
	}
}

func TestRunEndsWithOneErrorOnATakenPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	cfg, err := parse([]string{"--listen-address=127.0.0.1"}, environment())
	if err != nil {
		t.Fatal(err)
	}
	cfg.settings.Port = listener.Addr().(*net.TCPAddr).Port
	if err := run(context.Background(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil))); err == nil || !strings.Contains(err.Error(), "is taken") {
		t.Error(err)
	}
}
