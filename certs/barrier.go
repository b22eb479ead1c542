package certs

// The barrier. In: the kind of what was published. Out: every API server has loaded it. Errors: see prove.go; what was made
// for the proof cannot be removed.
//
// For objects of others, behind which no server of ours can be called. API servers see the changes of one kind in
// their order, so a Barrier makes an object of the same kind, changes it, and looks through each API server
// whether the change has arrived. Made and changed, because an API server may come across a new object while it
// still remembers the old form of another one, but it forgets old forms in order.
//
//	webhooks     one that leads nowhere, and fails dry-run creates of Leases with a label: of none, then of this generation
//	APIServices  a group of its own, answered by nobody (404), then by a Service that does not exist (503); for
//	             that moment the discovery of others lists a group that does not answer
//	CRDs         nothing shows when a conversion webhook's bundle has arrived: a wait
//
// It proves that the bundle is loaded, and nothing about the certificate.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

const (
	// barrierKey is the label of probes, with the generation, and of what is made for them. It is the name of
	// the webhook as well, and the parent of the APIServices' groups.
	barrierKey     = "barrier.tracehook.dev"
	barrierVersion = "v1"
	nowhere        = "tracehook-barrier-leads-nowhere" // a Service that does not exist

	// left: a barrier this old is nobody's any more.
	left          = 10 * time.Minute
	removeTimeout = 10 * time.Second
	defaultSettle = 30 * time.Second
)

// BarrierOptions of a Barrier.
type BarrierOptions struct {
	// Config is how the cluster is talked to. Each API server is asked with it at an address of its own.
	Config *rest.Config
	// APIServers are the URLs of all of them. Empty: those behind Service default/kubernetes.
	APIServers []string
	// Kind of what was published: KindMutating, KindValidating or KindAPIService; KindCRD is only waited for.
	Kind string
	// Namespace of the probes, which are never stored; it has to exist. Empty: "default".
	Namespace     string
	Settle        time.Duration        // how long to wait for KindCRD. Zero: 30 s
	Retry         time.Duration        // Zero: 200 ms
	Logger        *slog.Logger         // Nil: silence
	MeterProvider metric.MeterProvider // Nil: none
	Now           func() time.Time     // Nil: time.Now
}

// Barrier is a Prover for what others serve: no server of ours is called, and Claim.Bundle and Claim.Leaf are
// not looked at.
type Barrier struct {
	o       BarrierOptions
	objects dynamic.NamespaceableResourceInterface
	asking
}

// NewBarrier checks the options.
func NewBarrier(o BarrierOptions) (*Barrier, error) {
	resource, known := resources[o.Kind]
	if !known {
		return nil, fmt.Errorf("make a barrier: kind %q has no CA bundle", o.Kind)
	}
	o.Namespace = cmp.Or(o.Namespace, metav1.NamespaceDefault)
	o.Settle = cmp.Or(o.Settle, defaultSettle)
	a, err := newAsking(o.Config, o.APIServers, o.Retry, o.Logger, o.MeterProvider, o.Now)
	if err != nil {
		return nil, fmt.Errorf("make a barrier: %w", err)
	}
	a.prover = "barrier"
	client, err := dynamic.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("make a barrier: %w", err)
	}
	return &Barrier{o, client.Resource(resource), a}, nil
}

// Prove implements Prover. What it made is removed before it returns, also when ctx has ended.
func (b *Barrier) Prove(ctx context.Context, claim Claim) (_ Proof, err error) {
	if len(validation.IsDNS1123Label(claim.Generation)) > 0 {
		return Proof{}, fmt.Errorf("prove what was published: generation %q is no DNS label", claim.Generation)
	}
	if b.o.Kind == KindCRD {
		return b.settle(ctx)
	}
	b.removeOld(ctx)
	name := "0-tracehook-barrier-" + claim.Generation // sorts early: API servers call mutating webhooks in that order
	if b.o.Kind == KindAPIService {
		name = barrierVersion + "." + claim.Generation + "." + barrierKey
	}
	defer func() {
		if removed := b.remove(ctx, name); removed != nil {
			err = errors.Join(err, fmt.Errorf("remove %s %s, which is not needed any more: %w", b.o.Kind, name, removed))
		}
	}()
	raised := 0
	ask := b.asking
	ask.prepare = func(ctx context.Context) error {
		for ; raised < 2; raised++ {
			if err := b.apply(ctx, b.object(name, claim.Generation, raised == 1)); err != nil {
				return fmt.Errorf("write %s %s: %w", b.o.Kind, name, err)
			}
		}
		return nil
	}
	ask.arrived = func(ctx context.Context, server apiServer) error {
		if b.o.Kind == KindAPIService {
			return b.aggregated(ctx, server, claim.Generation)
		}
		return b.stopped(ctx, server, claim.Generation)
	}
	proof, err := ask.untilAll(ctx)
	if err != nil {
		return Proof{}, fmt.Errorf("prove generation %s: %w", claim.Generation, err)
	}
	return proof, nil
}

