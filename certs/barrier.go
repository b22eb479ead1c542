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
//	CRDs         one of our own, of whose columns a list shows which form of it is served
//
// A CRD that is loaded is not yet in use: what an API server serves it with, the client of its conversion webhook too, is
// kept until a handler hears of the change, and made anew by the next request, from what is loaded, which is never
// older than what the handler has heard. It hears of all CRDs in order: once ours is served anew because it heard of our
// change, it has heard of the change before. But ours may be made anew for two other reasons, each once: the handler
// of a deletion took it for dead, having listed the CRDs before ours was there; or the API server listed all CRDs again and
// the handler hears of them by name, of ours too early. And what was never served is not made anew. Hence four forms,
// each seen at the same API servers before the next is written: one of the three changes was seen for the right
// reason. Meanwhile discovery lists the group.
//
// A webhook that does not arrive is changed again from time to time. An API server may keep the form before the last for
// good: it reads all configurations, is told of a change, forgets what it had made of that one, and only then stores what it
// made of the form it had read (1.36; getConfiguration against UpdateFunc in k8s.io/apiserver). The next change ends that.
//
// It proves that the bundle is loaded, for requests that begin after it, and nothing about the certificate. What was under way
// ends with the client it began with.

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

const (
	// barrierKey is the label of probes, with the generation, and of what is made for them. It is the end of the
	// webhooks' names as well, the group of the CRDs, and the parent of the APIServices' groups.
	barrierKey     = "barrier.tracehook.dev"
	barrierVersion = "v1"
	nowhere        = "tracehook-barrier-leads-nowhere" // a Service that does not exist

	// After ctx has ended, a write that is under way has writeTimeout, and the removal removeTimeout.
	writeTimeout, removeTimeout = 5 * time.Second, 10 * time.Second
	removeAgain                 = 200 * time.Millisecond

	// nudgeAfter so many rounds a webhook that has not arrived is changed again.
	nudgeAfter = 10

	// formsOfCRD: the first, one for each wrong reason, and one.
	formsOfCRD = 4
)

// BarrierOptions of a Barrier.
type BarrierOptions struct {
	// Config is how the cluster is talked to. Each API server is asked with it at an address of its own.
	Config *rest.Config
	// APIServers are the URLs of all of them. Empty: those behind Service default/kubernetes.
	APIServers []string
	// Kind of what was published: KindMutating, KindValidating, KindCRD or KindAPIService.
	Kind string
	// Namespace of the probes, which are never stored; it has to exist. Empty: "default".
	Namespace string
	// Holder tells others that this process lives, so that they do not take for left what it makes. Zero: they see it by changes of the
	// object alone, and may remove it when there was none for 6 s; the proof then fails.
	Holder        Holder
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

	mu   sync.Mutex
	made []string // and not removed yet
}

// NewBarrier checks the options.
func NewBarrier(o BarrierOptions) (*Barrier, error) {
	resource, known := resources[o.Kind]
	if !known {
		return nil, fmt.Errorf("make a barrier: kind %q has no CA bundle", o.Kind)
	}
	o.Namespace = cmp.Or(o.Namespace, metav1.NamespaceDefault)
	a, err := newAsking(o.Config, o.APIServers, o.Retry, o.Logger, o.MeterProvider, o.Now)
	if err != nil {
		return nil, fmt.Errorf("make a barrier: %w", err)
	}
	a.prover = "barrier"
	client, err := dynamic.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("make a barrier: %w", err)
	}
	return &Barrier{o: o, objects: client.Resource(resource), asking: a}, nil
}

// Left is what it has made and not removed yet: for somebody who does not wait for Prove to return.
func (b *Barrier) Left() (refs []Ref) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range b.made {
		refs = append(refs, Ref{Kind: b.o.Kind, Name: name})
	}
	return refs
}

