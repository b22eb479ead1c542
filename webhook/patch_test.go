package webhook

import (
	"bytes"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

func TestWhatIsWantedIsDoneInFewOperations(t *testing.T) {
	set := []change{{key: "a/b~c", value: "1"}, {key: "d", value: `"2"`}}
	all := append([]change{
		{environment: &environment{"/spec/containers/0", false, []variable{{"X", "1"}, {"Y", "2"}}}},
		{environment: &environment{"/spec/containers/1", true, []variable{{"X", "1"}, {"Y", "2"}}}},
	}, set...)
	const (
		asMap       = `{"a/b~c":"1","d":"\"2\""}`
		asMembers   = `{"op":"add","path":"/metadata/annotations/a~1b~0c","value":"1"},{"op":"add","path":"/metadata/annotations/d","value":"\"2\""}`
		environment = `{"op":"add","path":"/spec/containers/0/env","value":[{"name":"X","value":"1"},{"name":"Y","value":"2"}]},` +
			`{"op":"add","path":"/spec/containers/1/env/0","value":{"name":"X","value":"1"}},{"op":"add","path":"/spec/containers/1/env/1","value":{"name":"Y","value":"2"}}`
	)
	for name, test := range map[string]struct {
		object     string
		changes    []change
		want       string
		operations int
	}{
		"nothing":                      {`{}`, nil, ``, 0},
		"no metadata":                  {`{}`, set, `[{"op":"add","path":"/metadata","value":{"annotations":` + asMap + `}}]`, 1},
		"null metadata":                {`{"metadata":null}`, set, `[{"op":"add","path":"/metadata","value":{"annotations":` + asMap + `}}]`, 1},
		"no annotations":               {`{"metadata":{}}`, set, `[{"op":"add","path":"/metadata/annotations","value":` + asMap + `}]`, 1},
		"null annotations":             {`{"metadata":{"annotations":null}}`, set, `[{"op":"add","path":"/metadata/annotations","value":` + asMap + `}]`, 1},
		"annotations":                  {`{"metadata":{"annotations":{}}}`, set, `[` + asMembers + `]`, 2},
		"one to remove, one to set":    {`{"metadata":{"annotations":{"x/y":""}}}`, []change{{key: "x/y", remove: true}, {key: "z", value: "1"}}, `[{"op":"remove","path":"/metadata/annotations/x~1y"},{"op":"add","path":"/metadata/annotations/z","value":"1"}]`, 2},
		"environment only":             {`{}`, all[:2], `[` + environment + `]`, 3},
		"environment and annotations":  {`{"metadata":{"annotations":{}}}`, all, `[` + asMembers + `,` + environment + `]`, 5},
		"environment and first of all": {`{}`, all, `[{"op":"add","path":"/metadata","value":{"annotations":` + asMap + `}},` + environment + `]`, 4},
	} {
		t.Run(name, func(t *testing.T) {
			request, ok := readObject([]byte(test.object))
			if !ok {
				t.Fatalf("not an object: %s", test.object)
			}
			got, operations := appendPatch([]byte("before "), &request.Object, test.changes)
			if string(got) != "before "+test.want || operations != test.operations {
				t.Errorf("%s\ngot  %d %s\nwant %d %s", test.object, operations, got, test.operations, test.want)
			}
		})
	}
}

// Whatever the object and the annotation: a reference implementation can apply the
// patch, the annotation is there afterwards, and nothing else has changed.
func FuzzPatchChangesTheAnnotationAndNothingElse(f *testing.F) {
	for _, object := range []string{
		`{}`, `{"metadata":null}`, `{"metadata":{}}`, `{"metadata":{"annotations":null}}`, `{"metadata":{"annotations":{}}}`,
		`{"metadata":{"annotations":{"a":"b","c/d":"e"}},"spec":{"x":[1,2.50,{"y":null}]}}`,
		`{"metadata":{"name":"n","annotations":{"a~b/c":"old"}}}`,
	} {
		f.Add([]byte(object), "tracehook.dev/traceparent", "00-x")
		f.Add([]byte(object), "a~b/c", "\"\\\n\x00é")
	}
	f.Fuzz(func(t *testing.T, object []byte, key, value string) {
		request, ok := readObject(object)
		if !ok {
			return // not an object
		}
		patch, operations := appendPatch(nil, &request.Object, []change{{key: key, value: value}})
		if operations != 1 {
			t.Fatalf("%d operations, want 1: %s", operations, patch)
		}
		patched := applyPatch(t, object, patch)
		before, after := parts(t, object), parts(t, patched)
		validKey, validValue := strings.ToValidUTF8(key, "\ufffd"), strings.ToValidUTF8(value, "\ufffd")
		if key != validKey || value != validValue {
			return // Kubernetes has no such keys; it is enough that the patch is one
		}
		if got := after.annotations[key]; got != value {
			t.Errorf("annotation %q is %q, want %q", key, got, value)
		}
		delete(before.annotations, key)
		delete(after.annotations, key)
		if !maps.Equal(before.annotations, after.annotations) || !reflect.DeepEqual(before.rest, after.rest) {
			t.Errorf("something else changed:\n%s\n%s\n%s", object, patch, patched)
		}

		request, _ = readObject(patched)
		patch, operations = appendPatch(nil, &request.Object, []change{{key: key, remove: true}})
		if operations != 1 {
			t.Fatalf("%d operations, want 1: %s", operations, patch)
		}
		removed := parts(t, applyPatch(t, patched, patch))
		if !maps.Equal(before.annotations, removed.annotations) || !reflect.DeepEqual(before.rest, removed.rest) {
			t.Errorf("something else than %q is gone:\n%s\n%s\n%v", key, patched, patch, removed)
		}
	})
}

// readObject reads an object as part of a review. It is not ok where it is none.
func readObject(object []byte) (req Request, ok bool) {
	var decoder reviewDecoder
	err := decoder.decode([]byte(podReview(string(object))), &req)
	return req, err == nil && bytes.Equal(req.Object.Raw, bytes.Trim(object, " \t\r\n")) && req.Object.Raw != nil
}

// applyPatch is a reference implementation of RFC 6902.
func applyPatch(t testing.TB, object, patch []byte) []byte {
	t.Helper()
	decoded, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatalf("not a patch: %v\n%s", err, patch)
	}
	patched, err := decoded.Apply(object)
	if err != nil {
		t.Fatalf("the patch cannot be applied: %v\n%s\n%s", err, patch, object)
	}
	return patched
}

type objectParts struct {
	annotations map[string]string
	rest        map[string]any // numbers as they are written
}

func parts(t *testing.T, object []byte) objectParts {
	t.Helper()
	p := objectParts{annotations: map[string]string{}, rest: decodeTree(t, object)}
	metadata, _ := p.rest["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	for key, value := range annotations {
		p.annotations[key], _ = value.(string)
	}
	delete(metadata, "annotations")
	if len(metadata) == 0 {
		delete(p.rest, "metadata") // absent, null and empty say the same
	}
	return p
}

// number is a number as it is written.
type number string

// decodeTree decodes an object and loses nothing of its numbers.
func decodeTree(t testing.TB, object []byte) (tree map[string]any) {
	t.Helper()
	err := json.Unmarshal(object, &tree, json.WithUnmarshalers(json.UnmarshalFromFunc(func(d *jsontext.Decoder, v *any) error {
		if d.PeekKind() != '0' {
			return errors.ErrUnsupported
		}
		raw, err := d.ReadValue()
		*v = number(raw)
		return err
	})))
	if err != nil {
		t.Fatalf("not JSON: %v\n%s", err, object)
	}
	return tree
}
