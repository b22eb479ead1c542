package webhook

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// referenceReview is what a general strict decoder makes of the same document.
type referenceReview struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Request    *struct {
		UID         string            `json:"uid"`
		Kind        map[string]any    `json:"kind"`
		Resource    map[string]any    `json:"resource"`
		SubResource string            `json:"subResource"`
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		Operation   string            `json:"operation"`
		DryRun      bool              `json:"dryRun"`
		Object      *referencedObject `json:"object"`
		OldObject   *referencedObject `json:"oldObject"`
	} `json:"request"`
}

type referencedObject struct {
	Metadata *struct {
		Annotations *map[string]string `json:"annotations"`
	} `json:"metadata"`
}

func seedReviews(f *testing.F) {
	f.Helper()
	paths, err := filepath.Glob("testdata/reviews/*.in.json")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no seeds in testdata/reviews: %v", err)
	}
	for _, path := range paths {
		body, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
}

// Whatever comes in: no panic, and what is accepted is what a general strict decoder
// accepts, with the same values.
func FuzzDecodeReadsWhatAStrictDecoderReads(f *testing.F) {
	seedReviews(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		var decoder reviewDecoder
		var got Request
		err := decoder.decode(body, &got)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnsupportedVersion) && !errors.Is(err, ErrNoRequest) {
				t.Fatalf("an error of no known kind: %v", err)
			}
			return
		}
		var want referenceReview
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("accepted what a strict decoder refuses: %v\n%s", err, body)
		}
		if string(got.UID) != want.Request.UID || string(got.Operation) != want.Request.Operation || got.Name != want.Request.Name ||
			got.Namespace != want.Request.Namespace || got.SubResource != want.Request.SubResource || got.DryRun != want.Request.DryRun {
			t.Errorf("got %+v\nwant %+v", got, want.Request)
		}
		sameAnnotations(t, &got.Object, want.Request.Object)
		sameAnnotations(t, &got.OldObject, want.Request.OldObject)
	})
}

func sameAnnotations(t *testing.T, got *Object, want *referencedObject) {
	t.Helper()
	if (got.Raw == nil) != (want == nil) {
		t.Fatalf("object there: %t, want %t", got.Raw != nil, want != nil)
	}
	annotations := map[string]string{}
	if want != nil && want.Metadata != nil && want.Metadata.Annotations != nil {
		annotations = *want.Metadata.Annotations
	}
	if len(got.annotations) != len(annotations) {
		t.Fatalf("got %d annotations, want %v", len(got.annotations), annotations)
	}
	for key, value := range annotations {
		if v, ok := got.Annotation(key); !ok || v != value {
			t.Errorf("annotation %q: got %q (there: %t), want %q", key, v, ok, value)
		}
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
		review := append([]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","object":`), object...)
		review = append(review, `}}`...)
		var decoder reviewDecoder
		var request Request
		if decoder.decode(review, &request) != nil || request.Object.Raw == nil || !bytes.Equal(request.Object.Raw, bytes.TrimSpace(object)) {
			return // not an object
		}
		patch, operations := appendPatch(nil, &request.Object, []change{{key, value}})
		if operations != 1 {
			t.Fatalf("%d operations, want 1: %s", operations, patch)
		}
		decoded, err := jsonpatch.DecodePatch(patch)
		if err != nil {
			t.Fatalf("not a patch: %v\n%s", err, patch)
		}
		patched, err := decoded.Apply(object)
		if err != nil {
			t.Fatalf("the patch cannot be applied: %v\n%s\n%s", err, patch, object)
		}
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
	})
}

type objectParts struct {
	annotations map[string]string
	rest        map[string]any // numbers as they are written
}

func parts(t *testing.T, object []byte) objectParts {
	t.Helper()
	var p objectParts
	if err := json.Unmarshal(object, &p.rest, json.WithUnmarshalers(json.UnmarshalFromFunc(func(d *jsontext.Decoder, v *any) error {
		if d.PeekKind() != '0' {
			return errors.ErrUnsupported
		}
		raw, err := d.ReadValue()
		*v = string(raw)
		return err
	}))); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, object)
	}
	p.annotations = map[string]string{}
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
