package monitoring

// A real Prometheus. In: targets, the shipped rules. Out: what its API answers.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

type prometheus struct{ url string }

// scrape is what Prometheus is told to look at.
type scrape struct {
	job     string   // its label
	targets []string // host:port
	// With a CA: over TLS, showing the token.
	caFile     string
	serverName string // "": the target's host
}

// startPrometheus starts Prometheus with the shipped rules and waits until it has scraped everything. It scrapes every
// other second, so that a test need not wait for half a minute.
func startPrometheus(t *testing.T, c *cluster.Cluster, token string, scrapes []scrape) *prometheus {
	t.Helper()
	dir := t.TempDir()
	_, rules := shippedRules(t)
	type m = map[string]any
	var configs []m
	for i, s := range scrapes {
		config := m{
			"job_name":       fmt.Sprint(i),
			"static_configs": []m{{"targets": s.targets, "labels": m{"job": s.job}}},
		}
		if s.caFile != "" {
			config["scheme"] = "https"
			config["authorization"] = m{"credentials_file": filepath.Join(dir, "token")}
			config["tls_config"] = m{"ca_file": s.caFile, "server_name": s.serverName}
		}
		configs = append(configs, config)
	}
	config, err := json.Marshal(m{ // JSON is YAML
		"global":         m{"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
		"rule_files":     []string{filepath.Join(dir, "rules.yaml")},
		"scrape_configs": configs,
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"prometheus.yaml": string(config), "rules.yaml": string(rules), "token": token} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ports, err := cluster.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	p := &prometheus{url: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	_, err = c.StartProgram(story.Within(t, 2*time.Minute), cluster.ProgramOptions{
		Program: "prometheus",
		Args: []string{
			"--config.file=" + filepath.Join(dir, "prometheus.yaml"),
			"--storage.tsdb.path=" + filepath.Join(dir, "data"),
			"--web.listen-address=" + strings.TrimPrefix(p.url, "http://"),
			"--enable-feature=exemplar-storage",
			"--log.level=warn",
		},
		Ready: p.scrapesAll,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// scrapesAll says which target is not scraped, if any.
func (p *prometheus) scrapesAll(ctx context.Context) error {
	var found struct {
		ActiveTargets []struct{ ScrapeURL, Health, LastError string }
	}
	if err := p.get(ctx, "targets", nil, &found); err != nil {
		return err
	}
	if len(found.ActiveTargets) == 0 {
		return errors.New("no targets yet")
	}
	for _, target := range found.ActiveTargets {
		if target.Health != "up" {
			return fmt.Errorf("%s: %s %s", target.ScrapeURL, target.Health, target.LastError)
		}
	}
	return nil
}

// get asks the API. What Prometheus warns of is an error, too.
func (p *prometheus) get(ctx context.Context, path string, query url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/api/v1/"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Error    string
		Warnings []string
		Infos    []string
		Data     json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("read answer of Prometheus (%s): %w", resp.Status, err)
	}
	if said := append(append(answer.Warnings, answer.Infos...), answer.Error); len(said) > 1 || said[0] != "" {
		return fmt.Errorf("Prometheus says %q", said)
	}
	return json.Unmarshal(answer.Data, into)
}

// query returns the labels of each series that the expression gives now.
func (p *prometheus) query(t *testing.T, expr string) ([]map[string]string, error) {
	t.Helper()
	var found struct {
		ResultType string
		Result     json.RawMessage
	}
	if err := p.get(story.Within(t, 10*time.Second), "query", url.Values{"query": {expr}}, &found); err != nil {
		return nil, err
	}
	var series []struct{ Metric map[string]string }
	if err := json.Unmarshal(found.Result, &series); err != nil {
		return nil, fmt.Errorf("a %s is no vector: %w", found.ResultType, err)
	}
	var labels []map[string]string
	for _, s := range series {
		labels = append(labels, s.Metric)
	}
	return labels, nil
}

// node is a part of a parsed expression, as far as it is looked at.
type node struct {
	Type     string
	Name     string // of a vectorSelector: the metric
	Matchers []struct{ Name, Type, Value string }
	children []*node
}

func (n *node) UnmarshalJSON(data []byte) error {
	type plain node
	if err := json.Unmarshal(data, (*plain)(n)); err != nil {
		return err
	}
	var parts struct {
		Expr, LHS, RHS *node
		Args           []*node
	}
	if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	for _, child := range append(parts.Args, parts.Expr, parts.LHS, parts.RHS) {
		if child != nil {
			n.children = append(n.children, child)
		}
	}
	return nil
}

// selectors returns what the expression selects.
func (p *prometheus) selectors(t *testing.T, expr string) []*node {
	t.Helper()
	var root node
	if err := p.get(story.Within(t, 10*time.Second), "parse_query", url.Values{"query": {expr}}, &root); err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	var found []*node
	var visit func(*node)
	visit = func(n *node) {
		if n.Name != "" && (n.Type == "vectorSelector" || n.Type == "matrixSelector") {
			found = append(found, n)
		}
		for _, child := range n.children {
			visit(child)
		}
	}
	visit(&root)
	return found
}

type firing struct {
	State               string
	Labels, Annotations map[string]string
}

// waitAlert calls again and again until the alert fires, with all these labels.
func (p *prometheus) waitAlert(t *testing.T, labels map[string]string, again func()) firing {
	t.Helper()
	ctx := story.Within(t, time.Minute)
	for {
		again()
		var found struct{ Alerts []firing }
		if err := p.get(ctx, "alerts", nil, &found); err != nil {
			t.Fatal(err)
		}
		for _, alert := range found.Alerts {
			matches := alert.State == "firing"
			for name, value := range labels {
				matches = matches && alert.Labels[name] == value
			}
			if matches {
				return alert
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after a minute none of these is %v: %+v", labels, found.Alerts)
		case <-time.After(300 * time.Millisecond):
		}
	}
}
