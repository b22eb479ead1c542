package gitops

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

const fluxUser = "system:serviceaccount:flux-system:kustomize-controller"

// apply applies manifests as Flux does, and returns what it says of each object.
func apply(t *testing.T, manifests string) []string {
	t.Helper()
	kubeconfig, err := shared.User(fluxUser, "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	program, err := shared.Binary("flux-apply")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(story.Within(t, 2*time.Minute), program, write(t, manifests))
	cmd.Env = []string{"KUBECONFIG=" + kubeconfig}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("flux-apply: %v\n%s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// wantQuiet wants that Flux sees nothing to do, though it looks: by what it says, and by the API server's audit log.
func wantQuiet(t *testing.T, when, manifests string) {
	t.Helper()
	for range 2 {
		begin := time.Now()
		objects := apply(t, manifests)
		for _, object := range objects {
			if !strings.HasSuffix(object, " unchanged") {
				t.Errorf("%s: Flux says %q, want unchanged", when, object)
			}
		}
		// A request's event is written after its answer.
		var writes []string
		story.Eventually(t, time.Minute, 100*time.Millisecond, func(context.Context) error {
			var tries int
			if tries, writes = asked(t, begin); tries < len(objects) {
				return fmt.Errorf("%s: Flux asked %d times what an apply would change, want once for each of %d objects", when, tries, len(objects))
			}
			return nil
		})
		if len(writes) > 0 {
			t.Errorf("%s: Flux made the requests %q, want none that changes anything", when, writes)
		}
	}
}

// asked is how often Flux asked by dry run what a write would change since then, and its other writes.
func asked(t *testing.T, begin time.Time) (tries int, writes []string) {
	t.Helper()
	events, err := shared.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		switch {
		case e.User.Username != fluxUser || e.Stage != "ResponseComplete" || e.RequestReceivedTimestamp.Before(begin):
		case !slices.Contains([]string{"create", "update", "patch", "delete"}, e.Verb):
		case strings.Contains(e.RequestURI, "dryRun=All"):
			tries++
		default:
			writes = append(writes, e.Verb+" "+e.RequestURI)
		}
	}
	return tries, writes
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const (
	firstCommit  = "1111111111111111111111111111111111111111"
	secondCommit = "2222222222222222222222222222222222222222"
)

func shop(commit, image string) string {
	return `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {a: b}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
  annotations: {org.opencontainers.image.source: "https://example.org/shop", org.opencontainers.image.revision: "main@sha1:` + commit + `"}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: main, image: "` + image + `"}]}}
`
}

// A Pod leads by its stamp to the span of the request in which Flux wrote the Deployment, and from there to the commit. Flux sees
// no drift in a stamp, and takes none away.
func TestFluxAndStampsLeaveEachOtherAlone(t *testing.T) {
	commit := shop(firstCommit, "app:1")
	apply(t, commit)
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace", "shop", "--wait=false") })
	first := stampOf(t, "shop", "deployment/web")
	story.Eventually(t, time.Minute, 200*time.Millisecond, func(ctx context.Context) error {
		pod, err := shared.Kubectl(ctx, "-n", "shop", "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].metadata.annotations.tracehook\.dev/traceparent}`)
		if err == nil && pod != first {
			err = fmt.Errorf("the Pod is stamped %q, want the Deployment's %q", pod, first)
		}
		return err
	})
	wantSource(t, first, firstCommit)

	before := stateOf(t, "shop")
	wantQuiet(t, "the same commit", commit)
	if now := stateOf(t, "shop"); now != before {
		t.Errorf("the same commit again changed\n%s\nto\n%s", before, now)
	}

	commit = shop(secondCommit, "app:2")
	apply(t, commit)
	second := stampOf(t, "shop", "deployment/web")
	previous := mustKubectl(t, "-n", "shop", "get", "deployment/web", "-o", `jsonpath={.metadata.annotations.tracehook\.dev/previous-traceparent}`)
	if second == first || previous != first {
		t.Errorf("after the next commit the stamp is %s, and the one before it %s; want another than %s, and that", second, previous, first)
	}
	wantSource(t, second, secondCommit)
	wantQuiet(t, "the next commit", commit)

	// Flux puts back what somebody has changed. That is a request that wants something, and then there is peace.
	mustKubectl(t, "-n", "shop", "set", "image", "deployment/web", "main=other:1")
	others := stampOf(t, "shop", "deployment/web")
	apply(t, commit)
	if image := mustKubectl(t, "-n", "shop", "get", "deployment/web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"); image != "app:2" {
		t.Errorf("the image is %s, want Flux to have put app:2 back", image)
	}
	healed := stampOf(t, "shop", "deployment/web")
	if healed == others || others == second {
		t.Errorf("the stamps are %s, by hand %s, put back %s: want three", second, others, healed)
	}
	wantSource(t, healed, secondCommit)
	wantQuiet(t, "after it was put back", commit)

	// A stamp that is gone is nobody's business.
	mustKubectl(t, "-n", "shop", "annotate", "deployment/web", "tracehook.dev/traceparent-")
	wantQuiet(t, "without a stamp", commit)
}

// stateOf is what must not change of what was applied in a namespace. Of the Deployment it is not the version, and not all
// annotations: its controller writes the status, and the number of the rollout.
func stateOf(t *testing.T, namespace string) string {
	t.Helper()
	return mustKubectl(t, "-n", namespace, "get", "configmap/settings", "-o", "jsonpath={.metadata.resourceVersion} {.metadata.annotations}") + "\n" +
		mustKubectl(t, "-n", namespace, "get", "deployment/web", "-o", `jsonpath={.metadata.generation} {.metadata.annotations.tracehook\.dev/traceparent} {.metadata.annotations.tracehook\.dev/caused-at}`)
}

func stampOf(t *testing.T, namespace, object string) string {
	t.Helper()
	stamp := mustKubectl(t, "-n", namespace, "get", object, "-o", "jsonpath="+stampPath)
	if len(strings.Split(stamp, "-")) != 4 {
		t.Fatalf("%s is stamped %q, want a traceparent", object, stamp)
	}
	return stamp
}

// wantSource wants that a stamp is of a span that tells what Flux applied.
func wantSource(t *testing.T, stamp, commit string) {
	t.Helper()
	parts := strings.Split(stamp, "-")
	client := tracestore.Client{BaseURL: shared.JaegerURL}
	want := map[string]any{
		"tracehook.gitops.kind": "Kustomization", "tracehook.gitops.application": "flux-system/app",
		"vcs.repository.url.full": "https://example.org/shop", "vcs.ref.head.name": "main", "vcs.ref.head.revision": commit,
	}
	if _, err := client.Wait(story.Within(t, time.Minute), parts[1], func(got tracestore.Trace) error {
		for _, span := range got.Spans {
			if span.ID != parts[2] {
				continue
			}
			for key, value := range want {
				if span.Attributes[key] != value {
					return fmt.Errorf("span %s has %s %q, want %q", span.Name, key, span.Attributes[key], value)
				}
			}
			return nil
		}
		return fmt.Errorf("no span %s", parts[2])
	}); err != nil {
		t.Errorf("the cause of the object, trace %s: %v", parts[1], err)
	}
}

// The manifests have no caBundle, so Flux neither removes it nor calls it drift. Whoever writes caBundle leaves alone what others
// write beside it.
func TestWhenFluxInstallsTracehookTheBundleStays(t *testing.T) {
	manifests := mustKubectl(t, "kustomize", filepath.Join(shared.Dir, "install"))
	const object = "mutatingwebhookconfiguration/tracehook"
	bundle := func() string {
		return mustKubectl(t, "get", object, "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}")
	}
	before := bundle()
	if before == "" {
		t.Fatal("there is no bundle to lose")
	}
	apply(t, manifests)
	wantQuiet(t, "tracehook's own manifests", manifests)
	next := strings.Replace(manifests, "timeoutSeconds: 5", "timeoutSeconds: 4", 1)
	apply(t, next)
	if timeout := mustKubectl(t, "get", object, "-o", "jsonpath={.webhooks[0].timeoutSeconds}"); timeout != "4" {
		t.Errorf("timeoutSeconds is %s, want the next commit's 4", timeout)
	}
	if now := bundle(); now != before {
		t.Errorf("Flux changed caBundle from\n%s\nto\n%s", before, now)
	}

	// AKS' enforcer adds to the selector of every webhook.
	mustKubectl(t, "patch", object, "--field-manager=admissionsenforcer", "--type=json", "-p",
		`[{"op":"add","path":"/webhooks/0/namespaceSelector/matchExpressions/-","value":{"key":"control-plane","operator":"DoesNotExist"}},`+
			`{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`)
	const selector = "{.webhooks[0].namespaceSelector.matchExpressions[*].key}"
	story.Eventually(t, time.Minute, 200*time.Millisecond, func(ctx context.Context) error {
		now, err := shared.Kubectl(ctx, "get", object, "-o", "jsonpath={.webhooks[0].clientConfig.caBundle} "+selector)
		if want := before + " kubernetes.io/metadata.name tracehook.dev/exclude control-plane"; err == nil && now != want {
			err = fmt.Errorf("bundle and selector are %s, want %s", now, want)
		}
		return err
	})
	// Flux, however, puts its own back: on AKS one of the two has to be told.
	apply(t, next)
	if keys := mustKubectl(t, "get", object, "-o", "jsonpath="+selector); strings.Contains(keys, "control-plane") {
		t.Errorf("the selector has %s: docs/gitops.md says that Flux takes it back", keys)
	}
	if now := bundle(); now != before {
		t.Errorf("Flux changed caBundle from\n%s\nto\n%s", before, now)
	}
}
