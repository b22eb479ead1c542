package monitoring

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The cases beside the rules are run on the rules as they are shipped.
func TestTheAlertsFireWhenTheyShouldAndNotOtherwise(t *testing.T) {
	_, spec := shippedRules(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "rules.yaml")
	if err := os.WriteFile(file, spec, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "promtool", "check", "rules", "--lint=all", "--lint-fatal", file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cases, err := filepath.Glob(filepath.Join(component, "tests", "*.yaml"))
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases found: %v", err)
	}
	for _, path := range cases {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(dir, name) // beside rules.yaml, which it names
			if err := os.WriteFile(copied, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := run(t, "promtool", "test", "rules", copied); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

var (
	alertName     = regexp.MustCompile(`alertname=(~?)"([^"]+)"`)
	label         = regexp.MustCompile(`([a-z_]+)="`)
	templateLabel = regexp.MustCompile(`\$labels\.([A-Za-z0-9_]+)`)
)

// Each alert and severity has a case in which it fires and one in which it does not, and the text of its annotations
// names no label that it does not have when it fires.
func TestEveryAlertHasACaseForAndACaseAgainst(t *testing.T) {
	fires := map[string][]map[string]bool{} // alert and severity → the labels of each time
	silent := map[string]bool{}             // alert
	rules, _ := shippedRules(t)

	paths, err := filepath.Glob(filepath.Join(component, "tests", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		var file struct {
			Tests []struct {
				Expectations []struct {
					Expr    string `json:"expr"`
					Samples []struct {
						Labels string `json:"labels"`
					} `json:"exp_samples"`
				} `json:"promql_expr_test"`
			} `json:"tests"`
		}
		readYAML(t, path, &file)
		for _, test := range file.Tests {
			for _, want := range test.Expectations {
				asked := alertName.FindStringSubmatch(want.Expr)
				if asked == nil {
					t.Errorf("%s: %s asks for no alert", path, want.Expr)
					continue
				}
				of := regexp.MustCompile("^(" + asked[2] + ")$")
				for _, r := range rules {
					if len(want.Samples) == 0 && of.MatchString(r.Alert) {
						silent[r.Alert] = true
					}
				}
				for _, sample := range want.Samples {
					labels := map[string]bool{}
					for _, match := range label.FindAllStringSubmatch(sample.Labels, -1) {
						labels[match[1]] = true
					}
					for _, r := range rules {
						if strings.Contains(sample.Labels, `alertname="`+r.Alert+`"`) && strings.Contains(sample.Labels, `severity="`+r.Labels["severity"]+`"`) {
							fires[r.Alert+" "+r.Labels["severity"]] = append(fires[r.Alert+" "+r.Labels["severity"]], labels)
						}
					}
				}
			}
		}
	}

	for _, r := range rules {
		seen := fires[r.Alert+" "+r.Labels["severity"]]
		if len(seen) == 0 {
			t.Errorf("no case in which %s (%s) fires", r.Alert, r.Labels["severity"])
		}
		if !silent[r.Alert] {
			t.Errorf("no case in which %s does not fire", r.Alert)
		}
		for _, text := range r.Annotations {
			for _, match := range templateLabel.FindAllStringSubmatch(text, -1) {
				for _, labels := range seen {
					if !labels[match[1]] {
						t.Errorf("%s speaks of $labels.%s; it has %v", r.Alert, match[1], slices.Sorted(maps.Keys(labels)))
					}
				}
			}
		}
	}
}

// Whoever is woken gets to a section about just that.
func TestTheRunbookHasASectionForEachAlert(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(component, "RUNBOOK.md"))
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "## "); ok {
			sections[name] = true
		}
	}
	alerts := map[string]bool{}
	rules, _ := shippedRules(t)
	for _, r := range rules {
		alerts[r.Alert] = true
		if !sections[r.Alert] {
			t.Errorf("RUNBOOK.md has no section %q", r.Alert)
		}
		const page = "https://github.com/tracehook/tracehook/blob/main/deploy/components/monitoring/RUNBOOK.md#"
		if want := page + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s has runbook_url %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
		}
		for _, annotation := range []string{"summary", "description"} {
			if r.Annotations[annotation] == "" {
				t.Errorf("%s has no %s", r.Alert, annotation)
			}
		}
		if s := r.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s has severity %q", r.Alert, s)
		}
	}
	for name := range sections {
		if !alerts[name] {
			t.Errorf("RUNBOOK.md has a section %q, and no alert is called so", name)
		}
	}
}
