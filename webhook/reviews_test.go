package webhook

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
)

var update = flag.Bool("update", false, "write the .out files of testdata/reviews anew")

// Every file of testdata/reviews is half of a pair: a body as the API server sends
// it, and what comes back for it.
func TestReviewsAreAnsweredAsRecorded(t *testing.T) {
	const dir = "testdata/reviews"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	stray := map[string]bool{}
	for _, entry := range entries {
		stray[entry.Name()] = true
	}
	for _, entry := range entries {
		name, isInput := strings.CutSuffix(entry.Name(), ".in.json")
		if !isInput {
			continue
		}
		delete(stray, name+".in.json")
		delete(stray, name+".out.txt")
		t.Run(name, func(t *testing.T) {
			body, err := os.ReadFile(filepath.Join(dir, entry.Name()))
			if err != nil {
				t.Fatal(err)
			}
			handler, _ := newTestHandler(t, Options{})
			got := transcript(t, body, post(handler, body))
			path := filepath.Join(dir, name+".out.txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("answer to %s:\n%s\nrecorded in %s:\n%s", entry.Name(), got, path, want)
			}
		})
	}
	for name := range stray {
		t.Errorf("%s belongs to no NAME.in.json; remove it", filepath.Join(dir, name))
	}
}

// post sends a review as the API server does.
func post(handler http.Handler, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/mutate?timeout=10s", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Traceparent", testTraceparent)
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w
}

// transcript writes an answer for people: the patch decoded, and the metadata that
// a reference implementation of RFC 6902 makes with it.
func transcript(t *testing.T, body []byte, w *httptest.ResponseRecorder) string {
	t.Helper()
	var out strings.Builder
	fmt.Fprintf(&out, "%d %s\n", w.Code, w.Header().Get("Content-Type"))
	if w.Code != http.StatusOK {
		out.Write(w.Body.Bytes())
		return out.String()
	}
	var answer struct {
		Response struct {
			UID     string
			Allowed bool
			Patch   []byte

			AuditAnnotations map[string]string
			Warnings         []string
		}
	}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		t.Fatalf("the answer is not JSON: %v\n%s", err, w.Body)
	}
	fmt.Fprintf(&out, "uid %s\nallowed %t\n", answer.Response.UID, answer.Response.Allowed)
	for _, warning := range answer.Response.Warnings {
		fmt.Fprintf(&out, "warning %s\n", warning)
	}
	if answer.Response.Patch == nil {
		return out.String() + "no patch\n"
	}
	fmt.Fprintf(&out, "patch %s\n", answer.Response.Patch)
	var review struct {
		Request struct{ Object json.RawMessage }
	}
	if err := json.Unmarshal(body, &review); err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(answer.Response.Patch)
	if err != nil {
		t.Fatalf("the patch is not one: %v\n%s", err, answer.Response.Patch)
	}
	patched, err := patch.Apply(review.Request.Object)
	if err != nil {
		t.Fatalf("the patch cannot be applied: %v\n%s", err, answer.Response.Patch)
	}
	var object struct{ Metadata json.RawMessage }
	if err := json.Unmarshal(patched, &object); err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, object.Metadata, "", "  "); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "metadata %s\n", &indented)
	return out.String()
}
