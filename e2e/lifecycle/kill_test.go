package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// Two tell of the same cluster to stores of their own; one of them is killed again and again, at any moment.
func TestKillingItAtAnyMomentLosesNothingAndDoublesNothing(t *testing.T) {
	const pods, kills = 120, 8
	undisturbed, killed := newSink(t, ""), newSink(t, "")
	leaseFor(t, "undisturbed")
	leaseFor(t, "killed")
	start(t, "undisturbed", undisturbed, "--leader-elect-resource-name=undisturbed")
	// The mark is stored with each renewal, so these come often.
	victim := start(t, "killed", killed, "--leader-elect-resource-name=killed", "--leader-elect-retry-period=200ms", "--leader-elect-renew-deadline=5s")

	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop()
	errs := make(chan error, pods)
	for i := range pods {
		writers.Go(func() { life(ctx, i, errs) })
	}
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewSource(seed))
	for range kills {
		time.Sleep(time.Duration(random.Intn(1500)) * time.Millisecond) // this is what is tried
		if err := victim.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.Intn(500)) * time.Millisecond)
		if err := victim.Restart(story.Within(t, limit)); err != nil {
			t.Fatal(err)
		}
	}
	for range pods {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	// The last Pod is written: when both have told of one that comes after it, they have told everything.
	last := kubelet{t}.pod("last", "n3", fmt.Sprintf("%032x", 4711))
	kubelet{t}.status(last, running(last))
	for _, s := range []*sink{undisturbed, killed} {
		eventually(t, func() error {
			if got := lines(s.of(fmt.Sprintf("%032x", 4711), "last")); !strings.Contains(got, "become ready") {
				return fmt.Errorf("told of the last Pod: %q", got)
			}
			return nil
		})
	}
	eventually(t, func() error { // Events come by a watch of their own
		return same(undisturbed.all(), killed.all())
	})
	want := undisturbed.all()
	if len(want) < pods*5 {
		t.Fatalf("the undisturbed one told %d spans, want %d and more", len(want), pods*5)
	}
	t.Logf("%d spans; after %d kills %d came again, %d of these with other contents", len(want), kills, killed.twice, len(killed.differ))
	if killed.twice > kills*len(want)/3 {
		t.Errorf("after %d kills %d of %d spans came again: the mark is of no use", kills, killed.twice, len(want))
	}
	for _, d := range killed.differ {
		t.Errorf("told again it is another span:\n%s", d)
	}
}

func TestWhileNobodyTakesThemSpansWait(t *testing.T) {
	k := kubelet{t}
	to := newSink(t, "")
	start(t, "patient", to, "--leader-elect-resource-name=tracehook-lifecycle")
	to.server.Stop()
	traceID := fmt.Sprintf("%032x", 0xfade)
	p := k.pod("waits", "n4", traceID)
	k.status(p, running(p))
	k.remove(p) // what is seen of it now cannot be seen again
	eventually(t, func() error {
		_, err := shared.clients.CoreV1().Pods("default").Get(t.Context(), "waits", metav1.GetOptions{})
		switch {
		case err == nil:
			return errors.New("the Pod is still there")
		case apierrors.IsNotFound(err):
			return nil
		}
		return err
	})
	later := newSink(t, to.address)
	eventually(t, func() error {
		if got := lines(later.of(traceID, "waits")); !strings.Contains(got, "become ready") || !strings.Contains(got, "delete Pod") {
			return fmt.Errorf("told %q", got)
		}
		return nil
	})
}

// A cluster that was restored is older than its Lease says; and anybody may have written something else there.
func TestAMarkThatCannotBeIsNotBelieved(t *testing.T) {
	k := kubelet{t}
	for i, mark := range []string{"pods=999999999999,events=999999999999", "tomorrow"} {
		lease := fmt.Sprintf("doubtful-%d", i)
		leaseFor(t, lease)
		if _, err := shared.clients.CoordinationV1().Leases("tracehook-system").Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Name: lease, Annotations: map[string]string{"tracehook.dev/lifecycle-told": mark},
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		traceID := fmt.Sprintf("%032x", 0xdead+i)
		p := k.pod(lease, "n4", traceID)
		k.status(p, running(p))
		to := newSink(t, "")
		start(t, lease, to, "--leader-elect-resource-name="+lease)
		eventually(t, func() error {
			if got := lines(to.of(traceID, lease)); !strings.Contains(got, "become ready") {
				return fmt.Errorf("with the mark %q it told %q", mark, got)
			}
			return nil
		})
	}
}

// same compares what two stores have.
func same(want, got map[string]span) (err error) {
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[id]; !ok {
			err = errors.Join(err, fmt.Errorf("lost: %s %s of %s", id, want[id].Name, attribute(want[id], "k8s.pod.name")))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[id]; !ok {
			err = errors.Join(err, fmt.Errorf("told by the killed one alone: %s %s of %s", id, got[id].Name, attribute(got[id], "k8s.pod.name")))
		}
	}
	return err
}

// life is that of one Pod, written over some seconds; then it is told how that went, and the Pod stays until ctx ends: what is
// deleted while nobody watches is not told.
func life(ctx context.Context, i int, written chan<- error) {
	pause := func() {
		select {
		case <-time.After(time.Duration(200+i*37%1700) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	pause()
	p, err := shared.clients.CoreV1().Pods("default").Create(ctx, newPod(fmt.Sprintf("life-%d", i), "n3", fmt.Sprintf("%032x", 0xabc00+i/10)), metav1.CreateOptions{})
	if err != nil {
		written <- err
		return
	}
	defer func() { kubelet{}.remove(p) }()
	steps := []func() error{
		func() error { return writeStatus(ctx, p, prepared(p, waiting("app", "ContainerCreating", 0, nil))) },
		func() error {
			return writeEvent(ctx, p, "Pulled", `Successfully pulled image "app:1" in 1.1s (1.1s including waiting)`, 5)
		},
		func() error { return writeStatus(ctx, p, running(p)) },
	}
	if i%4 == 0 {
		steps[2] = func() error {
			return writeStatus(ctx, p, prepared(p, waiting("app", "CrashLoopBackOff", 1, &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", StartedAt: at(p, 3), FinishedAt: at(p, 4)})))
		}
		steps = append(steps, func() error { return writeEvent(ctx, p, "BackOff", "Back-off restarting failed container app", 4) })
	}
	for _, step := range steps {
		pause()
		if err = step(); err != nil {
			break
		}
	}
	written <- err
	<-ctx.Done()
}

// leaseFor lets the ServiceAccount have a second Lease.
func leaseFor(t *testing.T, name string) {
	t.Helper()
	mustKubectl(t, "-n", "tracehook-system", "create", "role", "lease-"+name, "--verb=get,update", "--resource=leases.coordination.k8s.io", "--resource-name="+name)
	mustKubectl(t, "-n", "tracehook-system", "create", "rolebinding", "lease-"+name, "--role=lease-"+name, "--serviceaccount=tracehook-system:tracehook-lifecycle")
}
