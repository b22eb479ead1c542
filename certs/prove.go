package certs

// Proof that API servers have loaded what was published. In: what was published. Out: a Proof. Errors: an API server that
// cannot be asked, that has not arrived in time, or that refuses the next leaf, with its own words.

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Claim is what is to be proven.
type Claim struct {
	// Generation is different for every claim; a DNS label.
	Generation string
	// Bundle (PEM) is what the webhook configurations hold now.
	Bundle []byte
	// Leaf is what must be accepted; it is served under the proof's name. Nil: only the bundle is to be proven.
	Leaf *x509.Certificate
}

// Certainty is how much a Proof says.
type Certainty string

const (
	// Proven: every API server of the cluster was asked, each at its own address.
	Proven Certainty = "proven"
	// Sampled: there may be API servers that were not asked: there is a load balancer in front of them.
	Sampled Certainty = "sampled"
	// Assumed: nobody could be asked; there was only a wait.
	Assumed Certainty = "assumed"
)

// Proof is the answer to a Claim.
type Proof struct {
	Time      time.Time `json:"time"`
	Certainty Certainty `json:"certainty"`
	// Servers are the addresses that were asked.
	Servers []string `json:"servers,omitempty"`
}

// Prover proves claims, or says why not. It returns when it is proven or ctx ends.
type Prover interface {
	Prove(ctx context.Context, claim Claim) (Proof, error)
}

// Provers prove a claim one after the other. Each knows of one kind of object only, so where what was published is of several
// kinds, one for each is needed: a [Canary] for MutatingWebhookConfigurations, say, and a [Barrier] for ValidatingWebhookConfigurations.
type Provers []Prover

// Prove implements Prover. All must succeed; the proof is as certain as the least certain of theirs.
func (p Provers) Prove(ctx context.Context, claim Claim) (Proof, error) {
	if len(p) == 0 {
		return Proof{}, errors.New("prove what was published: there is nobody to prove it")
	}
	whole := Proof{Certainty: Proven}
	for _, prover := range p {
		proof, err := prover.Prove(ctx, claim)
		if err != nil {
			return Proof{}, err
		}
		whole.Time, whole.Certainty = proof.Time, lesser(whole.Certainty, proof.Certainty)
		for _, server := range proof.Servers {
			if !slices.Contains(whole.Servers, server) {
				whole.Servers = append(whole.Servers, server)
			}
		}
	}
	return whole, nil
}

// Left is what they have made and not removed yet: for somebody who does not wait for Prove to return.
func (p Provers) Left() (refs []Ref) {
	for _, prover := range p {
		refs = append(refs, leftOf(prover)...)
	}
	return refs
}

func leftOf(p Prover) []Ref {
	if maker, ok := p.(interface{ Left() []Ref }); ok {
		return maker.Left()
	}
	return nil
}

// proveAndTouch proves a claim of what was published in targets, changes these without another meaning, and proves the claim once more.
// An API server may have made something of the form before the last of a webhook configuration, and keep it for good: it reads
// all configurations, hears of a change, forgets what it had made of that one, and only then stores what it made of the form that
// it had read (1.36, getConfiguration against UpdateFunc in k8s.io/apiserver). The next change ends that, and what it can keep
// then has the bundle, because every API server is known to read it by now. Other kinds are not touched.
func proveAndTouch(ctx context.Context, prover Prover, claim func() (Claim, error), publisher BundlePublisher, targets []Ref, now func() time.Time) (Proof, error) {
	before, err := claim()
	if err != nil {
		return Proof{}, err
	}
	proof, err := prover.Prove(ctx, before)
	if err != nil {
		return Proof{}, err
	}
	touched := false
	for _, ref := range targets {
		if ref.Kind != KindMutating && ref.Kind != KindValidating {
			continue
		}
		switch _, err := publisher.Publish(ctx, ref, BundleChange{Touch: true}, now()); {
		case apierrors.IsNotFound(err): // nobody is sent anywhere by it
		case err != nil:
			return Proof{}, err
		default:
			touched = true
		}
	}
	if !touched {
		return proof, nil
	}
	after, err := claim()
	if err != nil {
		return Proof{}, err
	}
	return prover.Prove(ctx, after)
}

// newGeneration is one that no claim had.
func newGeneration() string { return "g" + strings.ToLower(rand.Text()[:12]) }

// lesser is the one that says less.
func lesser(a, b Certainty) Certainty {
	order := []Certainty{Assumed, Sampled, Proven}
	return order[min(slices.Index(order, a), slices.Index(order, b))]
}
