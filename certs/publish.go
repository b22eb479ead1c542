package certs

// caBundle of webhook configurations, CRD conversion webhooks and APIServices. In: which of them, and
// what to make of the bundle. Out: the field written, and nothing else, by server-side apply. Errors: the API
// server's; an object that has no such field; a bundle that would trust nobody.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
)

// Ref names an object that sends API servers to a server, or one webhook of it.
type Ref struct {
	Kind    string // KindMutating, KindValidating, KindCRD, KindAPIService
	Name    string
	Webhook string // of a webhook configuration; "": all of them
}

// ParseRef reads KIND/NAME, the kind as kubectl knows it (mutatingwebhookconfiguration, crd, apiservice, …; plural and any case), and
// optionally /WEBHOOK. It reads what String writes.
func ParseRef(s string) (Ref, error) {
	parts := strings.SplitN(s, "/", 3)
	if len(parts) < 2 || slices.Contains(parts, "") {
		return Ref{}, fmt.Errorf("%q is not of the form KIND/NAME or KIND/NAME/WEBHOOK", s)
	}
	ref := Ref{Name: parts[1]}
	word, _, _ := strings.Cut(strings.ToLower(parts[0]), ".") // kubectl's RESOURCE.GROUP
	switch strings.TrimSuffix(word, "s") {
	case "mutatingwebhookconfiguration":
		ref.Kind = KindMutating
	case "validatingwebhookconfiguration":
		ref.Kind = KindValidating
	case "customresourcedefinition", "crd":
		ref.Kind = KindCRD
	case "apiservice":
		ref.Kind = KindAPIService
	default:
		return Ref{}, fmt.Errorf("%q is none of mutatingwebhookconfiguration, validatingwebhookconfiguration, customresourcedefinition, apiservice", parts[0])
	}
	if len(parts) == 3 {
		if !ref.hasWebhooks() {
			return Ref{}, fmt.Errorf("%q: of a %s there is only one webhook", s, ref.Kind)
		}
		ref.Webhook = parts[2]
	}
	return ref, nil
}

func (r Ref) hasWebhooks() bool { return r.Kind == KindMutating || r.Kind == KindValidating }

// String is KIND/NAME or KIND/NAME/WEBHOOK.
func (r Ref) String() string {
	if r.Webhook == "" {
		return r.Kind + "/" + r.Name
	}
	return r.Kind + "/" + r.Name + "/" + r.Webhook
}

// LiveBundle is a caBundle as it is stored now.
type LiveBundle struct {
	Ref                Ref    // with Webhook set, for a webhook configuration
	Field              string // path of caBundle
	Bundle             []byte // PEM
	ServerName         string // that the API server verifies
	InsecureSkipVerify bool   // of an APIService
	FailurePolicy      string // of a webhook: "Fail" or "Ignore"; what others have is ""
}

// PublisherOptions of a Publisher.
type PublisherOptions struct {
	Dynamic dynamic.Interface
	// FieldManager owns the field. Empty: "tracehook-certs".
	FieldManager string
}

// Publisher writes caBundle and nothing else. It may be used from several goroutines, and beside other writers.
type Publisher struct {
	client  dynamic.Interface
	manager string
}

// NewPublisher checks the options.
func NewPublisher(o PublisherOptions) (*Publisher, error) {
	if o.Dynamic == nil {
		return nil, errors.New("make a publisher: a client is missing")
	}
	if o.FieldManager == "" {
		o.FieldManager = "tracehook-certs"
	}
	return &Publisher{o.Dynamic, o.FieldManager}, nil
}

// Live returns the bundles of an object, in the object's order. apierrors.IsNotFound tells that it is not there.
func (p *Publisher) Live(ctx context.Context, ref Ref) ([]LiveBundle, error) {
	_, live, err := p.read(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("read CA bundle of %s: %w", ref, err)
	}
	return live, nil
}

// Publish changes all bundles that ref names in one update; it writes nothing if there is nothing to change.
// done says per bundle what was done. Another writer's changes are kept: if one comes between reading and writing, the
// whole is done again. A bundle that would become empty is an error, as API servers would then trust
// the root certificates of their machines. apierrors.IsNotFound tells that the object is not there.
func (p *Publisher) Publish(ctx context.Context, ref Ref, change BundleChange, now time.Time) (done []string, err error) {
	const attempts = 20
	for attempt := 1; ; attempt++ {
		done, err = p.publish(ctx, ref, change, now)
		if err == nil {
			return done, nil
		}
		if !apierrors.IsConflict(err) || attempt == attempts {
			return nil, fmt.Errorf("publish CA bundle of %s: %w", ref, err)
		}
	}
}

func (p *Publisher) publish(ctx context.Context, ref Ref, change BundleChange, now time.Time) (done []string, err error) {
	object, live, err := p.read(ctx, ref)
	if err != nil {
		return nil, err
	}
	bundles := map[string][]byte{} // by the name of the webhook
	verify := false
	for _, l := range live {
		bundle, words := MergeBundle(l.Bundle, change, now)
		if l.InsecureSkipVerify && change.Verify {
			verify = true
			words = append(words, "set insecureSkipTLSVerify to false")
		}
		switch {
		case len(words) == 0:
			continue
		case len(bundle) == 0:
			return nil, fmt.Errorf("%s would be empty, and API servers would trust the root certificates of their machines: add a CA (%s)", l.Field, strings.Join(words, "; "))
		case l.InsecureSkipVerify && !change.Verify:
			return nil, fmt.Errorf("insecureSkipTLSVerify is true, and the API server takes no %s beside it: have it set to false in the same update", l.Field)
		}
		bundles[l.Ref.Webhook] = bundle
		for _, word := range words {
			done = append(done, l.Ref.String()+": "+word)
		}
	}
	if len(done) == 0 {
		return nil, nil
	}
	patch, err := p.patch(ref, object, bundles, verify)
	if err != nil {
		return nil, err
	}
	_, err = p.client.Resource(resources[ref.Kind]).Apply(ctx, ref.Name, patch, metav1.ApplyOptions{FieldManager: p.manager, Force: true})
	return done, err
}

