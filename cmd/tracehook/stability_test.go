package main

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/otlptranslator"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/tracehook/tracehook/webhook/cause"
)

var update = flag.Bool("update", false, "write the lists of names in docs/stability.md anew")

const stabilityPage = "../../docs/stability.md"

func TestThePageOnStabilityListsEveryNameThatTheProgramHas(t *testing.T) {
	source := declaredNames(t, "../../certs", "../../cmd", "../../webhook", "../../deploy")
	page, err := os.ReadFile(stabilityPage)
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for section, want := range map[string]string{
		"metrics":     source.metricTable(t),
		"attributes":  bulletList(source.attributes),
		"annotations": bulletList(source.annotations),
		"flags":       flagTable(newRootCommand()),
		"environment": bulletList(source.variables),
		"findings":    bulletList(source.codes),
	} {
		begin, end := "<!-- "+section+" -->\n", "<!-- end of "+section+" -->"
		before, rest, ok := strings.Cut(text, begin)
		got, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no list between %q and %q", stabilityPage, begin, end)
		}
		if got != want && !*update {
			t.Errorf("%s does not have the %s that the code has.\nA name that users depend on has changed: say so in CHANGELOG.md, then run\n"+
				"    go test ./cmd/tracehook -run TestThePageOnStability -update\n%s", stabilityPage, section, lineDifference(got, want))
		}
		text = before + begin + want + end + after
	}
	if *update {
		if err := os.WriteFile(stabilityPage, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMetricsAreNamedAsPrometheusNamesThem(t *testing.T) {
	for _, m := range declaredNames(t, "../../certs", "../../cmd", "../../webhook").metrics {
		name := m.prometheus(t)
		if isTime := strings.Contains(m.help, "Unix time") || strings.Contains(m.help, "since 1970"); isTime != strings.HasSuffix(name, "_timestamp_seconds") {
			t.Errorf("%s (%q): a Unix time, and nothing else, ends in _timestamp_seconds", name, m.help)
		}
		if strings.HasSuffix(name, "_ratio") {
			t.Errorf("%s: a yes or no is no ratio: give it no unit", name)
		}
		if m.help == "" {
			t.Errorf("%s has no description", name)
		}
	}
}

func TestAlertsAndDashboardAskForNamesThatThereAre(t *testing.T) {
	declared := declaredNames(t, "../../certs", "../../cmd", "../../webhook")
	known := map[string]bool{}
	for _, m := range declared.metrics {
		for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
			known[m.prometheus(t)+suffix] = true
		}
	}
	for _, a := range declared.attributes {
		known[strings.ReplaceAll(a, ".", "_")] = true
	}
	name := regexp.MustCompile(`\btracehook_[a-z0-9_]+`)
	for _, file := range []string{"prometheusrule.yaml", "dashboard.json", "RUNBOOK.md", "../../README.md"} {
		content, err := os.ReadFile(filepath.Join("../../deploy/components/monitoring", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range slices.Compact(slices.Sorted(slices.Values(name.FindAllString(string(content), -1)))) {
			if !known[found] && !strings.HasSuffix(found, "_") && found != "tracehook_lifecycle" {
				t.Errorf("%s names %s, which no code declares", file, found)
			}
		}
	}
}

func TestFlagsAreWordsWithHyphens(t *testing.T) {
	plain := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	walkCommands(newRootCommand(), func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !plain.MatchString(f.Name) || f.Usage == "" {
				t.Errorf("%s --%s: want words in lower case with hyphens, and a description", cmd.CommandPath(), f.Name)
			}
		})
	})
}

// names are what the sources declare.
type names struct {
	metrics     []declaredMetric
	attributes  []string
	annotations []string
	variables   []string
	codes       []string
}

type declaredMetric struct {
	name, unit, help string
	kind             otlptranslator.MetricType
}

// instruments are the methods of OpenTelemetry's meter.
var instruments = regexp.MustCompile(`^(Int64|Float64)(Observable)?(Counter|UpDownCounter|Gauge|Histogram)$`)

