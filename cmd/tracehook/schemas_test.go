package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/cmd/tracehook/explain"
	"github.com/tracehook/tracehook/cmd/tracehook/report"
)

const schemaFolder = "../../docs/schemas"

// documents are what commands print, by kind.
var documents = map[string]any{
	kindAudit:                   auditDocument{},
	kindAuditList:               auditList{},
	kindIssued:                  issueReport{},
	kindMigration:               migrateDocument{},
	kindRotation:                statusDocument{},
	report.Kind:                 report.Document{},
	explain.KindExplanation:     explain.Story{},
	explain.KindExplanationList: explain.List{},
	explain.KindCarriers:        explain.Carriers{},
}

// schemaOf allows fields that it does not know: new ones may come within an apiVersion.
func schemaOf(t *testing.T, kind string) []byte {
	t.Helper()
	reflector := jsonschema.Reflector{
		Anonymous: true, AllowAdditionalProperties: true,
		Mapper: func(of reflect.Type) *jsonschema.Schema {
			switch of {
			case reflect.TypeFor[certs.Severity]():
				return &jsonschema.Schema{Type: "string", Enum: []any{"healthy", "info", "warning", "error"}}
			case reflect.TypeFor[metav1.Time]():
				return &jsonschema.Schema{Type: "string", Format: "date-time"}
			}
			return nil
		},
	}
	schema := reflector.Reflect(documents[kind])
	root := schema
	if schema.Ref != "" {
		root = schema.Definitions[strings.TrimPrefix(schema.Ref, "#/$defs/")]
	}
	root.Properties.Set("apiVersion", &jsonschema.Schema{Const: explain.APIVersion})
	root.Properties.Set("kind", &jsonschema.Schema{Const: kind})
	root.Required = append(root.Required, "apiVersion", "kind")
	slices.Sort(root.Required)
	root.Required = slices.Compact(root.Required)
	schema.Title = kind
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

func TestEveryKindOfDocumentHasASchemaThatIsAsTheTypeIs(t *testing.T) {
	for kind := range documents {
		file, want := filepath.Join(schemaFolder, kind+".json"), schemaOf(t, kind)
		if *update {
			if err := os.WriteFile(file, want, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the type says (%v): go test ./cmd/tracehook -run TestEveryKind -update writes it\n%s", file, err, lineDifference(string(got), string(want)))
		}
	}
}

// wantDocument validates what a command has printed against the schema that its kind has.
func wantDocument(t *testing.T, kind string, output []byte) {
	t.Helper()
	text, err := yaml.YAMLToJSON(output) // JSON is YAML
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	document, err := validator.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	schema, err := validator.NewCompiler().Compile(filepath.Join(schemaFolder, kind+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(document); err != nil {
		t.Errorf("%v\nin %s", err, text)
	}
}

func TestWhatCommandsPrintIsValidByTheSchemaOfItsKind(t *testing.T) {
	for _, format := range []string{"json", "yaml"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{"tracehook", "certs", "issue", "--service", "shop/hook", "--output-dir", filepath.Join(t.TempDir(), "pki"), "-o", format}, nil, &out, &out); err != nil {
			t.Fatal(err)
		}
		wantDocument(t, kindIssued, out.Bytes())

		write, err := auditWriter(format, false)
		if err != nil {
			t.Fatal(err)
		}
		one := auditDocument{TypeMeta: typeMeta(kindAudit), Context: "east", AuditReport: aReport()}
		for kind, found := range map[string][]auditDocument{kindAudit: {one}, kindAuditList: {one, {TypeMeta: typeMeta(kindAudit), Context: "west", Error: "nobody there", AuditReport: certs.AuditReport{Targets: []certs.TargetReport{}}}}} {
			out.Reset()
			if err := write(&out, found); err != nil {
				t.Fatal(err)
			}
			wantDocument(t, kind, out.Bytes())
		}

		out.Reset()
		if err := statusMachine(&out, format)(certs.Status{Phase: certs.PhaseStable, Time: auditTime, Step: certs.StepWait, Leader: "a"}); err != nil {
			t.Fatal(err)
		}
		wantDocument(t, kindRotation, bytes.TrimPrefix(out.Bytes(), []byte("---\n")))

		out.Reset()
		migration := migrateDocument{TypeMeta: typeMeta(kindMigration), Targets: []certs.MigrateTarget{{TargetReport: aReport().Targets[1]}}, Error: "no"}
		if err := migration.write(&out, format); err != nil {
			t.Fatal(err)
		}
		wantDocument(t, kindMigration, out.Bytes())
	}

	golden, err := os.ReadFile("report/testdata/report.json")
	if err != nil {
		t.Fatal(err)
	}
	wantDocument(t, report.Kind, golden)

	text, err := json.Marshal(explain.Story{TypeMeta: typeMeta(explain.KindExplanation), Object: explain.Ref{APIVersion: "v1", Kind: "Pod", Name: "web"}, Causes: []explain.Cause{}, Chain: []explain.Step{}})
	if err != nil {
		t.Fatal(err)
	}
	wantDocument(t, explain.KindExplanation, text)
}

func TestASchemaRefusesADocumentOfAnotherKind(t *testing.T) {
	schema, err := validator.NewCompiler().Compile(filepath.Join(schemaFolder, kindAudit+".json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		`{}`,
		`{"apiVersion":"tracehook.dev/v1alpha1","kind":"CertificateAudit"}`,
		fmt.Sprintf(`{"apiVersion":"tracehook.dev/v1alpha1","kind":%q,"time":"2026-11-28T00:00:00Z","worst":"error","targets":[],"incomplete":false}`, kindIssued),
		`{"apiVersion":"tracehook.dev/v1alpha1","kind":"CertificateAudit","time":"2026-11-28T00:00:00Z","worst":"dreadful","targets":[],"incomplete":false}`,
	} {
		document, err := validator.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if schema.Validate(document) == nil {
			t.Errorf("%s is taken for an audit", text)
		}
	}
}
