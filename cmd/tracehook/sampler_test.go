package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// ask makes calls in turn, each namespace so many a second, and returns how many of them were sampled.
func ask(s *fairSampler, clock *time.Time, seconds int, perSecond map[string]int) map[string]int {
	sampled := map[string]int{}
	const ticks = 1000
	for i := range seconds * ticks {
		*clock = clock.Add(time.Second / ticks)
		for namespace, n := range perSecond {
			for range (i%ticks+1)*n/ticks - i%ticks*n/ticks {
				if s.allow(namespace) {
					sampled[namespace]++
				}
			}
		}
	}
	return sampled
}

func TestANamespaceThatAsksForLessThanItsShareGetsAllOfIt(t *testing.T) {
	clock := time.Unix(1e9, 0)
	s := newFairSampler(20, func() time.Time { return clock })
	alone := ask(s, &clock, 60, map[string]int{"noisy": 5000})
	if got := alone["noisy"]; got < 20*59 || got > 20*62 {
		t.Errorf("alone, a namespace had %d of 60 s sampled, want 20 a second", got)
	}
	got := ask(s, &clock, 60, map[string]int{"noisy": 5000, "quiet": 9, "quieter": 1})
	if got["quiet"] != 9*60 || got["quieter"] != 60 {
		t.Errorf("beside a noisy one %d of 540 and %d of 60 calls were sampled, want all", got["quiet"], got["quieter"])
	}
	if total := got["noisy"] + got["quiet"] + got["quieter"]; total > 20*62 {
		t.Errorf("%d calls sampled in 60 s, want 20 a second", total)
	}
	if got["noisy"] < 9*60 {
		t.Errorf("the noisy namespace had %d sampled, want what the others leave", got["noisy"])
	}
}

func TestNamespacesThatAskForTooMuchShareAlike(t *testing.T) {
	clock := time.Unix(1e9, 0)
	s := newFairSampler(30, func() time.Time { return clock })
	got := ask(s, &clock, 60, map[string]int{"a": 3000, "b": 100, "c": 40})
	for namespace, n := range got {
		if n < 9*60 {
			t.Errorf("namespace %s had %d sampled in 60 s, want nearly 600", namespace, n)
		}
	}
}

func TestTheBudgetRemembersABoundedNumberOfNamespaces(t *testing.T) {
	clock := time.Unix(1e9, 0)
	s := newFairSampler(100, func() time.Time { return clock })
	sampled := 0
	for i := range 100_000 {
		clock = clock.Add(time.Millisecond)
		if s.allow(fmt.Sprintf("made-up-%d", i)) {
			sampled++
		}
	}
	if n := len(s.byNamespace); n > mostNamespaces+1 {
		t.Errorf("%d namespaces are remembered", n)
	}
	if sampled > 100*102 {
		t.Errorf("%d calls sampled in 100 s, want 100 a second", sampled)
	}
	clock = clock.Add(time.Minute)
	s.allow("again")
	if n := len(s.byNamespace); n != 1 {
		t.Errorf("%d namespaces are remembered after a minute of silence, want 1", n)
	}
}

func TestANameThatIsNoNamespacesIsNotRemembered(t *testing.T) {
	clock := time.Unix(1e9, 0)
	s := newFairSampler(100, func() time.Time { return clock })
	for i := range 50 {
		s.allow(strings.Repeat("n", 64+i))
	}
	s.allow(strings.Repeat("n", 63))
	for name := range s.byNamespace {
		if len(name) > 63 {
			t.Errorf("a name of %d bytes is remembered", len(name))
		}
	}
	if len(s.byNamespace) != 2 {
		t.Errorf("%d are remembered, want the namespace and one for all others", len(s.byNamespace))
	}
}
