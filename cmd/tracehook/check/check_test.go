package check

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/certs"
)

// wantVerdict wants a status, and words in the message.
func wantVerdict(t *testing.T, v verdict, status Status, words string) {
	t.Helper()
	if v.status != status || !strings.Contains(v.message, words) {
		t.Errorf("%s: %s; want %s with %q", v.status, v.message, status, words)
	}
}

func TestEachCheckIsDeclaredWholeAndHasItsRowInTheManual(t *testing.T) {
	page, err := os.ReadFile("../../../docs/check.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, match := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| (.*\\?) \\|$").FindAllStringSubmatch(string(page), -1) {
		rows = append(rows, match[1]+": "+match[2])
	}
	var declared []string
	for _, check := range All() {
		declared = append(declared, check.Code+": "+check.Title)
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(check.Code) || !strings.HasSuffix(check.Title, "?") || check.look == nil {
			t.Errorf("%+v: want a code, a question and something that answers it", check)
		}
		if check.Remedy == "" && check.Code != "continued" { // which is never red
			t.Errorf("%s does not say what to do", check.Code)
		}
	}
	if !slices.Equal(rows, declared) {
		t.Errorf("docs/check.md has the rows\n%s\nwant\n%s", strings.Join(rows, "\n"), strings.Join(declared, "\n"))
	}
}

func TestVersionsAreJudgedByWhatTheManifestsNeed(t *testing.T) {
	for _, test := range []struct {
		version   string
		installed bool
		want      Status
	}{
		{"v1.27.16", false, StatusFail},
		{"v1.27.16", true, StatusFail},
		{"v1.28.15", false, StatusFail}, // install.yaml does not go in
		{"v1.28.15", true, StatusWarn},  // what is there went in
		{"v1.29.1-eks-508b6b3", false, StatusFail},
		{"v1.30.0", false, StatusOK},
		{"v1.33.4-gke.1036000", false, StatusOK},
		{"v1.36.3+k3s1", true, StatusOK},
		{"v2.0.0", true, StatusOK},
	} {
		v := utilversion.MustParseGeneric(test.version)
		if got := judgeVersion(test.version, v, test.installed); got.status != test.want {
			t.Errorf("%s, installed %v: %s (%s), want %s", test.version, test.installed, got.status, got.message, test.want)
		}
	}
}

// node is one with labels KEY=VALUE and addresses of types.
func node(name string, address corev1.NodeAddressType, pairs ...string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		n.Labels[key] = value
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: address, Address: "192.0.2.1"}}
	return n
}

func TestProvidersAreRecognisedAndTheirObstaclesNamed(t *testing.T) {
	private, public := corev1.NodeInternalIP, corev1.NodeExternalIP
	for _, test := range []struct {
		name     string
		seen     seen
		setup    setup
		provider provider
		want     Status
		words    string
	}{
		{"upstream", seen{"v1.36.3", []corev1.Node{node("a", private)}, nil}, setup{}, providerUnknown, StatusOK, "none"},
		{"kind", seen{"v1.36.3", nil, []string{"apps"}}, setup{}, providerUnknown, StatusOK, "none"},
		{"EKS by its version", seen{"v1.33.1-eks-508b6b3", nil, nil}, setup{}, providerEKS, StatusWarn, "9443"},
		{"EKS by a node", seen{"v1.33.1", []corev1.Node{node("a", private, "eks.amazonaws.com/nodegroup=x")}, nil}, setup{}, providerEKS, StatusWarn, "9443"},
		{"EKS, installed and called", seen{"v1.33.1-eks-508b6b3", nil, nil}, setup{installed: true, port: 9443, called: true}, providerEKS, StatusOK, "EKS"},
		{"EKS, on the host's network", seen{"v1.33.1-eks-508b6b3", nil, nil}, setup{installed: true, port: 9443, hostNetwork: true}, providerEKS, StatusOK, "EKS"},
		{"EKS, on 10250", seen{"v1.33.1-eks-508b6b3", nil, nil}, setup{installed: true, port: 10250}, providerEKS, StatusOK, "EKS"},
		{"Fargate, on 10250", seen{"v1.33.1-eks-508b6b3", []corev1.Node{node("f", private, "eks.amazonaws.com/compute-type=fargate")}, nil}, setup{port: 10250}, providerEKS, StatusWarn, "Fargate"},
		{"GKE, public", seen{"v1.33.4-gke.1036000", []corev1.Node{node("gke-a", public)}, nil}, setup{}, providerGKE, StatusOK, "GKE"},
		{"GKE, private", seen{"v1.33.4-gke.1036000", []corev1.Node{node("gke-a", private)}, nil}, setup{}, providerGKE, StatusWarn, "private cluster"},
		{"GKE, private, on 10250", seen{"v1.33.4-gke.1036000", []corev1.Node{node("gke-a", private)}, nil}, setup{port: 10250}, providerGKE, StatusOK, "GKE"},
		{"Autopilot", seen{"v1.33.4-gke.1036000", []corev1.Node{node("gk3-a", public)}, nil}, setup{}, providerAutopilot, StatusOK, "Autopilot"},
		{"Autopilot, rules for everything", seen{"v1.33.4-gke.1036000", []corev1.Node{node("gk3-a", public)}, nil}, setup{everything: true}, providerAutopilot, StatusWarn, "all groups"},
		{"Autopilot, hostNetwork", seen{"v1.33.4-gke.1036000", []corev1.Node{node("gk3-a", public)}, nil}, setup{hostNetwork: true}, providerAutopilot, StatusWarn, "hostNetwork"},
		{"AKS", seen{"v1.33.1", []corev1.Node{node("aks-a", private, "kubernetes.azure.com/cluster=x")}, nil}, setup{}, providerAKS, StatusWarn, "enforcer"},
		{"AKS, enforcer off", seen{"v1.33.1", []corev1.Node{node("aks-a", private, "kubernetes.azure.com/cluster=x")}, nil}, setup{installed: true, enforcerOff: true}, providerAKS, StatusOK, "AKS"},
		{"OpenShift", seen{"v1.33.1", nil, []string{"config.openshift.io"}}, setup{}, providerOpenShift, StatusOK, "OpenShift"},
		{"OpenShift, numeric user", seen{"v1.33.1", nil, []string{"config.openshift.io"}}, setup{numericIDs: true}, providerOpenShift, StatusWarn, "by number"},
		{"ROSA is OpenShift first", seen{"v1.33.1", []corev1.Node{node("a", private, "eks.amazonaws.com/x=y")}, []string{"config.openshift.io"}}, setup{}, providerOpenShift, StatusOK, "OpenShift"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, by := recognise(test.seen)
			if p != test.provider {
				t.Errorf("recognised as %q by %q, want %q", p, by, test.provider)
			}
			v := judgeProvider(situation{test.seen, test.setup, p}, by)
			wantVerdict(t, v, test.want, test.words)
			if v.status == StatusWarn && v.remedy == "" {
				t.Error("it does not say what to do")
			}
		})
	}
}

