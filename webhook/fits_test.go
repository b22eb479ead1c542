package webhook

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestTheLimitIsTheAPIServers(t *testing.T) {
	if mostAnnotationBytes != apivalidation.TotalAnnotationSizeLimitB {
		t.Errorf("%d bytes, the API server's limit is %d", mostAnnotationBytes, apivalidation.TotalAnnotationSizeLimitB)
	}
}

const grafana = "grafana.com/dashboard"

// annotationsOf this many bytes, with these among them.
func annotationsOf(size int, filler string, others map[string]string) map[string]string {
	all := maps.Clone(others)
	if all == nil {
		all = map[string]string{}
	}
	for key, value := range others {
		size -= len(key) + len(value)
	}
	size -= len(grafana)
	all[grafana] = strings.Repeat(filler, size/len(filler)) + strings.Repeat("x", size%len(filler))
	return all
}

func deploymentReview(operation, resource string, annotations, old map[string]string) string {
	object := func(annotations map[string]string, image string) string {
		text, _ := json.Marshal(annotations)
		return fmt.Sprintf(`{"metadata":{"name":"web","annotations":%s},"spec":{"containers":[{"name":"a","image":%q}]}}`, text, image)
	}
	before := "null"
	if old != nil {
		before = object(old, "a:1")
	}
	return fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":%q,"operation":%q,"resource":{"group":"","version":"v1","resource":%q},"object":%s,"oldObject":%s}}`,
		testUID, operation, resource, object(annotations, "a:2"), before)
}

func TestAPatchNeverMakesTheAnnotationsTooLong(t *testing.T) {
	const ours, stamp = DefaultAnnotationKey, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	const limit, more = mostAnnotationBytes, len(ours) + len(stamp) + len(causedAt) + len(causedAtLayout) + 17
	stamped := map[string]string{ours: stamp, causedAt: formatCausedAt(testNow.Add(-time.Hour), stamp, 0)}
	for name, test := range map[string]struct {
		operation          string
		annotations, old   map[string]string
		outcome, errorType string
	}{
		"just room enough":              {"CREATE", annotationsOf(limit-more, "x", nil), nil, "patched", ""},
		"a byte too few":                {"CREATE", annotationsOf(limit-more+1, "x", nil), nil, "left_alone", "annotations_full"},
		"the issue's":                   {"CREATE", annotationsOf(262100, "x", nil), nil, "left_alone", "annotations_full"},
		"full":                          {"CREATE", annotationsOf(limit, "x", nil), nil, "left_alone", "annotations_full"},
		"too long without us":           {"CREATE", annotationsOf(limit+1, "x", nil), nil, "left_alone", "annotations_full"},
		"room, with escapes":            {"CREATE", annotationsOf(limit-more, "<", nil), nil, "patched", ""},
		"none, with escapes":            {"CREATE", annotationsOf(limit-more+1, "\"", nil), nil, "left_alone", "annotations_full"},
		"room, with runes":              {"CREATE", annotationsOf(limit-more, "ü", nil), nil, "patched", ""},
		"none, with runes":              {"CREATE", annotationsOf(limit-more+1, "ü", nil), nil, "left_alone", "annotations_full"},
		"a stamp that is replaced":      {"UPDATE", annotationsOf(limit, "x", stamped), annotationsOf(limit, "x", stamped), "patched", ""},
		"an update without room":        {"UPDATE", annotationsOf(limit-more+1, "x", nil), annotationsOf(limit-more+1, "x", nil), "left_alone", "annotations_full"},
		"what was stamped has grown":    {"UPDATE", annotationsOf(limit+more, "x", stamped), annotationsOf(1000, "x", stamped), "patched", "annotations_full"},
		"by a byte":                     {"UPDATE", annotationsOf(limit+1, "x", stamped), annotationsOf(1000, "x", stamped), "patched", "annotations_full"},
		"by more than we can give back": {"UPDATE", annotationsOf(limit+more+1, "x", stamped), annotationsOf(1000, "x", stamped), "left_alone", "annotations_full"},
	} {
		t.Run(name, func(t *testing.T) {
			body := deploymentReview(test.operation, "deployments", test.annotations, test.old)
			handler, rec := newTestHandler(t, Options{})
			w := post(handler, []byte(body))
			patch := answerPatch(t, w)
			before := fitsAnnotations(test.annotations)
			after := before
			if patch != nil {
				after = fitsAnnotations(patchedAnnotations(t, body, patch))
			}
			if before && !after {
				t.Error("the API server would take the object without our patch, and not with it")
			}
			if (patch != nil) != (test.outcome == "patched") {
				t.Errorf("got the patch %s", patch)
			}
			if test.errorType != "" && test.outcome == "patched" && !after {
				t.Error("the object would be fine without us, and is not")
			}
			rec.wantCounted(t, test.outcome, test.errorType)
			if warned := strings.Contains(w.Body.String(), `"warnings":["trace-context: left out`); warned != (test.errorType != "") {
				t.Errorf("warned: %t: %s", warned, w.Body)
			}
		})
	}
}

