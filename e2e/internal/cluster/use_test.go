package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

func TestOneKubectlCreateIsOneTraceThroughAPIServerAndEtcd(t *testing.T) {
	c := sharedCluster(t)
	ctx := within(t, 30*time.Second)
	name := unique("traced")
	if _, err := c.Kubectl(ctx, "create", "configmap", name); err != nil {
		t.Fatal(err)
	}
	event, err := c.WaitAuditEvent(ctx, func(e AuditEvent) bool {
		return e.Verb == "create" && e.ObjectRef.Resource == "configmaps" && e.ObjectRef.Name == name
	})
	if err != nil {
		t.Fatal(err)
	}
	if event.ResponseStatus.Code != 201 || event.Stage != "ResponseComplete" ||
		event.User.Username != "admin" || !slices.Contains(event.User.Groups, "system:masters") {
		t.Errorf("audit event is %+v, want a complete create by admin of system:masters", event)
	}

	jaeger := tracestore.Client{BaseURL: c.JaegerURL}
	trace, err := jaeger.Wait(ctx, traceOf(ctx, t, c, event), func(trace tracestore.Trace) error {
		return wantChain(trace,
			span{"apiserver", "server", "POST /api/v1/namespaces/{:namespace}/configmaps"},
			span{"apiserver", "internal", "Create"},
			span{"apiserver", "internal", "Create etcd3"},
			span{"apiserver", "client", "etcdserverpb.KV/Txn"},
			span{"etcd", "server", "etcdserverpb.KV/Txn"})
	})
	if err != nil {
		t.Errorf("%v\narrived:\n%s", err, lines(trace))
	}
}

func TestOnlyPrivilegedUsersMakeTheirSpanTheParent(t *testing.T) {
	c := sharedCluster(t)
	ctx := within(t, time.Minute)
	if _, err := c.Kubectl(ctx, "create", "clusterrolebinding", unique("everybody-edits"), "--clusterrole=edit", "--group=system:authenticated"); err != nil {
		t.Fatal(err)
	}
	const parent = "00f067aa0ba902b7"
	for _, test := range []struct {
		user, group string
		parented    bool
	}{
		{"monitor", "system:monitoring", true},
		{"developer", "developers", false},
	} {
		t.Run(test.group, func(t *testing.T) {
			user := unique(test.user)
			kubeconfig, err := c.User(user, test.group)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(kubeconfig); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("kubeconfig: %v %v, want mode 0600: it holds a key", info.Mode(), err)
			}
			config, err := restConfig(kubeconfig)
			if err != nil {
				t.Fatal(err)
			}
			traceID := fmt.Sprintf("%032x", time.Now().UnixNano())
			config.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(req *http.Request) (*http.Response, error) {
					req.Header.Set("traceparent", "00-"+traceID+"-"+parent+"-01")
					return next.RoundTrip(req)
				})
			})
			createConfigMap(ctx, t, config, user)
			event, err := c.WaitAuditEvent(ctx, func(e AuditEvent) bool {
				return e.User.Username == user && e.Verb == "create" && e.ObjectRef.Name == user
			})
			if err != nil {
				t.Fatal(err)
			}

			trace, err := (&tracestore.Client{BaseURL: c.JaegerURL}).Wait(ctx, traceOf(ctx, t, c, event), func(trace tracestore.Trace) error {
				for _, s := range trace.Spans {
					if s.Kind != tracestore.KindServer || s.Service != "apiserver" || s.Attributes["audit-id"] != event.AuditID {
						continue
					}
					linked := slices.Contains(s.Links, tracestore.Link{TraceID: traceID, SpanID: parent})
					// The API server's authentication filter is between the
					// incoming context and this span.
					within := trace.ID == traceID && slices.ContainsFunc(trace.Spans, func(s tracestore.Span) bool { return s.ParentID == parent })
					if within != test.parented || linked == test.parented {
						return fmt.Errorf("parent is the user's: %t, link to the user's: %t", within, linked)
					}
					return nil
				}
				return fmt.Errorf("no span of request %s", event.AuditID)
			})
			if err != nil {
				t.Errorf("%v\narrived:\n%s", err, lines(trace))
			}
		})
	}
}

