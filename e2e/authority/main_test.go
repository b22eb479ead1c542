// Package authority tests the certificate authority of package certs as a library, against a real API server and etcd: what it
// makes, what it puts right, and that there is one that writes. Whether calls go on meanwhile is e2e/rotation's story.
package authority

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

var shared *cluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(story.Run(m, cluster.Options{NoTraces: true}, func(_ context.Context, c *cluster.Cluster) error {
		shared = c
		return nil
	}))
}

// clock goes as fast as others do, and jumps.
type clock struct {
	mu    sync.Mutex
	ahead time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// place is a namespace and a configuration of its own.
type place struct {
	t         *testing.T
	ctx       context.Context
	name      string // of both
	host      string
	admin     *kubernetes.Clientset
	publisher *certs.Publisher
	clock     *clock
}

var places int

func newPlace(t *testing.T) *place {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // longer than that of t, so that authorities stop first
	t.Cleanup(cancel)
	places++
	p := &place{t: t, ctx: ctx, name: fmt.Sprintf("authority-%d", places), clock: &clock{}}
	p.host = certs.ServerName(p.name, "tracehook")
	p.admin = kubernetes.NewForConfigOrDie(shared.RESTConfig)
	var err error
	if p.publisher, err = certs.NewPublisher(certs.PublisherOptions{Dynamic: dynamic.NewForConfigOrDie(shared.RESTConfig), FieldManager: "test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	none, path := admissionv1.SideEffectClassNone, "/mutate"
	configuration := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: p.name},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name: "trace-context.tracehook.dev", AdmissionReviewVersions: []string{"v1"}, SideEffects: &none,
			ClientConfig:   admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: p.name, Name: "tracehook", Path: &path}},
			ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"nobody": "has-this"}},
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule: admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}},
		}}}
	if _, err := p.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, configuration, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), p.name, metav1.DeleteOptions{})
	})
	return p
}

func (p *place) ref() certs.Ref { return certs.Ref{Kind: certs.KindMutating, Name: p.name} }

// options of an authority that does what it can as fast as it can.
func (p *place) options(config *rest.Config, identity string) certs.AuthorityOptions {
	p.t.Helper()
	names, err := certs.ServiceNames(p.name, "tracehook", "")
	if err != nil {
		p.t.Fatal(err)
	}
	client := dynamic.NewForConfigOrDie(config)
	publisher, err := certs.NewPublisher(certs.PublisherOptions{Dynamic: client})
	if err != nil {
		p.t.Fatal(err)
	}
	return certs.AuthorityOptions{
		Clients: kubernetes.NewForConfigOrDie(config), Dynamic: client, Namespace: p.name, Names: names,
		Targets: []certs.Ref{p.ref()}, Publisher: publisher, Prover: believer{p},
		Soak: time.Millisecond, Settle: time.Second,
		Identity: identity, RetryPeriod: 200 * time.Millisecond,
		Now: p.clock.Now,
	}
}

// believer is a Prover that asks nobody but looks whether what is claimed can be true.
type believer struct{ *place }

func (b believer) Prove(ctx context.Context, claim certs.Claim) (certs.Proof, error) {
	live, err := b.publisher.Live(ctx, b.ref())
	if err != nil {
		return certs.Proof{}, err
	}
	if !bytes.Equal(live[0].Bundle, claim.Bundle) {
		return certs.Proof{}, fmt.Errorf("the claim's bundle is not the live one")
	}
	// By the bundle alone: without what the leaf is sent with.
	findings := certs.Verify([]*x509.Certificate{claim.Leaf}, certs.Trust{Bundle: claim.Bundle}, b.host, b.clock.Now())
	if !certs.Predict(findings).Works {
		return certs.Proof{}, fmt.Errorf("the claimed leaf would be refused: %v", findings)
	}
	return certs.Proof{Time: b.clock.Now(), Certainty: certs.Proven, Servers: []string{"one"}}, nil
}

