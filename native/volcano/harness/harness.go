// SPDX-License-Identifier: Apache-2.0

// Package harness runs scheduling sessions of Volcano, its real actions and plugins, over a cluster
// given as objects, without an API server. Tests and the benchmark use it.
package harness

import (
	_ "embed" // the scheduler's configuration
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/tools/record"
	"volcano.sh/apis/pkg/apis/scheduling/v1beta1"
	"volcano.sh/volcano/cmd/scheduler/app/options"
	"volcano.sh/volcano/pkg/scheduler"
	_ "volcano.sh/volcano/pkg/scheduler/actions" // registers them
	"volcano.sh/volcano/pkg/scheduler/api"
	"volcano.sh/volcano/pkg/scheduler/cache"
	"volcano.sh/volcano/pkg/scheduler/conf"
	"volcano.sh/volcano/pkg/scheduler/framework"
	_ "volcano.sh/volcano/pkg/scheduler/plugins" // registers them
	"volcano.sh/volcano/pkg/scheduler/util"
)

// Configuration is what role volcano gives the scheduler where it may preempt (a test of the role
// compares them).
//
//go:embed scheduler.conf
var Configuration string

// Without is the configuration less one plugin's lines.
func Without(configuration, plugin string) string {
	var kept []string
	skipping := false
	for _, line := range strings.SplitAfter(configuration, "\n") {
		if strings.HasPrefix(line, "  - name:") || !strings.HasPrefix(line, "    ") {
			skipping = strings.TrimSpace(line) == "- name: "+plugin
		}
		if !skipping {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// Cluster is what a scheduler finds.
type Cluster struct {
	Nodes      []*v1.Node
	Pods       []*v1.Pod
	Groups     []*v1beta1.PodGroup
	Queues     []*v1beta1.Queue
	Priorities []*schedulingv1.PriorityClass
}

// Scheduler is Volcano with one configuration over one cluster.
type Scheduler struct {
	Cache          *cache.SchedulerCache
	actions        []framework.Action
	tiers          []conf.Tier
	configurations []conf.Configuration
	stop           chan struct{}
}

// The actions read the scheduler's options from a global.
func init() { options.Default() }

// New makes a scheduler. Its caller has registered the plugins that are not Volcano's own.
func New(configuration string, cluster Cluster) (*Scheduler, error) {
	actions, tiers, configurations, _, err := scheduler.UnmarshalSchedulerConf(configuration)
	if err != nil {
		return nil, fmt.Errorf("scheduler's configuration: %w", err)
	}
	s := &Scheduler{
		actions: actions, tiers: tiers, configurations: configurations, stop: make(chan struct{}),
	}
	// Nobody reads the channels in which the doubles announce what they did.
	s.Cache = cache.NewCustomMockSchedulerCache("volcano",
		util.NewFakeBinder(len(cluster.Pods)), util.NewFakeEvictor(len(cluster.Pods)), &util.FakeStatusUpdater{},
		nil, nil, &record.FakeRecorder{})
	conf.EnabledActionMap = map[string]bool{}
	for _, action := range actions {
		conf.EnabledActionMap[action.Name()] = true
	}
	return s, s.fill(cluster)
}

func (s *Scheduler) fill(cluster Cluster) error {
	for _, node := range cluster.Nodes {
		if err := s.Cache.AddOrUpdateNode(node); err != nil {
			return err
		}
	}
	for _, class := range cluster.Priorities {
		s.Cache.AddPriorityClass(class)
	}
	for _, pod := range cluster.Pods {
		s.Cache.AddPod(pod)
	}
	for _, group := range cluster.Groups {
		s.Cache.AddPodGroupV1beta1(group)
	}
	for _, queue := range cluster.Queues {
		s.Cache.AddQueueV1beta1(queue)
	}
	return nil
}

// Cycle is one session: what the scheduler does once a second.
func (s *Scheduler) Cycle() { s.CycleWith(func([]*api.TaskInfo) {}) }

// CycleWith shows all tasks as they stand at the session's end.
func (s *Scheduler) CycleWith(look func([]*api.TaskInfo)) {
	session := framework.OpenSession(s.Cache, s.tiers, s.configurations)
	for _, action := range s.actions {
		action.Initialize()
		action.Execute(session)
		action.UnInitialize()
	}
	var tasks []*api.TaskInfo
	for _, job := range session.Jobs {
		for _, task := range job.Tasks {
			tasks = append(tasks, task)
		}
	}
	look(tasks)
	framework.CloseSession(session)
}

// Start lets the cache carry out what sessions decide, until Close.
func (s *Scheduler) Start() { s.Cache.Run(s.stop) }

// Close ends what Start began.
func (s *Scheduler) Close() { close(s.stop) }

// Names of a pod's three resources.
const (
	Number = v1.ResourceName("huawei.com/vgpu-number")
	Cores  = v1.ResourceName("huawei.com/vgpu-cores")
	Memory = v1.ResourceName("huawei.com/vgpu-memory-1Gi")
)

// Slices are quantities of the three resources.
func Slices(number, cores, memoryGiB int) v1.ResourceList {
	quantities := v1.ResourceList{}
	for name, value := range map[v1.ResourceName]int{Number: number, Cores: cores, Memory: memoryGiB} {
		if value > 0 {
			quantities[name] = *resource.NewQuantity(int64(value), resource.DecimalSI)
		}
	}
	return quantities
}

// Node has cards of 40 GiB; its resources are what the device plugin would advertise.
func Node(name string, cards int) *v1.Node {
	resources := Slices(cards*20, cards*100, cards*40)
	resources["cpu"], resources["memory"] = resource.MustParse("64"), resource.MustParse("512Gi")
	resources["pods"] = resource.MustParse("110")
	node := util.BuildNode(name, resources, map[string]string{})
	var register strings.Builder
	for i := range cards {
		fmt.Fprintf(&register, "%d,GPU-%s-%d,20,40960,GPU-A100,true,%d:", i, name, i, i/4)
	}
	node.Annotations = map[string]string{"huawei.com/node-vgpu-register": register.String()}
	return node
}

// Pod asks for the totals in one container "main"; it runs on node, or waits where that is empty.
func Pod(namespace, name, group, node string, number, cores, memoryGiB int) *v1.Pod {
	phase := v1.PodPending
	if node != "" {
		phase = v1.PodRunning
	}
	pod := util.BuildPod(namespace, name, node, phase, nil, group, map[string]string{}, nil)
	pod.Spec.SchedulerName = "volcano"
	resources := Slices(number, cores, memoryGiB)
	pod.Spec.Containers[0].Name = "main"
	pod.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: resources, Limits: resources}
	return pod
}