func TestWhatMattersToAProviderIsReadFromWhatIsInstalled(t *testing.T) {
	user := int64(1000)
	pod := &corev1.PodSpec{HostNetwork: true, SecurityContext: &corev1.PodSecurityContext{RunAsUser: &user},
		Containers: []corev1.Container{{Name: "tracehook", Args: []string{"serve"}, Ports: []corev1.ContainerPort{{Name: "webhook", ContainerPort: 10250}}}}}
	webhooks := []webhook{{MutatingWebhook: admissionv1.MutatingWebhook{Name: traceWebhook, Rules: []admissionv1.RuleWithOperations{{Rule: admissionv1.Rule{APIGroups: []string{"*"}}}}},
		annotations: map[string]string{"admissions.enforcer/disabled": "true"}}}
	if got, want := setupOf(webhooks, pod), (setup{installed: true, port: 10250, hostNetwork: true, numericIDs: true, everything: true, enforcerOff: true}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := setupOf(nil, nil); got != (setup{}) {
		t.Errorf("nothing is installed: %+v", got)
	}
}

func TestWhetherTheAPIServerTracesIsSaidAsFarAsItIsKnown(t *testing.T) {
	yes, no := true, false
	mine := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}})
	other := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{2}, SpanID: trace.SpanID{2}})
	for name, test := range map[string]struct {
		known tracing
		want  Status
		words string
	}{
		"spans in the store":               {tracing{stored: true}, StatusOK, "it traces"},
		"the gate is off":                  {tracing{gateOff: true}, StatusOK, "gate"},
		"the flag":                         {tracing{flag: &yes}, StatusOK, "--tracing-config-file"},
		"no flag":                          {tracing{flag: &no}, StatusOK, "it does not"},
		"a context was replaced":           {tracing{trial: &trial{sent: mine, stamp: other, trust: "parent"}}, StatusOK, "it traces"},
		"by serve itself, perhaps":         {tracing{trial: &trial{sent: mine, stamp: other, trust: "link"}}, StatusSkip, "not to be seen"},
		"a context went on":                {tracing{trial: &trial{sent: mine, stamp: mine, trust: "parent"}}, StatusOK, "it does not"},
		"of somebody privileged, perhaps":  {tracing{trial: &trial{sent: mine, stamp: mine, trust: "parent", privileged: true}}, StatusSkip, "not to be seen"},
		"a provider's":                     {tracing{provider: providerEKS}, StatusOK, "EKS lets nobody configure it"},
		"OpenShift's administrator may":    {tracing{provider: providerOpenShift}, StatusSkip, "not to be seen"},
		"nobody knows":                     {tracing{why: []string{"may not list pods"}}, StatusSkip, "may not list pods"},
		"a provider's, and it traces":      {tracing{provider: providerGKE, stored: true}, StatusOK, "it traces"},
		"what is known beats what is said": {tracing{provider: providerGKE, trial: &trial{sent: mine, stamp: other, trust: "parent"}}, StatusOK, "it traces"},
	} {
		t.Run(name, func(t *testing.T) { wantVerdict(t, judgeTracing(test.known), test.want, test.words) })
	}
	off := func(page string) bool {
		rest := iotest.ErrReader(errors.New("read on"))
		off, err := gateOff(io.MultiReader(strings.NewReader(page), rest))
		return off && err == nil // it does not read on
	}
	if !off("# TYPE x gauge\n"+`kubernetes_feature_enabled{name="APIServerTracing",stage="ALPHA"} 0`+"\n") || off(`kubernetes_feature_enabled{name="APIServerTracing",stage=""} 1`+"\n") || off("") {
		t.Error("the gate is not read as it is")
	}
}

func TestWhatMayNotBeReadIsSkipped(t *testing.T) {
	resource := schema.GroupResource{Resource: "pods"}
	wantVerdict(t, unread("list pods", apierrors.NewForbidden(resource, "", errors.New("no"))), StatusSkip, "may not list pods")
	wantVerdict(t, unread("list pods", apierrors.NewUnauthorized("no")), StatusSkip, "may not list pods")
	wantVerdict(t, unread("list pods", apierrors.NewNotFound(resource, "")), StatusSkip, "does not know")
	v := unread("list pods", errors.New("connection refused"))
	wantVerdict(t, v, StatusFail, "connection refused")
	if v.remedy == "" {
		t.Error("it does not say what to do")
	}
}

