package check

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/certificates"
)

func TestBeforeTheInstallItSaysWhetherTheClusterAndTheInstallerWillDo(t *testing.T) {
	admin := check(t, shared.Kubeconfig)
	admin.want(t, 0, map[string]string{"version": "ok", "provider": "ok", "install-rights": "ok", "installed": "skip", "stamped": "", "certificates": ""})
	check(t, shared.Kubeconfig, "--installed").want(t, 1, map[string]string{"installed": "fail"})

	// Who may look, and not install.
	mustKubectl(t, "create", "clusterrolebinding", "viewer", "--clusterrole=view", "--user=viewer")
	t.Cleanup(func() { mustKubectl(t, "delete", "clusterrolebinding/viewer") })
	viewer := user(t, "viewer")
	eventually(t, 30*time.Second, func(ctx context.Context) error { // an API server acts on RBAC a moment later
		if _, err := shared.Kubectl(ctx, "--kubeconfig", viewer, "get", "services"); err != nil {
			return err
		}
		return nil
	})
	a := check(t, viewer)
	a.want(t, 1, map[string]string{"version": "ok", "install-rights": "fail"})
	if line := a.lineOf("install-rights"); !strings.Contains(line, "may not") || !strings.Contains(line, "create") {
		t.Errorf("it says %s", line)
	}

	// Who may make roles, and has not what they give: Kubernetes would refuse it.
	mustKubectl(t, "create", "clusterrole", "installer", "--verb=get,create,patch", "--resource=namespaces,serviceaccounts,services,deployments.apps,poddisruptionbudgets.policy,networkpolicies.networking.k8s.io,roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io,clusterroles.rbac.authorization.k8s.io,clusterrolebindings.rbac.authorization.k8s.io,mutatingwebhookconfigurations.admissionregistration.k8s.io,validatingadmissionpolicies.admissionregistration.k8s.io,validatingadmissionpolicybindings.admissionregistration.k8s.io")
	mustKubectl(t, "create", "clusterrolebinding", "installer", "--clusterrole=installer", "--user=installer")
	t.Cleanup(func() { mustKubectl(t, "delete", "clusterrole/installer", "clusterrolebinding/installer") })
	installer := user(t, "installer")
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		a := check(t, installer)
		if line := a.lineOf("install-rights"); a.code != 1 || !strings.Contains(line, "may create roles, but not grant") {
			return fmt.Errorf("exit code %d, %s", a.code, line)
		}
		return nil
	})
	// The same by impersonation.
	check(t, shared.Kubeconfig, "--as=viewer").want(t, 1, map[string]string{"install-rights": "fail"})
}

func TestItCannotRunWithoutAnAPIServerAndSaysSo(t *testing.T) {
	a := check(t, shared.Kubeconfig, "--server=https://127.0.0.1:1")
	if a.code != 2 || a.out != "" || !strings.Contains(a.errs, "127.0.0.1:1") {
		t.Errorf("exit code %d:\n%s%s", a.code, a.out, a.errs)
	}
	// It waits for one, too.
	if a := check(t, shared.Kubeconfig, "--server=https://127.0.0.1:1", "--wait=3s"); a.code != 2 {
		t.Errorf("exit code %d:\n%s%s", a.code, a.out, a.errs)
	}
}

// all is green: what everybody wants to see.
var green = map[string]string{
	"version": "ok", "provider": "ok", "installed": "ok", "webhooks": "ok", "replicas": "ok", "certificates": "ok",
	"network-policy": "ok", "stamped": "ok", "continued": "ok", "spans": "ok", "install-rights": "",
}

