package chart

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// modes are the values of certs.mode, and the component of kustomize that is the same.
var modes = map[string]string{
	"split":        "certs-authority",
	"managed":      "certs-managed",
	"cert-manager": "certs-cert-manager",
	"files":        "certs-files",
}

// addOns are the other components, and the values that are the same. The order is the one in which kustomize is told, which decides
// the order of arguments and webhooks.
var addOns = []struct{ component, values string }{
	{"custom-resources", "customResources: {enabled: true}"},
	{"env-injection", "envInjection: {enabled: true}"},
	{"lifecycle", "lifecycle: {enabled: true}"},
	{"audit", "audit: {enabled: true}"},
	{"monitoring", "serviceMonitor: {enabled: true}\nprometheusRule: {enabled: true}\ndashboards: {enabled: true}"},
	{"port-10250", "port: 10250"},
	{"mtls", "mtls: {enabled: true}"},
}

// notInTheChart are components that no value adds.
var notInTheChart = []string{
	"certs-rights", "release", // parts of others
	"check",               // `helm test` is it
	"collector", "jaeger", // for a first look
}

func TestTheChartRendersWhatKustomizeRenders(t *testing.T) {
	for mode, component := range modes {
		t.Run(mode, func(t *testing.T) {
			compare(t, "certs: {mode: "+mode+"}", nil, component)
		})
		t.Run(mode+" with everything", func(t *testing.T) {
			text, components := "certs: {mode: "+mode+"}", []string{component}
			for _, addOn := range addOns {
				text += "\n" + addOn.values
				components = append(components, addOn.component)
			}
			var absent []string
			if mode != "split" { // the chart leaves out what would select nothing
				absent = []string{"Service/tracehook-authority-metrics", "ServiceMonitor/tracehook-authority"}
			}
			compare(t, text, absent, components...)
		})
	}
	for _, addOn := range addOns {
		t.Run("only "+addOn.component, func(t *testing.T) {
			var absent []string
			if addOn.component == "monitoring" {
				absent = []string{"Service/tracehook-lifecycle-metrics", "ServiceMonitor/tracehook-lifecycle"}
			}
			compare(t, addOn.values, absent, "certs-authority", addOn.component)
		})
	}
}

