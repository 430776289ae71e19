// SPDX-License-Identifier: Apache-2.0

// Package exporter shows a node's cards and slices to Prometheus: it asks gpu-device-plugin when it is
// scraped, and serves with bounded connections, rate and concurrency, TLS and a bearer token.
package exporter

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"flexai.io/xpu/cluster/vxpu"
)

// The labels of the contract, and those of the metrics that are ours. None of them holds what a tenant can
// choose at run time: there are as many series as slices.
var (
	nodeLabels  = []string{"node_name", "node_ip"}
	cardLabels  = []string{"gpu_uuid", "node_name", "node_ip", "nvml_index", "model", "driver_version", "cuda_version"}
	countLabels = []string{"node_name", "node_ip", "gpu_uuid"}
	sliceLabels = []string{"gpu_uuid", "node_name", "node_ip", "pod_uuid", "container_name", "vgpu_id",
		"vgpu_core_limit", "vgpu_mem_limit"}
	ownLabels = []string{"gpu_uuid", "node_name", "vgpu_id", "namespace", "pod", "pod_uuid", "container_name"}
)

func cardValues(card *vxpu.Card) []string {
	return []string{card.Id, card.NodeName, card.NodeIp, strconv.Itoa(card.Index), card.Model, card.DriverVersion,
		card.FrameworkVersion}
}

func countValues(card *vxpu.Card) []string { return []string{card.NodeName, card.NodeIp, card.Id} }

func sliceValues(card *vxpu.Card, slice vxpu.Slice) []string {
	return []string{card.Id, card.NodeName, card.NodeIp, slice.PodUID, slice.ContainerName, slice.Id,
		strconv.FormatInt(slice.VxpuCoreLimit, 10), strconv.FormatInt(slice.VxpuMemoryLimit, 10)}
}

func ownValues(card *vxpu.Card, slice vxpu.Slice) []string {
	return []string{card.Id, card.NodeName, slice.Id, slice.Namespace, slice.Pod, slice.PodUID, slice.ContainerName}
}

// cardMetric is one number of a card; nil where the card doesn't have it.
type cardMetric struct {
	desc  *prometheus.Desc
	value func(*vxpu.Card) *float64
}

// sliceMetric is one number of a slice.
type sliceMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(vxpu.Slice) float64
}

func cardGauge(name, help string, value func(*vxpu.Card) *float64) cardMetric {
	return cardMetric{prometheus.NewDesc(name, help, cardLabels, nil), value}
}

func always(value func(*vxpu.Card) float64) func(*vxpu.Card) *float64 {
	return func(card *vxpu.Card) *float64 {
		found := value(card)
		return &found
	}
}

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
	mib     = 1 << 20
)

// cardMetrics are the contract's, and xpu_gpu_memory_used_bytes.
var cardMetrics = []cardMetric{
	cardGauge("xpu_gpu_util", "Utilisation of the card in percent, over NVML's last sample period.",
		func(card *vxpu.Card) *float64 { return card.XpuUtilization }),
	cardGauge("xpu_gpu_mem_util", "Memory that slices use, in percent of the card's.",
		always(func(card *vxpu.Card) float64 { return card.MemoryUtilization })),
	cardGauge("xpu_gpu_status", "1 while the card is healthy and NVML answers about it.",
		always(func(card *vxpu.Card) float64 { return truth(card.Health) })),
	cardGauge("xpu_gpu_mem", "Memory of the card in MiB.",
		always(func(card *vxpu.Card) float64 { return float64(card.MemoryTotal) })),
	cardGauge("xpu_gpu_power_usage", "Power the card draws, in milliwatts.",
		func(card *vxpu.Card) *float64 { return card.PowerUsage }),
	cardGauge("xpu_gpu_temperature", "Temperature of the card in degrees Celsius.",
		func(card *vxpu.Card) *float64 { return card.Temperature }),
	cardGauge("xpu_gpu_memory_used_bytes", "Memory of the card in use by anybody, by NVML.", func(card *vxpu.Card) *float64 {
		if card.CardMemoryUsed == nil {
			return nil
		}
		used := float64(*card.CardMemoryUsed * mib)
		return &used
	}),
}

// contractMetrics of a slice bear the contract's labels.
var contractMetrics = []sliceMetric{
	{prometheus.NewDesc("xpu_vgpu_util", "GPU time charged to the slice over the last minute, in percent of the card.", sliceLabels, nil),
		gauge, func(slice vxpu.Slice) float64 { return slice.VxpuCoreUtilization }},
	{prometheus.NewDesc("xpu_vgpu_mem_util", "Memory the slice uses, in percent of the card's.", sliceLabels, nil),
		gauge, func(slice vxpu.Slice) float64 { return slice.VxpuMemoryUtilization }},
}

