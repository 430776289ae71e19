// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"flexai.io/xpu/cluster/pids/api"
	"flexai.io/xpu/cluster/vxpu"
)

const (
	// answerLimit: gpu-device-plugin itself waits two seconds for a driver that hangs.
	answerLimit   = 8 * time.Second
	largestAnswer = 8 << 20 // 16 cards of 256 slices fit
	period        = "60"    // over which utilisation is averaged, as upstream's exporter asks
)

// Source tells what a node's cards and slices do.
type Source interface {
	Node(ctx context.Context) (vxpu.Node, error)
}

// Plugin is gpu-device-plugin behind its socket.
type Plugin struct{ client api.PidsServiceClient }

// NewPlugin connects at the first question, and again after gpu-device-plugin was started anew.
func NewPlugin(socket string) (*Plugin, error) {
	connection, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(largestAnswer)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, err
	}
	return &Plugin{api.NewPidsServiceClient(connection)}, nil
}

// Node asks it.
func (p *Plugin) Node(ctx context.Context) (vxpu.Node, error) {
	answer, err := p.client.GetAllVxpuInfo(ctx, &api.GetAllVxpuInfoRequest{Period: period})
	if err != nil {
		return nil, err
	}
	return vxpu.Decode(answer.GetVxpuInfos())
}

// Collector reads when it is scraped.
type Collector struct {
	source        Source
	name, address string
	// fresh is how long an answer is shown again.
	fresh time.Duration
	log   *slog.Logger

	mutex sync.Mutex // held while asking: scrapes at the same time share an answer
	last  answer
	blind bool // the last question failed, and that was said
}

type answer struct {
	node vxpu.Node
	at   time.Time
	took time.Duration
}

// NewCollector shows the node called name.
func NewCollector(source Source, name, address string, fresh time.Duration, log *slog.Logger) *Collector {
	return &Collector{source: source, name: name, address: address, fresh: fresh, log: log}
}

// Describe names all metrics there can be.
func (c *Collector) Describe(out chan<- *prometheus.Desc) { describe(out) }

// Collect asks and shows the answer; without one, that there is none.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	found, err := c.read()
	out <- prometheus.MustNewConstMetric(up, gauge, truth(err == nil))
	if err != nil {
		return
	}
	out <- prometheus.MustNewConstMetric(age, gauge, found.took.Seconds())
	show(found.node, c.name, c.address, out)
}

func (c *Collector) read() (answer, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.last.node != nil && time.Since(c.last.at) < c.fresh {
		return c.last, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerLimit)
	defer cancel()
	began := time.Now()
	node, err := c.source.Node(ctx)
	c.say(err)
	if err != nil {
		return answer{}, err
	}
	c.last = answer{node, began, time.Since(began)}
	return c.last, nil
}

// say tells trouble once, and once more when it is over.
func (c *Collector) say(err error) {
	switch {
	case err != nil && !c.blind:
		c.log.Warn("gpu-device-plugin gives no answer; metrics are left out until it does", "error", err)
	case err == nil && c.blind:
		c.log.Info("gpu-device-plugin answers again")
	}
	c.blind = err != nil
}
