package webhook

// Stage: how a call ended in, an HTTP response out. Every way to end has a named
// constructor here and a row in the table of doc.go. Failing open is decided in
// this file and nowhere else.

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
)

// ending is one way for a call to end.
type ending int

const (
	endPatched ending = iota
	endUnchanged
	endAnnotationsFull
	endObjectFull
	endMadeRoom
	endOddReview
	endMutatorFailed
	endMutatorPanicked
	endOutOfTime
	endUnwritten
	endMethodNotAllowed
	endUnsupportedMediaType
	endUnreadableBody
	endEmptyBody
	endBodyTooLarge
	endOverloaded
	endMalformedReview
	endUnsupportedVersion
	endNoRequest
	endings // how many there are
)

// endingTable is the outcome table: HTTP status, and the values of the attributes
// `tracehook.outcome` and `error.type` (both closed sets, so that no caller can
// make a metric grow).
var endingTable = [endings]struct {
	status             int
	outcome, errorType string
}{
	endPatched:              {http.StatusOK, "patched", ""},
	endUnchanged:            {http.StatusOK, "unchanged", ""},
	endAnnotationsFull:      {http.StatusOK, "left_alone", "annotations_full"},
	endObjectFull:           {http.StatusOK, "left_alone", "object_full"},
	endMadeRoom:             {http.StatusOK, "patched", "annotations_full"},
	endOddReview:            {http.StatusOK, "left_alone", "odd_review"},
	endMutatorFailed:        {http.StatusOK, "failed_open", "mutator_error"},
	endMutatorPanicked:      {http.StatusOK, "failed_open", "mutator_panic"},
	endOutOfTime:            {http.StatusOK, "failed_open", "deadline_exceeded"},
	endUnwritten:            {http.StatusOK, "unanswered", "write_error"},
	endMethodNotAllowed:     {http.StatusMethodNotAllowed, "refused", "method_not_allowed"},
	endUnsupportedMediaType: {http.StatusUnsupportedMediaType, "refused", "unsupported_media_type"},
	endUnreadableBody:       {http.StatusBadRequest, "refused", "unreadable_body"},
	endEmptyBody:            {http.StatusBadRequest, "refused", "empty_body"},
	endBodyTooLarge:         {http.StatusRequestEntityTooLarge, "refused", "body_too_large"},
	endOverloaded:           {http.StatusServiceUnavailable, "refused", "overloaded"},
	endMalformedReview:      {http.StatusBadRequest, "refused", "malformed_review"},
	endUnsupportedVersion:   {http.StatusBadRequest, "refused", "unsupported_version"},
	endNoRequest:            {http.StatusBadRequest, "refused", "no_request"},
}

func (e ending) status() int       { return endingTable[e].status }
func (e ending) outcome() string   { return endingTable[e].outcome }
func (e ending) errorType() string { return endingTable[e].errorType }

// understood: it was an admission request, whatever came of it.
func (e ending) understood() bool { return e.status() == http.StatusOK }

// failed: something of ours did, or nobody took the answer.
func (e ending) failed() bool { return e.outcome() == "failed_open" || e.outcome() == "unanswered" }

// result is how one call ended, with what belongs to it.
type result struct {
	ending
	err        error
	patch      []byte // JSON Patch, nil for none
	operations int    // in patch
}

// answer is what goes with an AdmissionReview beside the patch.
type answer struct {
	warnings []string
	audit    []change // audit annotations
}

// patched: the object is to be changed.
func patched(patch []byte, operations int) result {
	return result{ending: endPatched, patch: patch, operations: operations}
}

// unchanged: there is nothing to do for this object.
func unchanged() result { return result{ending: endUnchanged} }

// withheldFrom: not all that mutators wanted is done, for the API server would refuse it.
// That is not their fault, nor anybody's, and the client has a warning.
func withheldFrom(w withheld, patch []byte, operations int) result {
	switch {
	case operations > 0 && w == withheldRoom:
		return result{ending: endMadeRoom, err: errAnnotationsFull, patch: patch, operations: operations}
	case operations > 0:
		return patched(patch, operations)
	case w == withheldSize:
		return result{ending: endObjectFull, err: errors.New("the object might become too large for etcd")}
	}
	return result{ending: endAnnotationsFull, err: errAnnotationsFull}
}

