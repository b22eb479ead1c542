package lifecycle

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

var printedTraceID = regexp.MustCompile(`(?m)^trace id: ([0-9a-f]{32})$`)

// From the command to ready Pods, without any tracing by the API server.
func TestADeploymentIsToldFromTheCommandToReadyPods(t *testing.T) {
	k := kubelet{t}
	k.node("n1")
	to := newSink(t, "")
	told := start(t, "story", to, "--leader-elect-resource-name=tracehook-lifecycle")

	kubectl, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(story.Within(t, limit), shared.tracehook, "trace", "--", kubectl, "create", "deployment", "web", "--image=app:1", "--replicas=2")
	cmd.Env = append(os.Environ(), append(shared.Env(), "KUBECONFIG="+shared.Kubeconfig)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "deployment/web", "--wait=false") })
	match := printedTraceID.FindStringSubmatch(out.String())
	if match == nil {
		t.Fatalf("no trace id:\n%s", &out)
	}
	traceID := match[1]

	var pods []corev1.Pod
	eventually(t, func() error {
		list, err := shared.clients.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		pods = list.Items
		for _, p := range pods {
			if p.Spec.NodeName == "" {
				return fmt.Errorf("Pod %s has no node: %+v", p.Name, p.Status.Conditions)
			}
		}
		if len(pods) != 2 {
			return fmt.Errorf("%d Pods, want 2", len(pods))
		}
		return nil
	})
	for i := range pods {
		p := &pods[i]
		t.Cleanup(func() { k.remove(p) })
		k.status(p, prepared(p, waiting("app", "ContainerCreating", 0, nil)))
		k.event(p, "Pulling", `Pulling image "app:1"`, 2)
		k.event(p, "Pulled", `Successfully pulled image "app:1" in 3.1s (3.5s including waiting). Image size: 7100000 bytes.`, 6)
		k.status(p, running(p))
	}
	eventually(t, func() error {
		got := map[string]int{}
		for line := range strings.Lines(lines(to.of(traceID, ""))) {
			got[strings.TrimSpace(line)]++
		}
		for name, n := range map[string]int{"roll out": 1, "Pod": 2, "schedule": 2, "start Pod": 2, "prepare sandbox": 2, "pull image app": 2, "start container app": 2, "become ready": 2} {
			if got[name] != n {
				return fmt.Errorf("%d spans %q, want %d; got\n%s", got[name], name, n, lines(to.of(traceID, "")))
			}
		}
		return nil
	})
	wantMetrics(t, told.metrics, traceID)
	stamp := mustKubectl(t, "get", "deployment/web", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/traceparent}`)
	cause := strings.Split(stamp, "-")[2]
	for _, p := range pods {
		spans := to.of(traceID, p.Name)
		anchor := ""
		for _, s := range spans {
			if s.Name == "Pod" {
				anchor = fmt.Sprintf("%x", s.SpanId)
			}
		}
		for _, s := range spans {
			want := anchor
			if s.Name == "Pod" {
				want = cause
			}
			if s.parent != want {
				t.Errorf("the parent of %s is %s, want %s", s.Name, s.parent, want)
			}
			if attribute(s, "tracehook.time.resolution") != "1" || attribute(s, "k8s.namespace.name") != "default" || attribute(s, "k8s.pod.uid") != string(p.UID) {
				t.Errorf("%s does not say what it is of: %v", s.Name, s.Attributes)
			}
			if s.Name == "pull image" && (s.EndTimeUnixNano-s.StartTimeUnixNano != 3_500_000_000 || attribute(s, "tracehook.image.size") != "7100000" || attribute(s, "container.image.name") != "app:1") {
				t.Errorf("the pull is not as the Event says: %v", s)
			}
		}
	}
}

func TestWhatCannotStartSaysWhy(t *testing.T) {
	k := kubelet{t}
	to := newSink(t, "")
	start(t, "why", to, "--leader-elect-resource-name=tracehook-lifecycle")
	for i, test := range []struct {
		name, node, want string
		happens          func(*corev1.Pod)
	}{
		{"no-node", "", "Pod\nschedule Unschedulable\n", func(*corev1.Pod) {}},
		{"no-volume-yet", "", "Pod\nbind volume claim\nschedule Unschedulable\n", func(p *corev1.Pod) {
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "default"}, Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: new(string),
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
			}}
			claim, err := shared.clients.CoreV1().PersistentVolumeClaims("default").Create(t.Context(), claim, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { mustKubectl(t, "delete", "pvc/data", "pv/disk", "--wait=false", "--ignore-not-found") })
			eventually(t, func() error { // it is not told if it held nothing up: the API has whole seconds
				if age := time.Since(claim.CreationTimestamp.Time); age < 2*time.Second {
					return fmt.Errorf("the claim is %s old", age)
				}
				return nil
			})
			if _, err := shared.clients.CoreV1().PersistentVolumes().Create(t.Context(), &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: corev1.PersistentVolumeSpec{
				AccessModes: claim.Spec.AccessModes, Capacity: claim.Spec.Resources.Requests, PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}},
			}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"no-image", "n2", "Pod\nback off app ImagePullBackOff\nprepare sandbox\npull image app ErrImagePull\n", func(p *corev1.Pod) {
			k.status(p, prepared(p, waiting("app", "ErrImagePull", 0, nil)))
			k.event(p, "Failed", `Failed to pull image "app:1": not found`, 3)
			k.status(p, prepared(p, waiting("app", "ImagePullBackOff", 0, nil)))
			k.event(p, "BackOff", `Back-off pulling image "app:1"`, 4)
		}},
		{"no-memory", "n2", "Pod\nback off app CrashLoopBackOff\nprepare sandbox\nprobe app Unhealthy\nrun container app OOMKilled 137\n", func(p *corev1.Pod) {
			k.event(p, "Unhealthy", "Liveness probe failed: HTTP 500", 4)
			k.status(p, prepared(p, waiting("app", "CrashLoopBackOff", 1, &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled", StartedAt: at(p, 3), FinishedAt: at(p, 5)})))
		}},
		{"evicted", "n2", "Pod\nevict Pod Evicted\nstart Pod Evicted\n", func(p *corev1.Pod) {
			k.status(p, corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "The node was low on resource: memory."})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			traceID := fmt.Sprintf("%032x", 1000+i)
			p := newPod(test.name, test.node, traceID)
			if test.name == "no-volume-yet" {
				p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
			}
			p, err := shared.clients.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			test.happens(p)
			eventually(t, func() error {
				if got := lines(to.of(traceID, p.Name)); got != test.want {
					return fmt.Errorf("told\n%swant\n%s", got, test.want)
				}
				return nil
			})
			for _, s := range to.of(traceID, p.Name) {
				if failed := attribute(s, "error.type") != ""; failed != (s.Status.GetCode() == 2) || failed && !strings.HasPrefix(s.Status.GetMessage(), attribute(s, "error.type")) {
					t.Errorf("%s: status %v, reason %q", s.Name, s.Status, attribute(s, "error.type"))
				}
			}
			k.remove(p)
			eventually(t, func() error {
				if got := lines(to.of(traceID, p.Name)); !strings.Contains(got, "delete Pod\n") {
					return fmt.Errorf("no deletion in\n%s", got)
				}
				return nil
			})
		})
	}
}

// What the manual lists is what is exported, with the trace of a Pod as an exemplar.
func wantMetrics(t *testing.T, url, traceID string) {
	t.Helper()
	manual, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[string]string{}, map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(tracehook_lifecycle_[a-z_0-9]+)` \\| (\\w+) \\|").FindAllSubmatch(manual, -1) {
		want[string(row[1])] = string(row[2])
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (tracehook_lifecycle_\w+) (\w+)$`).FindAllSubmatch(page, -1) {
		name := string(m[1])
		if string(m[2]) == "counter" {
			name += "_total" // which OpenMetrics leaves out here
		}
		got[name] = string(m[2])
	}
	if !maps.Equal(got, want) {
		t.Errorf("exported %v\nin deploy/README.md %v", got, want)
	}
	if !regexp.MustCompile(`(?m)^tracehook_lifecycle_pod_stage_duration_seconds_bucket\{.*# \{.*trace_id="` + traceID).Match(page) {
		t.Error("no bucket of the stages has this trace as its exemplar")
	}
}
