package migrate

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admissionreview "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/converter"
)

// stranger is a server of somebody else's: webhook, conversion webhook and aggregated API in one. It serves the pair of the Secret that its
// Deployment mounts, as a pod would, only sooner.
type stranger struct {
	namespace string // also the name of everything in it
	port      int32
	holds     time.Duration // every admission call, before it is answered
	closes    bool          // the connection after every admission call
	calls     atomic.Int64
	pair      atomic.Pointer[tls.Certificate]
}

// startStranger makes namespace, Secret `serving-cert`, Deployment and Service, and serves.
func startStranger(t *testing.T, name string, chain ...certs.KeyPair) *stranger {
	t.Helper()
	ctx := t.Context()
	s := &stranger{namespace: name}
	_, err := shared.clients.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	must(t, err)
	writeSecret(t, name, "serving-cert", nil, chain...)
	labels := map[string]string{"app": name}
	_, err = shared.clients.AppsV1().Deployments(name).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Containers: []corev1.Container{{Name: "server", Image: "server"}},
					Volumes:    []corev1.Volume{{Name: "certs", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "serving-cert"}}}},
				},
			},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	_, err = shared.clients.CoreV1().Services(name).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"},
	}, metav1.CreateOptions{})
	must(t, err)

	must(t, s.load(ctx))
	go s.follow(ctx)
	// Below 32768, where no outgoing connection of anybody's can be in the way.
	var listener net.Listener
	for range 100 {
		if listener, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+mathrand.IntN(12000))); err == nil {
			break
		}
	}
	must(t, err)
	s.port = int32(listener.Addr().(*net.TCPAddr).Port)
	server := &http.Server{
		Handler: http.HandlerFunc(s.answer),
		TLSConfig: &tls.Config{
			NextProtos:     []string{"http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.pair.Load(), nil },
		},
		ErrorLog:          log.New(io.Discard, "", 0), // refusals are the point
		ReadHeaderTimeout: 10 * time.Second,
	}
	go func() { _ = server.ServeTLS(listener, "", "") }() // ends with Close
	t.Cleanup(func() { server.Close() })
	return s
}

