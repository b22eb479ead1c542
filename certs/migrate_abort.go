package certs

// The way back. In: the state of a migration. Out: what was trusted and served before is so again, as far as that is
// safe. Errors: nothing to undo; no safe way back; a step of it that did not succeed, after which the same call begins
// again: each step may be taken twice.

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WayBack says what Abort would do; nothing is written.
func (m *Migration) WayBack(ctx context.Context) (MigratePlan, []MigrateTarget, error) {
	r, plan, err := m.back(ctx)
	if err != nil {
		return plan, nil, fmt.Errorf("plan the way back: %w", err)
	}
	return plan, r.targets, nil
}

// Abort goes back. It may be interrupted, and called again.
func (m *Migration) Abort(ctx context.Context) (MigratePlan, error) {
	_, plan, err := m.back(ctx)
	if err != nil {
		return plan, fmt.Errorf("plan the way back: %w", err)
	}
	ctx, release, err := m.hold(ctx)
	if err != nil {
		return plan, err
	}
	defer release()
	r, plan, err := m.back(ctx) // nobody else changes it from here on
	if err != nil {
		return plan, fmt.Errorf("plan the way back: %w", err)
	}
	r.state.Aborted = true
	if err := m.save(ctx, r.state); err != nil {
		return plan, err
	}
	for i := range plan.Steps {
		step := &plan.Steps[i]
		r.step = *step
		m.o.OnStep(*step, "")
		done, err := r.undo(ctx, step.Step)
		if err != nil {
			return plan, fmt.Errorf("step %s of the way back: %w", step.Step, because(ctx, err))
		}
		done.At = m.o.Now().UTC().Truncate(time.Second)
		step.Done = &done
		m.o.OnStep(*step, "")
	}
	return plan, m.forget(ctx)
}

func (m *Migration) back(ctx context.Context) (*migrateRun, MigratePlan, error) {
	sight, err := m.look(ctx)
	if err != nil {
		return nil, MigratePlan{}, err
	}
	state, err := m.load(ctx)
	if err != nil {
		return nil, MigratePlan{}, err
	}
	if state == nil || state.next() == "" {
		return nil, MigratePlan{}, fmt.Errorf("there is nothing to undo: Secret %s knows of no migration under way", m.o.Wish.StateSecret)
	}
	if state.Plan.Target != m.o.Target.String() || state.Wish.Secret != m.o.Wish.Secret {
		return nil, MigratePlan{}, fmt.Errorf("the migration under way is another one: of %s, with Secret %q", state.Plan.Target, state.Wish.Secret)
	}
	m.o.Wish = state.Wish
	r := &migrateRun{Migration: m, state: state, targets: sight.Targets}
	plan := state.Plan
	plan.Promise = "no request fails on the way back"
	plan.Steps, err = r.stepsBack()
	return r, plan, err
}

// stepsBack are the same steps with old and new in each other's place, from where the migration stands.
func (r *migrateRun) stepsBack() (list []PlannedStep, err error) {
	next := r.state.next()
	reached := func(step MigrateStep) bool { // begun, perhaps
		for _, p := range r.state.Plan.Steps {
			if p.Step == step {
				return true
			}
			if p.Step == next {
				return false
			}
		}
		return false
	}
	step := func(name MigrateStep, does, proof string) {
		list = append(list, PlannedStep{Step: name, Does: does, Why: "it was so before", Proof: proof, Back: "run the migration again"})
	}
	if reached(MigrateTakeOver) {
		return nil, errors.New("the Authority has the Secret: migrate to another destination instead")
	}
	if reached(MigrateSwitch) {
		wasVerified := !slices.ContainsFunc(r.targets, func(t MigrateTarget) bool { return t.Trust.InsecureSkipVerify })
		_, soaks := r.planned(MigrateSoak)
		switch {
		case r.state.Plan.From == FromUnverified && wasVerified:
			return nil, errors.New("verification is on, and the way back would turn it off: run the migration to its end")
		case r.state.Plan.From == FromBroken && !soaks:
			return nil, errors.New("the former certificate failed every call: run the migration to its end")
		}
		if reached(MigrateDrop) {
			step(MigratePublish, "write what was trusted before to caBundle again, beside the new CA", "caBundle is read back")
			step(MigrateProve, "ask every API server whether it has that", "each shows the effect of a change that was made after it")
		}
		if r.state.Wish.Secret == "" {
			step(MigrateSwitch, "wait for you: have the server read its former pair", "the next step")
		} else {
			step(MigrateSwitch, "write the former pair to Secret "+r.state.Wish.Secret, "the Secret is read back")
		}
		step(MigrateServed, "shake hands with every endpoint until each serves what it served before", "each is accepted under the former caBundle alone")
		if soaks {
			step(MigrateSoak, "wait "+r.state.Wish.Soak.String(), "every endpoint still serves it")
		}
	}
	if _, publishes := r.planned(MigratePublish); publishes && reached(MigratePublish) {
		step(MigrateDrop, "remove the new CA from caBundle", "caBundle is read back")
		step(MigrateProveAgain, "ask every API server whether it has that", "as above")
	}
	return list, nil
}

