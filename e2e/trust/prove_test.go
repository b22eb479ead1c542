package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// fixed serves one certificate under all names.
func fixed(pair certs.KeyPair) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := &tls.Certificate{Certificate: [][]byte{pair.Certificate.Raw}, PrivateKey: pair.Key, Leaf: pair.Certificate}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c, nil }
}

// installProof applies the shipped webhook of the proof, led to the TLS server here.
func installProof(t *testing.T) {
	t.Helper()
	data := must(os.ReadFile(filepath.Join("..", "..", "deploy", "components", "certs-rights", "proof.yaml")))(t)
	document, _, _ := bytes.Cut(data, []byte("\n---\n"))
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(document, &object.Object); err != nil {
		t.Fatal(err)
	}
	hook := object.Object["webhooks"].([]any)[0].(map[string]any)
	if err := unstructured.SetNestedField(hook, int64(shared.port), "clientConfig", "service", "port"); err != nil {
		t.Fatal(err)
	}
	apply(t, mutating, object)
}

var canaryRights = map[string][]rbacv1.PolicyRule{
	"":        {right(mutating.Group, mutating.Resource, "get patch", "tracehook-proof")},
	namespace: {right("coordination.k8s.io", "leases", "create")},
}

func canary(t *testing.T, config *rest.Config, servers ...string) *certs.Canary {
	t.Helper()
	return must(certs.NewCanary(certs.CanaryOptions{Config: config, APIServers: servers}))(t)
}

// hearing ends ctx when a prover logs something: a proof that does not come about would go on for ever.
func hearing(t *testing.T, ends func(text string) bool) (context.Context, *slog.Logger) {
	t.Helper()
	ctx, cancel := context.WithCancel(story.Within(t, time.Minute))
	return ctx, slog.New(slog.NewTextHandler(ear(func(text string) {
		if ends(text) {
			cancel()
		}
	}), nil))
}

// othersArrived: what is logged blames neither of the two API servers.
func othersArrived(text string) bool {
	return !strings.Contains(text, both()[0]+": ") && !strings.Contains(text, both()[1]+": ")
}

type ear func(string)

func (e ear) Write(p []byte) (int, error) { e(string(p)); return len(p), nil }

func TestACanaryProvesThatEveryAPIServerTrustsTheNextLeaf(t *testing.T) {
	installProof(t)
	config := user(t, "canary", canaryRights)
	old, next := newCA(t), newCA(t)
	leaf, nextLeaf := leafOf(t, old, proofName), leafOf(t, next, proofName)
	serving(fixed(nextLeaf))
	prover := canary(t, config, both()...)
	prove := func(claim certs.Claim) (certs.Proof, error) { return prover.Prove(story.Within(t, time.Minute), claim) }
	// refused: no proof comes about, and the error has these words of each of the API servers.
	refused := func(t *testing.T, words string, claim certs.Claim) {
		t.Helper()
		ctx, log := hearing(t, func(text string) bool { return strings.Count(text, words) == 2 })
		p := must(certs.NewCanary(certs.CanaryOptions{Config: config, APIServers: both(), Logger: log}))(t)
		_, err := p.Prove(ctx, claim)
		blames(t, err, words, both()...)
	}

	proof, err := prove(certs.Claim{Generation: "g1", Bundle: pemOf(t, old, next), Leaf: nextLeaf.Certificate})
	if err != nil || proof.Certainty != certs.Proven || !slices.Equal(proof.Servers, both()) || proof.Time.IsZero() {
		t.Fatalf("%+v, %v", proof, err)
	}
	// Applying the manifest again, as GitOps does, keeps bundle and path.
	installProof(t)
	if fields := owned(get(t, mutating, "tracehook-proof"), "tracehook-proof"); !strings.Contains(fields, `"f:caBundle":{}`) || !strings.Contains(fields, `"f:path":{}`) || strings.Contains(fields, "f:rules") {
		t.Errorf("the canary owns %s", fields)
	}
	// Without a leaf it is enough that what is served is accepted.
	if _, err := prove(certs.Claim{Generation: "g2", Bundle: pemOf(t, next)}); err != nil {
		t.Error(err)
	}

	t.Run("a CA that the bundle does not hold", func(t *testing.T) {
		refused(t, "x509: certificate signed by unknown authority", certs.Claim{Generation: "g3", Bundle: pemOf(t, old), Leaf: nextLeaf.Certificate})
	})
	t.Run("a leaf with another name", func(t *testing.T) {
		wrong := leafOf(t, next, "tracehook.elsewhere.svc")
		serving(fixed(wrong))
		refused(t, "x509: certificate is valid for tracehook.elsewhere.svc, not "+proofName, certs.Claim{Generation: "g4", Bundle: pemOf(t, next), Leaf: wrong.Certificate})
	})
	t.Run("a leaf that is not served yet, and then is", func(t *testing.T) {
		serving(fixed(leaf))
		claim := certs.Claim{Generation: "g5", Bundle: pemOf(t, old, next), Leaf: nextLeaf.Certificate}
		words := "this server does not present the certificate that is to be proven yet, but " + certs.Fingerprint(leaf.Certificate)
		refused(t, words, claim)
		ctx, log := hearing(t, func(text string) bool {
			if strings.Contains(text, words) {
				serving(fixed(nextLeaf))
			}
			return false
		})
		p := must(certs.NewCanary(certs.CanaryOptions{Config: config, APIServers: both(), Logger: log}))(t)
		must(p.Prove(ctx, claim))(t)
	})
	t.Run("one API server is stopped", func(t *testing.T) {
		third := must(shared.StartAPIServer(story.Within(t, time.Minute)))(t)
		if err := third.Stop(); err != nil {
			t.Fatal(err)
		}
		ctx, log := hearing(t, othersArrived)
		three := must(certs.NewCanary(certs.CanaryOptions{Config: config, APIServers: append(both(), third.URL), Logger: log}))(t)
		_, err := three.Prove(ctx, certs.Claim{Generation: "g6", Bundle: pemOf(t, next), Leaf: nextLeaf.Certificate})
		blames(t, err, "connection refused", third.URL)
	})
	t.Run("without the webhook of the proof", func(t *testing.T) {
		ctx, log := hearing(t, func(string) bool { return true })
		other := must(certs.NewCanary(certs.CanaryOptions{Config: shared.RESTConfig, APIServers: both(), Configuration: "absent", Logger: log}))(t)
		if _, err := other.Prove(ctx, certs.Claim{Generation: "g7", Bundle: pemOf(t, next)}); err == nil || !strings.Contains(err.Error(), `"absent" not found`) {
			t.Errorf("got %v", err)
		}
	})
}

