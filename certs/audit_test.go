package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tracehook/tracehook/certs"
)

// objectsOf is a client for the two kinds that the audit reads without types.
func objectsOf(objects ...map[string]any) *dynamicfake.FakeDynamicClient {
	var list []runtime.Object
	for _, o := range objects {
		list = append(list, &unstructured.Unstructured{Object: o})
	}
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}: "CustomResourceDefinitionList",
		{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}:             "APIServiceList",
	}, list...)
}

// serve answers TLS handshakes with a certificate, and dial leads there whatever the address, except to
// port 1, where nobody listens. handshakes counts.
func serve(t *testing.T, pair certs.KeyPair) (dial func(context.Context, string, string) (net.Conn, error), handshakes *atomic.Int32) {
	t.Helper()
	handshakes = new(atomic.Int32)
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = nil
	server.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{pair.Certificate.Raw}, PrivateKey: pair.Key}},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			handshakes.Add(1)
			if !slices.Equal(hello.SupportedProtos, []string{"http/1.1"}) {
				t.Errorf("the audit offers %v, API servers offer http/1.1", hello.SupportedProtos)
			}
			return nil, nil
		},
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasSuffix(address, ":1") {
			return nil, errors.New("connection refused")
		}
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}, handshakes
}

func service(name string, spec corev1.ServiceSpec) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: name}, Spec: spec}
}

func clusterIP(port int32) corev1.ServiceSpec {
	return corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.7", Ports: []corev1.ServicePort{{Name: "https", Port: port}}}
}

func webhook(name string, config admissionv1.WebhookClientConfig) *admissionv1.ValidatingWebhookConfiguration {
	return &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks:   []admissionv1.ValidatingWebhook{{Name: name + ".example.org", ClientConfig: config, FailurePolicy: new(admissionv1.Fail)}},
	}
}

func toService(name string, port int32, bundle []byte) admissionv1.WebhookClientConfig {
	return admissionv1.WebhookClientConfig{CABundle: bundle, Service: &admissionv1.ServiceReference{Namespace: "team-a", Name: name, Port: &port}}
}

// summary is a report as one line per target or endpoint.
func summary(r certs.AuditReport) string {
	var b strings.Builder
	codes := func(findings []certs.Finding) (list []certs.Code) {
		for _, f := range findings {
			list = append(list, f.Code)
		}
		return list
	}
	for _, t := range r.Targets {
		fmt.Fprintf(&b, "%s %s as %q, %s: %s %v\n", t.Worst, t, t.ServerName, t.Field, t.Service+t.URL, codes(t.Findings))
		for _, e := range t.Endpoints {
			works := "unknown"
			if e.Call != nil {
				works = fmt.Sprint(e.Call.Works)
			}
			fmt.Fprintf(&b, "  %s ready=%t works=%s %v\n", e.Address, !e.NotReady, works, codes(e.Findings))
		}
	}
	return b.String()
}

