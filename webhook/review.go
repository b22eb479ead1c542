package webhook

// Stage: the bytes of an AdmissionReview in, a Request out.
//
// The document is read once, front to back, by a strict reader: duplicate
// names, trailing bytes, bad literals, control characters and invalid UTF-8
// are refused, names are case-sensitive, escaped names are understood. A lax
// reader in front of a strict API server would see another document than the
// API server does. Objects are never decoded into a type: they stay the bytes
// that the API server sent, with the places of the metadata remembered. What the
// strict reader refuses salvage.go looks at again, for whose request it is.
//
// Errors: ErrMalformed, ErrUnsupportedVersion, ErrNoRequest; that the deadline has passed.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
)

// Reasons why a body is no review that can be answered.
var (
	// ErrMalformed: not strictly JSON, or a field has the wrong type.
	ErrMalformed = errors.New("malformed AdmissionReview")
	// ErrUnsupportedVersion: well-formed, but not an admission.k8s.io/v1 AdmissionReview.
	ErrUnsupportedVersion = errors.New("unsupported review version")
	// ErrNoRequest: an AdmissionReview without a request, or a request without UID or operation.
	ErrNoRequest = errors.New("AdmissionReview without a usable request")
)

// mostAnnotations of an object are remembered. Nobody's has so many: an API server takes
// 256 KiB of them.
const mostAnnotations = 4096

// reviewDecoder reads one review; it keeps its memory from use to use.
type reviewDecoder struct {
	json scanner
	// Strings that most reviews have in common: see common.
	known map[string]string
	// When to give up; zero: never.
	deadline time.Time
}

// decode reads body into r, which must be zero. r refers to body.
//
// Where the body is malformed, or time has run out, r holds what is known of the request
// all the same, but none of its objects. Its UID is empty where nobody can be answered.
func (d *reviewDecoder) decode(body []byte, r *Request) error {
	d.json.reset(body, d.deadline)
	var kind, apiVersion string
	hasRequest := false
	err := d.json.object(func(name []byte) error {
		switch string(name) {
		case "kind":
			return d.common(&kind)
		case "apiVersion":
			return d.common(&apiVersion)
		case "request":
			if d.json.peek() != 'n' {
				hasRequest = true
				return d.request(r)
			}
		}
		return d.json.skip()
	})
	if err == nil {
		err = d.json.end()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		*r = Request{UID: r.UID, Kind: r.Kind, Resource: r.Resource, SubResource: r.SubResource, Name: r.Name, Namespace: r.Namespace, Operation: r.Operation}
		return fmt.Errorf("read the review: %w", err)
	case err != nil:
		*r = salvage(body)
		if isGrammar(err) {
			err = fmt.Errorf("at byte %d: %w", d.json.pos, err)
			if r.UID == "" && len(body) <= mostExplained {
				err = explain(body)
			}
		}
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	case kind != "AdmissionReview" || apiVersion != reviewVersion:
		return fmt.Errorf("%w: got kind %q, apiVersion %q; list only v1 in the webhook's admissionReviewVersions",
			ErrUnsupportedVersion, clip(kind), clip(apiVersion))
	case !hasRequest:
		return ErrNoRequest
	case r.UID == "":
		return fmt.Errorf("%w: request.uid is empty", ErrNoRequest)
	case len(r.UID) > mostText: // an API server's has 36 bytes, and the answer repeats it
		*r = Request{}
		return fmt.Errorf("%w: request.uid is longer than any UID", ErrNoRequest)
	case r.Operation == "":
		*r = salvage(body)
		return fmt.Errorf("%w: request.operation is empty", ErrMalformed)
	}
	return nil
}

// reviewVersion is the apiVersion of the reviews that are understood.
var reviewVersion = admissionv1.SchemeGroupVersion.String()

func (d *reviewDecoder) request(r *Request) error {
	return d.json.object(func(name []byte) error {
		switch string(name) {
		case "object":
			return d.rawObject(&r.Object)
		case "oldObject":
			return d.rawObject(&r.OldObject)
		}
		return d.requestField(name, r)
	})
}

// requestField reads a field of a request that is no object.
func (d *reviewDecoder) requestField(name []byte, r *Request) error {
	switch string(name) {
	case "uid":
		return d.string((*string)(&r.UID))
	case "kind":
		return d.group(&r.Kind.Group, &r.Kind.Version, "kind", &r.Kind.Kind)
	case "resource":
		return d.group(&r.Resource.Group, &r.Resource.Version, "resource", &r.Resource.Resource)
	case "subResource":
		return d.common(&r.SubResource)
	case "name":
		return d.string(&r.Name)
	case "namespace":
		return d.common(&r.Namespace)
	case "operation":
		return d.common((*string)(&r.Operation))
	case "dryRun":
		return d.bool(&r.DryRun)
	}
	return d.json.skip() // userInfo and options among them
}

// group reads a group-version-kind or group-version-resource.
func (d *reviewDecoder) group(group, version *string, lastName string, last *string) error {
	return d.json.object(func(name []byte) error {
		switch string(name) {
		case "group":
			return d.common(group)
		case "version":
			return d.common(version)
		case lastName:
			return d.common(last)
		}
		return d.json.skip()
	})
}