// By files, for whoever may do everything, and for the ServiceAccount of deploy/components/check. Then one thing after the other breaks.
func TestWhatWorksIsGreenAndEachFaultIsRed(t *testing.T) {
	mustKubectl(t, "create", "namespace", "asks")
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace/asks", "--wait=false") })
	i := install(t, "files", "env-injection")
	mustKubectl(t, "label", "namespace/asks", "tracehook.dev/inject-env=true")
	for _, made := range []string{"serviceaccount/default", "configmap/kube-root-ca.crt"} { // by controllers, some time
		mustKubectl(t, "-n", "asks", "wait", "--for=create", made, "--timeout=30s")
	}
	bundles(t, i.bundle)
	for _, p := range i.pods {
		i.start(t, p)
		p.ready(t)
	}
	inForce(t)
	account := checker(t)
	before := objects(t)

	t.Run("green", func(t *testing.T) {
		a := check(t, account, "--wait=1m")
		a.want(t, 0, green)
		if line := a.lineOf("stamped"); !strings.Contains(line, "trace-context.tracehook.dev") || !strings.Contains(line, "environment.tracehook.dev (a Pod in namespace asks)") {
			t.Errorf("it says %s", line)
		}
		if line := a.lineOf("continued"); !strings.Contains(line, "does not continue your traces") {
			t.Errorf("of a ServiceAccount it says %s", line)
		}
		if line := a.lineOf("api-server-tracing"); !strings.HasPrefix(line, "ok ") || !strings.Contains(line, "it traces") {
			t.Errorf("it says %s", line)
		}
		if strings.Contains(a.out, "\x1b") {
			t.Error("there is colour, and no terminal")
		}
		admin := check(t, shared.Kubeconfig, "--store=jaeger="+shared.JaegerURL)
		admin.want(t, 0, green)
		if line := admin.lineOf("continued"); !strings.Contains(line, "continues your traces") {
			t.Errorf("of a member of system:masters it says %s", line)
		}
		if line := admin.lineOf("spans"); !strings.Contains(line, "trace store") {
			t.Errorf("it says %s", line)
		}
		if after := objects(t); after != before {
			t.Errorf("there were\n%s\nand now\n%s", before, after)
		}
	})
	t.Run("as a document", func(t *testing.T) {
		var report struct {
			APIVersion, Kind string
			Installed        bool
			Results          []struct{ Code, Status, Message, Remedy string }
		}
		a := check(t, account, "-o", "json")
		if err := json.Unmarshal([]byte(a.out), &report); err != nil {
			t.Fatalf("%v:\n%s", err, a.out)
		}
		if report.APIVersion != "tracehook.dev/v1alpha1" || report.Kind != "CheckReport" || !report.Installed || len(report.Results) < 10 || a.code != 0 {
			t.Errorf("exit code %d:\n%s", a.code, a.out)
		}
	})
	t.Run("the ServiceAccount can create nothing", func(t *testing.T) {
		for _, args := range [][]string{{"create", "deployment", "real", "--image=app:1"}, {"run", "real", "--image=app:1"}} {
			_, err := shared.Kubectl(t.Context(), append([]string{"--kubeconfig", account, "-n", "asks"}, args...)...)
			if err == nil || !strings.Contains(err.Error(), "dry run only") {
				t.Errorf("kubectl %s: %v", strings.Join(args, " "), err)
			}
		}
	})
	t.Run("few rights", func(t *testing.T) {
		a := check(t, user(t, "nobody"))
		a.want(t, 1, map[string]string{"version": "ok", "provider": "skip", "api-server-tracing": "skip", "installed": "skip", "install-rights": "fail"})
		check(t, user(t, "nobody"), "--installed").want(t, 1, map[string]string{"installed": "fail"})
		// One right, and the rest is skipped.
		mustKubectl(t, "create", "clusterrole", "little", "--verb=list", "--resource=mutatingwebhookconfigurations.admissionregistration.k8s.io")
		mustKubectl(t, "create", "clusterrolebinding", "little", "--clusterrole=little", "--user=little")
		t.Cleanup(func() { mustKubectl(t, "delete", "clusterrole/little", "clusterrolebinding/little") })
		little := user(t, "little")
		eventually(t, 30*time.Second, func(context.Context) error {
			if a := check(t, little); a.code != 0 || a.statusOf("webhooks") != "ok" || a.statusOf("replicas") != "skip" || a.statusOf("stamped") != "skip" || a.statusOf("certificates") != "skip" {
				return fmt.Errorf("exit code %d:\n%s", a.code, a.out)
			}
			return nil
		})
	})

	// A fault, what shows it, and how it goes away again.
	fault := func(name string, red map[string]string, breakIt, mendIt func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				mendIt(t)
				inForce(t)
			})
			breakIt(t)
			inForce(t)
			a := check(t, account)
			a.want(t, 1, red)
			if !strings.Contains(a.out, "  do: ") {
				t.Errorf("it does not say what to do:\n%s", a.out)
			}
		})
	}
	patch := func(operations string) func(*testing.T) {
		return func(t *testing.T) {
			mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p", operations)
		}
	}
	fault("a selector that takes nothing", map[string]string{"stamped": "fail", "certificates": "ok"},
		patch(`[{"op":"add","path":"/webhooks/0/namespaceSelector/matchLabels","value":{"nobody":"has"}}]`),
		patch(`[{"op":"remove","path":"/webhooks/0/namespaceSelector/matchLabels"}]`))
	fault("a condition that is never true", map[string]string{"stamped": "fail", "certificates": "ok"},
		patch(`[{"op":"add","path":"/webhooks/0/matchConditions/-","value":{"name":"never","expression":"false"}}]`),
		patch(`[{"op":"remove","path":"/webhooks/0/matchConditions/4"}]`))
	fault("a caBundle of somebody else", map[string]string{"certificates": "fail", "stamped": "fail"},
		func(t *testing.T) {
			other, err := certificates.Issue(t.Context(), shared.tracehook, certificates.Service, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			bundles(t, other)
			for _, p := range i.pods { // the API server keeps connections
				p.again(t, i)
			}
		},
		func(t *testing.T) { bundles(t, i.bundle) })
	fault("no caBundle", map[string]string{"webhooks": "fail"},
		patch(`[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`),
		func(t *testing.T) { bundles(t, i.bundle) })
	fault("a replica that is not Ready", map[string]string{"replicas": "fail", "stamped": "ok"},
		func(t *testing.T) { i.pods[1].status(t, "False") },
		func(t *testing.T) { i.pods[1].status(t, "True") })
	fault("a replica with another certificate", map[string]string{"certificates": "fail"},
		func(t *testing.T) {
			right := i.certDir
			i.certDir = t.TempDir()
			if _, err := certificates.Issue(t.Context(), shared.tracehook, certificates.Service, i.certDir); err != nil {
				t.Fatal(err)
			}
			i.pods[1].again(t, i)
			i.certDir = right
		},
		func(t *testing.T) { i.pods[1].again(t, i) })
	fault("a policy that lets nobody in", map[string]string{"network-policy": "fail", "stamped": "ok"},
		func(t *testing.T) {
			mustKubectl(t, "-n", namespace, "patch", "networkpolicy/tracehook", "--type=json", "-p",
				`[{"op":"add","path":"/spec/ingress/0/from","value":[{"podSelector":{}}]}]`)
		},
		func(t *testing.T) {
			mustKubectl(t, "-n", namespace, "patch", "networkpolicy/tracehook", "--type=json", "-p", `[{"op":"remove","path":"/spec/ingress/0/from"}]`)
		})
	fault("a Collector that is down", map[string]string{"spans": "fail", "stamped": "ok"},
		func(t *testing.T) {
			for _, p := range i.pods {
				p.again(t, i, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT=500")
			}
		},
		func(t *testing.T) {
			for _, p := range i.pods {
				p.again(t, i)
			}
		})
	fault("no webhook", map[string]string{"webhooks": "fail", "installed": "ok"},
		func(t *testing.T) { mustKubectl(t, "delete", "mutatingwebhookconfiguration/tracehook") },
		func(*testing.T) {})
}

// again starts a Pod's process anew, as in a container that has ended.
func (p *pod) again(t *testing.T, i *installation, env ...string) {
	t.Helper()
	if _, err := p.program.Stop(); err != nil {
		t.Fatal(err)
	}
	i.start(t, p, env...)
	eventually(t, 30*time.Second, func(ctx context.Context) error { return p.probe(ctx, "/healthz") })
}

// inForce waits until API servers act on what is stored. It works in a cleanup, too.
func inForce(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := shared.WaitInForce(ctx); err != nil {
		t.Fatal(err)
	}
}

// bundles writes the caBundle of every webhook.
func bundles(t *testing.T, bundle []byte) {
	t.Helper()
	var operations []string
	for n := range len(strings.Fields(mustKubectl(t, "get", "mutatingwebhookconfiguration/tracehook", "-o", "jsonpath={.webhooks[*].name}"))) {
		operations = append(operations, fmt.Sprintf(`{"op":"add","path":"/webhooks/%d/clientConfig/caBundle","value":%q}`, n, base64.StdEncoding.EncodeToString(bundle)))
	}
	mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=json", "-p", "["+strings.Join(operations, ",")+"]")
}

// objects are all that a dry run could have left.
func objects(t *testing.T) string {
	t.Helper()
	return mustKubectl(t, "get", "deployments,replicasets,daemonsets,jobs,pods,configmaps", "-A", "-o", "name")
}

// Certificates of its own making: red until they are published, green then, and only what changes is printed.
func TestItWaitsForCertificatesOfItsOwnMaking(t *testing.T) {
	for _, way := range []string{"managed", "split"} {
		t.Run(way, func(t *testing.T) {
			i := install(t, way)
			i.flags = []string{"--stamp=always"}
			flags := []string{"--api-server=" + shared.First().URL, fmt.Sprintf("--service=tracehook:%d", i.port), "--rotation-soak=1s"}
			if way == "managed" {
				i.flags = append(i.flags, flags...)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := command(ctx, checker(t), "--wait=90s", "--installed")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var lines []string
			scanner := bufio.NewScanner(out)
			for scanner.Scan() { // the first round
				lines = append(lines, scanner.Text())
				if strings.HasPrefix(scanner.Text(), "fail  authority") {
					break
				}
			}
			if way == "split" {
				startAuthority(t, flags)
			}
			for _, p := range i.pods {
				i.start(t, p)
			}
			// No replica is Ready before the proof, and no proof arrives where nobody leads to: a Service with
			// publishNotReadyAddresses does.
			for _, p := range i.pods {
				p.lead()
			}
			for _, p := range i.pods {
				p.ready(t)
			}
			for scanner.Scan() {
				lines = append(lines, scanner.Text())
			}
			text := strings.Join(lines, "\n")
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v:\n%s", err, text)
			}
			for _, code := range []string{"webhooks", "replicas", "certificates", "authority", "stamped"} {
				first, last := strings.Index(text, "fail  "+code+" "), strings.LastIndex(text, "ok    "+code+" ")
				if first < 0 || last < first {
					t.Errorf("%s was not red and then green:\n%s", code, text)
				}
			}
			if n := strings.Count(text, "ok    version "); n != 1 {
				t.Errorf("what does not change is printed %d times:\n%s", n, text)
			}
			check(t, checker(t), "--installed").want(t, 0, green)
		})
	}
}