var errAnnotationsFull = errors.New("the annotations would become too long for the API server")

// oddReview: it is known whose request it is, and it or its object is not as an API server
// writes it, as far as we read it. What a patch of ours would do to it is not known.
func oddReview(err error) result { return result{ending: endOddReview, err: err} }

// mutatorFailed and mutatorPanicked fail open: something of ours broke after the
// request's UID was known. The user's request has nothing to do with that, so it
// is allowed as it stands, without any part of a patch.
func mutatorFailed(name string, err error) result {
	e := endMutatorFailed
	if errors.Is(err, context.DeadlineExceeded) {
		e = endOutOfTime
	}
	return result{ending: e, err: fmt.Errorf("mutate %s: %w", name, err)}
}

func mutatorPanicked(name string, value any) result {
	return result{ending: endMutatorPanicked, err: fmt.Errorf("mutate %s: panic: %v", name, value)}
}

// unwritten: the answer was there and the caller did not take it. By its
// failurePolicy the API server goes on without.
func unwritten(err error) result {
	return result{ending: endUnwritten, err: fmt.Errorf("write the answer: %w", err)}
}

// The others refuse a call that is no admission request: there is no UID to answer
// to. The API server treats that as a failed call, by its failurePolicy.

func methodNotAllowed(method string) result {
	return result{ending: endMethodNotAllowed,
		err: fmt.Errorf("got method %q; an API server calls a webhook with POST", clip(method))}
}

func unsupportedMediaType(contentType string) result {
	return result{ending: endUnsupportedMediaType,
		err: fmt.Errorf("got Content-Type %q; send application/json", clip(contentType))}
}

func unreadableBody(err error) result {
	return result{ending: endUnreadableBody, err: fmt.Errorf("read the body: %w", err)}
}

func emptyBody() result {
	return result{ending: endEmptyBody, err: errors.New("the body is empty; send an AdmissionReview")}
}

func bodyTooLarge(limit int64) result {
	return result{ending: endBodyTooLarge,
		err: fmt.Errorf("the body is larger than %d bytes; raise --max-body-bytes if objects really are that large", limit)}
}

// overloaded: others hold what memory or processors there are. The API server goes on without an answer at once.
func overloaded(err error) result { return result{ending: endOverloaded, err: err} }

// undecodable maps what decode refused; known says that the request's UID is known.
func undecodable(err error, known bool) result {
	switch {
	case errors.Is(err, context.DeadlineExceeded) && known:
		return result{ending: endOutOfTime, err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return unreadableBody(err)
	case errors.Is(err, ErrMalformed) && known:
		return oddReview(err)
	case errors.Is(err, ErrUnsupportedVersion):
		return result{ending: endUnsupportedVersion, err: err}
	case errors.Is(err, ErrNoRequest):
		return result{ending: endNoRequest, err: err}
	}
	return result{ending: endMalformedReview, err: err}
}

// appendReview appends the AdmissionReview that answers the request of this UID.
func (r result) appendReview(dst []byte, uid string, also answer) []byte {
	dst = append(dst, `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","response":{"uid":`...)
	dst = appendQuoted(dst, uid)
	dst = append(dst, `,"allowed":true`...)
	if r.patch != nil {
		dst = append(dst, `,"patchType":"JSONPatch","patch":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, r.patch)
		dst = append(dst, '"')
	}
	if len(also.audit) > 0 {
		dst = append(dst, `,"auditAnnotations":`...)
		dst = appendMap(dst, also.audit)
	}
	open := `,"warnings":[`
	for _, warning := range also.warnings {
		dst = append(dst, open...)
		dst = appendQuoted(dst, warning)
		open = ","
	}
	if len(also.warnings) > 0 {
		dst = append(dst, ']')
	}
	return append(dst, "}}\n"...)
}
