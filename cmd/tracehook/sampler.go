package main

// --max-sampled-rate. In: spans that start a trace here, or whose caller wants them sampled. Out: are they?
// Errors: none.

import (
	"fmt"
	"slices"
	"sync"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/webhook"
)

const (
	// remembered is how long a namespace counts as one that wants a share after its last request.
	remembered = 10 * time.Second
	// mostNamespaces have a budget of their own; all others have one together.
	mostNamespaces = 256
)

// newCappedSampler samples what its parent samples and what has none, but no more than so many a second on average. The
// budget is shared by the namespaces that ask for it: one that asks for less than its share gets all it
// asks for, whatever the others do.
func newCappedSampler(perSecond float64) sdktrace.Sampler {
	fair := newFairSampler(perSecond, time.Now)
	return sdktrace.ParentBased(fair, sdktrace.WithRemoteParentSampled(fair))
}

// fairSampler has one token bucket for all, and one for each namespace. Whoever finds a token in
// the first takes it from both. A namespace that has not had its share may take one that is not there yet: the
// others then wait until the debt is paid.
type fairSampler struct {
	rate float64
	now  func() time.Time

	mu          sync.Mutex
	total       bucket
	byNamespace map[string]*bucket
	share       float64   // of each namespace, in requests a second
	shared      time.Time // when that was worked out
}

func newFairSampler(perSecond float64, now func() time.Time) *fairSampler {
	return &fairSampler{rate: perSecond, now: now, total: bucket{tokens: max(1, perSecond), at: now()}, byNamespace: map[string]*bucket{}, share: perSecond}
}

type bucket struct {
	tokens float64
	at     time.Time // of its last request
	asked  int       // requests since the shares were worked out
}

// fill adds what has come since the last request.
func (b *bucket) fill(now time.Time, perSecond, most float64) {
	b.tokens = min(most, b.tokens+now.Sub(b.at).Seconds()*perSecond)
	b.at = now
}

func (s *fairSampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	r := sdktrace.SamplingResult{Decision: sdktrace.Drop, Tracestate: trace.SpanContextFromContext(p.ParentContext).TraceState()}
	namespace, _ := webhook.NamespaceFromContext(p.ParentContext)
	if s.allow(namespace) {
		r.Decision = sdktrace.RecordAndSample
	}
	return r
}

func (s *fairSampler) allow(namespace string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, burst := s.now(), max(1, s.rate)
	if now.Sub(s.shared) >= time.Second {
		s.divide(now)
	}
	own := s.bucketOf(namespace, now)
	own.asked++
	s.total.fill(now, s.rate, burst)
	own.fill(now, s.share, max(1, s.share))
	if s.total.tokens < 1 && (own.tokens < 1 || s.total.tokens-1 < -burst) {
		return false
	}
	s.total.tokens--
	own.tokens = max(0, own.tokens-1)
	return true
}

// divide forgets namespaces that ask for nothing any more, and works out the share of the others.
func (s *fairSampler) divide(now time.Time) {
	seconds := now.Sub(s.shared).Seconds()
	s.shared = now
	var demands []float64
	for name, b := range s.byNamespace {
		if now.Sub(b.at) > remembered {
			delete(s.byNamespace, name)
			continue
		}
		demands = append(demands, float64(b.asked)/seconds)
		b.asked = 0
	}
	s.share = fairShare(s.rate, demands)
}

// fairShare is the most that each may have so that all get no more than rate: what some leave of an equal part is
// for the others.
func fairShare(rate float64, demands []float64) float64 {
	slices.Sort(demands)
	least := rate / float64(len(demands)+1) // for one that is new, and for one that asks for more next
	for i, demand := range demands {
		share := rate / float64(len(demands)-i)
		if demand >= share {
			return share
		}
		rate -= demand
	}
	return max(rate, least)
}

func (s *fairSampler) bucketOf(namespace string, now time.Time) *bucket {
	if len(namespace) > 63 { // RFC 1123: no namespace's name, and not to be remembered
		namespace = "(others)"
	}
	b, ok := s.byNamespace[namespace]
	if ok {
		return b
	}
	if len(s.byNamespace) >= mostNamespaces {
		namespace = "(others)" // no name of a namespace
		if b, ok = s.byNamespace[namespace]; ok {
			return b
		}
	}
	b = &bucket{tokens: max(1, s.share), at: now}
	s.byNamespace[namespace] = b
	return b
}

func (s *fairSampler) Description() string { return fmt.Sprintf("FairSampler{%g/s}", s.rate) }
