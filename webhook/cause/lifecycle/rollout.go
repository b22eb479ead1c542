package lifecycle

// What is rolled out, and when that was done. A Deployment, StatefulSet, DaemonSet, Job or PersistentVolumeClaim in;
// stages out. Pure.

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Deployment returns the roll-out of what was wanted at since (CausedAt), or at the creation where since is zero. It
// is complete when the Deployment says so, and has failed when its progress deadline is over.
func Deployment(d *appsv1.Deployment, since time.Time) []Stage {
	if d == nil {
		return nil
	}
	s := rollOut(d, since)
	wanted := replicas(d.Spec.Replicas)
	complete := d.Status.ObservedGeneration >= d.Generation && d.Status.Replicas == wanted && d.Status.UpdatedReplicas == wanted && d.Status.AvailableReplicas >= wanted
	for _, c := range d.Status.Conditions {
		if c.Type != appsv1.DeploymentProgressing || d.Status.ObservedGeneration < d.Generation {
			continue
		}
		switch at := instant(c.LastUpdateTime); {
		case c.Status == corev1.ConditionFalse && c.Reason == "ProgressDeadlineExceeded" && notBefore(at, s.Start):
			s.End, s.Failure = at, failure(c.Reason, c.Message)
			s.Occurrence = c.Reason // it may be completed all the same, later
		case complete && c.Reason == "NewReplicaSetAvailable" && notBefore(at, s.Start):
			s.End = at
		}
	}
	return []Stage{ended(s, complete, statusWritten(d.ManagedFields))}
}

// StatefulSet is as Deployment. A StatefulSet has no deadline, and its status no times: the end is when the status was
// last written. With the strategy OnDelete nothing is rolled out.
func StatefulSet(d *appsv1.StatefulSet, since time.Time) []Stage {
	if d == nil || d.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return nil
	}
	wanted := replicas(d.Spec.Replicas)
	updated := d.Status.UpdateRevision == d.Status.CurrentRevision
	if u := d.Spec.UpdateStrategy.RollingUpdate; u != nil && u.Partition != nil && *u.Partition > 0 {
		updated = d.Status.UpdatedReplicas >= wanted-*u.Partition // the others are to stay as they are
	}
	complete := d.Status.ObservedGeneration >= d.Generation && updated && d.Status.ReadyReplicas >= wanted && d.Status.Replicas == wanted
	return []Stage{ended(rollOut(d, since), complete, statusWritten(d.ManagedFields))}
}

// DaemonSet is as StatefulSet.
func DaemonSet(d *appsv1.DaemonSet, since time.Time) []Stage {
	if d == nil || d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
		return nil
	}
	wanted := d.Status.DesiredNumberScheduled
	complete := d.Status.ObservedGeneration >= d.Generation && d.Status.UpdatedNumberScheduled >= wanted && d.Status.NumberAvailable >= wanted
	return []Stage{ended(rollOut(d, since), complete, statusWritten(d.ManagedFields))}
}

// Job returns its run: from since, or the creation where since is zero, to complete or failed.
func Job(j *batchv1.Job, since time.Time) []Stage {
	if j == nil {
		return nil
	}
	s := rollOut(j, since)
	s.Name = RunJob
	for _, c := range j.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete:
			s.End = instant(c.LastTransitionTime)
		case batchv1.JobFailed:
			s.End, s.Failure = instant(c.LastTransitionTime), failure(c.Reason, c.Message)
		}
	}
	return []Stage{sane(s)}
}

// PersistentVolumeClaim returns how long it took until the claim was bound, or that it was lost. Its status has no times:
// the end is when the status was last written.
func PersistentVolumeClaim(c *corev1.PersistentVolumeClaim) []Stage {
	if c == nil {
		return nil
	}
	s := rollOut(c, time.Time{})
	s.Name = BindVolumeClaim
	if c.Status.Phase == corev1.ClaimLost {
		s.Failure = failure("Lost", "")
	}
	return []Stage{ended(s, c.Status.Phase == corev1.ClaimBound || c.Status.Phase == corev1.ClaimLost, statusWritten(c.ManagedFields))}
}

func rollOut(obj metav1.Object, since time.Time) Stage {
	created := obj.GetCreationTimestamp().Time
	if since.Before(created) {
		since = created
	}
	return Stage{Name: RollOut, Start: since, Resolution: time.Second}
}

// ended ends a stage that is complete and has no end yet. A status that was written before the stage began is of another
// one.
func ended(s Stage, complete bool, written time.Time) Stage {
	if complete && !s.Ended() && notBefore(written, s.Start) {
		s.End, s.guessed = written, true
	}
	return sane(s)
}

// notBefore compares a time in whole seconds with one that may have more.
func notBefore(seconds, t time.Time) bool {
	return !seconds.IsZero() && !seconds.Before(t.Truncate(time.Second))
}

// replicas is 1 where nothing is said, as in the API.
func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}
