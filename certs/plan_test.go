package certs_test

import (
	"crypto/x509"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

// planned is a state in which nothing is due: one CA, its leaf, one bundle.
func planned(t *testing.T, changes ...func(*certs.State)) certs.State {
	t.Helper()
	ca := newCA(t, certs.CAOptions{CommonName: "ours"})
	leaf := newLeaf(t, ca, certs.LeafOptions{Names: []string{host}})
	s := certs.State{Phase: certs.PhaseStable, Since: now.Truncate(time.Second), CA: ca, Leaf: certs.Pair{KeyPair: leaf},
		Names: []string{host}, Soak: 100 * time.Second, Settle: 30 * time.Second}
	trustIn(&s, ca.Certificate)
	for _, change := range changes {
		change(&s)
	}
	return s
}

// trustIn makes this the one live bundle.
func trustIn(s *certs.State, anchors ...*x509.Certificate) {
	bundle, _ := certs.MergeBundle(nil, certs.BundleChange{Add: anchors}, now)
	ref := certs.Ref{Kind: certs.KindMutating, Name: "tracehook"}
	s.Targets = []certs.TargetState{{Ref: ref, Bundles: []certs.LiveBundle{{Ref: ref, Field: "webhooks[0].clientConfig.caBundle", Bundle: bundle, ServerName: host}}}}
}

func TestNext(t *testing.T) {
	next := newCA(t, certs.CAOptions{CommonName: "next"})
	nextLeaf := certs.Pair{KeyPair: newLeaf(t, next, certs.LeafOptions{Names: []string{host}})}
	theirs := newCA(t, certs.CAOptions{CommonName: "theirs"})
	theirLeaf := certs.Pair{KeyPair: newLeaf(t, theirs, certs.LeafOptions{Names: []string{host}})}
	selfSigned := certs.Pair{KeyPair: forge(t, nil)}

	in := func(phase certs.Phase) func(*certs.State) { // a replacement of ours that has come so far
		return func(s *certs.State) {
			old := s.CA.Certificate
			s.Phase, s.Previous = phase, []*x509.Certificate{old}
			switch phase {
			case certs.PhaseIssued, certs.PhasePublished, certs.PhaseProven:
				s.NextCA, s.NextLeaf = next, nextLeaf
				trustIn(s, old, next.Certificate)
			case certs.PhaseSwitched, certs.PhaseSoaking:
				s.CA, s.Leaf = next, nextLeaf
				trustIn(s, old, next.Certificate)
			case certs.PhaseDropped:
				s.CA, s.Leaf = next, nextLeaf
				trustIn(s, next.Certificate)
			}
		}
	}
	later := func(d time.Duration) time.Time { return now.Add(d) }
	nothing := func(s *certs.State) {
		s.Phase, s.Since, s.CA, s.Leaf = certs.PhaseNone, time.Time{}, certs.KeyPair{}, certs.Pair{}
		trustIn(s)
	}
	foreign := func(leaf certs.Pair, anchors ...*x509.Certificate) func(*certs.State) {
		return func(s *certs.State) { nothing(s); s.Leaf = leaf; trustIn(s, anchors...) }
	}
	noKey := func(s *certs.State) { s.CA = certs.KeyPair{} }
	noLeaf := func(s *certs.State) { s.Leaf = certs.Pair{} }
	ask := func(r certs.RotationRequest) func(*certs.State) {
		return func(s *certs.State) { r.Time = now; s.Request = r }
	}
	oldOnly := func(s *certs.State) { trustIn(s, s.Previous...) }
	vouched := func(s *certs.State) {
		s.NextCross = crossSign(t, s.CA, next.Certificate, certs.CrossOptions{})
		s.NextLeaf.Intermediates = []*x509.Certificate{s.NextCross}
	}
	unread := func(s *certs.State) { s.Targets[0].Bundles, s.Targets[0].Err = nil, "forbidden" }

	for _, c := range []struct {
		what    string
		changes []func(*certs.State)
		at      time.Time // zero: now
		step    certs.Step
		phase   certs.Phase
		why     string
	}{
		{"nothing at all", []func(*certs.State){nothing}, now, certs.StepBootstrap, certs.PhaseDropped, "nothing that works"},
		{"nothing, and no object to be trusted by", []func(*certs.State){nothing, func(s *certs.State) { s.Targets = nil }}, now, certs.StepBootstrap, certs.PhaseDropped, ""},
		{"nothing stored, something trusted", []func(*certs.State){foreign(certs.Pair{}, theirs.Certificate)}, now, certs.StepIssueCA, certs.PhaseIssued, "may still serve"},
		{"somebody else's healthy pair", []func(*certs.State){foreign(theirLeaf, theirs.Certificate)}, now, certs.StepIssueCA, certs.PhaseIssued, "key is not held"},
		{"a pinned certificate", []func(*certs.State){foreign(selfSigned, selfSigned.Certificate)}, now, certs.StepIssueCA, certs.PhaseIssued, "key is not held"},
		{"a pair that the machine's roots may trust", []func(*certs.State){foreign(theirLeaf)}, now, certs.StepIssueCA, certs.PhaseIssued, "key is not held"},
		{"a pair that no bundle trusts", []func(*certs.State){foreign(theirLeaf, next.Certificate)}, now, certs.StepBootstrap, certs.PhaseDropped, "nothing that works"},
		{"an expired pair", []func(*certs.State){foreign(theirLeaf, theirs.Certificate)}, later(8 * 24 * time.Hour), certs.StepBootstrap, certs.PhaseDropped, ""},
		{"the CA's key is lost", []func(*certs.State){noKey}, now, certs.StepIssueCA, certs.PhaseIssued, "key is not held"},
		{"all has expired", nil, later(100 * 24 * time.Hour), certs.StepBootstrap, certs.PhaseDropped, ""},

		{"all is well", nil, now, certs.StepWait, certs.PhaseStable, "nothing is due"},
		{"the leaf, before its time", nil, later(4 * 24 * time.Hour), certs.StepWait, certs.PhaseStable, "nothing is due"},
		{"the leaf, after two thirds of its life", nil, later(4*24*time.Hour + 16*time.Hour + time.Second), certs.StepIssueLeaf, certs.PhaseStable, "two thirds"},
		{"the CA, after two thirds of its life", []func(*certs.State){func(s *certs.State) {
			s.Leaf = certs.Pair{KeyPair: newLeaf(t, s.CA, certs.LeafOptions{Names: []string{host}, Now: later(60 * 24 * time.Hour)})}
		}}, later(60*24*time.Hour + time.Second), certs.StepIssueCA, certs.PhaseIssued, "the CA has had two thirds"},
		{"half a pair, garbage, or a deleted Secret", []func(*certs.State){noLeaf}, now, certs.StepIssueLeaf, certs.PhaseStable, "none that can be used"},
		{"another's leaf", []func(*certs.State){func(s *certs.State) { s.Leaf = theirLeaf }}, now, certs.StepIssueLeaf, certs.PhaseStable, "is not signed by"},
		{"an expired leaf", nil, later(7*24*time.Hour + time.Minute), certs.StepIssueLeaf, certs.PhaseStable, "is valid from"},
		{"a name more", []func(*certs.State){func(s *certs.State) { s.Names = []string{host, "tracehook"} }}, now, certs.StepIssueLeaf, certs.PhaseStable, "wanted is"},
		{"an address instead", []func(*certs.State){func(s *certs.State) { s.Names = []string{"127.0.0.1"} }}, now, certs.StepIssueLeaf, certs.PhaseStable, "wanted is"},
		{"the names in another order", []func(*certs.State){func(s *certs.State) {
			s.Names = []string{"b", "::1", "a"}
			s.Leaf = certs.Pair{KeyPair: forge(t, &s.CA, sans("a", "b"), ips("::1"))}
		}}, now, certs.StepWait, certs.PhaseStable, ""},
		{"the bundle is wiped", []func(*certs.State){func(s *certs.State) { trustIn(s) }}, now, certs.StepPublish, certs.PhaseStable, "added"},
		{"the bundle is another's", []func(*certs.State){func(s *certs.State) { trustIn(s, theirs.Certificate) }}, now, certs.StepPublish, certs.PhaseStable, "added"},
		{"another's beside ours stays", []func(*certs.State){func(s *certs.State) { trustIn(s, theirs.Certificate, s.CA.Certificate) }}, now, certs.StepWait, certs.PhaseStable, ""},
		{"a bundle that cannot be read", []func(*certs.State){unread}, now, certs.StepWait, certs.PhaseStable, "forbidden"},
		{"the leaf is due, the bundle cannot be read", []func(*certs.State){unread}, later(5 * 24 * time.Hour), certs.StepIssueLeaf, certs.PhaseStable, ""},
		{"the clock went back", nil, later(-time.Minute), certs.StepResetClock, certs.PhaseStable, "the clock is before"},
		{"the clock went back before everything", nil, later(-365 * 24 * time.Hour), certs.StepResetClock, certs.PhaseStable, ""},
		{"and is believed then", []func(*certs.State){func(s *certs.State) { s.Since = later(-365 * 24 * time.Hour) }}, later(-364 * 24 * time.Hour), certs.StepBootstrap, certs.PhaseDropped, ""},

		{"a leaf is asked for", []func(*certs.State){ask(certs.RotationRequest{What: certs.RotateLeaf})}, now, certs.StepIssueLeaf, certs.PhaseStable, "somebody asks"},
		{"a CA is asked for", []func(*certs.State){ask(certs.RotationRequest{What: certs.RotateCA})}, now, certs.StepIssueCA, certs.PhaseIssued, "somebody asks"},
		{"a compromised CA is to be dropped", []func(*certs.State){ask(certs.RotationRequest{Drop: []string{certs.Fingerprint(theirs.Certificate)}})}, now, certs.StepDistrust, certs.PhaseStable, "somebody asks"},
		{"it is in the bundle", []func(*certs.State){func(s *certs.State) {
			s.Distrusted = []string{certs.Fingerprint(theirs.Certificate)}
			trustIn(s, s.CA.Certificate, theirs.Certificate)
		}}, now, certs.StepPublish, certs.PhaseStable, "removed"},
		{"it is out of the bundle, and that was all", []func(*certs.State){ask(certs.RotationRequest{Drop: []string{certs.Fingerprint(theirs.Certificate)}}),
			func(s *certs.State) { s.Distrusted = s.Request.Drop }}, now, certs.StepSend, certs.PhaseStable, "is done"},
		{"it is ours", []func(*certs.State){func(s *certs.State) { s.Distrusted = []string{certs.Fingerprint(s.CA.Certificate)} }}, now, certs.StepIssueCA, certs.PhaseIssued, "trusted no longer"},

		{"issued, the next leaf is missing", []func(*certs.State){in(certs.PhaseIssued), func(s *certs.State) { s.NextLeaf = certs.Pair{} }}, now, certs.StepIssueLeaf, certs.PhaseIssued, "next leaf"},
		{"issued, both leaves are missing", []func(*certs.State){in(certs.PhaseIssued), noLeaf, func(s *certs.State) { s.NextLeaf = certs.Pair{} }}, now, certs.StepIssueLeaf, certs.PhaseIssued, ""},
		{"issued, not sent along", []func(*certs.State){in(certs.PhaseIssued), func(s *certs.State) { s.Cross = crossSign(t, next, s.CA.Certificate, certs.CrossOptions{}) }}, now, certs.StepSend, certs.PhaseIssued, "vouches"},
		{"issued, not in the bundle", []func(*certs.State){in(certs.PhaseIssued), oldOnly}, now, certs.StepPublish, certs.PhaseIssued, "added"},
		{"issued, in the bundle", []func(*certs.State){in(certs.PhaseIssued)}, now, certs.StepPublished, certs.PhasePublished, ""},
		{"issued, the bundle cannot be read", []func(*certs.State){in(certs.PhaseIssued), unread}, now, certs.StepWait, certs.PhaseIssued, "forbidden"},
		{"issued, the next CA is lost", []func(*certs.State){in(certs.PhaseIssued), func(s *certs.State) { s.NextCA = certs.KeyPair{} }}, now, certs.StepAbandon, certs.PhaseStable, "cannot be used"},
		{"issued in a takeover, the next CA is lost", []func(*certs.State){in(certs.PhaseIssued), noKey, func(s *certs.State) { s.NextCA = certs.KeyPair{} }}, now, certs.StepAbandon, certs.PhaseNone, "cannot be used"},
		{"issued, the next CA is to be dropped", []func(*certs.State){in(certs.PhaseIssued), func(s *certs.State) { s.Distrusted = []string{certs.Fingerprint(next.Certificate)} }}, now, certs.StepAbandon, certs.PhaseStable, "trusted no longer"},
		{"issued, the old CA is to be dropped, and is needed", []func(*certs.State){in(certs.PhaseIssued), func(s *certs.State) { s.Distrusted = []string{certs.Fingerprint(s.CA.Certificate)} }}, now, certs.StepPublished, certs.PhasePublished, ""},
		{"published", []func(*certs.State){in(certs.PhasePublished)}, now, certs.StepProve, certs.PhaseProven, ""},
		{"published, wiped", []func(*certs.State){in(certs.PhasePublished), oldOnly}, now, certs.StepPublish, certs.PhasePublished, "added"},
		{"published in a takeover, nothing stored to serve", []func(*certs.State){in(certs.PhasePublished), noKey, noLeaf}, now, certs.StepProve, certs.PhaseProven, ""},
		{"and the proof does not come", []func(*certs.State){in(certs.PhasePublished), noKey, noLeaf}, later(30 * time.Second), certs.StepSwitch, certs.PhaseSwitched, "does not come"},
		{"published in a takeover, their leaf has expired", []func(*certs.State){in(certs.PhasePublished), noKey, func(s *certs.State) { s.Leaf = certs.Pair{KeyPair: forge(t, &theirs, expired)} }}, now, certs.StepSwitch, certs.PhaseSwitched, "nothing to lose"},
		{"proven, the old CA vouches for the next", []func(*certs.State){in(certs.PhaseProven), vouched}, now, certs.StepSwitch, certs.PhaseSwitched, ""},
		{"proven in a takeover, a moment ago", []func(*certs.State){in(certs.PhaseProven), noKey}, later(59 * time.Second), certs.StepWait, certs.PhaseProven, "began before the proof"},
		{"proven in a takeover, a moment ago, in a hurry", []func(*certs.State){in(certs.PhaseProven), noKey, func(s *certs.State) { s.SkipSoak = true }}, now, certs.StepSwitch, certs.PhaseSwitched, ""},
		{"proven in a takeover", []func(*certs.State){in(certs.PhaseProven), noKey}, later(time.Minute), certs.StepSwitch, certs.PhaseSwitched, ""},
		{"proven in a takeover of what works no longer", []func(*certs.State){in(certs.PhaseProven), noKey, func(s *certs.State) { s.Leaf = certs.Pair{KeyPair: forge(t, &theirs, expired)} }}, now, certs.StepSwitch, certs.PhaseSwitched, ""},
		{"proven, wiped", []func(*certs.State){in(certs.PhaseProven), oldOnly}, now, certs.StepReturn, certs.PhaseIssued, "no longer so"},
		{"switched, the old leaf is still in service", []func(*certs.State){in(certs.PhaseSwitched), func(s *certs.State) { s.Leaf, s.NextLeaf = theirLeaf, nextLeaf }}, now, certs.StepSend, certs.PhaseSwitched, "goes into service"},
		{"switched, the old leaf is still in service, wiped", []func(*certs.State){in(certs.PhaseSwitched), oldOnly, func(s *certs.State) { s.Leaf, s.NextLeaf = theirLeaf, nextLeaf }}, now, certs.StepReturn, certs.PhaseIssued, "no longer so"},
		{"switched", []func(*certs.State){in(certs.PhaseSwitched)}, now, certs.StepCheck, certs.PhaseSoaking, ""},
		{"switched, wiped", []func(*certs.State){in(certs.PhaseSwitched), oldOnly}, now, certs.StepPublish, certs.PhaseSwitched, "added"},
		{"switched, and it is never served everywhere", []func(*certs.State){in(certs.PhaseSwitched), func(s *certs.State) {
			s.Leaf = certs.Pair{KeyPair: newLeaf(t, next, certs.LeafOptions{Names: []string{host}, Now: later(60 * 24 * time.Hour)})}
		}}, later(60*24*time.Hour + time.Second), certs.StepDrop, certs.PhaseDropped, "is due"},
		{"soaking", []func(*certs.State){in(certs.PhaseSoaking)}, later(99 * time.Second), certs.StepWait, certs.PhaseSoaking, "kept connections"},
		{"soaking, over", []func(*certs.State){in(certs.PhaseSoaking)}, later(100 * time.Second), certs.StepDrop, certs.PhaseDropped, ""},
		{"soaking, not wanted", []func(*certs.State){in(certs.PhaseSoaking), func(s *certs.State) { s.SkipSoak = true }}, now, certs.StepDrop, certs.PhaseDropped, ""},
		{"soaking, the clock went back", []func(*certs.State){in(certs.PhaseSoaking)}, later(-time.Hour / 2), certs.StepResetClock, certs.PhaseSoaking, ""},
		{"dropped, still in the bundle", []func(*certs.State){in(certs.PhaseDropped), func(s *certs.State) { trustIn(s, s.Previous[0], next.Certificate) }}, now, certs.StepPublish, certs.PhaseDropped, "removed"},
		{"dropped", []func(*certs.State){in(certs.PhaseDropped)}, now, certs.StepProve, certs.PhaseStable, ""},
		{"stable, still sent along", []func(*certs.State){func(s *certs.State) {
			s.Leaf.Intermediates = []*x509.Certificate{crossSign(t, next, s.CA.Certificate, certs.CrossOptions{})}
		}}, now, certs.StepSend, certs.PhaseStable, "the leaf goes alone"},
		{"stable, a next leaf left over", []func(*certs.State){func(s *certs.State) { s.NextLeaf = nextLeaf }}, now, certs.StepSend, certs.PhaseStable, "no next leaf"},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := planned(t, c.changes...)
			action, why := certs.Next(s, c.at)
			if action.Step != c.step || action.Phase != c.phase || !strings.Contains(why, c.why) || why == "" {
				t.Errorf("%s → %q because %q, want %s → %q because of %q", action.Step, action.Phase, why, c.step, c.phase, c.why)
			}
			if again, _ := certs.Next(s, c.at); again.Step != action.Step {
				t.Errorf("asked again it says %s", again.Step)
			}
			if !slices.Contains(certs.Steps(), action.Step) {
				t.Errorf("%s is none of Steps", action.Step)
			}
		})
	}
}

