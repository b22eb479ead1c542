package certs

// Who keeps the certificates. In: options. Out: one of many that leads (leader.go). Errors: options
// that nothing can be made of; after the start none.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

const (
	// DefaultLeaseName is the Lease of the one that writes.
	DefaultLeaseName = "tracehook-certs"
	// DefaultSoak is longer than an idle connection lives (90 s in Go).
	DefaultSoak = 100 * time.Second
	// DefaultSettle is how long a change is given to arrive where nobody can be asked.
	DefaultSettle = 30 * time.Second

	// Deadlines, the first of one call of the API.
	callTimeout    = 10 * time.Second
	publishTimeout = 30 * time.Second
	checkTimeout   = 30 * time.Second
	proveTimeout   = time.Minute

	// idleLook is how long nothing at all is looked at while nothing changes.
	idleLook = time.Minute

	firstBackoff, longestBackoff = time.Second, time.Minute

	// Against a fight with another writer, or a mistake of ours: steps a second, and how many at once.
	stepsPerSecond, stepBurst = 5, 100

	// A clock that differs less from the API server's is as good: that one is known in whole seconds.
	clockTolerance = 2 * time.Second
)

// BundlePublisher reads and writes live bundles: a *Publisher.
type BundlePublisher interface {
	Live(ctx context.Context, ref Ref) ([]LiveBundle, error)
	Publish(ctx context.Context, ref Ref, change BundleChange, now time.Time) (done []string, err error)
}

// AuthorityOptions of an Authority.
type AuthorityOptions struct {
	Clients                 kubernetes.Interface
	Namespace               string
	CASecret, ServingSecret string // Empty: the defaults
	// Names and addresses of the leaf (ServiceNames, and that of the proof's Service).
	Names     []string
	Targets   []Ref
	Publisher BundlePublisher // a *Publisher; may be nil without Targets
	// Dynamic watches Targets. Nil: they are looked at once a minute.
	Dynamic dynamic.Interface
	// Prover must prove for the kinds that Targets are of (Provers, if there are several). Nil: a wait of Settle, and an Assumed proof.
	Prover Prover
	// Endpoints checks (step 6) that everybody who can be called serves this leaf. Nil: not checked.
	Endpoints                EndpointChecker
	CALifetime, LeafLifetime time.Duration // Zero: the defaults of CAOptions and LeafOptions
	Soak                     time.Duration // of the old CA; up to a minute of it, of a takeover after the proof. Zero: DefaultSoak
	Settle                   time.Duration // Zero: DefaultSettle
	// Lease
	Identity                                  string        // of this process; required
	LeaseName                                 string        // Empty: DefaultLeaseName
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration // Zero: 15 s, 10 s, 2 s
	// OnStep is called after every step, and before those that take long. Nil: nobody.
	OnStep func(Status)
	// Now is the clock. Nil: the API server's, which is the one that certificates are judged by, and this machine's when
	// the API server cannot be asked (by a dry-run create of a Lease).
	Now            func() time.Time
	Logger         *slog.Logger         // Nil: silence
	TracerProvider trace.TracerProvider // Nil: none
	MeterProvider  metric.MeterProvider // Nil: none
}

// Authority keeps a CA and a leaf, renews them and publishes the CA. A manager to which it is added starts it before its
// caches, on every replica: one of them works, by a Lease of its own and not the manager's.
type Authority struct {
	early
	o     AuthorityOptions
	store store
	tel   *authorityTelemetry
	wall  func() time.Time // this machine's clock
}

