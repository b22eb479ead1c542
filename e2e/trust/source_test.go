package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// records is what was logged.
type records struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *records) count(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.text.String(), part)
}

func runs(t *testing.T, start func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if err := start(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
}

func secretOf(t *testing.T, pair certs.KeyPair) map[string][]byte {
	t.Helper()
	return map[string][]byte{certs.ServingCertificate: pemOf(t, pair), certs.ServingKey: must(pair.KeyPEM())(t)}
}

func with(data map[string][]byte, key string, value []byte) map[string][]byte {
	changed := map[string][]byte{}
	for k, v := range data {
		changed[k] = v
	}
	if changed[key] = value; value == nil {
		delete(changed, key)
	}
	return changed
}

func codes(findings []certs.Finding) string {
	var list []string
	for _, f := range findings {
		list = append(list, string(f.Code)+":"+f.Severity.String())
	}
	return strings.Join(list, " ")
}

func TestTheLastGoodPairIsServedWhateverBecomesOfTheSecret(t *testing.T) {
	ctx := story.Within(t, time.Minute)
	config := user(t, "source", map[string][]rbacv1.PolicyRule{namespace: {right("", "secrets", "list watch", "serving")}})
	log := &records{}
	source := must(certs.NewSecretSource(certs.SourceOptions{
		Clients: must(kubernetes.NewForConfig(config))(t), Namespace: namespace, Secret: "serving", ProofName: proofName,
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}))(t)
	served := func(name string) string {
		c, err := source.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		if err != nil {
			return err.Error()
		}
		return certs.Fingerprint(c.Leaf)
	}
	if got := served("any"); !strings.HasPrefix(got, "there is no certificate yet") {
		t.Errorf("before the start: %s", got)
	}
	runs(t, source.Start)
	eventually(t, "the Secret is missed", func() bool { return codes(source.Findings()) == "secret-missing:error" })

	secrets := shared.admin.CoreV1().Secrets(namespace)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "serving"}}
	ca := newCA(t)
	first, second, next := leafOf(t, ca, "hook.team-a.svc"), leafOf(t, ca, "hook.team-a.svc"), leafOf(t, ca, proofName)
	long := time.Now().Add(-60 * 24 * time.Hour)
	oldCA := must(certs.NewCA(certs.CAOptions{Now: long}))(t)
	old := must(certs.Issue(oldCA, certs.LeafOptions{Now: long, Names: []string{"hook.team-a.svc"}}))(t)
	good := secretOf(t, first)
	store := func(data map[string][]byte) {
		t.Helper()
		secret.Data, secret.ResourceVersion = data, ""
		if _, err := secrets.Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
			must(secrets.Create(ctx, secret, metav1.CreateOptions{}))(t)
		}
	}

	store(secretOf(t, old)) // nothing better: a caller sees at least what is wrong
	eventually(t, "an expired pair is served for want of another", func() bool {
		return served("any") == certs.Fingerprint(old.Certificate) && codes(source.Findings()) == "expired:error"
	})
	store(good)
	eventually(t, "a good pair is served", func() bool {
		return served("any") == certs.Fingerprint(first.Certificate) && len(source.Findings()) == 0
	})

	for what, data := range map[string]map[string][]byte{
		"half a pair":     with(good, certs.ServingKey, nil),
		"the other half":  with(good, certs.ServingCertificate, nil),
		"garbage":         with(good, certs.ServingCertificate, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
		"another's key":   with(good, certs.ServingKey, secretOf(t, second)[certs.ServingKey]),
		"an expired pair": secretOf(t, old),
		"nothing":         {},
	} {
		before := log.count("code=secret-unusable")
		store(data)
		eventually(t, what+" is found", func() bool { return codes(source.Findings()) == "secret-unusable:warning" })
		if served("any") != certs.Fingerprint(first.Certificate) {
			t.Errorf("%s: the last good pair is not served", what)
		}
		eventually(t, what+" is logged", func() bool { return log.count("code=secret-unusable") == before+1 })
		store(good)
		eventually(t, what+" is repaired", func() bool { return len(source.Findings()) == 0 })
	}

	if err := secrets.Delete(ctx, secret.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deletion is found", func() bool { return codes(source.Findings()) == "secret-missing:warning" })
	if served("any") != certs.Fingerprint(first.Certificate) {
		t.Error("deleted: the last good pair is not served")
	}

	pair := secretOf(t, next)
	both := with(with(secretOf(t, second), certs.ServingNextCertificate, pair[certs.ServingCertificate]), certs.ServingNextKey, pair[certs.ServingKey])
	store(both)
	eventually(t, "the next leaf is served under the proof's name alone", func() bool {
		return served(proofName) == certs.Fingerprint(next.Certificate) && served("hook.team-a.svc") == certs.Fingerprint(second.Certificate)
	})
	store(with(both, certs.ServingNextKey, good[certs.ServingKey]))
	eventually(t, "a next pair that is none is found", func() bool {
		return codes(source.Findings()) == "secret-unusable:warning" && served(proofName) == certs.Fingerprint(second.Certificate)
	})
}

func TestWhoMayNotReadTheSecretSaysSo(t *testing.T) {
	config := user(t, "source-poor", nil)
	source := must(certs.NewSecretSource(certs.SourceOptions{Clients: must(kubernetes.NewForConfig(config))(t), Namespace: namespace, Secret: "serving"}))(t)
	runs(t, source.Start)
	eventually(t, "forbidden", func() bool {
		findings := source.Findings()
		return len(findings) == 1 && findings[0].Code == certs.SecretUnknown && strings.Contains(findings[0].Message, "forbidden")
	})
}

func TestReadyMeansThatTheLiveBundleTrustsWhatIsServed(t *testing.T) {
	ctx := story.Within(t, time.Minute)
	name := certs.ServerName("team-a", "hook")
	ca, other := newCA(t), newCA(t)
	config := user(t, "readiness", map[string][]rbacv1.PolicyRule{"": {
		right(mutating.Group, mutating.Resource, "list watch", "ready"), right(validating.Group, validating.Resource, "list watch", "ready")}})
	var mu sync.Mutex
	serve := fixed(leafOf(t, ca, name))
	log := &records{}
	readiness := must(certs.NewReadiness(certs.ReadinessOptions{
		Clients:        must(kubernetes.NewForConfig(config))(t),
		Configurations: []certs.Ref{{Kind: certs.KindMutating, Name: "ready"}, {Kind: certs.KindValidating, Name: "ready", Webhook: "a.example.org"}},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			mu.Lock()
			defer mu.Unlock()
			return serve(hello)
		},
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}))(t)
	runs(t, readiness.Start)
	want := func(when, code, unready string) {
		t.Helper()
		eventually(t, when, func() bool {
			err := readiness.Ready(nil)
			if got := codes(readiness.Findings()); !strings.Contains(" "+got, " "+code) {
				return false
			}
			if unready == "" {
				return err == nil
			}
			return err != nil && strings.Contains(err.Error(), unready)
		})
	}
	publisher := must(certs.NewPublisher(certs.PublisherOptions{Dynamic: shared.any}))(t)
	publish := func(change certs.BundleChange) {
		t.Helper()
		for _, kind := range []string{certs.KindMutating, certs.KindValidating} {
			must(publisher.Publish(ctx, certs.Ref{Kind: kind, Name: "ready"}, change, time.Now()))(t)
		}
	}

	want("configurations that are not there leave it ready", "configuration-missing:warning configuration-missing:warning", "")
	apply(t, mutating, webhooks(t, certs.KindMutating, "ready", "a.example.org"))
	want("an empty bundle and a private CA", "configuration-missing:warning", "is not trusted")
	apply(t, validating, webhooks(t, certs.KindValidating, "ready", "a.example.org", "elsewhere.example.org"))
	publish(adding(ca))
	want("the bundle that signs it", "", "")
	if got := codes(readiness.Findings()); got != "" {
		t.Errorf("healthy, but found %s", got)
	}
	publish(certs.BundleChange{Add: adding(other).Add, Only: true})
	want("another CA's bundle", "untrusted:error untrusted:error", `MutatingWebhookConfiguration/ready/a.example.org: `)
	publish(adding(ca))
	want("both CAs", "", "")
	patched := get(t, mutating, "ready")
	hook := patched.Object["webhooks"].([]any)[0].(map[string]any)
	if err := unstructured.SetNestedField(hook, "bm90IFBFTQ==", "clientConfig", "caBundle"); err != nil {
		t.Fatal(err)
	}
	must(shared.any.Resource(mutating).Update(ctx, patched, metav1.UpdateOptions{}))(t)
	want("a bundle that is no PEM", "bundle-not-pem:error", "bundle-not-pem")
	publish(adding(ca))
	want("repaired", "", "")

	mu.Lock()
	serve = fixed(leafOf(t, ca, "elsewhere.team-a.svc"))
	mu.Unlock()
	want("a leaf with another name", "wrong-san:error", "wrong-san")
	mu.Lock()
	serve = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, fmt.Errorf("none yet") }
	mu.Unlock()
	want("no leaf", "no-certificate:error", "none yet")
	if log.count("bundle-not-pem") != 1 {
		t.Errorf("bundle-not-pem was logged %d times", log.count("bundle-not-pem"))
	}
}

