package certs

// What to do next. In: State, the time. Out: one action, and why. Errors: none.
//
// Two things keep every step safe. A phase says what the bundles must hold and who signs the leaf in service,
// and whatever is otherwise is put right before anything else is thought of; so a wiped bundle or Secret
// needs no path of its own. And a phase is stored before anything is done in its name, so that who comes after
// a crash finds at most too little done, never too much.

import (
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// Step names a kind of action; the set is closed.
type Step string

// In the order in which a replacement of the CA goes through them, then those that happen at any time.
const (
	StepBootstrap Step = "bootstrap"  // a CA where nothing works yet
	StepIssueCA   Step = "issue_ca"   // the next CA, cross-signed if the old key is held
	StepIssueLeaf Step = "issue_leaf" // leaf, next leaf or both
	StepPublish   Step = "publish"    // the live bundles brought in line with the phase
	StepPublished Step = "published"  // all bundles were seen to hold both CAs
	StepProve     Step = "prove"      // ask every API server
	StepSwitch    Step = "switch"     // the next CA is the CA from here on
	StepSend      Step = "send"       // the serving Secret brought in line with the phase, nothing issued
	StepCheck     Step = "check"      // does every endpoint serve the leaf?
	StepDrop      Step = "drop"       // the old CA is to be trusted no longer

	StepWait       Step = "wait"
	StepReturn     Step = "return"      // back to issued: a bundle lost what was proven
	StepAbandon    Step = "abandon"     // the next CA is lost or distrusted
	StepDistrust   Step = "distrust"    // remember which CAs somebody wants dropped
	StepResetClock Step = "reset_clock" // the clock went back behind the beginning of the phase
)

// Steps are all steps.
func Steps() []Step {
	return []Step{StepBootstrap, StepIssueCA, StepIssueLeaf, StepPublish, StepPublished, StepProve, StepSwitch, StepSend, StepCheck, StepDrop,
		StepWait, StepReturn, StepAbandon, StepDistrust, StepResetClock}
}

// Action is what to do next.
type Action struct {
	Step Step
	// Phase is what to store: before anything else is done, but for StepProve and StepCheck, which must
	// succeed first. It is the present one if the step does not change it.
	Phase Phase
	// Until is when to look again (StepWait) or to give up (StepProve). Zero: nothing in particular.
	Until time.Time
	// Leaf and Next: which to issue (StepIssueLeaf).
	Leaf, Next bool
	// Promote makes the stored next leaf the leaf in service (StepSend).
	Promote bool
	// Targets and Change of their bundles (StepPublish).
	Targets []Ref
	Change  BundleChange
	// Previous are to be trusted until they are dropped (StepIssueCA).
	Previous []*x509.Certificate
}

const (
	// Whoever renews at two thirds of life has a third for repairs. Up to a twentieth earlier, so that what
	// was issued together is not renewed together.
	renewNumerator, renewDenominator = 2, 3
	jitterFraction                   = 20
	jitterSteps                      = 1 << 16

	// longestRequest is what an API server gives a request by default (--request-timeout). One that waits for a slow webhook calls the
	// next with what its configuration was at the beginning.
	longestRequest = time.Minute
)

// RenewAt is when a certificate that was issued here is replaced: at two thirds of its life, or up to a
// twentieth of it earlier, as its serial number has it.
func RenewAt(c *x509.Certificate) time.Time {
	issued := c.NotBefore.Add(backdate)
	life := c.NotAfter.Sub(issued)
	if life <= 0 {
		return c.NotAfter
	}
	share := new(big.Int).And(c.SerialNumber, big.NewInt(jitterSteps-1)).Int64()
	jitter := life / jitterFraction / jitterSteps * time.Duration(share)
	return issued.Add(life/renewDenominator*renewNumerator - jitter)
}

// Next decides. It looks in this order: is what the phase needs still there; is the right leaf stored; are
// the bundles right; and only then, may the phase move on? Once proven, the bundles come before the leaf.
func Next(s State, now time.Time) (Action, string) {
	if s.Phase != PhaseNone && now.Before(s.Since) {
		return s.to(StepResetClock, s.Phase), fmt.Sprintf("the clock is before %s, when phase %s began", stamp(s.Since), s.Phase)
	}
	switch {
	case s.Phase.switched() && checkCA(s.CA, now) != nil, !s.Phase.switched() && !s.Phase.overlapping():
		return s.begin(now)
	case s.Phase.overlapping():
		if why := s.nextLost(now); why != "" {
			return s.abandon(now), why
		}
	}
	if fresh := s.undistrusted(); len(fresh) > 0 {
		return s.to(StepDistrust, s.Phase), fmt.Sprintf("somebody asks to trust no longer: %v", fresh)
	}
	leaf, leafWhy := s.serve(now)
	bundles, bundlesWhy := s.publish(now)
	switch {
	case bundlesWhy != "" && (s.Phase == PhaseProven || s.Phase == PhaseSwitched && (leaf.Leaf || leaf.Promote)):
		return s.to(StepReturn, PhaseIssued), "what was proven is no longer so: " + bundlesWhy
	case leafWhy != "":
		return leaf, leafWhy
	case bundlesWhy != "":
		return bundles, bundlesWhy
	}
	return s.advance(now)
}

// to is a step that ends in a phase.
func (s State) to(step Step, phase Phase) Action { return Action{Step: step, Phase: phase} }

func (s State) wait(until time.Time) Action {
	return Action{Step: StepWait, Phase: s.Phase, Until: until}
}

// begin: there is no CA whose key is held.
func (s State) begin(now time.Time) (Action, string) {
	takeover := s.to(StepIssueCA, PhaseIssued)
	if anchors, served := s.foreign(now); served {
		takeover.Previous = anchors
		return takeover, "a leaf is served whose CA's key is not held: its CA stays trusted until another leaf is in service"
	}
	if anchors := s.trusted(now); s.Leaf.Certificate == nil && len(anchors) > 0 {
		takeover.Previous = anchors
		return takeover, "nothing is stored, but something is trusted: servers may still serve what they remember"
	}
	// Not stable yet: published and proven like any other, so that what stands in the way of a proof shows on
	// the first day and not at the first replacement.
	return s.to(StepBootstrap, PhaseDropped), "nothing that works is stored or trusted"
}

// foreign says whether calls with the stored leaf can work, and what they then rely on.
func (s State) foreign(now time.Time) (anchors []*x509.Certificate, served bool) {
	leaf := s.Leaf.Certificate
	if leaf == nil || !valid(leaf, now) {
		return nil, false
	}
	add := func(certificates ...*x509.Certificate) {
		for _, c := range certificates {
			if !now.After(c.NotAfter) && !slices.ContainsFunc(anchors, c.Equal) {
				anchors = append(anchors, c)
			}
		}
	}
	bundles := s.bundles()
	served = len(bundles) == 0
	unknown := false
	for _, b := range bundles {
		trust := Trust{Bundle: b.Bundle, InsecureSkipVerify: b.InsecureSkipVerify}
		switch {
		case len(b.Bundle) == 0:
			// The machine's roots may vouch for it, and a bundle replaces them; or somebody has wiped the bundle.
			unknown = true
		case Predict(Verify(s.Leaf.Chain(), trust, b.ServerName, now)).Works:
			served = true
			in, _ := ParseBundle(b.Bundle)
			for _, c := range in {
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool([]*x509.Certificate{c}), Intermediates: pool(s.Leaf.Intermediates), CurrentTime: now}); err == nil {
					add(c)
				}
			}
		}
	}
	if served || unknown {
		add(s.Previous...)
		if unknown || len(anchors) == 0 {
			add(leaf) // trusted by itself
		}
		return anchors, true
	}
	return nil, false
}

