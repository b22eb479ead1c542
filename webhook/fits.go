package webhook

// Stage: what a mutator wants of an object in, whether the API server would still take the
// object out. Pure.
//
// The API server refuses the user's request when the object with our patch passes one of its
// limits, whatever the failurePolicy says. An object without room for what we want stays as it is.

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// mostAnnotationBytes of keys and values in all (apimachinery, TotalAnnotationSizeLimitB).
	mostAnnotationBytes = 256 << 10
	// mostStoredBytes is what etcd takes as one request unless it is told otherwise
	// (--max-request-bytes). An API server takes objects of twice that, as JSON.
	mostStoredBytes = 3 << 19
	// storedMargin is how far we may be wrong about an object's size in etcd, where there are a
	// key and system fields, too.
	storedMargin = 8 << 10
)

// withheld is why a mutator's changes are not made.
type withheld int

const (
	nothingWithheld     withheld = iota
	withheldAnnotations          // the annotations would be too long
	withheldRoom                 // they were, with ours; without them they are not
	withheldSize                 // the object might be too large for etcd
)

var withheldNames = [...]string{"", "annotations_full", "annotations_full", "object_full"}

// yielding is a Mutator that can take back what it has stored on an object before.
type yielding interface{ yield(*Response) }

// withhold takes the changes back that a mutator made after before, if the API server
// would refuse the object with them.
//
// An object whose annotations are too long with those that the mutator stored on it in an
// earlier request would be fine without us, so these go.
func (c *call) withhold(step Step, before []change) withheld {
	resp := &c.response
	wanted := !slices.Equal(before, resp.changes)
	var reason withheld
	switch {
	case resp.annotationBytes() > mostAnnotationBytes:
		reason = withheldAnnotations
	case wanted && mayOutgrowEtcd(&c.request, resp.changes):
		reason = withheldSize
	default:
		return nothingWithheld
	}
	resp.changes = append(resp.changes[:0], before...)
	if y, ok := step.Mutator.(yielding); ok && reason == withheldAnnotations {
		y.yield(resp)
		if resp.annotationBytes() <= mostAnnotationBytes {
			wanted, reason = true, withheldRoom
		} else {
			resp.changes = append(resp.changes[:0], before...)
		}
	}
	if !wanted {
		return nothingWithheld // the object is too large without us
	}
	if reason == withheldSize {
		resp.Warn(fmt.Sprintf("%s: left out, the object might become larger than etcd's %d bytes", step.Name, mostStoredBytes))
	} else {
		resp.Warn(fmt.Sprintf("%s: left out, the annotations would become longer than %d bytes", step.Name, mostAnnotationBytes))
	}
	c.withheld = reason
	return reason
}

// yield takes this object's trace context away.
func (t *TraceContext) yield(resp *Response) {
	for _, key := range []string{t.key, t.tracestateKey, t.causedAtKey, t.previousKey, t.createKey} {
		resp.RemoveAnnotation(key)
	}
}

// annotationBytes is how long the annotations will be, as the API server counts. Where they are
// far from the limit it may be more than that.
func (r *Response) annotationBytes() int {
	if r.object.Raw == nil {
		return 0
	}
	total := r.object.annotationBytes // as it is written, with quotes and escapes
	for _, c := range r.changes {
		total += len(c.key) + len(c.value)
	}
	if total <= mostAnnotationBytes {
		return total
	}
	total = 0
	for _, a := range r.object.annotations {
		total += len(a.name) + textLength(a.value)
	}
	for _, c := range r.changes {
		if c.environment != nil {
			continue
		}
		if value, ok := r.object.Annotation(c.key); ok {
			total -= len(c.key) + len(value)
		}
		if !c.remove {
			total += len(c.key) + len(c.value)
		}
	}
	return total
}

// mayOutgrowEtcd says whether an object that etcd takes as it is might be too large for it
// with the changes.
func mayOutgrowEtcd(r *Request, changes []change) bool {
	growth := storedMargin
	for _, c := range changes {
		growth += 2 * (len(c.key) + len(c.value))
		if c.environment != nil {
			for _, v := range c.environment.variables {
				growth += 2*(len(v.name)+len(v.value)) + len(`{"name":"","value":""},`)
			}
		}
	}
	size := len(r.Object.Raw)
	if size+growth <= mostStoredBytes {
		return false
	}
	// Kubernetes' own objects are stored as Protobuf, custom resources as JSON.
	least, most := size, size
	if group := r.Resource.Group; !strings.Contains(group, ".") {
		least, most = protobufSize(r.Object.Raw)
	} else if strings.HasSuffix(group, ".k8s.io") { // either
		least, _ = protobufSize(r.Object.Raw)
	}
	return least-storedMargin <= mostStoredBytes && most+growth > mostStoredBytes
}

// protobufSize estimates how large an object is as Protobuf: at least its texts, and at most
// these with the names of its fields, which are longer than the tags that stand for them.
// In managedFields, which are JSON in it, every byte counts.
func protobufSize(object []byte) (least, most int) {
	s := scanner{doc: object}
	_ = s.object(func(name []byte) error { // was found to be right
		if string(name) != "metadata" || s.peek() != '{' {
			value, err := s.value()
			texts, names := textsAndNames(value)
			least, most = least+texts, most+texts+names
			return err
		}
		return s.object(func(name []byte) error {
			value, err := s.value()
			texts, names := textsAndNames(value)
			if string(name) == "managedFields" {
				texts, names = len(value), 0
			}
			least, most = least+texts, most+texts+names
			return err
		})
	})
	return least, most
}

// textsAndNames counts the bytes in a value: those of texts, and all the others but punctuation.
func textsAndNames(value []byte) (texts, names int) {
	for i := 0; i < len(value); {
		if value[i] != '"' {
			if strings.IndexByte("{}[]:, \t\r\n", value[i]) < 0 {
				names++
			}
			i++
			continue
		}
		length := valueLength(value[i:])
		n := textLength(value[i : i+length])
		if i += length; i < len(value) && value[i] == ':' {
			names += n
		} else {
			texts += n
		}
	}
	return texts, names
}

// textLength is how long a string is that is written so; null is empty.
func textLength(quoted []byte) int {
	if quoted[0] == 'n' {
		return 0
	}
	text, _ := unquote(quoted)
	return len(text)
}

// persisted says whether objects of this resource are stored, so that there is an object to
// remember something on. Reviews are questions, and some must not have any metadata; the
// annotations of a Binding become the Pod's.
func persisted(r *Request) bool {
	switch r.Resource.Group {
	case "authentication.k8s.io", "authorization.k8s.io":
		return false
	case "":
		return r.Resource.Resource != "bindings"
	}
	return true
}
