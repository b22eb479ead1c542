package explain

// What tracehook stored on an object. In: its annotations. Out: the cause. Pure. Error: cause.ErrInvalid.

import (
	"time"

	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/webhook/cause"
)

// DefaultKeys are the annotations that may hold a cause.
func DefaultKeys() []string { return []string{cause.DefaultKey, cause.KEP5915Key} }

// stamp is what is stored on an object. The zero stamp is none.
type stamp struct {
	span     trace.SpanContext // of the cause
	own      trace.SpanContext // the object's own span `create <Kind>`; not valid: it has none
	previous trace.SpanContext // of the cause before
	at       time.Time         // zero: not known
}

func (s stamp) ok() bool { return s.span.IsValid() }

func (s stamp) traceID() string {
	if !s.ok() {
		return ""
	}
	return s.span.TraceID().String()
}

// stampOf reads the first valid one. The error names the annotation of an invalid one where none is valid.
func stampOf(object metav1.Object, keys []string) (stamp, error) {
	span, err := cause.Of(object, keys...)
	if !span.IsValid() {
		return stamp{}, err
	}
	s := stamp{span: span, at: cause.At(object, keys...)}
	annotations := object.GetAnnotations()
	for _, key := range keys {
		stored := cause.Parse(annotations[key], "")
		if !stored.IsValid() {
			continue
		}
		if stored.SpanID() != span.SpanID() {
			s.span, s.own = stored, span
		}
		s.previous = cause.Parse(annotations[cause.PreviousKey(key)], "")
		break
	}
	return s, nil
}
