// Package operator is somebody's operator: a manager of controller-runtime with leader election and
// caches, to which the runnables of webhook and certs are added as their documentation says. Against
// a real API server.
package operator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/converter"
	"github.com/tracehook/tracehook/e2e/internal/story"
	"github.com/tracehook/tracehook/webhook"
	"github.com/tracehook/tracehook/webhook/cause/traced"
)

const (
	namespace = "operator-system"
	service   = "operator"
	things    = "things.operator.example"
)

var shared *cluster.Cluster

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard()) // what matters of a manager's log is how it ends
	os.Exit(story.Run(m, cluster.Options{NoTraces: true}, func(_ context.Context, c *cluster.Cluster) error {
		shared = c
		return nil
	}))
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// The kind is stored as v1 and the operator reads v2, so its cache cannot be filled before its own
// conversion webhook answers; for that it needs a certificate, which its own Authority has yet to make.
const crd = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.operator.example}
spec:
  group: operator.example
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing, listKind: ThingList}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  conversion:
    strategy: Webhook
    webhook:
      conversionReviewVersions: [v1]
      clientConfig: {service: {namespace: operator-system, name: operator, port: %d, path: /convert}}
`

func thing(version string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "operator.example", Version: version, Kind: "Thing"})
	return u
}

// install stores what the operator's manifests hold, and a Thing that was there before the operator.
func install(t *testing.T, port int) {
	t.Helper()
	ctx := story.Within(t, time.Minute)
	clients := kubernetes.NewForConfigOrDie(shared.RESTConfig)
	objects := dynamic.NewForConfigOrDie(shared.RESTConfig)
	must(clients.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}))(t)
	must(clients.CoreV1().Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: service},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost", Ports: []corev1.ServicePort{{Port: int32(port)}}}}, metav1.CreateOptions{}))(t)
	definition := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(fmt.Appendf(nil, crd, port), &definition.Object); err != nil {
		t.Fatal(err)
	}
	crds := objects.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	must(crds.Create(ctx, definition, metav1.CreateOptions{}))(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := crds.Delete(ctx, things, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	v1 := objects.Resource(schema.GroupVersionResource{Group: "operator.example", Version: "v1", Resource: "things"}).Namespace("default")
	for {
		one := thing("v1")
		one.SetName("one")
		_, err := v1.Create(ctx, one, metav1.CreateOptions{})
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no Thing can be made: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// replica is one process of the operator.
type replica struct {
	manager.Manager
	source *certs.SecretSource
	caFile string // of client certificates
	url    string
}

func newReplica(t *testing.T, identity string, port int) *replica {
	t.Helper()
	r := &replica{caFile: filepath.Join(t.TempDir(), "client-ca.crt"), url: "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	writeCA(t, r.caFile, newCA(t))
	config := rest.CopyConfig(shared.RESTConfig)
	config.Wrap(traced.Transport(nil))
	clients, objects := kubernetes.NewForConfigOrDie(config), dynamic.NewForConfigOrDie(config)

	r.source = must(certs.NewSecretSource(certs.SourceOptions{Clients: clients, Namespace: namespace}))(t)
	ready := must(certs.NewReadiness(certs.ReadinessOptions{Clients: clients, GetCertificate: r.source.GetCertificate}))(t)
	authority := must(certs.NewAuthority(certs.AuthorityOptions{
		Clients: clients, Dynamic: objects, Namespace: namespace, Identity: identity, Settle: time.Second,
		Names:     must(certs.ServiceNames(namespace, service, ""))(t),
		Targets:   []certs.Ref{{Kind: certs.KindCRD, Name: things}},
		Publisher: must(certs.NewPublisher(certs.PublisherOptions{Dynamic: objects}))(t),
	}))(t)
	auth := must(webhook.NewClientAuth(webhook.ClientAuthOptions{CAFile: r.caFile, Enforce: true, Interval: 50 * time.Millisecond}))(t)

	server := ctrlwebhook.NewServer(ctrlwebhook.Options{Host: "127.0.0.1", Port: port, TLSOpts: []func(*tls.Config){
		auth.Ask, func(c *tls.Config) { c.GetCertificate = r.source.GetCertificate },
	}})
	r.Manager = must(ctrl.NewManager(config, ctrl.Options{
		WebhookServer:           webhook.InstrumentServer(server, webhook.InstrumentOptions{}),
		Metrics:                 metricsserver.Options{BindAddress: "0"},
		LeaderElection:          true,
		LeaderElectionID:        "operator",
		LeaderElectionNamespace: namespace,
	}))(t)
	r.GetWebhookServer().Register("/convert", http.HandlerFunc(converter.Convert))
	r.GetWebhookServer().Register("/guarded", auth.Check(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	for _, runnable := range []manager.Runnable{r.source, ready, authority, auth} {
		if err := r.Add(runnable); err != nil {
			t.Fatal(err)
		}
	}
	// What most operators do before the start: the manager waits for the cache of the kind.
	if err := r.GetFieldIndexer().IndexField(t.Context(), thing("v2"), "metadata.name", func(o client.Object) []string { return []string{o.GetName()} }); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *replica) run(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the manager ended with %v", err)
		}
	})
}

func newCA(t *testing.T) certs.KeyPair {
	t.Helper()
	return must(certs.NewCA(certs.CAOptions{Now: time.Now()}))(t)
}

func writeCA(t *testing.T, file string, ca certs.KeyPair) {
	t.Helper()
	if err := os.WriteFile(file, must(ca.CertificatePEM())(t), 0o600); err != nil {
		t.Fatal(err)
	}
}

// clientOf makes a client certificate of ca and returns who shows it.
func clientOf(t *testing.T, ca certs.KeyPair) *http.Client {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	der := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Certificate, key.Public(), ca.Key))(t)
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // who is asked is not what is tested
		Certificates:       []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}}}
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	ctx := story.Within(t, 90*time.Second)
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestAnOperatorWhoseCacheNeedsItsOwnConversionWebhookStartsFromNothing(t *testing.T) {
	ports := must(cluster.FreePorts(2))(t)
	install(t, ports[0])
	first := newReplica(t, "first", ports[0])
	first.run(t)
	eventually(t, "the cache is filled through the operator's own webhook", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return first.GetCache().Get(ctx, client.ObjectKey{Namespace: "default", Name: "one"}, thing("v2"))
	})
	eventually(t, "it leads", func() error {
		select {
		case <-first.Elected():
			return nil
		default:
			return errors.New("another leads")
		}
	})

	t.Run("a replica that does not lead serves, and knows who may call", func(t *testing.T) {
		second := newReplica(t, "second", ports[1])
		second.run(t)
		eventually(t, "it serves the certificate that the first has made", func() error {
			mine, err := second.source.GetCertificate(&tls.ClientHelloInfo{})
			if err != nil {
				return err
			}
			theirs := must(first.source.GetCertificate(&tls.ClientHelloInfo{}))(t)
			if !mine.Leaf.Equal(theirs.Leaf) {
				return fmt.Errorf("it serves %s", certs.Fingerprint(mine.Leaf))
			}
			return nil
		})
		ca := newCA(t)
		caller := clientOf(t, ca)
		status := func() (int, error) {
			resp, err := caller.Get(second.url + "/guarded")
			if err != nil {
				return 0, err
			}
			resp.Body.Close()
			return resp.StatusCode, nil
		}
		eventually(t, "a caller of another CA is refused", func() error {
			if got, err := status(); got != http.StatusForbidden {
				return fmt.Errorf("got %d, %w", got, err)
			}
			return nil
		})
		writeCA(t, second.caFile, ca)
		eventually(t, "once the CA is renewed, its certificates are accepted", func() error {
			if got, err := status(); got != http.StatusOK {
				return fmt.Errorf("got %d, %w", got, err)
			}
			return nil
		})
		select {
		case <-second.Elected():
			t.Error("the second replica leads: nothing was shown")
		default:
		}
	})
}