// blames checks that an error is the end of ctx and names these API servers and no others, with their words.
func blames(t *testing.T, err error, words string, servers ...string) {
	t.Helper()
	if !errors.Is(err, context.Canceled) || strings.Count(err.Error(), words) != len(servers) || strings.Count(err.Error(), "API server ") != len(servers) {
		t.Fatalf("got %v\nwant the end of ctx, and %q", err, words)
	}
	for _, url := range servers {
		if !strings.Contains(err.Error(), "API server "+url+": ") {
			t.Errorf("the error does not name %s: %v", url, err)
		}
	}
}

func TestAPIServersAreFoundByTheirEndpointsAndCountedByTheirLeases(t *testing.T) {
	installProof(t)
	ctx := story.Within(t, time.Minute)
	ca := newCA(t)
	leaf := leafOf(t, ca, proofName)
	serving(fixed(leaf))
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("https"), Port: new(int32(6443))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}, {Addresses: []string{"192.0.2.2"}}},
	}
	slices := shared.admin.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	must(slices.Create(ctx, slice, metav1.CreateOptions{}))(t)
	t.Cleanup(func() { _ = slices.Delete(context.WithoutCancel(ctx), slice.Name, metav1.DeleteOptions{}) })

	// No endpoint may be on loopback, where these API servers are; so the dialer knows the way.
	lead := func(config *rest.Config) *rest.Config {
		config = rest.CopyConfig(config)
		config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			switch address {
			case "192.0.2.1:6443":
				address = strings.TrimPrefix(shared.First().URL, "https://")
			case "192.0.2.2:6443":
				address = strings.TrimPrefix(shared.second.URL, "https://")
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
		return config
	}
	endpoints := right("discovery.k8s.io", "endpointslices", "list")
	poor := user(t, "canary-poor", map[string][]rbacv1.PolicyRule{"": canaryRights[""], namespace: canaryRights[namespace], "default": {endpoints}})
	rich := user(t, "canary-rich", map[string][]rbacv1.PolicyRule{"": canaryRights[""], namespace: canaryRights[namespace], "default": {endpoints},
		"kube-system": {right("coordination.k8s.io", "leases", "list")}})
	leases := shared.admin.CoordinationV1().Leases(metav1.NamespaceSystem)
	eventually(t, "API servers have identity Leases", func() bool { // they make them in their first ten seconds
		return len(must(leases.List(ctx, metav1.ListOptions{LabelSelector: "apiserver.kubernetes.io/identity=kube-apiserver"}))(t).Items) > 0
	})
	claim := certs.Claim{Generation: "found", Bundle: pemOf(t, ca), Leaf: leaf.Certificate}
	want := []string{"https://192.0.2.1:6443", "https://192.0.2.2:6443"}
	for _, who := range []struct {
		name      string
		config    *rest.Config
		certainty certs.Certainty
	}{
		{"the Leases count as many API servers as there are endpoints, or fewer", rich, certs.Proven},
		{"nobody may count", poor, certs.Sampled},
	} {
		proof, err := canary(t, lead(who.config)).Prove(story.Within(t, time.Minute), claim)
		if err != nil || proof.Certainty != who.certainty || strings.Join(proof.Servers, " ") != strings.Join(want, " ") {
			t.Errorf("%s: %+v, %v", who.name, proof, err)
		}
	}

	// One endpoint in front of more API servers than that is a load balancer.
	slice.Endpoints = slice.Endpoints[:1]
	must(slices.Update(ctx, slice, metav1.UpdateOptions{}))(t)
	for _, name := range []string{"apiserver-b", "apiserver-c"} {
		must(leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"apiserver.kubernetes.io/identity": "kube-apiserver"}},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: new(name), LeaseDurationSeconds: new(int32(3600)), RenewTime: new(metav1.NowMicro())},
		}, metav1.CreateOptions{}))(t)
	}
	proof, err := canary(t, lead(rich)).Prove(story.Within(t, time.Minute), claim)
	if err != nil || proof.Certainty != certs.Sampled || len(proof.Servers) != 1 {
		t.Errorf("behind a load balancer: %+v, %v", proof, err)
	}
}

