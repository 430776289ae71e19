// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/backoff"
)

// reconnect soon: a scrape must not find an old failure.
var reconnect = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}

const (
	headerLimit  = 5 * time.Second
	requestLimit = 30 * time.Second
	idleLimit    = 2 * time.Minute // longer than any usual scrape interval, so that connections are kept
	goodbye      = 2 * time.Second
	headerBytes  = 16 << 10
)

// Settings are what a server is made of.
type Settings struct {
	Address           string // to listen at; empty is every address
	Port              int
	Concurrency       int // scrapes at a time
	ConnectionsEach   int // of one address
	ConnectionsAll    int
	Requests, Seconds int // of one address: so many in so many seconds
	CertFile, KeyFile string
	LeastTLS          uint16
	TokenFile         string
	Log               *slog.Logger
}

// Listen takes the port.
func (s Settings) Listen() (net.Listener, error) {
	address := net.JoinHostPort(s.Address, strconv.Itoa(s.Port))
	listener, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d is taken on %s; another exporter may run on this host (`ss -ltnp sport = :%d` names it): "+
			"stop it, or choose another --port", s.Port, address, s.Port)
	}
	return listener, err
}

// Registry holds a collector and the exporter's version.
func Registry(collector prometheus.Collector, kind, version string) (*prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: kind + "_exporter_version_info",
		Help: "Always 1; the label says which version this is.", ConstLabels: prometheus.Labels{"exporterVersion": version}})
	info.Set(1)
	if err := registry.Register(info); err != nil {
		return nil, err
	}
	if collector == nil {
		return registry, nil
	}
	return registry, registry.Register(collector)
}

// Serve answers on listener until ctx ends.
func (s Settings) Serve(ctx context.Context, listener net.Listener, registry prometheus.Gatherer) error {
	handler, err := s.handler(registry)
	if err != nil {
		return err
	}
	bounded := net.Listener(limit(listener, s.ConnectionsEach, s.ConnectionsAll))
	if s.CertFile != "" {
		settings, err := certificates(s.CertFile, s.KeyFile, s.LeastTLS, s.Log)
		if err != nil {
			return err
		}
		bounded = tls.NewListener(bounded, settings)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerLimit, ReadTimeout: requestLimit,
		WriteTimeout: requestLimit, IdleTimeout: idleLimit, MaxHeaderBytes: headerBytes,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)} // what strangers send is no news
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(bounded) }()
	select {
	case err = <-ended:
		return err
	case <-ctx.Done():
	}
	leaving, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	if server.Shutdown(leaving) != nil {
		server.Close()
	}
	return nil
}

func (s Settings) handler(registry prometheus.Gatherer) (http.Handler, error) {
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: s.Concurrency,
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError})
	if s.TokenFile != "" {
		var err error
		if metrics, err = bearer(s.TokenFile, metrics, s.Log); err != nil {
			return nil, err
		}
		if s.CertFile == "" {
			s.Log.Warn("a token without TLS can be read on its way; give --tls-cert-file and --tls-key-file too")
		}
	}
	often := &rates{limit: rate.Limit(float64(s.Requests) / float64(s.Seconds)), burst: s.Requests}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", often.guard(metrics))
	// It says that this program serves; whether gpu-device-plugin answers, xpu_exporter_up says.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "xpu-exporter: cards and slices of this node are at /metrics\n")
	})
	return mux, nil
}
