package webhook

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Request is the request of an AdmissionReview (admission.k8s.io/v1). Its
// user is left out on purpose: who asked is nobody's business here.
//
// A Request and everything it points to is valid until the Mutator it was
// given to returns; copy what you want to keep.
type Request struct {
	// UID is the join key to the API server's span `Call mutating webhook`.
	UID types.UID
	// Kind and Resource are what the webhook's rules matched, possibly after a
	// conversion (matchPolicy: Equivalent).
	Kind     metav1.GroupVersionKind
	Resource metav1.GroupVersionResource
	// SubResource is "" for the resource itself, "status", "scale", ….
	SubResource string
	// Name may be empty on CREATE (generateName).
	Name      string
	Namespace string // empty for cluster-scoped objects
	Operation admissionv1.Operation
	DryRun    bool
	// SpanContext is the SERVER span of this request: what an object that the
	// request creates should remember. Invalid where nothing is traced.
	SpanContext trace.SpanContext
	// Object is absent on DELETE, OldObject on CREATE and CONNECT.
	Object, OldObject Object
}

// Object is one object of a review as the API server sent it: raw JSON, with
// the places of the metadata that mutators ask for. Nothing else is looked at,
// so any kind works and unknown fields survive.
type Object struct {
	// Raw is the object's JSON, nil where the review has none.
	Raw []byte

	hasMetadata    bool // metadata is there and not null
	hasAnnotations bool // metadata.annotations is there and not null

	annotations     []annotation
	annotationSpace [8]annotation // spares the usual object an allocation
}

// annotation is a key, unescaped, and its value as quoted JSON (or null).
type annotation struct{ key, value []byte }

// Annotation returns the annotation's value and whether the key is there.
func (o *Object) Annotation(key string) (value string, ok bool) {
	for i := range o.annotations {
		if string(o.annotations[i].key) != key {
			continue
		}
		quoted := o.annotations[i].value
		if quoted[0] == 'n' {
			return "", true // null reads as the empty string, as in the API server
		}
		if bytes.IndexByte(quoted, '\\') < 0 {
			return string(quoted[1 : len(quoted)-1]), true
		}
		unquoted, _ := jsontext.AppendUnquote(nil, quoted) // validated when the review was read
		return string(unquoted), true
	}
	return "", false
}
