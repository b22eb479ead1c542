package lifecycle

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const head = `metadata: {name: web, namespace: shop, uid: u-1, creationTimestamp: "@0@", managedFields: [{manager: kubelet, subresource: status, time: "@20@"}]%s}
`

func pod(t testing.TB, more, rest string) *corev1.Pod {
	return read[corev1.Pod](t, strings.Replace(head, "%s", more, 1)+rest)
}

const running = `spec: {nodeName: n1}
status:
  phase: Running
  startTime: "@1@"
  conditions:
  - {type: PodScheduled, status: "True", lastTransitionTime: "@1@"}
  - {type: PodReadyToStartContainers, status: "True", lastTransitionTime: "@2@"}
  - {type: Initialized, status: "True", lastTransitionTime: "@5@"}
`

func TestAPodTellsWhatBecameOfIt(t *testing.T) {
	for _, test := range []struct {
		name, more, pod string
		events          []*corev1.Event
		want            string
	}{
		{"it has just been made", "", "status: {phase: Pending}", nil, `
			Pod 0-0
			schedule 0-
			start Pod 0-`},
		{"no node has room", "", `status: {phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: Unschedulable, message: "0/3 nodes are available", lastTransitionTime: "@0@"}]}`, nil, `
			Pod 0-0
			schedule 0-0 Unschedulable
			schedule 0-
			start Pod 0-`},
		{"it is kept back by a gate, which is no failure", "", `status: {phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: SchedulingGated, lastTransitionTime: "@0@"}]}`, nil, `
			Pod 0-0
			schedule 0-
			start Pod 0-`},
		{"it became ready, with an init container and a pull", "", running + `
  - {type: Ready, status: "True", lastTransitionTime: "@11@"}
  initContainerStatuses:
  - {name: migrate, restartCount: 0, state: {terminated: {exitCode: 0, reason: Completed, startedAt: "@3@", finishedAt: "@5@"}}}
  containerStatuses:
  - {name: app, restartCount: 0, state: {running: {startedAt: "@10@"}}}
`, []*corev1.Event{
			event("Pulling", `Pulling image "nginx"`, "app", 5),
			event("Pulled", `Successfully pulled image "nginx" in 3.25s (4.5s including waiting). Image size: 71000000 bytes.`, "app", 10)}, `
			Pod 0-0
			schedule 0-1
			start Pod 0-11
			prepare sandbox 1-2
			start init container migrate 2-3
			run init container migrate 3-5
			start container app 5-10
			pull image app 5.5-10
			become ready 10-11`},
		{"its image cannot be pulled", "", running + `
  - {type: Ready, status: "False", lastTransitionTime: "@1@"}
  containerStatuses:
  - {name: app, restartCount: 0, state: {waiting: {reason: ImagePullBackOff, message: 'Back-off pulling image "nope"'}}}
`, []*corev1.Event{
			event("Failed", `Failed to pull image "nope": not found`, "app", 6),
			event("Failed", `Error: ErrImagePull`, "app", 6),
			event("BackOff", `Back-off pulling image "nope"`, "app", 7)}, `
			Pod 0-0
			schedule 0-1
			start Pod 0-
			prepare sandbox 1-2
			start container app 5- ImagePullBackOff
			pull image app 6-6 ErrImagePull
			back off app 20-20 ImagePullBackOff`},
		{"a Secret is missing", "", running + `
  - {type: Ready, status: "False", lastTransitionTime: "@1@"}
  containerStatuses:
  - {name: app, restartCount: 0, state: {waiting: {reason: CreateContainerConfigError, message: 'secret "s" not found'}}}
`, nil, `
			Pod 0-0
			schedule 0-1
			start Pod 0-
			prepare sandbox 1-2
			start container app 5-20 CreateContainerConfigError
			start container app 5- CreateContainerConfigError`},
		{"it crashes again and again, and the object has forgotten two runs", "", running + `
  - {type: Ready, status: "False", lastTransitionTime: "@1@"}
  containerStatuses:
  - {name: app, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff, message: back-off 40s}}, lastState: {terminated: {exitCode: 137, reason: OOMKilled, startedAt: "@12@", finishedAt: "@15@"}}}
`, nil, `
			Pod 0-0
			schedule 0-1
			start Pod 0-
			prepare sandbox 1-2
			run container app #3 12-15 OOMKilled exit 137
			become ready 12-
			back off app #3 15-15 CrashLoopBackOff
			restart container app #4 15- CrashLoopBackOff`},
		{"it runs again after two crashes", "", running + `
  - {type: Ready, status: "True", lastTransitionTime: "@30@"}
  containerStatuses:
  - {name: app, restartCount: 2, state: {running: {startedAt: "@29@"}}, lastState: {terminated: {exitCode: 1, reason: Error, startedAt: "@12@", finishedAt: "@15@"}}}
`, nil, `
			Pod 0-0
			schedule 0-1
			start Pod 0-30
			prepare sandbox 1-2
			run container app #1 12-15 Error exit 1
			become ready 12-30
			restart container app #2 15-29 unseen 1`},
		{"its work is done", "", running + `
  - {type: Ready, status: "False", reason: PodCompleted, lastTransitionTime: "@15@"}
  containerStatuses:
  - {name: app, restartCount: 0, state: {terminated: {exitCode: 0, reason: Completed, startedAt: "@6@", finishedAt: "@15@"}}}
`, nil, `
			Pod 0-0
			schedule 0-1
			start Pod 0-6
			prepare sandbox 1-2
			start container app 5-6
			run container app 6-15`},
		{"the node is short of memory", "", `
spec: {nodeName: n1}
status:
  phase: Failed
  reason: Evicted
  message: "The node was low on resource: memory"
  conditions:
  - {type: PodScheduled, status: "True", lastTransitionTime: "@1@"}
`, nil, `
			Pod 0-0
			schedule 0-1
			start Pod 0-0 Evicted
			evict Pod 20-20 Evicted`},
		{"a greater one takes its place, and it stops when told to", `, deletionTimestamp: "@60@", deletionGracePeriodSeconds: 30`, running + `
  - {type: DisruptionTarget, status: "True", reason: PreemptionByScheduler, message: "preempted", lastTransitionTime: "@30@"}
  - {type: Ready, status: "False", lastTransitionTime: "@31@"}
  containerStatuses:
  - {name: app, restartCount: 0, state: {terminated: {exitCode: 143, reason: Error, startedAt: "@6@", finishedAt: "@31@"}}}
`, []*corev1.Event{event("Unhealthy", "Readiness probe failed: HTTP 503", "app", 7), event("Unhealthy", "Readiness probe failed: HTTP 500", "app", 8)}, `
			Pod 0-0
			schedule 0-1
			start Pod 0-6
			prepare sandbox 1-2
			start container app 5-6
			probe app 7-7 Unhealthy
			preempt Pod 30-30 PreemptionByScheduler
			delete Pod 30-`},
		{"its sidecar is ended after it, and was restarted", "", `spec: {nodeName: n1, initContainers: [{name: proxy, restartPolicy: Always}]}
status:
  phase: Succeeded
  startTime: "@1@"
  conditions:
  - {type: PodScheduled, status: "True", lastTransitionTime: "@1@"}
  - {type: PodReadyToStartContainers, status: "False", lastTransitionTime: "@40@"}
  - {type: Initialized, status: "True", reason: PodCompleted, lastTransitionTime: "@3@"}
  initContainerStatuses:
  - {name: proxy, restartCount: 0, state: {terminated: {exitCode: 143, reason: Error, startedAt: "@3@", finishedAt: "@31@"}}}
  containerStatuses:
  - {name: app, restartCount: 0, state: {terminated: {exitCode: 0, reason: Completed, startedAt: "@6@", finishedAt: "@30@"}}}
`, nil, `
			Pod 0-0
			schedule 0-1
			start Pod 0-6
			start init container proxy 1-3
			run init container proxy 3-31
			start container app 3-6
			run container app 6-30`},
		{"its sidecar fails while it runs", "", `spec: {nodeName: n1, initContainers: [{name: proxy, restartPolicy: Always}]}
status:
  phase: Running
  startTime: "@1@"
  conditions:
  - {type: PodScheduled, status: "True", lastTransitionTime: "@1@"}
  - {type: Initialized, status: "True", lastTransitionTime: "@3@"}
  - {type: Ready, status: "True", lastTransitionTime: "@7@"}
  initContainerStatuses:
  - {name: proxy, restartCount: 1, state: {running: {startedAt: "@20@"}}, lastState: {terminated: {exitCode: 137, reason: Error, startedAt: "@3@", finishedAt: "@15@"}}}
  containerStatuses:
  - {name: app, restartCount: 0, state: {running: {startedAt: "@6@"}}}
`, nil, `
			Pod 0-0
			schedule 0-1
			start Pod 0-7
			start init container proxy 1-3
			run init container proxy 3-15 Error exit 137
			start container app 3-6
			become ready 6-7
			restart container proxy #1 15-20`},
		{"it is ready again, two days later", "", running + `
  - {type: Ready, status: "True", lastTransitionTime: "2026-11-30T12:00:00Z"}
  containerStatuses:
  - {name: app, restartCount: 0, state: {running: {startedAt: "@6@"}}}
`, nil, `
			Pod 0-0
			schedule 0-1
			start Pod 0-6
			prepare sandbox 1-2
			start container app 5-6`},
		{"it is deleted before it starts", `, deletionTimestamp: "@9@", deletionGracePeriodSeconds: 0`, `status: {phase: Pending}`, nil, `
			Pod 0-0
			schedule 0-
			start Pod 0-9 Deleted
			delete Pod 9-`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Pod(pod(t, test.more, test.pod), test.events...)
			sound(t, got)
			want(t, got, test.want)
		})
	}
}