func TestWhoMayNotReadTheConfigurationIsReadyAndSaysSo(t *testing.T) {
	ca := newCA(t)
	for name, config := range map[string]*rest.Config{"forbidden": user(t, "readiness-poor", nil), "not been read yet": {Host: "https://127.0.0.1:1"}} {
		readiness := must(certs.NewReadiness(certs.ReadinessOptions{
			Clients:        must(kubernetes.NewForConfig(config))(t),
			Configurations: []certs.Ref{{Kind: certs.KindMutating, Name: "ready"}},
			GetCertificate: fixed(leafOf(t, ca, "hook.team-a.svc")),
		}))(t)
		runs(t, readiness.Start)
		eventually(t, name, func() bool {
			findings := readiness.Findings()
			return readiness.Ready(nil) == nil && codes(findings) == "configuration-unknown:warning" && strings.Contains(findings[0].Message, name)
		})
	}
}

func TestEveryEndpointOfAServiceIsAskedWhatItServes(t *testing.T) {
	ctx := story.Within(t, time.Minute)
	ca := newCA(t)
	leaf, other := leafOf(t, ca, "hook.team-c.svc"), leafOf(t, ca, "hook.team-c.svc")
	config := user(t, "endpoints", nil)
	clients := must(kubernetes.NewForConfig(config))(t)
	must(shared.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team-c"}}, metav1.CreateOptions{}))(t)
	config = user(t, "endpoints-rich", map[string][]rbacv1.PolicyRule{"team-c": {right("", "services", "get", "hook", "named"), right("discovery.k8s.io", "endpointslices", "list")}})
	check := func(clients kubernetes.Interface, service string) (certs.Certainty, error) {
		return certs.ServiceEndpoints{Clients: clients, Namespace: "team-c", Service: service, Port: shared.port}.Serve(ctx, leaf.Certificate)
	}
	if _, err := check(clients, "named"); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("without rights: %v", err)
	}
	clients = must(kubernetes.NewForConfig(config))(t)
	if _, err := check(clients, "named"); err == nil || !strings.Contains(err.Error(), "Service team-c/named does not exist") {
		t.Errorf("without a Service: %v", err)
	}
	must(shared.admin.CoreV1().Services("team-c").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "named"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}, metav1.CreateOptions{}))(t)
	serving(fixed(leaf))
	if certainty, err := check(clients, "named"); err != nil || certainty != certs.Sampled {
		t.Errorf("%s, %v", certainty, err)
	}
	serving(fixed(other))
	if _, err := check(clients, "named"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("localhost:%d serves certificate", shared.port)) {
		t.Errorf("with another leaf: %v", err)
	}
}
