package main

import (
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tracehook/tracehook/certs"
)

func TestTheLeaderIsWhoHoldsTheLeaseNow(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	lease := func(holder string, ago time.Duration) *coordinationv1.Lease {
		return &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: certs.DefaultLeaseName},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: new(int32(15)), RenewTime: &metav1.MicroTime{Time: now.Add(-ago)}},
		}
	}
	for _, test := range []struct {
		name  string
		lease *coordinationv1.Lease
		want  string // of the leader, or of the error
	}{
		{"held", lease("pod-1", time.Second), "pod-1"},
		{"held, with another clock", lease("pod-1", -20*time.Second), "pod-1"},
		{"given back", lease("", time.Second), "nobody holds Lease tracehook-certs in namespace a"},
		{"left behind", lease("pod-1", time.Hour), "pod-1 held Lease tracehook-certs in namespace a and was last seen 2026-01-01T11:00:00Z"},
		{"not there", nil, "there is no Lease tracehook-certs in namespace a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			clients := fake.NewClientset()
			if test.lease != nil {
				clients = fake.NewClientset(test.lease)
			}
			leader, err := findLeader(t.Context(), clients, "a", now)
			if err != nil {
				leader = err.Error()
				if !strings.Contains(leader, "`tracehook certs authority` running?") {
					t.Errorf("it does not say what to do: %s", leader)
				}
			}
			if !strings.Contains(leader, test.want) {
				t.Errorf("got %q, want %q", leader, test.want)
			}
		})
	}
}

func TestEachStepOfARotationIsShownOnce(t *testing.T) {
	asked := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	request := certs.RotationRequest{Time: asked}
	var out strings.Builder
	show := statusText(&out, request)
	at := func(seconds int, s certs.Status) {
		s.Time, s.Request = asked.Add(time.Duration(seconds)*time.Second), asked
		if err := show(s); err != nil {
			t.Fatal(err)
		}
	}
	at(1, certs.Status{Phase: certs.PhasePublished, Step: certs.StepProve, Reason: "must be known"})
	at(2, certs.Status{Phase: certs.PhasePublished, Step: certs.StepProve, Reason: "must be known", Error: "10.0.0.1 does\nnot answer"})
	at(3, certs.Status{Phase: certs.PhasePublished, Step: certs.StepProve, Reason: "must be known", Error: "10.0.0.1 does\nnot answer"})
	at(4, certs.Status{Phase: certs.PhaseProven, Step: certs.StepProve, Reason: "must be known"})
	at(5, certs.Status{Phase: certs.PhaseStable, Step: certs.StepWait, Reason: "nothing is due", Settled: true,
		Leaf:  &certs.CertificateStatus{Fingerprint: strings.Repeat("ab", 32), NotAfter: asked},
		CA:    &certs.CertificateStatus{Fingerprint: strings.Repeat("cd", 32), Subject: "CN=ca\x1b"},
		Proof: &certs.Proof{Certainty: certs.Proven, Servers: []string{"a", "b"}}})
	const want = `12:00:01  prove       must be known
12:00:02              not yet: 10.0.0.1 does not answer
12:00:04              now proven
12:00:05  wait        nothing is due
12:00:05              now stable
12:00:05  done: certificate abababababababab is served until 2026-01-01 12:00 UTC; its CA cdcdcdcdcdcdcdcd is "CN=ca\x1b"; trust proven at API servers: 2
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

// Each document can be read before the next one is there.
func TestARotationForMachinesIsOneDocumentAStatus(t *testing.T) {
	for format, want := range map[string]string{
		"json": `{"kind":"CertificateRotation",`,
		"yaml": "---\n",
	} {
		var out strings.Builder
		show := statusMachine(&out, format)
		for range 2 {
			if err := show(certs.Status{Phase: certs.PhaseProven, Step: certs.StepSwitch, Reason: "a: b\n---\nc"}); err != nil {
				t.Fatal(err)
			}
		}
		if got := out.String(); !strings.HasPrefix(got, want) || strings.Count("\n"+got, "\n"+want) != 2 || !strings.Contains(got, "proven") {
			t.Errorf("%s:\n%s", format, got)
		}
	}
}
