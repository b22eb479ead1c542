package webhook

import (
	"cmp"
	stdjson "encoding/json"
	"fmt"
	"maps"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/meta"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"
)

// Random objects of every kind that Kubernetes has, made by its own fuzzers: a
// reference implementation applies our answer, and the object is as it was but for
// the fields we own. What those hold is for a model to say that works on decoded objects and
// knows no patches. The answer to the answer is no patch.
func TestRandomObjectsOfEveryKindChangeInTheFieldsWeOwnAndNowhereElse(t *testing.T) {
	kinds := kindsWithMetadata(t)
	if len(kinds) < 100 {
		t.Fatalf("only %d kinds: %v", len(kinds), kinds)
	}
	const seed = 1
	random := rand.New(rand.NewSource(seed))
	filler := fuzzer.FuzzerFor(metafuzzer.Funcs, random, serializer.NewCodecFactory(scheme.Scheme)).NumElements(0, 2)
	handler := newDifferentialHandler(t)
	for _, kind := range kinds {
		rounds := 5
		if kind == (schema.GroupVersionKind{Version: "v1", Kind: "Pod"}) {
			rounds = 300
		}
		for round := range rounds {
			object, old := fill(t, filler, kind), fill(t, filler, kind)
			stored := someStored(random)
			for _, o := range []metav1.Object{object.(metav1.Object), old.(metav1.Object)} {
				o.SetAnnotations(withStored(o.GetAnnotations(), stored))
				if random.Intn(3) > 0 { // the old one has another one
					stored = someStored(random)
				}
			}
			addEnvironments(random, object)
			resource, _ := meta.UnsafeGuessKindToResource(kind)
			d := differential{
				name:     fmt.Sprintf("%s, seed %d, round %d", kind, seed, round),
				handler:  handler,
				resource: resource,
				object:   marshal(t, object),
				old:      marshal(t, old),
			}
			d.check(t)
		}
	}
}

// Custom resources may hold any JSON, in any spelling.
func TestRandomCustomResourcesChangeInTheFieldsWeOwnAndNowhereElse(t *testing.T) {
	const seed = 2
	random := rand.New(rand.NewSource(seed))
	handler := newDifferentialHandler(t)
	for round := range 1000 {
		d := differential{
			name:     fmt.Sprintf("custom resource, seed %d, round %d", seed, round),
			handler:  handler,
			resource: schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"},
			object:   customResource(random),
			old:      customResource(random),
		}
		d.check(t)
	}
}

