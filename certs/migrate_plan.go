package certs

// Migrations, decided. In: what there is to see of a target, and what the operator wants. Out: where it starts
// from and why, and the steps: what is done, why, the proof of it and the way back. Errors: wishes that
// contradict each other; what stands in the way otherwise is in the plan.

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// MigrateFrom is the starting point of a migration.
type MigrateFrom string

const (
	FromStatic         MigrateFrom = "static"           // right name, from a CA that stands alone in caBundle
	FromSHA1SelfSigned MigrateFrom = "sha1-self-signed" // the serving certificate is its own CA, by SHA-1
	FromPinned         MigrateFrom = "pinned"           // caBundle holds the serving certificate itself
	FromForeignCA      MigrateFrom = "foreign-ca"       // a CA of somebody else's, directly or through others
	FromCertManager    MigrateFrom = "cert-manager"
	FromManaged        MigrateFrom = "managed"    // by tracehook
	FromUnverified     MigrateFrom = "unverified" // an APIService with insecureSkipTLSVerify
	FromBroken         MigrateFrom = "broken"     // calls fail today: a repair
)

// MigrateTo is the destination.
type MigrateTo string

const (
	ToIssued      MigrateTo = "issued"       // a new CA and certificate made here
	ToCertManager MigrateTo = "cert-manager" // a Secret that cert-manager writes
	ToManaged     MigrateTo = "managed"      // tracehook's Authority
)

// MigrateStep names a step. They are listed in their order; no plan has all of them.
type MigrateStep string

const (
	MigrateIssue      MigrateStep = "issue"
	MigratePublish    MigrateStep = "publish"
	MigrateProve      MigrateStep = "prove"
	MigrateSwitch     MigrateStep = "switch"
	MigrateServed     MigrateStep = "served"
	MigrateSoak       MigrateStep = "soak"
	MigrateDrop       MigrateStep = "drop"
	MigrateProveAgain MigrateStep = "prove-again"
	MigrateTakeOver   MigrateStep = "take-over"
	MigrateAudit      MigrateStep = "audit"
)

// MigrateTarget is a target as it is seen.
type MigrateTarget struct {
	TargetReport
	// Chains are what its endpoints present, in their order; nil for one that presents nothing.
	Chains [][]*x509.Certificate `json:"-"`
}

// Ref names the target for a Publisher.
func (t MigrateTarget) Ref() Ref { return Ref{Kind: t.Kind, Name: t.Name, Webhook: t.Webhook} }

// works says whether calls through the endpoint work with this trust.
func (t MigrateTarget) works(endpoint int, trust Trust, now time.Time) bool {
	return len(t.Chains[endpoint]) > 0 && Predict(Verify(t.Chains[endpoint], trust, t.ServerName, now)).Works
}

// called are the endpoints that count: those which API servers call, and those which answer all the same.
func (t MigrateTarget) called() (endpoints []int) {
	for i, e := range t.Endpoints {
		if !e.NotReady || len(t.Chains[i]) > 0 {
			endpoints = append(endpoints, i)
		}
	}
	return endpoints
}

// MigrateSight is all that a plan is made from.
type MigrateSight struct {
	Target Ref
	// Targets are those that Target names, then everybody else who leads to one of their endpoints and so meets the
	// same certificate.
	Targets []MigrateTarget
	// Elsewhere are webhooks of the same object that lead to other endpoints than the first one does.
	Elsewhere []string
	// Injectors are annotations by which somebody else keeps writing caBundle.
	Injectors []string
	// Keeper is who keeps the Secret that is to be written up to date: "cert-manager", "tracehook", "" nobody.
	Keeper string
	// Problems are what could not be looked at.
	Problems []string
}

// MigrateWish is what the operator wants.
type MigrateWish struct {
	To MigrateTo // Empty: ToIssued if anything is wrong, else nothing
	// Secret (NAMESPACE/NAME) is what the server reads and the migration may write. Empty: the
	// operator switches.
	Secret string
	// NewSecret (NAMESPACE/NAME) is what cert-manager writes, for ToCertManager.
	NewSecret string
	// StateSecret (NAMESPACE/NAME) keeps how far it has come, and the new pair. Empty: one beside
	// the target's Service.
	StateSecret string
	Soak        time.Duration
	Now         time.Time
}

