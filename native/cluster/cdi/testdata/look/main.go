// SPDX-License-Identifier: Apache-2.0

// Program look says, as JSON, what lies at each path it is given: a file's text, a directory's
// names, or the error. It is all there is in the images of runc_test.go.
package main

import (
	"encoding/json"
	"net"
	"os"
	"strings"
)

func main() {
	found := map[string]string{}
	for _, path := range os.Args[1:] {
		found[path] = look(path)
	}
	json.NewEncoder(os.Stdout).Encode(found)
}

func look(path string) string {
	if write, yes := strings.CutPrefix(path, "write:"); yes {
		return result(os.WriteFile(write, nil, 0o644))
	}
	if socket, yes := strings.CutPrefix(path, "connect:"); yes {
		_, err := net.Dial("unix", socket)
		return result(err)
	}
	entries, err := os.ReadDir(path)
	if err == nil {
		var names []string
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return "directory of [" + strings.Join(names, " ") + "]"
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return result(err)
	}
	return string(text)
}

func result(err error) string {
	if err != nil {
		return err.Error()
	}
	return "done"
}