// follow does what the kubelet does for a volume.
func (s *stranger) follow(ctx context.Context) {
	for ctx.Err() == nil {
		_ = s.load(ctx) // what is broken is not mounted either: the last good pair stays
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *stranger) load(ctx context.Context) error {
	deployment, err := shared.clients.AppsV1().Deployments(s.namespace).Get(ctx, s.namespace, metav1.GetOptions{})
	if err != nil {
		return err
	}
	secret, err := shared.clients.CoreV1().Secrets(s.namespace).Get(ctx, deployment.Spec.Template.Spec.Volumes[0].Secret.SecretName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	if err != nil {
		return err
	}
	if old := s.pair.Load(); old == nil || !bytes.Equal(old.Certificate[0], pair.Certificate[0]) {
		s.pair.Store(&pair)
	}
	return nil
}

func (s *stranger) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if strings.HasPrefix(r.URL.Path, "/apis/") {
		s.calls.Add(1)
		fmt.Fprintf(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"%s/v1","resources":[]}`, s.group())
		return
	}
	if r.URL.Path == "/convert" {
		s.calls.Add(1)
		converter.Convert(w, r)
		return
	}
	var review admissionreview.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, "no AdmissionReview", http.StatusBadRequest)
		return
	}
	s.calls.Add(1)
	time.Sleep(s.holds)
	if s.closes {
		w.Header().Set("Connection", "close")
	}
	review.Response = &admissionreview.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	review.Request = nil
	_ = json.NewEncoder(w).Encode(review) // who hung up is told nothing
}

func (s *stranger) group() string { return s.namespace + ".example.com" }

// label selects what the webhooks of this server are called for.
const label = "e2e.tracehook.dev/of"

func (s *stranger) client(bundle []byte) admissionv1.WebhookClientConfig {
	return admissionv1.WebhookClientConfig{CABundle: bundle, Service: &admissionv1.ServiceReference{Namespace: s.namespace, Name: s.namespace, Port: new(s.port)}}
}

func (s *stranger) rules() []admissionv1.RuleWithOperations {
	return []admissionv1.RuleWithOperations{{
		Operations: []admissionv1.OperationType{admissionv1.Create},
		Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
	}}
}

// validate installs a ValidatingWebhookConfiguration, and mutate a MutatingWebhookConfiguration, for what is made in the name of somebody.
func (s *stranger) validate(t *testing.T, bundle []byte, annotations map[string]string) {
	t.Helper()
	_, err := shared.clients.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: s.namespace, Annotations: annotations},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "check.example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: new(admissionv1.SideEffectClassNone), FailurePolicy: new(admissionv1.Fail),
			ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: s.namespace}}, ClientConfig: s.client(bundle), Rules: s.rules(),
		}},
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		must(t, shared.clients.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(context.Background(), s.namespace, metav1.DeleteOptions{}))
	})
}

func (s *stranger) mutate(t *testing.T, bundle []byte, of string) {
	t.Helper()
	_, err := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), &admissionv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: s.namespace},
		Webhooks: []admissionv1.MutatingWebhook{{
			Name: "set.example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: new(admissionv1.SideEffectClassNone), FailurePolicy: new(admissionv1.Fail),
			ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{label: of}}, ClientConfig: s.client(bundle), Rules: s.rules(),
		}},
	}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		must(t, shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), s.namespace, metav1.DeleteOptions{}))
	})
}

// aggregate installs an APIService that is not verified.
func (s *stranger) aggregate(t *testing.T) {
	t.Helper()
	resource := dynamic.NewForConfigOrDie(shared.RESTConfig).Resource(schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"})
	_, err := resource.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": "v1." + s.group()},
		"spec": map[string]any{
			"group": s.group(), "version": "v1", "groupPriorityMinimum": int64(100), "versionPriority": int64(100), "insecureSkipTLSVerify": true,
			"service": map[string]any{"namespace": s.namespace, "name": s.namespace, "port": int64(s.port)},
		},
	}}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		must(t, resource.Delete(context.Background(), "v1."+s.group(), metav1.DeleteOptions{}))
	})
}

// define installs a CRD of two versions, and an object of it that is stored in the first.
func (s *stranger) define(t *testing.T, bundle []byte) {
	t.Helper()
	objects := dynamic.NewForConfigOrDie(shared.RESTConfig)
	resource := objects.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	version := func(name string, stored bool) map[string]any {
		return map[string]any{"name": name, "served": true, "storage": stored, "schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object"}}}
	}
	name := "widgets." + s.group()
	_, err := resource.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"group": s.group(), "scope": "Cluster", "names": map[string]any{"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
			"versions": []any{version("v1", true), version("v2", false)},
			"conversion": map[string]any{"strategy": "Webhook", "webhook": map[string]any{
				"conversionReviewVersions": []any{"v1"},
				"clientConfig": map[string]any{
					"caBundle": base64.StdEncoding.EncodeToString(bundle),
					"service":  map[string]any{"namespace": s.namespace, "name": s.namespace, "port": int64(s.port), "path": "/convert"},
				},
			}},
		},
	}}, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, resource.Delete(context.Background(), name, metav1.DeleteOptions{})) })
	widgets := objects.Resource(schema.GroupVersionResource{Group: s.group(), Version: "v1", Resource: "widgets"})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := widgets.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": s.group() + "/v1", "kind": "Widget", "metadata": map[string]any{"name": "one"},
		}}, metav1.CreateOptions{})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func writeSecret(t *testing.T, namespace, name string, annotations map[string]string, chain ...certs.KeyPair) {
	t.Helper()
	key, err := chain[0].KeyPEM()
	must(t, err)
	data := map[string][]byte{"tls.crt": pemOf(chain...), "tls.key": key}
	if annotations != nil { // cert-manager's has the CA too, which is not sent along
		data["tls.crt"], data["ca.crt"] = pemOf(chain[0]), pemOf(chain[1])
	}
	_, err = shared.clients.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}, Type: corev1.SecretTypeTLS, Data: data,
	}, metav1.CreateOptions{})
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
