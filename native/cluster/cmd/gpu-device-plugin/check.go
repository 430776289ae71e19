// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const checkLimit = 5 * time.Second

// check is the probe of the plugin's pod: it asks the running plugin's socket, as the kubelet does. The
// socket is there only while the kubelet knows it.
func check(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("gpu-device-plugin check", flag.ContinueOnError)
	directory := flags.String("device-plugin-dir", "/var/lib/kubelet/device-plugins", "kubelet's device-plugin directory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	path := filepath.Join(*directory, numberSocket)
	connection, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	if _, err := pluginapi.NewDevicePluginClient(connection).GetDevicePluginOptions(ctx, &pluginapi.Empty{}); err != nil {
		return fmt.Errorf("the plugin does not answer on %s: %w", path, err)
	}
	return nil
}