func TestEachComponentIsInTheChart(t *testing.T) {
	known := slices.Clone(notInTheChart)
	known = slices.AppendSeq(known, maps.Values(modes))
	for _, addOn := range addOns {
		known = append(known, addOn.component)
	}
	dirs, err := os.ReadDir(filepath.Join(deploy, "components"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if !slices.Contains(known, dir.Name()) {
			t.Errorf("components/%s is not in the chart, or not in this test", dir.Name())
		}
	}
}

// compare wants what Helm renders with values to be what kustomize renders with components, but for what is Helm's: its labels, and the
// namespace, which it makes itself and without labels.
func compare(t *testing.T, text string, absent []string, components ...string) {
	t.Helper()
	file := values(t, text)
	args := []string{"template", "tracehook", chart, "--namespace", namespace, "--values", file, "--kube-version", "v1.36.0"}
	got := objects(t, mustRun(t, "helm4", args...))
	for id, three := range objects(t, mustRun(t, "helm3", args...)) {
		for _, difference := range differences("", three, any(got[id])) {
			t.Errorf("Helm 3 renders something else than Helm 4: %s: %s", id, difference)
		}
	}
	want := objects(t, kustomize(t, components...))
	delete(want, "Namespace/"+namespace)
	for _, id := range absent {
		if want[id] == nil {
			t.Errorf("kustomize renders no %s", id)
		}
		delete(want, id)
	}
	for id, object := range got {
		labels := field(object, "metadata", "labels").(map[string]any)
		for key, value := range map[string]string{"app.kubernetes.io/instance": "tracehook", "app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "tracehook-0.1.0"} {
			if labels[key] != value {
				t.Errorf("%s: label %s is %v, want %s", id, key, labels[key], value)
			}
			delete(labels, key)
		}
		if id == "MutatingWebhookConfiguration/tracehook" {
			for _, webhook := range object["webhooks"].([]any) {
				expressions := field(webhook, "namespaceSelector", "matchExpressions").([]any)
				names := expressions[0].(map[string]any)
				if excluded := names["values"].([]any); excluded[len(excluded)-1] == namespace {
					names["values"] = excluded[:len(excluded)-1]
				} else {
					t.Errorf("%s: the release's own namespace is not excluded: %v", id, excluded)
				}
			}
		}
		if want[id] == nil {
			t.Errorf("%s: kustomize renders no such object", id)
		}
	}
	for id := range want {
		if got[id] == nil {
			t.Errorf("%s: the chart renders no such object", id)
			continue
		}
		for _, difference := range differences("", got[id], want[id]) {
			t.Errorf("%s: %s", id, difference)
		}
	}
}

// kustomize renders the base with components.
func kustomize(t *testing.T, components ...string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir()) // it takes only relative paths
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(deploy)
	if err != nil {
		t.Fatal(err)
	}
	deploy, err := filepath.Rel(dir, here)
	if err != nil {
		t.Fatal(err)
	}
	text := "resources: [" + deploy + "/base]\ncomponents:\n"
	for _, component := range components {
		text += "  - " + deploy + "/components/" + component + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return mustRun(t, "kubectl", "kustomize", dir)
}

// objects are the objects of a rendering, by kind and name.
func objects(t *testing.T, text string) map[string]map[string]any {
	t.Helper()
	found := map[string]map[string]any{}
	for document := range strings.SplitSeq("\n"+text, "\n---\n") {
		var object map[string]any
		if err := yaml.UnmarshalStrict([]byte(document), &object); err != nil {
			t.Fatalf("read what was rendered: %v\n%s", err, document)
		}
		if object == nil {
			continue
		}
		if field(object, "metadata", "annotations", "helm.sh/hook") != nil {
			continue // only `helm test` makes these
		}
		id := fmt.Sprintf("%v/%v", object["kind"], field(object, "metadata", "name"))
		if found[id] != nil {
			t.Fatalf("%s is rendered twice", id)
		}
		found[id] = object
	}
	return found
}

func field(object any, path ...string) any {
	for _, name := range path {
		fields, _ := object.(map[string]any)
		object = fields[name]
	}
	return object
}

// differences are the paths at which two objects differ, with both values.
func differences(path string, got, want any) (found []string) {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		if !ok {
			break
		}
		keys := slices.Collect(maps.Keys(want))
		for key := range got {
			if _, both := want[key]; !both {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		for _, key := range keys {
			found = append(found, differences(path+"."+key, got[key], want[key])...)
		}
		return found
	case []any:
		got, ok := got.([]any)
		if !ok || len(got) != len(want) {
			break
		}
		for i := range want {
			found = append(found, differences(fmt.Sprintf("%s[%d]", path, i), got[i], want[i])...)
		}
		return found
	}
	if !reflect.DeepEqual(got, want) {
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		found = append(found, fmt.Sprintf("%s is %s, want %s", path, g, w))
	}
	return found
}

// Nothing but the release's namespace decides where objects are and which names certificates, rights and the policy are for.
func TestEverythingFollowsTheReleasesNamespace(t *testing.T) {
	for mode := range modes {
		t.Run(mode, func(t *testing.T) {
			text := "certs: {mode: " + mode + "}"
			for _, addOn := range addOns {
				text += "\n" + addOn.values
			}
			render := func(namespace string) string {
				return mustRun(t, "helm4", "template", "tracehook", chart, "--namespace", namespace, "--values", values(t, text))
			}
			here, there := render(namespace), render("observability")
			if strings.Contains(there, namespace) {
				t.Errorf("it still says %s", namespace)
			}
			for id, want := range objects(t, strings.ReplaceAll(here, namespace, "observability")) {
				for _, difference := range differences("", objects(t, there)[id], want) {
					t.Errorf("%s: %s", id, difference)
				}
			}
		})
	}
}