// fitsAnnotations asks the API server's own code.
func fitsAnnotations(annotations map[string]string) bool {
	return len(apivalidation.ValidateAnnotations(annotations, field.NewPath("metadata", "annotations"))) == 0
}

func patchedAnnotations(t testing.TB, body string, patch []byte) map[string]string {
	t.Helper()
	var review struct {
		Request struct{ Object json.RawMessage }
	}
	if err := json.Unmarshal([]byte(body), &review); err != nil {
		t.Fatal(err)
	}
	var object metav1.PartialObjectMetadata
	if err := json.Unmarshal(applyPatch(t, review.Request.Object, patch), &object); err != nil {
		t.Fatal(err)
	}
	return object.Annotations
}

// wantCounted is wantCount where there may be no error.type.
func (r recorded) wantCounted(t *testing.T, outcome, errorType string) {
	t.Helper()
	if errorType != "" {
		r.wantCount(t, outcome, errorType)
		return
	}
	span := r.span(t, "POST /mutate")
	for _, a := range span.Attributes() {
		if a.Key == keyOutcome && a.Value.AsString() != outcome || a.Key == "error.type" {
			t.Errorf("got %s %s", a.Key, a.Value.AsString())
		}
	}
}

// Whatever annotations an object has, the API server takes it with our patch if it takes it without.
func FuzzNoPatchMakesAnAnnotationTooLong(f *testing.F) {
	f.Add("a", "b", "", 0, false)
	f.Add("a", "<\"ü", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", -81, true)
	f.Add("a", "\u2028\x00", "x", 40, true)
	handler := newDifferentialHandler(f)
	f.Fuzz(func(t *testing.T, key, filler, stamp string, offset int, update bool) {
		if filler == "" || len(filler) > 100 || offset < -5000 || offset > 5000 {
			return
		}
		annotations := map[string]string{key: filler, InjectEnvironmentKey: "true"}
		if stamp != "" {
			annotations[DefaultAnnotationKey] = stamp
		}
		for k, v := range annotations {
			annotations[k] = strings.ToValidUTF8(v, "\ufffd")
		}
		annotations = annotationsOf(mostAnnotationBytes+offset, strings.ToValidUTF8(filler, "\ufffd"), annotations)
		operation, old := "CREATE", map[string]string(nil)
		if update {
			operation, old = "UPDATE", map[string]string{DefaultAnnotationKey: stamp}
		}
		body := deploymentReview(operation, "pods", annotations, old)
		patch := answerPatch(t, post(handler, []byte(body)))
		if patch != nil && fitsAnnotations(annotations) && !fitsAnnotations(patchedAnnotations(t, body, patch)) {
			t.Errorf("the patch %s makes the object invalid", patch)
		}
	})
}

// What is not stored, and must have no metadata, gets none.
func TestAReviewOfRightsStaysValid(t *testing.T) {
	for _, test := range []struct{ group, resource, object string }{
		{"authorization.k8s.io", "subjectaccessreviews", string(marshal(t, &authorizationv1.SubjectAccessReview{}))},
		{"authorization.k8s.io", "localsubjectaccessreviews", string(marshal(t, &authorizationv1.LocalSubjectAccessReview{}))},
		{"authorization.k8s.io", "selfsubjectaccessreviews", string(marshal(t, &authorizationv1.SelfSubjectAccessReview{}))},
		{"authentication.k8s.io", "tokenreviews", `{"metadata":{}}`},
		{"", "bindings", string(marshal(t, &corev1.Binding{}))},
	} {
		handler, _ := newTestHandler(t, Options{})
		body := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","resource":{"group":%q,"version":"v1","resource":%q},"object":%s}}`, test.group, test.resource, test.object)
		if patch := answerPatch(t, post(handler, []byte(body))); patch != nil {
			t.Errorf("%s got the patch %s", test.resource, patch)
		}
	}
}

// etcd refuses objects of more than 1.5 MiB, in the form that they are stored in.
func TestAPatchDoesNotMakeAnObjectTooLargeForEtcd(t *testing.T) {
	text := func(size int) string { return strings.Repeat("x", size) }
	deployment := func(values ...string) string {
		d := &appsv1.Deployment{}
		d.Name = "web"
		d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "a", Image: "b"}}
		for i, value := range values {
			d.Spec.Template.Spec.Containers[0].Env = append(d.Spec.Template.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprintf("VARIABLE_%d", i), Value: value})
		}
		return string(marshal(t, d))
	}
	many := make([]string, 26000)
	for i := range many {
		many[i] = "a value, short"
	}
	widget := func(size int) string { return `{"metadata":{"name":"a"},"spec":"` + text(size) + `"}` }
	for name, test := range map[string]struct {
		group, object string
		stamped       bool
	}{
		"a small one":                   {"apps", deployment(text(1 << 20)), true},
		"one near the limit":            {"apps", deployment(text(mostStoredBytes - 1000)), false},
		"one just above":                {"apps", deployment(text(mostStoredBytes + 1000)), false},
		"one that needs another etcd":   {"apps", deployment(text(2 << 20)), true},
		"many variables, 1.6 MB":        {"apps", deployment(many...), true},
		"escapes, 1.6 MB":               {"apps", deployment(strings.Repeat("<", 270000)), true},
		"a small custom resource":       {"example.com", widget(1 << 20), true},
		"a custom resource at the edge": {"example.com", widget(mostStoredBytes - 500), false},
		"one beyond":                    {"example.com", widget(mostStoredBytes + 20000), true},
	} {
		t.Run(name, func(t *testing.T) {
			handler, rec := newTestHandler(t, Options{})
			w := post(handler, []byte(fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":"CREATE","resource":{"group":%q,"version":"v1","resource":"things"},"object":%s}}`, test.group, test.object)))
			if patch := answerPatch(t, w); (patch != nil) != test.stamped {
				t.Errorf("an object of %d bytes, stamped: %t", len(test.object), patch != nil)
			}
			if !test.stamped {
				rec.wantCount(t, "left_alone", "object_full")
			}
		})
	}
}

// What is estimated is compared with what is stored.
func TestTheEstimatedSizeIsAboutTheSizeAsProtobuf(t *testing.T) {
	d := &appsv1.Deployment{}
	d.Name, d.Namespace, d.Annotations = "web", "shop", map[string]string{"a": strings.Repeat("<", 1000)}
	d.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:replicas":{},"f:paused":{}}}`)}}
	for i := range 1000 {
		d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, corev1.Container{Name: fmt.Sprint("c", i), Image: "image", Env: []corev1.EnvVar{{Name: "A", Value: "B"}, {Name: "C", Value: "D"}}})
	}
	least, most := protobufSize(marshal(t, d))
	size := d.Size()
	if least > size || most < size/2 || most > 2*size {
		t.Errorf("estimated %d to %d bytes, are %d", least, most, size)
	}
	text := &corev1.ConfigMap{Data: map[string]string{"a": strings.Repeat("x", 1<<20)}}
	if least, most := protobufSize(marshal(t, text)); least > text.Size() || most < text.Size()-storedMargin || most > text.Size()+storedMargin {
		t.Errorf("estimated %d to %d bytes, are %d", least, most, text.Size())
	}
}
