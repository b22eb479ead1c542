package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

type dashboard struct {
	UID        string  `json:"uid"`
	Title      string  `json:"title"`
	Panels     []panel `json:"panels"`
	Templating struct {
		List []struct {
			Name  string          `json:"name"`
			Type  string          `json:"type"`
			Query json.RawMessage `json:"query"`
		} `json:"list"`
	} `json:"templating"`
	Annotations struct {
		List []struct {
			Expr string `json:"expr"`
		} `json:"list"`
	} `json:"annotations"`
}

type panel struct {
	ID          int        `json:"id"`
	Type        string     `json:"type"`
	Title       string     `json:"title"`
	Description string     `json:"description"`
	Datasource  datasource `json:"datasource"`
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit string `json:"unit"`
		} `json:"defaults"`
	} `json:"fieldConfig"`
	Targets []target `json:"targets"`
	Panels  []panel  `json:"panels"` // of a row that is folded
}

type target struct {
	RefID        string     `json:"refId"`
	Expr         string     `json:"expr"`
	LegendFormat string     `json:"legendFormat"`
	Datasource   datasource `json:"datasource"`
}

type datasource struct{ Type, UID string }

func shippedDashboard(t *testing.T) dashboard {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(component, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatalf("dashboard.json: %v", err)
	}
	return d
}

var variable = regexp.MustCompile(`\$\{?([A-Za-z_]+)`)

func TestTheDashboardIsWellFormed(t *testing.T) {
	d := shippedDashboard(t)
	if d.UID == "" || d.Title == "" {
		t.Error("it has no uid or no title")
	}
	variables := map[string]string{"__rate_interval": ""} // Grafana's own, and ours by name: type
	for _, v := range d.Templating.List {
		variables[v.Name] = v.Type
	}
	if variables["datasource"] != "datasource" {
		t.Errorf("variable datasource is of type %q: nobody could choose another Prometheus", variables["datasource"])
	}
	ours := datasource{Type: "prometheus", UID: "${datasource}"}
	ids := map[int]string{}
	taken := map[[2]int]string{} // column, line of the grid
	for _, p := range d.Panels {
		if p.Title == "" || p.ID == 0 {
			t.Errorf("panel %d %q has no title or no id", p.ID, p.Title)
		}
		if other, ok := ids[p.ID]; ok {
			t.Errorf("panels %q and %q have the same id", other, p.Title)
		}
		ids[p.ID] = p.Title
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok || x >= 24 {
					t.Fatalf("panel %q lies over %q or the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			if len(p.Panels) > 0 {
				t.Errorf("row %q is folded: what is in it is not tested", p.Title)
			}
			continue
		}
		if p.Description == "" {
			t.Errorf("panel %q has no description", p.Title)
		}
		if p.FieldConfig.Defaults.Unit == "" {
			t.Errorf("panel %q has no unit", p.Title)
		}
		if p.Datasource != ours {
			t.Errorf("panel %q asks %v, want %v", p.Title, p.Datasource, ours)
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q has no query", p.Title)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if q.Expr == "" || refs[q.RefID] || q.Datasource != ours {
				t.Errorf("panel %q, query %q: empty, twice the same refId, or another data source", p.Title, q.RefID)
			}
			refs[q.RefID] = true
			for _, match := range variable.FindAllStringSubmatch(q.Expr, -1) {
				if _, ok := variables[match[1]]; !ok {
					t.Errorf("panel %q uses $%s, which is no variable", p.Title, match[1])
				}
			}
		}
	}
}

// No metric tells timeoutSeconds, so a rule and the dashboard repeat it.
func TestTheTimeoutIsTheManifests(t *testing.T) {
	var configuration struct {
		Webhooks []struct {
			TimeoutSeconds json.Number `json:"timeoutSeconds"`
		} `json:"webhooks"`
	}
	readYAML(t, "../../deploy/base/mutatingwebhookconfiguration.yaml", &configuration)
	timeout, err := configuration.Webhooks[0].TimeoutSeconds.Float64()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range shippedDashboard(t).Templating.List {
		if v.Name == "timeout" {
			var shown string
			if err := json.Unmarshal(v.Query, &shown); err != nil || shown != configuration.Webhooks[0].TimeoutSeconds.String() {
				t.Errorf("the dashboard's variable timeout is %s, want %v", v.Query, timeout)
			}
		}
	}
	rules, _ := shippedRules(t)
	for _, r := range rules {
		if r.Alert == "TracehookSlow" && !strings.HasSuffix(strings.TrimSpace(r.Expr), "> "+trimmed(timeout/2)) {
			t.Errorf("TracehookSlow compares with something else than half of %v s: %s", timeout, r.Expr)
		}
	}
}

