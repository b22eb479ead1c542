package certs

// Proof that API servers have loaded what was published. In: what was published. Out: a Proof. Errors: an API server that
// cannot be asked, that has not arrived in time, or that refuses the next leaf, with its own words.

import (
	"context"
	"crypto/x509"
	"time"
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
