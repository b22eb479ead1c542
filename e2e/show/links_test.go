package show

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// A controller's work is a trace of its own whose span links to the cause of what it works on (KEP-5915).
func TestShowFollowsALinkToTheCause(t *testing.T) {
	_, printed := run(t, 0, command(t, "trace", "-o", "tree", "--", shared.kubectl, "get", "configmaps", "-o", "name"))
	cause := printedID(t, printed)
	causeID, err := trace.TraceIDFromHex(cause)
	if err != nil {
		t.Fatal(err)
	}
	ctx := story.Within(t, time.Minute)
	_, span := newService(ctx, t, "controller").Start(ctx, "reconcile", trace.WithLinks(trace.Link{
		SpanContext: trace.NewSpanContext(trace.SpanContextConfig{TraceID: causeID, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled}),
	}))
	id := span.SpanContext().TraceID().String()
	span.End()
	for deadline := time.Now().Add(30 * time.Second); command(t, "show", id).Run() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("the controller's trace has not arrived")
		}
	}

	stdout, stderr := run(t, 0, command(t, "show", id))
	if strings.Contains(stdout, "kubectl") || lineWith(t, stderr, "tracehook:") != "tracehook: it links to 1 other traces; --links 1 shows them too" {
		t.Errorf("without --links:\n%s%s", stdout, stderr)
	}
	stdout, stderr = run(t, 0, command(t, "show", id, "--links", "1"))
	lineWith(t, stdout, "reconcile of controller links to trace "+cause)
	lineWith(t, stdout, "└ GET /api/v1/namespaces/{namespace}/configmaps")
	if stderr != "" {
		t.Errorf("it says %s", stderr)
	}
	stdout, _ = run(t, 0, command(t, "show", id, "--links", "1", "-o", "json"))
	var document struct {
		Sections []struct {
			Trace struct {
				ID string `json:"trace_id"`
			}
		}
	}
	if err := json.Unmarshal([]byte(stdout), &document); err != nil || len(document.Sections) != 2 || document.Sections[1].Trace.ID != cause {
		t.Errorf("%v, sections %v, want the linked trace too", err, document.Sections)
	}
	page := filepath.Join(t.TempDir(), "trace.html")
	stdout, _ = run(t, 0, command(t, "show", id, "--links", "1", "-o", "html="+page))
	if stdout != "page: "+page+"\n" {
		t.Errorf("it says %q", stdout)
	}
}