func mustBarrier(t *testing.T, kind string, config *rest.Config) *certs.Barrier {
	t.Helper()
	return must(certs.NewBarrier(certs.BarrierOptions{Config: config, APIServers: both(), Kind: kind, Retry: 20 * time.Millisecond}))(t)
}

func TestABarrierProvesThatEveryAPIServerHasLoadedWhatWasPublished(t *testing.T) {
	for kind, resource := range map[string]schema.GroupVersionResource{certs.KindMutating: mutating, certs.KindValidating: validating, certs.KindCRD: crds, certs.KindAPIService: apiServices} {
		t.Run(kind, func(t *testing.T) {
			config := user(t, "barrier-"+strings.ToLower(kind), map[string][]rbacv1.PolicyRule{
				"":        {right(resource.Group, resource.Resource, "list create patch delete"), right("barrier.tracehook.dev", "*", "list")},
				"default": {right("coordination.k8s.io", "leases", "create")},
			})
			noneLeft := func() bool {
				return len(must(shared.any.Resource(resource).List(t.Context(), metav1.ListOptions{LabelSelector: "barrier.tracehook.dev"}))(t).Items) == 0
			}
			prover := mustBarrier(t, kind, config)
			proof, err := prover.Prove(story.Within(t, time.Minute), certs.Claim{Generation: "b1"})
			if err != nil || proof.Certainty != certs.Proven || !slices.Equal(proof.Servers, both()) {
				t.Fatalf("%+v, %v", proof, err)
			}
			eventually(t, "no barrier is left", noneLeft) // a CRD has a finalizer

			ctx, log := hearing(t, othersArrived)
			nobody := must(certs.NewBarrier(certs.BarrierOptions{Config: config, APIServers: append(both(), "https://127.0.0.1:1"), Kind: kind, Logger: log}))(t)
			_, err = nobody.Prove(ctx, certs.Claim{Generation: "b2"})
			blames(t, err, "connection refused", "https://127.0.0.1:1")
			eventually(t, "no barrier is left after the end of ctx", noneLeft)
		})
	}
}

// The claim that matters: whoever was proven to have loaded a bundle accepts, from the very next call on, a leaf
// that only this bundle trusts. Each round has a CA that nobody knew before.
func TestAfterAProofTheNextCallIsMadeWithWhatWasPublished(t *testing.T) {
	installProof(t)
	const rounds = 8
	var servers []kubernetes.Interface
	for _, config := range []*rest.Config{shared.RESTConfig, shared.second.RESTConfig} {
		servers = append(servers, must(kubernetes.NewForConfig(config))(t))
	}
	publisher := must(certs.NewPublisher(certs.PublisherOptions{Dynamic: shared.any}))(t)
	for name, test := range map[string]struct {
		kind     string
		resource schema.GroupVersionResource
		prover   certs.Prover
	}{
		"canary":             {certs.KindMutating, mutating, canary(t, shared.RESTConfig, both()...)},
		"barrier-mutating":   {certs.KindMutating, mutating, mustBarrier(t, certs.KindMutating, shared.RESTConfig)},
		"barrier-validating": {certs.KindValidating, validating, mustBarrier(t, certs.KindValidating, shared.RESTConfig)},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := story.Within(t, time.Minute)
			ref := certs.Ref{Kind: test.kind, Name: "called-" + name}
			hook := webhooks(t, test.kind, ref.Name, "called.example.org")
			w := hook.Object["webhooks"].([]any)[0].(map[string]any)
			w["failurePolicy"] = "Fail"
			w["objectSelector"] = map[string]any{"matchLabels": map[string]any{"called": name}}
			w["rules"] = []any{map[string]any{"operations": []any{"CREATE"}, "apiGroups": []any{""}, "apiVersions": []any{"v1"}, "resources": []any{"configmaps"}}}
			w["clientConfig"] = map[string]any{"service": map[string]any{"namespace": namespace, "name": "tracehook-proof", "port": int64(shared.port), "path": "/" + name}}
			apply(t, test.resource, hook)
			for round := range rounds {
				ca := newCA(t)
				leaf := leafOf(t, ca, proofName)
				serving(fixed(leaf))
				change := adding(ca)
				change.Only = true
				must(publisher.Publish(ctx, ref, change, time.Now()))(t)
				claim := certs.Claim{Generation: fmt.Sprintf("%s-%d", name, round), Bundle: pemOf(t, ca), Leaf: leaf.Certificate}
				must(test.prover.Prove(ctx, claim))(t)
				for i, server := range servers {
					_, err := server.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "probe", Labels: map[string]string{"called": name}}},
						metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
					if err == nil || !strings.Contains(err.Error(), "status code 418") { // the server's answer, so the handshake was well
						t.Errorf("round %d, API server %d: %v", round, i+1, err)
					}
				}
			}
		})
	}
}

