package explain

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// eventually asks again until the answer has every line that is wanted, in this order: spans arrive in batches.
func eventually(t *testing.T, ask func() string, patterns ...string) string {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(300 * time.Millisecond) {
		text := ask()
		missing := firstMissing(text, patterns...)
		if missing == "" {
			return text
		}
		if time.Now().After(end) {
			t.Fatalf("after 30s there is no line %s, or not in this order, in\n%s", missing, text)
		}
	}
}

func withStore(args ...string) []string {
	return append(args, "--store", "jaeger="+shared.JaegerURL)
}

func TestWithATraceStoreTheCommandItsStepsAndWhatWasSlowAreTold(t *testing.T) {
	ns := namespace(t, "stored")
	id := traced(t, "-n", ns, "create", "deployment", "web", "--image=app:1")
	mustKubectl(t, "-n", ns, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=30s")
	pod := podsOf(t, ns, "web")[0]
	const exact = `\+\d+\.\d\d s`
	text := eventually(t, func() string { return explained(t, withStore("-n", ns, "pod/"+pod)...) },
		`Pod `+pod+` exists because of`,
		`  kubectl create   `+clock+`   trace `+short(id)+`   [\d.]+ m?s`,
		`  └ Deployment web +created  `+exact+`  .*`,
		`    └ ReplicaSet web-\w+ +created  `+exact,
		`      └ Pod +created  `+exact+`  .*`,
		`slowest      .+ [\d.]+ m?s of the [\d.]+ m?s of .+`,
		`not known    who: no audit log given \(--audit-log\)`,
	)
	if !strings.Contains(text, "of POST /apis/apps/v1/namespaces/stored/deployments") {
		t.Errorf("the command's request is not among what took time:\n%s", text)
	}
	t.Run("a store that has it not", func(t *testing.T) {
		want(t, explained(t, "-n", ns, "pod/"+pod, "--store", "jaeger=http://127.0.0.1:1"),
			`  kubectl-create   `+clock+`   trace `+short(id),
			`not known    the command, its steps and what was slow: the trace store cannot be asked: .*connect: connection refused`)
	})
	t.Run("what the kubelet did", func(t *testing.T) { // here a test that sends what a kubelet sends
		uid := mustKubectl(t, "-n", ns, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
		story.SendAsKubelet(t, shared.Cluster, uid, pod, ns)
		eventually(t, func() string { return explained(t, withStore("-n", ns, "pod/"+pod)...) },
			`on the node  `+clock+`  kubelet syncPod  [\d.]+ m?s  slowest: PullImage in containerd [\d.]+ m?s  trace [0-9a-f]{8}…`)
	})
}

// alice may write in a namespace, and is not one whose traces the API server continues.
func alice(t *testing.T, namespace string) (kubeconfig string) {
	t.Helper()
	mustKubectl(t, "-n", namespace, "create", "rolebinding", "alice", "--clusterrole=edit", "--user=alice")
	kubeconfig, err := shared.User("alice", "developers")
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

func TestWithTheAuditLogWhoItWasIsTold(t *testing.T) {
	ns := namespace(t, "audited")
	kubeconfig := alice(t, ns)
	kubectl, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	a := tracehookAs(t, kubeconfig, "trace", "--", kubectl, "-n", ns, "create", "deployment", "web", "--image=app:1")
	if a.code != 0 {
		t.Fatalf("%+v", a)
	}
	mustKubectl(t, "-n", ns, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=30s")
	by := `by alice with kubectl/v\d+\.\d+\.\S+`
	eventually(t, func() string {
		return explained(t, "-n", ns, "pods", "-l", "app=web", "--audit-log", filepath.Join(filepath.Dir(shared.AuditLog), "audit*.log"))
	},
		`  kubectl-create   `+clock+`   trace [0-9a-f]{8}…   `+by,
		`    └ ReplicaSet web-\w+ +created  \+\d+\.\d\d s`, // by the audit log's microseconds
		`not known    the command, its steps and what was slow: no trace store given \(--store\)`,
	)
	// The API server only links to the trace of alice's command. The link leads to its name.
	eventually(t, func() string {
		return explained(t, withStore("-n", ns, "deployment", "web", "--audit-log", shared.AuditLog)...)
	},
		`  kubectl create   `+clock+`   trace [0-9a-f]{8}…   [\d.]+ m?s   `+by)
	how := explained(t, "-n", ns, "deployment", "web", "--audit-log", shared.AuditLog, "-o", "jsonpath={.causes[0].who.by} {.causes[0].who.user} {.causes[0].who.verb}")
	if how != "span-id alice create" {
		t.Errorf("found by %q", how)
	}
	t.Run("a log of another time", func(t *testing.T) {
		line := `{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"x","stage":"ResponseComplete","verb":"get","requestReceivedTimestamp":"2026-01-01T00:00:00.000000Z"}` + "\n"
		file := filepath.Join(t.TempDir(), "audit.log")
		if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		want(t, explained(t, "-n", ns, "deployment", "web", "--audit-log", file),
			`not known    .*|             .*`, `             who: the audit log does not have the request of trace [0-9a-f]{32}: it tells of 2026-01-01 00:00:00 to 2026-01-01 00:00:00 UTC.*`)
	})
	t.Run("impersonated", func(t *testing.T) {
		mustKubectl(t, "--as=alice", "-n", ns, "create", "deployment", "as", "--image=app:1")
		eventually(t, func() string { return explained(t, "-n", ns, "deployment", "as", "--audit-log", shared.AuditLog) },
			`  kubectl-create   `+clock+`   trace [0-9a-f]{8}…   by admin as alice with kubectl/.*`)
	})
}

func TestWhoMayReadLittleGetsAnAnswerAllTheSame(t *testing.T) {
	ns := namespace(t, "little")
	traced(t, "-n", ns, "create", "deployment", "web", "--image=app:1")
	mustKubectl(t, "-n", ns, "wait", "--for=create", "pod", "-l", "app=web", "--timeout=30s")
	mustKubectl(t, "-n", ns, "create", "role", "pods", "--verb=get,list", "--resource=pods")
	mustKubectl(t, "-n", ns, "create", "rolebinding", "bob", "--role=pods", "--user=bob")
	bob, err := shared.User("bob")
	if err != nil {
		t.Fatal(err)
	}
	a := tracehookAs(t, bob, "explain", "-n", ns, "pods", "-l", "app=web")
	if a.code != 0 {
		t.Fatalf("%+v", a)
	}
	want(t, a.out,
		`Pod web-\S+ exists because of`,
		`  └ ReplicaSet web-\w+ +not read`,
		`    └ Pod +created .*`,
		`not known    the owner ReplicaSet web-\w+: you may not read it: replicasets.apps "web-\w+" is forbidden: User "bob" cannot get .*`,
		`             Events: you may not read it: events is forbidden: User "bob" cannot list .*`,
	)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"deployment/web"}, `tracehook: deployments.apps "web" is forbidden: User "bob" cannot get resource .*\n`},
		{[]string{"pod/nobody"}, `tracehook: pods "nobody" not found\n`},
		{[]string{"pods", "-l", "app=nobody"}, `tracehook: there is no such object\n`},
		{[]string{"gizmo/web"}, `tracehook: the server doesn't have a resource type "gizmo"\n`},
	} {
		if a := tracehookAs(t, bob, append([]string{"explain", "-n", ns}, test.args...)...); a.code != 1 || a.out != "" || !regexp.MustCompile(`^`+test.want+`$`).MatchString(a.errs) {
			t.Errorf("explain %v: %+v, want %s", test.args, a, test.want)
		}
	}
	// What may not be listed is said; the rest is found.
	a = tracehookAs(t, bob, "explain", "-n", ns, "--trace", strings.Repeat("a", 32))
	if a.code != 0 {
		t.Fatalf("%+v", a)
	}
	want(t, a.out, `no object in namespace little carries trace a{32}`, `looked at    1 objects of \d+ kinds.*`, `not known    .*: you may not read it: .* is forbidden.*`, `             deployments.apps: you may not read it: .*`)
}

func TestAsAPluginOfKubectlItIsTheSame(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(shared.tracehook, filepath.Join(dir, "kubectl-tracehook")); err != nil {
		t.Fatal(err)
	}
	kubectl, err := shared.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(story.Within(t, time.Minute), kubectl, "tracehook", "explain", "deploy/old", "--as=system:admin", "--as-group=system:masters", "--request-timeout=20s")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+shared.Kubeconfig, "HOME="+dir, "TZ=UTC", fmt.Sprintf("PATH=%s%c%s", dir, os.PathListSeparator, os.Getenv("PATH")))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want(t, string(out), `Deployment old: its cause is not known`, `  Deployment old  created .*`, `not known    the cause: the object carries none: it was made before tracehook was installed .*`)
}
