package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/tracehook/tracehook/certs"
)

// kindsOfProofs are the resources that proofs make objects of.
var kindsOfProofs = map[string]schema.GroupVersionResource{
	certs.KindMutating:   {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
	certs.KindValidating: {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"},
	certs.KindCRD:        {Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	certs.KindAPIService: {Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
}

// proofsOf are the objects that a run for a namespace has made for proofs, and that are not being removed.
func proofsOf(t *testing.T, namespace string) (found []string) {
	t.Helper()
	objects := dynamic.NewForConfigOrDie(shared.RESTConfig)
	for kind, resource := range kindsOfProofs {
		list, err := objects.Resource(resource).List(context.Background(), metav1.ListOptions{LabelSelector: "barrier.tracehook.dev"})
		must(t, err)
		for _, object := range list.Items {
			if ofRun(&object, namespace) && object.GetDeletionTimestamp() == nil {
				found = append(found, kind+"/"+object.GetName())
			}
		}
	}
	return found
}

func ofRun(object *unstructured.Unstructured, namespace string) bool {
	return strings.HasPrefix(object.GetAnnotations()["barrier.tracehook.dev/holder"], namespace+"/")
}

// underWay is a tracehook that runs.
type underWay struct {
	cmd *exec.Cmd
	out *bytes.Buffer
	end chan struct{} // closed when cmd has ended
}

// startRun starts it as a person would, with a kubeconfig.
func startRun(t *testing.T, kubeconfig string, args ...string) *underWay {
	t.Helper()
	r := &underWay{cmd: exec.Command(shared.bin+"/tracehook", args...), out: new(bytes.Buffer), end: make(chan struct{})}
	r.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + shared.bin, "KUBECONFIG=" + kubeconfig}
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	must(t, r.cmd.Start())
	go func() { _ = r.cmd.Wait(); close(r.end) }() // how it ended is in ProcessState
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	return r
}

// ends waits until it has ended.
func (r *underWay) ends(t *testing.T) (out string, code int) {
	t.Helper()
	select {
	case <-r.end:
	case <-time.After(90 * time.Second):
		_ = r.cmd.Process.Kill()
		t.Fatal("it does not end")
	}
	return r.out.String(), r.cmd.ProcessState.ExitCode()
}

// proving waits until a run has made an object for its proof.
func proving(t *testing.T, namespace string) []string {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if found := proofsOf(t, namespace); len(found) > 0 {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatal("no proof is under way")
		}
	}
}

// noneLeft: a CRD has a finalizer, so what is being removed counts as removed.
func noneLeft(t *testing.T, namespace string) {
	t.Helper()
	if left := proofsOf(t, namespace); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// never is the address of an API server that does not answer: a proof goes on for ever.
const never = "https://127.0.0.1:1"

// installForProof is a starting point whose proof is of a kind.
func installForProof(t *testing.T, kind, name string) (target string) {
	t.Helper()
	authority := forge(t, nil, ca("policy CA"))
	leaf := forge(t, &authority, host(name))
	switch kind {
	case certs.KindMutating:
		startStranger(t, name, leaf).mutate(t, pemOf(authority), name)
		return "mutatingwebhookconfiguration/" + name
	case certs.KindValidating:
		startStranger(t, name, leaf).validate(t, pemOf(authority), nil)
		return "validatingwebhookconfiguration/" + name
	case certs.KindCRD:
		s := startStranger(t, name, leaf)
		s.define(t, pemOf(authority))
		return "crd/widgets." + s.group()
	default:
		s := startStranger(t, name, forge(t, &authority, host(name), withoutSAN))
		s.aggregate(t)
		return "apiservice/v1." + s.group()
	}
}

// A proof is under way and cannot come to an end. Ctrl-C, or what ends a pod: the run removes what it made and says how to go on.
func TestARunThatASignalEndsLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	for i, kind := range []string{certs.KindMutating, certs.KindValidating, certs.KindCRD, certs.KindAPIService} {
		t.Run(kind, func(t *testing.T) {
			name := "signal-" + strings.ToLower(kind)[:3]
			target := installForProof(t, kind, name)
			sent, code := syscall.SIGINT, 130
			if i%2 == 1 {
				sent, code = syscall.SIGTERM, 143
			}
			r := startRun(t, shared.Kubeconfig, "certs", "migrate", target, "--to", "issued", "--secret", name+"/serving-cert", "--apply", "--api-server", never)
			made := proving(t, name)
			if want := kind + "/"; !strings.HasPrefix(made[0], want) {
				t.Errorf("made for the proof: %q", made)
			}
			must(t, r.cmd.Process.Signal(sent))
			out, got := r.ends(t)
			if got != code || !strings.Contains(out, "cleaning up; a second signal ends it at once") {
				t.Errorf("exit code %d, want %d:\n%s", got, code, out)
			}
			noneLeft(t, name)
			leases, err := shared.clients.CoordinationV1().Leases(name).List(t.Context(), metav1.ListOptions{})
			must(t, err)
			if len(leases.Items) > 0 {
				t.Errorf("Leases are left: %q", leases.Items[0].Name)
			}
		})
	}
}

// At each of its steps.
func TestASignalAtAnyStepLeavesNothingBehindAndTheNextRunGoesOn(t *testing.T) {
	t.Parallel()
	const name = "signalled"
	target := installForProof(t, certs.KindCRD, name)
	args := []string{"certs", "migrate", target, "--to", "issued", "--secret", name + "/serving-cert", "--apply"}
	for i, step := range []string{"issue", "publish", "prove", "switch", "served", "soak", "drop", "prove-again", "audit"} {
		sent := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2]
		signalAt(t, sent, " "+step+": ", args...)
		noneLeft(t, name)
	}
	if out, code := run(t, "tracehook "+strings.Join(args, " ")); code != 0 || !strings.Contains(out, "no finding") {
		t.Fatalf("the last run ended with code %d:\n%s", code, out)
	}
	noneLeft(t, name)
}

// Nobody cleans up behind a process that is killed. The audit and the plan name what it has left; the next run with --apply removes it, for
// whatever target it is. The proof of a run that lives is neither named nor removed.
func TestWhatAKilledRunHasLeftIsNamedAndRemoved(t *testing.T) {
	for _, kind := range []string{certs.KindAPIService, certs.KindCRD, certs.KindValidating} {
		t.Run(kind, func(t *testing.T) {
			dead, alive, next := "dead-"+strings.ToLower(kind)[:3], "alive-"+strings.ToLower(kind)[:3], "next-"+strings.ToLower(kind)[:3]
			apply := func(kind, name string) []string {
				return []string{"certs", "migrate", installForProof(t, kind, name), "--to", "issued", "--secret", name + "/serving-cert", "--apply"}
			}
			killed := startRun(t, shared.Kubeconfig, append(apply(kind, dead), "--api-server", never)...)
			left := proving(t, dead)
			living := startRun(t, shared.Kubeconfig, append(apply(kind, alive), "--api-server", never)...)
			proving(t, alive)
			time.Sleep(8 * time.Second) // it has looked for what is left, and found a proof that is under way
			if got := proofsOf(t, dead); !slices.Equal(got, left) {
				t.Errorf("one run has removed the other's proof: %q is left of %q", got, left)
			}
			must(t, killed.cmd.Process.Kill())
			killed.ends(t)

			out, _ := run(t, "tracehook certs audit -o json --fail-on error")
			var report certs.AuditReport
			if err := json.Unmarshal([]byte(out), &report); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var named []string
			for _, target := range report.Targets {
				if slices.ContainsFunc(target.Findings, func(f certs.Finding) bool { return f.Code == certs.ProofLeft }) {
					named = append(named, target.Kind+"/"+target.Name)
					if want := map[bool]certs.Severity{true: certs.Error, false: certs.Warning}[kind == certs.KindAPIService]; target.Worst != want {
						t.Errorf("%s is %s", target, target.Worst)
					}
				} else if strings.Contains(target.Name, "barrier") {
					t.Errorf("an object of a proof is a target: %s %+v", target, target.Findings)
				}
			}
			if !slices.Equal(named, left) {
				t.Errorf("the audit names %q, left is %q", named, left)
			}
			other := apply(certs.KindMutating, next)
			if out, _ := run(t, "tracehook "+strings.Join(other[:len(other)-1], " ")); !strings.Contains(out, left[0]+" was left behind by a run that was killed") {
				t.Errorf("the plan does not name %s:\n%s", left[0], out)
			}
			if got := proofsOf(t, dead); !slices.Equal(got, left) {
				t.Errorf("an audit or a plan has written: %q is left of %q", got, left)
			}
			if out, code := run(t, "tracehook "+strings.Join(other, " ")); code != 0 || !strings.Contains(out, "removed "+left[0]+", which a run that was killed had left behind") {
				t.Errorf("the next run ended with code %d:\n%s", code, out)
			}
			noneLeft(t, dead)
			if len(proofsOf(t, alive)) == 0 {
				t.Error("the proof of a run that lives was removed")
			}
			must(t, living.cmd.Process.Signal(syscall.SIGINT))
			living.ends(t)
			noneLeft(t, alive)
		})
	}
}

// The cleaning up has a deadline. Who does not wait for it is told what is left.
func TestASecondSignalEndsItAtOnceAndSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	const name = "impatient"
	target := installForProof(t, certs.KindValidating, name)
	for _, twice := range []bool{true, false} {
		way := startWay(t)
		r := startRun(t, way.kubeconfig, "certs", "migrate", target, "--to", "issued", "--secret", name+"/serving-cert", "--apply", "--api-server", never)
		made := proving(t, name)
		way.blocked.Store(true)
		must(t, r.cmd.Process.Signal(syscall.SIGINT))
		if twice {
			time.Sleep(500 * time.Millisecond) // the first must have been taken
			must(t, r.cmd.Process.Signal(syscall.SIGINT))
		}
		begin := time.Now()
		out, code := r.ends(t)
		if took := time.Since(begin); code != 130 || !strings.Contains(out, made[0]) && !strings.Contains(out, strings.Replace(made[0], "/", " ", 1)) || twice && took > 8*time.Second {
			t.Errorf("twice: %t: exit code %d after %s, and it does not name %s:\n%s", twice, code, took, made[0], out)
		}
		if twice && !strings.Contains(out, "left behind: "+made[0]+" (kubectl delete validatingwebhookconfiguration ") {
			t.Errorf("it does not say what is left:\n%s", out)
		}
		// As the next run would; one of another test may have been faster.
		_, err := certs.RemoveLeftProofs(t.Context(), shared.clients, dynamic.NewForConfigOrDie(shared.RESTConfig))
		must(t, err)
		noneLeft(t, name)
	}
}