func own(name, help string, kind prometheus.ValueType, value func(vxpu.Slice) float64) sliceMetric {
	return sliceMetric{prometheus.NewDesc(name, help, ownLabels, nil), kind, value}
}

// ownMetrics of a slice say which container it is. Counters begin anew with the container; a tenant can
// write them.
var ownMetrics = []sliceMetric{
	own("xpu_vgpu_memory_limit_bytes", "Memory quota of the slice; 0 is none.", gauge,
		func(slice vxpu.Slice) float64 { return float64(slice.VxpuMemoryLimit * mib) }),
	own("xpu_vgpu_memory_used_bytes", "Memory the slice uses.", gauge,
		func(slice vxpu.Slice) float64 { return float64(slice.MemoryBytes) }),
	own("xpu_vgpu_core_limit_percent", "Share of the card's time promised to the slice; 0 is no limit.", gauge,
		func(slice vxpu.Slice) float64 { return float64(slice.VxpuCoreLimit) }),
	own("xpu_vgpu_core_share_percent", "Share in force now; elastic and priority slices are lent what others leave.", gauge,
		func(slice vxpu.Slice) float64 { return slice.ShareInForce }),
	own("xpu_vgpu_gpu_seconds_total", "GPU time charged.", counter,
		func(slice vxpu.Slice) float64 { return slice.ChargedSeconds }),
	own("xpu_vgpu_throttled_seconds_total", "Time that the slice's threads waited for their share.", counter,
		func(slice vxpu.Slice) float64 { return slice.ThrottledSeconds }),
	own("xpu_vgpu_debt_seconds", "How long the slice would have to pause to be back at its share; at most 60.", gauge,
		func(slice vxpu.Slice) float64 { return slice.DebtSeconds }),
	own("xpu_vgpu_memory_denied_total", "Allocations refused, being over the quota.", counter,
		func(slice vxpu.Slice) float64 { return float64(slice.Denied) }),
	own("xpu_vgpu_launches_total", "Pieces of work admitted.", counter,
		func(slice vxpu.Slice) float64 { return float64(slice.Launches) }),
	own("xpu_vgpu_processes", "Processes of the slice that use the card.", gauge,
		func(slice vxpu.Slice) float64 { return float64(slice.Processes) }),
	own("xpu_vgpu_paused", "1 while no new work of the slice may start (mode priority, others are active).", gauge,
		func(slice vxpu.Slice) float64 { return truth(slice.Paused) }),
}

var (
	cardCount  = prometheus.NewDesc("xpu_gpu_num", "Cards of the node.", nodeLabels, nil)
	sliceCount = prometheus.NewDesc("xpu_vgpu_num", "Slices on the card.", countLabels, nil)
	podCount   = prometheus.NewDesc("xpu_vgpu_pod_num", "Pods with a slice on the card.", countLabels, nil)
	up         = prometheus.NewDesc("xpu_exporter_up", "1 when gpu-device-plugin answered this scrape.", nil, nil)
	age        = prometheus.NewDesc("xpu_exporter_read_seconds", "How long gpu-device-plugin took to answer.", nil, nil)
)

func describe(out chan<- *prometheus.Desc) {
	for _, one := range cardMetrics {
		out <- one.desc
	}
	for _, one := range append(append([]sliceMetric{}, contractMetrics...), ownMetrics...) {
		out <- one.desc
	}
	for _, one := range []*prometheus.Desc{cardCount, sliceCount, podCount, up, age} {
		out <- one
	}
}

// show turns an answer into metrics. Node name and address are the exporter's own where the node has no card.
func show(node vxpu.Node, name, address string, out chan<- prometheus.Metric) {
	put := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		metric, err := prometheus.NewConstMetric(desc, kind, value, labels...)
		if err != nil {
			metric = prometheus.NewInvalidMetric(desc, err)
		}
		out <- metric
	}
	put(cardCount, gauge, float64(len(node)), name, address)
	for _, card := range node {
		for _, one := range cardMetrics {
			if value := one.value(card); value != nil {
				put(one.desc, gauge, *value, cardValues(card)...)
			}
		}
		pods := map[string]bool{}
		for _, slice := range card.VxpuDeviceList {
			pods[slice.PodUID] = true
			for _, one := range contractMetrics {
				put(one.desc, one.kind, one.value(slice), sliceValues(card, slice)...)
			}
			for _, one := range ownMetrics {
				put(one.desc, one.kind, one.value(slice), ownValues(card, slice)...)
			}
		}
		put(sliceCount, gauge, float64(len(card.VxpuDeviceList)), countValues(card)...)
		put(podCount, gauge, float64(len(pods)), countValues(card)...)
	}
}

func truth(value bool) float64 {
	if value {
		return 1
	}
	return 0
}