func TestTheAuditDialsWhatTheAPIServerDials(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	leaf := forge(t, &ca) // for hook.team-a.svc
	dial, _ := serve(t, leaf)
	good := bundle(ca)
	port := int32(9443)
	endpoints := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "hook-x", Labels: map[string]string{discoveryv1.LabelServiceName: "hook"}},
		Ports:      []discoveryv1.EndpointPort{{Name: new("https"), Port: &port}, {Name: new("metrics"), Port: new(int32(8080))}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.1"}},
			{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)}},
			{Addresses: []string{"fd00::1"}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}},
		},
	}
	clients := fake.NewClientset(
		service("hook", clusterIP(443)), endpoints,
		service("empty", clusterIP(443)),
		service("headless", corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "None", Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}),
		service("outside", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "hooks.example.org"}),
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "two"}, Webhooks: []admissionv1.MutatingWebhook{
			{Name: "first.example.org", ClientConfig: admissionv1.WebhookClientConfig{CABundle: good, Service: &admissionv1.ServiceReference{Namespace: "team-a", Name: "hook"}}},
			{Name: "second.example.org", ClientConfig: toService("outside", 8443, good)},
		}},
		webhook("a-no-service", toService("gone", 443, good)),
		webhook("b-no-port", toService("hook", 444, good)),
		webhook("c-no-endpoints", toService("empty", 443, []byte("not PEM"))),
		webhook("d-headless", toService("headless", 443, good)),
		webhook("e-url", admissionv1.WebhookClientConfig{URL: new("https://hook.team-a.svc/validate"), CABundle: good}),
		webhook("f-address", admissionv1.WebhookClientConfig{URL: new("https://192.0.2.1:8443/"), CABundle: good}),
		webhook("g-nobody", admissionv1.WebhookClientConfig{URL: new("https://hook.team-a.svc:1"), CABundle: good}),
		webhook("h-no-url", admissionv1.WebhookClientConfig{URL: new("http://plain.example.org")}),
	)
	crd := func(name string, spec map[string]any) map[string]any {
		return map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": name}, "spec": spec}
	}
	api := func(name string, spec map[string]any) map[string]any {
		return map[string]any{"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": map[string]any{"name": name}, "spec": spec}
	}
	encoded := base64.StdEncoding.EncodeToString(good)
	objects := objectsOf(
		crd("plain.example.org", map[string]any{"conversion": map[string]any{"strategy": "None"}}),
		crd("things.example.org", map[string]any{"conversion": map[string]any{"strategy": "Webhook", "webhook": map[string]any{
			"clientConfig": map[string]any{"caBundle": encoded, "service": map[string]any{"namespace": "team-a", "name": "hook", "port": int64(443)}}}}}),
		api("v1.", map[string]any{"version": "v1"}),
		api("v1.metrics.example.org", map[string]any{"insecureSkipTLSVerify": true, "service": map[string]any{"namespace": "team-a", "name": "hook"}}),
	)

	var progress []int
	report, err := certs.Audit(t.Context(), certs.AuditOptions{Clients: clients, Dynamic: objects, Now: now, Dial: dial,
		Progress: func(done, total int) { progress = append(progress, done, total) }})
	if err != nil {
		t.Fatal(err)
	}
	wanted := []string{
		`healthy MutatingWebhookConfiguration/two first.example.org as "hook.team-a.svc", webhooks[0].clientConfig.caBundle: team-a/hook:443 []`,
		`  10.0.0.1:9443 ready=true works=true []`,
		`  10.0.0.2:9443 ready=false works=true []`,
		`  [fd00::1]:9443 ready=true works=true []`,
		`error MutatingWebhookConfiguration/two second.example.org as "outside.team-a.svc", webhooks[1].clientConfig.caBundle: team-a/outside:8443 []`,
		`  hooks.example.org:8443 ready=true works=false [wrong-san]`,
		`error ValidatingWebhookConfiguration/a-no-service a-no-service.example.org as "gone.team-a.svc", webhooks[0].clientConfig.caBundle: team-a/gone:443 [service-missing]`,
		`error ValidatingWebhookConfiguration/b-no-port b-no-port.example.org as "hook.team-a.svc", webhooks[0].clientConfig.caBundle: team-a/hook:444 [service-unroutable]`,
		`error ValidatingWebhookConfiguration/c-no-endpoints c-no-endpoints.example.org as "empty.team-a.svc", webhooks[0].clientConfig.caBundle: team-a/empty:443 [no-endpoints bundle-not-pem]`,
		`error ValidatingWebhookConfiguration/d-headless d-headless.example.org as "headless.team-a.svc", webhooks[0].clientConfig.caBundle: team-a/headless:443 [service-unroutable no-endpoints]`,
		`healthy ValidatingWebhookConfiguration/e-url e-url.example.org as "hook.team-a.svc", webhooks[0].clientConfig.caBundle: https://hook.team-a.svc/validate []`,
		`  hook.team-a.svc:443 ready=true works=true []`,
		`error ValidatingWebhookConfiguration/f-address f-address.example.org as "192.0.2.1", webhooks[0].clientConfig.caBundle: https://192.0.2.1:8443/ []`,
		`  192.0.2.1:8443 ready=true works=false [san-kind-mismatch]`,
		`error ValidatingWebhookConfiguration/g-nobody g-nobody.example.org as "hook.team-a.svc", webhooks[0].clientConfig.caBundle: https://hook.team-a.svc:1 []`,
		`  hook.team-a.svc:1 ready=true works=false [unreachable]`,
		`error ValidatingWebhookConfiguration/h-no-url h-no-url.example.org as "", webhooks[0].clientConfig.caBundle: http://plain.example.org [invalid-url bundle-empty]`,
		`healthy CustomResourceDefinition/things.example.org as "hook.team-a.svc", spec.conversion.webhook.clientConfig.caBundle: team-a/hook:443 []`,
		`  10.0.0.1:9443 ready=true works=true []`,
		`  10.0.0.2:9443 ready=false works=true []`,
		`  [fd00::1]:9443 ready=true works=true []`,
		`warning APIService/v1.metrics.example.org as "hook.team-a.svc", spec.caBundle: team-a/hook:443 []`,
		`  10.0.0.1:9443 ready=true works=true [verification-off]`,
		`  10.0.0.2:9443 ready=false works=true [verification-off]`,
		`  [fd00::1]:9443 ready=true works=true [verification-off]`,
	}
	sameLines(t, strings.Split(strings.TrimSuffix(summary(report), "\n"), "\n"), wanted)
	if report.Worst != certs.Error || report.Incomplete || len(report.Problems) > 0 {
		t.Errorf("worst %s, incomplete %t, problems %q", report.Worst, report.Incomplete, report.Problems)
	}
	if e := report.Targets[0].Endpoints[0]; e.Issuer != "CN=CA" || e.Subject != "CN="+host || *e.DaysLeft != 79 || !e.ValidUntil.Equal(leaf.Certificate.NotAfter) {
		t.Errorf("issued by %s to %s, %d days left, until %s", e.Issuer, e.Subject, *e.DaysLeft, e.ValidUntil)
	}
	// One handshake for every address and name, however many targets share it.
	if last := progress[len(progress)-2:]; last[0] != 7 || last[1] != 7 {
		t.Errorf("progress ends with %d of %d, want 7 of 7", last[0], last[1])
	}

	// The audit log names a webhook by its Service and an aggregated API by the address it dials.
	report.Blame([]certs.Blame{{Host: host}, {Host: "10.96.0.7"}, {Host: "gone.example.org"}})
	if got := report.Blamed; len(got[0].Targets) != 6 || !slices.Equal(got[1].Targets, []string{"APIService/v1.metrics.example.org"}) || got[2].Targets != nil {
		t.Errorf("blamed: %+v", got)
	}
	for _, target := range report.Targets {
		findings := slices.Clone(target.Findings)
		for _, e := range target.Endpoints {
			findings = append(findings, e.Findings...)
		}
		for _, f := range findings {
			if f.Change == "" || f.Change != target.Where(f.Code) {
				t.Errorf("%s: nothing to change about %s", target, f.Code)
			}
		}
	}
}

