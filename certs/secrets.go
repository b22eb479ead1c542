package certs

// What the Secrets hold. In: Secrets as they were read. Out: State, Status; and the way back. Errors: none of
// reading: what cannot be used is a finding.

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// Where things are stored. The CA's key is in a Secret of its own, so that those who only serve need no right to read it.
const (
	DefaultCASecret      = "tracehook-ca"
	DefaultServingSecret = "tracehook-certs"

	// Keys of the serving Secret. It can be mounted as well as watched; the first two have the
	// names of kubernetes.io/tls.
	ServingCertificate     = "tls.crt" // leaf, then what is sent along
	ServingKey             = "tls.key"
	ServingNextCertificate = "next.crt" // the leaf that is served under the proof's name only
	ServingNextKey         = "next.key"
	ServingCA              = "ca.crt" // what should be trusted: the bundle
)

// Keys of the CA's Secret.
const (
	caCertificate     = "ca.crt" // signs the leaf in service
	caKey             = "ca.key"
	caNextCertificate = "next.crt"
	caNextKey         = "next.key"
	caPrevious        = "previous.crt"   // trusted until they are dropped
	caCross           = "cross.crt"      // sent along with the leaf
	caNextCross       = "next-cross.crt" // sent along with the next leaf
)

// Annotations, JSON each.
const (
	stateAnnotation   = "tracehook.dev/certs-state"   // of the CA's Secret: stored
	statusAnnotation  = "tracehook.dev/certs-status"  // of the serving Secret: Status
	requestAnnotation = "tracehook.dev/certs-request" // of the serving Secret: RotationRequest
)

// What is found about the Secrets.
const (
	SecretUnusable Code = "secret-unusable" // half a pair, garbage, a key that is another's
	SecretMissing  Code = "secret-missing"
)

// stored is the part of State that is no certificate.
type stored struct {
	Phase      Phase     `json:"phase"`
	Since      time.Time `json:"since"`
	Distrusted []string  `json:"distrusted,omitempty"`
	SkipSoak   bool      `json:"skipSoak,omitempty"`
	Handled    time.Time `json:"handled,omitzero"`
	HandledIDs []string  `json:"handledIDs,omitempty"`
	Proof      *Proof    `json:"proof,omitempty"`
}

// Status is what anybody with the right to read the serving Secret can see of a rotation: no keys.
// It is kept in an annotation of the serving Secret, which the leader writes at each step.
type Status struct {
	Phase Phase     `json:"phase"`
	Since time.Time `json:"since"` // of the phase
	// Step is the last that was taken, or that is being tried, and Reason why.
	Step   Step   `json:"step"`
	Reason string `json:"reason"`
	// Error is why Step did not succeed. "": it did, or is under way.
	Error string `json:"error,omitempty"`
	// Settled: nothing is to be done now.
	Settled bool `json:"settled"`
	// Time is when this was written, by the leader's clock.
	Time   time.Time `json:"time"`
	Leader string    `json:"leader"`
	// Request is the time of the last RotationRequest that was begun, by the clock of who asked.
	Request time.Time `json:"request,omitzero"`
	// RequestIDs are the IDs of that request and of those that it took in.
	RequestIDs []string `json:"requestIDs,omitempty"`
	// Proof is the last one.
	Proof *Proof `json:"proof,omitempty"`

	CA       *CertificateStatus `json:"ca,omitempty"`
	NextCA   *CertificateStatus `json:"nextCA,omitempty"`
	Leaf     *CertificateStatus `json:"leaf,omitempty"`
	NextLeaf *CertificateStatus `json:"nextLeaf,omitempty"`
	// Findings are what is wrong with the Secrets.
	Findings []Finding `json:"findings,omitempty"`
}

// CertificateStatus describes a certificate to a person.
type CertificateStatus struct {
	Fingerprint string    `json:"fingerprint"` // SHA-256
	Subject     string    `json:"subject"`
	NotAfter    time.Time `json:"notAfter"`
	// RenewAt is when it is replaced.
	RenewAt time.Time `json:"renewAt,omitzero"`
}

// Begun: the request, or one that took it in, is the last that was begun.
func (s Status) Begun(r RotationRequest) bool {
	if len(s.RequestIDs) == 0 { // the leader is of a version that knows times only
		return !r.Time.IsZero() && s.Request.Equal(r.Time)
	}
	return slices.Contains(s.RequestIDs, r.ids()[0])
}

// Finished: the request was carried out to its end.
func (s Status) Finished(r RotationRequest) bool {
	return s.Settled && s.Phase == PhaseStable && s.Begun(r)
}

func certificateStatus(c *x509.Certificate) *CertificateStatus {
	if c == nil {
		return nil
	}
	return &CertificateStatus{Fingerprint(c), c.Subject.String(), c.NotAfter, RenewAt(c)}
}

