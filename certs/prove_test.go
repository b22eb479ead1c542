package certs_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/tracehook/tracehook/certs"
)

// saying is a Prover that says this.
type saying struct {
	proof certs.Proof
	err   error
}

func (s saying) Prove(context.Context, certs.Claim) (certs.Proof, error) { return s.proof, s.err }

func TestSeveralProversSayWhatTheLeastCertainOfThemSays(t *testing.T) {
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	proven := saying{proof: certs.Proof{Time: at, Certainty: certs.Proven, Servers: []string{"a", "b"}}}
	sampled := saying{proof: certs.Proof{Time: at.Add(time.Second), Certainty: certs.Sampled, Servers: []string{"b", "c"}}}
	assumed := saying{proof: certs.Proof{Time: at.Add(time.Minute), Certainty: certs.Assumed}}
	for _, test := range []struct {
		name    string
		provers certs.Provers
		want    string
	}{
		{"one", certs.Provers{proven}, "12:00:00 proven [a b]"},
		{"a certain one first", certs.Provers{proven, sampled}, "12:00:01 sampled [a b c]"},
		{"a certain one last", certs.Provers{assumed, sampled, proven}, "12:00:00 assumed [b c a]"},
		{"one that fails", certs.Provers{proven, saying{err: errors.New("has not arrived")}}, "has not arrived"},
		{"nobody", nil, "nobody to prove it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			proof, err := test.provers.Prove(t.Context(), certs.Claim{Generation: "g"})
			got := fmt.Sprint(err)
			if err == nil {
				got = fmt.Sprint(proof.Time.Format(time.TimeOnly), " ", proof.Certainty, " ", proof.Servers)
			}
			if !strings.Contains(got, test.want) || (err != nil && proof.Certainty != "") {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// A controller-runtime manager starts what does not say so on its leader only, and after its
// caches. e2e/manager has a real one.
func TestAManagerStartsAllBeforeItsCachesOnEveryReplica(t *testing.T) {
	for _, runnable := range []any{&certs.SecretSource{}, &certs.Readiness{}, &certs.Authority{}, &certs.FileSource{}} {
		server, ok := runnable.(ctrlwebhook.Server) // by this a manager knows what goes first
		if !ok {
			t.Errorf("%T is started after the caches", runnable)
			continue
		}
		server.Register("/", http.NotFoundHandler())
		if server.NeedLeaderElection() || server.StartedChecker()(nil) != nil || server.WebhookMux() != nil {
			t.Errorf("%T waits for something", runnable)
		}
	}
}
