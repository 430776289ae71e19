// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"time"

	"flexai.io/xpu/cluster/certs"
	"flexai.io/xpu/cluster/webhook"
)

// config is everything that flags and environment decide, read once.
type config struct {
	listen, probes string
	kubeconfig     string
	namespace      string
	secret         string
	service        string
	configuration  string
	policy         webhook.Policy
	life           certs.Lifetimes
	look           time.Duration
	drain          time.Duration
	logLevel       slog.Level
}

// names are what the API server calls us by: the Service, never an address.
func (c config) names() []string {
	return []string{c.service + "." + c.namespace + ".svc"}
}

func parse(args []string, env func(string) string) (config, error) {
	var cfg config
	var level string
	flags := flag.NewFlagSet("xpu-webhook", flag.ContinueOnError)
	flags.StringVar(&cfg.listen, "listen", ":8443", "address of the reviews, HTTPS")
	flags.StringVar(&cfg.probes, "listen-probes", ":8081", "address of /healthz and /readyz, HTTP")
	flags.StringVar(&cfg.kubeconfig, "kubeconfig", "", "API server to use outside a pod")
	flags.StringVar(&cfg.namespace, "namespace", env("POD_NAMESPACE"), "namespace of Service and Secret (environment POD_NAMESPACE)")
	flags.StringVar(&cfg.service, "service", "xpu-webhook", "Service that leads here")
	flags.StringVar(&cfg.secret, "secret", "xpu-webhook-authority", "Secret of the certificate authority; must be there")
	flags.StringVar(&cfg.configuration, "configuration", "xpu-webhook",
		"name of the mutating and the validating webhook configuration whose caBundle is kept right")
	flags.StringVar(&cfg.policy.Scheduler, "scheduler-name", "volcano", "scheduler of pods with slices that name none; empty: theirs stays")
	flags.StringVar(&cfg.policy.RuntimeClass, "runtime-class", "flexai-xpu", "runtime class of pods with slices that name none; empty: theirs stays")
	flags.DurationVar(&cfg.life.Authority, "authority-validity", 365*24*time.Hour, "how long a certificate authority is valid")
	flags.DurationVar(&cfg.life.Serving, "certificate-validity", 30*24*time.Hour, "how long a certificate is valid")
	flags.DurationVar(&cfg.life.Settle, "authority-settle", 15*time.Minute, "how long a new authority is published until it signs")
	flags.DurationVar(&cfg.look, "look-every", time.Minute, "how often certificates are looked after")
	flags.DurationVar(&cfg.drain, "drain", 5*time.Second, "how long reviews are still answered after SIGTERM, until no Service leads here")
	flags.StringVar(&level, "log-level", "info", "debug, info, warning or error")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var unlevelled error
	cfg.logLevel, unlevelled = parseLevel(level)
	return cfg, errors.Join(unlevelled, cfg.check())
}

func (c config) check() error {
	var problems []error
	if c.namespace == "" {
		problems = append(problems, errors.New("no namespace; pass --namespace or set POD_NAMESPACE"))
	}
	// Each has to come several times before the next one's time is over.
	for _, pair := range []struct {
		short, long time.Duration
		names       string
	}{
		{0, c.look, "0 and --look-every"},
		{2 * c.look, c.life.Settle, "twice --look-every and --authority-settle"},
		{3 * c.life.Settle, c.life.Authority, "three times --authority-settle and --authority-validity"},
		{6 * c.look, c.life.Serving, "six times --look-every and --certificate-validity"},
		{c.life.Serving, c.life.Authority, "--certificate-validity and --authority-validity"},
	} {
		if pair.short >= pair.long {
			problems = append(problems, fmt.Errorf("%s: %s is not less than %s", pair.names, pair.short, pair.long))
		}
	}
	return errors.Join(problems...)
}

func parseLevel(text string) (slog.Level, error) {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo,
		"warning": slog.LevelWarn, "error": slog.LevelError}
	level, known := levels[text]
	if !known {
		return 0, fmt.Errorf("--log-level %q is none of debug, info, warning, error", text)
	}
	return level, nil
}
