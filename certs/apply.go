package certs

// What an action makes of the state. In: State, an action, the time, what to issue. Out: the state to be stored. Errors: of
// issuing. Nothing is stored here, and what an action does outside of the Secrets (publish, prove, check) is authority.go's.

import (
	"io"
	"slices"
	"time"
)

// maxDistrusted bounds the memory of CAs that somebody wanted dropped; the oldest are forgotten first.
const maxDistrusted = 32

// issuing says how certificates are made.
type issuing struct {
	CALifetime, LeafLifetime time.Duration
	Rand                     io.Reader
}

// apply returns the state after the action. Its slices may share memory with those of s.
func (a Action) apply(s State, now time.Time, with issuing) (State, error) {
	var err error
	switch a.Step {
	case StepBootstrap:
		s.CA, err = NewCA(CAOptions{Now: now, Lifetime: with.CALifetime, Rand: with.Rand})
		s.NextCA, s.Previous, s.Cross, s.NextCross, s.Proof = KeyPair{}, nil, nil, nil, nil
	case StepIssueCA:
		s, err = a.issueCA(s, now, with)
	case StepIssueLeaf:
		s, err = a.issueLeaf(s, now, with)
	case StepSend:
		if a.Promote {
			s.Leaf = s.NextLeaf
		}
		if !s.Phase.overlapping() {
			s.NextLeaf = Pair{}
		}
		if s.CA.Certificate != nil && s.Leaf.Certificate != nil {
			s.Leaf = s.Leaf.with(s.Cross)
		}
		if s.NextLeaf.Certificate != nil {
			s.NextLeaf = s.NextLeaf.with(s.NextCross)
		}
		if s.Phase == PhaseStable && s.Request.What == RotateNothing {
			s = s.begun()
		}
	case StepSwitch:
		s.CA, s.NextCA = s.NextCA, KeyPair{} // and the old key is gone
		s.Cross, s.NextCross = s.NextCross, nil
	case StepReturn:
		if s.Phase == PhaseSwitched { // whose leaf did not come into service, and whose old key is gone: as with somebody else's CA
			s.CA, s.NextCA = KeyPair{}, s.CA
			s.Cross, s.NextCross = nil, s.Cross
		}
	case StepAbandon:
		s.NextCA, s.Cross, s.NextCross = KeyPair{}, nil, nil
	case StepDistrust:
		s.Distrusted = append(slices.Clone(s.Distrusted), s.undistrusted()...)
		s.Distrusted = s.Distrusted[max(0, len(s.Distrusted)-maxDistrusted):]
	}
	if err != nil {
		return State{}, err
	}
	if a.Phase == PhaseStable && s.Phase != PhaseStable {
		s.Previous, s.Cross, s.NextCross, s.SkipSoak = nil, nil, nil, false
	}
	if a.Phase != s.Phase || a.Step == StepResetClock {
		s.Phase, s.Since = a.Phase, now.UTC()
	}
	return s, nil
}

func (a Action) issueCA(s State, now time.Time, with issuing) (State, error) {
	next, err := NewCA(CAOptions{Now: now, Lifetime: with.CALifetime, Rand: with.Rand})
	if err != nil {
		return State{}, err
	}
	s.NextCA, s.Previous, s.Cross, s.NextCross = next, a.Previous, nil, nil
	if checkCA(s.CA, now) != nil {
		s.CA = KeyPair{}
	} else {
		s.Previous = append(slices.Clone(s.Previous), s.CA.Certificate) // its key may be lost before it is dropped
		if s.NextCross, err = CrossSign(s.CA, next.Certificate, CrossOptions{Now: now, Rand: with.Rand}); err != nil {
			return State{}, err
		}
		if !s.distrusts(s.CA.Certificate) {
			if s.Cross, err = CrossSign(next, s.CA.Certificate, CrossOptions{Now: now, Lifetime: crossLifetime, Rand: with.Rand}); err != nil {
				return State{}, err
			}
		}
	}
	if s.requested() { // whatever it asks for, a new CA and leaf are more
		s.SkipSoak = s.Request.SkipSoak
		s = s.begun()
	}
	return s, nil
}

func (a Action) issueLeaf(s State, now time.Time, with issuing) (State, error) {
	o := LeafOptions{Now: now, Lifetime: with.LeafLifetime, Rand: with.Rand}
	o.Names, o.IPs = splitNames(s.Names)
	if a.Leaf {
		leaf, err := Issue(s.CA, o)
		if err != nil {
			return State{}, err
		}
		s.Leaf = Pair{KeyPair: leaf}.with(s.Cross)
		if s.Phase == PhaseStable && s.Request.What != RotateCA {
			s = s.begun()
		}
	}
	if a.Next {
		leaf, err := Issue(s.NextCA, o)
		if err != nil {
			return State{}, err
		}
		s.NextLeaf = Pair{KeyPair: leaf}.with(s.NextCross)
	}
	return s, nil
}

// begun: nobody needs to begin the request again.
func (s State) begun() State {
	if s.requested() {
		s.Handled, s.HandledIDs, s.Request = s.Request.Time, s.Request.ids(), RotationRequest{}
	}
	return s
}
