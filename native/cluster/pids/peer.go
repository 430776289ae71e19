// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"flexai.io/xpu/cluster/pids/cgroup"
)

const (
	// A connection costs two goroutines and some buffers; what one tenant opens must leave room for others.
	connectionsEach = 64
	connectionsAll  = 512
)

// standing is what a caller may ask.
type standing int

const (
	stranger standing = iota // nothing
	tenant                   // about his own container
	watcher                  // GetAllVxpuInfo
	root                     // anything
)

// caller is who is at the other end of a connection, by the kernel's word at the time it was made.
type caller struct {
	standing standing
	pid      int
	uid      uint32
	cgroups  []string // of a tenant
}

// AuthType names the way of credentials.AuthInfo.
func (caller) AuthType() string { return "peercred" }

// account is what connections are counted by: of a tenant his container, since he could make mount namespaces
// with other pages without end.
func (c caller) account() any {
	if container, ok := cgroup.Container(c.cgroups); ok {
		return container
	}
	return [2]uint32{uint32(c.standing), c.uid}
}

func callerOf(ctx context.Context) caller {
	if from, ok := peer.FromContext(ctx); ok {
		if who, ok := from.AuthInfo.(caller); ok {
			return who
		}
	}
	return caller{}
}

// peers tells gRPC who calls; it stands where TLS would. Of a socket that only its directory guards everyone
// who reached it is a watcher.
type peers struct {
	procfs  Procfs
	guarded bool

	mutex sync.Mutex
	open  map[any]int // by account
	all   int
}

func newPeers(procfs Procfs, guarded bool) *peers {
	return &peers{procfs: procfs, guarded: guarded, open: map[any]int{}}
}

// ServerHandshake asks the kernel. Who can't be told apart from others is refused here; who may ask nothing
// learns that from each call's status.
func (p *peers) ServerHandshake(connection net.Conn) (net.Conn, credentials.AuthInfo, error) {
	unixConnection, ok := connection.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("not a unix socket")
	}
	who, err := p.identify(unixConnection)
	if err != nil {
		return nil, nil, err
	}
	counted, err := p.count(connection, who)
	if err != nil {
		return nil, nil, err
	}
	return counted, who, nil
}

func (p *peers) identify(connection *net.UnixConn) (caller, error) {
	raw, err := connection.SyscallConn()
	if err != nil {
		return caller{}, err
	}
	var who caller
	var failed error
	err = raw.Control(func(descriptor uintptr) {
		var credentials *unix.Ucred
		if credentials, failed = unix.GetsockoptUcred(int(descriptor), unix.SOL_SOCKET, unix.SO_PEERCRED); failed != nil {
			return
		}
		who = p.stands(int(credentials.Pid), credentials.Uid)
		failed = stillThere(int(descriptor))
	})
	return who, errors.Join(err, failed)
}

// stands judges a process. A tenant's word counts for his own container even where he is root of the host's
// pid namespace (hostPID).
func (p *peers) stands(pid int, uid uint32) caller {
	who := caller{pid: pid, uid: uid}
	if p.guarded {
		who.standing = watcher
		return who
	}
	if pid == 0 {
		return who // in a pid namespace that can't be seen from ours
	}
	if _, err := p.procfs.ConfigPage(pid); err == nil {
		if cgroups, err := p.procfs.Cgroups(pid); err == nil {
			who.standing, who.cgroups = tenant, cgroups
		}
		return who
	}
	if uid == 0 && p.procfs.InOurNamespace(pid) {
		who.standing = root
	}
	return who
}

// stillThere closes the gap between connecting and now: had the peer ended, its pid could be another's
// already. Kernels before 6.5 can't say.
func stillThere(descriptor int) error {
	handle, err := unix.GetsockoptInt(descriptor, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	defer unix.Close(handle)
	ended := []unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, 0); err != nil || n > 0 {
		return errors.New("peer ended before it was known")
	}
	return nil
}

// count refuses connections beyond the bounds; the one it returns gives its place back when it is closed.
func (p *peers) count(connection net.Conn, who caller) (net.Conn, error) {
	account := who.account()
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.open[account] >= connectionsEach || p.all >= connectionsAll {
		return nil, fmt.Errorf("%d connections of this caller, %d of all; at most %d and %d",
			p.open[account], p.all, connectionsEach, connectionsAll)
	}
	p.open[account]++
	p.all++
	return &countedConn{Conn: connection, release: sync.OnceFunc(func() {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		p.all--
		if p.open[account]--; p.open[account] == 0 {
			delete(p.open, account)
		}
	})}, nil
}

type countedConn struct {
	net.Conn
	release func()
}

func (c *countedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// ClientHandshake is not for clients.
func (p *peers) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are the server's")
}

// Info describes the way.
func (p *peers) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone is the same one: connections are counted together.
func (p *peers) Clone() credentials.TransportCredentials { return p }

// OverrideServerName is nothing on a unix socket.
func (p *peers) OverrideServerName(string) error { return nil }