func TestInstalledMattersWhereItMustBe(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no"))
	for _, test := range []struct {
		installed installed
		must      bool
		want      Status
	}{
		{installed{yes: true, what: "Service a/b"}, true, StatusOK},
		{installed{what: "no x"}, false, StatusSkip},
		{installed{what: "no x"}, true, StatusFail},
		{installed{what: "no x", err: forbidden}, false, StatusSkip},
		{installed{what: "no x", err: forbidden}, true, StatusFail},
	} {
		if v := judgeInstalled(test.installed, test.must); v.status != test.want {
			t.Errorf("%+v, must %v: %s (%s), want %s", test.installed, test.must, v.status, v.message, test.want)
		}
	}
}

func TestRightsThatAreMissingAreNamed(t *testing.T) {
	missing := []right{{verb: "create", group: "apps", resource: "deployments"}, {verb: "get", resource: "secrets", name: "x"}}
	wantVerdict(t, judgeRights(39, missing, nil), StatusFail, "create deployments.apps, get secrets/x")
	wantVerdict(t, judgeRights(39, nil, missing), StatusFail, "not grant")
	wantVerdict(t, judgeRights(39, nil, nil), StatusOK, "39")
	wantVerdict(t, judgeRights(39, slices.Repeat(missing, 3), nil), StatusFail, "and 2 more")
}

// manifests are the objects of install.yaml.
func manifests(t *testing.T) (objects []map[string]any) {
	t.Helper()
	text, err := os.ReadFile("../../../deploy/install.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range strings.Split(string(text), "\n---\n") {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, object)
	}
	return objects
}

func TestTheRightsAskedForAreThoseThatInstallYAMLNeeds(t *testing.T) {
	plurals := map[string]bool{}
	for _, kind := range installKinds {
		plurals[kind.group+"/"+kind.resource] = true
	}
	used := map[string]bool{}
	rules := map[string]bool{}
	for _, object := range manifests(t) {
		kind := strings.ToLower(object["kind"].(string))
		group, _, found := strings.Cut(object["apiVersion"].(string), "/")
		if !found {
			group = ""
		}
		plural := kind + "s"
		if strings.HasSuffix(kind, "y") {
			plural = strings.TrimSuffix(kind, "y") + "ies"
		}
		if used[group+"/"+plural] = true; !plurals[group+"/"+plural] {
			t.Errorf("install.yaml has a %s, and nobody asks whether the installer may make one", kind)
		}
		if kind != "clusterrole" && kind != "role" {
			continue
		}
		text, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		var role rbacv1.Role
		if err := yaml.Unmarshal(text, &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				rules[rule.APIGroups[0]+"/"+resource] = true
			}
		}
	}
	for plural := range plurals {
		if !used[plural] {
			t.Errorf("nothing of install.yaml is in %s", plural)
		}
	}
	asked := map[string]bool{}
	for _, r := range granted {
		asked[r.group+"/"+r.resource] = true
	}
	for rule := range rules {
		if !asked[rule] && rule != "/services" { // which installKinds has
			t.Errorf("install.yaml grants rights on %s, and nobody asks whether the installer has them", rule)
		}
	}
}

// hook is a webhook of ours, with a bundle.
func hook(name string, bundle []byte) webhook {
	return webhook{configuration: "tracehook", MutatingWebhook: admissionv1.MutatingWebhook{Name: name, ClientConfig: admissionv1.WebhookClientConfig{
		CABundle: bundle, Service: &admissionv1.ServiceReference{Namespace: "tracehook-system", Name: "tracehook"},
	}}}
}

func TestOursAreFoundByTheNamesOfTheirWebhooks(t *testing.T) {
	found := ours([]admissionv1.MutatingWebhookConfiguration{
		{ObjectMeta: metav1.ObjectMeta{Name: "release-tracehook"}, Webhooks: []admissionv1.MutatingWebhook{{Name: traceWebhook}, {Name: environmentWebhook}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "tracehook-proof"}, Webhooks: []admissionv1.MutatingWebhook{{Name: proofWebhook}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "tracehook"}, Webhooks: []admissionv1.MutatingWebhook{{Name: "somebody.example.org"}}},
	})
	if len(found) != 2 || found[0].configuration != "release-tracehook" || found[1].Name != environmentWebhook {
		t.Errorf("found %v", found)
	}
}

func TestAWebhookConfigurationMustBeThereWithServiceAndBundle(t *testing.T) {
	wantVerdict(t, judgeWebhooks(nil, false), StatusFail, "nothing is stamped")
	wantVerdict(t, judgeWebhooks([]webhook{hook(environmentWebhook, []byte("x"))}, false), StatusFail, "nothing is stamped")
	wantVerdict(t, judgeWebhooks([]webhook{hook(traceWebhook, nil)}, false), StatusFail, "no caBundle yet: "+traceWebhook)
	wantVerdict(t, judgeWebhooks([]webhook{hook(traceWebhook, []byte("x"))}, true), StatusFail, "is not there")
	wantVerdict(t, judgeWebhooks([]webhook{hook(traceWebhook, []byte("x")), hook(environmentWebhook, []byte("x"))}, false), StatusOK, environmentWebhook)
}

