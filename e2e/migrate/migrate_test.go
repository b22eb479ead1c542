package migrate

import (
	"context"
	"crypto/x509"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/tracehook/tracehook/certs"
)

// call is a request that ends at a stranger.
type call = func(context.Context, kubernetes.Interface) error

// start is a starting point: what is installed, and what calls it.
type start struct {
	name    string // also of the example, the namespace, the Service and the configuration
	install func(t *testing.T) (s *stranger, calls []call)
	repair  bool // calls fail at first
	counted bool // the missing-SAN counters move at first
}

// starts are those of certs/MIGRATION.md. Everything is made as its owners would have made it.
var starts = []start{
	{name: "static", install: func(t *testing.T) (*stranger, []call) {
		authority := forge(t, nil, ca("policy CA"))
		s := startStranger(t, "static", forge(t, &authority, host("static")))
		s.validate(t, pemOf(authority), nil)
		s.mutate(t, pemOf(authority), s.namespace) // by the same server, and not named on the command line
		return s, []call{s.admission}
	}},
	{name: "sha1", install: func(t *testing.T) (*stranger, []call) {
		leaf := forge(t, nil, host("sha1"), withSHA1)
		s := startStranger(t, "sha1", leaf)
		s.validate(t, pemOf(leaf), nil)
		return s, []call{s.admission}
	}},
	{name: "pinned", install: func(t *testing.T) (*stranger, []call) {
		authority := forge(t, nil, ca("forgotten CA"))
		leaf := forge(t, &authority, host("pinned"))
		s := startStranger(t, "pinned", leaf)
		s.validate(t, pemOf(leaf), nil)
		return s, []call{s.admission}
	}},
	{name: "foreign-ca", install: func(t *testing.T) (*stranger, []call) {
		root := forge(t, nil, ca("Corporate Root"))
		issuing := forge(t, &root, ca("Corporate Issuing 3"))
		s := startStranger(t, "foreign-ca", forge(t, &issuing, host("foreign-ca")), issuing)
		s.validate(t, pemOf(root), nil)
		return s, []call{s.admission}
	}},
	{name: "conversion", install: func(t *testing.T) (*stranger, []call) {
		authority := forge(t, nil, ca("CA of the operator"))
		s := startStranger(t, "conversion", forge(t, &authority, host("conversion")))
		s.define(t, pemOf(authority))
		return s, []call{s.converted}
	}},
	{name: "to-cert-manager", install: func(t *testing.T) (*stranger, []call) {
		authority, theirs := forge(t, nil, ca("policy CA")), forge(t, nil, ca("cert-manager's CA"))
		s := startStranger(t, "to-cert-manager", forge(t, &authority, host("to-cert-manager")))
		writeSecret(t, s.namespace, "by-cert-manager", map[string]string{"cert-manager.io/certificate-name": "serving"}, forge(t, &theirs, host("to-cert-manager")), theirs)
		s.validate(t, pemOf(authority), nil)
		return s, []call{s.admission}
	}},
	{name: "from-cert-manager", install: func(t *testing.T) (*stranger, []call) {
		theirs := forge(t, nil, ca("cert-manager's CA"))
		s := startStranger(t, "from-cert-manager", forge(t, &theirs, host("from-cert-manager")), theirs)
		s.validate(t, pemOf(theirs), map[string]string{"cert-manager.io/inject-ca-from": "from-cert-manager/serving"})
		return s, []call{s.admission}
	}},
	{name: "managed", install: func(t *testing.T) (*stranger, []call) {
		authority := forge(t, nil, ca("policy CA"))
		s := startStranger(t, "managed", forge(t, &authority, host("managed")))
		s.validate(t, pemOf(authority), nil)
		return s, []call{s.admission}
	}},
	{name: "unverified", counted: true, install: func(t *testing.T) (*stranger, []call) {
		authority := forge(t, nil, ca("CA that nobody asks"))
		s := startStranger(t, "unverified", forge(t, &authority, host("unverified"), withoutSAN))
		s.aggregate(t)
		return s, []call{s.aggregated}
	}},
	{name: "common-name", repair: true, counted: true, install: func(t *testing.T) (*stranger, []call) {
		authority := forge(t, nil, ca("policy CA of 2017"))
		s := startStranger(t, "common-name", forge(t, &authority, host("common-name"), withoutSAN))
		s.validate(t, pemOf(authority), nil)
		return s, []call{s.admission}
	}},
}