// PlannedStep is one step.
type PlannedStep struct {
	Step  MigrateStep `json:"step"`
	Does  string      `json:"does"`
	Why   string      `json:"why"`
	Proof string      `json:"proof"`
	Back  string      `json:"back"`
	// Done says what came of it, and when; nil before.
	Done *StepDone `json:"done,omitempty"`
}

// StepDone is the result of a step.
type StepDone struct {
	At        time.Time `json:"at"`
	Certainty Certainty `json:"certainty,omitempty"`
	Result    string    `json:"result"`
}

// MigratePlan is what is going to be done.
type MigratePlan struct {
	Target  string      `json:"target"`
	From    MigrateFrom `json:"from"`
	Because string      `json:"because"`
	To      MigrateTo   `json:"to,omitempty"`
	Promise string      `json:"promise"`
	// Together are further objects that lead to the same endpoints and are migrated along.
	Together []string `json:"together,omitempty"`
	// Blockers have to be out of the way first. With any there is no run.
	Blockers []string      `json:"blockers,omitempty"`
	Notes    []string      `json:"notes,omitempty"`
	Steps    []PlannedStep `json:"steps"`
}

// Nothing to do: the target is healthy, and no destination was asked for.
func (p MigratePlan) Nothing() bool { return len(p.Steps) == 0 && len(p.Blockers) == 0 }

// notOfCertificates are findings that no other certificate mends.
var notOfCertificates = []Code{BundleEmpty, ClientCertificate, SlowHandshake, OutOfReach}

// MigrateFindings are all findings of all targets that are worth a migration: an empty caBundle alone is not.
func MigrateFindings(targets []MigrateTarget) (findings []Finding) {
	add := func(list []Finding) {
		for _, f := range list {
			if !slices.Contains(notOfCertificates, f.Code) && !slices.Contains(findings, f) {
				findings = append(findings, f)
			}
		}
	}
	for _, t := range targets {
		add(t.Findings)
		for _, e := range t.Endpoints {
			add(e.Findings)
		}
	}
	return findings
}

// PlanMigration decides.
func PlanMigration(sight MigrateSight, wish MigrateWish) (MigratePlan, error) {
	plan := MigratePlan{Target: sight.Target.String(), To: wish.To, Notes: sight.Problems, Steps: []PlannedStep{}}
	if err := checkWish(wish); err != nil {
		return plan, err
	}
	if len(sight.Elsewhere) > 0 {
		return plan, fmt.Errorf("the webhooks of %s lead to several servers: name one, as in %s/%s; %s lead elsewhere",
			sight.Target, sight.Target, sight.Targets[0].Webhook, strings.Join(sight.Elsewhere, ", "))
	}
	if !slices.ContainsFunc(sight.Targets, func(t MigrateTarget) bool { return slices.ContainsFunc(t.Chains, notEmpty) }) {
		if slices.ContainsFunc(sight.Targets, func(t MigrateTarget) bool {
			return slices.ContainsFunc(t.Endpoints, func(e EndpointReport) bool {
				return slices.ContainsFunc(e.Findings, func(f Finding) bool { return f.Code == OutOfReach })
			})
		}) {
			return plan, errors.New("its server cannot be looked at from here: run this in the network of the API server, with --on-api-server")
		}
		return plan, errors.New("no endpoint presents a certificate, so nothing could be proven: see what `tracehook certs audit` says, and run this where the endpoints can be dialled, as a Job in the cluster")
	}
	plan.From, plan.Because = startingPoint(sight, wish.Now)
	plan.Promise = promise(sight, plan.From, wish.Now)
	for _, t := range sight.Targets {
		if !sight.Target.covers(t.Target) {
			plan.Together = append(plan.Together, t.Ref().String())
		}
	}
	if plan.To == "" {
		if len(MigrateFindings(sight.Targets)) == 0 {
			plan.Promise = "nothing to do; --to migrates a healthy target all the same"
			return plan, nil
		}
		plan.To = ToIssued
	}
	if plan.To == ToCertManager {
		plan.Notes = append(plan.Notes, "after the end, annotate "+plan.Target+" for cert-manager's CA injector, so that caBundle follows its CA")
	}
	plan.Blockers = blockers(sight, plan.To, wish)
	plan.Steps = steps(sight, plan, wish)
	return plan, nil
}

