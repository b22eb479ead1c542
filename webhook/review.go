package webhook

// Stage: the bytes of an AdmissionReview in, a Request out.
//
// The document is read once, front to back, by a strict reader: duplicate
// names, trailing bytes, bad literals, control characters and invalid UTF-8
// are refused, names are case-sensitive, escaped names are understood. A lax
// reader in front of a strict API server would see another document than the
// API server does. Objects are never decoded into a type: they stay the bytes
// that the API server sent, with the places of the metadata remembered.
//
// Errors: ErrMalformed, ErrUnsupportedVersion, ErrNoRequest.

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// reviewDecoder reads one review; it keeps its buffers from use to use.
type reviewDecoder struct {
	json jsontext.Decoder
	in   bytes.Buffer // a *bytes.Buffer is read in place, not copied
	body []byte
}

// decode reads body into r, which must be zero. r refers to body.
func (d *reviewDecoder) decode(body []byte, r *Request) error {
	d.body = body
	d.in = *bytes.NewBuffer(body)
	d.json.Reset(&d.in)

	var kind, apiVersion string
	hasRequest := false
	err := d.object(func(name []byte) error {
		switch string(name) {
		case "kind":
			return d.string(&kind)
		case "apiVersion":
			return d.string(&apiVersion)
		case "request":
			if d.json.PeekKind() != 'n' {
				hasRequest = true
				return d.request(r)
			}
		}
		return d.json.SkipValue()
	})
	if err == nil {
		if _, err = d.json.ReadToken(); err == nil {
			err = errors.New("another value after the review")
		} else if err == io.EOF { //nolint:errorlint // jsontext documents the bare io.EOF
			err = nil
		}
	}
	switch {
	case err != nil:
		return malformed(err)
	case kind != "AdmissionReview" || apiVersion != admissionv1.SchemeGroupVersion.String():
		return fmt.Errorf("%w: got kind %q, apiVersion %q; list only v1 in the webhook's admissionReviewVersions",
			ErrUnsupportedVersion, clip(kind), clip(apiVersion))
	case !hasRequest:
		return ErrNoRequest
	case r.UID == "":
		return fmt.Errorf("%w: request.uid is empty", ErrNoRequest)
	case r.Operation == "":
		return fmt.Errorf("%w: request.operation is empty", ErrNoRequest)
	}
	return nil
}

func (d *reviewDecoder) request(r *Request) error {
	return d.object(func(name []byte) error {
		switch string(name) {
		case "uid":
			return d.string((*string)(&r.UID))
		case "kind":
			return d.group(&r.Kind.Group, &r.Kind.Version, "kind", &r.Kind.Kind)
		case "resource":
			return d.group(&r.Resource.Group, &r.Resource.Version, "resource", &r.Resource.Resource)
		case "subResource":
			return d.string(&r.SubResource)
		case "name":
			return d.string(&r.Name)
		case "namespace":
			return d.string(&r.Namespace)
		case "operation":
			return d.string((*string)(&r.Operation))
		case "dryRun":
			return d.bool(&r.DryRun)
		case "object":
			return d.rawObject(&r.Object)
		case "oldObject":
			return d.rawObject(&r.OldObject)
		}
		return d.json.SkipValue() // userInfo and options among them
	})
}

// group reads a group-version-kind or group-version-resource.
func (d *reviewDecoder) group(group, version *string, lastName string, last *string) error {
	return d.object(func(name []byte) error {
		switch string(name) {
		case "group":
			return d.string(group)
		case "version":
			return d.string(version)
		case lastName:
			return d.string(last)
		}
		return d.json.SkipValue()
	})
}

// rawObject walks an object of the review, noting where its parts are.
func (d *reviewDecoder) rawObject(o *Object) error {
	if d.json.PeekKind() == 'n' {
		return d.json.SkipValue()
	}
	if err := d.open(); err != nil {
		return err
	}
	start := d.json.InputOffset() - 1
	o.fields = o.fieldSpace[:0]
	err := d.members(func(name []byte) error {
		if string(name) == "metadata" && d.json.PeekKind() != 'n' {
			o.hasMetadata = true
			o.fields = append(o.fields, member{name: name})
			return d.metadata(o)
		}
		value, err := d.value()
		o.fields = append(o.fields, member{name: name, value: value})
		return err
	})
	if err != nil {
		return err
	}
	o.Raw = d.body[start:d.json.InputOffset()]
	return nil
}