// trusted are all who vouch for anything, to servers that are called here.
func (s State) trusted(now time.Time) (anchors []*x509.Certificate) {
	for _, b := range s.bundles() {
		in, _ := ParseBundle(b.Bundle)
		for _, c := range in {
			if valid(c, now) && !slices.ContainsFunc(anchors, c.Equal) {
				anchors = append(anchors, c)
			}
		}
	}
	return anchors
}

// nextLost says why the next CA cannot be gone on with. "": it can.
func (s State) nextLost(now time.Time) string {
	if err := checkCA(s.NextCA, now); err != nil {
		return "the next CA cannot be used: " + err.Error()
	}
	if s.distrusts(s.NextCA.Certificate) {
		return "the next CA is to be trusted no longer"
	}
	return ""
}

// abandon goes back to before the next CA.
func (s State) abandon(now time.Time) Action {
	if checkCA(s.CA, now) == nil {
		return s.to(StepAbandon, PhaseStable)
	}
	return s.to(StepAbandon, PhaseNone)
}

// undistrusted are the fingerprints that somebody wants dropped and that are not remembered yet.
func (s State) undistrusted() (fresh []string) {
	for _, f := range s.Request.Drop {
		if !slices.Contains(s.Distrusted, f) {
			fresh = append(fresh, f)
		}
	}
	return fresh
}

// requested: there is a request, and nobody has begun it.
func (s State) requested() bool { return !s.Request.Time.IsZero() }