func checkWish(w MigrateWish) error {
	switch {
	case !slices.Contains([]MigrateTo{"", ToIssued, ToCertManager, ToManaged}, w.To):
		return fmt.Errorf("destination %q is none of issued, cert-manager, managed", w.To)
	case w.To == ToCertManager && w.NewSecret == "":
		return errors.New("the Secret that cert-manager writes is missing: one that no server reads yet, with ca.crt, tls.crt and tls.key")
	case w.To != ToCertManager && w.NewSecret != "":
		return errors.New("a new Secret is for the destination cert-manager only")
	case w.To == ToCertManager && w.Secret != "":
		return errors.New("cert-manager writes the new Secret and the server is made to read it: there is no other one to write")
	case w.To == ToManaged && w.Secret == "":
		return errors.New("the Secret that the server reads is missing: the Authority writes there")
	}
	return nil
}

func notEmpty(chain []*x509.Certificate) bool { return len(chain) > 0 }

// covers says whether the target is what the operator names.
func (r Ref) covers(t Target) bool {
	return r.Kind == t.Kind && r.Name == t.Name && (r.Webhook == "" || r.Webhook == t.Webhook)
}

// startingPoint classifies: what is worse comes first.
func startingPoint(s MigrateSight, now time.Time) (MigrateFrom, string) {
	var leaf, issuer string
	selfSigned, pinned, direct := false, false, true
	for _, t := range s.Targets {
		if t.Trust.InsecureSkipVerify {
			return FromUnverified, fmt.Sprintf("%s has insecureSkipTLSVerify: true; %s", t.Ref(), wrongWith(t))
		}
	}
	for _, t := range s.Targets {
		anchors, _ := ParseBundle(t.Trust.Bundle)
		for i, e := range t.Endpoints {
			if e.Call != nil && !e.Call.Works && !e.NotReady && !slices.Contains(notOfCertificates, e.Call.Cause) {
				return FromBroken, fmt.Sprintf("calls to %s fail today: %s", t.Ref(), wrongWith(t))
			}
			if len(t.Chains[i]) == 0 {
				continue
			}
			c := t.Chains[i][0]
			leaf, issuer = describe(c), quote(c.Issuer.String())
			selfSigned = selfSigned || slices.ContainsFunc(e.Findings, func(f Finding) bool { return f.Code == InsecureSHA1 && f.Severity == Info })
			pinned = pinned || slices.ContainsFunc(anchors, c.Equal)
			direct = direct && len(anchors) == 1 && c.CheckSignatureFrom(anchors[0]) == nil
		}
	}
	switch {
	case s.Keeper == "tracehook":
		return FromManaged, "tracehook keeps the Secret"
	case s.Keeper == "cert-manager":
		return FromCertManager, "cert-manager keeps the Secret"
	case len(s.Injectors) > 0:
		return FromCertManager, "somebody writes caBundle: " + strings.Join(s.Injectors, ", ")
	case selfSigned:
		return FromSHA1SelfSigned, leaf + " is signed by itself, with SHA-1, and works because caBundle holds it"
	case pinned:
		return FromPinned, "caBundle holds " + leaf + " itself"
	case direct:
		return FromStatic, fmt.Sprintf("%s has the right name; its CA, %s, stands alone in caBundle, and its key is not held here", leaf, issuer)
	default:
		return FromForeignCA, fmt.Sprintf("%s comes from %s, a CA of others, whose key is not held here", leaf, issuer)
	}
}

// wrongWith is what concerns the certificate, in codes.
func wrongWith(t MigrateTarget) string {
	var codes []string
	for _, f := range MigrateFindings([]MigrateTarget{t}) {
		if f.Code != VerificationOff && !slices.Contains(codes, string(f.Code)) {
			codes = append(codes, string(f.Code))
		}
	}
	if len(codes) == 0 {
		return "the certificate itself is good"
	}
	return strings.Join(codes, ", ")
}

