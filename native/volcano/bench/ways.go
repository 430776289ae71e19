// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	_ "unsafe" // for linkname

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"volcano.sh/apis/pkg/apis/scheduling/v1beta1"
	"volcano.sh/volcano/pkg/scheduler/api/devices/nvidia/vgpu"
	"volcano.sh/volcano/pkg/scheduler/util"

	"flexai.io/xpu/volcano/bridge"
	"flexai.io/xpu/volcano/harness"
)

const (
	cards        = 8
	podsPerGroup = 50
	namespace    = "bench"
)

// shapes of the pods, in turns: cores and GiB of one card.
var shapes = [][2]int{{20, 3}, {50, 10}, {10, 4}, {100, 40}, {25, 8}}

// prepare makes the same cluster and the same pods for each way. With way scalar the sums of three
// resources are all that Volcano looks at; the others add cards to that.
func prepare(way string, nodes, pods int) (string, harness.Cluster, error) {
	configuration := harness.Without(harness.Configuration, bridge.Name)
	node, pod := harness.Node, slicePod
	switch way {
	case "scalar":
	case "huawei-xpu":
		configuration = harness.Configuration
	case "deviceshare":
		configuration = strings.Replace(configuration, "  - name: predicates\n", deviceshare+"  - name: predicates\n", 1)
		node, pod = vgpuNode, vgpuPod
		vgpuClient = client{}
	default:
		return "", harness.Cluster{}, fmt.Errorf("way %q is unknown; use scalar, huawei-xpu, deviceshare or week", way)
	}
	cluster := harness.Cluster{Queues: []*v1beta1.Queue{util.BuildQueue("queue", 1, nil)}}
	for i := range nodes {
		cluster.Nodes = append(cluster.Nodes, node(fmt.Sprintf("node-%04d", i), cards))
	}
	for i := range pods {
		group := fmt.Sprintf("group-%03d", i/podsPerGroup)
		if i%podsPerGroup == 0 {
			cluster.Groups = append(cluster.Groups,
				util.BuildPodGroup(group, namespace, "queue", 1, nil, v1beta1.PodGroupInqueue))
		}
		shape := shapes[i%len(shapes)]
		cluster.Pods = append(cluster.Pods, pod(fmt.Sprintf("pod-%05d", i), group, shape[0], shape[1]))
	}
	return configuration, cluster, nil
}

func slicePod(name, group string, cores, memoryGiB int) *v1.Pod {
	return harness.Pod(namespace, name, group, "", 1, cores, memoryGiB)
}

// deviceshare is Volcano's own plugin for shared cards, asked to do what ours does.
const deviceshare = `  - name: deviceshare
    arguments:
      deviceshare.VGPUEnable: true
      deviceshare.SchedulePolicy: binpack
      deviceshare.ScheduleWeight: 10
`

// vgpuNode is the node as Volcano's own device plugin would describe it. The handshake is one that
// Volcano need not answer.
func vgpuNode(name string, cards int) *v1.Node {
	node := harness.Node(name, cards)
	var register strings.Builder
	for i := range cards {
		fmt.Fprintf(&register, "GPU-%s-%d,20,40960,NVIDIA-A100,true:", name, i)
	}
	node.Annotations = map[string]string{
		vgpu.VolcanoVGPURegister: register.String(), vgpu.VolcanoVGPUHandshake: "Requesting_2999.12.31 00:00:00",
	}
	for _, name := range []v1.ResourceName{harness.Number, harness.Cores, harness.Memory} {
		delete(node.Status.Allocatable, name)
	}
	node.Status.Allocatable[vgpu.VolcanoVGPUNumber] = *resource.NewQuantity(int64(20*cards), resource.DecimalSI)
	return node
}

func vgpuPod(name, group string, cores, memoryGiB int) *v1.Pod {
	pod := harness.Pod(namespace, name, group, "", 0, 0, 0)
	limits := v1.ResourceList{}
	for resourceName, value := range map[v1.ResourceName]int{
		vgpu.VolcanoVGPUNumber: 1, vgpu.VolcanoVGPUCores: cores, vgpu.VolcanoVGPUMemory: memoryGiB * 1024,
	} {
		limits[resourceName] = *resource.NewQuantity(int64(value), resource.DecimalSI)
	}
	pod.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: limits, Limits: limits}
	return pod
}

// vgpuClient is the client with which deviceshare patches each pod while it decides, one request a
// pod, five a second. It is replaced by one that does nothing, so what is measured is less than
// what deviceshare really costs.
//
//go:linkname vgpuClient volcano.sh/volcano/pkg/scheduler/api/devices/nvidia/vgpu.kubeClient
var vgpuClient kubernetes.Interface

type client struct{ kubernetes.Interface }

func (client) CoreV1() corev1.CoreV1Interface { return core{} }

type core struct{ corev1.CoreV1Interface }

func (core) Pods(string) corev1.PodInterface { return podClient{} }

type podClient struct{ corev1.PodInterface }

func (podClient) Patch(
	context.Context, string, types.PatchType, []byte, metav1.PatchOptions, ...string,
) (*v1.Pod, error) {
	return nil, nil
}
