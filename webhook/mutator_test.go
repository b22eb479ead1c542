package webhook_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/tracehook/tracehook/webhook"
)

// As an author writes it in a unit test: a Response literal, and no request around it.
func TestAResponseThatBelongsToNoRequestCollectsAllTheSame(t *testing.T) {
	var resp webhook.Response
	if patch := resp.Patch(); patch != nil {
		t.Errorf("nothing was asked for, and the patch is %s", patch)
	}
	resp.RemoveAnnotation("gone")
	resp.SetAnnotation("a", "1")
	resp.SetAnnotation("a", "2")
	resp.Link(trace.SpanContext{})
	resp.Warn("mind the gap")
	resp.AuditAnnotation("seen", "yes")
	if value, ok := resp.Annotation("a"); !ok || value != "2" {
		t.Errorf("annotation a is %q, %v", value, ok)
	}
	if _, ok := resp.Annotation("b"); ok {
		t.Error("annotation b is there")
	}
	if got := string(resp.Patch()); got != `[{"op":"add","path":"/metadata","value":{"annotations":{"a":"2"}}}]` {
		t.Errorf("patch %s", got)
	}
	if got := resp.Warnings(); !slices.Equal(got, []string{"mind the gap"}) {
		t.Errorf("warnings %q", got)
	}
	if got := resp.AuditAnnotations(); !maps.Equal(got, map[string]string{"seen": "yes"}) {
		t.Errorf("audit annotations %v", got)
	}
}

// The mutators of this package, without a server: on whatever request a test makes up.
func TestEveryMutatorCanBeCalledWithZeroValues(t *testing.T) {
	stamp, err := webhook.NewTraceContext(webhook.TraceContextOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]webhook.Mutator{"trace context": stamp, "environment": webhook.Environment{Always: true}} {
		for _, req := range []*webhook.Request{{}, {Operation: admissionv1.Create}, {Operation: admissionv1.Update}, {Operation: admissionv1.Delete}} {
			empty, err := webhook.NewResponse(req)
			if err != nil {
				t.Fatal(err)
			}
			for _, resp := range []*webhook.Response{{}, empty} {
				if selective, ok := m.(webhook.Selective); ok && !selective.Wants(req, resp) {
					continue
				}
				if err := m.Mutate(t.Context(), req, resp); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

func TestAMutatorIsTestedWithAnObjectAndAnswersAPatch(t *testing.T) {
	m := webhook.MutatorFunc(func(_ context.Context, req *webhook.Request, resp *webhook.Response) error {
		if old, ok := req.Object.Annotation("a/b"); ok {
			resp.SetAnnotation("was", old)
			resp.RemoveAnnotation("a/b")
		}
		owner, _ := req.Object.ControllerOwner()
		resp.SetAnnotation("owner", owner.Name)
		return nil
	})
	raw := `{"kind":"Pod","metadata":{"name":"web","annotations":{"a/b":"1","c":"2"},"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web-1","uid":"u","controller":true}]},"spec":{"x":1.0}}`
	req := &webhook.Request{Operation: admissionv1.Create, Object: webhook.Object{Raw: []byte(raw)}}
	resp, err := webhook.NewResponse(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Mutate(t.Context(), req, resp); err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(resp.Patch())
	if err != nil {
		t.Fatal(err)
	}
	got, err := patch.Apply([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(raw, `"a/b":"1","c":"2"`, `"c":"2","owner":"web-1","was":"1"`, 1)
	if !jsonpatch.Equal(got, []byte(want)) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAnObjectThatIsNoneIsAnErrorWithAReason(t *testing.T) {
	for raw, want := range map[string]string{
		`{`:                                    "unexpected",
		`[]`:                                   "",
		`{"metadata":{"annotations":"x"}}`:     "",
		`{"metadata":{"annotations":{"x":1}}}`: "an annotation's value is not a string",
		`{} {}`:                                "after",
		`{"a":1,"a":2}`:                        "the same name twice",
		``:                                     "not JSON",
	} {
		for name, req := range map[string]*webhook.Request{
			"object":    {Object: webhook.Object{Raw: []byte(raw)}},
			"oldObject": {OldObject: webhook.Object{Raw: []byte(raw)}},
		} {
			_, err := webhook.NewResponse(req)
			if err == nil || !strings.HasPrefix(err.Error(), "read "+name+": ") || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want in it %q", raw, err, want)
			}
		}
	}
}

// The stamp compares the two states of an object.
func TestBothObjectsOfAnUpdateAreRead(t *testing.T) {
	stamp, err := webhook.NewTraceContext(webhook.TraceContextOptions{})
	if err != nil {
		t.Fatal(err)
	}
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled})
	before := `{"metadata":{"labels":{"a":"b"}},"spec":{"paused":true}}`
	for after, stamped := range map[string]bool{
		`{"metadata":{"labels":{"a":"c"}},"spec":{"paused":true}}`:  false,
		`{"metadata":{"labels":{"a":"b"}},"spec":{"paused":false}}`: true,
	} {
		req := &webhook.Request{Operation: admissionv1.Update, SpanContext: span,
			Object: webhook.Object{Raw: []byte(after)}, OldObject: webhook.Object{Raw: []byte(before)}}
		resp, err := webhook.NewResponse(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := stamp.Mutate(t.Context(), req, resp); err != nil {
			t.Fatal(err)
		}
		if got := resp.Patch() != nil; got != stamped {
			t.Errorf("%s: patch %s", after, resp.Patch())
		}
	}
}
