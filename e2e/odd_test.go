package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// One byte that is not UTF-8 loses a batch of spans, and so does one of more than 4 MiB. Whatever
// callers send, every call arrives in the trace store.
func TestEveryCallArrivesInTheTraceStoreWhateverCallersSend(t *testing.T) {
	const calls = 21
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		t.Run(protocol, func(t *testing.T) {
			endpoint := installed.CollectorGRPC
			if protocol != "grpc" {
				endpoint = installed.CollectorHTTP
			}
			webhook, err := installed.StartWebhook(story.Within(t, time.Minute), cluster.WebhookOptions{
				CertDir: installed.certDir, Name: "tracehook-" + strings.ReplaceAll(protocol, "/", "-"),
				Env: []string{
					"OTEL_EXPORTER_OTLP_PROTOCOL=" + protocol, "OTEL_EXPORTER_OTLP_ENDPOINT=http://" + endpoint,
					"OTEL_BSP_SCHEDULE_DELAY=2000", // so that all of them are in one batch
					"OTEL_RESOURCE_ATTRIBUTES=team=%ff",
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = webhook.Stop() })
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // it is on loopback
			id := fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()|1)
			for i := range calls {
				name, agent := "web", "kube-apiserver-admission"
				switch i {
				case 3:
					agent = "x\xff"
				case 5, 6:
					name = strings.Repeat("x", 2_500_000)
				}
				body := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","name":%q,"resource":{"version":"v1","resource":"pods"},"object":{"metadata":{}}}}`, name)
				r, err := http.NewRequestWithContext(story.Within(t, time.Minute), http.MethodPost, fmt.Sprintf("https://127.0.0.1:%d/mutate?timeout=10s", webhook.Port), strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				r.Header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {agent}, "Traceparent": {fmt.Sprintf("00-%s-%016x-01", id, i+1)}}
				resp, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Fatalf("call %d: %s", i, resp.Status)
				}
			}
			store := tracestore.Client{BaseURL: installed.JaegerURL}
			if _, err := store.Wait(story.Within(t, 30*time.Second), id, func(got tracestore.Trace) error {
				arrived := 0
				for _, span := range got.Spans {
					if span.Name == "POST /mutate" {
						arrived++
					}
				}
				if arrived != calls {
					return fmt.Errorf("%d of %d calls have arrived", arrived, calls)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A review of an UPDATE holds the object twice. '<' makes this one large in JSON only.
func TestAnUpdateOfALargeDeploymentIsStamped(t *testing.T) {
	large := func(image string) string {
		return strings.Replace(strings.NewReplacer("NAME", "large", "IMAGE", image).Replace(deploymentManifest), "name: main,",
			`name: main, env: [{name: SCRIPT, value: "`+strings.Repeat("<", 270_000)+`"}],`, 1)
	}
	created, _, _ := traced(t, installed.Kubeconfig, "create", "-f", manifest(t, large("app:1")))
	t.Cleanup(func() { mustKubectl(t, "delete", "deployment/large") })
	wantStamp(t, "deployment/large", created, "create")
	changed, _, _ := traced(t, installed.Kubeconfig, "replace", "-f", manifest(t, large("app:2")))
	wantStamp(t, "deployment/large", changed, "replace")
}

const (
	// The manifests leave the latter out. Both names have the same length, and so have the objects.
	withUs, withoutUs = "tracehook-asked", "kube-node-lease"
	// Each and every resource, and a failure of ours is a failure of the request.
	everything = `
apiVersion: v1
kind: Namespace
metadata: {name: tracehook-asked, labels: {with: tracehook}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: tracehook-of-everything}
webhooks:
- name: everything.tracehook.dev
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 10
  clientConfig:
    service: {name: tracehook, namespace: tracehook-system, port: PORT, path: /mutate}
    caBundle: BUNDLE
  namespaceSelector: {matchLabels: {with: tracehook}}
  rules:
  - {operations: ["*"], apiGroups: ["*"], apiVersions: ["*"], resources: ["*/*"]}
`
)

// installEverywhere makes the webhook be called for all that is in the namespace withUs, and for
// nothing in withoutUs.
func installEverywhere(t *testing.T) *http.Client {
	t.Helper()
	mustKubectl(t, "apply", "-f", manifest(t, strings.NewReplacer("PORT", fmt.Sprint(installed.webhook.Port),
		"BUNDLE", base64.StdEncoding.EncodeToString(installed.caBundle)).Replace(everything)))
	// The namespaces stay: to end one takes longer than this whole test.
	t.Cleanup(func() { mustKubectl(t, "delete", "mutatingwebhookconfiguration/tracehook-of-everything") })
	client, err := rest.HTTPClientFor(installed.RESTConfig)
	if err != nil {
		t.Fatal(err)
	}
	ctx := story.Within(t, time.Minute)
	for { // until it is in force
		_, body := send(ctx, t, client, http.MethodPost, "/api/v1/namespaces/"+withUs+"/configmaps?dryRun=All", `{"metadata":{"name":"probe"}}`)
		if strings.Contains(body, "tracehook.dev/traceparent") {
			return client
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the webhook is not in force: %s", body)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// send makes a request whose trace is sampled.
func send(ctx context.Context, t *testing.T, client *http.Client, method, path, body string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, installed.RESTConfig.Host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		r.Header.Set("Content-Type", "application/merge-patch+json")
	}
	r.Header.Set("Traceparent", fmt.Sprintf("00-%016x%016x-%016x-01", rand.Uint64(), rand.Uint64()|1, rand.Uint64()|1))
	r.Header.Set("Tracestate", "vendor=of-"+strings.Repeat("x", 200))
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// both makes a request in either namespace; NAMESPACE stands for it. What is taken
// without us is taken with us.
func both(t *testing.T, client *http.Client, what, method, path, body string) (status int, answer string) {
	t.Helper()
	in := func(namespace string) (int, string) {
		named := strings.NewReplacer("NAMESPACE", namespace)
		return send(story.Within(t, time.Minute), t, client, method, named.Replace(path), named.Replace(body))
	}
	want, without := in(withoutUs)
	status, answer = in(withUs)
	if want < http.StatusMultipleChoices && status != want {
		t.Errorf("%s: with tracehook %d %.500s\nwithout %d %.500s", what, status, answer, want, without)
	}
	return status, answer
}

// A patch that an API server cannot take refuses the user's request, whatever the failurePolicy.
func TestWhatTheAPIServerTakesWithoutUsItTakesWithUs(t *testing.T) {
	client := installEverywhere(t)
	const limit = 256 << 10

	t.Run("annotations near the limit", func(t *testing.T) {
		stamped, full := 0, 0
		for size := limit - 420; size <= limit+20; size += 20 {
			annotations, _ := json.Marshal(map[string]string{"a": strings.Repeat("<", size-1)})
			what := fmt.Sprintf("%d bytes", size)
			status, answer := both(t, client, what, http.MethodPost, "/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", fmt.Sprintf(`{"metadata":{"name":"a","annotations":%s}}`, annotations))
			if (status == http.StatusCreated) != (size <= limit) {
				t.Fatalf("%s: %d %.500s", what, status, answer)
			}
			if status != http.StatusCreated {
				continue
			}
			if strings.Contains(answer, "tracehook.dev/traceparent") {
				stamped++
			} else {
				full++
			}
		}
		if stamped == 0 || full == 0 {
			t.Errorf("%d were stamped and %d were full", stamped, full)
		}
	})

	t.Run("annotations that grow after the stamp", func(t *testing.T) {
		both(t, client, "create", http.MethodPost, "/api/v1/namespaces/NAMESPACE/configmaps", `{"metadata":{"name":"grows","annotations":{"a":"b"}}}`)
		for _, size := range []int{1000, limit - 300, limit - 100, limit - 10, limit} {
			annotations, _ := json.Marshal(map[string]string{"a": strings.Repeat("x", size-1)})
			status, answer := both(t, client, fmt.Sprint(size), http.MethodPatch, "/api/v1/namespaces/NAMESPACE/configmaps/grows", fmt.Sprintf(`{"metadata":{"annotations":%s},"data":{"size":"%d"}}`, annotations, size))
			if status != http.StatusOK {
				t.Errorf("%d bytes: %d %.500s", size, status, answer)
			}
			if stamped := strings.Contains(answer, `"tracehook.dev/traceparent":`); stamped != (size <= limit-400) {
				t.Errorf("%d bytes: stamped %t", size, stamped)
			}
		}
		for _, namespace := range []string{withUs, withoutUs} {
			mustKubectl(t, "-n", namespace, "delete", "configmap/grows")
		}
	})

	t.Run("apply near the limit", func(t *testing.T) {
		for _, namespace := range []string{withoutUs, withUs} {
			for _, image := range []string{"a:1", "a:2"} {
				file := manifest(t, applied(namespace, image, limit))
				if _, err := installed.Kubectl(story.Within(t, time.Minute), "apply", "-f", file); err != nil {
					t.Errorf("in %s: %v", namespace, err)
				}
			}
			mustKubectl(t, "-n", namespace, "delete", "deployment/bigenv")
		}
	})

	t.Run("random annotations", func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		fillers := []string{"x", "<", "\"", "ü", "\u2028", "\\", "日"}
		for round := range 40 {
			annotations := map[string]string{}
			left := limit - 300 + random.IntN(320)
			for i := range random.IntN(200) {
				key := fmt.Sprintf("example.com/key-%d", i)
				value := strings.Repeat(fillers[random.IntN(len(fillers))], random.IntN(20))
				annotations[key] = value
				left -= len(key) + len(value)
			}
			if random.IntN(3) == 0 {
				annotations["tracehook.dev/traceparent"] = "00-nothing"
				left -= len("tracehook.dev/traceparent") + len("00-nothing")
			}
			filler := fillers[random.IntN(len(fillers))]
			annotations["a"] = strings.Repeat(filler, (left-1)/len(filler)) + strings.Repeat("y", (left-1)%len(filler))
			text, _ := json.Marshal(annotations)
			both(t, client, fmt.Sprintf("seed 1 2, round %d", round), http.MethodPost, "/apis/apps/v1/namespaces/NAMESPACE/deployments?dryRun=All",
				fmt.Sprintf(`{"metadata":{"generateName":"a-","annotations":%s},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`, text))
		}
	})

	t.Run("objects near etcd's limit", func(t *testing.T) {
		create := func(what string, size int) int {
			status, _ := both(t, client, fmt.Sprintf("%s with %d bytes", what, size), http.MethodPost, "/apis/apps/v1/namespaces/NAMESPACE/deployments",
				fmt.Sprintf(`{"metadata":{"generateName":"a-"},"spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i","env":[{"name":"A","value":"%s"}]}]}}}}`, strings.Repeat("x", size)))
			return status
		}
		fits, tooLarge := 1_500_000, 1_600_000
		for tooLarge-fits > 16 {
			if middle := (fits + tooLarge) / 2; create("a Deployment", middle) == http.StatusCreated {
				fits = middle
			} else {
				tooLarge = middle
			}
		}
		for _, less := range []int{100, 300, 1000, 5000} {
			create("a Deployment", fits-less)
		}
		for _, namespace := range []string{withUs, withoutUs} {
			mustKubectl(t, "-n", namespace, "delete", "deployments", "--all", "--wait=false")
		}
	})

	t.Run("odd objects", func(t *testing.T) {
		for what, object := range map[string][2]string{
			"no metadata but a name":    {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"a"}}`},
			"null annotations":          {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"a","annotations":null}}`},
			"a name twice":              {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"a"},"data":{"a":"1","a":"2"}}`},
			"half a surrogate pair":     {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"a","annotations":{"a":"\ud83d"}}}`},
			"odd owners":                {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"a","ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"a","uid":"b"},{"apiVersion":"v1","kind":"Pod","name":"a","uid":"b"}]}}`},
			"an annotation of a number": {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"a","annotations":{"a":1}}}`},
			"opaque parameters with a name twice": {"/apis/resource.k8s.io/v1/namespaces/NAMESPACE/resourceclaims?dryRun=All",
				`{"apiVersion":"resource.k8s.io/v1","kind":"ResourceClaim","metadata":{"name":"a"},"spec":{"devices":{"requests":[{"name":"r","exactly":{"deviceClassName":"c"}}],"config":[{"opaque":{"driver":"gpu.example.com","parameters":{"a":1,"a":2}}}]}}}`},
			"a review of rights":             {"/apis/authorization.k8s.io/v1/namespaces/NAMESPACE/localsubjectaccessreviews", `{"metadata":{"namespace":"NAMESPACE"},"spec":{"user":"alice","resourceAttributes":{"namespace":"NAMESPACE","verb":"get","resource":"pods"}}}`},
			"another one":                    {"/apis/authorization.k8s.io/v1/subjectaccessreviews", `{"spec":{"user":"alice","resourceAttributes":{"namespace":"NAMESPACE","verb":"get","resource":"pods"}}}`},
			"a review of one's own rights":   {"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", `{"spec":{"resourceAttributes":{"namespace":"NAMESPACE","verb":"get","resource":"pods"}}}`},
			"a review of a token":            {"/apis/authentication.k8s.io/v1/tokenreviews", `{"spec":{"token":"a"}}`},
			"an event":                       {"/api/v1/namespaces/NAMESPACE/events?dryRun=All", `{"metadata":{"name":"a"},"involvedObject":{"namespace":"NAMESPACE"}}`},
			"a lease":                        {"/apis/coordination.k8s.io/v1/namespaces/NAMESPACE/leases?dryRun=All", `{"metadata":{"name":"a"},"spec":{}}`},
			"a pod with odd variables":       {"/api/v1/namespaces/NAMESPACE/pods?dryRun=All", `{"metadata":{"name":"a","annotations":{"tracehook.dev/inject-env":"true"}},"spec":{"containers":[{"name":"a","image":"b","env":null},{"name":"c","image":"d","env":[{"name":"TRACEPARENT","value":""}]}]}}`},
			"a pod without containers":       {"/api/v1/namespaces/NAMESPACE/pods?dryRun=All", `{"metadata":{"name":"a","annotations":{"tracehook.dev/inject-env":"true"}},"spec":{"containers":[null]}}`},
			"an endless name":                {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"` + strings.Repeat("a", 253) + `"}}`},
			"a map with names of every kind": {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"a","annotations":{"a.b/c":"~0~1/\"\\","A_b":"\u0000"}}}`},
			"a token of a ServiceAccount":    {"/api/v1/namespaces/NAMESPACE/serviceaccounts/default/token", `{"spec":{}}`},
			"many names":                     {"/api/v1/namespaces/NAMESPACE/configmaps?dryRun=All", `{"metadata":{"name":"a"},"data":{` + manyKeys(70_000) + `}}`},
		} {
			status, answer := both(t, client, what, http.MethodPost, object[0], object[1])
			if strings.Contains(object[0], "reviews") && status != http.StatusCreated {
				t.Errorf("%s: %d %.500s", what, status, answer)
			}
		}
	})
}

// applied is a Deployment whose annotation last-applied-configuration is a little shorter than the limit.
func applied(namespace, image string, limit int) string {
	object := func(script string) string {
		return fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"annotations":{},"name":"bigenv","namespace":%q},"spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},`+
			`"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"env":[{"name":"SCRIPT","value":%q}],"image":%q,"name":"c"}]}}}}`, namespace, script, image)
	}
	const key = "kubectl.kubernetes.io/last-applied-configuration"
	return object(strings.Repeat("x", limit-len(key)-len(object(""))-10))
}

func manyKeys(n int) string {
	var b bytes.Buffer
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"%d":""`, i)
	}
	return b.String()
}
