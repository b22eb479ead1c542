package certs

// The whole machine in memory: the real plan, the real transitions, the real contents of the Secrets, and a world that is as
// late as a real one may be. API servers hold any version of a bundle that was written since they were last known to be up to
// date, servers serve any leaf that was in service since they were last seen; a crash comes between any two writes, and other
// writers wipe and restore what they like.

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	simHost = "tracehook.tracehook-system.svc"
	// simSeeds is how many worlds of each beginning there are. Hundreds were tried when the plan was made.
	simSeeds = int64(2)
)

var errCrash = errors.New("crash")

// dice are those of splitmix64: the same worlds for the same seed. (Package certs imports no math/rand.)
type dice struct{ state uint64 }

func (d *dice) Intn(n int) int {
	d.state += 0x9e3779b97f4a7c15
	z := d.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return int((z ^ z>>31) % uint64(n))
}

func (d *dice) Float64() float64 { return float64(d.Intn(1<<30)) / (1 << 30) }

type bundleVersion struct {
	pem []byte
	// theirs: another writer's, that broke calls at once. What follows from it is not ours.
	theirs bool
}

// world is a cluster.
type world struct {
	t       *testing.T
	random  *dice
	now     time.Time
	names   []string
	targets []Ref
	ca      *corev1.Secret
	serving *corev1.Secret

	bundles map[Ref][]bundleVersion // every version
	loaded  map[Ref]int             // every API server has this version or a later one
	leaves  []Pair                  // that some server may still serve, the latest last

	// outage: somebody else or time has broken what works, and it has not been put right yet.
	outage bool
	// blindProver says that it is proven, and it is not: for the negative control.
	blindProver bool
	crossAlong  bool // API servers are shown what is sent along
	crashes     float64
	violation   string
	trace       []string
}

func newWorld(t *testing.T, seed int64) *world {
	w := &world{t: t, random: &dice{uint64(seed)}, now: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC),
		names:   []string{"tracehook", simHost, "127.0.0.1"},
		targets: []Ref{{Kind: KindMutating, Name: "a"}, {Kind: KindValidating, Name: "b"}},
		bundles: map[Ref][]bundleVersion{}, loaded: map[Ref]int{}}
	for _, ref := range w.targets {
		w.bundles[ref] = []bundleVersion{{}}
	}
	return w
}

func (w *world) live(ref Ref) []byte {
	versions := w.bundles[ref]
	return versions[len(versions)-1].pem
}

func (w *world) observe() State {
	s := parseState(w.ca.DeepCopy(), w.serving.DeepCopy())
	s.Names, s.Soak, s.Settle = w.names, 100*time.Second, 30*time.Second
	for _, ref := range w.targets {
		s.Targets = append(s.Targets, TargetState{Ref: ref, Bundles: []LiveBundle{{Ref: ref, Field: "caBundle", Bundle: w.live(ref), ServerName: simHost}}})
	}
	return s
}

// verifies is what an API server says.
func (w *world) verifies(leaf Pair, bundle []byte) error {
	anchors, _ := ParseBundle(bundle)
	o := x509.VerifyOptions{DNSName: simHost, Roots: pool(anchors), Intermediates: x509.NewCertPool(), CurrentTime: w.now}
	if w.crossAlong {
		o.Intermediates = pool(leaf.Intermediates)
	}
	_, err := leaf.Certificate.Verify(o)
	return err
}

// check is the promise: whatever leaf may be served, whatever bundle an API server may hold.
func (w *world) check(when string) {
	if w.outage || w.violation != "" {
		return
	}
	for _, leaf := range w.leaves {
		for ref, versions := range w.bundles {
			for i := w.loaded[ref]; i < len(versions); i++ {
				if versions[i].theirs {
					continue
				}
				if err := w.verifies(leaf, versions[i].pem); err != nil {
					w.violation = fmt.Sprintf("%s: %s does not verify by version %d (of %d, at least %d) of %s: %v", when, describe(leaf.Certificate), i, len(versions), w.loaded[ref], ref, err)
					return
				}
			}
		}
	}
}

