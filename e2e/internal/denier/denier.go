// Package denier is a webhook of somebody else's: it was written with controller-runtime's
// builder, knows nothing of traces, and is called for ConfigMaps. One of its lines is
// ours, and it is marked.
package denier

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/tracehook/tracehook/webhook"
)

// Where the builder registers the two webhooks, as kubebuilder would write it into the
// configurations.
const (
	MutatePath   = "/mutate--v1-configmap"
	ValidatePath = "/validate--v1-configmap"
)

// TeamLabel is set on every ConfigMap that has none.
const TeamLabel = "denier.example/team"

// New returns a manager that serves the webhooks once it is started.
func New(config *rest.Config, hooks ctrlwebhook.Options, telemetry webhook.InstrumentOptions) (manager.Manager, error) {
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		WebhookServer: webhook.InstrumentServer(ctrlwebhook.NewServer(hooks), telemetry), // this is the line
		Metrics:       server.Options{BindAddress: "0"},
	})
	if err != nil {
		return nil, fmt.Errorf("make manager: %w", err)
	}
	if err := ctrl.NewWebhookManagedBy(mgr, &corev1.ConfigMap{}).WithDefaulter(team{}).WithValidator(noPasswords{}).Complete(); err != nil {
		return nil, fmt.Errorf("register webhooks: %w", err)
	}
	return mgr, nil
}

// team is the mutating one.
type team struct{}

func (team) Default(_ context.Context, obj *corev1.ConfigMap) error {
	if _, there := obj.Labels[TeamLabel]; !there {
		if obj.Labels == nil {
			obj.Labels = map[string]string{}
		}
		obj.Labels[TeamLabel] = "nobody"
	}
	return nil
}

// noPasswords is the validating one.
type noPasswords struct{}

func (noPasswords) ValidateCreate(_ context.Context, obj *corev1.ConfigMap) (admission.Warnings, error) {
	if _, there := obj.Data["password"]; there {
		return nil, errors.New("a password belongs into a Secret")
	}
	return nil, nil
}

func (v noPasswords) ValidateUpdate(ctx context.Context, _, obj *corev1.ConfigMap) (admission.Warnings, error) {
	return v.ValidateCreate(ctx, obj)
}

func (noPasswords) ValidateDelete(context.Context, *corev1.ConfigMap) (admission.Warnings, error) {
	return nil, nil
}
