// SPDX-License-Identifier: Apache-2.0

// Package pids serves PidsService: which processes of this host a container's are, and what the node's cards
// and slices do. It asks nobody but the kernel, the node ledger and NVML; no question reaches the API server.
//
// A tenant is known by the config page he sees at /etc/xpu, which only the container runtime can have put
// there, and is answered about his own container only.
package pids

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"flexai.io/xpu/cluster/pids/api"
	"flexai.io/xpu/cluster/pids/cgroup"
	"flexai.io/xpu/cluster/xpu"
)

const (
	// censusEvery bounds what questions without end cost; a question waits as long at most for its turn.
	censusEvery = 200 * time.Millisecond
	longestPath = 4096
	longestSaid = 120 // of what a caller sent, in an error
)

// Deps is the world around the service.
type Deps struct {
	Procfs Procfs
	// Slices are those the node's ledger holds now.
	Slices func() ([]xpu.Slice, error)
	// ConfigPage is the config page of a slice.
	ConfigPage func(xpu.Slice) string
	// WritePids makes a slice's pids.config hold this.
	WritePids func(xpu.Slice, []byte) error
	Node      NodeDeps
	Log       *slog.Logger
}

// Service answers. Safe for concurrent use.
type Service struct {
	api.UnimplementedPidsServiceServer
	deps   Deps
	census shared[*census]
	node   *node
}

// New makes one; Observe must be told what the slices do.
func New(deps Deps) *Service {
	s := &Service{deps: deps, node: newNode(deps.Node)}
	s.census = shared[*census]{interval: censusEvery, look: func() (*census, error) { return takeCensus(deps.Procfs) }}
	return s
}

// GetPids answers about the container whose cgroup the request names, and writes its pids.config.
func (s *Service) GetPids(ctx context.Context, request *api.GetPidsRequest) (*api.GetPidsResponse, error) {
	who := callerOf(ctx)
	asked := request.GetCgroupPath()
	if err := checkPath(asked); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	container, err := containerAsked(who, asked)
	if err != nil {
		return nil, err
	}
	taken, err := s.census.get(ctx)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	encoded, err := taken.once(container, func() (string, error) { return s.settle(taken, container) })
	if err != nil {
		return nil, err
	}
	return &api.GetPidsResponse{EncodedPids: encoded}, nil
}

func checkPath(asked string) error {
	switch {
	case len(asked) > longestPath:
		return fmt.Errorf("CgroupPath has %d bytes, at most %d", len(asked), longestPath)
	case !strings.HasPrefix(asked, "/"):
		return fmt.Errorf("CgroupPath %s doesn't begin with /; it is the last field of a line of /proc/<pid>/cgroup",
			said(asked))
	case strings.ContainsFunc(asked, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("CgroupPath %s has control characters", said(asked))
	}
	return nil
}

// said is what somebody sent, fit for an error.
func said(text string) string {
	if len(text) > longestSaid {
		return strconv.Quote(text[:longestSaid]) + "…"
	}
	return strconv.Quote(text)
}

// containerAsked is the container whose processes the caller wants to know of, if he may.
func containerAsked(who caller, asked string) (string, error) {
	switch who.standing {
	case root:
		container, ok := cgroup.Container([]string{asked})
		if !ok {
			return "", status.Errorf(codes.NotFound, "cgroup %s names no container", said(asked))
		}
		return container, nil
	case tenant:
		if !cgroup.Names(who.cgroups, asked) {
			return "", status.Errorf(codes.PermissionDenied, "cgroup %s is not yours; a container may ask about its own only",
				said(asked))
		}
		container, ok := cgroup.Container(who.cgroups)
		if !ok {
			return "", status.Error(codes.FailedPrecondition, "your cgroup names no container")
		}
		return container, nil
	}
	return "", refusal(who)
}

func refusal(who caller) error {
	if who.standing == stranger && who.pid == 0 {
		return status.Error(codes.PermissionDenied, "your process can't be seen from gpu-device-plugin's pid namespace; "+
			"it must run in the host's (hostPID)")
	}
	return status.Error(codes.PermissionDenied, "only a slice's container about itself, "+
		"and root in the host's pid namespace, may ask this")
}

// settle finds a container's processes and whose slice it has, and writes its file.
func (s *Service) settle(taken *census, container string) (string, error) {
	members := taken.members(container)
	if len(members) == 0 {
		return "", status.Errorf(codes.NotFound, "no process is in cgroup %s", said(container))
	}
	slice, err := s.sliceOf(members)
	if err != nil {
		return "", err
	}
	encoded := encode(taken.pairs(members))
	if err := s.deps.WritePids(slice, config(encoded)); err != nil {
		s.deps.Log.Warn("pids.config not written", "owner", slice.Owner.String(), "error", err)
		return "", status.Errorf(codes.Unavailable, "pids.config of %s not written", slice.Owner)
	}
	return encoded, nil
}

var errNoSlice = status.Error(codes.FailedPrecondition, "that container has no slice of this node")

// sliceOf finds the slice by the config page that the container's processes see. Of several pages in one
// cgroup (who may make mount namespaces can hide one) the first that is a slice's counts.
func (s *Service) sliceOf(members []int) (xpu.Slice, error) {
	held, err := s.deps.Slices()
	if err != nil {
		s.deps.Log.Warn("node ledger not read", "error", err)
		return xpu.Slice{}, status.Error(codes.Unavailable, "node ledger not read")
	}
	owners := map[fileID]xpu.Slice{}
	for _, slice := range held {
		if page, err := identifyPath(s.deps.ConfigPage(slice)); err == nil { // else it has no files yet
			owners[page] = slice
		}
	}
	for _, pid := range members {
		if page, err := s.deps.Procfs.ConfigPage(pid); err == nil {
			if slice, ok := owners[page]; ok {
				return slice, nil
			}
		}
	}
	return xpu.Slice{}, errNoSlice
}

// GetAllVxpuInfo tells all; nobody who holds a slice may know of the others'.
func (s *Service) GetAllVxpuInfo(ctx context.Context, request *api.GetAllVxpuInfoRequest) (*api.GetAllVxpuInfoResponse, error) {
	if who := callerOf(ctx); who.standing != root && who.standing != watcher {
		return nil, status.Error(codes.PermissionDenied, "only root in the host's pid namespace, "+
			"and who reaches the exporter's socket, may ask about all slices")
	}
	period, err := parsePeriod(request.GetPeriod())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	text, err := s.node.describe(ctx, period)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil, status.FromContextError(err).Err()
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &api.GetAllVxpuInfoResponse{VxpuInfos: text}, nil
}

// parsePeriod takes what upstream's exporter sends, "60", where nothing is said.
func parsePeriod(text string) (time.Duration, error) {
	if text == "" {
		return longestPeriod, nil
	}
	seconds, err := strconv.ParseUint(text, 10, 16)
	if period := time.Duration(seconds) * time.Second; err == nil && period >= time.Second && period <= longestPeriod {
		return period, nil
	}
	return 0, fmt.Errorf("Period %s is not 1 to %d seconds", said(text), int(longestPeriod.Seconds()))
}
