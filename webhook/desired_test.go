package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/webhook/cause"
)

func TestHowMuchRunsAndWhereAQueuePutsItIsNotWhatIsWanted(t *testing.T) {
	const template = `"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"image":"i"}]}}`
	for _, test := range []struct {
		name   string
		a, b   string // objects without braces
		scaled bool
	}{
		{"replicas", `"spec":{"replicas":1,` + template + `}`, `"spec":{"replicas":2,` + template + `}`, true},
		{"a name that looks like the end of another", `"spec":{"x":{"a":1,"b":2}}`, `"spec":{"x":{"a\"1,\"b":2}}`, false},
		{"replicas that were not there", `"spec":{` + template + `}`, `"spec":{"replicas":2,` + template + `}`, true},
		{"replicas of one group of workers", `"spec":{"groups":[{"name":"a","replicas":1},{"replicas":2}]}`, `"spec":{"groups":[{"name":"a","replicas":5},{"replicas":2}]}`, true},
		{"suspended", `"spec":{"suspend":false,` + template + `}`, `"spec":{"suspend":true,` + template + `}`, true},
		{"let go and placed by a queue", `"spec":{"runPolicy":{"suspend":true},"jobs":[{"replicas":1,` + template + `}]}`,
			`"spec":{"runPolicy":{"suspend":false},"jobs":[{"replicas":1,"template":{"metadata":{"labels":{"a":"b","c":"d"}},"spec":{"containers":[{"image":"i"}],"nodeSelector":{"gpu":"1"},"tolerations":[{}]}}}]}`, true},
		{"let go, and something else", `"spec":{"suspend":true,` + template + `}`, `"spec":{"suspend":false,"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"image":"i:2"}]}}}`, false},
		{"placed, but nothing was let go", `"spec":{"suspend":true,"nodeSelector":{}}`, `"spec":{"suspend":true,"nodeSelector":{"a":"b"}}`, false},
		{"another image", `"spec":{"replicas":1,"image":"a"}`, `"spec":{"replicas":2,"image":"b"}`, false},
		{"an element more", `"spec":{"a":[1]}`, `"spec":{"a":[1,1]}`, false},
		{"a name and a value that look like another", `"spec":{"a":{"b":1}}`, `"spec":{"a":{},"b":1}`, false},
		{"replicas of something else than a spec", `"data":{"replicas":1},"spec":{}`, `"data":{"replicas":2},"spec":{}`, false},
		{"no spec", `"data":1`, `"data":2`, false},
		{"a spec that was not there", `"a":1`, `"a":1,"spec":{"replicas":1}`, false},
		{"an order to a controller does not count", `"operation":{"sync":{"revision":"abc"}},"spec":{"replicas":1}`, `"spec":{"replicas":2}`, true},
		{"an operation in a spec counts", `"spec":{"operation":"a"}`, `"spec":{"operation":"b"}`, false},
		{"metadata and status do not count", `"metadata":{"a":1},"status":1,"spec":{"replicas":1}`, `"status":2,"spec":{"replicas":2}`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, pair := range [][2]string{{test.a, test.b}, {test.b, test.a}} {
				var decoder reviewDecoder
				var req Request
				review := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"UPDATE","object":{%s},"oldObject":{%s}}}`, pair[0], pair[1])
				if err := decoder.decode([]byte(review), &req); err != nil {
					t.Fatal(err)
				}
				if got := onlyScaled(&req.Object, &req.OldObject, time.Time{}); got != test.scaled {
					t.Errorf("%s\n%s\nonly scaled: %t, want %t", pair[0], pair[1], got, test.scaled)
				}
			}
		})
	}
}

// Whatever is in the specs: what is said to be only scaled differs in nothing else.
func FuzzOnlyScaledSpecsDifferInNothingElse(f *testing.F) {
	for _, specs := range [][2]string{
		{`{"replicas":1,"a":[1,{"suspend":true}]}`, `{"replicas":2,"a":[1,{"suspend":false}]}`},
		{`{"suspend":true}`, `{"suspend":false,"nodeSelector":{"a":"b"}}`}, {`{"a":{}}`, `{"a":[]}`}, {`{"a":"}{"}`, `{"a":{}}`}, {`[1,[2]]`, `[[1],2]`}, {`null`, `{}`},
	} {
		f.Add([]byte(specs[0]), []byte(specs[1]))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var decoder reviewDecoder
		var req Request
		review := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"UPDATE","object":{"spec":%s},"oldObject":{"spec":%s}}}`, a, b)
		if decoder.decode([]byte(review), &req) != nil {
			return
		}
		scaled := onlyScaled(&req.Object, &req.OldObject, time.Time{})
		if onlyScaled(&req.OldObject, &req.Object, time.Time{}) != scaled {
			t.Fatal("the other way round it is different")
		}
		leaveOut := append([]string{replicasField, suspendField}, placementFields...)
		if !scaled {
			return
		}
		if x, y := without(t, a, leaveOut), without(t, b, leaveOut); !reflect.DeepEqual(x, y) {
			t.Errorf("%s and %s differ in more than that", a, b)
		}
	})
}

// without is a JSON value without some members of its objects.
func without(t *testing.T, text []byte, leaveOut []string) any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	var strip func(any)
	strip = func(value any) {
		switch value := value.(type) {
		case map[string]any:
			for _, name := range leaveOut {
				delete(value, name)
			}
			for _, member := range value {
				strip(member)
			}
		case []any:
			for _, element := range value {
				strip(element)
			}
		}
	}
	strip(value)
	return value
}

func FuzzCausedAtIsOfItsTraceparentOrNothing(f *testing.F) {
	f.Add(formatCausedAt(testNow, causeText, 7), causeText)
	f.Add("2026-11-28T10:00:00,000Z 0000000000000000", "")
	f.Add(formatCausedAt(testNow, causeText, 7), causeText+" ")
	f.Fuzz(func(t *testing.T, text, traceparent string) {
		c := Cause{Traceparent: traceparent}
		c.readCausedAt(text)
		object := &metav1.ObjectMeta{Annotations: map[string]string{cause.DefaultKey: traceparent, cause.CausedAtKey(cause.DefaultKey): text}}
		if at := cause.At(object); c.SpanContext().IsValid() && !at.Equal(c.At) || !c.SpanContext().IsValid() && !at.IsZero() {
			t.Fatalf("a reader of %q beside %q sees %s, the webhook %s", text, traceparent, at, c.At)
		}
		if !c.vouched {
			if !c.At.IsZero() || c.place != 0 {
				t.Fatalf("read half of %q: %+v", text, c)
			}
			return
		}
		again := Cause{Traceparent: traceparent}
		if again.readCausedAt(formatCausedAt(c.At, traceparent, c.place)); again != c {
			t.Errorf("%q is %+v, written and read again %+v", text, c, again)
		}
	})
}

func TestSpecsThatAreNotComparedInTimeAreTakenForDifferent(t *testing.T) {
	spec := []byte(`{"replicas":1,"a":[` + strings.Repeat(`{"b":1},`, 100_000) + `0]}`)
	object := Object{spec: spec}
	if onlyScaled(&object, &object, time.Now().Add(-time.Second)) {
		t.Error("after the deadline the comparison went on")
	}
	if !onlyScaled(&object, &object, time.Now().Add(time.Minute)) {
		t.Error("in time it is found that they differ in nothing else")
	}
}
