// SPDX-License-Identifier: Apache-2.0

package cards

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// capabilityFile is where the driver numbers the device nodes that open MIG instances, below a procfs.
const capabilityFile = "driver/nvidia-caps/mig-minors"

// capabilities are the numbers of those device nodes by the names that the driver gives them.
type capabilities map[string]int

// readCapabilities reads them below a procfs. What the host has mounted over /proc/driver isn't seen in the procfs of
// a pod, even one in the host's pid namespace, but in the host's own, which its first process sees.
func readCapabilities(proc string) (capabilities, error) {
	text, err := os.ReadFile(filepath.Join(proc, capabilityFile))
	if errors.Is(err, fs.ErrNotExist) {
		text, err = os.ReadFile(filepath.Join(proc, "1/root/proc", capabilityFile))
	}
	if err != nil {
		return nil, fmt.Errorf("numbers of the MIG instances' device nodes: %w; a driver of 450 or later with its kernel module "+
			"loaded has that file, and --proc-dir must be the host's procfs", err)
	}
	return parseCapabilities(string(text))
}

// parseCapabilities reads lines such as "gpu0/gi1/ci0/access 13".
func parseCapabilities(text string) (capabilities, error) {
	found := capabilities{}
	for line := range strings.Lines(text) {
		var name string
		var number int
		if strings.TrimSpace(line) == "" {
			continue
		}
		if count, err := fmt.Sscanf(line, "%s %d", &name, &number); count != 2 || number < 0 {
			return nil, fmt.Errorf("%s: line %q is not `<name> <number>` (%v)", capabilityFile, strings.TrimSpace(line), err)
		}
		found[name] = number
	}
	return found, nil
}

// of are the numbers that open a compute instance: its GPU instance's, then its own. card is the minor number.
func (c capabilities) of(card, gpuInstance, computeInstance int) ([]int, error) {
	gpu := fmt.Sprintf("gpu%d/gi%d", card, gpuInstance)
	var numbers []int
	for _, name := range []string{gpu + "/access", fmt.Sprintf("%s/ci%d/access", gpu, computeInstance)} {
		number, known := c[name]
		if !known {
			return nil, fmt.Errorf("%s has no line %q", capabilityFile, name)
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}
