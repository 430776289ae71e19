// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

func TestIdsOfEndingSlicesArePreferredLast(t *testing.T) {
	ending := func(id string) bool { return strings.HasPrefix(id, "e") }
	for name, test := range map[string]struct {
		available, must string
		size            int
		want            string
	}{
		"as offered":            {"a b c", "", 2, "a b"},
		"ending ones last":      {"e1 a e2 b", "", 3, "a b e1"},
		"what must be":          {"a e1 b", "e1", 2, "e1 a"},
		"no more than asked":    {"a b", "a b", 1, "a b"},
		"no more than there is": {"a", "", 3, "a"},
	} {
		got := Prefer(strings.Fields(test.available), strings.Fields(test.must), test.size, ending)
		if !slices.Equal(got, strings.Fields(test.want)) {
			t.Errorf("%s: %v, want %s", name, got, test.want)
		}
	}
}

// watch follows what a client hears of a resource's ids.
func watch(t *testing.T, ctx context.Context, client pluginapi.DevicePluginClient) func() string {
	t.Helper()
	stream, err := client.ListAndWatch(ctx, &pluginapi.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	return func() string {
		t.Helper()
		list, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var healthy []string
		for _, device := range list.Devices {
			if device.Health == pluginapi.Healthy {
				healthy = append(healthy, device.ID)
			}
		}
		return strings.Join(healthy, " ")
	}
}

func TestTheKubeletHearsOfWithdrawnIdsAndOfTheirReturn(t *testing.T) {
	directory := shortDirectory(t)
	k := boot(t, directory)
	resources := two(nil)
	resources[0].Withdrawn = NewWithdrawn()
	resources[0].Prefer = func(available, must []string, size int) []string { return available[:size] }
	serve(t, directory, resources)
	if options := k.waitFor(t, 2)[0].Options; !options.GetPreferredAllocationAvailable {
		t.Errorf("%+v", options)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	client := dial(t, directory, "n.sock")
	hears, also := watch(t, ctx, client), watch(t, ctx, client)
	all := "GPU-0-0 GPU-0-1 GPU-1-0 GPU-1-1"
	for _, step := range []struct {
		withdraw string
		want     string
	}{{"", all}, {"GPU-0-0 GPU-1-1", "GPU-0-1 GPU-1-0"}, {"GPU-1-1", "GPU-0-0 GPU-0-1 GPU-1-0"}, {"", all}} {
		ids := map[string]bool{}
		for _, id := range strings.Fields(step.withdraw) {
			ids[id] = true
		}
		resources[0].Withdrawn.Set(ids)
		if resources[0].Withdrawn.Set(ids) {
			t.Error("the same again counts as a change")
		}
		for _, one := range []func() string{hears, also} {
			if got := one(); got != step.want {
				t.Errorf("without %q the kubelet hears %s, want %s", step.withdraw, got, step.want)
			}
		}
	}
	ask := &pluginapi.PreferredAllocationRequest{ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{
		{AvailableDeviceIDs: []string{"GPU-1-1", "GPU-0-0"}, AllocationSize: 1}}}
	answer, err := client.GetPreferredAllocation(ctx, ask)
	if err != nil || !slices.Equal(answer.ContainerResponses[0].DeviceIDs, []string{"GPU-1-1"}) {
		t.Errorf("%v, %v", answer, err)
	}
	ask.ContainerRequests[0].AvailableDeviceIDs = []string{"GPU-1-c1"}
	if _, err := dial(t, directory, "c.sock").GetPreferredAllocation(ctx, ask); status.Code(err) != codes.Unimplemented {
		t.Errorf("%v", err)
	}
}
