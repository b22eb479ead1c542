// Package copier is a controller of somebody else's: for every ConfigMap that asks for it
// by label, it makes a copy. Two of its lines are ours, and they are marked.
package copier

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/tracehook/tracehook/webhook/cause/traced"
)

// CopyLabel: a ConfigMap that has it gets a copy.
const CopyLabel = "copier.example/copy"

// New returns a manager that runs the controller in one namespace once it is started.
func New(config *rest.Config, namespace string, telemetry traced.Options) (manager.Manager, error) {
	config = rest.CopyConfig(config)
	config.Wrap(traced.Transport(telemetry.TracerProvider)) // the first line
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Metrics: server.Options{BindAddress: "0"},
		Cache:   cache.Options{DefaultNamespaces: map[string]cache.Config{namespace: {}}},
	})
	if err != nil {
		return nil, fmt.Errorf("make manager: %w", err)
	}
	asked, err := predicate.LabelSelectorPredicate(metav1.LabelSelector{
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: CopyLabel, Operator: metav1.LabelSelectorOpExists}},
	})
	if err != nil {
		return nil, fmt.Errorf("select by label: %w", err)
	}
	err = ctrl.NewControllerManagedBy(mgr).Named(namespace).For(&corev1.ConfigMap{}, builder.WithPredicates(asked)).Complete(
		traced.Reconciler(&copier{mgr.GetClient()}, traced.Read(mgr.GetClient(), &corev1.ConfigMap{}), telemetry)) // the second line
	if err != nil {
		return nil, fmt.Errorf("register controller: %w", err)
	}
	return mgr, nil
}

type copier struct{ client.Client }

func (c *copier) Reconcile(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
	source := &corev1.ConfigMap{}
	if err := c.Get(ctx, r.NamespacedName, source); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	copied := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: source.Namespace, Name: source.Name + "-copy"}, Data: source.Data}
	if err := controllerutil.SetOwnerReference(source, copied, c.Scheme()); err != nil {
		return reconcile.Result{}, fmt.Errorf("make the source own its copy: %w", err)
	}
	if err := c.Create(ctx, copied); client.IgnoreAlreadyExists(err) != nil {
		return reconcile.Result{}, fmt.Errorf("create the copy: %w", err)
	}
	return reconcile.Result{}, nil
}
