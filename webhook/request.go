package webhook

import (
	"bytes"

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
// the places remembered that mutators ask for. Nothing else is looked at, so any
// kind works and unknown fields survive.
type Object struct {
	// Raw is the object's JSON, nil where the review has none. An Object that has nothing
	// else, as a literal has, has no annotations: ParseObject makes one.
	Raw []byte

	fields      []member // of the object itself
	annotations []member // of metadata.annotations
	owners      []byte   // metadata.ownerReferences, nil where there are none

	hasMetadata    bool // metadata is there and not null
	hasAnnotations bool // metadata.annotations is there and not null

	// They spare the usual object an allocation.
	fieldSpace      [8]member
	annotationSpace [8]member
}

// member is a name, unescaped, and its value as JSON.
type member struct{ name, value []byte }

// Annotation returns the annotation's value and whether the key is there.
func (o *Object) Annotation(key string) (value string, ok bool) {
	for i := range o.annotations {
		if string(o.annotations[i].name) != key {
			continue
		}
		quoted := o.annotations[i].value
		if quoted[0] == 'n' {
			return "", true // null reads as the empty string, as in the API server
		}
		unquoted, _ := unquote(quoted) // validated when the review was read
		return string(unquoted), true
	}
	return "", false
}

// ControllerOwner returns the owner reference whose `controller` is true.
func (o *Object) ControllerOwner() (owner metav1.OwnerReference, ok bool) {
	if !bytes.Contains(o.owners, []byte(`"controller"`)) {
		return metav1.OwnerReference{}, false // the usual case, not worth a reader
	}
	return readControllerOwner(o.owners)
}

// desiredStateEqual says whether two states of an object differ in nothing but
// metadata and status. Both must come from the same review: one API server writes
// the same value in the same bytes.
func desiredStateEqual(a, b *Object) bool {
	for _, pair := range [2][2]*Object{{a, b}, {b, a}} {
		for _, field := range pair[0].fields {
			if name := string(field.name); name == "metadata" || name == "status" {
				continue
			}
			if !bytes.Equal(field.value, pair[1].field(string(field.name))) {
				return false
			}
		}
	}
	return true
}

func (o *Object) field(name string) []byte {
	for i := range o.fields {
		if string(o.fields[i].name) == name {
			return o.fields[i].value
		}
	}
	return nil
}