// start runs an authority until stop is called or the test ends.
func (p *place) start(o certs.AuthorityOptions) (stop func()) {
	p.t.Helper()
	a, err := certs.NewAuthority(o)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(p.ctx)
	ended := make(chan error, 1)
	go func() { ended <- a.Start(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			p.t.Errorf("Start: %v", err)
		}
	})
	p.t.Cleanup(stop)
	return stop
}

func (p *place) secret(name string) *corev1.Secret {
	p.t.Helper()
	secret, err := p.admin.CoreV1().Secrets(p.name).Get(p.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return secret
}

// bundle is the live one.
func (p *place) bundle() []byte {
	p.t.Helper()
	live, err := p.publisher.Live(p.ctx, p.ref())
	if err != nil {
		p.t.Fatal(err)
	}
	return live[0].Bundle
}

// setBundle is another writer.
func (p *place) setBundle(bundle []byte) {
	p.t.Helper()
	for {
		object, err := p.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(p.ctx, p.name, metav1.GetOptions{})
		if err != nil {
			p.t.Fatal(err)
		}
		object.Webhooks[0].ClientConfig.CABundle = bundle
		if _, err = p.admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(p.ctx, object, metav1.UpdateOptions{}); err == nil {
			return
		} else if !apierrors.IsConflict(err) {
			p.t.Fatal(err)
		}
	}
}

// change is another writer.
func (p *place) change(name string, change func(*corev1.Secret)) {
	p.t.Helper()
	for {
		secret := p.secret(name)
		change(secret)
		_, err := p.admin.CoreV1().Secrets(p.name).Update(p.ctx, secret, metav1.UpdateOptions{})
		if err == nil {
			return
		}
		if !apierrors.IsConflict(err) {
			p.t.Fatal(err)
		}
	}
}

// poke makes whoever leads look, as a minute that passes would.
func (p *place) poke() {
	p.t.Helper()
	p.change(certs.DefaultServingSecret, func(s *corev1.Secret) {
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels["poked"] = fmt.Sprint(time.Now().UnixNano())
	})
}

// healthy is nil if calls would work with what is stored: by the live bundle, without what is sent along.
func (p *place) healthy() error {
	secret := p.secret(certs.DefaultServingSecret)
	if secret == nil {
		return fmt.Errorf("there is no serving Secret")
	}
	pair, err := certs.ParsePair(secret.Data[certs.ServingCertificate], secret.Data[certs.ServingKey])
	if err != nil {
		return err
	}
	findings := certs.Verify([]*x509.Certificate{pair.Certificate}, certs.Trust{Bundle: p.bundle()}, p.host, p.clock.Now())
	if len(findings) > 0 {
		return fmt.Errorf("%+v", findings)
	}
	return nil
}

// until waits for a condition, and says at the end what was missing.
func (p *place) until(what string, condition func() error) {
	p.t.Helper()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-p.ctx.Done():
			p.t.Fatalf("%s: %v\nstatus: %+v", what, err, p.status())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// settled waits until there is nothing more to do, and returns the status.
func (p *place) settled(condition func(certs.Status) bool) (settled certs.Status) {
	p.t.Helper()
	err := certs.WatchStatus(p.ctx, p.admin, p.name, certs.DefaultServingSecret, func(s certs.Status) bool {
		if s.Settled && condition(s) {
			settled = s
			return false
		}
		return true
	})
	if err != nil {
		p.t.Fatalf("wait until it is settled: %v\nstatus: %+v", err, p.status())
	}
	return settled
}

func (p *place) status() (status certs.Status) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = certs.WatchStatus(ctx, p.admin, p.name, certs.DefaultServingSecret, func(s certs.Status) bool {
		status = s
		return false
	})
	return status
}

func always(certs.Status) bool { return true }

func restConfig(t *testing.T, kubeconfig string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return config
}
