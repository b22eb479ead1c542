package follow

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/cmd/tracehook/explain"
)

func TestOnlyAnswersThatNameARootAreRead(t *testing.T) {
	for request, want := range map[string]bool{
		"POST /apis/apps/v1/namespaces/shop/deployments 201":                true,
		"POST /apis/apps/v1/namespaces/shop/deployments?dryRun=All 201":     false,
		"POST /apis/apps/v1/namespaces/shop/deployments 409":                false,
		"POST /apis/apps/v1/namespaces/shop/deployments/web 201":            false,
		"PATCH /apis/apps/v1/namespaces/shop/deployments/web 200":           true,
		"PUT /apis/apps/v1/namespaces/shop/statefulsets/db 200":             true,
		"PATCH /apis/apps/v1/namespaces/shop/deployments/web/scale 200":     true,
		"PATCH /apis/apps/v1/namespaces/shop/deployments/web/status 200":    false,
		"GET /apis/apps/v1/namespaces/shop/deployments/web 200":             false,
		"DELETE /apis/apps/v1/namespaces/shop/deployments/web 200":          false,
		"POST /api/v1/namespaces/shop/pods 201":                             true,
		"POST /api/v1/namespaces/shop/pods/web/eviction 201":                false,
		"POST /api/v1/namespaces/shop/configmaps 201":                       false,
		"POST /apis/batch/v1/namespaces/shop/jobs 201":                      true,
		"POST /apis/batch/v1/namespaces/shop/deployments 201":               false,
		"POST /apis/apps/v1/deployments 201":                                false,
		"PATCH /apis/apps/v1/namespaces/shop/deployments/web/scale/x/y 200": false,
		"PATCH / 200": false,
	} {
		words := strings.Fields(request)
		path, query, _ := strings.Cut(words[1], "?")
		status := map[string]int{"200": 200, "201": 201, "409": 409}[words[2]]
		if got := Wants(words[0], path, query, status); got != want {
			t.Errorf("%s: %t, want %t", request, got, want)
		}
	}
}

func TestTheNameComesFromTheAnswerWhereTheServerMadeIt(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-x2k", Namespace: "shop"}}
	var asProtobuf, asJSON bytes.Buffer
	serializer := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	if err := scheme.Codecs.EncoderForVersion(serializer, schema.GroupVersion{Version: "v1"}).Encode(pod, &asProtobuf); err != nil {
		t.Fatal(err)
	}
	if err := scheme.Codecs.LegacyCodec(schema.GroupVersion{Version: "v1"}).Encode(runtime.Object(pod), &asJSON); err != nil {
		t.Fatal(err)
	}
	config := &rest.Config{}
	for _, body := range [][]byte{asProtobuf.Bytes(), asJSON.Bytes(), nil, []byte("{"), asJSON.Bytes()[:20]} {
		var seen Seen
		seen.Answer("/api/v1/namespaces/shop/pods", body, config)
		seen.Answer("/api/v1/namespaces/shop/pods", body, config)
		roots, more := seen.Roots()
		if len(body) > 20 && (len(roots) != 1 || roots[0] != Root{Resource: "pods", Namespace: "shop", Name: "web-x2k", Config: config}) || len(body) <= 20 && len(roots) != 0 || more != 0 {
			t.Errorf("%.30q names %v", body, roots)
		}
	}
	var seen Seen
	for range 2 {
		for i := range mostRoots + 5 {
			seen.Answer("/apis/apps/v1/namespaces/shop/deployments/web-"+time.Duration(i).String(), nil, config)
		}
	}
	if roots, more := seen.Roots(); len(roots) != mostRoots || more != 10 {
		t.Errorf("%d roots and %d more", len(roots), more)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add("/api/v1/namespaces/shop/pods", []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"}}`))
	f.Add("/apis/apps/v1/namespaces/shop/deployments/web", []byte("k8s\x00"))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		if !Wants(http.MethodPost, path, "", 201) && !Wants(http.MethodPatch, path, "", 200) {
			return
		}
		var seen Seen
		seen.Answer(path, body, nil)
		if roots, _ := seen.Roots(); len(roots) > 1 || len(roots) == 1 && roots[0].kind() == "" {
			t.Errorf("%q names %v", path, roots)
		}
	})
}

func TestAPodSaysWhatItDoesAndWhyItDoesNotGoOn(t *testing.T) {
	created := metav1.NewTime(time.Unix(1795000000, 0))
	pod := func(change func(*corev1.PodStatus)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "1", CreationTimestamp: created}, Status: corev1.PodStatus{Phase: corev1.PodPending}}
		change(&p.Status)
		return p
	}
	condition := func(kind corev1.PodConditionType, status corev1.ConditionStatus, reason, message string) corev1.PodCondition {
		return corev1.PodCondition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(created.Add(6 * time.Second))}
	}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"no node": {pod(func(s *corev1.PodStatus) {
			s.Conditions = append(s.Conditions, condition(corev1.PodScheduled, corev1.ConditionFalse, "Unschedulable", "0/3 nodes are available"))
		}), "waiting waiting for a node Unschedulable: 0/3 nodes are available"},
		"ready": {pod(func(s *corev1.PodStatus) {
			s.Phase = corev1.PodRunning
			s.Conditions = append(s.Conditions, condition(corev1.PodReady, corev1.ConditionTrue, "", ""))
		}), "ready ready after 6s "},
		"completed": {pod(func(s *corev1.PodStatus) { s.Phase = corev1.PodSucceeded }), "ready completed "},
		"evicted":   {pod(func(s *corev1.PodStatus) { s.Phase, s.Reason = corev1.PodFailed, "Evicted" }), "failed failed "},
		"no image": {pod(func(s *corev1.PodStatus) {
			s.Conditions = append(s.Conditions, condition(corev1.PodScheduled, corev1.ConditionTrue, "", ""))
			s.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "Back-off pulling image"}}}}
		}), "ImagePullBackOff: Back-off pulling image"},
	} {
		line := podLine(c.pod, nil)
		if got := string(line.State) + " " + line.Text + " " + line.Reason; !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestTheNewestReplicaSetIsTheOneThatIsRolledOut(t *testing.T) {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "d"}}
	other := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "other"}}
	set := func(uid types.UID, revision string, owner metav1.Object) appsv1.ReplicaSet {
		return appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
			UID: uid, Annotations: map[string]string{"deployment.kubernetes.io/revision": revision},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, appsv1.SchemeGroupVersion.WithKind("Deployment"))},
		}}
	}
	sets := []appsv1.ReplicaSet{set("a", "9", d), set("b", "10", d), set("c", "11", other), set("e", "", d)}
	if got := newest(d, sets); got != "b" {
		t.Errorf("it is %q, want b", got)
	}
	if got := newest(d, nil); got != "" {
		t.Errorf("of none it is %q", got)
	}
}