func sameLines(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("line %d:\n got %s\nwant %s", i+1, g, w)
		}
	}
}

// Each webhook has a Service of its own and so a handshake of its own, each of which takes 50 ms:
// one after the other that is 15 s.
func TestHundredsOfTargetsTakeASecondOrTwo(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	dial, handshakes := serve(t, forge(t, &ca, sans("*.team-a.svc")))
	var objects []runtime.Object
	const many = 300
	for i := range many {
		name := fmt.Sprintf("hook-%03d", i)
		objects = append(objects, webhook(name, toService(name, 8443, bundle(ca))),
			service(name, corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}))
	}
	var open, most atomic.Int32
	start := time.Now()
	report, err := certs.Audit(t.Context(), certs.AuditOptions{Clients: fake.NewClientset(objects...), Dynamic: objectsOf(), Now: now,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			n := open.Add(1)
			defer open.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(50 * time.Millisecond)
			return dial(ctx, network, address)
		}})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	if len(report.Targets) != many || handshakes.Load() != many || report.Worst != certs.Healthy {
		t.Errorf("%d targets, %d handshakes, worst %s; want %d of both, healthy", len(report.Targets), handshakes.Load(), report.Worst, many)
	}
	if took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if most.Load() > 32 {
		t.Errorf("%d connections were being made at a time, want at most 32", most.Load())
	}
}