// nothingWorks: no kept connection and no call can be lost.
func nothingWorks(s MigrateSight, now time.Time) bool {
	for _, t := range s.Targets {
		for i := range t.Endpoints {
			if t.works(i, t.Trust, now) {
				return false
			}
		}
	}
	return true
}

func promise(s MigrateSight, from MigrateFrom, now time.Time) string {
	switch {
	case from != FromBroken:
		return "no request fails on the way"
	case nothingWorks(s, now):
		return "a repair: all calls fail today, and stop failing when the new certificate is served"
	default:
		return "a repair: the calls that fail today stop failing when the new certificate is served, and those that work go on working"
	}
}

func blockers(s MigrateSight, to MigrateTo, w MigrateWish) (list []string) {
	for _, injector := range s.Injectors {
		if to != ToManaged {
			list = append(list, injector+" makes somebody else write caBundle, who would undo every step: remove the annotation, from the manifest too (caBundle stays as it is)")
		}
	}
	switch {
	case s.Keeper == "cert-manager" && to != ToManaged:
		list = append(list, "cert-manager keeps Secret "+w.Secret+" up to date and would overwrite it: delete its Certificate (the Secret stays), or have the server read another Secret")
	case s.Keeper == "cert-manager":
		list = append(list, "cert-manager keeps Secret "+w.Secret+" up to date and would overwrite it: delete its Certificate (the Secret stays)")
	case s.Keeper == "tracehook" && to != ToManaged:
		list = append(list, "tracehook's Authority keeps Secret "+w.Secret+" and caBundle up to date and would undo every step: end it (serve with --certs files, which reads the same Secret)")
	}
	return list
}

// verified says whether any target is verified today, unverified whether any is not.
func verified(s MigrateSight) (verified, unverified bool) {
	for _, t := range s.Targets {
		verified, unverified = verified || !t.Trust.InsecureSkipVerify, unverified || t.Trust.InsecureSkipVerify
	}
	return verified, unverified
}

// steps are the order that loses nothing, for this start and this end.
func steps(s MigrateSight, p MigratePlan, w MigrateWish) (list []PlannedStep) {
	step := func(name MigrateStep, does, why, proof, back string) {
		list = append(list, PlannedStep{Step: name, Does: does, Why: why, Proof: proof, Back: back})
	}
	audit := func() {
		step(MigrateAudit, "dial every endpoint once more, and watch the counters of the API servers",
			"a counter at zero proves nothing: it counts one of many faults",
			"no finding; the missing-SAN counters do not move by the calls that come meanwhile", "none is needed: nothing is changed")
	}
	if p.To == ToManaged {
		step(MigrateTakeOver, "lead as tracehook's Authority until Secret "+w.Secret+" holds a pair of its own CA, by its phases",
			"the same order as below, with the key of the new CA kept, so that from then on it renews by itself",
			"the Authority's: each phase is shown with its reason", "`certs migrate` to another destination")
		audit()
		return list
	}

	names := serverNames(s.Targets)
	ca, leaf := "the new CA", "the new certificate"
	if p.To == ToCertManager {
		step(MigrateIssue, "take CA and certificate of Secret "+w.NewSecret+", which cert-manager writes",
			"what follows can be proven before anybody depends on it",
			"the certificate is verified under that CA alone, as "+names, "delete Secret "+w.StateSecret)
		ca, leaf = "cert-manager's CA", "cert-manager's certificate"
	} else {
		step(MigrateIssue, "make a CA and a certificate for "+names+", kept in Secret "+w.StateSecret,
			"what follows can be proven before anybody depends on it; the key of the CA signs once and is forgotten",
			"the certificate is verified under that CA alone, as "+names, "delete Secret "+w.StateSecret)
	}
	verified, unverified := verified(s)
	if verified {
		step(MigratePublish, "write "+ca+" to caBundle, beside what is there",
			"trust comes before the certificate that needs it; both certificates are accepted from now on",
			"caBundle is read back, and every certificate that was accepted still is", "remove "+ca+" from caBundle")
		ask := "ask every API server, each at its own address, whether it has that caBundle"
		if !nothingWorks(s, w.Now) {
			ask += "; outlast requests that began before"
		}
		step(MigrateProve, ask,
			"a change is stored long before all have it; the next step must not come first",
			"each shows the effect of a change that was made after it", "none is needed: nothing is changed")
	}
	switch {
	case p.To == ToCertManager:
		step(MigrateSwitch, "wait for you: have the server read Secret "+w.NewSecret, "only now "+leaf+" is accepted everywhere",
			"the next step", "have the server read its former Secret")
	case w.Secret != "":
		step(MigrateSwitch, "write "+leaf+" to Secret "+w.Secret+" (tls.crt, tls.key, ca.crt)", "only now it is accepted everywhere",
			"the Secret is read back", "write the pair that was there, which Secret "+w.StateSecret+" keeps")
	default:
		step(MigrateSwitch, "wait for you: give the server tls.crt and tls.key of Secret "+w.StateSecret, "only now "+leaf+" is accepted everywhere",
			"the next step", "give the server its former pair")
	}
	step(MigrateServed, "shake hands with every endpoint until each serves "+leaf, "a Secret volume lags 30 to 100 s, a subPath mount for ever",
		"each endpoint's certificate is verified under "+ca+" alone, as "+names, "as of the step before")
	if verified && !nothingWorks(s, w.Now) {
		step(MigrateSoak, "wait "+w.Soak.String(), "connections are kept idle for up to 90 s, and an old replica may come back",
			"every endpoint still serves "+leaf, "as of the step before")
	}
	does, why := "leave "+ca+" alone in caBundle", "nobody serves what the old one signed, and whoever has its key could pass for the server"
	if unverified {
		does += ", with insecureSkipTLSVerify: false in the same update"
		why = "the API server refuses caBundle beside insecureSkipTLSVerify: true, and between two updates calls would fail"
	}
	back := "publish both, give the server its former pair, drop " + ca
	if unverified {
		back = "none: it would turn verification off again"
	}
	step(MigrateDrop, does, why, "before: every endpoint is verified under it alone; after: caBundle is read back", back)
	step(MigrateProveAgain, "ask every API server again", "the end is reached when all have it", "as above", "none is needed: nothing is changed")
	audit()
	return list
}