// replica is a Pod of tracehook's.
func replica(name string, isReady bool, change ...func(*corev1.Pod)) corev1.Pod {
	status := corev1.ConditionFalse
	if isReady {
		status = corev1.ConditionTrue
	}
	pod := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{nameLabel: serverName}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "tracehook", Args: []string{"serve"},
			Env:   []corev1.EnvVar{{Name: "OTEL_EXPORTER_OTLP_ENDPOINT", Value: "http://otel-collector.$(POD_NAMESPACE).svc:4317"}},
			Ports: []corev1.ContainerPort{{Name: "webhook", ContainerPort: 9443}, {Name: "metrics", ContainerPort: 8080}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
	for _, c := range change {
		c(&pod)
	}
	return pod
}

func TestReplicasAreJudgedByWhatIsWanted(t *testing.T) {
	deployment := func(replicas, updated int32) *appsv1.Deployment {
		return &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &replicas}, Status: appsv1.DeploymentStatus{UpdatedReplicas: updated}}
	}
	waiting := func(reason string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}}
		}
	}
	restarted := func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3, LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled"}}}}
	}
	pending := func(p *corev1.Pod) {
		p.Status = corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable"}}}
	}
	a, b := replica("a", true), replica("b", true)
	for name, test := range map[string]struct {
		deployment *appsv1.Deployment
		pods       []corev1.Pod
		want       Status
		words      string
	}{
		"both Ready":                 {deployment(2, 2), []corev1.Pod{a, b}, StatusOK, "2 of 2"},
		"one not Ready":              {deployment(2, 2), []corev1.Pod{a, replica("b", false)}, StatusFail, "b (runs, and its readiness probe fails)"},
		"no image":                   {deployment(2, 2), []corev1.Pod{a, replica("b", false, waiting("ImagePullBackOff"))}, StatusFail, "b (ImagePullBackOff)"},
		"no node":                    {deployment(2, 2), []corev1.Pod{a, replica("b", false, pending)}, StatusFail, "b (Unschedulable)"},
		"a Pod is missing":           {deployment(2, 1), []corev1.Pod{a}, StatusFail, "there are 1"},
		"no Pod":                     {deployment(2, 0), nil, StatusFail, "there are 0"},
		"a roll-out is under way":    {deployment(2, 1), []corev1.Pod{a, b}, StatusFail, "newest roll-out"},
		"restarted":                  {deployment(2, 2), []corev1.Pod{a, replica("b", true, restarted)}, StatusWarn, "OOMKilled"},
		"one alone":                  {deployment(1, 1), []corev1.Pod{a}, StatusWarn, "1 Ready"},
		"scaled to nothing":          {deployment(0, 0), nil, StatusFail, "no replica"},
		"no Deployment and no Pods":  {nil, nil, StatusSkip, "outside"},
		"the Deployment is not read": {nil, []corev1.Pod{a, b}, StatusOK, "2 of 2"},
	} {
		t.Run(name, func(t *testing.T) { wantVerdict(t, judgeReplicas(test.deployment, test.pods), test.want, test.words) })
	}
}