// NewAuthority checks the options. Nothing is read or written before Start.
func NewAuthority(o AuthorityOptions) (*Authority, error) {
	switch {
	case o.Clients == nil:
		return nil, errors.New("make an authority: a client is missing")
	case o.Namespace == "" || o.Identity == "":
		return nil, errors.New("make an authority: namespace or identity is missing")
	case len(o.Names) == 0:
		return nil, errors.New("make an authority: its leaf would serve no name")
	case len(o.Targets) > 0 && o.Publisher == nil:
		return nil, errors.New("make an authority: who publishes is missing")
	case o.CALifetime < 0 || o.LeafLifetime < 0 || o.Soak < 0 || o.Settle < 0:
		return nil, errors.New("make an authority: a duration is negative")
	}
	o.Names, o.Targets = slices.Clone(o.Names), slices.Clone(o.Targets) // the caller's
	o.CASecret = cmp.Or(o.CASecret, DefaultCASecret)
	o.ServingSecret = cmp.Or(o.ServingSecret, DefaultServingSecret)
	o.LeaseName = cmp.Or(o.LeaseName, DefaultLeaseName)
	o.CALifetime = cmp.Or(o.CALifetime, DefaultCALifetime)
	o.LeafLifetime = cmp.Or(o.LeafLifetime, DefaultLeafLifetime)
	o.Soak = cmp.Or(o.Soak, DefaultSoak)
	o.Settle = cmp.Or(o.Settle, DefaultSettle)
	o.LeaseDuration = cmp.Or(o.LeaseDuration, 15*time.Second)
	o.RenewDeadline = cmp.Or(o.RenewDeadline, 10*time.Second)
	o.RetryPeriod = cmp.Or(o.RetryPeriod, 2*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnStep == nil {
		o.OnStep = func(Status) {}
	}
	if o.Prover == nil {
		o.Prover = settle{o.Settle}
	}
	tel, err := newAuthorityTelemetry(o.TracerProvider, o.MeterProvider)
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	return &Authority{o: o, tel: tel, wall: time.Now,
		store: store{clients: o.Clients, namespace: o.Namespace, ca: o.CASecret, serving: o.ServingSecret}}, nil
}

// settle is the Prover of those who can ask nobody.
type settle struct{ wait time.Duration }

func (s settle) Prove(ctx context.Context, _ Claim) (Proof, error) {
	if err := sleep(ctx, s.wait); err != nil {
		return Proof{}, err
	}
	return Proof{Certainty: Assumed}, nil
}

// Start runs until ctx ends: it waits for the Lease, leads, gives the Lease back. It returns nil then, and an error only
// when the Lease's options are no good.
func (a *Authority) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := a.campaign(ctx); err != nil {
			return fmt.Errorf("run certificate authority: %w", err)
		}
	}
	return nil
}

// campaign waits for the Lease and leads until it is lost or ctx ends.
func (a *Authority) campaign(ctx context.Context) error {
	// The Lease is given back when the elector's context ends, and that must be after the last write of ours.
	election, resign := context.WithCancel(context.WithoutCancel(ctx))
	election = klog.NewContext(election, logr.FromSlogHandler(electionLog{a.o.Logger.Handler()})) // what client-go has to say
	defer resign()
	var leading sync.Mutex // held while there is work
	work, stop := context.WithCancel(ctx)
	defer stop()
	term := &lease{duration: a.o.LeaseDuration, lost: stop, now: time.Now, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Name: a.o.LeaseName, Namespace: a.o.Namespace},
		Client:     a.o.Clients.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: a.o.Identity},
	}}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          term,
		LeaseDuration: a.o.LeaseDuration, RenewDeadline: a.o.RenewDeadline, RetryPeriod: a.o.RetryPeriod,
		ReleaseOnCancel: true,
		Name:            a.o.LeaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(elected context.Context) {
				defer resign() // whatever has ended the term, the next begins with a campaign
				leading.Lock()
				defer leading.Unlock()
				defer context.AfterFunc(elected, stop)()
				if elected.Err() == nil {
					a.lead(work, term)
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		leading.Lock()
		defer leading.Unlock()
		resign()
	})()
	elector.Run(election)
	leading.Lock() // the work of a Lease that was lost ends before the next begins
	defer leading.Unlock()
	return nil
}