// serverNames are what API servers verify, each once.
func serverNames(targets []MigrateTarget) string {
	var list []string
	for _, t := range targets {
		if !slices.Contains(list, t.ServerName) {
			list = append(list, t.ServerName)
		}
	}
	return strings.Join(list, ", ")
}

// overlap is the change that makes a target trust the new CA beside what it accepts today. With an empty
// caBundle that is what the system's roots vouch for, and a caBundle would end that: so what
// is served stays trusted by itself.
func overlap(t MigrateTarget, ca []*x509.Certificate, now time.Time) (BundleChange, error) {
	change := BundleChange{Add: slices.Clone(ca)}
	if len(t.Trust.Bundle) == 0 {
		for i := range t.Endpoints {
			if t.works(i, t.Trust, now) {
				chain := t.Chains[i]
				change.Add = append(change.Add, chain[min(1, len(chain)-1)]) // who signed the leaf, if that is sent along
			}
		}
	}
	after := t.Trust
	after.Bundle, _ = MergeBundle(t.Trust.Bundle, change, now)
	for i := range t.Endpoints {
		if t.works(i, t.Trust, now) && !t.works(i, after, now) {
			return change, fmt.Errorf("%s would no longer be accepted at %s", describe(t.Chains[i][0]), t.Endpoints[i].Address)
		}
	}
	return change, nil
}

// notServed says which endpoints do not yet serve what is accepted under the CA alone; nil if none.
func notServed(targets []MigrateTarget, ca []byte, now time.Time) error {
	var missing []string
	asked := 0
	for _, t := range targets {
		for _, i := range t.called() {
			asked++
			trust := Trust{Bundle: ca, APIService: t.Trust.APIService}
			found := Predict(Verify(t.Chains[i], trust, t.ServerName, now))
			if found.Works || slices.Contains(missing, t.Endpoints[i].Address) {
				continue
			}
			missing = append(missing, t.Endpoints[i].Address)
		}
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("not yet served at %s", strings.Join(missing, ", "))
	case asked == 0:
		return errors.New("there is no endpoint")
	}
	return nil
}
