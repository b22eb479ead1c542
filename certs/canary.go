package certs

// The canary. In: what was published, the next leaf, served under the proof's name. Out: every API server has
// called it. Errors: see prove.go.
//
// API servers see the changes of one kind in their order. So after the real configuration, Canary
// changes one of its own, `tracehook-proof`: the same bundle, and a path with the generation of the claim and
// the fingerprint of the leaf. Then it makes a dry-run create of a labelled Lease through each API server. One
// that has loaded this generation, and therefore all that was published before it, and that accepts
// the leaf with this very bundle, calls that path; ProofHandler answers with an annotation, which comes back
// in the answer to the dry-run create. Nothing is stored, no client's request takes part, and what
// is proven is all of it: propagation, trust, name and clock.
//
// Behind one API server a new path also means a new client, so that no kept connection answers.

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"go.opentelemetry.io/otel/metric"
	reviewv1 "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	admissionapply "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"k8s.io/client-go/rest"
)

const (
	// proofKey is the label of a probe, and the annotation of the answer. Both hold the generation.
	proofKey = "tracehook.dev/proof"
	// anyLeaf stands for the fingerprint in a claim without a leaf.
	anyLeaf = "any"

	maxReview = 256 << 10 // a probe has less than 3 KiB
)

// CanaryOptions of a Canary.
type CanaryOptions struct {
	// Config is how the cluster is talked to. Each API server is asked with it at an address of its own.
	Config *rest.Config
	// APIServers are the URLs of all of them. Empty: those behind Service default/kubernetes.
	APIServers []string
	// Namespace of the probes, which are never stored. Empty: "tracehook-system".
	Namespace string
	// Configuration is the MutatingWebhookConfiguration that leads to ProofHandler for Leases with the label
	// tracehook.dev/proof, and Webhook the one in it. Empty: "tracehook-proof" and "proof.tracehook.dev".
	Configuration, Webhook string
	// FieldManager owns the path and the caBundle of that webhook. Empty: "tracehook-proof".
	FieldManager  string
	Retry         time.Duration        // Zero: 200 ms
	Logger        *slog.Logger         // Nil: silence
	MeterProvider metric.MeterProvider // Nil: none
	Now           func() time.Time     // Nil: time.Now
}

// Canary is a Prover for MutatingWebhookConfigurations: each API server has called the leaf, or at least
// what is served now, with the bundle of the claim.
type Canary struct {
	o CanaryOptions
	asking
}

// NewCanary checks the options.
func NewCanary(o CanaryOptions) (*Canary, error) {
	o.Namespace = cmp.Or(o.Namespace, "tracehook-system")
	o.Configuration = cmp.Or(o.Configuration, "tracehook-proof")
	o.Webhook = cmp.Or(o.Webhook, "proof.tracehook.dev")
	o.FieldManager = cmp.Or(o.FieldManager, "tracehook-proof")
	a, err := newAsking(o.Config, o.APIServers, o.Retry, o.Logger, o.MeterProvider, o.Now)
	if err != nil {
		return nil, fmt.Errorf("make a canary: %w", err)
	}
	return &Canary{o, a}, nil
}

// Prove implements Prover. It goes on trying until ctx ends; what ctx's error wraps then says which API server
// has not arrived, and in whose words.
func (c *Canary) Prove(ctx context.Context, claim Claim) (Proof, error) {
	if len(validation.IsDNS1123Label(claim.Generation)) > 0 {
		return Proof{}, fmt.Errorf("prove what was published: generation %q is no DNS label", claim.Generation)
	}
	if len(claim.Bundle) == 0 {
		return Proof{}, errors.New("prove what was published: the bundle is empty")
	}
	fingerprint := anyLeaf
	if claim.Leaf != nil {
		fingerprint = Fingerprint(claim.Leaf)
	}
	ask := c.asking
	ask.prover = "canary"
	round := 0
	ask.prepare = func(ctx context.Context) error {
		// An API server may keep the form before the last until the next change (see barrier.go): an empty line more
		// or less is one.
		nudged := claim
		if round/nudgeAfter%2 == 1 {
			nudged.Bundle = append(slices.Clone(claim.Bundle), '\n')
		}
		round++
		return c.publish(ctx, nudged, fingerprint)
	}
	ask.arrived = func(ctx context.Context, server apiServer) error { return c.call(ctx, server, claim.Generation) }
	proof, err := ask.untilAll(ctx)
	if err != nil {
		return Proof{}, fmt.Errorf("prove generation %s: %w", claim.Generation, err)
	}
	return proof, nil
}

