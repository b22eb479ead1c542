package webhook

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-json-experiment/json"
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