func (d *reviewDecoder) metadata(o *Object) error {
	return d.object(func(name []byte) (err error) {
		if d.json.PeekKind() == 'n' {
			return d.json.SkipValue()
		}
		switch string(name) {
		case "annotations":
			o.hasAnnotations = true
			return d.annotations(o)
		case "ownerReferences":
			if d.json.PeekKind() != '[' {
				return errors.New("ownerReferences are not a list")
			}
			o.owners, err = d.value()
			return err
		}
		return d.json.SkipValue()
	})
}

func (d *reviewDecoder) annotations(o *Object) error {
	o.annotations = o.annotationSpace[:0]
	return d.object(func(key []byte) error {
		value, err := d.value()
		if err != nil {
			return err
		}
		if value[0] != '"' && value[0] != 'n' {
			return errors.New("an annotation's value is not a string")
		}
		o.annotations = append(o.annotations, member{name: key, value: value})
		return nil
	})
}

// readControllerOwner reads a list of owner references up to the controller's. One
// that is not as Kubernetes writes it is no controller.
func readControllerOwner(list []byte) (owner metav1.OwnerReference, ok bool) {
	d := reviewDecoder{body: list}
	d.in = *bytes.NewBuffer(list)
	d.json.Reset(&d.in)
	if token, err := d.json.ReadToken(); err != nil || token.Kind() != '[' {
		return metav1.OwnerReference{}, false
	}
	for d.json.PeekKind() == '{' {
		owner, controller := metav1.OwnerReference{}, false
		err := d.object(func(name []byte) error {
			switch string(name) {
			case "apiVersion":
				return d.string(&owner.APIVersion)
			case "kind":
				return d.string(&owner.Kind)
			case "name":
				return d.string(&owner.Name)
			case "uid":
				return d.string((*string)(&owner.UID))
			case "controller":
				return d.bool(&controller)
			}
			return d.json.SkipValue()
		})
		if err != nil {
			return metav1.OwnerReference{}, false
		}
		if controller {
			return owner, true
		}
	}
	return metav1.OwnerReference{}, false
}

// object reads one object; member must read exactly one value.
func (d *reviewDecoder) object(member func(name []byte) error) error {
	if err := d.open(); err != nil {
		return err
	}
	return d.members(member)
}

func (d *reviewDecoder) open() error {
	token, err := d.json.ReadToken()
	if err != nil {
		return err
	}
	if token.Kind() != '{' {
		return fmt.Errorf("%s where an object belongs", token.Kind())
	}
	return nil
}

func (d *reviewDecoder) members(member func(name []byte) error) error {
	for d.json.PeekKind() != '}' {
		quoted, err := d.value()
		if err != nil {
			return err
		}
		name, err := unquote(quoted)
		if err != nil {
			return err
		}
		if err := member(name); err != nil {
			return err
		}
	}
	_, err := d.json.ReadToken()
	return err
}

// value reads one value and returns its bytes in the body, which stay valid
// after the next read (what the decoder itself returns does not).
func (d *reviewDecoder) value() ([]byte, error) {
	value, err := d.json.ReadValue()
	if err != nil {
		return nil, err
	}
	end := int(d.json.InputOffset())
	return d.body[end-len(value) : end : end], nil
}

// string reads a string; null leaves s as it is.
func (d *reviewDecoder) string(s *string) error {
	token, err := d.json.ReadToken()
	if err != nil {
		return err
	}
	switch token.Kind() {
	case '"':
		*s = token.String()
	case 'n':
	default:
		return fmt.Errorf("%s where a string belongs", token.Kind())
	}
	return nil
}

// bool reads true or false; null leaves b as it is.
func (d *reviewDecoder) bool(b *bool) error {
	token, err := d.json.ReadToken()
	if err != nil {
		return err
	}
	switch token.Kind() {
	case 't', 'f':
		*b = token.Bool()
	case 'n':
	default:
		return fmt.Errorf("%s where true or false belongs", token.Kind())
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

// malformed says where the document is broken, never what stands there.
func malformed(err error) error {
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		return fmt.Errorf("%w: at byte %d: %w", ErrMalformed, syntactic.ByteOffset, syntactic.Err)
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

// clip bounds what a caller sent before it is quoted in an error.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