// publish points the proof's webhook at the claim. Applied again it changes nothing, unless somebody else has.
func (c *Canary) publish(ctx context.Context, claim Claim, fingerprint string) error {
	client := c.clients.AdmissionregistrationV1().MutatingWebhookConfigurations()
	object, err := client.Get(ctx, c.o.Configuration, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read the webhook of the proof: %w", err)
	}
	if !slices.ContainsFunc(object.Webhooks, func(w admissionv1.MutatingWebhook) bool {
		return w.Name == c.o.Webhook && w.ClientConfig.Service != nil
	}) {
		return fmt.Errorf("%s %s has no webhook %s that leads to a Service: apply the manifest of the proof", KindMutating, c.o.Configuration, c.o.Webhook)
	}
	// Only these two fields: the rest is the manifest's.
	_, err = client.Apply(ctx, admissionapply.MutatingWebhookConfiguration(c.o.Configuration).WithWebhooks(
		admissionapply.MutatingWebhook().WithName(c.o.Webhook).WithClientConfig(
			admissionapply.WebhookClientConfig().
				WithCABundle(claim.Bundle...).
				WithService(admissionapply.ServiceReference().WithPath("/prove/"+claim.Generation+"/"+fingerprint)))),
		metav1.ApplyOptions{FieldManager: c.o.FieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("change the webhook of the proof: %w", err)
	}
	return nil
}

// call has one API server call the webhook of the proof.
func (c *Canary) call(ctx context.Context, server apiServer, generation string) error {
	probe := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Name:   "tracehook-proof-" + generation,
		Labels: map[string]string{proofKey: generation},
	}}
	answer, err := server.clients.CoordinationV1().Leases(c.o.Namespace).
		Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	switch {
	case err != nil:
		return err
	case answer.Annotations[proofKey] == "":
		return fmt.Errorf("it does not call the webhook %s for Leases in %s", c.o.Webhook, c.o.Namespace)
	case answer.Annotations[proofKey] != generation:
		return fmt.Errorf("it still has generation %s of the webhook %s", answer.Annotations[proofKey], c.o.Webhook)
	}
	return nil
}

// ProofHandler answers POST /prove/{generation}/{fingerprint}, the calls that a Canary causes. getCertificate is what
// the TLS server asks. Whoever asks for another certificate than the one that is served under the name of this
// connection is refused: the replica that was called does not have it yet. Every connection serves one call, so that
// the next proof is a handshake of its own.
func ProofHandler(getCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /prove/{generation}/{fingerprint}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		review, err := readReview(w, r)
		if err != nil {
			http.Error(w, "this is no call of a canary: "+err.Error(), http.StatusBadRequest)
			return
		}
		answer := &reviewv1.AdmissionResponse{UID: review.Request.UID}
		generation := r.PathValue("generation")
		if err := presents(getCertificate, r, generation, r.PathValue("fingerprint")); err != nil {
			answer.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusConflict, Reason: metav1.StatusReasonConflict, Message: err.Error()}
		} else {
			// A probe is never stored, so whatever annotations others gave it may go.
			answer.Allowed, answer.PatchType = true, new(reviewv1.PatchTypeJSONPatch)
			answer.Patch = fmt.Appendf(nil, `[{"op":"add","path":"/metadata/annotations","value":{%q:%q}}]`, proofKey, generation)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(reviewv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: answer}) // who asked is gone otherwise
	})
	return mux
}

func readReview(w http.ResponseWriter, r *http.Request) (review reviewv1.AdmissionReview, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
	if err != nil {
		return review, fmt.Errorf("read body: %w", err)
	}
	if err := json.Unmarshal(body, &review); err != nil {
		return review, fmt.Errorf("read AdmissionReview: %w", err)
	}
	if review.GroupVersionKind() != reviewv1.SchemeGroupVersion.WithKind("AdmissionReview") || review.Request == nil || review.Request.UID == "" {
		return review, errors.New("it has no AdmissionReview of admission.k8s.io/v1 with a request")
	}
	return review, nil
}

// presents says why what this server presents is not what is to be proven.
func presents(getCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), r *http.Request, generation, fingerprint string) error {
	switch {
	case len(validation.IsDNS1123Label(generation)) > 0:
		return errors.New("the generation is no DNS label")
	case r.TLS == nil:
		return errors.New("this connection presents no certificate")
	case fingerprint == anyLeaf:
		return nil
	}
	served, err := getCertificate(&tls.ClientHelloInfo{ServerName: r.TLS.ServerName})
	if err != nil {
		return err
	}
	if len(served.Certificate) == 0 {
		return errors.New("this server has no certificate")
	}
	if sum := sha256.Sum256(served.Certificate[0]); hex.EncodeToString(sum[:]) != fingerprint {
		return fmt.Errorf("this server does not present the certificate that is to be proven yet, but %x", sum)
	}
	return nil
}