// serve compares the serving Secret with what the phase wants.
func (s State) serve(now time.Time) (Action, string) {
	issue := s.to(StepIssueLeaf, s.Phase)
	why := ""
	if held := checkCA(s.CA, now) == nil; held {
		if why = s.leafFault(s.Leaf, s.CA, now); why != "" {
			if s.Phase != PhaseStable && s.Phase.switched() && s.leafFault(s.NextLeaf, s.CA, now) == "" {
				send := s.to(StepSend, s.Phase)
				send.Promote = true
				return send, "the next leaf was proven: it goes into service"
			}
			issue.Leaf = true
		}
	}
	if s.Phase.overlapping() {
		if fault := s.leafFault(s.NextLeaf, s.NextCA, now); fault != "" {
			issue.Next = true
			if why == "" {
				why = "next leaf: " + fault
			}
		}
	}
	if issue.Leaf || issue.Next {
		return issue, why
	}

	send := s.to(StepSend, s.Phase)
	switch {
	case !s.Phase.overlapping() && s.NextLeaf.Certificate != nil:
		return send, "there is no next leaf in this phase"
	case s.CA.Certificate != nil && s.Cross == nil && len(s.Leaf.Intermediates) > 0:
		return send, "the replacement is over: the leaf goes alone"
	case s.CA.Certificate != nil && !sentAlong(s.Leaf, s.Cross):
		return send, "the leaf goes with the certificate by which the other CA vouches for its CA, during a replacement and not after it"
	case s.Phase.overlapping() && !sentAlong(s.NextLeaf, s.NextCross):
		return send, "the next leaf goes with the certificate by which the old CA vouches for its CA"
	}
	return Action{}, ""
}

func sentAlong(p Pair, cross *x509.Certificate) bool {
	if cross == nil {
		return len(p.Intermediates) == 0
	}
	return len(p.Intermediates) == 1 && p.Intermediates[0].Equal(cross)
}

// leafFault says why a leaf must be issued. "": it need not.
func (s State) leafFault(leaf Pair, ca KeyPair, now time.Time) string {
	c := leaf.Certificate
	switch {
	case c == nil:
		return "there is none that can be used"
	case c.CheckSignatureFrom(ca.Certificate) != nil:
		return fmt.Sprintf("%s is not signed by %s", describe(c), describe(ca.Certificate))
	case !valid(c, now):
		return fmt.Sprintf("%s is valid from %s until %s", describe(c), stamp(c.NotBefore), stamp(c.NotAfter))
	case !sameNames(c, s.Names):
		return fmt.Sprintf("%s is for %s, wanted is %v", describe(c), names(c), s.Names)
	// A leaf that ends with its CA would only be followed by a shorter one.
	case !now.Before(RenewAt(c)) && c.NotAfter.Before(ca.Certificate.NotAfter):
		return fmt.Sprintf("%s has had two thirds of its life, it ends on %s", describe(c), stamp(c.NotAfter))
	}
	return ""
}