func TestWhatCannotBeLookedAtIsSaidBesideTheRest(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	dial, _ := serve(t, forge(t, &ca))
	clients := fake.NewClientset(
		webhook("a", admissionv1.WebhookClientConfig{URL: new("https://" + host), CABundle: bundle(ca)}),
		webhook("b-stuck", admissionv1.WebhookClientConfig{URL: new("https://stuck.example.org"), CABundle: bundle(ca)}),
		webhook("c-forbidden", toService("secret", 443, bundle(ca))),
	)
	forbidden := func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("forbidden") }
	clients.PrependReactor("list", "mutatingwebhookconfigurations", forbidden)
	clients.PrependReactor("get", "services", forbidden)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	report, err := certs.Audit(ctx, certs.AuditOptions{Clients: clients, Dynamic: objectsOf(), Now: now,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasPrefix(address, "stuck") {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, network, address)
		}})
	if err != nil {
		t.Fatal(err)
	}
	sameLines(t, strings.Split(strings.TrimSuffix(summary(report), "\n"), "\n"), []string{
		`healthy ValidatingWebhookConfiguration/a a.example.org as "hook.team-a.svc", webhooks[0].clientConfig.caBundle: https://hook.team-a.svc []`,
		`  hook.team-a.svc:443 ready=true works=true []`,
		`warning ValidatingWebhookConfiguration/b-stuck b-stuck.example.org as "stuck.example.org", webhooks[0].clientConfig.caBundle: https://stuck.example.org []`,
		`  stuck.example.org:443 ready=true works=unknown [unreachable]`,
		`warning ValidatingWebhookConfiguration/c-forbidden c-forbidden.example.org as "secret.team-a.svc", webhooks[0].clientConfig.caBundle: team-a/secret:443 [service-unknown]`,
	})
	if want := []string{"list mutatingwebhookconfigurations: forbidden", "endpoints not looked at, as the time was over: 1"}; !report.Incomplete || !slices.Equal(report.Problems, want) {
		t.Errorf("incomplete %t, problems %q, want %q", report.Incomplete, report.Problems, want)
	}

	clients.PrependReactor("list", "*", forbidden)
	objects := objectsOf()
	objects.PrependReactor("list", "*", forbidden)
	if _, err := certs.Audit(t.Context(), certs.AuditOptions{Clients: clients, Dynamic: objects, Now: now}); err == nil || !strings.Contains(err.Error(), "list apiservices: forbidden") {
		t.Errorf("nothing can be listed: %v", err)
	}
}

func TestAServerThatDoesNotSpeakTLSIsNamed(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 400 \x1b[31mBad Request\r\n\r\n")
			c.Close()
		}
	}()
	clients := fake.NewClientset(webhook("plain", admissionv1.WebhookClientConfig{URL: new("https://" + listener.Addr().String())}))
	report, err := certs.Audit(t.Context(), certs.AuditOptions{Clients: clients, Dynamic: objectsOf(), Now: now, DialTimeout: time.Minute, OnAPIServer: true})
	if err != nil {
		t.Fatal(err)
	}
	findings := report.Targets[0].Endpoints[0].Findings
	if last := findings[len(findings)-1]; last.Code != certs.HandshakeFailed || strings.Contains(last.Message, "\x1b") {
		t.Errorf("findings %+v", findings)
	}
}