func (m declaredMetric) prometheus(t *testing.T) string {
	t.Helper()
	name, err := (&otlptranslator.MetricNamer{WithMetricSuffixes: true}).Build(otlptranslator.Metric{Name: m.name, Unit: m.unit, Type: m.kind})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// declaredNames reads them from the sources below the folders, not from what happens to be registered in a test.
func declaredNames(t *testing.T, folders ...string) names {
	t.Helper()
	metrics, attributes, annotations, variables, codes := map[string]declaredMetric{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	attribute := regexp.MustCompile(`^(tracehook|admission)(\.[a-z0-9_]+)+$`)
	annotation := regexp.MustCompile(`^tracehook\.dev/[a-z-]+$`)
	keyInText := regexp.MustCompile(`\btracehook\.dev/[a-z-]+\b`)
	for _, sibling := range []func(string) string{cause.TracestateKey, cause.CausedAtKey, cause.CreateKey, cause.PreviousKey} {
		annotations[sibling(cause.DefaultKey)] = true
	}
	variable := regexp.MustCompile(`^TRACEHOOK_[A-Z_]+$`)
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			if strings.HasSuffix(path, ".yaml") { // manifests select by keys that no code reads
				manifest, err := os.ReadFile(path)
				for _, key := range keyInText.FindAllString(string(manifest), -1) {
					annotations[key] = true
				}
				return err
			}
			if !strings.HasSuffix(path, ".go") {
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && len(call.Args) > 0 {
					if metric := asMetric(call); metric.name != "" {
						metrics[metric.name] = metric
					}
				}
				if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
					if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Code" {
						codes[text(spec.Values[0])] = true
					}
				}
				literal, ok := n.(*ast.BasicLit)
				if !ok {
					return true
				}
				switch name := text(literal); {
				case attribute.MatchString(name):
					attributes[name] = true
				case annotation.MatchString(name):
					annotations[name] = true
				case variable.MatchString(name):
					variables[name] = true
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range metrics {
		// A metric and a label may have one name: tracehook.certs.phase is 1 for the phase in its label.
		if name != "tracehook.certs.phase" {
			delete(attributes, name)
		}
	}
	return names{
		slices.SortedFunc(maps.Values(metrics), func(a, b declaredMetric) int { return cmp.Compare(a.name, b.name) }),
		slices.Sorted(maps.Keys(attributes)), slices.Sorted(maps.Keys(annotations)), slices.Sorted(maps.Keys(variables)), slices.Sorted(maps.Keys(codes)),
	}
}

// asMetric has no name for another call. observeFindings makes gauges whose names it is given.
func asMetric(call *ast.CallExpr) (m declaredMetric) {
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		if kind := instruments.FindStringSubmatch(f.Sel.Name); kind != nil {
			m.name = text(call.Args[0])
			m.kind = map[string]otlptranslator.MetricType{
				"Counter": otlptranslator.MetricTypeMonotonicCounter, "UpDownCounter": otlptranslator.MetricTypeNonMonotonicCounter,
				"Gauge": otlptranslator.MetricTypeGauge, "Histogram": otlptranslator.MetricTypeHistogram}[kind[3]]
		}
	case *ast.Ident:
		if f.Name == "observeFindings" && len(call.Args) == 3 {
			return declaredMetric{text(call.Args[1]), "{finding}", "What is wrong now, by code.", otlptranslator.MetricTypeGauge}
		}
	}
	for _, argument := range call.Args[1:] {
		option, ok := argument.(*ast.CallExpr)
		if !ok {
			continue
		}
		if f, ok := option.Fun.(*ast.SelectorExpr); ok && len(option.Args) == 1 {
			switch f.Sel.Name {
			case "WithUnit":
				m.unit = text(option.Args[0])
			case "WithDescription":
				m.help = text(option.Args[0])
			}
		}
	}
	return m
}

// text is the value of a string literal, and "" of anything else.
func text(e ast.Expr) string {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return ""
	}
	value, err := strconv.Unquote(literal.Value)
	if err != nil {
		return ""
	}
	return value
}

func (n names) metricTable(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| on `/metrics` | over OTLP | what it says |\n|---|---|---|\n")
	for _, m := range n.metrics {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", m.prometheus(t), m.name, m.help)
	}
	return b.String()
}

func bulletList(names []string) string {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "- `%s`\n", name)
	}
	return b.String()
}

func walkCommands(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, child := range cmd.Commands() {
		walkCommands(child, visit)
	}
}

// flagTable leaves out what kubectl's library brings along: it is kubectl's to keep stable.
func flagTable(root *cobra.Command) string {
	kubectl := pflag.NewFlagSet("kubectl", pflag.ContinueOnError)
	genericclioptions.NewConfigFlags(true).AddFlags(kubectl)
	var b strings.Builder
	b.WriteString("| command | flags |\n|---|---|\n")
	walkCommands(root, func(cmd *cobra.Command) {
		var flags []string
		asKubectl := cmd.Flags().Lookup("as-uid") != nil
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name == "help" || f.Hidden || asKubectl && kubectl.Lookup(f.Name) != nil {
				return
			}
			name := "`--" + f.Name + "`"
			if f.Shorthand != "" {
				name = "`-" + f.Shorthand + "`, " + name
			}
			flags = append(flags, name)
		})
		if len(flags) > 0 {
			fmt.Fprintf(&b, "| `%s` | %s |\n", cmd.CommandPath(), strings.Join(flags, " "))
		}
	})
	return b.String()
}

// lineDifference shows lines that are on one side only.
func lineDifference(got, want string) string {
	var b strings.Builder
	gots, wants := strings.Split(got, "\n"), strings.Split(want, "\n")
	for _, line := range gots {
		if !slices.Contains(wants, line) {
			fmt.Fprintf(&b, "page only: %s\n", line)
		}
	}
	for _, line := range wants {
		if !slices.Contains(gots, line) {
			fmt.Fprintf(&b, "code only: %s\n", line)
		}
	}
	return b.String()
}
