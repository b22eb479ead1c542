package certs

// What an Authority knows. In: the Secrets, the live bundles. Out: the state that plan.go decides on.
// Errors: none; what cannot be used is absent, and said as findings.

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"
)

// Phase is how far the replacement of a CA has come. It is stored in the CA's Secret, so that
// whoever leads next goes on from there. doc.go draws the order.
type Phase string

const (
	// PhaseNone: nothing is stored, or nothing that can be used.
	PhaseNone Phase = ""
	// PhaseStable: one CA, one leaf.
	PhaseStable Phase = "stable"
	// PhaseIssued: the next CA exists; the next leaf is being made, and the live bundles are being changed.
	PhaseIssued Phase = "issued"
	// PhasePublished: the live bundles hold both CAs.
	PhasePublished Phase = "published"
	// PhaseProven: every API server is known to trust both.
	PhaseProven Phase = "proven"
	// PhaseSwitched: the next leaf is the one to serve.
	PhaseSwitched Phase = "switched"
	// PhaseSoaking: every endpoint was seen serving it; kept connections may still be old.
	PhaseSoaking Phase = "soaking"
	// PhaseDropped: the bundles are to hold the new CA without the old one; what remains is to prove it.
	PhaseDropped Phase = "dropped"
)

// Phases are all phases in their order.
func Phases() []Phase {
	return []Phase{PhaseNone, PhaseStable, PhaseIssued, PhasePublished, PhaseProven, PhaseSwitched, PhaseSoaking, PhaseDropped}
}

// Pair is a certificate as it is served: with the certificates sent along, and its key.
type Pair struct {
	KeyPair
	// Sent along: cross-signed CAs, none in PhaseStable.
	Intermediates []*x509.Certificate
}

// Chain is what a client of the server sees, leaf first. Nil if there is no certificate.
func (p Pair) Chain() []*x509.Certificate {
	if p.Certificate == nil {
		return nil
	}
	return append([]*x509.Certificate{p.Certificate}, p.Intermediates...)
}

// with sends cross along, and nothing else. Nil: nothing.
func (p Pair) with(cross *x509.Certificate) Pair {
	p.Intermediates = nil
	if cross != nil {
		p.Intermediates = []*x509.Certificate{cross}
	}
	return p
}

// Rotation is what somebody asked for by `tracehook certs rotate`.
type Rotation string

const (
	RotateNothing Rotation = ""
	RotateLeaf    Rotation = "leaf"
	RotateCA      Rotation = "ca" // with a new leaf, and the old CA trusted no longer at the end
)

// RotationRequest is what somebody asks whoever leads.
type RotationRequest struct {
	What Rotation `json:"what,omitempty"`
	// Drop are fingerprints (see Fingerprint) of CAs that must be trusted no longer. If
	// the one that signs now is among them, What is RotateCA.
	Drop []string `json:"drop,omitempty"`
	// SkipSoak: the old CA leaves the bundles as soon as every endpoint serves the new leaf.
	SkipSoak bool `json:"skipSoak,omitempty"`
	// Time is of the request, by the clock of whoever asks: for people. Required. No clock is compared with another.
	Time time.Time `json:"time"`
	// ID tells the request from others: NewRotationID. Empty: its Time does, which two may share.
	ID string `json:"id,omitempty"`
	// With are the IDs of requests that nobody had begun when this one came. It asks for what they asked for, too.
	With []string `json:"with,omitempty"`
}

// NewRotationID draws the ID of a request: 130 random bits.
func NewRotationID() string { return rand.Text() }

// ids are those that are begun with the request. It is never empty.
func (r RotationRequest) ids() []string {
	id := r.ID
	if id == "" { // from before there were IDs
		id = r.Time.UTC().Format(time.RFC3339Nano)
	}
	return append([]string{id}, r.With...)
}

// joined is what both ask for.
func (r RotationRequest) joined(earlier RotationRequest) RotationRequest {
	if earlier.What == RotateCA || r.What == RotateNothing {
		r.What = earlier.What
	}
	for _, fingerprint := range earlier.Drop {
		if !slices.Contains(r.Drop, fingerprint) {
			r.Drop = append(slices.Clone(r.Drop), fingerprint)
		}
	}
	r.SkipSoak = r.SkipSoak || earlier.SkipSoak
	r.With = append(slices.Clone(r.With), earlier.ids()...)
	r.With = r.With[max(0, len(r.With)-maxJoined):]
	return r
}

// maxJoined bounds how many requests one takes in.
const maxJoined = 64

// Fingerprint is the SHA-256 of a certificate, in lower-case hexadecimal digits.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// State is all that Next decides on. It is plain data. Pairs that were unusable when they were
// read are absent.
type State struct {
	// What the Secret of the CA holds.
	Phase Phase
	// Since is when the phase began.
	Since time.Time
	// CA signs the leaf in service. Absent before PhaseSwitched of a takeover.
	CA KeyPair
	// NextCA signs the next leaf, from PhaseIssued to PhaseProven.
	NextCA KeyPair
	// Previous are trusted from PhaseIssued until PhaseDropped: what the leaf that is being replaced depends on.
	Previous []*x509.Certificate
	// Cross and NextCross are sent along with the leaf and the next leaf. Nil if not cross-signed.
	Cross, NextCross *x509.Certificate
	// Distrusted are fingerprints of CAs that no bundle may hold, unless the leaf in service needs them.
	Distrusted []string
	SkipSoak   bool
	// Handled is the time of the last RotationRequest that was begun, and HandledIDs are the IDs of it and of those it took in.
	Handled    time.Time
	HandledIDs []string
	// Proof is the last one. Nil: there was none yet.
	Proof *Proof

	// What the serving Secret holds: the leaf in service, and from PhaseIssued to PhaseProven the next one.
	Leaf, NextLeaf Pair
	// Request is what somebody asks for and nobody has begun. Zero: nothing.
	Request RotationRequest

	// Targets are the objects whose bundles are kept.
	Targets []TargetState

	// What is wanted: names and addresses of the leaf, and how long to wait.
	Names        []string
	Soak, Settle time.Duration

	// Findings are what is wrong with the Secrets.
	Findings []Finding
}

// TargetState is an object as it was found.
type TargetState struct {
	Ref Ref
	// Bundles are live. None if the object does not exist.
	Bundles []LiveBundle
	// Err is why it could not be read. "": it was, or is known not to exist.
	Err string
}

// bundles are the live ones of all targets.
func (s State) bundles() (all []LiveBundle) {
	for _, t := range s.Targets {
		all = append(all, t.Bundles...)
	}
	return all
}

// switched: the leaf in service is, or is about to be, CA's.
func (p Phase) switched() bool {
	return p == PhaseStable || p == PhaseSwitched || p == PhaseSoaking || p == PhaseDropped
}

// overlapping: a next CA exists beside the one in service.
func (p Phase) overlapping() bool {
	return p == PhaseIssued || p == PhasePublished || p == PhaseProven
}

// known: it is one of Phases.
func (p Phase) known() bool { return slices.Contains(Phases(), p) }

func (s State) distrusts(c *x509.Certificate) bool {
	return c != nil && slices.Contains(s.Distrusted, Fingerprint(c))
}
