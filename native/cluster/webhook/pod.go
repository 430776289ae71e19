// SPDX-License-Identifier: Apache-2.0

// Package webhook is what the admission webhook decides: a pod comes in, a patch, a refusal or neither
// comes out. It does no I/O. What it writes is fixed in docs/interfaces.md section 7.
package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"

	kjson "sigs.k8s.io/json"
)

// maxContainers is far above what a pod can have, and keeps what a small hostile body can make of
// memory in proportion to its size.
const maxContainers = 1000

// Pod is the part of a pod that decides about slices. The rest is never decoded: a patch leaves it as
// it was, so a newer API server's fields survive.
type Pod struct {
	Metadata struct {
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		NodeName         string     `json:"nodeName"`
		SchedulerName    string     `json:"schedulerName"`
		RuntimeClassName string     `json:"runtimeClassName"`
		InitContainers   containers `json:"initContainers"`
		Containers       containers `json:"containers"`
	} `json:"spec"`
}

// Container is one container, init container or sidecar. Ephemeral containers can't ask for resources.
type Container struct {
	Name      string `json:"name"`
	Resources struct {
		Limits   Quantities `json:"limits"`
		Requests Quantities `json:"requests"`
	} `json:"resources"`
}

// Quantities are amounts by resource name, as they came.
type Quantities map[string]json.RawMessage

type containers []Container

// UnmarshalJSON reads one container after another, and no more than a pod can have.
func (c *containers) UnmarshalJSON(data []byte) error {
	decoder := kjson.NewDecoderCaseSensitivePreserveInts(bytes.NewReader(data))
	switch start, err := decoder.Token(); {
	case err != nil:
		return err
	case start == nil:
		return nil
	case start != json.Delim('['):
		return fmt.Errorf("containers are %T and no list", start)
	}
	*c = nil
	for decoder.More() {
		if len(*c) == maxContainers {
			return fmt.Errorf("more than %d containers", maxContainers)
		}
		var one Container
		if err := decoder.Decode(&one); err != nil {
			return err
		}
		*c = append(*c, one)
	}
	return nil
}

func decodePod(raw []byte) (Pod, error) {
	var pod Pod
	if len(raw) == 0 {
		return pod, fmt.Errorf("no pod in it")
	}
	err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &pod)
	return pod, err
}