// rawObject walks an object of the review, noting where its parts are.
func (d *reviewDecoder) rawObject(o *Object) error {
	if d.json.peek() == 'n' {
		return d.json.skip()
	}
	start := d.json.pos
	err := d.json.object(func(name []byte) error {
		if string(name) == "metadata" {
			if d.json.peek() == 'n' {
				return d.json.skip()
			}
			o.hasMetadata = true
			return d.metadata(o)
		}
		value, err := d.json.value()
		switch string(name) {
		case "status", operationField:
		case "spec":
			o.spec, o.specHash = value, d.json.hash(value)
		default:
			// A sum, for the fields may come in any order; odd times any hash is one to one.
			o.otherHash += (d.json.hash(name) | 1) * d.json.hash(value)
		}
		return err
	})
	if err != nil {
		return err
	}
	o.Raw = d.json.doc[start:d.json.pos]
	return nil
}

func (d *reviewDecoder) metadata(o *Object) error {
	return d.json.object(func(name []byte) error {
		if d.json.peek() == 'n' {
			return d.json.skip()
		}
		switch string(name) {
		case "annotations":
			o.hasAnnotations = true
			start := d.json.pos
			err := d.annotations(o)
			o.annotationBytes = d.json.pos - start
			return err
		case "labels":
			if d.json.peek() == '{' {
				return d.labels(o)
			}
		case "ownerReferences":
			return d.json.array(func(int) error { return d.ownerReference(o) })
		}
		return d.json.skip()
	})
}

func (d *reviewDecoder) annotations(o *Object) error {
	o.annotations = o.annotationSpace[:0]
	return d.json.object(func(key []byte) error {
		value, err := d.json.value()
		if err != nil {
			return err
		}
		if value[0] != '"' && value[0] != 'n' {
			return errors.New("an annotation's value is not a string")
		}
		if len(o.annotations) == mostAnnotations {
			return fmt.Errorf("more than %d annotations", mostAnnotations)
		}
		o.annotations = append(o.annotations, member{name: key, value: value})
		return nil
	})
}

// labels reads them, and remembers those that say whose application the object is of.
func (d *reviewDecoder) labels(o *Object) error {
	return d.json.object(func(name []byte) error {
		remembered := o.labels.label(name)
		value, err := d.json.value()
		if remembered != nil {
			*remembered = value
		}
		return err
	})
}

// ownerReference reads one, and remembers the first that is the controller's.
func (d *reviewDecoder) ownerReference(o *Object) error {
	var reference ownerReference
	controller := false
	err := d.json.object(func(name []byte) (err error) {
		switch string(name) {
		case "apiVersion":
			reference.apiVersion, err = d.stringBytes()
		case "kind":
			reference.kind, err = d.stringBytes()
		case "name":
			reference.name, err = d.stringBytes()
		case "uid":
			reference.uid, err = d.stringBytes()
		case "controller":
			err = d.bool(&controller)
		default:
			err = d.json.skip()
		}
		return err
	})
	if controller && !o.owned {
		o.owned, o.owner = true, reference
	}
	return err
}

// string reads a string; null leaves s as it is.
func (d *reviewDecoder) string(s *string) error {
	text, err := d.stringBytes()
	if text != nil {
		*s = string(text)
	}
	return err
}

// common is string for what most reviews have in common: it is not made anew each time.
func (d *reviewDecoder) common(s *string) error {
	const most, longest = 256, 64 // a caller who sends always new ones gains nothing
	text, err := d.stringBytes()
	if text == nil {
		return err
	}
	known, ok := d.known[string(text)]
	if !ok {
		known = string(text)
		if d.known == nil || len(d.known) == most {
			d.known = make(map[string]string)
		}
		if len(known) <= longest {
			d.known[known] = known
		}
	}
	*s = known
	return nil
}

// longestText is what is kept of a name or the like, which are shorter from any API server. It is
// longer than what is compared with a length, and megabytes of it would be held twice.
const longestText = 4 << 10

// stringBytes reads a string; it is nil where there is null.
func (d *reviewDecoder) stringBytes() ([]byte, error) {
	value, err := d.json.value()
	if err != nil {
		return nil, err
	}
	switch value[0] {
	case '"':
		text, err := unquote(value)
		return text[:min(len(text), longestText)], err
	case 'n':
		return nil, nil
	}
	return nil, fmt.Errorf("%s where a string belongs", jsontext.Value(value).Kind())
}

// bool reads true or false; null leaves b as it is.
func (d *reviewDecoder) bool(b *bool) error {
	value, err := d.json.value()
	if err != nil {
		return err
	}
	switch value[0] {
	case 't', 'f':
		*b = value[0] == 't'
	case 'n':
	default:
		return fmt.Errorf("%s where true or false belongs", jsontext.Value(value).Kind())
	}
	return nil
}

// unquote returns what a quoted JSON string says: a part of it where nothing is escaped.
func unquote(quoted []byte) ([]byte, error) {
	if len(quoted) >= 2 && bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1], nil
	}
	return jsontext.AppendUnquote(nil, quoted)
}