// Of two runs for one target the second is told that there is another; it does not write beside it.
func TestASecondRunForTheSameTargetIsRefused(t *testing.T) {
	t.Parallel()
	const name = "twice"
	target := installForProof(t, certs.KindValidating, name)
	args := []string{"certs", "migrate", target, "--to", "issued", "--secret", name + "/serving-cert", "--apply"}
	first := startRun(t, shared.Kubeconfig, append(args, "--api-server", never)...)
	proving(t, name)
	out, code := run(t, "tracehook "+strings.Join(args, " "))
	if code != 1 || !strings.Contains(out, "another run of this migration is under way: ") || !strings.Contains(out, "renews Lease twice/tracehook-migrate-") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	must(t, first.cmd.Process.Signal(syscall.SIGTERM))
	first.ends(t)
	if out, code := run(t, "tracehook "+strings.Join(args, " ")); code != 0 {
		t.Errorf("when the first has ended: exit code %d:\n%s", code, out)
	}
}

// way is a way to the API server that can be blocked: nothing is refused, and nothing gets through.
type way struct {
	kubeconfig string
	blocked    atomic.Bool
}

func startWay(t *testing.T) *way {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	to := strings.TrimPrefix(shared.First().URL, "https://")
	w := &way{kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	text, err := os.ReadFile(shared.Kubeconfig)
	must(t, err)
	must(t, os.WriteFile(w.kubeconfig, bytes.ReplaceAll(text, []byte(shared.First().URL), []byte("https://"+listener.Addr().String())), 0o600))
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go w.carry(c, to)
		}
	}()
	return w
}