func TestADeploymentMakesAReplicaSetAndPods(t *testing.T) {
	c := sharedCluster(t)
	ctx := within(t, 30*time.Second)
	name := unique("web")
	if _, err := c.Kubectl(ctx, "create", "deployment", name, "--image=nginx", "--replicas=2"); err != nil {
		t.Fatal(err)
	}
	clients := clientsFor(t, c.RESTConfig)
	for {
		pods, err := clients.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			t.Fatal(err)
		}
		scheduled := 0 // tried, that is: there is no node
		for _, pod := range pods.Items {
			if owner := metav1.GetControllerOf(&pod); owner == nil || owner.Kind != "ReplicaSet" {
				t.Errorf("pod %s is controlled by %v, want a ReplicaSet", pod.Name, owner)
			}
			if len(pod.Status.Conditions) > 0 && pod.Status.Conditions[0].Reason == corev1.PodReasonUnschedulable {
				scheduled++
			}
		}
		if len(pods.Items) == 2 && scheduled == 2 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d pods, %d of them seen by the scheduler, want 2 and 2", len(pods.Items), scheduled)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestTheInstalledWebhookIsCalledAndCounted(t *testing.T) {
	c := sharedCluster(t)
	ctx := within(t, time.Minute)
	good, noSAN := newWebhookCA(t), newWebhookCA(t)
	webhook, err := c.StartWebhook(ctx, WebhookOptions{CertDir: good.serving(t, true)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.InstallWebhook(ctx, webhook.Port, good.pem); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = c.Kubectl(context.Background(), "delete", "mutatingwebhookconfiguration", webhookConfiguration)
	})

	t.Run("with its certificate trusted", func(t *testing.T) {
		wantCalls(ctx, t, c.first, Counters{RequestTotal: 3}, true)
	})
	t.Run("with a bundle that does not belong to its certificate", func(t *testing.T) {
		if err := c.SetCABundle(ctx, noSAN.pem); err != nil {
			t.Fatal(err)
		}
		wantCalls(ctx, t, c.first, Counters{RequestTotal: 3, FailOpen: 3}, false)
	})
	t.Run("with the right bundle again", func(t *testing.T) {
		if err := c.SetCABundle(ctx, good.pem); err != nil {
			t.Fatal(err)
		}
		wantCalls(ctx, t, c.first, Counters{RequestTotal: 3}, true)
	})
	t.Run("from the moment on in which SetCABundle returns", func(t *testing.T) {
		for round := range 20 {
			bundle, trusted := noSAN.pem, false
			if round%2 == 1 {
				bundle, trusted = good.pem, true
			}
			if err := c.SetCABundle(ctx, bundle); err != nil {
				t.Fatal(err)
			}
			created := createConfigMap(ctx, t, c.RESTConfig, unique("at-once"))
			if _, stamped := created.Annotations["tracehook.dev/traceparent"]; stamped != trusted {
				t.Fatalf("round %d: object stamped: %t, webhook trusted: %t", round, stamped, trusted)
			}
		}
	})
	t.Run("through a second API server on the same etcd", func(t *testing.T) {
		second, err := c.StartAPIServer(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, bundle := range [][]byte{noSAN.pem, good.pem} {
			if err := c.SetCABundle(ctx, bundle); err != nil {
				t.Fatal(err)
			}
			want := Counters{RequestTotal: 3}
			trusted := string(bundle) == string(good.pem)
			if !trusted {
				want.FailOpen = 3
			}
			wantCalls(ctx, t, c.first, want, trusted)
			wantCalls(ctx, t, second, want, trusted)
		}

		// One that does not get on is waited for, by name.
		if err := second.process.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if err := c.SetCABundle(short, good.pem); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), second.Name) {
			t.Errorf("with an API server that stands still: %v, want the deadline and %s", err, second.Name)
		}
		if err := second.process.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
		if err := c.SetCABundle(ctx, good.pem); err != nil {
			t.Errorf("with the second API server stopped: %v", err)
		}
	})
	t.Run("on another port, with a certificate that has only a common name", func(t *testing.T) {
		other, err := c.StartWebhook(ctx, WebhookOptions{CertDir: noSAN.serving(t, false), Name: "tracehook-no-san"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.InstallWebhook(ctx, other.Port, noSAN.pem); err != nil {
			t.Fatal(err)
		}
		name := wantCalls(ctx, t, c.first, Counters{RequestTotal: 3, FailOpen: 3, MissingSAN: 3}, false)
		event, err := c.WaitAuditEvent(ctx, func(e AuditEvent) bool { return e.ObjectRef.Name == name })
		if err != nil {
			t.Fatal(err)
		}
		const blame = "missing-san.invalid-cert.kubernetes.io/tracehook.tracehook-system.svc"
		if _, blamed := event.Annotations[blame]; !blamed {
			t.Errorf("audit annotations are %q, want %s", event.Annotations, blame)
		}
		if code, err := other.Stop(); code != 0 || err != nil {
			t.Errorf("Stop: exit code %d, %v, want 0", code, err)
		}
	})
	t.Run("and stops when it is told to", func(t *testing.T) {
		if code, err := webhook.Stop(); code != 0 || err != nil {
			t.Errorf("Stop: exit code %d, %v, want 0", code, err)
		}
		log, err := os.ReadFile(webhook.LogFile)
		if err != nil || !strings.Contains(string(log), "stopped") {
			t.Errorf("log says %q (%v), want it to end with stopped", log, err)
		}
	})
	t.Run("and leaves no barrier behind", func(t *testing.T) {
		configurations, err := c.Kubectl(ctx, "get", "mutatingwebhookconfigurations", "-o", "name")
		if err != nil {
			t.Fatal(err)
		}
		services, err := c.Kubectl(ctx, "get", "services", "-A", "-o", "name")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(configurations+services, "barrier") {
			t.Errorf("left behind: %s", configurations+services)
		}
	})
}

// wantCalls creates three ConfigMaps through an API server and wants its counters to
// move by exactly want, and the objects to be stamped or not. It returns the name of
// one of them.
func wantCalls(ctx context.Context, t *testing.T, s *APIServer, want Counters, stamped bool) (name string) {
	t.Helper()
	before, err := s.Counters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		name = unique("called")
		created := createConfigMap(ctx, t, s.RESTConfig, name)
		if _, ok := created.Annotations["tracehook.dev/traceparent"]; ok != stamped {
			t.Errorf("annotations are %q, want them stamped: %t", created.Annotations, stamped)
		}
	}
	after, err := s.Counters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Sub(before); got != want {
		t.Errorf("%s counted %+v, want %+v", s.Name, got, want)
	}
	return name
}

