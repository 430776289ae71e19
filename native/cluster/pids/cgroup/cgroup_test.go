// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"slices"
	"strings"
	"testing"
)

const (
	id      = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	outer   = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
	cgroups = "/kubepods/burstable/pod6c0f/" + id
	systemd = "/kubepods.slice/kubepods-pod6c0f.slice/cri-containerd-" + id + ".scope"
)

func TestPathsOfEveryVersion(t *testing.T) {
	for name, one := range map[string]struct {
		text      string
		paths     []string
		own       string
		container string
	}{
		"v2":               {"0::" + systemd + "\n", []string{systemd}, systemd, systemd},
		"v1":               {"9:name=systemd:" + cgroups + "\n4:memory:" + cgroups + "\n", []string{cgroups, cgroups}, cgroups, cgroups},
		"v1, joined":       {"4:cpu,memory:" + cgroups + "\n3:cpuset:/\n", []string{cgroups}, cgroups, cgroups},
		"hybrid":           {"4:memory:" + cgroups + "\n0::/system.slice/containerd.service\n", []string{cgroups, "/system.slice/containerd.service"}, cgroups, cgroups},
		"hybrid, unified":  {"4:memory:/system.slice/x\n0::" + systemd + "\n", []string{"/system.slice/x", systemd}, "/system.slice/x", systemd},
		"its own below":    {"0::" + systemd + "/init.scope\n", []string{systemd + "/init.scope"}, systemd + "/init.scope", systemd},
		"nodes in podman":  {"0::/machine.slice/libpod-" + outer + ".scope" + systemd + "\n", []string{"/machine.slice/libpod-" + outer + ".scope" + systemd}, "/machine.slice/libpod-" + outer + ".scope" + systemd, "/machine.slice/libpod-" + outer + ".scope" + systemd},
		"from a namespace": {"0::/../cri-containerd-" + id + ".scope\n", []string{"/cri-containerd-" + id + ".scope"}, "/cri-containerd-" + id + ".scope", "/cri-containerd-" + id + ".scope"},
		"in a namespace":   {"0::/\n", nil, "/", ""},
		"colons":           {"0::/a:b/" + id + "\n", []string{"/a:b/" + id}, "/a:b/" + id, "/a:b/" + id},
		"a login":          {"0::/user.slice/user-0.slice\n", []string{"/user.slice/user-0.slice"}, "/user.slice/user-0.slice", ""},
		"nonsense":         {"\n:\n1:memory\n2:memory:relative\n\xff\x00", nil, "/", ""},
	} {
		paths := Parse([]byte(one.text))
		container, found := Container(paths)
		if !slices.Equal(paths, one.paths) || container != one.container || found != (one.container != "") {
			t.Errorf("%s: %q of container %q", name, paths, container)
		}
		if own := Own([]byte(one.text)); own != one.own {
			t.Errorf("%s: its own is %q, want %q", name, own, one.own)
		}
	}
}

func TestAProcessNamesItsOwn(t *testing.T) {
	below := []string{systemd + "/app"}
	for asked, want := range map[string]bool{
		"/":                                    true, // from a cgroup namespace
		systemd + "/app":                       true,
		"/app":                                 true, // from a cgroup namespace, below its root
		"/app/":                                true,
		systemd:                                false,
		"/pp":                                  false,
		strings.Replace(systemd, id, outer, 1): false,
		"/" + outer:                            false,
	} {
		if got := Names(below, asked); got != want {
			t.Errorf("%s: %t", asked, got)
		}
	}
}

func TestWithinIsByComponents(t *testing.T) {
	if !Within("/a/b", "/a") || !Within("/a", "/a") || Within("/ab", "/a") {
		t.Error("/a/b and /a are within /a, /ab isn't")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("0::"+systemd+"\n4:memory:/../x\n"), systemd)
	f.Fuzz(func(t *testing.T, text []byte, asked string) {
		paths := Parse(text)
		for _, path := range paths {
			if !strings.HasPrefix(path, "/") || path == "/" || strings.Contains(path+"/", "/../") {
				t.Errorf("path %q", path)
			}
		}
		if root, ok := Container(paths); ok && !slices.ContainsFunc(paths, func(path string) bool { return Within(path, root) }) {
			t.Errorf("container %q isn't of %q", root, paths)
		}
		if own := Own(text); !strings.HasPrefix(own, "/") {
			t.Errorf("own %q", own)
		}
		Names(paths, asked)
	})
}