func TestCertificatesAreJudgedByEachBundleForTheServicesName(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	name := certs.ServerName("tracehook-system", "tracehook")
	ca, err := certs.NewCA(certs.CAOptions{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	other, err := certs.NewCA(certs.CAOptions{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	caPEM, err := ca.CertificatePEM()
	if err != nil {
		t.Fatal(err)
	}
	otherPEM, err := other.CertificatePEM()
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(names ...string) []*x509.Certificate {
		issued, err := certs.Issue(ca, certs.LeafOptions{Now: now, Names: names})
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{issued.Certificate}
	}
	at := func(name string, chain []*x509.Certificate, err error) shown {
		return shown{endpoint{"192.0.2.1:9443", name, true}, chain, err}
	}
	refused := fmt.Errorf("%w: connection refused", errDial)
	trusted := []webhook{hook(traceWebhook, caPEM), hook(environmentWebhook, caPEM)}
	for title, test := range map[string]struct {
		webhooks []webhook
		shown    []shown
		now      time.Time
		inside   bool
		want     Status
		words    string
	}{
		"trusted":                     {trusted, []shown{at("a", leaf(name), nil), at("b", leaf(name), nil)}, now, true, StatusOK, "2 of 2 endpoints are trusted by 2 webhooks"},
		"no endpoint":                 {trusted, nil, now, true, StatusFail, "no endpoint"},
		"another CA":                  {[]webhook{hook(traceWebhook, otherPEM)}, []shown{at("a", leaf(name), nil)}, now, true, StatusFail, "a and " + traceWebhook},
		"one webhook's bundle alone":  {[]webhook{trusted[0], hook(environmentWebhook, otherPEM)}, []shown{at("a", leaf(name), nil)}, now, true, StatusFail, environmentWebhook},
		"another name":                {trusted, []shown{at("a", leaf("elsewhere.svc"), nil)}, now, true, StatusFail, "elsewhere.svc"},
		"expired":                     {trusted, []shown{at("a", leaf(name), nil)}, now.Add(8 * 24 * time.Hour), true, StatusFail, "expired"},
		"about to expire":             {trusted, []shown{at("a", leaf(name), nil)}, now.Add(6*24*time.Hour + 20*time.Hour), true, StatusWarn, "a and"},
		"out of reach, from outside":  {trusted, []shown{at("a", nil, refused)}, now, false, StatusSkip, "no endpoint can be reached from here (a)"},
		"out of reach, from inside":   {trusted, []shown{at("a", nil, refused)}, now, true, StatusFail, "connection refused"},
		"one of two out of reach":     {trusted, []shown{at("a", leaf(name), nil), at("b", nil, refused)}, now, false, StatusOK, "not reached from here: b"},
		"not ready and out of reach":  {trusted, []shown{at("a", leaf(name), nil), {endpoint{"x", "b", false}, nil, refused}}, now, true, StatusOK, "not reached from here: b"},
		"something that is not TLS":   {trusted, []shown{at("a", nil, errors.New("tls: first record does not look like a TLS handshake"))}, now, false, StatusFail, "first record"},
		"a caBundle that is not read": {[]webhook{hook(traceWebhook, []byte("x"))}, []shown{at("a", leaf(name), nil)}, now, true, StatusFail, traceWebhook},
	} {
		t.Run(title, func(t *testing.T) {
			v := judgeCertificates(test.webhooks, test.shown, name, test.now, test.inside)
			wantVerdict(t, v, test.want, test.words)
			if (v.status == StatusFail || v.status == StatusWarn) && (v.remedy == "" || strings.HasSuffix(v.remedy, "..")) {
				t.Errorf("what to do: %q", v.remedy)
			}
		})
	}
}

func TestALeaseThatIsNotRenewedHasNoLeader(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	wantVerdict(t, judgeLease("a", now.Add(-30*time.Second), now), StatusOK, "a leads")
	wantVerdict(t, judgeLease("a", now.Add(-2*time.Minute), now), StatusFail, "last seen")
	wantVerdict(t, judgeLease("", now, now), StatusFail, "nobody holds")
}

func TestNetworkPoliciesAreReadAsTheyWork(t *testing.T) {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	named, number, end := intstr.FromString("webhook"), intstr.FromInt32(9443), int32(9500)
	from := intstr.FromInt32(9000)
	otlp := intstr.FromInt32(4317)
	policy := func(spec networkingv1.NetworkPolicySpec) networkingv1.NetworkPolicy {
		return networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: spec}
	}
	in := func(rules ...networkingv1.NetworkPolicyIngressRule) networkingv1.NetworkPolicy {
		return policy(networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, Ingress: rules})
	}
	out := func(rules ...networkingv1.NetworkPolicyEgressRule) networkingv1.NetworkPolicy {
		return policy(networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Egress: rules})
	}
	everybody := networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &named}}}
	podsOnly := networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}
	block := networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24"}}}}
	others := in()
	others.Spec.PodSelector.MatchLabels = map[string]string{"app": "other"}
	for name, test := range map[string]struct {
		policies []networkingv1.NetworkPolicy
		pod      corev1.Pod
		want     Status
		words    string
	}{
		"none":                       {nil, replica("a", true), StatusOK, "none takes the Pods"},
		"somebody else's":            {[]networkingv1.NetworkPolicy{others}, replica("a", true), StatusOK, "none takes the Pods"},
		"the port by its name":       {[]networkingv1.NetworkPolicy{in(everybody)}, replica("a", true), StatusOK, "9443 is open"},
		"by its number":              {[]networkingv1.NetworkPolicy{in(networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &number}}})}, replica("a", true), StatusOK, "open"},
		"in a range":                 {[]networkingv1.NetworkPolicy{in(networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &from, EndPort: &end}}})}, replica("a", true), StatusOK, "open"},
		"another protocol":           {[]networkingv1.NetworkPolicy{in(networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &number}}})}, replica("a", true), StatusFail, "nobody"},
		"default deny":               {[]networkingv1.NetworkPolicy{in()}, replica("a", true), StatusFail, "nobody may call port 9443"},
		"default deny beside ours":   {[]networkingv1.NetworkPolicy{in(), in(everybody)}, replica("a", true), StatusOK, "open"},
		"Pods only":                  {[]networkingv1.NetworkPolicy{in(podsOnly)}, replica("a", true), StatusFail, "nobody"},
		"an address block":           {[]networkingv1.NetworkPolicy{in(block)}, replica("a", true), StatusOK, "192.0.2.0/24"},
		"no way out":                 {[]networkingv1.NetworkPolicy{in(everybody), out()}, replica("a", true), StatusFail, "no egress to port 4317"},
		"a way out":                  {[]networkingv1.NetworkPolicy{out(networkingv1.NetworkPolicyEgressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &otlp}}})}, replica("a", true), StatusOK, ""},
		"on the host's network":      {[]networkingv1.NetworkPolicy{in()}, replica("a", true, func(p *corev1.Pod) { p.Spec.HostNetwork = true }), StatusOK, "host"},
		"a Pod without a named port": {nil, replica("a", true, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil }), StatusSkip, "no port webhook"},
	} {
		t.Run(name, func(t *testing.T) {
			wantVerdict(t, judgePolicies(test.policies, test.pod, otlpPort(container(test.pod.Spec))), test.want, test.words)
		})
	}
}

func TestDryRunsAreJudgedByWhatComesBack(t *testing.T) {
	one := func(o outcome, change ...func(*tried)) tried {
		x := tried{webhook: traceWebhook, server: "https://a", outcome: o, where: "a Deployment in namespace default"}
		for _, c := range change {
			c(&x)
		}
		return x
	}
	environment := func(x *tried) { x.webhook = environmentWebhook }
	secondServer := func(x *tried) { x.server = "https://b" }
	for name, test := range map[string]struct {
		tries []tried
		want  Status
		words string
	}{
		"stamped":                          {[]tried{one(stamped)}, StatusOK, "a Deployment in namespace default"},
		"called, and not sampled":          {[]tried{one(unsampled)}, StatusOK, "not traced"},
		"not called":                       {[]tried{one(notCalled)}, StatusFail, "without a stamp"},
		"one API server does not reach it": {[]tried{one(stamped), one(notCalled, secondServer)}, StatusFail, "through https://b"},
		"both do":                          {[]tried{one(stamped), one(stamped, secondServer)}, StatusOK, "through 2 API servers"},
		"the environment's is not called":  {[]tried{one(stamped), one(notCalled, environment)}, StatusFail, environmentWebhook},
		"nobody asks for the environment":  {[]tried{one(stamped), one(noNamespace, environment)}, StatusOK, "no namespace asks"},
		"no namespace for the main one":    {[]tried{one(noNamespace)}, StatusFail, "takes no namespace"},
		"the call failed":                  {[]tried{one(callFailed, func(x *tried) { x.err = errors.New("x509: unknown authority") })}, StatusFail, "x509"},
		"refused by a policy":              {[]tried{one(refused, func(x *tried) { x.err = errors.New("quota") })}, StatusWarn, "quota"},
		"no right":                         {[]tried{one(forbidden)}, StatusSkip, "may not create"},
		"no kind":                          {[]tried{one(noSample)}, StatusSkip, "your kinds"},
		"an objectSelector":                {[]tried{one(stamped, func(x *tried) { x.labelled = true })}, StatusWarn, "objectSelector"},
		"no webhook":                       {nil, StatusSkip, "no webhook"},
	} {
		t.Run(name, func(t *testing.T) { wantVerdict(t, judgeTries(test.tries), test.want, test.words) })
	}
}