func TestAReportIsJSONWithWordsForSeverities(t *testing.T) {
	text, err := json.Marshal(certs.AuditReport{Worst: certs.Warning})
	if err != nil || !strings.Contains(string(text), `"worst":"warning"`) {
		t.Errorf("%s, %v", text, err)
	}
	var back certs.AuditReport
	if err := json.Unmarshal(text, &back); err != nil || back.Worst != certs.Warning {
		t.Errorf("reads back as %+v, %v", back, err)
	}
}

func TestTheFourCountersAreReadOrMissed(t *testing.T) {
	var page strings.Builder
	for i, c := range certs.Counters() {
		fmt.Fprintf(&page, "# HELP %s [BETA] words\n# TYPE %s counter\n%s %d\n%s_more 9\n", c, c, c, i, c)
	}
	got, err := certs.ReadCounters([]byte(page.String()))
	if err != nil || len(got) != 4 {
		t.Fatalf("%v, %v", got, err)
	}
	for i, c := range got {
		if c.Name != certs.Counters()[i] || c.Value != int64(i) {
			t.Errorf("counter %d is %+v", i, c)
		}
	}
	if _, err := certs.ReadCounters([]byte("# nothing\n")); err == nil || !strings.Contains(err.Error(), string(certs.AggregatorInsecureSHA1)) {
		t.Errorf("without counters: %v", err)
	}
	if _, err := certs.ReadCounters([]byte(string(certs.WebhookMissingSAN) + " many\n")); err == nil {
		t.Error("a counter that is no number: no error")
	}
}

const auditLog = `{"stage":"RequestReceived","requestReceivedTimestamp":"2026-11-22T10:00:00.000000Z","annotations":{"missing-san.invalid-cert.kubernetes.io/b.x.svc":"twice"}}
{"stage":"ResponseComplete","requestReceivedTimestamp":"2026-11-22T10:00:00.000000Z","annotations":{"missing-san.invalid-cert.kubernetes.io/b.x.svc":"relies on","other":"x"}}
{"stage":"ResponseComplete","requestReceivedTimestamp":"2026-11-22T11:00:00.000000Z","annotations":{"missing-san.invalid-cert.kubernetes.io/b.x.svc":"relies on","insecure-sha1.invalid-cert.kubernetes.io/a.x.svc":"uses"}}
{"stage":"ResponseComplete"}
{"stage":"Respon`

func TestTheAuditLogNamesHostsOnceForEveryRequest(t *testing.T) {
	got, err := certs.ReadBlame(strings.NewReader(auditLog))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 22, 11, 0, 0, 0, time.UTC)
	want := []certs.Blame{{Host: "a.x.svc", Code: certs.InsecureSHA1, Requests: 1, Last: at}, {Host: "b.x.svc", Code: certs.MissingSAN, Requests: 2, Last: at}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("blamed %v, want %v", got, want)
	}
	if _, err := certs.ReadBlame(strings.NewReader("{}\nwords\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a log that is none: %v", err)
	}
}

// An audit log and metrics hold what clients and other people's servers put there.
func FuzzWhatTheAPIServerSaysIsRead(f *testing.F) {
	f.Add([]byte(auditLog))
	f.Add([]byte("{}\n" + string(certs.WebhookMissingSAN) + " 1e3\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		blamed, err := certs.ReadBlame(bytes.NewReader(said))
		if err != nil && len(blamed) > 0 {
			t.Errorf("blamed %v with error %v", blamed, err)
		}
		for _, b := range blamed {
			if b.Requests < 1 || (b.Code != certs.MissingSAN && b.Code != certs.InsecureSHA1) {
				t.Errorf("blamed %+v", b)
			}
		}
		report := certs.AuditReport{Targets: []certs.TargetReport{{}}}
		report.Blame(blamed)
		if len(report.Blamed) != len(blamed) {
			t.Errorf("%d hosts of %d are in the report", len(report.Blamed), len(blamed))
		}
		if counters, err := certs.ReadCounters(said); err == nil && len(counters) != len(certs.Counters()) {
			t.Errorf("%d counters, and no error", len(counters))
		}
	})
}
