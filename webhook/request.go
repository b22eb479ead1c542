package webhook

import (
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

	trust Trust // of the handler
}

// trusts says whether a span of ours may be made in a trace that a caller or an annotation names.
func (r *Request) trusts() bool { return r.trust == TrustParent || r.trust == "" }

// Object is one object of a review as the API server sent it: raw JSON, with
// the places remembered that mutators ask for. Nothing else is looked at, so any
// kind works and unknown fields survive.
type Object struct {
	// Raw is the object's JSON, nil where the review has none. In a unit test it is all that
	// one needs to set: NewResponse reads the rest from it.
	Raw []byte

	spec            []byte   // nil where there is none
	specHash        uint64   // of spec; hashes are to be compared with those of the same review
	otherHash       uint64   // of the other fields, but metadata, status and operation
	annotations     []member // of metadata.annotations
	annotationBytes int      // of these as they are written
	owner           ownerReference
	labels          applicationLabels

	hasMetadata    bool // metadata is there and not null
	hasAnnotations bool // metadata.annotations is there and not null
	owned          bool // by the controller in owner

	annotationSpace [8]member // spares the usual object an allocation
}

// ownerReference is what is looked at of one, unescaped.
type ownerReference struct{ apiVersion, kind, name, uid []byte }

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

// ControllerOwner returns the owner reference whose `controller` is true, the first if
// there are several.
func (o *Object) ControllerOwner() (owner metav1.OwnerReference, ok bool) {
	if !o.owned {
		return metav1.OwnerReference{}, false
	}
	return metav1.OwnerReference{
		APIVersion: string(o.owner.apiVersion), Kind: string(o.owner.kind),
		Name: string(o.owner.name), UID: types.UID(o.owner.uid),
	}, true
}

// desiredStateEqual says whether two states of an object differ in nothing but
// metadata, status and operation. Both must come from the same review: one API server writes
// the same value in the same bytes, and their hashes have the same seed. That two
// states differ and their hashes do not happens once in 2^64 updates.
func desiredStateEqual(a, b *Object) bool {
	return a.specHash == b.specHash && a.otherHash == b.otherHash
}
