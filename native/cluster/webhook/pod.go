// SPDX-License-Identifier: Apache-2.0

// Package webhook is what the admission webhook decides: a pod comes in, a patch, a refusal or neither
// comes out. It does no I/O. What it writes is fixed in docs/interfaces.md section 7.
package webhook

import "encoding/json"

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
