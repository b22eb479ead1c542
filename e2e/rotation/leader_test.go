package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/load"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// Authorities are processes beside the replicas here, so that the one that is killed
// takes no call with it: a call under way in a process that is killed is lost, whatever
// certificates do.
func TestWhoeverLeadsMayBeKilledInAnyPhase(t *testing.T) {
	ctx := story.Within(t, 6*time.Minute)
	d := deploy(ctx, t, "certs-authority")
	for _, phase := range certs.Phases()[2:] {
		t.Run(string(phase), func(t *testing.T) {
			for attempt := 1; ; attempt++ {
				durable := certs.PhaseNone
				d.rollover(ctx, t, func(ctx context.Context, request certs.RotationRequest) (killed int) {
					reached := d.await(ctx, t, string(phase), func(s certs.Status) bool {
						return s.Phase == phase && !s.Request.Before(request.Time)
					})
					killed = d.kill(t, reached.Leader)
					durable = d.await(ctx, t, "anything", func(certs.Status) bool { return true }).Phase
					progress(t, "killed in phase %q", durable)
					return killed
				})
				if durable == phase {
					return
				}
				if attempt == 5 {
					t.Fatalf("in %d attempts it was never killed in this phase", attempt)
				}
			}
		})
	}
}

// What an Authority knows is in two Secrets, which it cannot write at once. It is killed when it has written the
// first and is refused the second.
func TestWhoeverLeadsMayBeKilledBetweenTwoWrites(t *testing.T) {
	if shared.Version.LessThan(version.MajorMinor(1, 30)) {
		t.Skip("what refuses the second write is a ValidatingAdmissionPolicy, which is stable from 1.30 on")
	}
	ctx := story.Within(t, 6*time.Minute)
	d := deploy(ctx, t, "certs-authority")
	for _, phase := range append(certs.Phases()[2:], certs.PhaseStable) {
		t.Run(string(phase), func(t *testing.T) {
			leader := d.await(ctx, t, "settled", func(s certs.Status) bool { return s.Settled && s.Phase == certs.PhaseStable }).Leader
			release := refuse(ctx, t, phase)
			d.rollover(ctx, t, func(ctx context.Context, request certs.RotationRequest) (killed int) {
				log := d.authorities[d.leads(t, leader)].LogFile
				for before := len(read(t, log)); !strings.Contains(read(t, log)[before:], refused(phase)); {
					pause(ctx, t, fmt.Sprintf("%s says that it was refused", log))
				}
				killed = d.kill(t, leader)
				durable := d.await(ctx, t, "anything", func(certs.Status) bool { return true }).Phase
				progress(t, "killed when refused to tell of phase %q after %q", phase, durable)
				release()
				return killed
			})
		})
	}
}

// A leader that stands still, loses its Lease and goes on later does not know that it leads no longer.
func TestALeaderThatSleptDoesNoHarm(t *testing.T) {
	ctx := story.Within(t, 3*time.Minute)
	d := deploy(ctx, t, "certs-authority")
	for _, phase := range []certs.Phase{certs.PhasePublished, certs.PhaseProven} {
		t.Run(string(phase), func(t *testing.T) {
			for attempt := 1; !d.sleep(ctx, t, phase); attempt++ {
				if attempt == 5 {
					t.Fatalf("in %d attempts nobody was paused in this phase", attempt)
				}
			}
		})
	}
}