func (r *migrateRun) planned(step MigrateStep) (PlannedStep, bool) {
	for _, p := range r.state.Plan.Steps {
		if p.Step == step {
			return p, true
		}
	}
	return PlannedStep{}, false
}

func (r *migrateRun) undo(ctx context.Context, step MigrateStep) (StepDone, error) {
	switch step {
	case MigratePublish:
		return r.write(ctx, func(t MigrateTarget) (BundleChange, error) {
			return BundleChange{Add: slices.Concat(r.state.before(t.Ref()), r.newCA())}, nil
		})
	case MigrateProve:
		return r.outlast(ctx)
	case MigrateProveAgain:
		return r.prove(ctx)
	case MigrateSwitch:
		return r.switchBack(ctx)
	case MigrateServed:
		err := r.await(ctx, func(ctx context.Context) error {
			if err := r.revisit(ctx); err != nil {
				return err
			}
			return r.formerServed()
		})
		return StepDone{Result: "every endpoint serves what was accepted before"}, err
	case MigrateSoak:
		if err := sleep(ctx, r.state.Wish.Soak); err != nil {
			return StepDone{}, err
		}
		err := r.refresh(ctx)
		if err == nil {
			err = r.formerServed()
		}
		return StepDone{Result: "every endpoint still serves it"}, err
	case MigrateDrop:
		if err := r.refresh(ctx); err != nil {
			return StepDone{}, err
		}
		return r.write(ctx, func(t MigrateTarget) (BundleChange, error) {
			change := BundleChange{Drop: r.newCA()}
			if left, _ := MergeBundle(t.Trust.Bundle, change, r.o.Now()); len(left) == 0 {
				return BundleChange{}, nil // never empty: that would be to trust the system's roots
			}
			return change, nil
		})
	}
	return StepDone{}, fmt.Errorf("unknown step %q", step)
}

func (r *migrateRun) switchBack(ctx context.Context) (StepDone, error) {
	if r.state.Wish.Secret == "" {
		r.say("yours to do: have the server read its former pair")
		return StepDone{Result: "left to you"}, nil
	}
	if len(r.state.data[previousCertificate]) == 0 {
		return StepDone{Result: "it was not overwritten"}, nil
	}
	namespace, name := splitSecret(r.state.Wish.Secret)
	secret, err := r.o.Clients.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return StepDone{}, fmt.Errorf("read Secret %s: %w", r.state.Wish.Secret, err)
	}
	err = r.writePair(ctx, secret, r.state.data[previousCertificate], r.state.data[previousKey], r.state.data[previousCA])
	return StepDone{Result: "Secret " + r.state.Wish.Secret + " holds the former pair"}, err
}

// formerServed: under the former trust, and not the new certificate.
func (r *migrateRun) formerServed() error {
	var missing []string
	for _, t := range r.targets {
		former := t.Trust
		former.Bundle = nil
		for _, b := range r.state.Before {
			if b.Target == t.Ref().String() {
				former.Bundle = b.Bundle
			}
		}
		for _, i := range t.called() {
			isNew := slices.ContainsFunc(t.Chains[i][:min(1, len(t.Chains[i]))], func(c *x509.Certificate) bool { return Fingerprint(c) == r.state.Leaf })
			if isNew || !t.works(i, former, r.o.Now()) {
				missing = append(missing, t.Endpoints[i].Address)
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not yet what it was at %s", strings.Join(missing, ", "))
	}
	return nil
}
