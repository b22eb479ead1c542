package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// many says that this is `make bench-lifecycle`, and no test.
func many() bool { return os.Getenv("TRACEHOOK_BENCH_PODS") != "" }

// What is promised of 50,000 Pods with 100 changes a second, with fewer of both: memory, delay, a list for each kind, no call for
// a Pod, and how soon it is back. As a test it asserts what holds on a busy machine; `make bench-lifecycle` prints the rest.
func TestManyPodsAreToldWithOneListAndInTime(t *testing.T) {
	pods, perSecond, lasts := 500, 50, 5*time.Second
	if many() {
		var err error
		if pods, err = strconv.Atoi(os.Getenv("TRACEHOOK_BENCH_PODS")); err != nil {
			t.Fatal(err)
		}
		perSecond, lasts = 100, time.Minute
	}
	const namespace = "many"
	if _, err := shared.clients.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: namespace, Labels: map[string]string{"tracehook.dev/exclude": "true"}, // the webhook is not what is measured
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace", namespace, "--wait=false") })
	eventually(t, func() error {
		_, err := shared.clients.CoreV1().ServiceAccounts(namespace).Get(t.Context(), "default", metav1.GetOptions{})
		if err != nil && many() { // no controllers: nobody makes it
			_, err = shared.clients.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
		}
		return err
	})
	began := time.Now()
	made := make([]*corev1.Pod, pods)
	each(t, pods, func(ctx context.Context, i int) (err error) {
		p := newPod(fmt.Sprintf("many-%d", i), "n4", fmt.Sprintf("%032x", 0xdef00000+i))
		p.Namespace = namespace
		if made[i], err = shared.clients.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return err
		}
		ready := made[i].DeepCopy()
		ready.Status = running(ready)
		_, err = shared.clients.CoreV1().Pods(namespace).UpdateStatus(ctx, ready, metav1.UpdateOptions{FieldManager: "kubelet"})
		return err
	})
	t.Logf("%d Pods made in %s", pods, time.Since(began).Round(time.Second))

	to := newSink(t, "")
	leaseFor(t, "many")
	began = time.Now()
	since := began
	l := start(t, "many", to, "--leader-elect-resource-name=many", "--max-age=6h")
	first, peak := time.Since(began), memory(t, l.PID(), "VmHWM")
	eventually(t, func() error {
		if n := len(to.all()); n < 5*pods {
			return fmt.Errorf("%d spans, want %d", n, 5*pods)
		}
		return nil
	})
	all := time.Since(began)

	events := watchRestarts(t, namespace)
	// Changes: a container that has crashed runs again.
	times := make([]time.Time, int(lasts.Seconds())*perSecond)
	restarts := make([]int32, pods)
	random := rand.New(rand.NewSource(1))
	ticker := time.NewTicker(time.Second / time.Duration(perSecond))
	defer ticker.Stop()
	var writers sync.WaitGroup
	names := make([]string, len(times))
	fails := make(chan error, len(times))
	for n := range times {
		<-ticker.C
		i := random.Intn(pods)
		restarts[i]++
		run := restarts[i]
		names[n] = fmt.Sprintf("%s %d", made[i].Name, run)
		writers.Go(func() {
			if err := restart(t.Context(), made[i], run); err != nil {
				fails <- err
			}
			times[n] = time.Now()
		})
	}
	writers.Wait()
	if len(fails) > 0 {
		t.Fatal(<-fails)
	}
	var delays, fromWrite []time.Duration // since another watch had the event, and since the write had returned
	eventually(t, func() error {
		arrived := map[string]time.Time{}
		for _, s := range to.all() {
			if s.Name == "restart container" {
				arrived[attribute(s, "k8s.pod.name")+" "+attribute(s, "k8s.container.restart_count")] = s.arrived
			}
		}
		delays, fromWrite = delays[:0], fromWrite[:0]
		for n, name := range names {
			at, ok := arrived[name]
			if !ok {
				return fmt.Errorf("the restart of %s is not told", name)
			}
			event, ok := events.Load(name)
			if !ok {
				return fmt.Errorf("there is no event of the restart of %s", name)
			}
			delays, fromWrite = append(delays, at.Sub(event.(time.Time))), append(fromWrite, at.Sub(times[n]))
		}
		return nil
	})
	slices.Sort(delays)
	slices.Sort(fromWrite)
	rss := memory(t, l.PID(), "VmHWM")

	// Once more, after a crash: only what changed since the last mark is told again.
	before := to.again()
	if err := l.Kill(); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if err := l.Restart(story.Within(t, limit)); err != nil {
		t.Fatal(err)
	}
	back := time.Since(began)
	t.Logf(`
| Pods | %d |
| first start until all was read and the first of it exported | %.1f s, peak RSS %d MiB |
| … until %d spans had been exported | %.1f s |
| %d changes a second for %s: from the event to the exported span, p50, p99, most | %.2f s, %.2f s, %.2f s |
| … from the answer to the write, which is before the event | %.2f s, %.2f s, %.2f s |
| peak RSS | %d MiB |
| back after kill -9 | %.1f s, %d spans told again, peak RSS %d MiB |`,
		pods, first.Seconds(), peak, 5*pods, all.Seconds(), perSecond, lasts,
		delays[len(delays)/2].Seconds(), delays[len(delays)*99/100].Seconds(), delays[len(delays)-1].Seconds(),
		fromWrite[len(fromWrite)/2].Seconds(), fromWrite[len(fromWrite)*99/100].Seconds(), fromWrite[len(fromWrite)-1].Seconds(), rss, back.Seconds(), to.again()-before, memory(t, l.PID(), "VmHWM"))

	wantFewRequests(t, since, 2)
	if again := to.again() - before; again > pods*3 {
		t.Errorf("after a crash %d spans of %d Pods were told again", again, pods)
	}
	if many() {
		for what, over := range map[string]bool{
			"peak RSS of more than 256 MiB": max(rss, peak) > 256, "p99 of more than 2 s": delays[len(delays)*99/100] > 2*time.Second, "back after more than 30 s": back > 30*time.Second,
		} {
			if over {
				t.Error(what)
			}
		}
	}
}

