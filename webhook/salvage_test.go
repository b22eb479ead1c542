package webhook

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// oddRequests are reviews whose request has a UID and something in it that is not as an
// API server writes it, or that a lax reader takes for something else.
func oddRequests(t *testing.T) map[string]string {
	object := func(object string) string {
		return `{"uid":"` + testUID + `","operation":"CREATE","name":"web","resource":{"group":"apps","version":"v1","resource":"deployments"},"object":` + object + `}`
	}
	metadata := func(metadata string) string { return object(`{"metadata":` + metadata + `,"spec":{}}`) }
	field := func(name, value string) string {
		return `{"uid":"` + testUID + `","operation":"CREATE","` + name + `":` + value + `,"object":{"metadata":{}}}`
	}
	claim := &resourcev1.ResourceClaim{}
	claim.Spec.Devices.Config = []resourcev1.DeviceClaimConfiguration{{DeviceConfiguration: resourcev1.DeviceConfiguration{
		Opaque: &resourcev1.OpaqueDeviceConfiguration{Driver: "gpu.example.com", Parameters: runtime.RawExtension{Raw: []byte(`{"a":1,"a":2}`)}},
	}}}
	requests := map[string]string{
		"a name twice in a RawExtension":     object(string(marshal(t, claim))),
		"the same behind it":                 `{"object":` + string(marshal(t, claim)) + `,"operation":"CREATE","uid":"` + testUID + `"}`,
		"metadata twice":                     object(`{"metadata":{},"metadata":{"annotations":{}}}`),
		"annotations twice":                  metadata(`{"annotations":{},"annotations":{"a":"b"}}`),
		"an annotation twice":                metadata(`{"annotations":{"a":"b","a":"c"}}`),
		"an annotation twice, once escaped":  metadata(`{"annotations":{"a":"b","\u0061":"c"}}`),
		"an object that is a number":         object(`5`),
		"an object that is a list":           object(`[{"metadata":{}}]`),
		"an object that is true":             object(`true`),
		"metadata that are a number":         metadata(`1`),
		"metadata that are a list":           metadata(`[]`),
		"annotations that are a string":      metadata(`{"annotations":"a"}`),
		"annotations that are a list":        metadata(`{"annotations":[{}]}`),
		"an annotation that is a number":     metadata(`{"annotations":{"a":1}}`),
		"an annotation that is false":        metadata(`{"annotations":{"a":false}}`),
		"an annotation that is an object":    metadata(`{"annotations":{"a":{}}}`),
		"owners that are an object":          metadata(`{"ownerReferences":{}}`),
		"an owner that is a string":          metadata(`{"ownerReferences":["a"]}`),
		"an owner that is null":              metadata(`{"ownerReferences":[null]}`),
		"an owner whose name is a number":    metadata(`{"ownerReferences":[{"name":1,"controller":true}]}`),
		"an owner with controller as text":   metadata(`{"ownerReferences":[{"name":"a","controller":"true"}]}`),
		"half a surrogate pair":              object(`{"metadata":{},"spec":"\ud83d"}`),
		"half a surrogate pair in a name":    metadata(`{"annotations":{"\ude00":"a"}}`),
		"bytes that are no UTF-8":            object("{\"metadata\":{},\"spec\":\"\xff\"}"),
		"a control character":                object("{\"metadata\":{},\"spec\":\"\x01\"}"),
		"an escape of no kind":               object(`{"metadata":{},"spec":"\a"}`),
		"a number of no kind":                object(`{"metadata":{},"spec":01}`),
		"no number":                          object(`{"metadata":{},"spec":NaN}`),
		"a comma too many":                   object(`{"metadata":{},}`),
		"a colon too few":                    object(`{"metadata" {}}`),
		"too deep":                           object(`{"metadata":{},"spec":` + strings.Repeat("[", mostNested) + strings.Repeat("]", mostNested) + `}`),
		"more annotations than anybody's":    metadata(`{"annotations":` + strings.ReplaceAll(manyNames(mostAnnotations+1, ""), "{}", `""`) + `}`),
		"more names than anybody's":          object(manyNames(mostNames+1, "")),
		"an old object that is a number":     `{"uid":"` + testUID + `","operation":"UPDATE","object":{"metadata":{}},"oldObject":1}`,
		"an old object with a name twice":    `{"uid":"` + testUID + `","operation":"UPDATE","object":{"metadata":{}},"oldObject":{"a":1,"a":2}}`,
		"a kind that is a string":            field("kind", `"Pod"`),
		"a resource with numbers":            field("resource", `{"group":1,"version":2,"resource":3}`),
		"a name that is a number":            field("name", `1`),
		"a name that is half a pair":         field("name", `"\ud83d"`),
		"a name of no UTF-8":                 field("name", "\"\xff\""),
		"a namespace that is a list":         field("namespace", `[]`),
		"a subresource that is a number":     field("subResource", `1`),
		"a dry run that is a string":         field("dryRun", `"true"`),
		"a user with a name twice":           field("userInfo", `{"username":"alice","username":"bob"}`),
		"options with a name twice":          field("options", `{"a":1,"a":1}`),
		"a field twice":                      field("name", `"a","name":"b"`),
		"an operation that is a number":      `{"uid":"` + testUID + `","operation":1,"object":{"metadata":{}}}`,
		"no operation":                       `{"uid":"` + testUID + `","object":{"metadata":{}}}`,
		"an empty operation":                 `{"uid":"` + testUID + `","operation":"","object":{"metadata":{}}}`,
		"a UID behind everything":            `{"operation":"CREATE","object":{"metadata":{"annotations":[]},"spec":"\ud83d"},"options":{"a":1,"a":2},"uid":"` + testUID + `"}`,
		"a UID in an escaped name":           `{"object":1,"\u0075id":"` + testUID + `"}`,
		"a UID's like in the object":         `{"object":{"a":1,"a":2,"uid":"another"},"uid":"` + testUID + `"}`,
		"a UID's like in a string":           `{"object":{"a":1,"a":2,"b":"\",\"uid\":\"another\""},"uid":"` + testUID + `"}`,
		"the same in front":                  `{"uid":"` + testUID + `","object":{"a":"\\","a":"uid"}}`,
		"an object that is not closed":       `{"uid":"` + testUID + `","operation":"CREATE","object":{"metadata":{`,
		"a string that is not closed":        `{"uid":"` + testUID + `","operation":"CREATE","object":{"metadata":"`,
		"a request that is closed too often": object(`{}}`),
	}
	return requests
}

