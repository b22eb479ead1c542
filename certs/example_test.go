package certs_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
)

// A webhook server of your own that makes, publishes, proves and renews its certificate itself, in as many replicas as
// you like. It needs the rights, the Service and the MutatingWebhookConfiguration of
// deploy/components/certs-managed, under the names that it uses here, and nothing else.
//
// With controller-runtime: Add source, ready and authority to the manager instead of the group, Ready by AddReadyzCheck, and
// give GetCertificate to its webhook server by TLSOpts. They start before the caches, on every replica.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	config, err := rest.InClusterConfig()
	if err == nil {
		err = servePolicy(ctx, config, os.Getenv("POD_NAME"), http.NotFoundHandler())
	}
	if err != nil {
		fmt.Println(err)
	}
}

func servePolicy(ctx context.Context, config *rest.Config, pod string, policy http.Handler) error {
	const namespace = "policy-system"
	targets := []certs.Ref{{Kind: certs.KindMutating, Name: "policy"}}
	proofName := certs.ServerName(namespace, "policy-proof") // the next certificate is tried under this name
	names, err1 := certs.ServiceNames(namespace, "policy", "")
	clients, err2 := kubernetes.NewForConfig(config)
	objects, err3 := dynamic.NewForConfig(config)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}

	// Every replica: what is served, and whether API servers trust it now.
	source, err1 := certs.NewSecretSource(certs.SourceOptions{Clients: clients, Namespace: namespace, ProofName: proofName})
	ready, err2 := certs.NewReadiness(certs.ReadinessOptions{Clients: clients, Configurations: targets, GetCertificate: source.GetCertificate})
	if err := errors.Join(err1, err2); err != nil {
		return err
	}

	// One replica at a time: who keeps it up to date.
	publisher, err1 := certs.NewPublisher(certs.PublisherOptions{Dynamic: objects})
	canary, err2 := certs.NewCanary(certs.CanaryOptions{Config: config, Namespace: namespace, Configuration: "policy-proof", Webhook: "proof.policy.example.com"})
	authority, err3 := certs.NewAuthority(certs.AuthorityOptions{
		Clients: clients, Dynamic: objects, Namespace: namespace, Identity: pod,
		Names: append(names, proofName), Targets: targets, Publisher: publisher, Prover: canary,
		Endpoints: certs.ServiceEndpoints{Clients: clients, Namespace: namespace, Service: "policy"},
	})
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}

	mux := http.NewServeMux()
	mux.Handle("/policy", policy)
	mux.Handle("/prove/", certs.ProofHandler(source.GetCertificate))
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) { // over TLS, so there is a certificate
		if err := ready.Ready(r); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	server := &http.Server{Addr: ":9443", Handler: mux, TLSConfig: &tls.Config{GetCertificate: source.GetCertificate, MinVersion: tls.VersionTLS12}}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return source.Start(ctx) })
	group.Go(func() error { return ready.Start(ctx) })
	group.Go(func() error { return authority.Start(ctx) })
	group.Go(func() error { return server.ListenAndServeTLS("", "") })
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return group.Wait()
}

// A unit test needs no cluster: a Secret as an Authority, or anybody, writes it, in client-go's fake clientset.
func ExampleSecretSource() {
	now := time.Now()
	ca, err1 := certs.NewCA(certs.CAOptions{Now: now})
	leaf, err2 := certs.Issue(ca, certs.LeafOptions{Now: now, Names: []string{certs.ServerName("policy-system", "policy")}})
	if err := errors.Join(err1, err2); err != nil {
		fmt.Println(err)
		return
	}
	certificate, err1 := leaf.CertificatePEM()
	key, err2 := leaf.KeyPEM()
	clients := fake.NewClientset(&corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "policy-system", Name: certs.DefaultServingSecret},
		Data:       map[string][]byte{certs.ServingCertificate: certificate, certs.ServingKey: key},
	})
	source, err3 := certs.NewSecretSource(certs.SourceOptions{Clients: clients, Namespace: "policy-system"})
	if err := errors.Join(err1, err2, err3); err != nil {
		fmt.Println(err)
		return
	}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { _ = source.Start(ctx) }()
	for len(source.Findings()) > 0 { // "has not been read yet"
		time.Sleep(time.Millisecond)
	}
	served, err := source.GetCertificate(&tls.ClientHelloInfo{})
	fmt.Println(served.Leaf.DNSNames, err)
	// Output:
	// [policy.policy-system.svc] <nil>
}
