// Package monitoring tests deploy/components/monitoring: the alert rules with promtool, the dashboard's file, and
// both on a real Prometheus that scrapes the built tracehook, a real kube-apiserver and a real kube-scheduler. That
// Grafana shows the dashboard cannot be tested here.
package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// component is the directory under test.
const component = "../../deploy/components/monitoring"

func TestMain(m *testing.M) {
	story.Unexport()
	os.Exit(m.Run())
}

// rule is an alert, as the tests look at it.
type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// shippedRules returns the alerts of the shipped PrometheusRule, and its `spec`, which is a
// file of rules as Prometheus reads it.
func shippedRules(t *testing.T) (rules []rule, spec []byte) {
	t.Helper()
	var object struct {
		Spec json.RawMessage `json:"spec"`
	}
	readYAML(t, filepath.Join(component, "prometheusrule.yaml"), &object)
	var groups struct {
		Groups []struct {
			Rules []rule `json:"rules"`
		} `json:"groups"`
	}
	if err := json.Unmarshal(object.Spec, &groups); err != nil {
		t.Fatal(err)
	}
	for _, group := range groups.Groups {
		rules = append(rules, group.Rules...)
	}
	if len(rules) == 0 {
		t.Fatal("no rules in prometheusrule.yaml")
	}
	return rules, object.Spec // JSON is YAML
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// run runs a built program to its end and returns what it wrote.
func run(t *testing.T, program string, args ...string) (output string, err error) {
	t.Helper()
	for _, dir := range []string{os.Getenv("KUBEBUILDER_ASSETS"), "../../bin"} {
		path, missing := exec.LookPath(filepath.Join(dir, program))
		if missing != nil {
			continue
		}
		if path, err = filepath.Abs(path); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(story.Within(t, time.Minute), path, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
		}
		return string(out), err
	}
	t.Fatalf("no program %s: `make controlplane` builds it", program)
	return "", nil
}