func TestAPulledImageHasItsSizeAndItsTime(t *testing.T) {
	for message, want := range map[string]struct {
		bytes int64
		took  time.Duration
	}{
		`Successfully pulled image "nginx" in 3.25s (4.5s including waiting). Image size: 71000000 bytes.`: {71000000, 4500 * time.Millisecond},
		`Successfully pulled image "nginx" in 312ms`:                                                       {0, 312 * time.Millisecond},
		`Successfully pulled image "nginx" in 1m2.5s (1m2.5s including waiting)`:                           {0, 62500 * time.Millisecond},
		`Successfully pulled image "nginx" in 999999h`:                                                     {0, 0},
	} {
		s, ok := PodEvent(event("Pulled", message, "app", 100))
		if !ok || s.Image != "nginx" || s.ImageBytes != want.bytes || s.End.Sub(s.Start) != want.took || s.Resolution != time.Second {
			t.Errorf("%s: %+v, want %+v", message, s, want)
		}
	}
	if s, ok := PodEvent(event("Pulled", `Container image "nginx" already present on machine`, "app", 100)); ok {
		t.Errorf("an image that was there is told as pulled: %+v", s)
	}
}

func TestAnEventOfAnotherObjectIsLeftOut(t *testing.T) {
	other := event("Unhealthy", "Readiness probe failed: x", "app", 3)
	other.InvolvedObject.UID = "u-2"
	want(t, Pod(pod(t, "", "status: {phase: Pending}"), other, nil), "Pod 0-0\nschedule 0-\nstart Pod 0-")
	if stages := Pod(nil, other); len(stages) != 0 {
		t.Errorf("no Pod has stages: %v", stages)
	}
}

