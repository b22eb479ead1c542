package webhook

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
)

// gitOpsOf is what the SERVER span of a request tells of an object with this metadata.
func gitOpsOf(tb testing.TB, object, metadata string) map[string]string {
	tb.Helper()
	var decoder reviewDecoder
	var r Request
	review := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"UPDATE",%q:{"metadata":%s}}}`, object, metadata)
	if err := decoder.decode([]byte(review), &r); err != nil {
		tb.Fatal(err)
	}
	o := &r.Object
	if object == "oldObject" {
		o = &r.OldObject
	}
	got := map[string]string{}
	for _, a := range appendGitOps(nil, o) {
		got[string(a.Key)] = a.Value.AsString()
	}
	return got
}

func TestAnObjectLeadsToItsApplicationAndItsCommit(t *testing.T) {
	const (
		kind, application            = "tracehook.gitops.kind", "tracehook.gitops.application"
		repository, name, headCommit = "vcs.repository.url.full", "vcs.ref.head.name", "vcs.ref.head.revision"
		hash, hash256                = "8f1b2a7c9d0e3f4a5b6c7d8e9f0a1b2c3d4e5f60", "8f1b2a7c9d0e3f4a5b6c7d8e9f0a1b2c3d4e5f608f1b2a7c9d0e3f4a5b6c7d8e"
	)
	type attributes = map[string]string
	tooLong := strings.Repeat("a", longestText)
	for _, test := range []struct {
		name, metadata string
		want           attributes
	}{
		{"nothing", `{"labels":{"app":"web"},"annotations":{"a":"b"}}`, attributes{}},
		{"no labels", `{"labels":null,"annotations":null}`, attributes{}},
		{"labels that are none", `{"labels":["a"],"annotations":{}}`, attributes{}},
		{"Flux's Kustomization", `{"labels":{"kustomize.toolkit.fluxcd.io/name":"shop","kustomize.toolkit.fluxcd.io/namespace":"flux-system"}}`,
			attributes{kind: "Kustomization", application: "flux-system/shop"}},
		{"the name is escaped", `{"labels":{"kustomize.toolkit.fluxcd.io\/name":"sh\u006fp"}}`, attributes{kind: "Kustomization", application: "shop"}},
		{"Flux's HelmRelease", `{"labels":{"helm.toolkit.fluxcd.io/name":"redis","helm.toolkit.fluxcd.io/namespace":"shop","app.kubernetes.io/instance":"redis"}}`,
			attributes{kind: "HelmRelease", application: "shop/redis"}},
		{"Argo CD's annotation", `{"annotations":{"argocd.argoproj.io/tracking-id":"shop:apps/Deployment:shop/web"}}`, attributes{kind: "Application", application: "shop"}},
		{"of an Application in another namespace", `{"annotations":{"argocd.argoproj.io/tracking-id":"team-a_shop:apps/Deployment:shop/web"}}`,
			attributes{kind: "Application", application: "team-a/shop"}},
		{"an annotation that says nothing", `{"annotations":{"argocd.argoproj.io/tracking-id":"shop"}}`, attributes{}},
		{"Argo CD's own label", `{"labels":{"argocd.argoproj.io/instance":"shop"}}`, attributes{kind: "Application", application: "shop"}},
		{"the label that Helm and people write, too", `{"labels":{"app.kubernetes.io/instance":"shop"}}`, attributes{application: "shop"}},
		{"a label that is no text", `{"labels":{"app.kubernetes.io/instance":7,"argocd.argoproj.io/instance":null}}`, attributes{}},
		{"kustomize's origin", `{"annotations":{"config.kubernetes.io/origin":"path: web.yaml\nrepo: https://github.com/example/shop.git\nref: v1.2\n"}}`,
			attributes{repository: "https://github.com/example/shop", name: "v1.2"}},
		{"an origin by commit", `{"annotations":{"config.kubernetes.io/origin":"repo: git@github.com:example/shop.git\nref: ` + hash + `\n"}}`,
			attributes{repository: "github.com:example/shop", headCommit: hash}},
		{"an origin of this repository", `{"annotations":{"config.kubernetes.io/origin":"path: web.yaml\n"}}`, attributes{}},
		{"OCI's annotations, as Flux has revisions", `{"annotations":{"org.opencontainers.image.source":"ssh://git@example.org/shop.git","org.opencontainers.image.revision":"release/7@sha1:` + hash + `"}}`,
			attributes{repository: "ssh://example.org/shop", name: "release/7", headCommit: hash}},
		{"a commit alone", `{"annotations":{"org.opencontainers.image.revision":"` + hash + `"}}`, attributes{headCommit: hash}},
		{"a commit of SHA-256", `{"annotations":{"org.opencontainers.image.revision":"sha256:` + hash256 + `"}}`, attributes{headCommit: hash256}},
		{"a commit in short", `{"annotations":{"org.opencontainers.image.revision":"8f1b2a7"}}`, attributes{headCommit: "8f1b2a7"}},
		{"a token in an address", `{"annotations":{"org.opencontainers.image.source":"https://me:hunter2@example.org/shop.git?token=hunter2#hunter2"}}`,
			attributes{repository: "https://example.org/shop"}},
		{"a token in half an address", `{"annotations":{"org.opencontainers.image.source":"me:hunter2@example.org/shop"}}`, attributes{repository: "example.org/shop"}},
		{"a token in what is none", `{"annotations":{"org.opencontainers.image.source":"https://me:hun ter2@ex ample/"}}`, attributes{}},
		{"a token in an address in an address", `{"annotations":{"org.opencontainers.image.source":"https://ghproxy.example/https://hunter2@github.com/example/shop"}}`, attributes{}},
		{"escaped there", `{"annotations":{"org.opencontainers.image.source":"https://ghproxy.example/https%3A%2F%2Fhunter2%40github.com/example/shop"}}`, attributes{}},
		{"an address in an address", `{"annotations":{"org.opencontainers.image.source":"https://ghproxy.example/https://github.com/example/shop"}}`,
			attributes{repository: "https://ghproxy.example/https://github.com/example/shop"}},
		{"an address instead of a revision", `{"annotations":{"org.opencontainers.image.revision":"https://me:hunter2@example.org/shop"}}`, attributes{}},
		{"an address instead of a ref", `{"annotations":{"config.kubernetes.io/origin":"ref: https://me:hunter2@example.org/shop\n"}}`, attributes{}},
		{"what no label and no annotation here can be as long as", `{"labels":{"app.kubernetes.io/instance":"` + tooLong + `"},"annotations":{"argocd.argoproj.io/tracking-id":"` + tooLong +
			`:apps/Deployment:shop/web","org.opencontainers.image.revision":"` + tooLong + `"}}`, attributes{}},
		{"a token where none belongs", `{"annotations":{"org.opencontainers.image.source":"me@example.org"}}`, attributes{}},
	} {
		for _, object := range []string{"object", "oldObject"} {
			t.Run(test.name+" in "+object, func(t *testing.T) {
				if got := gitOpsOf(t, object, test.metadata); !maps.Equal(got, test.want) {
					t.Errorf("got  %v\nwant %v", got, test.want)
				}
			})
		}
	}
}