// Each example of the document, as it stands there, under load: no request fails, or for the repair none fails any
// more; and at the end nothing moves the counters.
func TestTheExamplesOfTheDocument(t *testing.T) {
	examples := readExamples(t)
	// The counters are the cluster's: whoever moves them at first is alone.
	t.Run("side by side", func(t *testing.T) {
		for _, from := range starts {
			if !from.counted {
				t.Run(from.name, func(t *testing.T) {
					t.Parallel()
					from.run(t, examples[from.name])
				})
			}
		}
	})
	for _, from := range starts {
		if from.counted {
			t.Run(from.name, func(t *testing.T) { from.run(t, examples[from.name]) })
		}
	}
	for name := range examples {
		if !slices.ContainsFunc(starts, func(s start) bool { return s.name == name }) {
			t.Errorf("nobody runs the example %s", name)
		}
	}
	if os.Getenv("UPDATE") != "" {
		writeExamples(t)
	}
}

// run plays the example of a starting point under load.
func (from start) run(t *testing.T, played session) {
	if len(played) == 0 {
		t.Fatalf("%s has no example %s", document, from.name)
	}
	s, calls := from.install(t)
	for _, c := range calls {
		s.inForce(t, c, !from.repair)
	}
	before := missingSAN(t)
	l := startLoad(t, calls[0])
	play(t, from.name, played)
	if from.repair {
		atOnce := time.Now()
		l.settle()
		if requests, failed, _ := l.sofar(); failed == 0 || failed == requests {
			t.Errorf("%d of %d requests failed: not a repair", failed, requests)
		}
		if l.failedSince(atOnce) {
			t.Errorf("requests fail after the repair: %s", l.last)
		}
		if missingSAN(t) == before {
			t.Error("the counter did not move before the repair: the certificate was not the one that counts")
		}
	}
	before = missingSAN(t)
	l.settle()
	if after := missingSAN(t); after != before {
		t.Errorf("the missing-SAN counters moved by %d after the end", after-before)
	}
	requests, failed, last := l.stop()
	t.Logf("%d requests, %d failed", requests, failed)
	if failed > 0 && !from.repair {
		t.Errorf("%d of %d requests failed: %s", failed, requests, last)
	}
	if requests < 100 {
		t.Errorf("only %d requests: that proves little", requests)
	}
	s.healthy(t)
}

// healthy asks the audit.
func (s *stranger) healthy(t *testing.T) {
	t.Helper()
	objects := dynamic.NewForConfigOrDie(shared.RESTConfig)
	report, err := certs.Audit(t.Context(), certs.AuditOptions{Clients: shared.clients, Dynamic: objects, Now: time.Now()})
	must(t, err)
	seen := 0
	for _, target := range report.Targets {
		if strings.HasPrefix(target.Service, s.namespace+"/") {
			seen++
			if target.Worst != certs.Healthy {
				t.Errorf("%s is %s: %+v", target, target.Worst, target)
			}
		}
		if bundle, _ := certs.ParseBundle(target.Trust.Bundle); strings.HasPrefix(target.Service, s.namespace+"/") && len(bundle) != 1 {
			t.Errorf("%s trusts %d certificates at the end", target, len(bundle))
		}
	}
	if seen == 0 {
		t.Error("the audit sees nothing of it")
	}
}

// A request that began before the new CA was loaded, and that another webhook holds up, still calls with the old one. Without
// the wait for it some fail.
func TestARequestThatAnotherWebhookHoldsUpIsOutlasted(t *testing.T) {
	tracehook, err := shared.Binary("tracehook")
	must(t, err)
	const holds = 3 * time.Second
	for _, test := range []struct {
		name string // sorts behind the other one's
		soak time.Duration
		fail bool
	}{
		{"outlasted", holds + time.Second, false},
		{"overtaken", time.Millisecond, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			authority := forge(t, nil, ca("policy CA"))
			other := startStranger(t, "before-"+test.name, forge(t, &authority, host("before-"+test.name)))
			other.holds = holds
			other.mutate(t, pemOf(authority), test.name)
			s := startStranger(t, test.name, forge(t, &authority, host(test.name)))
			s.closes = true // kept ones would hide it
			s.mutate(t, pemOf(authority), test.name)
			s.inForce(t, s.admission, true)
			l := startLoad(t, s.admission)
			time.Sleep(holds) // requests are at every stage
			args := []string{tracehook, "certs", "migrate", "mutatingwebhookconfiguration/" + test.name, "--to", "issued", "--secret", test.name + "/serving-cert",
				"--soak", test.soak.String(), "--apply"}
			for _, server := range shared.servers {
				args = append(args, "--api-server", server.URL)
			}
			if out, code := run(t, strings.Join(args, " ")); code != 0 {
				t.Fatalf("exit code %d:\n%s", code, out)
			}
			requests, failed, last := l.stop()
			t.Logf("%d requests, %d failed: %s", requests, failed, last)
			if failed > 0 != test.fail {
				t.Errorf("%d of %d requests failed: %s", failed, requests, last)
			}
			if other.calls.Load() == 0 || s.calls.Load() == 0 {
				t.Error("one of the two was not called")
			}
		})
	}
}

