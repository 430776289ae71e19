// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"net"
	"net/http"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// limited closes connections beyond the bounds at once: one that waited would hold its place in the queue of
// those that are within.
type limited struct {
	net.Listener
	each, all int

	mutex sync.Mutex
	open  map[netip.Addr]int
	total int
}

func limit(listener net.Listener, each, all int) *limited {
	return &limited{Listener: listener, each: each, all: all, open: map[netip.Addr]int{}}
}

// Accept returns the next connection within the bounds.
func (l *limited) Accept() (net.Conn, error) {
	for {
		connection, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if counted := l.count(connection); counted != nil {
			return counted, nil
		}
		connection.Close()
	}
}

func (l *limited) count(connection net.Conn) net.Conn {
	from := addressOf(connection.RemoteAddr().String())
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.total >= l.all || l.open[from] >= l.each {
		return nil
	}
	l.total++
	l.open[from]++
	return &counted{Conn: connection, release: sync.OnceFunc(func() {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		l.total--
		if l.open[from]--; l.open[from] == 0 {
			delete(l.open, from)
		}
	})}
}

type counted struct {
	net.Conn
	release func()
}

// Close gives the place back.
func (c *counted) Close() error {
	c.release()
	return c.Conn.Close()
}

// addressOf is the peer's own address, never what a header says.
func addressOf(remote string) netip.Addr {
	found, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return found.Addr().Unmap()
}

// mostKnown bounds the memory that addresses cost; forgetting them all lets each begin anew.
const mostKnown = 1024

// rates refuses an address that asks too often.
type rates struct {
	limit rate.Limit
	burst int

	mutex sync.Mutex
	known map[netip.Addr]*rate.Limiter
}

func (r *rates) allow(from netip.Addr) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	mine := r.known[from]
	if mine == nil {
		if len(r.known) >= mostKnown || r.known == nil {
			r.known = map[netip.Addr]*rate.Limiter{}
		}
		mine = rate.NewLimiter(r.limit, r.burst)
		r.known[from] = mine
	}
	return mine.Allow()
}

func (r *rates) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if !r.allow(addressOf(request.RemoteAddr)) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many requests from this address", http.StatusTooManyRequests)
			return
		}
		next.ServeHTTP(w, request)
	})
}
