package explain

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write SCHEMA.md anew")

// SCHEMA.md is what the types say, with their comments.
func TestTheSchemaIsDocumentedAsItIs(t *testing.T) {
	comments := map[string]string{} // by type, and type.Field
	for _, file := range []string{"story.go", "find.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			decl, ok := n.(*ast.GenDecl)
			if !ok || decl.Tok != token.TYPE {
				return true
			}
			for _, spec := range decl.Specs {
				typed := spec.(*ast.TypeSpec)
				comments[typed.Name.Name] = oneLine(decl.Doc.Text())
				if fields, ok := typed.Type.(*ast.StructType); ok {
					for _, field := range fields.Fields.List {
						for _, name := range field.Names {
							comments[typed.Name.Name+"."+name.Name] = oneLine(field.Doc.Text() + " " + field.Comment.Text())
						}
					}
				}
			}
			return true
		})
	}
	var b strings.Builder
	b.WriteString("# What `tracehook explain -o json` prints\n\n`apiVersion` is `" + APIVersion + "`. `kind` is `" + KindExplanation + "` for one object ([Story](#story)), `" + KindExplanationList + "` for several (`items`, each a Story), `" + KindCarriers +
		"` with `--trace` ([Carriers](#carriers)). Fields may be added at any time; another `apiVersion` may change or remove them.\nTimes are RFC 3339 in UTC.\n")
	done := map[reflect.Type]bool{}
	var write func(kind reflect.Type)
	write = func(kind reflect.Type) {
		if done[kind] {
			return
		}
		done[kind] = true
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| field | type | |\n|---|---|---|\n", kind.Name(), comments[kind.Name()])
		var below []reflect.Type
		var rows func(of reflect.Type)
		rows = func(of reflect.Type) {
			for i := range of.NumField() {
				field := of.Field(i)
				if !field.IsExported() {
					continue
				}
				name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
				if field.Anonymous {
					if field.Type.PkgPath() == kind.PkgPath() {
						rows(field.Type)
					}
					continue
				}
				base, text := field.Type, ""
				for base.Kind() == reflect.Slice || base.Kind() == reflect.Pointer {
					if base.Kind() == reflect.Slice {
						text = "list of "
					}
					base = base.Elem()
				}
				switch {
				case base.String() == "time.Time":
					text += "time"
				case base.Kind() == reflect.Struct:
					text += "[" + base.Name() + "](#" + strings.ToLower(base.Name()) + ")"
					below = append(below, base)
				case base.Kind() == reflect.String:
					text += "string"
				case base.Kind() == reflect.Bool:
					text += "bool"
				default:
					text += "number"
				}
				if strings.Contains(options, "omitempty") {
					text += ", may be absent"
				}
				fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, text, strings.ReplaceAll(comments[of.Name()+"."+field.Name], "|", "\\|"))
			}
		}
		rows(kind)
		for _, other := range below {
			write(other)
		}
	}
	write(reflect.TypeFor[Story]())
	write(reflect.TypeFor[Carriers]())
	if *update {
		if err := os.WriteFile("SCHEMA.md", []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	documented, err := os.ReadFile("SCHEMA.md")
	if err != nil || string(documented) != b.String() {
		t.Errorf("SCHEMA.md is not what the types say (%v): go test ./cmd/tracehook/explain -update writes it", err)
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
