// Package webhook answers admission calls and lets them be seen in a trace.
//
// # The way of a request
//
//	POST /mutate?timeout=5s          the API server's span `HTTP POST`, in the traceparent header
//	  │
//	  ├─ handler.go       deadline from ?timeout=
//	  ├─ review.go        AdmissionReview → Request, strictly, in one pass; objects stay raw JSON
//	  │    ├─ scan.go        the strict reader of JSON
//	  │    └─ salvage.go     whose request it is that the strict reader refused
//	  ├─ handler.go       otelhttp: SERVER span below the API server's, if it is an admission request
//	  ├─ mutator.go       each Mutator of the Chain in an INTERNAL span `mutate <name>`
//	  │    ├─ tracecontext.go    span context → annotation, by the table below
//	  │    │    └─ lineage.go      controller owner → what it has stored
//	  │    └─ environment.go     annotation → environment of containers
//	  ├─ fits.go          would the API server still take the object?
//	  ├─ patch.go         raw object + wanted changes → RFC 6902 operations
//	  └─ respond.go       how it ended → HTTP status and AdmissionReview
//
// telemetry.go holds the names of attributes and metrics, server.go the TLS server
// with its drain and its deadlines, package limit what callers can make it hold.
//
// # What is stored
//
// The stored context is the object's cause: the request that wanted the object as it
// is, for a consumer to continue from or to link to. "This request" is its SERVER
// span. The last column is the attribute `tracehook.stamp` of the span
// `mutate trace-context` and of the counter `tracehook.stamps`.
//
//	request  annotation on the object              stored                     tracehook.stamp
//	CREATE   absent, no controller owner           this request               created
//	CREATE   absent, has a controller owner        the owner's cause, linked; owned
//	                                               this request if unknown
//	CREATE   a stamp of ours, no controller owner  this request, old linked   returned
//	CREATE   valid otherwise                       kept, linked               kept
//	CREATE   no traceparent                        as if absent; warning      invalid
//	UPDATE   (object has a controller owner)       untouched                  untouched
//	UPDATE   changed to a stamp of ours, and so    this request, old linked   returned
//	         did the desired state
//	UPDATE   changed to a valid one otherwise      kept, linked               kept
//	UPDATE   changed to no traceparent             this request; warning      invalid
//	UPDATE   as it was, desired state changed      this request               updated
//	UPDATE   only metadata or status changed       untouched                  untouched
//	any      of the trace of this request          untouched                  same_trace
//	others: DELETE, CONNECT, subresources, mirror Pods, no object,            excluded
//	        what is not stored (SubjectAccessReview, Binding, …)
//
// The desired state is everything outside metadata and status. A stamp of ours that
// comes back was not chosen by a client: `kubectl rollout undo` writes an old
// ReplicaSet's annotations back to the Deployment, and `kubectl get -o yaml` with
// `kubectl create` those of another object. What caused the object then is the rollback,
// the create. SpanIDs marks our span ids so that stamps can be told apart. An object
// with a controller owner may carry its owner's stamp: the deployment controller
// copies it to ReplicaSets, which is the lineage that is wanted, and writes it over
// whatever else is there, which must not become a fight.
//
// With TraceContextOptions.CreateSpans an owned object gets a span of its own, `create
// <Kind>` below its owner's, and stores that: as the annotation where a controller has
// not written it, and in any case as create-traceparent beside it, which counts for as
// long as it is of the stored cause's trace.
//
// Where this request's context is not to be stored (it is not sampled, and
// TraceContextOptions.Always is false), nothing is stored, and a context that was
// stored before is removed: it would name the wrong cause. The W3C tracestate is kept
// beside the traceparent, at most 512 bytes of it.
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
//	patched      annotations_full        200   yes    unset   warn   they would be too long with ours: ours are removed
//	left_alone   annotations_full        200   no     unset   warn   a patch would make them too long for the API server
//	left_alone   object_full             200   no     unset   warn   a patch might make the object too large for etcd
//	left_alone   odd_review              200   no     unset   warn   something in it is not as an API server writes it
//	failed_open  mutator_error           200   no     error   error  a mutator returned an error
//	failed_open  mutator_panic           200   no     error   error  a mutator panicked
//	failed_open  deadline_exceeded       200   no     error   error  the review or a mutator took all of the caller's ?timeout=
//	unanswered   write_error             200   -      error   error  the caller went before it had the answer
//	refused      method_not_allowed      405   -      none    warn   not POST
//	refused      unsupported_media_type  415   -      none    warn   not application/json
//	refused      unreadable_body         400   -      none    warn   the caller broke off, or was too slow
//	refused      empty_body              400   -      none    warn   nothing in it
//	refused      body_too_large          413   -      none    warn   more than Options.MaxBodyBytes
//	refused      overloaded              503   -      none    warn   too many bytes of requests at once; see ServerOptions.MaxBytesInFlight
//	refused      malformed_review        400   -      none    warn   the same as odd_review, and no UID to be found
//	refused      unsupported_version     400   -      none    warn   not an admission.k8s.io/v1 AdmissionReview
//	refused      no_request              400   -      none    warn   without request or UID
//
// An odd review has, for example, the same name twice in an object, a field of the wrong
// type, half a surrogate pair, more than 10,000 levels or 65,536 names. Where UID, kind
// or request is there twice, nobody knows whose request it is.
//
// No patch makes the API server refuse the request. What a mutator wants is left out, with a
// warning to the client, where the annotations would be longer than 262,144 bytes (keys
// and values), or the object might outgrow the 1.5 MiB that etcd takes. Then the
// mutator's span has the attribute `tracehook.withheld`. Annotations that we stored earlier
// are removed if the object is too large with them and not without.
//
// Both attributes are on the SERVER span and on the metrics. A refused call has no span,
// so that none of the sampler's budget goes to it. Of log records at warn and error one in
// half a minute is written for each error.type, with the count of the others. A denial of somebody
// else's webhook (Instrument) is an answer and no error; our own mutators never deny.
package webhook
