// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flexai.io/xpu/cluster/agent"
)

const (
	component = "gpu-device-plugin"
	// maxMessage is what the API server takes as an event's message.
	maxMessage = 1024
	cut        = " …"
)

// Evict asks for an eviction, which respects disruption budgets. The UID goes with it: a new pod of the
// same name is nobody's business.
func (a *API) Evict(ctx context.Context, pod agent.Pod) error {
	uid := types.UID(pod.UID)
	body, err := json.Marshal(policyv1.Eviction{
		TypeMeta:      metav1.TypeMeta{APIVersion: "policy/v1", Kind: "Eviction"},
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}},
	})
	if err != nil {
		return err
	}
	// A budget's refusal says when to come back; who calls has his own time for that.
	err = a.client.Post().Namespace(pod.Namespace).Resource("pods").Name(pod.Name).SubResource("eviction").
		SetHeader("Content-Type", "application/json").Body(body).MaxRetries(0).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return agent.ErrNoPod
	}
	return err
}

// Warn puts an event on a pod.
func (a *API) Warn(ctx context.Context, pod agent.Pod, reason, message string) error {
	now := metav1.NewTime(time.Now())
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage-len(cut)], "") + cut
	}
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, GenerateName: pod.Name + "."},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name,
			UID: types.UID(pod.UID)},
		Reason: reason, Message: message, Type: corev1.EventTypeWarning, Count: 1,
		Source:         corev1.EventSource{Component: component, Host: a.node},
		FirstTimestamp: now, LastTimestamp: now,
	}
	return a.client.Post().Namespace(pod.Namespace).Resource("events").Body(event).Do(ctx).Error()
}