func trimmed(f float64) string { b, _ := json.Marshal(f); return string(b) }

// The parts fit each other and what they select: this is all that the operator of Prometheus goes by.
func TestPrometheusFindsThePodsAndGrafanaTheDashboard(t *testing.T) {
	// kustomize takes only relative paths, and follows them from the directory's real place.
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	deploy, err := filepath.Abs("../../deploy")
	if err != nil {
		t.Fatal(err)
	}
	if deploy, err = filepath.EvalSymlinks(deploy); err != nil {
		t.Fatal(err)
	}
	if deploy, err = filepath.Rel(dir, deploy); err != nil {
		t.Fatal(err)
	}
	deploy = filepath.ToSlash(deploy)
	text := fmt.Sprintf("resources: [%[1]s/base]\ncomponents: [%[1]s/components/monitoring]\n", deploy)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	rendered, err := run(t, "kubectl", "kustomize", dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, rendered)
	}

	type object struct {
		Kind     string
		Metadata struct {
			Name, Namespace string
			Labels          map[string]string
		}
		Data map[string]string
		Spec struct {
			ClusterIP, JobLabel string
			Selector            json.RawMessage // two forms
			Ports               []struct{ Name, TargetPort string }
			Endpoints           []struct{ Port string }
			Template            struct {
				Metadata struct{ Labels map[string]string }
				Spec     struct {
					Containers []struct{ Ports []struct{ Name string } }
				}
			}
		}
	}
	var service, monitor, deployment, configMap object
	for _, document := range strings.Split(rendered, "\n---\n") {
		var kind struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		into := map[string]*object{
			"Service/tracehook-metrics": &service, "ServiceMonitor/tracehook": &monitor,
			"Deployment/tracehook": &deployment, "ConfigMap/tracehook-dashboard": &configMap,
		}[kind.Kind+"/"+kind.Metadata.Name]
		if into == nil {
			continue
		}
		if err := yaml.Unmarshal([]byte(document), into); err != nil {
			t.Fatalf("%s: %v", kind.Kind, err)
		}
	}

	var pods map[string]string
	var services struct{ MatchLabels map[string]string }
	if err := json.Unmarshal(service.Spec.Selector, &pods); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(monitor.Spec.Selector, &services); err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		name           string
		selector, have map[string]string
	}{
		{"the Service and the pods", pods, deployment.Spec.Template.Metadata.Labels},
		{"the ServiceMonitor and the Service", services.MatchLabels, service.Metadata.Labels},
		{"Grafana's sidecar and the ConfigMap", map[string]string{"grafana_dashboard": "1"}, configMap.Metadata.Labels},
	} {
		if len(part.selector) == 0 {
			t.Errorf("%s: it selects everything", part.name)
		}
		for key, value := range part.selector {
			if part.have[key] != value {
				t.Errorf("%s: %s=%s is selected, and it is %q", part.name, key, value, part.have[key])
			}
		}
	}
	if job := service.Metadata.Labels[monitor.Spec.JobLabel]; job != "tracehook" {
		t.Errorf("the label job will be %q; rules and dashboard want tracehook", job)
	}
	named := false
	for _, port := range deployment.Spec.Template.Spec.Containers[0].Ports {
		named = named || port.Name == service.Spec.Ports[0].TargetPort
	}
	if !named || service.Spec.Ports[0].Name != monitor.Spec.Endpoints[0].Port {
		t.Errorf("the ports do not lead to each other: %v, %v", monitor.Spec.Endpoints, service.Spec.Ports)
	}
	shipped, err := os.ReadFile(filepath.Join(component, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	if configMap.Data["tracehook.json"] != string(shipped) {
		t.Error("the ConfigMap does not hold dashboard.json")
	}
}