func TestTheServerSpanTellsTheApplicationAlsoOfWhatIsDeleted(t *testing.T) {
	for _, object := range []string{"object", "oldObject"} {
		handler, rec := newTestHandler(t, Options{})
		post(handler, fmt.Appendf(nil, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":%q,
			%q:{"metadata":{"labels":{"kustomize.toolkit.fluxcd.io/name":"shop","kustomize.toolkit.fluxcd.io/namespace":"flux-system"}}}}}`,
			map[string]string{"object": "CREATE", "oldObject": "DELETE"}[object], object))
		spans := rec.spans.Ended()
		server := spans[len(spans)-1]
		if !slices.Contains(server.Attributes(), keyApplication.String("flux-system/shop")) {
			t.Errorf("%s: the span %s has %v", object, server.Name(), server.Attributes())
		}
	}
}

func TestAnObjectThatNoGitOpsToolMadeCostsNoMemory(t *testing.T) {
	var decoder reviewDecoder
	var r Request
	body := []byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","object":{"metadata":{"labels":{"app":"web","b":"c"},"annotations":{"a":"b"}}}}}`)
	if err := decoder.decode(body, &r); err != nil {
		t.Fatal(err)
	}
	attrs := make([]attribute.KeyValue, 0, 16)
	if n := testing.AllocsPerRun(100, func() {
		if attrs = appendGitOps(attrs[:0], &r.Object); len(attrs) != 0 {
			t.Fatal(attrs)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	labelled := strings.Replace(string(body), `"labels":{"app":"web","b":"c"},`, "", 1)
	count := func(body []byte) float64 {
		return testing.AllocsPerRun(100, func() {
			r = Request{}
			if err := decoder.decode(body, &r); err != nil {
				t.Fatal(err)
			}
		})
	}
	if with, without := count(body), count([]byte(labelled)); with > without {
		t.Errorf("reading labels costs %v allocations more", with-without)
	}
}

// Whoever may write an object may write anything there: it stays short, it stays text, and no secret of an address gets through.
func FuzzWhatAnObjectSaysOfItsSourceIsShortText(f *testing.F) {
	for _, text := range []string{"shop:apps/Deployment:shop/web", "a_b:c", "repo: https://u:p@h/x.git\nref: main\n", "main@sha1:8f1b2a7c9d0e3f4a5b6c7d8e9f0a1b2c3d4e5f60",
		"https://u:p@h/x.git?a=b", "git@h:a/b.git", "\xff", strings.Repeat("ä", 300), "://@", "http://[::1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		quoted, err := json.Marshal(strings.ToValidUTF8(text, "?"))
		if err != nil {
			return
		}
		for _, key := range []string{argoTracking, origin, imageSource, imageRevision} {
			checkShort(t, gitOpsOf(t, "object", fmt.Sprintf(`{"annotations":{%q:%s}}`, key, quoted)))
		}
		for _, key := range []string{labelKustomization, labelHelmRelease, labelArgoInstance, labelInstance} {
			checkShort(t, gitOpsOf(t, "object", fmt.Sprintf(`{"labels":{%q:%s}}`, key, quoted)))
		}
		if url := repositoryURL("https://user:hunter2@" + text); strings.Contains(url, "hunter2@") {
			t.Errorf("%q leaves %q", text, url)
		}
	})
}

func checkShort(t *testing.T, attributes map[string]string) {
	t.Helper()
	for key, value := range attributes {
		if len(value) > mostText+len("…") || !utf8.ValidString(value) {
			t.Errorf("%s is %d bytes of %q", key, len(value), value)
		}
	}
}
