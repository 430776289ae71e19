// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"flexai.io/xpu/cluster/certs"
)

// lastWords is how long reviews under way may take once nobody sends new ones.
const lastWords = 5 * time.Second

// deps is the world as run sees it.
type deps struct {
	vault           certs.Vault
	publisher       certs.Publisher
	reviews, probes net.Listener
	now             func() time.Time
	wait            func(time.Duration)
	log             *slog.Logger
}

// run serves until ctx ends: then it is no longer ready, answers on while Services still lead here, and
// lets what is under way finish.
func run(ctx context.Context, cfg config, d deps) error {
	keeper := certs.NewKeeper(certs.Deps{Vault: d.vault, Publisher: d.publisher, Names: cfg.names(),
		Life: cfg.life, Now: d.now, Log: d.log})
	var stopping atomic.Bool
	answering := server(reviews(cfg.policy, d.log), d.log)
	answering.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: keeper.Certificate}
	probing := server(probes(func() bool { return keeper.Ready() && !stopping.Load() }), d.log)

	failed := make(chan error, 2)
	var group sync.WaitGroup
	serve := func(serve func() error) {
		group.Go(func() {
			if err := serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	serve(func() error { return answering.ServeTLS(d.reviews, "", "") })
	serve(func() error { return probing.Serve(d.probes) })
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() { keeper.Run(keeping, cfg.look) })

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		stopping.Store(true)
		d.log.Info("stopping", "answeringFor", cfg.drain)
		d.wait(cfg.drain)
	}
	stop()
	last, done := context.WithTimeout(context.Background(), lastWords)
	defer done()
	err = errors.Join(err, answering.Shutdown(last), probing.Shutdown(last))
	if err != nil {
		_ = answering.Close() // who is not done by now is cut off
		_ = probing.Close()
	}
	group.Wait()
	return err
}
