package certs

// Whoever holds the Lease. In: what is stored and live. Out: one step after the other, as Next has it, each told in Status, spans and
// logs. Errors: logged once, told in Status, tried again later.
//
//	observe → Next → act → observe → …
//
// It looks whenever one of the objects changes, and at least once a minute by the wall clock: timers do not
// count the time that a machine is suspended.

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// failure is what went wrong last, and when to try it again.
type failure struct {
	step    Step
	text    string
	backoff time.Duration
	until   time.Time
}

// leader is one term of office.
type leader struct {
	*Authority
	term     *lease
	changed  <-chan struct{}
	steps    *rate.Limiter
	failed   *failure // nil: nothing
	told     Status   // last given to OnStep
	skewSaid bool
}

// errChanged: what was being done is no longer what should be done.
var errChanged = errors.New("given up, as something else is to be done first")

// lead works until ctx ends or the term does.
func (a *Authority) lead(ctx context.Context, term *lease) {
	a.tel.leads(true)
	defer a.tel.leads(false)
	a.o.Logger.InfoContext(ctx, "leading the certificate authority", "identity", a.o.Identity)
	ctx, stop := context.WithCancel(ctx)
	changed, wait := a.watch(klog.NewContext(ctx, logr.FromSlogHandler(a.o.Logger.Handler())))
	defer wait()
	var sweep sync.WaitGroup
	defer sweep.Wait()
	defer stop() // and then wait
	sweep.Go(func() { a.sweep(ctx) })
	l := &leader{Authority: a, term: term, changed: changed, steps: rate.NewLimiter(stepsPerSecond, stepBurst)}
	for ctx.Err() == nil && term.held() {
		l.turn(ctx)
	}
	a.o.Logger.InfoContext(ctx, "leading the certificate authority no longer", "identity", a.o.Identity)
}

// Left is what its Prover has made for a proof and not removed yet: for somebody who does not wait for Start to return.
func (a *Authority) Left() []Ref { return leftOf(a.o.Prover) }

// sweep removes what killed processes have left of proofs, as far as this one may.
func (a *Authority) sweep(ctx context.Context) {
	if a.o.Dynamic == nil {
		return
	}
	removed, _ := RemoveLeftProofs(ctx, a.o.Clients, a.o.Dynamic) // few may list all kinds
	for _, l := range removed {
		a.o.Logger.WarnContext(ctx, "removed what a process that was killed had left of a proof", "object", l.String(), "made", l.Made)
	}
}

// turn observes, decides, and acts or waits.
func (l *leader) turn(ctx context.Context) {
	now := l.now(ctx)
	s, found, err := l.observe(ctx)
	if err != nil {
		_, span := l.tel.step(ctx, Action{Step: stepObserve}, PhaseNone, "")
		l.tel.ended(ctx, span, stepObserve, err)
		l.fail(ctx, stepObserve, err)
		l.pause(ctx, l.failed.until)
		return
	}
	l.tel.knows(s)
	action, reason := Next(s, now)
	if action.Step == StepWait {
		until := l.wall().Add(idleLook)
		if left := action.Until.Sub(now); !action.Until.IsZero() && left < idleLook {
			until = l.wall().Add(left)
		}
		status := s.status()
		status.Step, status.Reason = StepWait, reason
		status.Settled = s.Phase == PhaseStable && s.unread() == ""
		if unread := s.unread(); unread != "" {
			status.Error = unread
			l.fail(ctx, stepObserve, errors.New(unread))
			until = l.failed.until
		} else {
			l.failed = nil
		}
		l.tell(ctx, &found, s, status, now)
		l.pause(ctx, until)
		return
	}
	if f := l.failed; f != nil && f.step == action.Step && l.wall().Before(f.until) {
		l.pause(ctx, f.until)
		return
	}
	if l.steps.Wait(ctx) != nil {
		return
	}

	stepCtx, span := l.tel.step(ctx, action, s.Phase, reason)
	after, err := l.act(stepCtx, s, &found, action, reason, now)
	switch {
	case errors.Is(err, errChanged) || errors.Is(err, errLease) || ctx.Err() != nil:
		span.End() // it did not come to an end of its own
		return
	case apierrors.IsConflict(err):
		l.tel.ended(stepCtx, span, action.Step, err)
		l.o.Logger.DebugContext(stepCtx, "another writer was faster", "step", action.Step, "error", err)
		return
	}
	l.tel.ended(stepCtx, span, action.Step, err)
	status := after.status()
	status.Step, status.Reason = action.Step, reason
	if err != nil {
		status = s.status()
		status.Step, status.Reason, status.Error = action.Step, reason, err.Error()
		l.fail(stepCtx, action.Step, err)
		after = s
	} else {
		l.failed = nil
		l.tel.knows(after)
		l.o.Logger.InfoContext(stepCtx, "certificates: step done", "step", action.Step, "phase", after.Phase, "reason", reason)
	}
	l.tell(stepCtx, &found, after, status, now)
}

