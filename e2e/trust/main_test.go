// Package trust tests what package certs claims of API servers against two real ones: what a Publisher writes,
// what a Canary and a Barrier prove, what a SecretSource serves and what a Readiness says. Each piece runs as a
// user with the rights that deploy/README.md lists for it, and no others.
package trust

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/converter"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

const (
	namespace = "tracehook-system"
	proofName = "tracehook-proof.tracehook-system.svc"
)

// shared is what all tests use: two API servers on one etcd, and a TLS server on loopback, which is the Service
// tracehook-proof to API servers.
var shared struct {
	*cluster.Cluster
	second *cluster.APIServer
	admin  kubernetes.Interface
	any    dynamic.Interface
	port   int32
	// certificate is what the TLS server asks.
	certificate atomic.Pointer[func(*tls.ClientHelloInfo) (*tls.Certificate, error)]
}

func TestMain(m *testing.M) { os.Exit(story.Run(m, cluster.Options{NoTraces: true}, prepare)) }

func prepare(ctx context.Context, c *cluster.Cluster) (err error) {
	shared.Cluster = c
	if shared.second, err = shared.StartAPIServer(ctx); err != nil {
		return err
	}
	if shared.admin, err = kubernetes.NewForConfig(shared.RESTConfig); err != nil {
		return err
	}
	if shared.any, err = dynamic.NewForConfig(shared.RESTConfig); err != nil {
		return err
	}
	if shared.port, err = listen(); err != nil {
		return err
	}
	if _, err := shared.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err = shared.admin.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "tracehook-proof"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"},
	}, metav1.CreateOptions{})
	return err
}

// listen starts the TLS server: proofs, conversions, and an API of its own for the aggregator.
func listen() (port int32, err error) {
	ports, err := cluster.FreePorts(1)
	if err != nil {
		return 0, err
	}
	listener, err := tls.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]), &tls.Config{GetCertificate: getCertificate, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return 0, err
	}
	mux := http.NewServeMux()
	mux.Handle("/prove/", certs.ProofHandler(getCertificate))
	mux.HandleFunc("/apis/things.example.org/v1", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"things.example.org/v1","resources":[]}`)
	})
	mux.HandleFunc("/convert", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		converter.Convert(w, r)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "teapot", http.StatusTeapot) })
	server := &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.Serve(listener) }()
	return int32(listener.Addr().(*net.TCPAddr).Port), nil
}

func getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if get := shared.certificate.Load(); get != nil {
		return (*get)(hello)
	}
	return nil, fmt.Errorf("nothing to serve to %s yet", hello.ServerName)
}

// serving has the TLS server ask get.
func serving(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) {
	shared.certificate.Store(&get)
}

func both() []string { return []string{shared.First().URL, shared.second.URL} }

// right is a rule of RBAC in one line.
func right(group, resource, verbs string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: strings.Fields(verbs), ResourceNames: names}
}

// user is somebody with these rights, by namespace ("" for the whole cluster), and no more than any ServiceAccount has.
func user(t *testing.T, name string, rights map[string][]rbacv1.PolicyRule) *rest.Config {
	t.Helper()
	ctx := t.Context()
	full := "system:serviceaccount:" + namespace + ":" + name
	subject := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: full}}
	meta := metav1.ObjectMeta{Name: name}
	rbac := shared.admin.RbacV1()
	for where, rules := range rights {
		var err error
		if where == "" {
			if _, err = rbac.ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{}); err == nil {
				_, err = rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subject,
					RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}}, metav1.CreateOptions{})
			}
		} else if _, err = rbac.Roles(where).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{}); err == nil {
			_, err = rbac.RoleBindings(where).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subject,
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name}}, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	kubeconfig, err := shared.User(full, "system:serviceaccounts", "system:serviceaccounts:"+namespace, "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	// Both API servers learn of rights in their own time.
	for _, url := range both() {
		at := rest.CopyConfig(config)
		at.Host = url
		clients := must(kubernetes.NewForConfig(at))(t)
		for where, rules := range rights {
			for _, rule := range rules {
				waitAllowed(t, clients, where, rule)
			}
		}
	}
	return config
}

func newCA(t *testing.T) certs.KeyPair {
	t.Helper()
	return must(certs.NewCA(certs.CAOptions{Now: time.Now()}))(t)
}

func leafOf(t *testing.T, ca certs.KeyPair, names ...string) certs.KeyPair {
	t.Helper()
	return must(certs.Issue(ca, certs.LeafOptions{Now: time.Now(), Names: names}))(t)
}

func pemOf(t *testing.T, pairs ...certs.KeyPair) (bundle []byte) {
	t.Helper()
	for _, p := range pairs {
		bundle = append(bundle, must(p.CertificatePEM())(t)...)
	}
	return bundle
}

// must is for calls whose error ends the test: must(call())(t).
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// eventually waits for something that a watch brings.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := story.Within(t, time.Minute)
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not after a minute", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitAllowed returns when the API server lets this user do what the rule says.
func waitAllowed(t *testing.T, clients kubernetes.Interface, namespace string, rule rbacv1.PolicyRule) {
	t.Helper()
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	for _, verb := range rule.Verbs {
		for _, name := range names {
			eventually(t, fmt.Sprintf("right to %s %s %s", verb, rule.Resources[0], name), func() bool {
				review, err := clients.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
					Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
						Namespace: namespace, Verb: verb, Group: rule.APIGroups[0], Resource: rule.Resources[0], Name: name,
					}},
				}, metav1.CreateOptions{})
				return err == nil && review.Status.Allowed
			})
		}
	}
}
