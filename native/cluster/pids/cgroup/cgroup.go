// SPDX-License-Identifier: Apache-2.0

// Package cgroup reads the paths of /proc/<pid>/cgroup, whatever version of cgroups a host has.
package cgroup

import (
	"path"
	"regexp"
	"strings"
)

// Parse reads lines "id:controllers:path". A path may hold colons; the root tells nothing. Seen from within
// a cgroup namespace, other containers' paths begin with "/..", which says no more than their rest.
func Parse(text []byte) []string {
	var paths []string
	for line := range strings.Lines(string(text)) {
		if _, cgroup, ok := split(line); ok && cgroup != "/" {
			paths = append(paths, cgroup)
		}
	}
	return paths
}

func split(line string) (controllers, cgroup string, ok bool) {
	fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
	if len(fields) != 3 || !strings.HasPrefix(fields[2], "/") {
		return "", "", false
	}
	return fields[1], path.Clean(fields[2]), true
}

// Own is the path by which a process names its container: that of the memory controller, as programs of
// cgroup v1 have always done, else the unified one. In a cgroup namespace it is "/".
func Own(text []byte) string {
	unified := "/"
	for line := range strings.Lines(string(text)) {
		controllers, cgroup, ok := split(line)
		if !ok {
			continue
		}
		if controllers == "" {
			unified = cgroup
		}
		for _, controller := range strings.Split(controllers, ",") {
			if controller == "memory" {
				return cgroup
			}
		}
	}
	return unified
}

var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// Container is the part of the paths' first that names one up to its innermost component that is called by
// a container's id, whatever a runtime writes around it. A container may have made cgroups of its own below; a
// cluster whose nodes are containers has several such components; of version 1, a runtime may have left
// controllers alone.
func Container(paths []string) (string, bool) {
	for _, cgroup := range paths {
		for at := path.Clean(cgroup); at != "/" && at != "."; at = path.Dir(at) {
			if containerID.MatchString(path.Base(at)) {
				return at, true
			}
		}
	}
	return "", false
}

// Within says whether a cgroup is root or below it.
func Within(cgroup, root string) bool {
	return cgroup == root || strings.HasPrefix(cgroup, root+"/")
}

// Names says whether asked, as a process sees its own cgroup, is one of the paths that we see of it: whole, or
// the end of it that a cgroup namespace leaves to be seen.
func Names(paths []string, asked string) bool {
	asked = path.Clean(asked)
	if asked == "/" {
		return true
	}
	for _, cgroup := range paths {
		if strings.HasSuffix(cgroup, asked) {
			return true
		}
	}
	return false
}
