package trust

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

var (
	mutating    = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
	validating  = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
	crds        = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	apiServices = schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
)

// manifests of the four kinds, none of which any request matches. None has a caBundle.
func manifest(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := json.Unmarshal([]byte(text), &object.Object); err != nil {
		t.Fatal(err)
	}
	return object
}

func webhooks(t *testing.T, kind, object string, names ...string) *unstructured.Unstructured {
	t.Helper()
	var list []string
	for _, name := range names {
		list = append(list, fmt.Sprintf(`{"name":%q,"admissionReviewVersions":["v1"],"sideEffects":"None","failurePolicy":"Ignore",
			"clientConfig":{"service":{"namespace":"team-a","name":"hook"}},
			"rules":[{"operations":["CREATE"],"apiGroups":["nobody.example.org"],"apiVersions":["v1"],"resources":["nothings"]}]}`, name))
	}
	return manifest(t, fmt.Sprintf(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":%q,"metadata":{"name":%q},"webhooks":[%s]}`, kind, object, strings.Join(list, ",")))
}

const conversion = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"%[1]s.example.org"},"spec":{
	"group":"example.org","scope":"Namespaced","names":{"plural":"%[1]s","singular":"%[1]s","kind":"%[1]s","listKind":"%[1]sList"},
	"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}],
	"conversion":%[2]s}}`

const throughWebhook = `{"strategy":"Webhook","webhook":{"conversionReviewVersions":["v1"],"clientConfig":{"service":{"namespace":"team-a","name":"hook","path":"/convert"}}}}`

func apply(t *testing.T, resource schema.GroupVersionResource, object *unstructured.Unstructured) {
	t.Helper()
	must(shared.any.Resource(resource).Apply(t.Context(), object.GetName(), object, metav1.ApplyOptions{FieldManager: "gitops", Force: true}))(t)
}

func get(t *testing.T, resource schema.GroupVersionResource, name string) *unstructured.Unstructured {
	t.Helper()
	return must(shared.any.Resource(resource).Get(t.Context(), name, metav1.GetOptions{}))(t)
}

// publisher is a Publisher with the right to read and patch these objects.
func publisher(t *testing.T, name string, rules ...rbacv1.PolicyRule) *certs.Publisher {
	t.Helper()
	config := user(t, name, map[string][]rbacv1.PolicyRule{"": rules})
	return must(certs.NewPublisher(certs.PublisherOptions{Dynamic: must(dynamic.NewForConfig(config))(t)}))(t)
}

// subjects are the CAs in each bundle of an object.
func subjects(t *testing.T, p *certs.Publisher, ref certs.Ref) (list []string) {
	t.Helper()
	for _, live := range must(p.Live(t.Context(), ref))(t) {
		var names []string
		anchors, ignored := certs.ParseBundle(live.Bundle)
		for _, c := range anchors {
			names = append(names, c.Subject.CommonName)
		}
		list = append(list, strings.Join(append(names, ignored...), "+"))
	}
	return list
}

// owned are the fields that a manager has applied, as the API server stores it.
func owned(object *unstructured.Unstructured, manager string) (fields string) {
	for _, entry := range object.GetManagedFields() {
		if entry.Manager == manager {
			fields += string(entry.Operation) + " " + string(entry.FieldsV1.GetRawBytes())
		}
	}
	return fields
}

func named(t *testing.T, name string) certs.KeyPair {
	t.Helper()
	return must(certs.NewCA(certs.CAOptions{Now: time.Now(), CommonName: name}))(t)
}

func adding(pairs ...certs.KeyPair) (change certs.BundleChange) {
	for _, p := range pairs {
		change.Add = append(change.Add, p.Certificate)
	}
	return change
}

func TestPublishingWritesTheBundleAndOwnsNothingElse(t *testing.T) {
	ctx, now := story.Within(t, time.Minute), time.Now()
	old, next := named(t, "old"), named(t, "next")
	for _, kind := range []struct {
		kind     string
		resource schema.GroupVersionResource
		object   *unstructured.Unstructured
		bundles  int
		owns     string
	}{
		{certs.KindMutating, mutating, webhooks(t, certs.KindMutating, "published", "a.example.org", "b.example.org"), 2,
			`Apply {"f:webhooks":{"k:{\"name\":\"a.example.org\"}":{".":{},"f:clientConfig":{"f:caBundle":{}},"f:name":{}},"k:{\"name\":\"b.example.org\"}":{".":{},"f:clientConfig":{"f:caBundle":{}},"f:name":{}}}}`},
		{certs.KindValidating, validating, webhooks(t, certs.KindValidating, "published", "a.example.org"), 1,
			`Apply {"f:webhooks":{"k:{\"name\":\"a.example.org\"}":{".":{},"f:clientConfig":{"f:caBundle":{}},"f:name":{}}}}`},
		{certs.KindCRD, crds, manifest(t, fmt.Sprintf(conversion, "publisheds", throughWebhook)), 1,
			`Apply {"f:spec":{"f:conversion":{"f:webhook":{"f:clientConfig":{"f:caBundle":{}}}}}}`},
		{certs.KindAPIService, apiServices, manifest(t, `{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"v1.published.example.org"},"spec":{
			"group":"published.example.org","version":"v1","groupPriorityMinimum":100,"versionPriority":100,"service":{"namespace":"team-a","name":"hook"}}}`), 1,
			`Apply {"f:spec":{"f:caBundle":{}}}`},
	} {
		t.Run(kind.kind, func(t *testing.T) {
			apply(t, kind.resource, kind.object)
			t.Cleanup(func() { // an APIService without a server makes others wait
				_ = shared.any.Resource(kind.resource).Delete(story.Within(t, time.Minute), kind.object.GetName(), metav1.DeleteOptions{})
			})
			ref := must(certs.ParseRef(kind.kind + "/" + kind.object.GetName()))(t)
			p := publisher(t, "publisher-"+strings.ToLower(kind.kind), right(kind.resource.Group, kind.resource.Resource, "get patch", kind.object.GetName()))
			want := func(when, bundle string) {
				t.Helper()
				if got := subjects(t, p, ref); !slices.Equal(got, slices.Repeat([]string{bundle}, kind.bundles)) {
					t.Errorf("%s the bundles hold %q, want %q", when, got, bundle)
				}
			}

			must(p.Publish(ctx, ref, adding(old), now))(t)
			done := must(p.Publish(ctx, ref, adding(next), now))(t)
			want("after two were added", "old+next")
			if len(done) != kind.bundles || !strings.HasPrefix(done[0], kind.kind+"/"+kind.object.GetName()) || !strings.Contains(done[0], `added certificate "CN=next"`) {
				t.Errorf("done is %q", done)
			}
			if got := owned(get(t, kind.resource, ref.Name), "tracehook-certs"); got != kind.owns {
				t.Errorf("the publisher owns %s\nwant %s", got, kind.owns)
			}

			before := get(t, kind.resource, ref.Name).GetResourceVersion()
			if done, err := p.Publish(ctx, ref, adding(old, next), now); err != nil || len(done) > 0 {
				t.Errorf("nothing to do: done %q, %v", done, err)
			}
			if after := get(t, kind.resource, ref.Name).GetResourceVersion(); after != before {
				t.Error("something was written although nothing was to be done")
			}

			apply(t, kind.resource, kind.object) // a GitOps tool whose manifest has no bundle leaves it alone
			want("after the manifest was applied again", "old+next")

			wiped := get(t, kind.resource, ref.Name) // one that replaces the object does not
			for _, field := range [][]string{{"spec", "caBundle"}, {"spec", "conversion", "webhook", "clientConfig", "caBundle"}} {
				unstructured.RemoveNestedField(wiped.Object, field...)
			}
			if list, ok := wiped.Object["webhooks"].([]any); ok {
				for _, w := range list {
					unstructured.RemoveNestedField(w.(map[string]any), "clientConfig", "caBundle")
				}
			}
			must(shared.any.Resource(kind.resource).Update(ctx, wiped, metav1.UpdateOptions{FieldManager: "replacer"}))(t)
			want("after another writer wiped the field", "")
			must(p.Publish(ctx, ref, adding(old, next), now))(t)
			want("after it was published again", "old+next")

			must(p.Publish(ctx, ref, certs.BundleChange{Drop: adding(old).Add}, now))(t)
			want("after one was dropped", "next")
			_, err := p.Publish(ctx, ref, certs.BundleChange{Drop: adding(next).Add}, now)
			if err == nil || !strings.Contains(err.Error(), "would be empty") {
				t.Errorf("dropping the last one: %v", err)
			}
			want("after the last one was to be dropped", "next")
		})
	}
}

func TestPublishingToOneWebhookLeavesTheOthersBundlesWhereTheyAre(t *testing.T) {
	ctx, now := story.Within(t, time.Minute), time.Now()
	apply(t, mutating, webhooks(t, certs.KindMutating, "one-by-one", "a.example.org", "b.example.org", "c.example.org"))
	p := publisher(t, "publisher-one-by-one", right(mutating.Group, mutating.Resource, "get patch", "one-by-one"))
	whole := certs.Ref{Kind: certs.KindMutating, Name: "one-by-one"}
	one, two := whole, whole
	one.Webhook, two.Webhook = "a.example.org", "b.example.org"
	must(p.Publish(ctx, one, adding(named(t, "for a")), now))(t)
	must(p.Publish(ctx, two, adding(named(t, "for b")), now))(t)
	if got, want := subjects(t, p, whole), []string{"for a", "for b", ""}; !slices.Equal(got, want) {
		t.Errorf("the bundles hold %q, want %q", got, want)
	}
}

func TestConcurrentWritersOfOneBundleLoseNothing(t *testing.T) {
	ctx, now := story.Within(t, time.Minute), time.Now()
	apply(t, validating, webhooks(t, certs.KindValidating, "contested", "a.example.org"))
	p := publisher(t, "publisher-contested", right(validating.Group, validating.Resource, "get patch", "contested"))
	ref := certs.Ref{Kind: certs.KindValidating, Name: "contested"}
	const writers = 8
	var group sync.WaitGroup
	for range writers {
		ca := newCA(t)
		group.Go(func() {
			if _, err := p.Publish(ctx, ref, adding(ca), now); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	live := must(p.Live(ctx, ref))(t)
	if anchors, ignored := certs.ParseBundle(live[0].Bundle); len(anchors) != writers || len(ignored) > 0 {
		t.Errorf("%d of %d CAs are in the bundle, %q", len(anchors), writers, ignored)
	}
}

func TestAnAPIServiceBecomesVerifiedInOneUpdateAndNeverStopsWorking(t *testing.T) {
	ctx, now := story.Within(t, time.Minute), time.Now()
	must(shared.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team-b"}}, metav1.CreateOptions{}))(t)
	must(shared.admin.CoreV1().Services("team-b").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "things"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}, metav1.CreateOptions{}))(t)
	ca := newCA(t)
	serving(fixed(leafOf(t, ca, "things.team-b.svc")))
	apply(t, apiServices, manifest(t, fmt.Sprintf(`{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"v1.things.example.org"},"spec":{
		"group":"things.example.org","version":"v1","groupPriorityMinimum":100,"versionPriority":100,"insecureSkipTLSVerify":true,
		"service":{"namespace":"team-b","name":"things","port":%d}}}`, shared.port)))
	t.Cleanup(func() {
		_ = shared.any.Resource(apiServices).Delete(story.Within(t, time.Minute), "v1.things.example.org", metav1.DeleteOptions{})
	})
	eventually(t, "the aggregated API answers", func() bool {
		return answer(t, shared.RESTConfig) == http.StatusOK && answer(t, shared.second.RESTConfig) == http.StatusOK
	})

	p := publisher(t, "publisher-things", right(apiServices.Group, apiServices.Resource, "get patch", "v1.things.example.org"))
	ref := certs.Ref{Kind: certs.KindAPIService, Name: "v1.things.example.org"}
	if _, err := p.Publish(ctx, ref, adding(ca), now); err == nil || !strings.Contains(err.Error(), "in the same update") {
		t.Errorf("a bundle beside insecureSkipTLSVerify: %v", err)
	}
	generation := get(t, apiServices, ref.Name).GetResourceVersion()
	watching := must(shared.any.Resource(apiServices).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + ref.Name, ResourceVersion: generation}))(t)
	defer watching.Stop()
	change := adding(ca)
	change.Verify = true
	must(p.Publish(ctx, ref, change, now))(t)
	event := (<-watching.ResultChan()).Object.(*unstructured.Unstructured)
	bundle, _, _ := unstructured.NestedString(event.Object, "spec", "caBundle")
	insecure, _, _ := unstructured.NestedBool(event.Object, "spec", "insecureSkipTLSVerify")
	if insecure || bundle != base64.StdEncoding.EncodeToString(pemOf(t, ca)) {
		t.Errorf("the first change left insecureSkipTLSVerify %t and a bundle of %d bytes", insecure, len(bundle))
	}
	// From here on as in a rotation: the next CA beside the old one, proof, the next leaf, and only it.
	for round := range 6 {
		next := newCA(t)
		must(p.Publish(ctx, ref, adding(next), now))(t)
		barrier(t, certs.KindAPIService, fmt.Sprintf("verified-%d", round))
		serving(fixed(leafOf(t, next, "things.team-b.svc")))
		for i, config := range []*rest.Config{shared.RESTConfig, shared.second.RESTConfig} {
			if status := answer(t, config); status != http.StatusOK {
				t.Errorf("round %d, API server %d: the aggregated API answers with %d", round, i+1, status)
			}
		}
		must(p.Publish(ctx, ref, certs.BundleChange{Add: adding(next).Add, Only: true}, now))(t)
	}
}

// answer is the status with which an API server passes on what the aggregated API says. Each asks over a fresh connection.
func answer(t *testing.T, config *rest.Config) int {
	t.Helper()
	client := must(rest.HTTPClientFor(config))(t)
	defer client.CloseIdleConnections()
	response, err := client.Get(config.Host + "/apis/things.example.org/v1")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

func barrier(t *testing.T, kind, generation string) {
	t.Helper()
	must(mustBarrier(t, kind, shared.RESTConfig).Prove(story.Within(t, time.Minute), certs.Claim{Generation: generation}))(t)
}

func TestPublishingSaysWhatToDoWhenThereIsNoSuchWebhook(t *testing.T) {
	ctx := story.Within(t, time.Minute)
	apply(t, mutating, webhooks(t, certs.KindMutating, "two", "a.example.org", "b.example.org"))
	apply(t, crds, manifest(t, fmt.Sprintf(conversion, "plains", `{"strategy":"None"}`)))
	p := must(certs.NewPublisher(certs.PublisherOptions{Dynamic: shared.any}))(t)
	for ref, want := range map[string]string{
		"MutatingWebhookConfiguration/two/c.example.org": `publish CA bundle of MutatingWebhookConfiguration/two/c.example.org: it has no webhook "c.example.org": name one of a.example.org, b.example.org, or none for all of them`,
		"CustomResourceDefinition/plains.example.org":    `publish CA bundle of CustomResourceDefinition/plains.example.org: its conversion strategy is not Webhook: nobody is called, and there is nothing to trust`,
		"APIService/v1.":                                    `publish CA bundle of APIService/v1.: it names no Service: the API server itself answers, and there is nothing to trust`,
		"ValidatingWebhookConfiguration/absent":             `publish CA bundle of ValidatingWebhookConfiguration/absent: validatingwebhookconfigurations.admissionregistration.k8s.io "absent" not found`,
		"MutatingWebhookConfiguration/absent/a.example.org": `publish CA bundle of MutatingWebhookConfiguration/absent/a.example.org: mutatingwebhookconfigurations.admissionregistration.k8s.io "absent" not found`,
	} {
		_, err := p.Publish(ctx, must(certs.ParseRef(ref))(t), adding(newCA(t)), time.Now())
		if err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", ref, err, want)
		}
		if got := apierrors.IsNotFound(err); got != strings.Contains(ref, "/absent") {
			t.Errorf("%s: IsNotFound is %t", ref, got)
		}
	}
	// An object that is not there is not made.
	if _, err := shared.any.Resource(mutating).Get(ctx, "absent", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}