func (w *world) crash() bool { return w.random.Float64() < w.crashes }

func (w *world) store(old *corev1.Secret, name string, encode func(*corev1.Secret) error) *corev1.Secret {
	secret := old.DeepCopy()
	if secret == nil {
		secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	if err := encode(secret); err != nil {
		w.t.Fatal(err)
	}
	return secret
}

// serves: the servers see the Secret, or they will.
func (w *world) serves() {
	leaf, err := ParsePair(w.serving.Data[ServingCertificate], w.serving.Data[ServingKey])
	if err != nil || len(w.leaves) > 0 && w.leaves[len(w.leaves)-1].Certificate.Equal(leaf.Certificate) && len(w.leaves[len(w.leaves)-1].Intermediates) == len(leaf.Intermediates) {
		return // the last good pair stays
	}
	w.leaves = append(w.leaves, leaf)
}

// act does what authority.go does, with a world of its own.
func (w *world) act(s State, a Action) error {
	switch a.Step {
	case StepProve:
		if a.Until.IsZero() || w.now.Before(a.Until) {
			if w.random.Float64() < .1 {
				return errors.New("no proof today")
			}
			if !w.blindProver || s.Phase == PhaseDropped { // by then nobody is late any more
				for ref, versions := range w.bundles {
					w.loaded[ref] = len(versions) - 1
				}
			}
			s.Proof = &Proof{Time: w.now, Certainty: Proven}
		}
	case StepCheck:
		if w.random.Float64() < .1 {
			return errors.New("a server is late")
		}
		w.leaves = w.leaves[max(0, len(w.leaves)-1):]
	}
	after, err := a.apply(s, w.now, issuing{})
	if err != nil {
		w.t.Fatalf("%s: %v", a.Step, err)
	}
	if after.caDiffers(s) {
		if w.crash() {
			return errCrash
		}
		w.ca = w.store(w.ca, DefaultCASecret, after.encodeCA)
	}
	if after.servingDiffers(s) {
		if w.crash() {
			return errCrash
		}
		w.serving = w.store(w.serving, DefaultServingSecret, func(secret *corev1.Secret) error { return after.encodeServing(secret, after.status()) })
		w.serves()
		w.check("a leaf was stored")
	}
	if a.Step == StepPublish {
		for _, ref := range a.Targets {
			if w.crash() {
				return errCrash
			}
			bundle, _ := MergeBundle(w.live(ref), a.Change, w.now)
			w.bundles[ref] = append(w.bundles[ref], bundleVersion{pem: bundle})
			w.check("a bundle was published")
		}
	}
	return nil
}

// run goes on until there is nothing to do.
func (w *world) run() {
	for steps := 0; ; steps++ {
		s := w.observe()
		a, why := Next(s, w.now)
		if why == "" {
			w.t.Fatalf("%s without a reason", a.Step)
		}
		w.trace = append(w.trace, fmt.Sprintf("%s %-9s %-10s → %-9s %s", w.now.Format("01-02 15:04:05"), s.Phase.label(), a.Step, a.Phase, why))
		if steps > 200 {
			w.fatalf("it does not come to an end")
		}
		if a.Step == StepWait {
			if s.Phase == PhaseStable {
				w.settled(s)
				return
			}
			w.now = a.Until
			continue
		}
		if err := w.act(s, a); err != nil && !errors.Is(err, errCrash) {
			w.now = w.now.Add(5 * time.Second)
		}
		w.now = w.now.Add(time.Duration(w.random.Intn(3000)) * time.Millisecond)
		w.check("after " + string(a.Step))
		if w.violation != "" {
			return
		}
	}
}

// settled: time has passed, everybody has what is stored, and that works.
func (w *world) settled(s State) {
	w.leaves = w.leaves[max(0, len(w.leaves)-1):]
	for ref, versions := range w.bundles {
		w.loaded[ref] = len(versions) - 1
	}
	w.outage = false
	w.check("settled")
	if len(w.leaves) == 0 || !w.leaves[0].Certificate.Equal(s.Leaf.Certificate) {
		w.fatalf("settled, and the leaf of State is not the one that is served")
	}
	if s.NextCA.Certificate != nil || s.Cross != nil || len(s.Previous) > 0 || s.NextLeaf.Certificate != nil || len(s.Leaf.Intermediates) > 0 {
		w.fatalf("settled with something left over: %+v", s.status())
	}
	for _, ref := range w.targets {
		anchors, _ := ParseBundle(w.live(ref))
		if !slices.ContainsFunc(anchors, s.CA.Certificate.Equal) || slices.ContainsFunc(anchors, s.distrusts) {
			w.fatalf("settled with the wrong bundle")
		}
	}
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf(format+"\n%s", append(args, strings.Join(w.trace[max(0, len(w.trace)-60):], "\n"))...)
}

// theirs is another writer's version of a bundle. What breaks calls at once is an outage of that writer's making.
func (w *world) theirs(ref Ref, bundle []byte) {
	v := bundleVersion{pem: bundle}
	for _, leaf := range w.leaves {
		v.theirs = v.theirs || w.verifies(leaf, bundle) != nil
	}
	w.bundles[ref] = append(w.bundles[ref], v)
}

// foreign puts somebody else's certificates in place: a chain below a CA, or one that is trusted by itself.
func (w *world) foreign(pinned bool) {
	ca, err := NewCA(CAOptions{Now: w.now, CommonName: "somebody else's"})
	if err != nil {
		w.t.Fatal(err)
	}
	leaf, err := Issue(ca, LeafOptions{Now: w.now, Names: []string{simHost}, Lifetime: 30 * 24 * time.Hour})
	if err != nil {
		w.t.Fatal(err)
	}
	anchor := ca.Certificate
	if pinned {
		anchor = leaf.Certificate
	}
	w.serving = w.store(nil, DefaultServingSecret, func(secret *corev1.Secret) error {
		e := encoder{secret: secret}
		e.pair(ServingCertificate, ServingKey, Pair{KeyPair: leaf})
		return e.err
	})
	for _, ref := range w.targets {
		bundle, _ := MergeBundle(nil, BundleChange{Add: []*x509.Certificate{anchor}}, w.now)
		w.bundles[ref], w.loaded[ref] = []bundleVersion{{pem: bundle}}, 0
	}
	w.leaves = nil
	w.serves()
}

// mischief is what others do, and time.
func (w *world) mischief() {
	ref := w.targets[w.random.Intn(len(w.targets))]
	switch w.random.Intn(12) {
	case 0:
		w.theirs(ref, nil)
	case 1:
		w.theirs(ref, []byte("garbage"))
	case 2: // a tool that applies what it knew
		versions := w.bundles[ref]
		w.theirs(ref, versions[w.random.Intn(len(versions))].pem)
	case 3:
		w.serving = nil
	case 4:
		if w.serving != nil {
			w.serving = w.serving.DeepCopy()
			keys := slices.Sorted(maps.Keys(w.serving.Data))
			if len(keys) > 0 {
				w.serving.Data[keys[w.random.Intn(len(keys))]] = []byte("-----BEGIN CERTIFICATE-----\ngarbage")
			}
		}
	case 5: // the key is lost: what is served goes on being trusted
		if w.ca != nil && w.random.Intn(3) == 0 {
			w.ca = nil
		}
	case 6:
		if w.ca != nil {
			w.ca = w.ca.DeepCopy()
			keys := slices.DeleteFunc(slices.Sorted(maps.Keys(w.ca.Data)), func(key string) bool { return key == caPrevious })
			if len(keys) > 0 {
				delete(w.ca.Data, keys[w.random.Intn(len(keys))])
			}
		}
	case 7:
		w.request(RotationRequest{What: RotateCA, SkipSoak: w.random.Intn(2) == 0})
	case 8:
		w.request(RotationRequest{What: RotateLeaf})
	case 9:
		if s := w.observe(); s.CA.Certificate != nil {
			w.request(RotationRequest{What: []Rotation{RotateNothing, RotateLeaf, RotateCA}[w.random.Intn(3)], Drop: []string{Fingerprint(s.CA.Certificate)}, SkipSoak: true})
		}
	case 10:
		if w.ca != nil {
			w.ca = w.ca.DeepCopy()
			delete(w.ca.Annotations, stateAnnotation)
		}
	}
}

func (w *world) request(r RotationRequest) {
	if w.serving == nil {
		return
	}
	r.Time = w.now
	w.serving = w.serving.DeepCopy()
	e := encoder{secret: w.serving}
	e.annotation(requestAnnotation, r)
}

// live through months: renewals, replacements, mischief in the middle of them, and clocks that jump.
func (w *world) months(rounds int) {
	for range rounds {
		if w.violation != "" {
			return
		}
		for range w.random.Intn(25) { // some way into whatever there is to do
			s := w.observe()
			a, why := Next(s, w.now)
			w.trace = append(w.trace, fmt.Sprintf("%s %-9s %-10s → %-9s %s", w.now.Format("01-02 15:04:05"), s.Phase.label(), a.Step, a.Phase, why))
			if a.Step == StepWait {
				w.now = w.now.Add(time.Second)
			} else {
				_ = w.act(s, a)
			}
			if w.random.Intn(4) == 0 {
				w.mischief()
			}
			w.check("among mischief")
			if w.violation != "" {
				return
			}
		}
		w.run()
		if w.violation != "" {
			return
		}
		switch jump := w.random.Intn(20); {
		case jump == 0: // far ahead: everything has expired
			w.now, w.outage = w.now.AddDate(1, 0, 0), true
		case jump == 1: // far back: nothing is valid yet
			w.now, w.outage = w.now.AddDate(0, -6, 0), true
		case jump < 4: // a little back, as clocks do
			w.now = w.now.Add(-30 * time.Minute)
		default:
			w.now = w.now.Add(time.Duration(w.random.Intn(40)) * time.Hour)
		}
	}
}

func TestWhateverHappensNoAPIServerMeetsALeafThatItDoesNotTrust(t *testing.T) {
	starts := map[string]func(*world){
		"from nothing":                 func(w *world) { w.outage = true },
		"from somebody else's CA":      func(w *world) { w.foreign(false) },
		"from a pinned certificate":    func(w *world) { w.foreign(true) },
		"with servers that remember":   func(w *world) { w.foreign(false); w.serving = nil },
		"with an empty, unknown trust": func(w *world) { w.foreign(false); w.serving.Annotations = map[string]string{requestAnnotation: "{"} },
	}
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			for seed := range simSeeds {
				w := newWorld(t, seed)
				w.crashes = float64(seed%3) * .1
				start(w)
				w.run()
				w.months(6)
				if w.violation != "" {
					w.fatalf("seed %d: %s", seed, w.violation)
				}
			}
		})
	}
}

// The simulation finds what it is for: with a proof that proves nothing, an API server that is late meets the next leaf
// too early. And it finds nothing when the certificates that the CAs gave each other go along: then order does not matter.
func TestWithoutAProofTheSimulationFailsUnlessTheCAsVouchForEachOther(t *testing.T) {
	failed := 0
	for seed := range int64(10) {
		for _, along := range []bool{false, true} {
			w := newWorld(t, seed)
			w.blindProver, w.crossAlong, w.outage = true, along, true
			w.run()
			w.request(RotationRequest{What: RotateCA})
			w.run()
			switch {
			case along && w.violation != "":
				w.fatalf("seed %d, cross-signed: %s", seed, w.violation)
			case !along && w.violation != "":
				failed++
			}
		}
	}
	if failed != 10 {
		t.Errorf("%d of 10 worlds without a proof failed, want all", failed)
	}
}
