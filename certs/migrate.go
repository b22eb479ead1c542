package certs

// Migrations, carried out. In: a plan. Out: each step done, proven and stored, so that the next run goes on after
// it. Errors: a step that did not succeed; nothing is lost by it, and the same run goes on there.

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	migrateManager = "tracehook-certs-migrate"
	// DefaultMigrateLifetime is that of a certificate which nobody renews.
	DefaultMigrateLifetime = 365 * 24 * time.Hour
)

// MigrateOptions say what to migrate, and with what.
type MigrateOptions struct {
	Target Ref
	Wish   MigrateWish // Now is not looked at
	// Config is how the cluster is talked to; Clients and Dynamic are made of it.
	Config  *rest.Config
	Clients kubernetes.Interface
	Dynamic dynamic.Interface
	// APIServers are URLs of all of them. Empty: those behind Service default/kubernetes.
	APIServers    []string
	ClusterDomain string        // Empty: DefaultClusterDomain
	Lifetime      time.Duration // of the new CA and certificate. Zero: DefaultMigrateLifetime
	// Identity names this process in its Lease. One that is made of it and of random bits is used. Empty: of these alone.
	Identity string
	// Wait is how long one step may take: for API servers to load a bundle, for a server to read its Secret. Zero: 10 min.
	Wait time.Duration
	// Poll is the time between the first two looks at what a step waits for; it grows to ten times that. Zero: 1 s.
	Poll        time.Duration
	DialTimeout time.Duration // Zero: 10 s
	SystemRoots *x509.CertPool
	// OnStep is called when a step begins, when something is to be told meanwhile, and when it is done; by one goroutine at a time.
	OnStep func(step PlannedStep, meanwhile string)
	// OnAPIServer: see AuditOptions.
	OnAPIServer bool
	Now         func() time.Time // Required
}

// Migration is of one target.
type Migration struct {
	o         MigrateOptions
	publisher *Publisher
	identity  string // of this process, in Leases

	mu     sync.Mutex
	proofs []*Barrier
}

// NewMigration checks the options.
func NewMigration(o MigrateOptions) (*Migration, error) {
	if o.Config == nil || o.Clients == nil || o.Dynamic == nil || o.Now == nil {
		return nil, errors.New("make a migration: a client or the clock is missing")
	}
	for _, secret := range []string{o.Wish.Secret, o.Wish.NewSecret, o.Wish.StateSecret} {
		if namespace, name, _ := strings.Cut(secret, "/"); secret != "" && (namespace == "" || name == "" || strings.Contains(name, "/")) {
			return nil, fmt.Errorf("%q is not of the form NAMESPACE/NAME", secret)
		}
	}
	if err := checkWish(o.Wish); err != nil {
		return nil, err
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultMigrateLifetime
	}
	if o.Wait == 0 {
		o.Wait = 10 * time.Minute
	}
	if o.Poll == 0 {
		o.Poll = time.Second
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.OnStep == nil {
		o.OnStep = func(PlannedStep, string) {}
	}
	publisher, err := NewPublisher(PublisherOptions{Dynamic: o.Dynamic, FieldManager: migrateManager})
	if err != nil {
		return nil, err
	}
	var telling sync.Mutex
	tell := o.OnStep
	o.OnStep = func(step PlannedStep, meanwhile string) {
		telling.Lock()
		defer telling.Unlock()
		tell(step, meanwhile)
	}
	return &Migration{o: o, publisher: publisher, identity: strings.TrimPrefix(o.Identity+"_"+rand.Text(), "_")}, nil
}

// Left is what has been made for proofs and is not removed yet: for somebody who does not wait for Run to return.
func (m *Migration) Left() (refs []Ref) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, proof := range m.proofs {
		refs = append(refs, proof.Left()...)
	}
	return refs
}

// LeftProofs is what killed processes have left: see FindLeftProofs.
func (m *Migration) LeftProofs(ctx context.Context) ([]LeftProof, error) {
	return FindLeftProofs(ctx, m.o.Clients, m.o.Dynamic)
}

// Plan looks and decides; nothing is written. If a run was interrupted it is that run's plan, with what is done.
// The targets are as they are now.
func (m *Migration) Plan(ctx context.Context) (MigratePlan, []MigrateTarget, error) {
	state, sight, err := m.begin(ctx)
	if err != nil {
		return MigratePlan{}, sight.Targets, fmt.Errorf("plan migration: %w", err)
	}
	return state.Plan, sight.Targets, nil
}