func TestAnOddRequestIsAllowedAsItIsAndCounted(t *testing.T) {
	for name, request := range oddRequests(t) {
		t.Run(name, func(t *testing.T) {
			body := `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":` + request + `}`
			if strings.Contains(name, "not closed") {
				body = strings.TrimSuffix(body, "}")
			}
			wantLeftAlone(t, body)
		})
	}
	const head, request = `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1",`, `"request":{"uid":"` + testUID + `","operation":"CREATE","object":{"metadata":{}}}`
	for name, body := range map[string]string{
		"something behind it":   head + request + `} x`,
		"another one behind it": head + request + `}` + head + `"request":{"uid":"another"}}`,
		"not closed":            head + request,
		"a field twice":         head + `"a":1,"a":2,` + request + `}`,
		"a field of no UTF-8":   head + "\"a\":\"\xff\"," + request + `}`,
		"the kind behind it":    `{"request":{"object":1,"uid":"` + testUID + `"},"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`,
	} {
		t.Run("a review with "+name, func(t *testing.T) { wantLeftAlone(t, body) })
	}
}

func wantLeftAlone(t *testing.T, body string) {
	t.Helper()
	handler, rec := newTestHandler(t, Options{})
	w := post(handler, []byte(body))
	if want := `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":"` + testUID + `","allowed":true`; !strings.HasPrefix(w.Body.String(), want) || strings.Contains(w.Body.String(), "patch") {
		t.Errorf("got %d %s, want an answer that allows without a patch", w.Code, w.Body)
	}
	rec.wantCount(t, "left_alone", "odd_review")
	if log := rec.log.String(); !strings.Contains(log, "level=WARN") || !strings.Contains(log, "odd_review") || !strings.Contains(log, testUID) {
		t.Errorf("log: %s", log)
	}
}