// status is what State tells people.
func (s State) status() Status {
	return Status{
		Phase: s.Phase, Since: s.Since, Request: s.Handled, RequestIDs: s.HandledIDs, Proof: s.Proof, Findings: s.Findings,
		CA: certificateStatus(s.CA.Certificate), NextCA: certificateStatus(s.NextCA.Certificate),
		Leaf: certificateStatus(s.Leaf.Certificate), NextLeaf: certificateStatus(s.NextLeaf.Certificate),
	}
}

// statusOf reads it back. Zero: there is none.
func statusOf(serving *corev1.Secret) (status Status) {
	_ = json.Unmarshal([]byte(serving.Annotations[statusAnnotation]), &status) // it is for people, and written anew
	return status
}

// sameStatus: nothing has changed but who says so and when.
func sameStatus(a, b Status) bool {
	a.Time, a.Leader, b.Time, b.Leader = time.Time{}, "", time.Time{}, ""
	was, _ := json.Marshal(a)
	is, _ := json.Marshal(b)
	return bytes.Equal(was, is)
}

// ParsePair reads a certificate chain and its key, both PEM: leaf first. An error says which part is missing, unreadable
// or does not belong to the other. It looks at no clock.
func ParsePair(certificate, key []byte) (Pair, error) {
	switch {
	case len(bytes.TrimSpace(certificate)) == 0 && len(bytes.TrimSpace(key)) == 0:
		return Pair{}, errors.New("certificate and key are missing")
	case len(bytes.TrimSpace(certificate)) == 0:
		return Pair{}, errors.New("the certificate is missing")
	case len(bytes.TrimSpace(key)) == 0:
		return Pair{}, errors.New("the key is missing")
	}
	chain, ignored := ParseBundle(certificate)
	if len(chain) == 0 || len(ignored) > 0 {
		return Pair{}, fmt.Errorf("the certificate cannot be read: %v", ignored)
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(key)
	if err != nil {
		return Pair{}, errors.New("the key cannot be read") // never with a word of what it is
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return Pair{}, errors.New("the key cannot sign")
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(chain[0].PublicKey) {
		return Pair{}, fmt.Errorf("the key is not that of %s", describe(chain[0]))
	}
	return Pair{KeyPair{chain[0], signer}, chain[1:]}, nil
}

// parseState reads the Secrets; nil is one that does not exist.
func parseState(ca, serving *corev1.Secret) State {
	var s State
	unusable := func(secret, key string, what any) {
		s.Findings = append(s.Findings, Finding{Code: SecretUnusable, Severity: Error,
			Message: fmt.Sprintf("%s of Secret %s: %v", key, secret, what),
			Means:   "it is made anew; servers go on with the last good pair that they have seen",
			Remedy:  "none, unless it happens again: then find out who else writes the Secret"})
	}
	pair := func(secret *corev1.Secret, certificate, key string) Pair {
		if secret == nil || len(secret.Data[certificate]) == 0 && len(secret.Data[key]) == 0 {
			return Pair{}
		}
		p, err := ParsePair(secret.Data[certificate], secret.Data[key])
		if err != nil {
			unusable(secret.Name, certificate+", "+key, err)
		}
		return p
	}
	list := func(key string) []*x509.Certificate {
		certificates, ignored := ParseBundle(ca.Data[key])
		if len(ignored) > 0 {
			unusable(ca.Name, key, ignored)
		}
		return certificates
	}

	if ca != nil {
		s.CA = pair(ca, caCertificate, caKey).KeyPair
		s.NextCA = pair(ca, caNextCertificate, caNextKey).KeyPair
		s.Previous = list(caPrevious)
		if cross := list(caCross); len(cross) > 0 {
			s.Cross = cross[0]
		}
		if cross := list(caNextCross); len(cross) > 0 {
			s.NextCross = cross[0]
		}
		var rest stored
		text := ca.Annotations[stateAnnotation]
		if err := json.Unmarshal([]byte(text), &rest); err != nil || !rest.Phase.known() {
			rest = stored{Phase: s.guess()}
			if text != "" || rest.Phase != PhaseNone {
				unusable(ca.Name, "annotation "+stateAnnotation, "it is missing or cannot be read; by what else there is the phase is "+string(rest.Phase))
			}
		}
		s.Phase, s.Since, s.Distrusted, s.SkipSoak, s.Proof = rest.Phase, rest.Since, rest.Distrusted, rest.SkipSoak, rest.Proof
		s.Handled, s.HandledIDs = rest.Handled, rest.HandledIDs
	}
	if serving == nil {
		if s.Phase != PhaseNone {
			s.Findings = append(s.Findings, Finding{Code: SecretMissing, Severity: Error,
				Message: "the serving Secret does not exist",
				Means:   "it is made anew; servers go on with the last good pair that they have seen",
				Remedy:  "none, unless it happens again: then find out who deletes it"})
		}
		return s
	}
	s.Leaf = pair(serving, ServingCertificate, ServingKey)
	s.NextLeaf = pair(serving, ServingNextCertificate, ServingNextKey)
	last := statusOf(serving)
	if text := serving.Annotations[requestAnnotation]; text != "" {
		r, err := parseRequest(text)
		stored := Status{Request: s.Handled, RequestIDs: s.HandledIDs}
		switch {
		case err != nil:
			unusable(serving.Name, "annotation "+requestAnnotation, err)
		case !stored.Begun(r) && !last.Begun(r):
			s.Request = r
		}
	}
	if s.Handled.IsZero() { // the CA's Secret was lost
		s.Handled, s.HandledIDs = last.Request, last.RequestIDs
	}
	return s
}

// parseRequest reads what RequestRotation writes.
func parseRequest(text string) (r RotationRequest, err error) {
	if err := json.Unmarshal([]byte(text), &r); err != nil || r.Time.IsZero() {
		return RotationRequest{}, errors.New("it is no request: `tracehook certs rotate` writes one")
	}
	return r, nil
}

// guess is the phase by the certificates that there are: the earliest that it can be.
func (s State) guess() Phase {
	switch {
	case s.NextCA.Certificate != nil:
		return PhaseIssued
	case s.CA.Certificate != nil && len(s.Previous) > 0:
		return PhaseSwitched
	case s.CA.Certificate != nil:
		return PhaseStable
	}
	return PhaseNone
}

// caDiffers: the CA's Secret must be written to get from before to s.
func (s State) caDiffers(before State) bool {
	encode := func(s State) *corev1.Secret {
		secret := &corev1.Secret{}
		_ = s.encodeCA(secret) // tried again, and told, when it is written
		return secret
	}
	return !sameContents(encode(before), encode(s))
}

// servingDiffers: the serving Secret must be written to get from before to s.
func (s State) servingDiffers(before State) bool {
	encode := func(s State) *corev1.Secret {
		secret := &corev1.Secret{}
		_ = s.encodeServing(secret, Status{})
		return secret
	}
	return !slices.Equal(s.Request.ids(), before.Request.ids()) || !sameContents(encode(before), encode(s))
}

func sameContents(a, b *corev1.Secret) bool {
	return maps.EqualFunc(a.Data, b.Data, bytes.Equal) && maps.Equal(a.Annotations, b.Annotations)
}

// encodeCA writes State into the CA's Secret. What else is in there stays.
func (s State) encodeCA(secret *corev1.Secret) error {
	e := encoder{secret: secret}
	e.pair(caCertificate, caKey, Pair{KeyPair: s.CA})
	e.pair(caNextCertificate, caNextKey, Pair{KeyPair: s.NextCA})
	e.certificates(caPrevious, s.Previous...)
	e.certificates(caCross, s.Cross)
	e.certificates(caNextCross, s.NextCross)
	e.annotation(stateAnnotation, stored{s.Phase, s.Since, s.Distrusted, s.SkipSoak, s.Handled, s.HandledIDs, s.Proof})
	return e.err
}

// encodeServing writes State and what to tell people into the serving Secret. What else is in there stays.
func (s State) encodeServing(secret *corev1.Secret, status Status) error {
	e := encoder{secret: secret}
	if s.Leaf.Certificate != nil { // else what is there stays: it may be somebody's who repairs it
		e.pair(ServingCertificate, ServingKey, s.Leaf)
	}
	e.pair(ServingNextCertificate, ServingNextKey, s.NextLeaf)
	if s.Phase != PhaseNone {
		hold, _ := s.wanted()
		e.certificates(ServingCA, hold...)
	}
	e.annotation(statusAnnotation, status)
	var r RotationRequest
	if s.Request.Time.IsZero() && json.Unmarshal([]byte(secret.Annotations[requestAnnotation]), &r) == nil {
		delete(secret.Annotations, requestAnnotation)
	}
	return e.err
}

type encoder struct {
	secret *corev1.Secret
	err    error
}

func (e *encoder) set(key string, value []byte) {
	if len(value) == 0 {
		delete(e.secret.Data, key)
		return
	}
	if e.secret.Data == nil {
		e.secret.Data = map[string][]byte{}
	}
	e.secret.Data[key] = value
}

func (e *encoder) certificates(key string, certificates ...*x509.Certificate) {
	var out []byte
	for _, c := range certificates {
		if c == nil {
			continue
		}
		encoded, err := cert.EncodeCertificates(c)
		e.err = errors.Join(e.err, err)
		out = append(out, encoded...)
	}
	e.set(key, out)
}

func (e *encoder) pair(certificate, key string, p Pair) {
	e.certificates(certificate, p.Chain()...)
	if p.Certificate == nil {
		e.set(key, nil)
		return
	}
	// The key of a pair that stays is not written in another form.
	if old, err := ParsePair(e.secret.Data[certificate], e.secret.Data[key]); err == nil && old.Certificate.Equal(p.Certificate) {
		return
	}
	encoded, err := p.KeyPEM()
	e.err = errors.Join(e.err, err)
	e.set(key, encoded)
}

func (e *encoder) annotation(key string, value any) {
	text, err := json.Marshal(value)
	e.err = errors.Join(e.err, err)
	if e.secret.Annotations == nil {
		e.secret.Annotations = map[string]string{}
	}
	e.secret.Annotations[key] = string(text)
}
