// Package webhook answers admission calls and lets them be seen in a trace.
//
// # The way of a request
//
//	POST /mutate?timeout=5s          the API server's span `HTTP POST`, in the traceparent header
//	  │
//	  ├─ handler.go       otelhttp: SERVER span below the API server's; deadline from ?timeout=
//	  ├─ review.go        AdmissionReview → Request, strictly, in one pass; objects stay raw JSON
//	  ├─ mutator.go       each Mutator of the Chain in an INTERNAL span `mutate <name>`
//	  │    └─ tracecontext.go    span context → annotation
//	  ├─ patch.go         raw object + wanted changes → RFC 6902 operations
//	  └─ respond.go       how it ended → HTTP status and AdmissionReview
//
// telemetry.go holds the names of attributes and metrics, server.go the TLS server
// with its drain.
//
// # How a call can end
//
// Once the request's UID is known, the API server always gets a well-formed review
// that allows the request: nothing that breaks here may cost a user's request. A call
// that is no admission request at all is refused with a 4xx, which the API server
// treats by its failurePolicy.
//
//	outcome      error.type              HTTP  patch  span    log    when
//	patched      -                       200   yes    unset   debug  the object is to be changed
//	unchanged    -                       200   no     unset   debug  nothing to do
//	failed_open  mutator_error           200   no     error   error  a mutator returned an error
//	failed_open  mutator_panic           200   no     error   error  a mutator panicked
//	refused      method_not_allowed      405   -      unset   warn   not POST
//	refused      unsupported_media_type  415   -      unset   warn   not application/json
//	refused      unreadable_body         400   -      unset   warn   the caller broke off, or was too slow
//	refused      empty_body              400   -      unset   warn   nothing in it
//	refused      body_too_large          413   -      unset   warn   more than Options.MaxBodyBytes
//	refused      malformed_review        400   -      unset   warn   not strict JSON, or a field of a wrong type
//	refused      unsupported_version     400   -      unset   warn   not an admission.k8s.io/v1 AdmissionReview
//	refused      no_request              400   -      unset   warn   without request, UID or operation
//
// Both attributes are on the SERVER span and on the histogram
// `tracehook.admission.duration` (seconds), together with
// `admission.request.operation`.
package webhook