// Prove implements Prover. What it made is removed before it returns, also when ctx has ended: that may take 15 s more. If the
// process is killed, it is left: see RemoveLeftProofs.
func (b *Barrier) Prove(ctx context.Context, claim Claim) (_ Proof, err error) {
	if len(validation.IsDNS1123Label(claim.Generation)) > 0 {
		return Proof{}, fmt.Errorf("prove what was published: generation %q is no DNS label", claim.Generation)
	}
	name := "0-tracehook-barrier-" + claim.Generation // sorts early: API servers call mutating webhooks in that order
	switch b.o.Kind {
	case KindAPIService:
		name = barrierVersion + "." + claim.Generation + "." + barrierKey
	case KindCRD:
		name = pluralOf(claim.Generation) + "." + barrierKey
	}
	written, unsure := false, false // whether it was made; whether the last write came about is not known
	defer func() {
		if !written && !unsure {
			return
		}
		if removed := b.remove(ctx, name, unsure); removed != nil {
			err = errors.Join(err, fmt.Errorf("remove %s %s, which was made for the proof: %w", b.o.Kind, name, removed))
		}
	}()
	write := func(ctx context.Context, object *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		b.makes(name)
		ctx, cancel := outlasting(ctx, writeTimeout)
		defer cancel()
		made, err := b.objects.Apply(ctx, name, object, metav1.ApplyOptions{FieldManager: "tracehook-barrier", Force: true})
		written = written || err == nil
		unsure = err != nil && apierrors.ReasonForError(err) == metav1.StatusReasonUnknown && !utilnet.IsConnectionRefused(err)
		return made, err
	}
	raised, uid := 0, types.UID("")
	raise := func(forms int) func(context.Context) error {
		return func(ctx context.Context) error {
			for ; raised < forms; raised++ {
				object := b.object(name, claim.Generation, raised)
				object.SetUID(uid) // if somebody removes it, it must not be made anew unnoticed
				written, err := write(ctx, object)
				if err != nil {
					return fmt.Errorf("write %s %s: %w", b.o.Kind, name, err)
				}
				uid = written.GetUID()
			}
			return nil
		}
	}
	// nudged is a webhook in its last form, changed once more every now and then.
	nudged := func(ctx context.Context, round int) error {
		if err := raise(2)(ctx); err != nil || round == 0 || round%nudgeAfter != 0 || b.o.Kind == KindAPIService {
			return err
		}
		object := b.object(name, claim.Generation, 1)
		object.SetUID(uid)
		annotations := object.GetAnnotations()
		annotations[barrierKey] = fmt.Sprintf("nudge-%d", round/nudgeAfter)
		object.SetAnnotations(annotations)
		if _, err := write(ctx, object); err != nil {
			return fmt.Errorf("write %s %s again: %w", b.o.Kind, name, err)
		}
		return nil
	}
	ask := b.asking
	proof, err := ask.timed(ctx, func(ctx context.Context) (proof Proof, err error) {
		if b.o.Kind != KindCRD {
			round := 0
			ask.prepare = func(ctx context.Context) error {
				defer func() { round++ }()
				return nudged(ctx, round)
			}
			ask.arrived = func(ctx context.Context, server apiServer) error {
				if b.o.Kind == KindAPIService {
					return b.aggregated(ctx, server, claim.Generation)
				}
				return b.stopped(ctx, server, claim.Generation)
			}
			return ask.all(ctx)
		}
		for seen := 0; seen < formsOfCRD; seen++ {
			form := raised
			ask.prepare = raise(form + 1)
			ask.arrived = func(ctx context.Context, server apiServer) error {
				return b.served(ctx, server, claim.Generation, form)
			}
			before := proof.Servers
			if proof, err = ask.all(ctx); err != nil {
				return Proof{}, err
			}
			if !slices.Equal(before, proof.Servers) {
				seen = 0 // one that came has seen no form before
			}
		}
		return proof, nil
	})
	if err != nil {
		return Proof{}, fmt.Errorf("prove generation %s: %w", claim.Generation, err)
	}
	return proof, nil
}

// pluralOf is the resource of a CRD.
func pluralOf(generation string) string { return "barrier-" + generation }

// columnOf is what a form of a CRD shows.
func columnOf(generation string, form int) string { return fmt.Sprintf("%s-%d", generation, form) }

