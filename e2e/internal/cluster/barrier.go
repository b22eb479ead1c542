package cluster

// The barrier. In: webhook configurations and Services as stored. Out: the moment from
// which every API server acts on them. Errors: the API server's, and ctx's with what
// was still missing.
//
// An API server sees a change a moment after it is stored, and nobody can ask it how
// far it is. But it sees the changes of one kind in their order. So a change of our
// own, made last, whose effect shows in the answer to a dry-run create, proves that all
// before it have arrived: a Service for Services, a webhook for webhooks. Without this
// a test that counts calls is right only most of the time.

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	admissionapply "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"
	metaapply "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// The barrier is a webhook that fails closed and is nowhere: its Service leads to a
// port of localhost where nobody listens. Its name sorts before "tracehook", and API
// servers call webhooks in that order, so a probe that it stops never gets to tracehook
// and moves none of its counters.
const (
	barrierWebhook = "barrier.e2e.tracehook.dev" // also its configuration, and the label of what it stops
	barrierService = "tracehook-e2e-barrier"
	barrierPort    = 1 // tcpmux, of which there is none any more
)

// inForce returns when every running API server of the cluster acts on the webhook
// configurations and Services that are stored now.
func (c *Cluster) inForce(ctx context.Context, clients kubernetes.Interface) (err error) {
	services := clients.CoreV1().Services(webhookNamespace)
	webhooks := clients.AdmissionregistrationV1().MutatingWebhookConfigurations()
	options := metav1.ApplyOptions{FieldManager: barrierService, Force: true}
	defer func() {
		cleanUp, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		removed := errors.Join(
			webhooks.Delete(cleanUp, barrierWebhook, metav1.DeleteOptions{}),
			services.Delete(cleanUp, barrierService, metav1.DeleteOptions{}))
		if err == nil && removed != nil { // else they may never have been made
			err = fmt.Errorf("remove barrier: %w", removed)
		}
	}()

	service := coreapply.Service(barrierService, webhookNamespace).WithSpec(
		coreapply.ServiceSpec().WithType(corev1.ServiceTypeExternalName).WithExternalName("localhost"))
	if _, err := services.Apply(ctx, service, options); err != nil {
		return fmt.Errorf("write barrier: %w", err)
	}
	// Made, then changed, and only the change is waited for: an API server may come
	// across a new configuration while it still remembers an old form of another one,
	// but it forgets old forms in order.
	write := func(generation string, again int) error {
		configuration := admissionapply.MutatingWebhookConfiguration(barrierWebhook).
			WithAnnotations(map[string]string{barrierWebhook: strconv.Itoa(again)}).
			WithWebhooks(
				admissionapply.MutatingWebhook().
					WithName(barrierWebhook).
					WithAdmissionReviewVersions("v1").
					WithSideEffects(admissionv1.SideEffectClassNone).
					WithFailurePolicy(admissionv1.Fail).
					WithClientConfig(admissionapply.WebhookClientConfig().WithService(admissionapply.ServiceReference().
						WithNamespace(webhookNamespace).WithName(barrierService).WithPort(barrierPort))).
					WithObjectSelector(metaapply.LabelSelector().
						WithMatchLabels(map[string]string{barrierWebhook: generation})).
					WithRules(admissionapply.RuleWithOperations().WithOperations(admissionv1.Create).
						WithAPIGroups("").WithAPIVersions("v1").WithResources("configmaps")))
		if _, err := webhooks.Apply(ctx, configuration, options); err != nil {
			return fmt.Errorf("write barrier: %w", err)
		}
		return nil
	}
	for _, generation := range []string{"made", "changed"} {
		if err := write(generation, 0); err != nil {
			return err
		}
	}
	// An API server may keep the form before the last until the next change: see certs/barrier.go.
	nudge := func(again int) error { return write("changed", again) }

	for _, server := range c.running() {
		if err := server.atBarrier(ctx, "changed", nudge); err != nil {
			return fmt.Errorf("%s: %w", server.Name, err)
		}
	}
	return nil
}

// atBarrier returns when the API server has arrived at that generation of the barrier, which is written again every now and
// then.
func (s *APIServer) atBarrier(ctx context.Context, generation string, nudge func(again int) error) error {
	clients, err := kubernetes.NewForConfig(s.RESTConfig)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	probe := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: barrierService, Labels: map[string]string{barrierWebhook: generation}}}
	for round := 1; ; round++ {
		if round%100 == 0 { // two seconds
			if err := nudge(round); err != nil {
				return err
			}
		}
		// In the namespace that the shipped manifests keep away from: a probe that comes
		// before the barrier does must not be a call of tracehook, either.
		_, err := clients.CoreV1().ConfigMaps(webhookNamespace).
			Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		switch {
		case err == nil:
			err = errors.New("the barrier's webhook is not called yet")
		case strings.Contains(err.Error(), fmt.Sprintf("failed calling webhook %q", barrierWebhook)):
			if !strings.Contains(err.Error(), fmt.Sprintf("service %q not found", barrierService)) {
				return nil
			}
		default:
			return fmt.Errorf("create probe: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