// Killed without warning at each of its steps, the same command goes on and comes to its end; no request fails.
func TestAKilledMigrationGoesOn(t *testing.T) {
	t.Parallel()
	authority := forge(t, nil, ca("policy CA"))
	s := startStranger(t, "killed", forge(t, &authority, host("killed")))
	s.validate(t, pemOf(authority), nil)
	s.inForce(t, s.admission, true)
	l := startLoad(t, s.admission)
	args := []string{"certs", "migrate", "validatingwebhookconfiguration/killed", "--to", "issued", "--secret", "killed/serving-cert", "--apply"}
	for _, step := range []string{"issue", "publish", "prove", "switch", "served", "soak", "drop", "prove-again", "audit"} {
		killAt(t, " "+step+": ", args...)
	}
	if out, code := run(t, "tracehook "+strings.Join(args, " ")); code != 0 || !strings.Contains(out, "no finding") {
		t.Fatalf("the last run ended with code %d:\n%s", code, out)
	}
	requests, failed, last := l.stop()
	t.Logf("%d requests, %d failed", requests, failed)
	if failed > 0 {
		t.Errorf("%d of %d requests failed: %s", failed, requests, last)
	}
	s.healthy(t)
	noneLeft(t, "killed")
	if _, err := shared.clients.CoreV1().Secrets("killed").Get(t.Context(), "tracehook-migrate-validatingwebhookconfiguration-killed", metav1.GetOptions{}); err == nil {
		t.Error("the state, with a private key in it, was left behind")
	}
}

// Taken back before and after the switch: what was trusted and served is so again, and no request fails.
func TestAnAbortedMigrationLeavesWhatWas(t *testing.T) {
	t.Parallel()
	authority := forge(t, nil, ca("policy CA"))
	leaf := forge(t, &authority, host("aborted"))
	s := startStranger(t, "aborted", leaf)
	s.validate(t, pemOf(authority), nil)
	s.inForce(t, s.admission, true)
	l := startLoad(t, s.admission)
	args := []string{"certs", "migrate", "validatingwebhookconfiguration/aborted", "--to", "issued", "--secret", "aborted/serving-cert", "--apply"}
	for _, step := range []string{"publish", "prove", "served", "soak", "prove-again"} {
		killAt(t, " "+step+": ", args...)
		if out, code := run(t, "tracehook "+strings.Join(args, " ")+" --abort"); code != 0 {
			t.Fatalf("after %s: --abort ended with code %d:\n%s", step, code, out)
		}
		configuration, err := shared.clients.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), "aborted", metav1.GetOptions{})
		must(t, err)
		if bundle, _ := certs.ParseBundle(configuration.Webhooks[0].ClientConfig.CABundle); !slices.EqualFunc(bundle, []*x509.Certificate{authority.Certificate}, (*x509.Certificate).Equal) {
			t.Errorf("after %s: caBundle holds %d certificates, not the one of before", step, len(bundle))
		}
		if served := s.pair.Load(); !leaf.Certificate.Equal(served.Leaf) {
			t.Errorf("after %s: another certificate is served than before", step)
		}
	}
	requests, failed, last := l.stop()
	t.Logf("%d requests, %d failed", requests, failed)
	if failed > 0 {
		t.Errorf("%d of %d requests failed: %s", failed, requests, last)
	}
}

// killAt starts tracehook and kills it as soon as it has written a text.
func killAt(t *testing.T, text string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.bin+"/tracehook", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + shared.bin, "KUBECONFIG=" + shared.Kubeconfig}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var all strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(all.String(), text) {
		n, err := out.Read(buffer)
		all.Write(buffer[:n])
		if err != nil {
			t.Errorf("it ended before it wrote %q:\n%s", text, all.String())
			break
		}
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
}