// webhookCA is a CA for the webhook's serving certificates.
type webhookCA struct{ *authority }

func newWebhookCA(t *testing.T) webhookCA {
	t.Helper()
	ca, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return webhookCA{ca}
}

// serving issues a certificate for the webhook's Service, its name either where it
// belongs or only where it used to be, and returns its directory.
func (ca webhookCA) serving(t *testing.T, withSAN bool) (dir string) {
	t.Helper()
	template := serverTemplate("tracehook.tracehook-system.svc")
	if !withSAN {
		template.DNSNames = nil
	}
	issued, err := ca.issue(template, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for name, data := range map[string][]byte{"tls.crt": issued.cert, "tls.key": issued.key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// unique makes a name that the shared cluster has not seen, also when tests run twice.
func unique(name string) string { return fmt.Sprintf("%s-%d", name, time.Now().UnixNano()) }

func createConfigMap(ctx context.Context, t *testing.T, config *rest.Config, name string) *corev1.ConfigMap {
	t.Helper()
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
	created, err := clientsFor(t, config).CoreV1().ConfigMaps("default").Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created
}

func clientsFor(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// traceOf finds the trace of an audited request by the audit id on its span.
func traceOf(ctx context.Context, t *testing.T, c *Cluster, event AuditEvent) (traceID string) {
	t.Helper()
	jaeger := tracestore.Client{BaseURL: c.JaegerURL}
	for {
		now := time.Now()
		found, err := jaeger.Find(ctx, tracestore.Search{
			Service: "apiserver", Attributes: map[string]string{"audit-id": event.AuditID}, Start: now.Add(-time.Hour), End: now,
		})
		if err != nil {
			t.Fatalf("find trace of request %s: %v", event.AuditID, err)
		}
		if len(found) > 0 {
			return found[0]
		}
		time.Sleep(100 * time.Millisecond)
	}
}

type span struct{ service, kind, name string }

// wantChain wants a span with a descendant with a descendant …, as given.
func wantChain(trace tracestore.Trace, chain ...span) error {
	byID := map[string]tracestore.Span{}
	for _, s := range trace.Spans {
		byID[s.ID] = s
	}
	for _, s := range trace.Spans {
		missing := chain
		for at, ok := s, true; ok && len(missing) > 0; at, ok = byID[at.ParentID] {
			if last := missing[len(missing)-1]; last == (span{at.Service, at.Kind, at.Name}) {
				missing = missing[:len(missing)-1]
			} else if at.ID == s.ID {
				break // not the innermost one
			}
		}
		if len(missing) == 0 {
			return nil
		}
	}
	return fmt.Errorf("no chain %v", chain)
}

func lines(trace tracestore.Trace) string {
	var b strings.Builder
	for _, s := range trace.Spans {
		fmt.Fprintf(&b, "%s < %s  %s %s %s\n", s.ID, s.ParentID, s.Service, s.Kind, s.Name)
	}
	return b.String()
}