func (w *way) carry(c net.Conn, to string) {
	defer c.Close()
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	var group sync.WaitGroup
	for _, d := range [][2]net.Conn{{c, server}, {server, c}} {
		group.Go(func() {
			defer d[0].Close()
			defer d[1].Close()
			buffer := make([]byte, 32<<10)
			for {
				n, err := d[1].Read(buffer)
				for w.blocked.Load() && err == nil {
					time.Sleep(50 * time.Millisecond)
				}
				if err != nil {
					return
				}
				if _, err := io.Copy(d[0], bytes.NewReader(buffer[:n])); err != nil {
					return
				}
			}
		})
	}
	group.Wait()
}

// signalAt starts tracehook, sends a signal as soon as it has written a text, and waits for its end.
func signalAt(t *testing.T, sent syscall.Signal, text string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, shared.bin+"/tracehook", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + shared.bin, "KUBECONFIG=" + shared.Kubeconfig}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var all strings.Builder
	buffer := make([]byte, 4096)
	for done := false; ; {
		n, err := out.Read(buffer)
		all.Write(buffer[:n])
		if !done && strings.Contains(all.String(), text) {
			done = true
			must(t, cmd.Process.Signal(sent))
		}
		if err != nil {
			if !done {
				t.Errorf("it ended before it wrote %q:\n%s", text, all.String())
			}
			break
		}
	}
	_ = cmd.Wait() // ended by the signal, or, if that came too late, well
}