// watchRestarts keeps when each restart was seen by a watch: that is the event, however long the API server took for it.
func watchRestarts(t *testing.T, namespace string) *sync.Map {
	t.Helper()
	list, err := shared.clients.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	watch, err := shared.clients.CoreV1().Pods(namespace).Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Stop)
	seen := new(sync.Map)
	go func() {
		for e := range watch.ResultChan() { // ends with Stop
			if p, ok := e.Object.(*corev1.Pod); ok && len(p.Status.ContainerStatuses) > 0 {
				seen.LoadOrStore(fmt.Sprintf("%s %d", p.Name, p.Status.ContainerStatuses[0].RestartCount), time.Now())
			}
		}
	}()
	return seen
}

// restart writes that a container has crashed and runs again.
func restart(ctx context.Context, p *corev1.Pod, run int32) error {
	now := metav1.Now()
	status := running(p)
	status.ContainerStatuses[0].RestartCount = run
	status.ContainerStatuses[0].State.Running.StartedAt = now
	status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", StartedAt: now, FinishedAt: now}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	_, err = shared.clients.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: "kubelet"}, "status")
	return err
}

// each calls for all numbers below n, some at a time.
func each(t *testing.T, n int, do func(context.Context, int) error) {
	t.Helper()
	numbers, failed := make(chan int), make(chan error, 1)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for i := range numbers {
				if err := do(t.Context(), i); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	group.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
}

// memory is a line of /proc/PID/status in MiB; 0 where there is no such file.
func memory(t *testing.T, pid int, line string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	m := regexp.MustCompile(line + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in\n%s", line, text)
	}
	kb, _ := strconv.Atoi(string(m[1]))
	return kb / 1024
}

// wantFewRequests looks at what its ServiceAccount has asked since then: each kind is read as a whole once for each
// start, by a list or as a stream, and no object by itself but its Leases.
func wantFewRequests(t *testing.T, since time.Time, starts int) {
	t.Helper()
	events, err := shared.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	seen, wholes := map[string]bool{}, map[string]int{}
	for _, e := range events {
		if e.User.Username != "system:serviceaccount:tracehook-system:tracehook-lifecycle" || seen[e.AuditID] || e.RequestReceivedTimestamp.Before(since) {
			continue
		}
		seen[e.AuditID] = true
		switch {
		case e.ObjectRef.Resource == "leases":
		case e.Verb == "list" || e.Verb == "watch" && strings.Contains(e.RequestURI, "sendInitialEvents=true"):
			wholes[e.ObjectRef.Resource]++
		case e.Verb != "watch":
			t.Errorf("it asks for %s %s", e.Verb, e.RequestURI)
		}
	}
	for _, resource := range []string{"pods", "deployments", "statefulsets", "daemonsets", "jobs", "events"} {
		if n := wholes[resource]; n == 0 || n > starts {
			t.Errorf("%s were read as a whole %d times in %d starts: %v", resource, n, starts, wholes)
		}
	}
}
