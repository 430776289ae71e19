// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"flexai.io/xpu/cluster/pids/api"
)

// service remembers what it was asked.
type service struct {
	api.UnimplementedPidsServiceServer
	asked string
	err   error
}

func (s *service) GetPids(_ context.Context, request *api.GetPidsRequest) (*api.GetPidsResponse, error) {
	s.asked = request.CgroupPath
	return &api.GetPidsResponse{EncodedPids: "100         1          ,101         7          "}, s.err
}

func (s *service) GetAllVxpuInfo(_ context.Context, request *api.GetAllVxpuInfoRequest) (*api.GetAllVxpuInfoResponse, error) {
	s.asked = "all over " + request.Period
	return &api.GetAllVxpuInfoResponse{VxpuInfos: "{}"}, s.err
}

func serve(t *testing.T) (*service, string) {
	t.Helper()
	root, err := os.MkdirTemp("", "xpu") // short: unix sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	listener, err := net.Listen("unix", root+"/pids.sock")
	if err != nil {
		t.Fatal(err)
	}
	made, server := &service{}, grpc.NewServer()
	api.RegisterPidsServiceServer(server, made)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return made, root + "/pids.sock"
}

func own() (string, error) { return "/mine", nil }

func TestForms(t *testing.T) {
	made, socket := serve(t)
	for args, want := range map[string]struct{ asked, printed string }{
		"--cgroup-path /pod/x":           {"/pod/x", ""}, // silent: it runs inside somebody's program
		"-cgroup-path=/pod/x":            {"/pod/x", ""},
		"":                               {"/mine", ""},
		"--print":                        {"/mine", "100         1          \n101         7          \n"},
		"--cgroup-path /pod/x --print":   {"/pod/x", "100         1          \n101         7          \n"},
		"--all":                          {"all over 60", "{}\n"},
		"--all --period 5 --timeout 30s": {"all over 5", "{}\n"},
	} {
		var out, problems strings.Builder
		code := run(append(strings.Fields(args), "--socket", socket), &out, &problems, own)
		if code != done || made.asked != want.asked || out.String() != want.printed || problems.Len() > 0 {
			t.Errorf("%q: %d, asked %q, printed %q, %s", args, code, made.asked, out.String(), problems.String())
		}
	}
}

func TestExitCodes(t *testing.T) {
	made, socket := serve(t)
	made.err = status.Error(codes.PermissionDenied, "cgroup is not yours")
	for args, want := range map[string]struct {
		code int
		said string
	}{
		"--socket " + socket:                {failed, "xpu-client-tool: " + socket + ": cgroup is not yours\n"},
		"--all --socket " + socket:          {failed, "not yours"},
		"--timeout 1s --socket /nowhere.sk": {failed, "/nowhere.sk"},
		"--timeout 0s":                      {misled, "--timeout 0s is not above 0"},
		"--all --cgroup-path /x":            {misled, "--all goes with neither"},
		"--all --print":                     {misled, "--all goes with neither"},
		"/pod/x":                            {misled, `unexpected argument "/pod/x"`},
		"--cgroup /x":                       {misled, "not defined"},
		"--help":                            {done, "Exit codes: 0 done, 1 "},
	} {
		var out, problems strings.Builder
		if code := run(strings.Fields(args), &out, &problems, own); code != want.code || !strings.Contains(problems.String(), want.said) {
			t.Errorf("%q: %d, %s", args, code, problems.String())
		}
		if out.Len() > 0 {
			t.Errorf("%q printed %q", args, out.String())
		}
	}
}