func TestADryRunIsOfAKindThatTheRulesTake(t *testing.T) {
	rule := func(group, resource string, operations ...admissionv1.OperationType) admissionv1.RuleWithOperations {
		return admissionv1.RuleWithOperations{Operations: operations, Rule: admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"v1"}, Resources: []string{resource}}}
	}
	for name, test := range map[string]struct {
		rules []admissionv1.RuleWithOperations
		want  string
	}{
		"Pods alone":        {[]admissionv1.RuleWithOperations{rule("", "pods", admissionv1.Create)}, "Pod"},
		"the gentler first": {[]admissionv1.RuleWithOperations{rule("", "pods", admissionv1.Create), rule("apps", "deployments", admissionv1.Create, admissionv1.Update)}, "Deployment"},
		"not on update":     {[]admissionv1.RuleWithOperations{rule("apps", "deployments", admissionv1.Update), rule("batch", "jobs", admissionv1.Create)}, "Job"},
		"everything":        {[]admissionv1.RuleWithOperations{rule("*", "*", admissionv1.Create)}, ""},
		"yours":             {[]admissionv1.RuleWithOperations{rule("example.org", "gadgets", admissionv1.Create)}, ""},
	} {
		s, found := sampleOf(webhook{MutatingWebhook: admissionv1.MutatingWebhook{Rules: test.rules}})
		if s.kind != test.want || found != (test.want != "") {
			t.Errorf("%s: %q, want %q", name, s.kind, test.want)
		}
	}
}

func TestADryRunIsMadeInANamespaceThatTheSelectorTakes(t *testing.T) {
	namespace := func(name string, pairs ...string) corev1.Namespace {
		n := corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		for _, pair := range pairs {
			key, value, _ := strings.Cut(pair, "=")
			n.Labels[key] = value
		}
		return n
	}
	all := []corev1.Namespace{namespace("zoo"), namespace("default"), namespace("kube-public"), namespace("asks", "ask=yes"), namespace("tracehook-system", excludeLabel+"=true")}
	for selector, want := range map[string][]string{
		"":                        {"default", "asks", "tracehook-system", "zoo"},
		"ask=yes":                 {"asks"},
		"nobody=has":              nil,
		excludeLabel + " != true": {"default", "asks", "zoo"},
	} {
		parsed, err := labels.Parse(selector)
		if err != nil {
			t.Fatal(err)
		}
		if got := selected(all, parsed); !slices.Equal(got, want) {
			t.Errorf("%q takes %v, want %v", selector, got, want)
		}
	}
}

func TestWhoseErrorADryRunMetIsKnown(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for want, err := range map[outcome]error{
		callFailed: apierrors.NewInternalError(errors.New(`failed calling webhook "trace-context.tracehook.dev": failed to call webhook: EOF`)),
		forbidden:  apierrors.NewForbidden(pods, "", errors.New(`User "x" cannot create resource "pods" in API group "" in the namespace "default"`)),
		refused:    apierrors.NewForbidden(pods, "x", errors.New("exceeded quota")),
		broken:     errors.New("connection refused"),
	} {
		if got := sortError(err); got != want {
			t.Errorf("%v is %d, want %d", err, got, want)
		}
	}
}

func TestWhoseTracesGoOnIsSaidInEachCase(t *testing.T) {
	yes := true
	mine := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}})
	other := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{2}, SpanID: trace.SpanID{2}})
	for name, test := range map[string]struct {
		trial trial
		known tracing
		want  Status
		words string
	}{
		"no dry run":                 {trial{}, tracing{}, StatusSkip, "no dry run"},
		"no stamp":                   {trial{sent: mine, trust: "parent"}, tracing{}, StatusOK, "does not reach"},
		"another trace":              {trial{sent: mine, stamp: other, trust: "parent"}, tracing{}, StatusOK, "does not continue your traces"},
		"serve does not believe it":  {trial{sent: mine, stamp: other, trust: "link"}, tracing{}, StatusOK, "--trust=link"},
		"mine, and it traces":        {trial{sent: mine, stamp: mine, trust: "parent", privileged: true}, tracing{flag: &yes}, StatusOK, "continues your traces"},
		"mine, and everybody's":      {trial{sent: mine, stamp: mine, trust: "parent"}, tracing{}, StatusOK, "everybody's"},
		"mine, and nobody knows why": {trial{sent: mine, stamp: mine, trust: "parent", privileged: true}, tracing{}, StatusOK, "Either"},
	} {
		t.Run(name, func(t *testing.T) { wantVerdict(t, judgeContinued(test.trial, test.known), test.want, test.words) })
	}
}