func TestTheViewWritesOverItselfOnATerminalAndOnceElsewhere(t *testing.T) {
	now := time.Unix(1795000005, 0)
	lines := []Line{
		{Object: "Deployment web", State: Waiting, Text: "0 of 1 ready"},
		{Object: "Pod web-1\x1b[2J", Depth: 1, State: Waiting, Text: "pulling image", Since: now.Add(-5 * time.Second), Reason: "ErrImagePull: a\nb"},
	}
	var screen bytes.Buffer
	view := View{Out: &screen, Live: true, Size: func() (int, int) { return 200, 24 }, Now: func() time.Time { return now }}
	view.Show(lines)
	view.Show(lines)
	once := "\r\x1b[J… Deployment web  0 of 1 ready\n  … Pod web-1�[2J  pulling image 5s  ErrImagePull: a b\n"
	if want := once + "\x1b[2A" + once; screen.String() != want {
		t.Errorf("the screen gets\n%q, want\n%q", screen.String(), want)
	}
	screen.Reset()
	view = View{Out: &screen, Now: view.Now}
	view.Show(lines)
	now = now.Add(time.Minute) // the clock alone says nothing new
	view.Show(lines)
	lines[1].State, lines[1].Text, lines[1].Reason = Ready, "ready after 6s", ""
	view.Show(lines)
	if want := "… Deployment web  0 of 1 ready\n  … Pod web-1�[2J  pulling image  ErrImagePull: a b\n  ✓ Pod web-1�[2J  ready after 6s\n"; screen.String() != want {
		t.Errorf("the log is\n%q, want\n%q", screen.String(), want)
	}
	screen.Reset()
	view = View{Out: &screen, Live: true, Size: func() (int, int) { return 20, 5 }, Now: view.Now}
	view.Show(make([]Line, 100))
	if n := strings.Count(screen.String(), "\n"); n != 3 || !strings.Contains(screen.String(), "… and 98 more") {
		t.Errorf("%d lines of 100 on a screen of 5:\n%s", n, screen.String())
	}
}

func TestALogTellsInTheOrderOfTime(t *testing.T) {
	pod := func(name string, state State, text string) Line {
		return Line{Object: "Pod " + name, Depth: 1, State: state, Text: text, Pod: explain.Pod{UID: name}}
	}
	var log bytes.Buffer
	view := View{Out: &log, Now: time.Now}
	other := Line{Object: "Deployment web", State: Waiting, Text: "0 of 1 ready"}
	view.Show([]Line{{Object: "Job task", State: Waiting, Text: "0 of 1 complete"}, pod("task-1", Waiting, "starting"), other, pod("web-1", Waiting, "starting")})
	view.Show([]Line{{Object: "Job task", State: Ready, Text: "1 of 1 complete"}, pod("task-1", Ready, "completed"), other, pod("web-1", Waiting, "starting")})
	last := []Line{{Object: "Job task", State: Ready, Text: "1 of 1 complete"}, pod("task-1", Ready, "completed"), {Object: "Deployment web", State: Gone, Text: "gone"}}
	view.Show(last)
	// What its node did comes later, below the Pod's line again.
	view.Show(WithNodes(last, []explain.OnNode{{Pod: explain.Pod{UID: "task-1"}, Work: []explain.NodeWork{
		{TraceID: "0af7651916cd43dd8448eb211c80319c", Service: "kubelet", Name: "syncPod", Seconds: 1.5, Slowest: []explain.Part{{What: "PullImage in containerd", Seconds: 1.2}}},
		{TraceID: "1af7651916cd43dd8448eb211c80319c", Service: "kubelet", Name: "syncPod", Seconds: 0.02, Failed: true},
	}}}))
	if want := `… Job task  0 of 1 complete
  … Pod task-1  starting
… Deployment web  0 of 1 ready
  … Pod web-1  starting
  ✓ Pod task-1  completed
✓ Job task  1 of 1 complete
– Deployment web  gone
  ✓ Pod task-1  completed
    ✓ kubelet syncPod  1.5 s  slowest: PullImage in containerd 1.2 s  trace 0af76519…
    ✗ kubelet syncPod  20 ms  failed  trace 1af76519…
`; log.String() != want {
		t.Errorf("the log is\n%s\nwant\n%s", &log, want)
	}
}
