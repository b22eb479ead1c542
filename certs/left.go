package certs

// What proofs make for a moment, and what is left of it when a process is killed. In: clients. Out: the objects whose maker
// is gone. Errors: kinds that cannot be listed; the rest is found all the same.
//
// Every such object has the label barrierKey and, if its maker renews a Lease while it lives, an annotation with that Lease. No clock is
// compared with another: whoever looks waits and sees whether anything moves.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
)

const (
	// holderKey is the annotation that names the maker: NAMESPACE/LEASE IDENTITY.
	holderKey = barrierKey + "/holder"

	// silence of a maker for so long, or for its Lease's duration if that is longer, means that it is gone.
	silence, longestSilence = 6 * time.Second, time.Minute
	lookAgain               = time.Second
)

// Holder is a Lease that a process renews while it lives.
type Holder struct {
	Namespace, Lease, Identity string // Identity is spec.holderIdentity. All empty: there is none
}

func (h Holder) String() string {
	if h.Lease == "" {
		return ""
	}
	return h.Namespace + "/" + h.Lease + " " + h.Identity
}

// holderOf reads what String writes.
func holderOf(object metav1.Object) (h Holder) {
	lease, identity, _ := strings.Cut(object.GetAnnotations()[holderKey], " ")
	namespace, name, found := strings.Cut(lease, "/")
	if found {
		h = Holder{namespace, name, identity}
	}
	return h
}

// LeftProof is an object that a Barrier made, and that its maker will not remove any more.
type LeftProof struct {
	Ref
	Made time.Time
	// Certain is false when the maker's Lease could not be read, or ctx ended before it was known whether it is gone.
	Certain bool

	object metav1.Object
}

// FindLeftProofs returns what killed processes have left, of whatever age; of a proof that is under way nothing. It takes seconds if
// there is anything to be seen, and no time otherwise. Whoever may list the four kinds may find, and whoever may read their makers'
// Leases too is certain. An error tells of what could not be listed, beside what was found.
func FindLeftProofs(ctx context.Context, clients kubernetes.Interface, objects dynamic.Interface) (left []LeftProof, err error) {
	var errs []error
	for kind := range resources {
		found, err := listProofs(ctx, clients, objects, kind)
		if err != nil {
			errs = append(errs, fmt.Errorf("look for what proofs have left: list %s: %w", resources[kind].Resource, err))
			continue
		}
		var suspects []*suspect
		for _, object := range found {
			suspects = append(suspects, &suspect{kind: kind, first: object, wait: silence})
		}
		left = append(left, watchSuspects(ctx, clients, objects, kind, suspects)...)
	}
	slices.SortFunc(left, func(a, b LeftProof) int { return strings.Compare(a.String(), b.String()) })
	return left, errors.Join(errs...)
}

// watchSuspects returns those whose makers are gone, or may be when ctx ends.
func watchSuspects(ctx context.Context, clients kubernetes.Interface, objects dynamic.Interface, kind string, suspects []*suspect) (left []LeftProof) {
	for begin := time.Now(); ; {
		suspects = slices.DeleteFunc(suspects, func(s *suspect) bool {
			verdict := s.judge(ctx, clients, time.Since(begin))
			if verdict == gone || verdict == perhapsGone {
				left = append(left, s.left(verdict == gone))
			}
			return verdict != unknownYet
		})
		if len(suspects) == 0 {
			return left
		}
		if sleep(ctx, lookAgain) != nil {
			for _, s := range suspects {
				left = append(left, s.left(false))
			}
			return left
		}
		found, err := listProofs(ctx, clients, objects, kind)
		if err != nil {
			continue
		}
		suspects = slices.DeleteFunc(suspects, func(s *suspect) bool { return !slices.ContainsFunc(found, s.unchanged) })
	}
}

// listProofs lists with the clients that the audit lists with.
func listProofs(ctx context.Context, clients kubernetes.Interface, objects dynamic.Interface, kind string) (found []metav1.Object, err error) {
	o := metav1.ListOptions{LabelSelector: barrierKey}
	switch admission := clients.AdmissionregistrationV1(); kind {
	case KindMutating:
		list, err := admission.MutatingWebhookConfigurations().List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			found = append(found, &list.Items[i])
		}
	case KindValidating:
		list, err := admission.ValidatingWebhookConfigurations().List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			found = append(found, &list.Items[i])
		}
	default:
		list, err := objects.Resource(resources[kind]).List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			found = append(found, &list.Items[i])
		}
	}
	return found, nil
}

// RemoveLeftProofs removes what FindLeftProofs finds, and returns what it removed.
func RemoveLeftProofs(ctx context.Context, clients kubernetes.Interface, objects dynamic.Interface) (removed []LeftProof, err error) {
	left, err := FindLeftProofs(ctx, clients, objects)
	for _, l := range left {
		if !l.Certain {
			continue
		}
		uid, version := l.object.GetUID(), l.object.GetResourceVersion()
		failed := objects.Resource(resources[l.Kind]).Delete(ctx, l.Name,
			metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version}})
		switch {
		case failed == nil:
			removed = append(removed, l)
		case !apierrors.IsNotFound(failed) && !apierrors.IsConflict(failed): // those: somebody else has, or it lives
			err = errors.Join(err, fmt.Errorf("remove %s, which a killed process has left: %w", l.Ref, failed))
		}
	}
	return removed, err
}

// suspect is an object of a proof that may be under way.
type suspect struct {
	kind    string
	first   metav1.Object     // as seen first
	renewed *metav1.MicroTime // its maker's Lease, as seen first
	seen    bool              // renewed was seen
	wait    time.Duration
}

func (s *suspect) left(certain bool) LeftProof {
	return LeftProof{Ref{Kind: s.kind, Name: s.first.GetName()}, s.first.GetCreationTimestamp().Time, certain, s.first}
}

// unchanged: the object is there as it was seen first, and nobody is removing it.
func (s *suspect) unchanged(now metav1.Object) bool {
	return now.GetUID() == s.first.GetUID() && now.GetName() == s.first.GetName() && now.GetResourceVersion() == s.first.GetResourceVersion() && now.GetDeletionTimestamp() == nil
}

// verdict about a maker.
type verdict int

const (
	unknownYet verdict = iota
	alive
	gone
	perhapsGone // its Lease cannot be read
)

// judge decides after a time of watching, in which the object has not changed.
func (s *suspect) judge(ctx context.Context, clients kubernetes.Interface, watched time.Duration) verdict {
	if s.first.GetDeletionTimestamp() != nil {
		return alive
	}
	unreadable := false
	if holder := holderOf(s.first); holder.Lease != "" {
		lease, err := clients.CoordinationV1().Leases(holder.Namespace).Get(ctx, holder.Lease, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return gone
		case err != nil:
			unreadable = true
		case deref(lease.Spec.HolderIdentity) != holder.Identity:
			return gone
		case s.seen && !lease.Spec.RenewTime.Equal(s.renewed):
			return alive
		case !s.seen:
			s.seen, s.renewed, s.wait = true, lease.Spec.RenewTime, patience(lease)
		}
	}
	switch {
	case watched < s.wait:
		return unknownYet
	case unreadable:
		return perhapsGone
	}
	return gone
}

// patience is how long a Lease may stand still.
func patience(lease *coordinationv1.Lease) time.Duration {
	return min(max(silence, time.Duration(deref(lease.Spec.LeaseDurationSeconds))*time.Second), longestSilence)
}

// outlasting returns a context that ends some time after ctx, so that the outcome of a write is known.
func outlasting(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(by, cancel)
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() { stop(); cancel() }
}