func TestSpansAreJudgedByWhatMovesAfterADryRun(t *testing.T) {
	unread := errors.New("its metrics answer 401 Unauthorized")
	for name, test := range map[string]struct {
		before, now []exported
		sampled     bool
		want        Status
		words       string
		settled     bool
	}{
		"exported":                    {[]exported{{name: "a", done: 5}, {name: "b"}}, []exported{{name: "a", done: 5}, {name: "b", done: 2}}, true, StatusOK, "2 spans", true},
		"lost":                        {[]exported{{name: "a", done: 5}}, []exported{{name: "a", done: 5, failed: 3}}, true, StatusFail, "a lost 3 spans", true},
		"lost by one of two":          {[]exported{{name: "a"}, {name: "b"}}, []exported{{name: "a", done: 5}, {name: "b", failed: 1}}, true, StatusFail, "b lost 1", true},
		"lost long ago":               {[]exported{{name: "a", failed: 9}}, []exported{{name: "a", failed: 9, done: 1}}, true, StatusOK, "1 spans", true},
		"nothing yet":                 {[]exported{{name: "a"}}, []exported{{name: "a"}}, true, StatusFail, "in time", false},
		"not sampled":                 {[]exported{{name: "a", done: 7}}, []exported{{name: "a", done: 7}}, false, StatusOK, "7 spans", true},
		"not sampled, nothing so far": {[]exported{{name: "a"}}, []exported{{name: "a"}}, false, StatusSkip, "not traced", true},
		"one that was not there":      {[]exported{{name: "a"}}, []exported{{name: "a"}, {name: "b", done: 90, failed: 9}}, true, StatusFail, "in time", false},
		"no replica":                  {nil, nil, true, StatusSkip, "no replica", true},
		"may not be read":             {[]exported{{name: "a", err: unread}}, []exported{{name: "a", err: unread}}, true, StatusSkip, "401", true},
	} {
		t.Run(name, func(t *testing.T) {
			v, settled := judgeSpans(test.before, test.now, test.sampled)
			wantVerdict(t, v, test.want, test.words)
			if settled != test.settled {
				t.Errorf("settled %v, want %v", settled, test.settled)
			}
		})
	}
}

func TestTheCountersOfSpansAreReadFromAPage(t *testing.T) {
	done, failed, err := readExported([]byte(`# TYPE otel_sdk_exporter_span_exported_total counter
otel_sdk_exporter_span_exported_total{otel_component_type="otlp_grpc_span_exporter"} 12
otel_sdk_exporter_span_exported_total{otel_component_type="otlp_grpc_span_exporter",error_type="rejected"} 3
# TYPE otel_sdk_processor_span_processed_total counter
otel_sdk_processor_span_processed_total{otel_component_type="batching_span_processor"} 12
otel_sdk_processor_span_processed_total{otel_component_type="batching_span_processor",error_type="queue_full"} 4
`))
	if done != 12 || failed != 7 || err != nil {
		t.Errorf("%v exported, %v lost, %v; want 12 and 7", done, failed, err)
	}
	if _, _, err := readExported([]byte("<html>")); err == nil {
		t.Error("a page of something else is no error")
	}
}

// answering is a Cluster whose API server answers so.
func answering(t *testing.T, config rest.Config, handler http.HandlerFunc) *Cluster {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	config.Host = server.URL
	c, err := New(Options{Config: &config, Namespace: "tracehook-system"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// asServiceAccount answers as if one of tracehook's namespace asked, whatever the credentials are.
func asServiceAccount(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/selfsubjectreviews") {
		fmt.Fprint(w, `{"kind":"SelfSubjectReview","apiVersion":"authentication.k8s.io/v1","status":{"userInfo":{"username":"system:serviceaccount:tracehook-system:tracehook-check"}}}`)
		return
	}
	w.WriteHeader(http.StatusForbidden)
	fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
}

func TestReplicasSeeNoTokenButThatOfAServiceAccountOfTheirs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("of-the-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		config rest.Config
		want   string
	}{
		"its own":                        {rest.Config{BearerToken: "own"}, "own"},
		"in a Pod":                       {rest.Config{BearerToken: "old", BearerTokenFile: file}, "of-the-file"},
		"the file is gone":               {rest.Config{BearerToken: "another's", BearerTokenFile: file + "2"}, ""},
		"an administrator impersonates":  {rest.Config{BearerToken: "root", Impersonate: rest.ImpersonationConfig{UserName: "system:serviceaccount:tracehook-system:tracehook-check"}}, ""},
		"a password beside it":           {rest.Config{BearerToken: "root", Username: "a"}, ""},
		"a program gives the credential": {rest.Config{ExecProvider: &clientcmdapi.ExecConfig{Command: "true", APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: "Never"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := answering(t, rest.Config{}, asServiceAccount)
			test.config.Host = c.Config.Host
			c.Config = &test.config // of which some would not let a client be made
			if got := c.ownToken(t.Context()); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func TestAReplicaIsAskedItselfAndForAShortPage(t *testing.T) {
	c := answering(t, rest.Config{BearerToken: "own"}, asServiceAccount)
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"it leads elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/metrics" {
				t.Errorf("the token %q went on to %s", r.Header.Get("Authorization"), r.URL.Path)
			}
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, "302"},
		"a long page": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("# x\n"), mostPage/4+1))
		}, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(test.answer)
			defer server.Close()
			address := server.Listener.Addr().(*net.TCPAddr)
			pod := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Args: []string{"serve", "--metrics-auth"}, Ports: []corev1.ContainerPort{{Name: "metrics", ContainerPort: int32(address.Port)}},
			}}}, Status: corev1.PodStatus{PodIP: address.IP.String()}}
			if _, _, err := c.counter(t.Context(), pod); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
}