// read returns an object and those of its bundles that ref names, at least one.
func (p *Publisher) read(ctx context.Context, ref Ref) (*unstructured.Unstructured, []LiveBundle, error) {
	resource, known := resources[ref.Kind]
	if !known {
		return nil, nil, fmt.Errorf("kind %q has no CA bundle", ref.Kind)
	}
	object, err := p.client.Resource(resource).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	targets, err := targetsOf(ref.Kind, *object)
	if err != nil {
		return nil, nil, err
	}
	var live []LiveBundle
	var there []string
	for _, t := range targets {
		there = append(there, t.Webhook)
		if ref.Webhook == "" || ref.Webhook == t.Webhook {
			live = append(live, LiveBundle{Ref{t.Kind, t.Name, t.Webhook}, t.Field, t.Trust.Bundle, t.ServerName, t.Trust.InsecureSkipVerify, t.FailurePolicy})
		}
	}
	switch {
	case len(live) > 0:
		return object, live, nil
	case ref.Kind == KindCRD:
		return nil, nil, errors.New("its conversion strategy is not Webhook: nobody is called, and there is nothing to trust")
	case ref.Kind == KindAPIService:
		return nil, nil, errors.New("it names no Service: the API server itself answers, and there is nothing to trust")
	case len(there) == 0:
		return nil, nil, errors.New("it has no webhook: apply the manifest that lists them first")
	}
	return nil, nil, fmt.Errorf("it has no webhook %q: name one of %s, or none for all of them", ref.Webhook, strings.Join(there, ", "))
}

// targetsOf reads one object of any of the four kinds.
func targetsOf(kind string, object unstructured.Unstructured) ([]Target, error) {
	switch kind {
	case KindCRD:
		return conversionTargets(object)
	case KindAPIService:
		return apiServiceTargets(object)
	case KindMutating:
		var typed admissionv1.MutatingWebhookConfiguration
		err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &typed)
		return mutatingTargets(typed), err
	default:
		var typed admissionv1.ValidatingWebhookConfiguration
		err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &typed)
		return validatingTargets(typed), err
	}
}

// patch is what to apply: the new bundles, and those that this field manager has applied before, since
// what an apply leaves out is removed. The resource version makes it fail if somebody was faster.
func (p *Publisher) patch(ref Ref, object *unstructured.Unstructured, bundles map[string][]byte, verify bool) (*unstructured.Unstructured, error) {
	var spec map[string]any
	switch ref.Kind {
	case KindCRD:
		spec = map[string]any{"spec": map[string]any{"conversion": map[string]any{"webhook": map[string]any{"clientConfig": map[string]any{"caBundle": encode(bundles[""])}}}}}
	case KindAPIService:
		fields := map[string]any{"caBundle": encode(bundles[""])}
		if verify {
			fields["insecureSkipTLSVerify"] = false
		}
		spec = map[string]any{"spec": fields}
	default:
		ours, err := appliedBundles(object, p.manager)
		if err != nil {
			return nil, err
		}
		targets, err := targetsOf(ref.Kind, *object)
		if err != nil {
			return nil, err
		}
		var webhooks []any
		for _, t := range targets {
			bundle, changed := bundles[t.Webhook]
			if !changed {
				if !slices.Contains(ours, t.Webhook) || len(t.Trust.Bundle) == 0 {
					continue
				}
				bundle = t.Trust.Bundle
			}
			webhooks = append(webhooks, map[string]any{"name": t.Webhook, "clientConfig": map[string]any{"caBundle": encode(bundle)}})
		}
		spec = map[string]any{"webhooks": webhooks}
	}
	spec["apiVersion"], spec["kind"] = object.GetAPIVersion(), object.GetKind()
	spec["metadata"] = map[string]any{"name": ref.Name, "resourceVersion": object.GetResourceVersion()}
	return &unstructured.Unstructured{Object: spec}, nil
}

func encode(bundle []byte) string { return base64.StdEncoding.EncodeToString(bundle) }

// appliedBundles are the webhooks whose caBundle the field manager has applied.
func appliedBundles(object *unstructured.Unstructured, manager string) (webhooks []string, err error) {
	for _, entry := range object.GetManagedFields() {
		if entry.Manager != manager || entry.Operation != metav1.ManagedFieldsOperationApply || entry.FieldsV1 == nil {
			continue
		}
		var fields struct {
			Webhooks map[string]struct {
				ClientConfig struct {
					CABundle *struct{} `json:"f:caBundle"`
				} `json:"f:clientConfig"`
			} `json:"f:webhooks"`
		}
		if err := json.Unmarshal(entry.FieldsV1.GetRawBytes(), &fields); err != nil {
			return nil, fmt.Errorf("read who owns its fields: %w", err)
		}
		for key, webhook := range fields.Webhooks {
			var element struct{ Name string }
			if webhook.ClientConfig.CABundle == nil || json.Unmarshal([]byte(strings.TrimPrefix(key, "k:")), &element) != nil {
				continue
			}
			webhooks = append(webhooks, element.Name)
		}
	}
	return webhooks, nil
}