func (b *Barrier) settle(ctx context.Context) (Proof, error) {
	select {
	case <-ctx.Done():
		return Proof{}, fmt.Errorf("wait until a CA bundle is in force: %w", context.Cause(ctx))
	case <-time.After(b.o.Settle):
		return Proof{Time: b.now(), Certainty: Assumed}, nil
	}
}

// object is the barrier, made or changed.
func (b *Barrier) object(name, generation string, changed bool) *unstructured.Unstructured {
	resource := resources[b.o.Kind]
	object := map[string]any{
		"apiVersion": resource.GroupVersion().String(), "kind": b.o.Kind,
		"metadata": map[string]any{"name": name, "labels": map[string]any{barrierKey: generation}},
	}
	service := map[string]any{"namespace": b.o.Namespace, "name": nowhere}
	if b.o.Kind == KindAPIService {
		spec := map[string]any{
			"group": generation + "." + barrierKey, "version": barrierVersion,
			"groupPriorityMinimum": int64(1), "versionPriority": int64(1),
		}
		if changed {
			service["port"] = int64(defaultPort)
			spec["service"] = service
		}
		object["spec"] = spec
		return &unstructured.Unstructured{Object: object}
	}
	selected := "nobody"
	if changed {
		selected = generation
	}
	object["webhooks"] = []any{map[string]any{
		"name": barrierKey, "admissionReviewVersions": []any{"v1"}, "sideEffects": "None", "failurePolicy": "Fail", "timeoutSeconds": int64(1),
		"clientConfig":      map[string]any{"service": service},
		"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": b.o.Namespace}},
		"objectSelector":    map[string]any{"matchLabels": map[string]any{barrierKey: selected}},
		"rules": []any{map[string]any{
			"operations": []any{"CREATE"}, "apiGroups": []any{coordinationv1.GroupName}, "apiVersions": []any{"v1"}, "resources": []any{"leases"}, "scope": "Namespaced",
		}},
	}}
	return &unstructured.Unstructured{Object: object}
}

func (b *Barrier) apply(ctx context.Context, object *unstructured.Unstructured) error {
	_, err := b.objects.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "tracehook-barrier", Force: true})
	return err
}

// stopped: the API server's own refusal shows that it has the webhook, in its changed form.
func (b *Barrier) stopped(ctx context.Context, server apiServer, generation string) error {
	probe := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Name: "tracehook-barrier-" + generation, Labels: map[string]string{barrierKey: generation},
	}}
	_, err := server.clients.CoordinationV1().Leases(b.o.Namespace).
		Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	switch {
	case err == nil:
		return errors.New("it has not loaded what was published last")
	case strings.Contains(err.Error(), fmt.Sprintf("failed calling webhook %q", barrierKey)):
		return nil
	}
	return err
}

// aggregated: only an APIService with a Service is unavailable; none, or a local one, is not found.
func (b *Barrier) aggregated(ctx context.Context, server apiServer, generation string) error {
	err := server.clients.Discovery().RESTClient().Get().
		AbsPath("/apis", generation+"."+barrierKey, barrierVersion).MaxRetries(0).Do(ctx).Error()
	switch {
	case apierrors.IsNotFound(err):
		return errors.New("it has not loaded what was published last")
	case apierrors.IsServiceUnavailable(err):
		return nil
	case err == nil:
		return errors.New("somebody answers where nobody should")
	}
	return err
}

// remove removes a barrier; one that is not there is removed.
func (b *Barrier) remove(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := b.objects.Delete(ctx, name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}

// removeOld removes what was left by a process that was killed. It is not worth an error: nothing but probes
// like its own ever meets it.
func (b *Barrier) removeOld(ctx context.Context) {
	found, err := b.objects.List(ctx, metav1.ListOptions{LabelSelector: barrierKey})
	if err != nil {
		return
	}
	for _, object := range found.Items {
		if b.now().Sub(object.GetCreationTimestamp().Time) > left {
			_ = b.remove(ctx, object.GetName())
		}
	}
}