func newDifferentialHandler(t testing.TB) http.Handler {
	t.Helper()
	handler, err := New(Options{
		Mutators: Chain{
			{Name: "trace-context", Mutator: newTraceContext(t, TraceContextOptions{})},
			{Name: "environment", Mutator: Environment{}},
		},
		// Random span ids: those of a second run are not those of the first.
		TracerProvider: sdktrace.NewTracerProvider(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

// differential is one object on its way in, and what it was before where it is an update.
type differential struct {
	name        string
	handler     http.Handler
	resource    schema.GroupVersionResource
	object, old []byte
}

func (d differential) check(t *testing.T) {
	t.Helper()
	d.checkOperation(t, "CREATE", "null")
	d.checkOperation(t, "UPDATE", string(d.old))
	if patch := d.patch(t, "DELETE", "null", string(d.old)); patch != nil {
		t.Errorf("%s: DELETE got a patch: %s", d.name, patch)
	}
}

func (d differential) checkOperation(t *testing.T, operation, old string) {
	t.Helper()
	patch := d.patch(t, operation, string(d.object), old)
	patched := d.object
	if patch != nil {
		patched = applyPatch(t, d.object, patch)
	}
	got, want := decodeTree(t, patched), decodeTree(t, d.object)
	cause, err := modelCause(got, want, decodeTree(t, []byte(old)))
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s\n%s", d.name, operation, err, d.object, patch)
	}
	if operation == "CREATE" && d.resource == (schema.GroupVersionResource{Version: "v1", Resource: "pods"}) && asksForEnvironment(want) && !modelInject(want, cause) {
		t.Fatalf("%s: %s: the fuzzer made a pod that is none\n%s", d.name, operation, d.object)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: %s changed something else\npatch %s\nobject %s\npatched %s", d.name, operation, patch, d.object, patched)
	}
	if again := d.patch(t, operation, string(patched), old); again != nil {
		t.Errorf("%s: %s again got a patch: %s\nafter %s", d.name, operation, again, patch)
	}
}

// modelCause makes the annotations that we own in want what they are in got, so that
// all others can be compared, and says what an unpatched object cannot have: a
// context that is none of those before, and not of this request's trace.
func modelCause(got, want, old map[string]any) (Cause, error) {
	before, _ := child(want, "metadata")
	beforeAnnotations, _ := child(before, "annotations")
	after, _ := child(got, "metadata")
	afterAnnotations, _ := child(after, "annotations")

	now, _ := afterAnnotations[DefaultAnnotationKey].(string)
	oldMetadata, _ := child(old, "metadata")
	oldAnnotations, _ := child(oldMetadata, "annotations")
	if was, _ := beforeAnnotations[DefaultAnnotationKey].(string); now != was && now != "" && now != oldAnnotations[DefaultAnnotationKey] && !strings.HasPrefix(now, "00-"+testTraceID+"-") {
		return Cause{}, fmt.Errorf("%q became %q, which is not of this request's trace", was, now)
	}
	changed := false
	for _, key := range []string{"tracehook.dev/traceparent", "tracehook.dev/tracestate", "tracehook.dev/create-traceparent", "tracehook.dev/caused-at", "tracehook.dev/previous-traceparent"} {
		value, is := afterAnnotations[key]
		if _, was := beforeAnnotations[key]; is {
			changed = changed || beforeAnnotations[key] != value
			beforeAnnotations[key] = value
		} else if was {
			delete(beforeAnnotations, key)
		}
	}
	if changed { // else null and absent stay what they are
		before["annotations"], want["metadata"] = beforeAnnotations, before
	}
	tracestate, _ := afterAnnotations["tracehook.dev/tracestate"].(string)
	return Cause{Traceparent: now, Tracestate: tracestate}, nil
}

func asksForEnvironment(object map[string]any) bool {
	metadata, _ := child(object, "metadata")
	annotations, _ := child(metadata, "annotations")
	return annotations[InjectEnvironmentKey] == "true"
}

// patch asks the handler; nil is no patch.
func (d differential) patch(t *testing.T, operation, object, old string) []byte {
	t.Helper()
	body := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":%q,`+
		`"resource":{"group":%q,"version":%q,"resource":%q},"object":%s,"oldObject":%s}}`,
		operation, d.resource.Group, d.resource.Version, d.resource.Resource, object, old)
	return answerPatch(t, post(d.handler, []byte(body)))
}

// answerPatch is the patch in an answer that has to allow the request.
func answerPatch(t *testing.T, w *httptest.ResponseRecorder) []byte {
	t.Helper()
	var answer struct {
		Response struct {
			Allowed bool
			Patch   []byte
		}
	}
	if err := stdjson.Unmarshal(w.Body.Bytes(), &answer); err != nil || !answer.Response.Allowed {
		t.Fatalf("not an answer that allows: %v\n%d %s", err, w.Code, w.Body)
	}
	return answer.Response.Patch
}

// kindsWithMetadata are all that could come through admission, in a fixed order.
func kindsWithMetadata(t *testing.T) []schema.GroupVersionKind {
	t.Helper()
	var kinds []schema.GroupVersionKind
	for kind, typ := range scheme.Scheme.AllKnownTypes() {
		if _, ok := reflect.New(typ).Interface().(metav1.Object); ok && kind.Version != runtime.APIVersionInternal {
			kinds = append(kinds, kind)
		}
	}
	slices.SortFunc(kinds, func(a, b schema.GroupVersionKind) int { return cmp.Compare(a.String(), b.String()) })
	return kinds
}

func fill(t *testing.T, filler *randfill.Filler, kind schema.GroupVersionKind) runtime.Object {
	t.Helper()
	object, err := scheme.Scheme.New(kind)
	if err != nil {
		t.Fatal(err)
	}
	filler.Fill(object)
	object.GetObjectKind().SetGroupVersionKind(kind)
	return object
}

func marshal(t *testing.T, object runtime.Object) []byte {
	t.Helper()
	data, err := stdjson.Marshal(object)
	if err != nil {
		t.Fatalf("marshal %T: %v", object, err)
	}
	return data
}

// someStored is what may be found on an object: nothing, a client's context, what is
// none, one of this very trace, an old stamp; and a wish for variables.
func someStored(random *rand.Rand) map[string]string {
	const other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	stored := map[string]string{}
	switch random.Intn(7) {
	case 0:
		stored[DefaultAnnotationKey] = other
		stored["tracehook.dev/tracestate"] = "vendor=$(X)"
	case 1:
		stored[DefaultAnnotationKey] = other
		stored["tracehook.dev/create-traceparent"] = other
	case 2:
		stored[DefaultAnnotationKey] = "00-nothing"
		stored["tracehook.dev/tracestate"] = "vendor=1"
	case 3:
		stored[DefaultAnnotationKey] = testTraceparent
	case 4:
		stored[DefaultAnnotationKey] = fmt.Sprintf("00-0af7651916cd43dd8448eb211c80319c-%016x-01", random.Uint64()|1)
		stored["tracehook.dev/caused-at"] = formatCausedAt(testNow.Add(-time.Duration(random.Intn(100))*time.Minute), stored[DefaultAnnotationKey], random.Uint32())
		stored["tracehook.dev/previous-traceparent"] = other
	}
	switch random.Intn(4) {
	case 0, 1:
		stored[InjectEnvironmentKey] = "true"
	case 2:
		stored[InjectEnvironmentKey] = "false"
	}
	return stored
}

func withStored(annotations, stored map[string]string) map[string]string {
	if annotations == nil {
		if len(stored) == 0 {
			return nil
		}
		annotations = map[string]string{}
	}
	maps.Copy(annotations, stored)
	return annotations
}

// numbers that a decoder of one or another kind would spell differently, or lose.
var numbers = []string{"0", "-0", "1.0", "1e3", "1E+3", "0.1000", "9007199254740993", "1e400", "123456789012345678901234567890"}

var spellings = []string{"", "a", "é", `\u00e9`, `\ud83d\ude00`, `\/`, `\\`, `\"`, `<&>`, "\u2028", "~1/~0"}

// customResource is an object with any JSON in it but where Kubernetes has its own rules.
func customResource(random *rand.Rand) []byte {
	var b strings.Builder
	space := func() { b.WriteString([]string{"", "", " ", "\n\t"}[random.Intn(4)]) }
	var value func(depth int)
	members := func(n, depth int) {
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			space()
			fmt.Fprintf(&b, `"%s%d":`, spellings[random.Intn(len(spellings))], i)
			space()
			value(depth)
		}
	}
	value = func(depth int) {
		most := 6
		if depth == 0 {
			most = 4
		}
		switch random.Intn(most) {
		case 0:
			b.WriteString(numbers[random.Intn(len(numbers))])
		case 1:
			b.WriteString(strconv.FormatBool(random.Intn(2) == 0))
		case 2:
			b.WriteString("null")
		case 3:
			fmt.Fprintf(&b, `"%s"`, spellings[random.Intn(len(spellings))])
		case 4:
			b.WriteByte('{')
			members(random.Intn(4), depth-1)
			b.WriteByte('}')
		case 5:
			b.WriteByte('[')
			for i := range random.Intn(4) {
				if i > 0 {
					b.WriteByte(',')
				}
				space()
				value(depth - 1)
			}
			b.WriteByte(']')
		}
	}

	b.WriteString(`{"apiVersion":"example.com/v1","kind":"Widget"`)
	if random.Intn(4) == 0 {
		b.WriteString(`,"spec":{"containers":[{}]}`) // like a pod's, and none of our business
	} else {
		b.WriteString(`,"spec":`)
		value(4)
	}
	for _, field := range []string{"status", "env", "containers"} {
		if random.Intn(2) == 0 {
			fmt.Fprintf(&b, `,"%s":`, field)
			value(4)
		}
	}
	if random.Intn(8) > 0 {
		b.WriteString(`,"metadata":{"generation":`)
		value(0)
		switch random.Intn(4) {
		case 0:
			b.WriteString(`,"annotations":null`)
		case 1, 2:
			stored, _ := stdjson.Marshal(withStored(map[string]string{"<&>\u2028": "~1/\x00"}, someStored(random)))
			fmt.Fprintf(&b, `,"annotations":%s`, stored)
		}
		b.WriteString(`,"unknown":`)
		value(2)
		b.WriteByte('}')
	}
	b.WriteByte('}')
	return []byte(b.String())
}

// addEnvironments gives some of a pod's containers the variables that we would add.
func addEnvironments(random *rand.Rand, object runtime.Object) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			c := &containers[i]
			switch random.Intn(4) {
			case 0:
				c.Env = append(c.Env, corev1.EnvVar{Name: "TRACEPARENT", ValueFrom: &corev1.EnvVarSource{}})
			case 1:
				c.Env = append([]corev1.EnvVar{{Name: "TRACESTATE"}}, c.Env...)
			}
		}
	}
}
