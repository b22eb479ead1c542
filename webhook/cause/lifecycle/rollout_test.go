package lifecycle

import (
	"encoding/json"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

const owner = `metadata: {name: web, namespace: shop, uid: u-1, generation: 2, creationTimestamp: "@0@", managedFields: [{manager: kube-controller-manager, subresource: status, time: "@40@"}]}
`

func TestARollOutEndsWhereItsStatusSaysSo(t *testing.T) {
	since := noon.Add(10*time.Second + 345*time.Millisecond)
	for _, test := range []struct {
		name, want string
		got        []Stage
	}{
		{"it goes on", "roll out 10.345-", Deployment(read[appsv1.Deployment](t, owner+`
spec: {replicas: 2}
status: {observedGeneration: 2, replicas: 3, updatedReplicas: 1, availableReplicas: 2, conditions: [{type: Progressing, status: "True", reason: ReplicaSetUpdated, lastUpdateTime: "@12@"}]}`), since)},
		{"it is complete", "roll out 10.345-15", Deployment(read[appsv1.Deployment](t, owner+`
spec: {replicas: 2}
status: {observedGeneration: 2, replicas: 2, updatedReplicas: 2, availableReplicas: 2, conditions: [{type: Progressing, status: "True", reason: NewReplicaSetAvailable, lastUpdateTime: "@15@"}]}`), since)},
		{"it was complete in the same second", "roll out 10.345-10.345", Deployment(read[appsv1.Deployment](t, owner+`
spec: {replicas: 1}
status: {observedGeneration: 2, replicas: 1, updatedReplicas: 1, availableReplicas: 1, conditions: [{type: Progressing, status: "True", reason: NewReplicaSetAvailable, lastUpdateTime: "@10@"}]}`), since)},
		{"the status is of what was wanted before", "roll out 10.345-", Deployment(read[appsv1.Deployment](t, owner+`
spec: {replicas: 2}
status: {observedGeneration: 1, replicas: 2, updatedReplicas: 2, availableReplicas: 2, conditions: [{type: Progressing, status: "True", reason: NewReplicaSetAvailable, lastUpdateTime: "@5@"}]}`), since)},
		{"the change needed no new Pods", "roll out 10.345-40", Deployment(read[appsv1.Deployment](t, owner+`
spec: {replicas: 2}
status: {observedGeneration: 2, replicas: 2, updatedReplicas: 2, availableReplicas: 2, conditions: [{type: Progressing, status: "True", reason: NewReplicaSetAvailable, lastUpdateTime: "@5@"}]}`), since)},
		{"its deadline is over", "roll out 10.345-30 ProgressDeadlineExceeded", Deployment(read[appsv1.Deployment](t, owner+`
spec: {replicas: 2}
status: {observedGeneration: 2, replicas: 2, updatedReplicas: 1, availableReplicas: 1, conditions: [{type: Progressing, status: "False", reason: ProgressDeadlineExceeded, lastUpdateTime: "@30@"}]}`), since)},
		{"without a cause it lasts since the creation", "roll out 0-15", Deployment(read[appsv1.Deployment](t, owner+`
status: {observedGeneration: 2, replicas: 1, updatedReplicas: 1, availableReplicas: 1, conditions: [{type: Progressing, status: "True", reason: NewReplicaSetAvailable, lastUpdateTime: "@15@"}]}`), time.Time{})},

		{"a StatefulSet is rolled out", "roll out 10.345-40", StatefulSet(read[appsv1.StatefulSet](t, owner+`
spec: {replicas: 2}
status: {observedGeneration: 2, replicas: 2, readyReplicas: 2, updatedReplicas: 2, currentRevision: b, updateRevision: b}`), since)},
		{"a StatefulSet has old Pods", "roll out 10.345-", StatefulSet(read[appsv1.StatefulSet](t, owner+`
spec: {replicas: 2}
status: {observedGeneration: 2, replicas: 2, readyReplicas: 2, updatedReplicas: 1, currentRevision: a, updateRevision: b}`), since)},
		{"a StatefulSet has old Pods, as it should", "roll out 10.345-40", StatefulSet(read[appsv1.StatefulSet](t, owner+`
spec: {replicas: 2, updateStrategy: {type: RollingUpdate, rollingUpdate: {partition: 1}}}
status: {observedGeneration: 2, replicas: 2, readyReplicas: 2, updatedReplicas: 1, currentRevision: a, updateRevision: b}`), since)},
		{"nobody rolls a StatefulSet out", "", StatefulSet(read[appsv1.StatefulSet](t, owner+`
spec: {updateStrategy: {type: OnDelete}}`), since)},
		{"a DaemonSet is rolled out", "roll out 10.345-40", DaemonSet(read[appsv1.DaemonSet](t, owner+`
status: {observedGeneration: 2, desiredNumberScheduled: 3, updatedNumberScheduled: 3, numberAvailable: 3}`), since)},
		{"a DaemonSet misses a node", "roll out 10.345-", DaemonSet(read[appsv1.DaemonSet](t, owner+`
status: {observedGeneration: 2, desiredNumberScheduled: 3, updatedNumberScheduled: 3, numberAvailable: 2}`), since)},

		{"a Job is complete", "run Job 10.345-20", Job(read[batchv1.Job](t, owner+`
status: {conditions: [{type: SuccessCriteriaMet, status: "True", lastTransitionTime: "@19@"}, {type: Complete, status: "True", lastTransitionTime: "@20@"}]}`), since)},
		{"a Job has failed", "run Job 10.345-20 BackoffLimitExceeded", Job(read[batchv1.Job](t, owner+`
status: {conditions: [{type: Failed, status: "True", reason: BackoffLimitExceeded, lastTransitionTime: "@20@"}]}`), since)},
		{"a claim is bound", "bind volume claim 0-40", PersistentVolumeClaim(read[corev1.PersistentVolumeClaim](t, owner+`
status: {phase: Bound}`))},
		{"a claim waits", "bind volume claim 0-", PersistentVolumeClaim(read[corev1.PersistentVolumeClaim](t, owner+`
status: {phase: Pending}`))},
	} {
		t.Run(test.name, func(t *testing.T) {
			sound(t, test.got)
			if test.want == "" && len(test.got) == 0 {
				return
			}
			want(t, test.got, test.want)
		})
	}
}

func FuzzRollOut(f *testing.F) {
	body, err := json.Marshal(read[appsv1.Deployment](f, owner+`
status: {observedGeneration: 2, replicas: 1, updatedReplicas: 1, availableReplicas: 1, conditions: [{type: Progressing, status: "True", reason: NewReplicaSetAvailable, lastUpdateTime: "@15@"}]}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body, int64(0))
	f.Fuzz(func(t *testing.T, body []byte, since int64) {
		at := time.Unix(since, 0)
		for _, of := range []func() []Stage{
			func() []Stage { return stagesOf(body, at, Deployment) },
			func() []Stage { return stagesOf(body, at, StatefulSet) },
			func() []Stage { return stagesOf(body, at, DaemonSet) },
			func() []Stage { return stagesOf(body, at, Job) },
		} {
			sound(t, of())
		}
	})
}

func stagesOf[T any](body []byte, since time.Time, of func(*T, time.Time) []Stage) []Stage {
	obj := new(T)
	if json.Unmarshal(body, obj) != nil {
		return nil
	}
	return of(obj, since)
}