// Where the UID is not clear nobody can be answered.
func TestARequestWithoutAReadableUIDIsRefused(t *testing.T) {
	const object = `,"operation":"CREATE","object":{"a":1,"a":2}}`
	review := func(request string) string {
		return `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":` + request + `}`
	}
	for name, body := range map[string]string{
		"no UID":                review(`{"name":"a"` + object),
		"an empty one":          review(`{"uid":""` + object),
		"longer than any":       review(`{"uid":"` + strings.Repeat("u", 300) + `"` + object),
		"the same, not odd":     review(`{"uid":"` + strings.Repeat("u", 300) + `","operation":"CREATE"}`),
		"a number":              review(`{"uid":1` + object),
		"null":                  review(`{"uid":null` + object),
		"a list":                review(`{"uid":["a"]` + object),
		"half a surrogate pair": review(`{"uid":"\ud83d"` + object),
		"no UTF-8":              review("{\"uid\":\"\xff\"" + object),
		"a control character":   review("{\"uid\":\"\x01\"" + object),
		"two":                   review(`{"uid":"a","uid":"b"` + object),
		"two, once escaped":     review(`{"uid":"a","\u0075id":"a"` + object),
		"in upper case":         review(`{"UID":"a"` + object),
		"not closed":            `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"a`,
		"behind what is broken": `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"object":"a"b","uid":"c"}}`,
		"two requests":          `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"a"},"request":{"uid":"b"}}`,
		"a request in a list":   review(`[{"uid":"a"}]`),
		"of another kind":       `{"kind":"ConversionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"a"` + object + `}`,
		"of another version":    `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"a"` + object + `}`,
		"of two kinds":          `{"kind":"AdmissionReview","kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"a"` + object + `}`,
		"of no kind":            `{"request":{"uid":"a"` + object + `}`,
		"in a list":             `[` + review(`{"uid":"a"`+object) + `]`,
	} {
		t.Run(name, func(t *testing.T) {
			handler, _ := newTestHandler(t, Options{})
			if w := post(handler, []byte(body)); w.Code != http.StatusBadRequest {
				t.Errorf("got %d %s, want 400", w.Code, w.Body)
			}
		})
	}
}

// An answer that comes after the deadline helps nobody.
func TestAReviewThatCannotBeReadInTimeFailsOpen(t *testing.T) {
	body := `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"` + testUID + `","operation":"CREATE","resource":{"version":"v1","resource":"pods"},` +
		`"object":{"metadata":{},"spec":[` + strings.Repeat(`{"a":0},`, 100000) + `0]}}}`
	handler, rec := newTestHandler(t, Options{})
	r := httptest.NewRequest(http.MethodPost, "/mutate?timeout=100ms", &lateReader{r: strings.NewReader(body)})
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	if !strings.Contains(w.Body.String(), `"allowed":true`) || strings.Contains(w.Body.String(), "patch") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	rec.wantCount(t, "failed_open", "deadline_exceeded")
}

// lateReader says that there is no more to read only after a while.
type lateReader struct{ r io.Reader }

func (l *lateReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if err != nil {
		time.Sleep(200 * time.Millisecond)
	}
	return n, err
}

// What the strict reader accepts, the other one reads in the same way.
func FuzzWhoseRequestIsReadAlike(f *testing.F) {
	seedReviews(f)
	f.Add([]byte(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"object":{"a":["}\"",{}]},"uid":"a"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var decoder reviewDecoder
		var strict Request
		err := decoder.decode(body, &strict)
		got := salvage(body)
		if got.Object.Raw != nil || got.OldObject.Raw != nil {
			t.Error("an object came along")
		}
		if err == nil {
			got.Object, got.OldObject = strict.Object, strict.OldObject
			if want := fmt.Sprint(strict); fmt.Sprint(got) != want {
				t.Errorf("got %v\nwant %v", got, want)
			}
		}
	})
}