func valid(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

// splitNames tells DNS names from addresses.
func splitNames(all []string) (names []string, ips []net.IP) {
	for _, name := range all {
		if ip := net.ParseIP(name); ip != nil {
			ips = append(ips, ip)
		} else {
			names = append(names, name)
		}
	}
	return names, ips
}

// sameNames compares the whole sets: a name too many is one that was taken away.
func sameNames(c *x509.Certificate, want []string) bool {
	set := func(names []string, ips []net.IP) []string {
		all := slices.Clone(names)
		for _, ip := range ips {
			all = append(all, ip.String())
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	return slices.Equal(set(c.DNSNames, c.IPAddresses), set(splitNames(want)))
}

// wanted is what every bundle must hold in this phase, and what none may.
func (s State) wanted() (hold, drop []*x509.Certificate) {
	if s.CA.Certificate != nil {
		hold = append(hold, s.CA.Certificate)
	}
	if s.NextCA.Certificate != nil && s.Phase.overlapping() {
		hold = append(hold, s.NextCA.Certificate)
	}
	if s.Phase == PhaseDropped {
		drop = append(drop, s.Previous...)
	} else {
		hold = append(hold, s.Previous...)
	}
	for _, b := range s.bundles() {
		in, _ := ParseBundle(b.Bundle)
		for _, c := range in {
			if s.distrusts(c) {
				drop = append(drop, c)
			}
		}
	}
	drop = slices.DeleteFunc(drop, func(c *x509.Certificate) bool {
		return slices.ContainsFunc(hold, c.Equal)
	})
	return hold, drop
}

// publish compares the bundles with what the phase wants.
func (s State) publish(now time.Time) (Action, string) {
	hold, drop := s.wanted()
	action := s.to(StepPublish, s.Phase)
	action.Change = BundleChange{Add: hold, Drop: drop}
	why := ""
	for _, t := range s.Targets {
		for _, b := range t.Bundles {
			_, words := MergeBundle(b.Bundle, action.Change, now)
			if b.InsecureSkipVerify {
				// Nothing is verified there. Begin when every endpoint serves what can be.
				if s.Phase != PhaseSoaking && s.Phase != PhaseDropped && s.Phase != PhaseStable {
					continue
				}
				action.Change.Verify = true
				words = append(words, "verification is off")
			}
			if len(words) > 0 {
				if why == "" {
					why = fmt.Sprintf("%s: %s", b.Ref, words[0])
				}
				if !slices.Contains(action.Targets, t.Ref) {
					action.Targets = append(action.Targets, t.Ref)
				}
			}
		}
	}
	return action, why
}

// unread says which target's bundle is not known. "": all are.
func (s State) unread() string {
	for _, t := range s.Targets {
		if t.Err != "" {
			return fmt.Sprintf("%s cannot be read: %s", t.Ref, t.Err)
		}
	}
	return ""
}

// advance: everything is as the phase wants it.
func (s State) advance(now time.Time) (Action, string) {
	if s.Phase == PhaseStable {
		return s.stable(now)
	}
	if why := s.unread(); why != "" {
		return s.wait(time.Time{}), why
	}
	// Whatever cannot be finished must not stop the next replacement.
	overdue := s.Phase.switched() && !now.Before(RenewAt(s.CA.Certificate))
	switch s.Phase {
	case PhaseIssued:
		return s.to(StepPublished, PhasePublished), "every bundle holds what it should"
	case PhasePublished:
		prove := s.to(StepProve, PhaseProven)
		if leaf := s.Leaf.Certificate; leaf == nil {
			// Servers may remember one. Those that start have none.
			prove.Until = s.Since.Add(s.Settle)
			if !now.Before(prove.Until) {
				return s.to(StepSwitch, PhaseSwitched), "no leaf is stored that can be served, and the proof does not come"
			}
		} else if !valid(leaf, now) {
			return s.to(StepSwitch, PhaseSwitched), "the leaf in service is not valid: there is nothing to lose"
		}
		return prove, "no API server may meet the next leaf before it trusts it"
	case PhaseProven:
		vouched := s.NextCross != nil // for the next leaf, to whoever trusts the old CA
		broken := s.Leaf.Certificate != nil && !valid(s.Leaf.Certificate, now)
		if until := s.Since.Add(min(s.Soak, longestRequest)); !vouched && !broken && !s.SkipSoak && now.Before(until) {
			return s.wait(until), "a request that began before the proof may not have come to this webhook yet"
		}
		return s.to(StepSwitch, PhaseSwitched), "every API server trusts the next leaf"
	case PhaseSwitched:
		if overdue {
			return s.to(StepDrop, PhaseDropped), "the next replacement is due"
		}
		return s.to(StepCheck, PhaseSoaking), "no endpoint may still serve the old leaf when its CA is dropped"
	case PhaseSoaking:
		if until := s.Since.Add(s.Soak); !s.SkipSoak && !overdue && now.Before(until) {
			return s.wait(until), "kept connections may still be old"
		}
		return s.to(StepDrop, PhaseDropped), "every endpoint serves the new leaf"
	default: // PhaseDropped
		prove := s.to(StepProve, PhaseStable)
		if overdue {
			prove.Until = now // do not wait for it
		}
		if len(s.Previous) == 0 {
			return prove, "every API server is to trust the CA"
		}
		return prove, "no API server may still trust the old CA"
	}
}

// stable decides whether something is due or asked for.
func (s State) stable(now time.Time) (Action, string) {
	rotate := s.to(StepIssueCA, PhaseIssued)
	renew := RenewAt(s.CA.Certificate)
	switch {
	case s.distrusts(s.CA.Certificate):
		return rotate, "the CA is to be trusted no longer"
	case s.requested() && s.Request.What == RotateCA:
		return rotate, "somebody asks for a new CA"
	case s.requested() && s.Request.What == RotateLeaf:
		return Action{Step: StepIssueLeaf, Phase: s.Phase, Leaf: true}, "somebody asks for a new leaf"
	case s.requested():
		return s.to(StepSend, s.Phase), "what somebody asked for is done"
	case !now.Before(renew):
		return rotate, fmt.Sprintf("the CA has had two thirds of its life, it ends on %s", stamp(s.CA.Certificate.NotAfter))
	}
	if why := s.unread(); why != "" {
		return s.wait(time.Time{}), why
	}
	if leaf := RenewAt(s.Leaf.Certificate); leaf.After(now) && leaf.Before(renew) {
		renew = leaf
	}
	return s.wait(renew), "nothing is due"
}