// The same claim for conversion webhooks. Each round has a CA that nobody knew before and that the CRD trusts
// alone, and the webhook ends its connections.
func TestAfterAProofTheNextConversionIsMadeWithWhatWasPublished(t *testing.T) {
	ref := certs.Ref{Kind: certs.KindCRD, Name: "conversions.example.org"}
	first := newCA(t)
	serving(fixed(leafOf(t, first, proofName)))
	object := manifest(t, fmt.Sprintf(conversion, "conversions", fmt.Sprintf(`{"strategy":"Webhook","webhook":{"conversionReviewVersions":["v1"],"clientConfig":{
		"caBundle":%q,"service":{"namespace":%q,"name":"tracehook-proof","port":%d,"path":"/convert"}}}}`, base64.StdEncoding.EncodeToString(pemOf(t, first)), namespace, shared.port)))
	spec := object.Object["spec"].(map[string]any)
	second := maps.Clone(spec["versions"].([]any)[0].(map[string]any))
	second["name"], second["storage"] = "v2", false
	spec["versions"] = append(spec["versions"].([]any), second)
	apply(t, crds, object)
	t.Cleanup(func() { _ = shared.any.Resource(crds).Delete(context.Background(), ref.Name, metav1.DeleteOptions{}) })
	stored := schema.GroupVersionResource{Group: "example.org", Version: "v1", Resource: "conversions"}
	eventually(t, "an object is stored", func() bool {
		_, err := shared.any.Resource(stored).Namespace(namespace).Create(t.Context(), manifest(t, `{"apiVersion":"example.org/v1","kind":"conversions","metadata":{"name":"one"}}`), metav1.CreateOptions{})
		return err == nil
	})
	converted := func(ctx context.Context, server *rest.Config) error {
		_, err := dynamic.NewForConfigOrDie(server).Resource(stored.GroupResource().WithVersion("v2")).Namespace(namespace).Get(ctx, "one", metav1.GetOptions{})
		return err
	}
	servers := []*rest.Config{shared.RESTConfig, shared.second.RESTConfig}
	for _, server := range servers {
		eventually(t, "it is converted", func() bool { return converted(t.Context(), server) == nil })
	}
	publisher := must(certs.NewPublisher(certs.PublisherOptions{Dynamic: shared.any}))(t)
	prover := mustBarrier(t, certs.KindCRD, shared.RESTConfig)
	// change returns how many API servers fail with the first conversion after it.
	change := func(ctx context.Context, generation string) (failed int) {
		ca := newCA(t)
		change := adding(ca)
		change.Only = true
		must(publisher.Publish(ctx, ref, change, time.Now()))(t)
		if generation != "" {
			must(prover.Prove(ctx, certs.Claim{Generation: generation}))(t)
		}
		serving(fixed(leafOf(t, ca, proofName)))
		errs := make([]error, len(servers))
		var group sync.WaitGroup
		for i, server := range servers {
			group.Go(func() { errs[i] = converted(ctx, server) })
		}
		group.Wait()
		for i, err := range errs {
			if err != nil {
				failed++
				if generation != "" {
					t.Errorf("%s: API server %d: %v", generation, i+1, err)
				}
			}
		}
		return failed
	}
	const rounds = 20
	ctx := story.Within(t, 3*time.Minute)
	without, with := 0, 0
	for round := range rounds {
		without += change(ctx, "")
		with += change(ctx, fmt.Sprintf("conversion-%d", round))
	}
	t.Logf("%d conversions, %d failed without a proof, %d with", 2*rounds*len(servers), without, with)
}
