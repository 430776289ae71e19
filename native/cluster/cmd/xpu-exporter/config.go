// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"flexai.io/xpu/cluster/exporter"
)

// The kinds of upstream's --type; an exporter of kind npu shows nothing but its version, as upstream's does.
const (
	gpu = "gpu"
	npu = "npu"
)

type config struct {
	kind     string
	node     string
	nodeIP   string
	socket   string
	fresh    time.Duration
	level    slog.Level
	settings exporter.Settings
}

// parse takes upstream's flags under their names, and ours.
func parse(args []string, env func(string) string) (config, error) {
	var cfg config
	var update int
	var requests, least, level, certs string
	flags := flag.NewFlagSet("xpu-exporter", flag.ContinueOnError)
	to := &cfg.settings
	flags.StringVar(&cfg.kind, "type", gpu, "gpu or npu")
	flags.IntVar(&to.Port, "port", 8082, "port to listen at")
	flags.StringVar(&cfg.nodeIP, "ip", env("HOST_IP"), "this node's address, as label node_ip (environment HOST_IP)")
	flags.StringVar(&to.Address, "listen-address", "", "address to listen at; empty is every address")
	flags.IntVar(&update, "updateTime", 5, "seconds for which an answer of gpu-device-plugin is shown again, 0 to 60")
	flags.IntVar(&to.Concurrency, "concurrency", 5, "scrapes at a time, 1 to 512")
	flags.IntVar(&to.ConnectionsEach, "limitIPConn", 5, "connections of one address, 1 to 128")
	flags.IntVar(&to.ConnectionsAll, "limitTotalConn", 20, "connections of all, 1 to 512")
	flags.StringVar(&requests, "LimitIPReq", "20/1", "requests of one address: <how many>/<in how many seconds>")
	flags.StringVar(&cfg.node, "node-name", env("NODE_NAME"), "this node's name, as label node_name (environment NODE_NAME)")
	flags.StringVar(&cfg.socket, "socket", "/var/lib/xpu/exporter/pids.sock", "socket of gpu-device-plugin")
	flags.StringVar(&to.CertFile, "tls-cert-file", "", "certificate; it and the key are read anew when they change")
	flags.StringVar(&to.KeyFile, "tls-key-file", "", "key of the certificate")
	flags.StringVar(&certs, "tls-dir", "/opt/xpu/certs", "directory of one *.crt and its *.key, used with environment HTTPS_ENABLE=on")
	flags.StringVar(&least, "tls-min-version", "", "1.2 or 1.3; empty is 1.2, and 1.3 with HTTPS_ENABLE=on")
	flags.StringVar(&to.TokenFile, "auth-token-file", "", "file with the bearer token that /metrics asks for")
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	cfg.fresh = time.Duration(update) * time.Second
	problems := []error{
		oneOf("type", cfg.kind, gpu, npu),
		between("port", to.Port, 1025, 65535),
		between("updateTime", update, 0, 60),
		between("concurrency", to.Concurrency, 1, 512),
		between("limitIPConn", to.ConnectionsEach, 1, 128),
		between("limitTotalConn", to.ConnectionsAll, 1, 512),
		address("ip", cfg.nodeIP), address("listen-address", to.Address),
		cfg.level.UnmarshalText([]byte(level)),
	}
	var err error
	to.Requests, to.Seconds, err = parseRate(requests)
	problems = append(problems, err, cfg.secure(env("HTTPS_ENABLE"), certs, least))
	return cfg, errors.Join(problems...)
}

// secure settles TLS: by files, or by upstream's environment variable and directory.
func (c *config) secure(enable, directory, least string) error {
	to := &c.settings
	if err := oneOf("tls-min-version", least, "", "1.2", "1.3"); err != nil {
		return err
	}
	to.LeastTLS = map[string]uint16{"": tls.VersionTLS12, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[least]
	if (to.CertFile == "") != (to.KeyFile == "") {
		return errors.New("--tls-cert-file and --tls-key-file go together")
	}
	switch enable {
	case "on":
	case "", "off":
		return nil
	default:
		return fmt.Errorf("environment HTTPS_ENABLE=%q is neither on nor off", enable)
	}
	if least == "" {
		to.LeastTLS = tls.VersionTLS13
	}
	if to.CertFile != "" {
		return nil
	}
	var err error
	to.CertFile, to.KeyFile, err = pairIn(directory)
	return err
}

// pairIn finds the directory's certificate and its key: of the same name, or else the first of each. A certificate
// manager's secret has the authority's ca.crt beside them, which sorts before tls.crt and has no key.
func pairIn(directory string) (certificate, key string, err error) {
	keys, _ := filepath.Glob(filepath.Join(directory, "*.key"))
	certificates, _ := filepath.Glob(filepath.Join(directory, "*.crt"))
	certificates = slices.DeleteFunc(certificates, func(path string) bool { return filepath.Base(path) == "ca.crt" })
	for pattern, found := range map[string][]string{"*.key": keys, "*.crt": certificates} {
		if len(found) == 0 {
			return "", "", fmt.Errorf("HTTPS_ENABLE=on, but there is no %s in %s; mount the certificate's secret there, or give "+
				"--tls-cert-file and --tls-key-file", pattern, directory)
		}
	}
	if its := strings.TrimSuffix(keys[0], ".key") + ".crt"; slices.Contains(certificates, its) {
		return its, keys[0], nil
	}
	return certificates[0], keys[0], nil
}

func parseRate(text string) (requests, seconds int, err error) {
	var rest string
	n, _ := fmt.Sscanf(text, "%d/%d%s", &requests, &seconds, &rest)
	if n != 2 || requests < 1 || requests > 1000 || seconds < 1 || seconds > 3600 {
		return 0, 0, fmt.Errorf("--LimitIPReq %q is not <1 to 1000>/<1 to 3600>, such as 20/1", text)
	}
	return requests, seconds, nil
}

func oneOf(name, value string, allowed ...string) error {
	for _, one := range allowed {
		if value == one {
			return nil
		}
	}
	return fmt.Errorf("--%s %q is none of %q", name, value, allowed)
}

func between(name string, value, least, most int) error {
	if value < least || value > most {
		return fmt.Errorf("--%s %d is not %d to %d", name, value, least, most)
	}
	return nil
}

func address(name, value string) error {
	if value == "" {
		return nil
	}
	if _, err := netip.ParseAddr(value); err != nil {
		return fmt.Errorf("--%s %q is no IP address", name, value)
	}
	return nil
}
