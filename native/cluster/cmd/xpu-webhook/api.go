// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flexai.io/xpu/cluster/certs"
)

// authorityKey is the only entry of our Secret.
const authorityKey = "authorities.pem"

// Kinds of webhook configurations, as paths name them.
const (
	mutatingHooks   = "mutatingwebhookconfigurations"
	validatingHooks = "validatingwebhookconfigurations"
)

const callLimit = 10 * time.Second

// api is the API server, as far as this program needs it: one Secret and two webhook configurations,
// by name. Like the device plugin it does without the clientset of every group.
type api struct {
	core, registration rest.Interface
	cfg                config
}

func newAPI(settings *rest.Config, cfg config) (*api, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, admissionregistrationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	client := func(path string, version schema.GroupVersion) (rest.Interface, error) {
		own := rest.CopyConfig(settings)
		own.APIPath, own.GroupVersion, own.Timeout = path, &version, callLimit
		own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
		return rest.RESTClientFor(own)
	}
	core, err := client("/api", corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	registration, err := client("/apis", admissionregistrationv1.SchemeGroupVersion)
	return &api{core, registration, cfg}, err
}

func (a *api) secret(ctx context.Context) (*corev1.Secret, error) {
	var secret corev1.Secret
	err := a.core.Get().Namespace(a.cfg.namespace).Resource("secrets").Name(a.cfg.secret).Do(ctx).Into(&secret)
	if apierrors.IsNotFound(err) {
		// We may not make it: no rule can allow that for one name alone.
		return nil, fmt.Errorf("Secret %s/%s is not there; the chart makes it: helm upgrade", a.cfg.namespace, a.cfg.secret)
	}
	return &secret, err
}

// Load implements certs.Vault.
func (a *api) Load(ctx context.Context) ([]byte, string, error) {
	secret, err := a.secret(ctx)
	if err != nil {
		return nil, "", err
	}
	return secret.Data[authorityKey], secret.ResourceVersion, nil
}

// Save implements certs.Vault; the API server refuses a version that is no longer the last.
func (a *api) Save(ctx context.Context, text []byte, version string) error {
	secret, err := a.secret(ctx)
	if err != nil {
		return err
	}
	secret.ResourceVersion, secret.Data = version, map[string][]byte{authorityKey: text}
	err = a.core.Put().Namespace(a.cfg.namespace).Resource("secrets").Name(a.cfg.secret).Body(secret).Do(ctx).Error()
	if apierrors.IsConflict(err) {
		return certs.ErrConflict
	}
	return err
}

// Publish implements certs.Publisher. What is right already is not written.
func (a *api) Publish(ctx context.Context, bundle []byte) error {
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	if err := errors.Join(a.read(ctx, mutatingHooks, &mutating), a.read(ctx, validatingHooks, &validating)); err != nil {
		return err
	}
	changing, judging := map[string][]byte{}, map[string][]byte{}
	for _, hook := range mutating.Webhooks {
		changing[hook.Name] = hook.ClientConfig.CABundle
	}
	for _, hook := range validating.Webhooks {
		judging[hook.Name] = hook.ClientConfig.CABundle
	}
	return errors.Join(a.patch(ctx, mutatingHooks, changing, bundle), a.patch(ctx, validatingHooks, judging, bundle))
}

func (a *api) read(ctx context.Context, resource string, into runtime.Object) error {
	return a.registration.Get().Resource(resource).Name(a.cfg.configuration).Do(ctx).Into(into)
}

// patch gives bundle to those webhooks, of the bundles known by name, that have another one.
func (a *api) patch(ctx context.Context, resource string, known map[string][]byte, bundle []byte) error {
	hooks := []map[string]any{}
	for name, has := range known {
		if !bytes.Equal(has, bundle) {
			hooks = append(hooks, map[string]any{"name": name, "clientConfig": map[string]any{"caBundle": bundle}})
		}
	}
	if len(hooks) == 0 {
		return nil
	}
	text, err := json.Marshal(map[string]any{"webhooks": hooks})
	if err != nil {
		return err
	}
	// A strategic merge keeps what else is in a webhook, and webhooks by their names.
	return a.registration.Patch(types.StrategicMergePatchType).Resource(resource).Name(a.cfg.configuration).
		Body(text).Do(ctx).Error()
}