// begin returns the state to go on from: a stored one that is not at its end, or a new one.
func (m *Migration) begin(ctx context.Context) (*migrateState, MigrateSight, error) {
	sight, err := m.look(ctx)
	if err != nil {
		return nil, sight, err
	}
	state, err := m.load(ctx)
	if err != nil {
		return nil, sight, err
	}
	if state != nil && state.next() != "" {
		was, is := state.Wish, m.o.Wish
		if state.Plan.Target != m.o.Target.String() || was.To != is.To || was.Secret != is.Secret || was.NewSecret != is.NewSecret {
			return nil, sight, fmt.Errorf("another migration is under way: of %s to %s (Secret %s): go on with its options, or abort it", state.Plan.Target, state.Plan.To, m.o.Wish.StateSecret)
		}
		return state, sight, nil
	}
	wish := m.o.Wish
	wish.Now = m.o.Now()
	fresh := &migrateState{Wish: wish, Begun: wish.Now}
	if state != nil { // of a migration that is at its end
		fresh.secret = state.secret
	}
	fresh.Plan, err = PlanMigration(sight, wish)
	return fresh, sight, err
}

// Run carries the plan out, from the first step that is not done. A step that fails is said; the same call goes
// on there. It returns the plan with what was done. When ctx ends, what was made for a proof is removed before Run returns, and
// the same call goes on; that may take 20 s more. Of two runs for one target the second is refused.
func (m *Migration) Run(ctx context.Context) (MigratePlan, error) {
	state, sight, err := m.begin(ctx)
	if err != nil {
		return MigratePlan{}, fmt.Errorf("plan migration: %w", err)
	}
	if len(state.Plan.Blockers) == 0 && state.next() != "" {
		var release func()
		if ctx, release, err = m.hold(ctx); err != nil {
			return state.Plan, err
		}
		defer release()
		if state, sight, err = m.begin(ctx); err != nil { // nobody else changes it from here on
			return MigratePlan{}, fmt.Errorf("plan migration: %w", err)
		}
	}
	r := &migrateRun{Migration: m, state: state, targets: sight.Targets}
	switch {
	case state.Aborted:
		return state.Plan, fmt.Errorf("the way back has begun: abort again, which finishes it")
	case len(state.Plan.Blockers) > 0:
		return state.Plan, fmt.Errorf("something is in the way: %s", strings.Join(state.Plan.Blockers, "; "))
	}
	for state.next() != "" {
		i := slices.IndexFunc(state.Plan.Steps, func(p PlannedStep) bool { return p.Done == nil })
		step := &state.Plan.Steps[i]
		r.step = *step
		m.o.OnStep(*step, "")
		done, err := r.take(ctx, step.Step)
		if err != nil {
			return state.Plan, fmt.Errorf("step %s: %w", step.Step, because(ctx, err))
		}
		done.At = m.o.Now().UTC().Truncate(time.Second)
		step.Done = &done
		if err := m.save(ctx, state); err != nil {
			return state.Plan, fmt.Errorf("step %s: %w", step.Step, err)
		}
		m.o.OnStep(*step, "")
	}
	// The new pair is where the server reads it; only if that may be the state's Secret it stays.
	if len(state.Plan.Steps) > 0 && (m.o.Wish.Secret != "" || state.Plan.To != ToIssued) {
		if err := m.forget(ctx); err != nil {
			return state.Plan, err
		}
	}
	return state.Plan, nil
}

// migrateRun is one run.
type migrateRun struct {
	*Migration
	state   *migrateState
	step    PlannedStep
	targets []MigrateTarget // as seen last
}

func (r *migrateRun) take(ctx context.Context, step MigrateStep) (StepDone, error) {
	switch step {
	case MigrateIssue:
		return r.issue(ctx)
	case MigratePublish:
		return r.publish(ctx)
	case MigrateProve:
		return r.outlast(ctx)
	case MigrateProveAgain:
		return r.prove(ctx)
	case MigrateSwitch:
		return r.switchOver(ctx)
	case MigrateServed:
		return r.served(ctx, r.state.data[ServingCA])
	case MigrateSoak:
		return r.soak(ctx)
	case MigrateDrop:
		return r.drop(ctx)
	case MigrateTakeOver:
		return r.takeOver(ctx)
	case MigrateAudit:
		return r.audit(ctx)
	}
	return StepDone{}, fmt.Errorf("unknown step %q", step)
}