// object is the barrier: as it is made in form 0, changed in others.
func (b *Barrier) object(name, generation string, form int) *unstructured.Unstructured {
	resource := resources[b.o.Kind]
	object := map[string]any{
		"apiVersion": resource.GroupVersion().String(), "kind": b.o.Kind,
		"metadata": map[string]any{"name": name, "labels": map[string]any{barrierKey: generation}, "annotations": map[string]any{holderKey: b.o.Holder.String()}},
	}
	if b.o.Kind == KindCRD {
		plural := pluralOf(generation)
		object["spec"] = map[string]any{
			"group": barrierKey, "scope": "Cluster",
			"names": map[string]any{"plural": plural, "singular": plural, "kind": plural, "listKind": plural + "-list"},
			"versions": []any{map[string]any{
				"name": barrierVersion, "served": true, "storage": true,
				"schema":                   map[string]any{"openAPIV3Schema": map[string]any{"type": "object"}},
				"additionalPrinterColumns": []any{map[string]any{"name": columnOf(generation, form), "type": "string", "jsonPath": ".metadata.name"}},
			}},
		}
		return &unstructured.Unstructured{Object: object}
	}
	service := map[string]any{"namespace": b.o.Namespace, "name": nowhere}
	if b.o.Kind == KindAPIService {
		spec := map[string]any{
			"group": generation + "." + barrierKey, "version": barrierVersion,
			"groupPriorityMinimum": int64(1), "versionPriority": int64(1),
		}
		if form > 0 {
			service["port"] = int64(defaultPort)
			spec["service"] = service
		}
		object["spec"] = spec
		return &unstructured.Unstructured{Object: object}
	}
	selected := "nobody"
	if form > 0 {
		selected = generation
	}
	object["webhooks"] = []any{map[string]any{
		"name": b.webhook(), "admissionReviewVersions": []any{"v1"}, "sideEffects": "None", "failurePolicy": "Fail", "timeoutSeconds": int64(1),
		"clientConfig":      map[string]any{"service": service},
		"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": b.o.Namespace}},
		"objectSelector":    map[string]any{"matchLabels": map[string]any{barrierKey: selected}},
		"rules": []any{map[string]any{
			"operations": []any{"CREATE"}, "apiGroups": []any{coordinationv1.GroupName}, "apiVersions": []any{"v1"}, "resources": []any{"leases"}, "scope": "Namespaced",
		}},
	}}
	return &unstructured.Unstructured{Object: object}
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
	case strings.Contains(err.Error(), fmt.Sprintf("failed calling webhook %q", b.webhook())):
		return nil
	}
	return err // also a barrier of the other kind, which is called first and not forgotten yet
}

// webhook is its name: one for each kind, so that a barrier of one kind proves nothing of the other.
func (b *Barrier) webhook() string {
	if b.o.Kind == KindMutating {
		return "mutating." + barrierKey
	}
	return "validating." + barrierKey
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

// served: the columns of a list are those of the form that the API server serves.
func (b *Barrier) served(ctx context.Context, server apiServer, generation string, form int) error {
	answer, err := server.clients.Discovery().RESTClient().Get().
		AbsPath("/apis", barrierKey, barrierVersion, pluralOf(generation)).
		SetHeader("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1").MaxRetries(0).DoRaw(ctx)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	var table metav1.Table
	if err == nil {
		if err := json.Unmarshal(answer, &table); err != nil {
			return fmt.Errorf("read its columns: %w", err)
		}
	}
	if !slices.ContainsFunc(table.ColumnDefinitions, func(c metav1.TableColumnDefinition) bool { return c.Name == columnOf(generation, form) }) {
		return errors.New("it has not loaded what was published last")
	}
	return nil
}

func (b *Barrier) makes(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.made, name) {
		b.made = append(b.made, name)
	}
}

// remove removes a barrier, and tries for a while; one that is not there is removed. Unsure: it may come yet.
func (b *Barrier) remove(ctx context.Context, name string, unsure bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	for {
		err := b.objects.Delete(ctx, name, metav1.DeleteOptions{})
		if err == nil || apierrors.IsNotFound(err) && !unsure {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.made = slices.DeleteFunc(b.made, func(made string) bool { return made == name })
			return nil
		}
		absent := apierrors.IsNotFound(err)
		switch {
		case apierrors.IsForbidden(err):
			return err
		case sleep(ctx, removeAgain) == nil:
		case absent: // it has not come
			return nil
		default:
			return err
		}
	}
}
