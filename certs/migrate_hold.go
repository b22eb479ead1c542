package certs

// One run at a time. In: the name of the state. Out: a Lease beside it that is renewed while the run lives, by which others also see
// whose proofs are under way. Errors: another run holds it.

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

const (
	holdDuration   = silence // how long a Lease that stands still is another run's
	holdRenew      = 2 * time.Second
	releaseTimeout = 5 * time.Second
)

// errTakenOver: this process stood still, and another run took it for dead.
var errTakenOver = errors.New("another run goes on with this migration, as nothing was heard of this one for a while")

// holder is the Lease of the run.
func (m *Migration) holder() Holder {
	namespace, name := splitSecret(m.o.Wish.StateSecret)
	return Holder{namespace, name, m.identity}
}

// hold takes the Lease and removes what killed runs have left meanwhile. The context that it returns ends when another run takes over;
// release gives the Lease back, and returns when all is removed that was left.
func (m *Migration) hold(ctx context.Context) (_ context.Context, release func(), err error) {
	leases := m.o.Clients.CoordinationV1().Leases(m.holder().Namespace)
	lease, err := m.take(ctx, leases)
	if err != nil {
		return nil, nil, err
	}
	ctx, end := context.WithCancelCause(ctx)
	swept, renewed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(swept)
		removed, _ := RemoveLeftProofs(ctx, m.o.Clients, m.o.Dynamic) // what is left all the same, the audit names
		for _, l := range removed {
			m.o.OnStep(PlannedStep{}, fmt.Sprintf("removed %s, which a run that was killed had left behind", l.Ref))
		}
	}()
	go func() {
		defer close(renewed)
		for sleep(ctx, holdRenew) == nil {
			var err error
			if lease, err = m.renew(ctx, leases, lease); errors.Is(err, errTakenOver) {
				end(err)
			}
		}
	}()
	return ctx, func() {
		<-swept
		end(nil)
		<-renewed
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		version := lease.ResourceVersion // nobody minds one that is left: it stands still
		_ = leases.Delete(ctx, lease.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &version}})
	}, nil
}

// because is err, or why the run lost its Lease if that is behind it.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errTakenOver) {
		return cause
	}
	return err
}

// take waits for as long as it takes to see whether the holder of now lives.
func (m *Migration) take(ctx context.Context, leases coordinationclient.LeaseInterface) (*coordinationv1.Lease, error) {
	h := m.holder()
	spec := coordinationv1.LeaseSpec{HolderIdentity: &h.Identity, LeaseDurationSeconds: new(int32(holdDuration / time.Second))}
	var seen *coordinationv1.Lease
	for begin := time.Now(); ; {
		spec.RenewTime = &metav1.MicroTime{Time: m.o.Now()}
		now, err := leases.Get(ctx, h.Lease, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			now, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: h.Lease, Labels: map[string]string{migrateLabel: "true"}}, Spec: spec},
				metav1.CreateOptions{FieldManager: migrateManager})
			if err == nil {
				return now, nil
			}
		case err != nil:
		case seen != nil && (now.UID != seen.UID || now.ResourceVersion != seen.ResourceVersion):
			return nil, fmt.Errorf("another run of this migration is under way: %s renews Lease %s/%s", deref(now.Spec.HolderIdentity), h.Namespace, h.Lease)
		case seen != nil && time.Since(begin) >= patience(now):
			now.Spec = spec
			if now, err = leases.Update(ctx, now, metav1.UpdateOptions{FieldManager: migrateManager}); err == nil {
				return now, nil
			}
		case seen == nil:
			seen = now
		}
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("take Lease %s/%s: %w", h.Namespace, h.Lease, err)
		}
		if err := sleep(ctx, lookAgain); err != nil {
			return nil, fmt.Errorf("take Lease %s/%s: %w", h.Namespace, h.Lease, err)
		}
	}
}

// renew returns the Lease as it is stored then; errTakenOver if it is another's. Other errors pass.
func (m *Migration) renew(ctx context.Context, leases coordinationclient.LeaseInterface, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	changed := lease.DeepCopy()
	changed.Spec.RenewTime = &metav1.MicroTime{Time: m.o.Now()}
	written, err := leases.Update(ctx, changed, metav1.UpdateOptions{FieldManager: migrateManager})
	switch {
	case err == nil:
		return written, nil
	case !apierrors.IsConflict(err) && !apierrors.IsNotFound(err):
		return lease, err
	}
	now, err := leases.Get(ctx, lease.Name, metav1.GetOptions{})
	switch {
	case err == nil && deref(now.Spec.HolderIdentity) == m.identity: // an update of ours whose answer was lost
		return now, nil
	case err == nil || apierrors.IsNotFound(err):
		return lease, errTakenOver
	}
	return lease, err
}