func TestListsWithoutAnEndAreReadToABound(t *testing.T) {
	var asked []string
	c := answering(t, rest.Config{}, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path+"?limit="+r.URL.Query().Get("limit"))
		if len(asked) > 2*mostPages {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		kind := map[string]string{"/api/v1/namespaces": "NamespaceList", "/api/v1/nodes": "NodeList"}[r.URL.Path]
		fmt.Fprintf(w, `{"kind":%q,"apiVersion":"v1","metadata":{"continue":"more"},"items":[{"metadata":{"name":"a"}}]}`, kind)
	})
	if all, err := c.namespaces(t.Context()); err != nil || len(all) != mostPages {
		t.Errorf("%d namespaces, %v", len(all), err)
	}
	asked = nil
	if _, err := c.nodes(t.Context()); err != nil || !slices.Equal(asked, []string{"/api/v1/nodes?limit=50"}) {
		t.Errorf("%v, %v", asked, err)
	}
}

func TestSpansThatAreSwitchedOffAreNotMissed(t *testing.T) {
	for want, env := range map[string]corev1.EnvVar{
		"OTEL_TRACES_EXPORTER=none": {Name: "OTEL_TRACES_EXPORTER", Value: "none"},
		"OTEL_SDK_DISABLED=TRUE":    {Name: "OTEL_SDK_DISABLED", Value: "TRUE"},
		"":                          {Name: "OTEL_TRACES_EXPORTER", Value: "otlp"},
	} {
		if got := exporterOff(&corev1.Container{Env: []corev1.EnvVar{env}}); got != want {
			t.Errorf("%v: %q, want %q", env, got, want)
		}
	}
}

func TestFlagsAreReadAsServeReadsThem(t *testing.T) {
	c := &corev1.Container{Args: []string{"serve", "--certs", "managed", "--metrics-auth", "--trust=link", "--annotation-key=a/b", "--metrics-secure"}}
	for name, want := range map[string]string{"certs": "managed", "metrics-auth": "true", "trust": "link", "annotation-key": "a/b", "metrics-secure": "true", "metrics": "", "stamp": ""} {
		if got, given := flag(c, name); got != want || given != (want != "") {
			t.Errorf("--%s is %q (%v), want %q", name, got, given, want)
		}
	}
}

func TestEndpointsAreThoseOfTheServicesPort(t *testing.T) {
	webhookPort, other := "webhook", "metrics"
	yes, no, port, metrics := true, false, int32(9443), int32(8080)
	service := corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: webhookPort, Port: 443}}}}
	slice := discoveryv1.EndpointSlice{
		Ports: []discoveryv1.EndpointPort{{Name: &webhookPort, Port: &port}, {Name: &other, Port: &metrics}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"192.0.2.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "a"}},
			{Addresses: []string{"2001:db8::1"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"192.0.2.3"}, Conditions: discoveryv1.EndpointConditions{Terminating: &yes}},
		},
	}
	want := []endpoint{{"192.0.2.1:9443", "a", true}, {"[2001:db8::1]:9443", "[2001:db8::1]:9443", false}}
	if got := ofSlices([]discoveryv1.EndpointSlice{slice, slice}, service, 443); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestOnlyWhatChangesIsPrintedAgain(t *testing.T) {
	var out bytes.Buffer
	p := Printer{Out: &out}
	first := Report{Results: []Result{{"version", StatusOK, "Kubernetes v1.36.3", ""}, {"stamped", StatusFail, "no", "Wait."}}}
	second := Report{Results: []Result{first.Results[0], {"stamped", StatusOK, "yes\x1b[2J\nand no", ""}}}
	for _, report := range []Report{first, first, second} {
		if err := p.Print(report); err != nil {
			t.Fatal(err)
		}
	}
	want := `ok    version             Kubernetes v1.36.3
fail  stamped             no
                          do: Wait.
ok    stamped             yes�[2J and no
`
	if out.String() != want {
		t.Errorf("it prints\n%q\nwant\n%q", out.String(), want)
	}
	out.Reset()
	if err := (&Printer{Out: &out, Colour: true}).Print(first); err != nil || !strings.Contains(out.String(), "\x1b[31mfail\x1b[0m  stamped") {
		t.Errorf("in colour: %q, %v", out.String(), err)
	}
}

// An API server that answers nothing but its version and "no": nothing crashes.
func TestWithoutAnyRightEverythingIsSkippedOrSaidToBeMissing(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/version" {
			fmt.Fprint(w, `{"major":"1","minor":"36","gitVersion":"v1.36.3"}`)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"no"}`)
	}))
	defer server.Close()
	c, err := New(Options{Config: &rest.Config{Host: server.URL}, Namespace: "tracehook-system"})
	if err != nil {
		t.Fatal(err)
	}
	report := Run(t.Context(), c, time.Now())
	for _, r := range report.Results {
		if r.Status == StatusFail || r.Code != "version" && r.Status != StatusSkip {
			t.Errorf("%+v", r)
		}
	}
	if report.Installed || report.Failed() {
		t.Errorf("%+v", report)
	}
}

// The rights of deploy/components/check are for kinds that a dry run makes.
func TestTheComponentMayCreateWhatTheShippedWebhooksAreTriedWith(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "components", "check", "rbac.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var created []string
	for _, document := range strings.Split(string(text), "\n---\n") {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(document), &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			if slices.Contains(rule.Verbs, "create") {
				created = append(created, rule.Resources...)
			}
		}
	}
	var tried []string
	for _, object := range manifests(t) {
		if object["kind"] != "MutatingWebhookConfiguration" {
			continue
		}
		text, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		var configuration admissionv1.MutatingWebhookConfiguration
		if err := yaml.Unmarshal(text, &configuration); err != nil {
			t.Fatal(err)
		}
		for _, w := range ours([]admissionv1.MutatingWebhookConfiguration{configuration}) {
			if s, found := sampleOf(w); found {
				tried = append(tried, s.Resource)
			}
		}
	}
	// deploy/components/env-injection is tried with a Pod.
	if want := append(tried, "pods"); !slices.Equal(created, want) {
		t.Errorf("it may create %v, and tries %v", created, want)
	}
}
