package main

// The Lease of `lifecycle`. In: a Lease, and how far has been told. Out: who leads, and that mark in an annotation of the Lease. It
// rides on the renewals, so it costs no call. Errors: the API server's.

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"sync"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/tracehook/tracehook/webhook/cause/lifecycle"
)

// toldAnnotation is where on its Lease a leader says how far it has told.
const toldAnnotation = "tracehook.dev/lifecycle-told"

// markedLease is a resourcelock.LeaseLock that carries a mark.
type markedLease struct {
	client         coordination.LeaseInterface
	name, identity string
	log            *slog.Logger

	mu     sync.Mutex
	lease  *coordinationv1.Lease
	mark   lifecycle.Mark // of our own term; nil before
	forget bool           // the mark in the Lease is of no use
}

var _ resourcelock.Interface = (*markedLease)(nil)

// told is for the Controller.
func (l *markedLease) told(mark lifecycle.Mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mark = mark
}

// last is how far anybody has told. A mark that cannot be read is none: then more is told again than needed.
func (l *markedLease) last() lifecycle.Mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mark != nil || l.forget || l.lease == nil {
		return l.mark
	}
	mark, err := lifecycle.ParseMark(l.lease.Annotations[toldAnnotation])
	if err != nil {
		l.log.Warn("the Lease does not say how far has been told; all that is young is told", "annotation", toldAnnotation, "error", err)
	}
	return mark
}

// begin makes the next start one without a mark.
func (l *markedLease) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mark, l.forget = nil, true
}

func (l *markedLease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	lease, err := l.client.Get(ctx, l.name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	record := resourcelock.LeaseSpecToLeaderElectionRecord(&lease.Spec)
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease = lease
	if record.HolderIdentity != l.identity {
		l.mark, l.forget = nil, false // somebody else has gone on from there
	}
	return record, raw, nil
}

func (l *markedLease) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	lease, err := l.client.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: l.name},
		Spec:       resourcelock.LeaderElectionRecordToLeaseSpec(&record),
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease = lease
	return nil
}

// Update needs the version of the Lease that was read, so only who holds it writes a mark.
func (l *markedLease) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	l.mu.Lock()
	if l.lease == nil {
		l.mu.Unlock()
		return errors.New("the Lease has not been read")
	}
	lease := l.lease.DeepCopy()
	lease.Spec = resourcelock.LeaderElectionRecordToLeaseSpec(&record)
	if l.mark != nil {
		lease.Annotations = maps.Clone(lease.Annotations)
		if lease.Annotations == nil {
			lease.Annotations = map[string]string{}
		}
		lease.Annotations[toldAnnotation] = l.mark.String()
	}
	l.mu.Unlock()
	lease, err := l.client.Update(ctx, lease, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lease = lease
	return nil
}

func (l *markedLease) RecordEvent(string) {}
func (l *markedLease) Identity() string   { return l.identity }
func (l *markedLease) Describe() string   { return "Lease " + l.name }
