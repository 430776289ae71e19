// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		args  string
		check bool
		says  string
	}{
		"nothing":            {"", false, ""},
		"check":              {"check --home /x", true, ""},
		"unknown command":    {"install", false, `unexpected argument "install"`},
		"check after a flag": {"--home /x check", false, `unexpected argument "check"; the one command is check, before any flag`},
		"no interval":        {"--interval 0s", false, "--interval 0s is not above 0"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := parse(strings.Fields(c.args))
			if c.says == "" && (err != nil || cfg.check != c.check) {
				t.Errorf("got %+v, %v", cfg, err)
			}
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func tarball(t *testing.T) string {
	t.Helper()
	var text bytes.Buffer
	zipped := gzip.NewWriter(&text)
	archive := tar.NewWriter(zipped)
	err := archive.WriteHeader(&tar.Header{Name: "VERSION", Size: 1, Mode: 0o644, Typeflag: tar.TypeReg})
	_, writing := archive.Write([]byte("1"))
	path := filepath.Join(t.TempDir(), "release.tar.gz")
	if err := errors.Join(err, writing, archive.Close(), zipped.Close(), os.WriteFile(path, text.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// The probe's answer follows what the running program does, and says what lacks.
func TestCheckFailsUntilTheNodeHasTheRelease(t *testing.T) {
	cfg := config{home: t.TempDir(), tarball: tarball(t), interval: time.Hour}
	probe := cfg
	probe.check = true
	log := slog.New(slog.DiscardHandler)
	if err := run(context.Background(), probe, log); err == nil || !strings.Contains(err.Error(), "nobody looks after this node") {
		t.Fatalf("before: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- run(ctx, cfg, log) }()
	for run(context.Background(), probe, log) != nil {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
}