// sleep replaces the CA under load while the leader stands still, and says whether another one had to do it. Then that one
// stands still, so that whoever slept before is alone with something to do.
func (d *deployment) sleep(ctx context.Context, t *testing.T, phase certs.Phase) (slept bool) {
	t.Helper()
	before := d.look(ctx, t)
	underLoad(ctx, t, d.front, cut, 500, func(ctx context.Context, l *load.Load) {
		request := d.request(ctx, t, certs.RotateCA)
		first := d.await(ctx, t, string(phase), func(s certs.Status) bool {
			return s.Phase == phase && !s.Request.Before(request.Time) || s.Finished(request) // nobody saw it in that phase
		}).Leader
		resume := d.pause(t, first)
		second := d.await(ctx, t, "finished", func(s certs.Status) bool { return s.Finished(request) }).Leader
		if slept = second != first; slept {
			defer d.pause(t, second)()
			request = d.request(ctx, t, certs.RotateLeaf)
		}
		resume()
		third := d.await(ctx, t, "finished", func(s certs.Status) bool { return s.Finished(request) }).Leader
		lease, err := shared.clients.CoordinationV1().Leases(namespace).Get(ctx, certs.DefaultLeaseName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if holder := *lease.Spec.HolderIdentity; holder != third {
			t.Errorf("%q went on while %q held the Lease", third, holder)
		}
		if err := l.Await(ctx, 500); err != nil {
			t.Fatal(err)
		}
	}).wantZero(t)
	after := d.look(ctx, t)
	if after.leaf.Equal(before.leaf) || len(after.trusted) != 1 || slices.Equal(after.trusted, before.trusted) {
		t.Errorf("trusted is %q, before it was %q", after.trusted, before.trusted)
	}
	return slept
}

func (d *deployment) request(ctx context.Context, t *testing.T, what certs.Rotation) certs.RotationRequest {
	t.Helper()
	request := certs.RotationRequest{What: what, Time: time.Now()}
	if err := certs.RequestRotation(ctx, shared.clients, namespace, certs.DefaultServingSecret, request); err != nil {
		t.Fatal(err)
	}
	return request
}

// pause has an Authority stand still until resume, or the end of the test.
func (d *deployment) pause(t *testing.T, identity string) (resume func()) {
	t.Helper()
	p := d.authorities[d.leads(t, identity)]
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	resume = sync.OnceFunc(func() {
		if err := p.Resume(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(resume)
	return resume
}

// rollover replaces the CA under load while the leader is killed, and wants the other one to finish.
func (d *deployment) rollover(ctx context.Context, t *testing.T, kill func(context.Context, certs.RotationRequest) (killed int)) {
	t.Helper()
	before := d.look(ctx, t)
	underLoad(ctx, t, d.front, cut, 500, func(ctx context.Context, _ *load.Load) {
		request := d.request(ctx, t, certs.RotateCA)
		killed := kill(ctx, request)
		begin := time.Now()
		done := d.await(ctx, t, "finished", func(s certs.Status) bool { return s.Finished(request) })
		if d.leads(t, done.Leader) == killed {
			t.Errorf("%q finished, which was killed", done.Leader)
		}
		progress(t, "%s finished %.1fs later", done.Leader, time.Since(begin).Seconds())
		if err := d.authorities[killed].Restart(ctx); err != nil {
			t.Fatal(err)
		}
	}).wantZero(t)
	after := d.look(ctx, t)
	if after.leaf.Equal(before.leaf) || len(after.trusted) != 1 || slices.Equal(after.trusted, before.trusted) {
		t.Errorf("trusted is %q, before it was %q", after.trusted, before.trusted)
	}
}

// leads tells which of the processes has that identity.
func (d *deployment) leads(t *testing.T, identity string) int {
	t.Helper()
	for i := range d.authorities {
		if strings.HasPrefix(identity, authorityName(i)) {
			return i
		}
	}
	t.Fatalf("%q leads, which is none of ours", identity)
	return 0
}

func (d *deployment) kill(t *testing.T, identity string) int {
	t.Helper()
	i := d.leads(t, identity)
	if err := d.authorities[i].Kill(); err != nil {
		t.Fatal(err)
	}
	return i
}

const holdName = "tracehook-e2e-hold"

func refused(phase certs.Phase) string { return "refused to tell of phase " + string(phase) }

// refuse has every API server refuse to store a serving Secret that tells of a phase, until release.
func refuse(ctx context.Context, t *testing.T, phase certs.Phase) (release func()) {
	t.Helper()
	told := fmt.Sprintf("%q:%q", "phase", phase)
	tells := fmt.Sprintf("object.metadata.?annotations[?'tracehook.dev/certs-status'].orValue('').contains('%s')", told)
	if phase == certs.PhaseStable {
		// It is told all the time; new is a leaf without what was sent along.
		tells += " && has(oldObject.metadata) && oldObject.metadata.?annotations[?'tracehook.dev/certs-status'].orValue('').contains('\"phase\":\"dropped\"')"
	}
	policies := shared.clients.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	bindings := shared.clients.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	_, err := policies.Create(ctx, &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: holdName},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Update},
					Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"secrets"}},
				},
			}}},
			Validations: []admissionv1.Validation{
				{Expression: "!(" + tells + ")", Message: refused(phase)},
				{Expression: "object.metadata.name != '" + holdName + "'", Message: "in force"},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := errors.Join(bindings.Delete(ctx, holdName, metav1.DeleteOptions{}), policies.Delete(ctx, holdName, metav1.DeleteOptions{})); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	_, err = bindings.Create(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: holdName},
		Spec:       admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: holdName, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range shared.servers {
		secrets := kubernetes.NewForConfigOrDie(server.RESTConfig).CoreV1().Secrets(namespace)
		probe := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: holdName}}
		if _, err := secrets.Create(ctx, probe, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		for {
			if _, err := secrets.Update(ctx, probe, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil && strings.Contains(err.Error(), "in force") {
				break
			}
			pause(ctx, t, server.Name+" refuses")
		}
	}
	return release
}