func TestTheKeyOfAStageIsTheSameFromStatusAndEvent(t *testing.T) {
	status := podStages(pod(t, "", running+`
  containerStatuses:
  - {name: app, restartCount: 2, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {exitCode: 1, startedAt: "@6@", finishedAt: "@7@"}}}
  - {name: side, restartCount: 0, state: {waiting: {reason: ErrImagePull}}}
`))
	keys := map[string]bool{}
	for _, s := range status {
		keys[s.Key()] = true
	}
	for _, e := range []*corev1.Event{
		event("BackOff", "Back-off restarting failed container app in pod web", "app", 9),
		event("Failed", `Failed to pull image "x": no`, "side", 9),
	} {
		if s, ok := PodEvent(e); !ok || !keys[s.Key()] {
			t.Errorf("%q: key %q is not among those of the status", e.Message, s.Key())
		}
	}
}

func TestTheSchedulersEventHasFractionsOfASecond(t *testing.T) {
	e := event("FailedScheduling", "0/3 nodes are available", "", 0)
	e.EventTime = metav1.NewMicroTime(noon.Add(123456 * time.Microsecond))
	if s, ok := PodEvent(e); !ok || s.Resolution != 0 || !s.End.Equal(e.EventTime.Time) || s.Failure.Message != e.Message {
		t.Errorf("%+v", s)
	}
}

// Whatever stands in an object, stages are sound, and no text of it is too long.
func FuzzPod(f *testing.F) {
	for _, text := range []string{running, "status: {phase: Failed, reason: Evicted}"} {
		body, err := json.Marshal(pod(f, "", text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body, "Pulled", `Successfully pulled image "nginx" in 3.25s (4.5s including waiting). Image size: 71000000 bytes.`, "spec.containers{app}")
		f.Add(body, "Unhealthy", "Liveness probe failed: x", "spec.initContainers{")
		f.Add(body, "Failed", "Failed to pull image \"\xff\"", "spec.containers}{")
	}
	f.Fuzz(func(t *testing.T, body []byte, reason, message, path string) {
		pod := new(corev1.Pod)
		if json.Unmarshal(body, pod) != nil {
			return
		}
		names := map[string]bool{}
		for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
			for _, s := range list {
				if names[s.Name] || len(s.Name) > mostNameBytes || s.RestartCount < 0 || s.RestartCount == 1<<31-1 {
					return // the API server takes none of them
				}
				names[s.Name] = true
			}
		}
		e := event(reason, message, "", 5)
		e.InvolvedObject.UID, e.InvolvedObject.FieldPath = pod.UID, path
		sound(t, Pod(pod, e))
	})
}