// fail logs an error once and sets when to try again.
func (l *leader) fail(ctx context.Context, step Step, err error) {
	f := failure{step: step, text: err.Error(), backoff: firstBackoff}
	if old := l.failed; old != nil && old.step == step {
		f.backoff = min(2*old.backoff, longestBackoff)
		if l.wall().Before(old.until) { // looked at again for another reason
			f.backoff, f.until = old.backoff, old.until
		}
	}
	if f.until.IsZero() {
		f.until = l.wall().Add(f.backoff)
	}
	if old := l.failed; old == nil || old.text != f.text {
		l.o.Logger.ErrorContext(ctx, "certificates: step failed", "step", step, "error", err)
	}
	l.failed = &f
}

// pause returns at a time, when something changed, or when ctx ends.
func (l *leader) pause(ctx context.Context, until time.Time) {
	timer := time.NewTimer(max(until.Sub(l.wall()), 0))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-l.changed:
	}
}

// now is the clock that certificates are judged by.
func (l *leader) now(ctx context.Context) time.Time {
	if l.o.Now != nil {
		return l.o.Now()
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	before := l.wall()
	probe := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{GenerateName: l.o.LeaseName + "-clock-", Namespace: l.o.Namespace}}
	made, err := l.o.Clients.CoordinationV1().Leases(l.o.Namespace).Create(ctx, probe, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	after := l.wall()
	if err != nil || made.CreationTimestamp.IsZero() {
		return after
	}
	// Known to be within the second that begins then.
	skew := made.CreationTimestamp.Sub(before)
	if skew > -clockTolerance && skew < clockTolerance {
		l.skewSaid = false
		return after
	}
	if !l.skewSaid {
		l.o.Logger.WarnContext(ctx, "the clock of this machine is not the API server's, which is taken", "difference", -skew)
		l.skewSaid = true
	}
	return after.Add(skew)
}

// observe reads everything there is to know.
func (l *leader) observe(ctx context.Context) (State, secrets, error) {
	found, err := l.store.read(ctx)
	if err != nil {
		return State{}, secrets{}, err
	}
	s := parseState(found.ca, found.serving)
	s.Names, s.Soak, s.Settle = l.o.Names, l.o.Soak, l.o.Settle
	for _, ref := range l.o.Targets {
		target := TargetState{Ref: ref}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		live, err := l.o.Publisher.Live(call, ref)
		cancel()
		switch {
		case apierrors.IsNotFound(err): // nobody is sent here by it
		case err != nil:
			target.Err = err.Error()
		default:
			target.Bundles = live
		}
		s.Targets = append(s.Targets, target)
	}
	if ctx.Err() != nil {
		return State{}, secrets{}, context.Cause(ctx)
	}
	return s, found, nil
}

// act does one action. found follows what is written.
func (l *leader) act(ctx context.Context, s State, found *secrets, action Action, reason string, now time.Time) (State, error) {
	switch action.Step {
	case StepProve, StepCheck:
		status := s.status()
		status.Step, status.Reason = action.Step, reason
		if l.failed != nil && l.failed.step == action.Step {
			status.Error = l.failed.text
		}
		l.tell(ctx, found, s, status, now)
		proof, err := l.ask(ctx, s, action, now)
		if err != nil {
			return s, err
		}
		if proof != nil {
			if proof.Time.IsZero() {
				proof.Time = l.now(ctx)
			}
			s.Proof = proof
		}
		now = l.now(ctx)
	}

	after, err := action.apply(s, now, issuing{CALifetime: l.o.CALifetime, LeafLifetime: l.o.LeafLifetime})
	if err != nil {
		return s, err
	}
	if err := l.commit(ctx, found, s, after, l.status(after, action.Step, reason, now)); err != nil {
		return s, err
	}
	if action.Step == StepPublish {
		var errs []error
		for _, ref := range action.Targets {
			if !l.term.held() {
				return s, errLease
			}
			call, cancel := context.WithTimeout(ctx, publishTimeout)
			done, err := l.o.Publisher.Publish(call, ref, action.Change, now)
			cancel()
			if err != nil && !apierrors.IsNotFound(err) {
				errs = append(errs, err)
			}
			for _, what := range done {
				l.o.Logger.InfoContext(ctx, "bundle published", "what", what)
			}
		}
		return after, errors.Join(errs...)
	}
	return after, nil
}

// commit stores a state: the CA's Secret first, so that whoever read an older one stops there.
func (l *leader) commit(ctx context.Context, found *secrets, before, after State, status Status) error {
	if after.caDiffers(before) {
		written, err := l.write(ctx, l.o.CASecret, found.ca, after.encodeCA)
		if err != nil {
			return err
		}
		found.ca = written
	}
	if after.servingDiffers(before) {
		written, err := l.write(ctx, l.o.ServingSecret, found.serving, func(secret *corev1.Secret) error { return after.encodeServing(secret, status) })
		if err != nil {
			return err
		}
		found.serving = written
	}
	return nil
}

// write is store.write, for as long as the term lasts.
func (l *leader) write(ctx context.Context, name string, secret *corev1.Secret, change func(*corev1.Secret) error) (*corev1.Secret, error) {
	if !l.term.held() {
		return nil, errLease
	}
	return l.store.write(ctx, name, secret, change)
}

func (l *leader) status(s State, step Step, reason string, now time.Time) Status {
	status := s.status()
	status.Step, status.Reason, status.Leader, status.Time = step, reason, l.o.Identity, now.UTC().Truncate(time.Second)
	return status
}

// ask proves or checks. It gives up with errChanged when a change in the cluster makes something else more urgent.
func (l *leader) ask(ctx context.Context, s State, action Action, now time.Time) (*Proof, error) {
	timeout := checkTimeout
	if action.Step == StepProve {
		timeout = proveTimeout
		if settle, ok := l.o.Prover.(settle); ok {
			timeout += settle.wait
		}
		if left := action.Until.Sub(now); !action.Until.IsZero() {
			timeout = min(timeout, left)
		}
		if timeout <= 0 {
			return nil, nil // it is not waited for
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type answer struct {
		proof *Proof
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		var got answer
		if action.Step == StepProve {
			got.proof, got.err = l.prove(ctx, s)
		} else if l.o.Endpoints != nil {
			_, got.err = l.o.Endpoints.Serve(ctx, s.Leaf.Certificate)
		}
		answers <- got
	}()
	for {
		select {
		case got := <-answers:
			return got.proof, got.err
		case <-l.changed:
			fresh, _, err := l.observe(ctx)
			if err != nil {
				continue
			}
			if urgent, _ := Next(fresh, l.now(ctx)); urgent.Step != action.Step {
				cancel()
				<-answers
				return nil, errChanged
			}
		}
	}
}

// prove makes the claim: every API server has loaded the bundle, and in it trusts the leaf that comes next.
func (l *leader) prove(ctx context.Context, s State) (*Proof, error) {
	bundles := s.bundles()
	if len(bundles) == 0 {
		return &Proof{Certainty: Assumed}, nil // nobody is sent here
	}
	leaf := s.Leaf.Certificate
	if s.Phase.overlapping() {
		leaf = s.NextLeaf.Certificate
	}
	var proof Proof
	var err error
	if s.Phase.overlapping() && s.NextCross == nil { // nothing vouches for the next CA but the bundles
		claim := func() (Claim, error) {
			live, err := l.o.Publisher.Live(ctx, bundles[0].Ref)
			if err != nil {
				return Claim{}, err
			}
			return Claim{Generation: newGeneration(), Bundle: live[0].Bundle, Leaf: leaf}, nil
		}
		proof, err = proveAndTouch(ctx, l.o.Prover, claim, l.o.Publisher, l.o.Targets, func() time.Time { return l.now(ctx) })
	} else {
		proof, err = l.o.Prover.Prove(ctx, Claim{Generation: newGeneration(), Bundle: bundles[0].Bundle, Leaf: leaf})
	}
	if err != nil {
		return nil, err
	}
	return &proof, nil
}

// tell gives a status to whoever wants to know: the caller, and the readers of the serving Secret if there is
// anything new to read.
func (l *leader) tell(ctx context.Context, found *secrets, s State, status Status, now time.Time) {
	status.Leader, status.Time = l.o.Identity, now.UTC().Truncate(time.Second)
	if found.serving != nil && !sameStatus(statusOf(found.serving), status) {
		written, err := l.write(ctx, l.o.ServingSecret, found.serving, func(secret *corev1.Secret) error {
			e := encoder{secret: secret}
			e.annotation(statusAnnotation, status)
			return e.err
		})
		if err == nil {
			found.serving = written
		} else if ctx.Err() == nil && !errors.Is(err, errLease) && !apierrors.IsConflict(err) { // then it is told at the next step
			l.o.Logger.WarnContext(ctx, "the status cannot be written", "error", err)
		}
	}
	if !sameStatus(l.told, status) {
		l.told = status
		l.o.OnStep(status)
	}
}

// watch signals every change of an object that is looked at. wait returns when all watches have ended, after ctx.
func (a *Authority) watch(ctx context.Context) (changed <-chan struct{}, wait func()) {
	signal := make(chan struct{}, 1)
	notify := func() {
		select {
		case signal <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	}
	var running sync.WaitGroup
	run := func(informer cache.SharedIndexInformer) {
		_, _ = informer.AddEventHandler(handler) // fails only for an informer that was stopped
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	secrets := a.o.Clients.CoreV1().Secrets(a.o.Namespace)
	for _, name := range []string{a.o.CASecret, a.o.ServingSecret} {
		run(cache.NewSharedIndexInformer(namedListWatch(name, secrets, a.o.Clients), &corev1.Secret{}, 0, cache.Indexers{}))
	}
	if a.o.Dynamic != nil {
		for _, ref := range a.o.Targets {
			lw := namedListWatch(ref.Name, a.o.Dynamic.Resource(resources[ref.Kind]), a.o.Dynamic)
			run(cache.NewSharedIndexInformer(lw, &unstructured.Unstructured{}, 0, cache.Indexers{}))
		}
	}
	return signal, running.Wait
}

// sleep waits, or returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

func isTimeout(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
}