func TestATakeoverKeepsWhatTheLeafReliesOnAndNothingElse(t *testing.T) {
	theirs, unrelated := newCA(t, certs.CAOptions{CommonName: "theirs"}), newCA(t, certs.CAOptions{CommonName: "unrelated"})
	s := planned(t)
	s.Phase, s.CA, s.Leaf = certs.PhaseNone, certs.KeyPair{}, certs.Pair{KeyPair: newLeaf(t, theirs, certs.LeafOptions{Names: []string{host}})}
	trustIn(&s, unrelated.Certificate, theirs.Certificate)
	if action, _ := certs.Next(s, now); len(action.Previous) != 1 || !action.Previous[0].Equal(theirs.Certificate) {
		t.Errorf("kept are %d certificates, want their CA alone", len(action.Previous))
	}
	trustIn(&s)
	if action, _ := certs.Next(s, now); len(action.Previous) != 1 || !action.Previous[0].Equal(s.Leaf.Certificate) {
		t.Errorf("without a bundle kept are %d certificates, want the leaf itself", len(action.Previous))
	}
}

func TestTheTimeOfRenewalFollowsFromTheCertificate(t *testing.T) {
	ca := newCA(t, certs.CAOptions{})
	seen := map[time.Time]bool{}
	for range 20 {
		leaf := newLeaf(t, ca, certs.LeafOptions{}).Certificate
		at, life := certs.RenewAt(leaf), leaf.NotAfter.Sub(now)
		if share := float64(at.Sub(now)) / float64(life); share < .61 || share > .667 {
			t.Errorf("renewed at %.3f of its life", share)
		}
		if !certs.RenewAt(leaf).Equal(at) {
			t.Error("asked again it is another time")
		}
		seen[at] = true
	}
	if len(seen) < 15 {
		t.Errorf("20 leaves of one second are renewed at %d times: they would all be renewed together", len(seen))
	}
}

func TestAStatusTellsNoKey(t *testing.T) {
	text, err := json.Marshal(certs.Status{CA: &certs.CertificateStatus{}})
	if err != nil || strings.Contains(strings.ToLower(string(text)), "key") {
		t.Errorf("%s, %v", text, err)
	}
}
