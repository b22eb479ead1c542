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
//	  │    │    ├─ desired.go      is something else wanted than before?
//	  │    │    ├─ lineage.go      controller owner → what it has stored
//	  │    │    │    └─ kinds.go      kind → resource and scope
//	  │    │    └─ createspan.go   the span `create <Kind>`
//	  │    └─ environment.go     annotation → environment of containers
//	  ├─ fits.go          would the API server still take the object?
//	  ├─ patch.go         raw object + wanted changes → RFC 6902 operations
//	  └─ respond.go       how it ended → HTTP status and AdmissionReview
//
// telemetry.go holds the names of attributes and metrics, gitops.go which application, repository and revision an object
// is of, server.go the TLS server
// with its drain and its deadlines, package limit what callers can make it hold.
//
// # In a manager and in a test
//
// With controller-runtime a [Server] is the WebhookServer of a manager's options, and a [ClientAuth] is added to
// the manager. Both run on every replica, whether it leads or not, and from before the caches are
// filled: a cache may need a webhook of its own process.
//
// A unit test of a [Mutator] needs no server: [NewResponse] reads the objects of a Request literal, and
// Response.Patch is what came of it.
//
// # What is stored
//
// The stored context is the object's cause: the request that wanted the object as it
// is, for a consumer to continue from or to link to. "This request" is its SERVER
// span. A stamp is the annotation with all that tracehook writes beside it:
//
//	traceparent            the cause
//	tracestate             its W3C tracestate, at most 512 bytes of it
//	caused-at              when it was stored, and two checksums
//	previous-traceparent   the cause that this one replaced: the way back
//	create-traceparent     the object's own span `create <Kind>` (CreateSpans)
//
// The last column is the attribute `tracehook.stamp` of the span
// `mutate trace-context` and of the counter `tracehook.stamps`. Rows are read from the top.
//
//	request  the object has                        stored                         tracehook.stamp
//	any      DELETE, CONNECT, a subresource, a     nothing                        excluded
//	         mirror Pod, no object, what is not
//	         stored (SubjectAccessReview, …)
//	any      a cause of this very request          nothing more                   same_trace
//	CREATE   no controller owner, and
//	           no cause                            this request                   created
//	           a stamp                             this request, old linked       returned
//	           a traceparent alone                 kept, linked                   kept
//	           no valid traceparent                this request; warning          invalid
//	CREATE   a controller owner, and
//	           no cause, or an old stamp           the owner's cause, linked      owned
//	             its cause is not known            this request                   owned
//	             it is old, or the owner repeats   this request, owner's linked   linked
//	           a young stamp, a traceparent alone  kept, linked                   kept
//	           no valid traceparent                as without a cause; warning    invalid
//	UPDATE   a controller owner                    nothing                        untouched
//	UPDATE   another cause than before, and
//	           a stamp, something else wanted      this request, both linked      returned
//	           a stamp, nothing else wanted        the cause before               restored
//	           a traceparent alone                 kept, both linked              kept
//	           no valid one, something wanted      this request; warning          invalid
//	           no valid one, nothing else wanted   the cause before; warning      restored
//	UPDATE   something else wanted than before     this request, old linked       updated
//	UPDATE   only metadata or status changed,      nothing                        untouched
//	         or how much of it runs
//
// What a restore cannot put back, because nothing valid was there, is kept if it is valid
// and replaced by this request if it is not.
//
// Who makes an object again and again. A Job's Pods always continue the Job's cause. A Job that a CronJob makes
// never continues the CronJob's: its own create is its cause, linked to the CronJob's. What
// any other controller makes continues its owner's cause for an hour after that was stored; later it has a
// cause of its own, linked. So a trace tells of a rollout, and not of every node that was drained
// since. Owners whose kind is named Cron…, Scheduled… or …Schedule are treated as CronJobs. A Job
// that somebody made of a CronJob by hand (annotation cronjob.kubernetes.io/instantiate:
// manual) belongs to the request that made it. The age is that of the first cause in a chain of
// owners: it is handed down. Where caused-at is missing the owner's creationTimestamp is taken.
//
// Who changes an object. What is wanted of it is everything outside metadata and status, less how much of
// it runs: `replicas` and `suspend`, anywhere in the spec. A top-level field `operation` is an order that a controller
// carries out and removes (Argo CD's Application), and no state that is wanted. `kubectl scale` and the autoscaler write the object's
// scale, which no annotation can be stored on; writing the same field directly is treated alike. Otherwise an
// autoscaler that writes all day would bury who deployed the image. A queue that lets an
// object go may also write where it runs (node selectors, tolerations, scheduling gates, labels and annotations
// of a template). A Job and a Pod are one piece of work: their cause is who submitted
// them, and no change makes another. Whoever else changes what is wanted, be it an image updater or a
// rollout controller, is the new cause, and the old one is the way back: a link of the new
// SERVER span, and previous-traceparent. That names the last cause that was sampled, if there was one.
//
// What is not sampled. Nothing is stored on an object without a valid cause for a request that is not sampled, unless
// TraceContextOptions.Always is true. A valid cause is never removed for that: the new one takes its place,
// with the flags 00.
//
// What a client sends. A stamp that comes with its caused-at is a copy, and nobody has chosen it:
// `kubectl rollout undo` writes an old ReplicaSet's annotations back to the Deployment, and an exported
// manifest holds those of its day. A traceparent alone, or another one than caused-at
// is of, was chosen by whoever sent it: also one that a process got as TRACEPARENT and passes on. An object with a
// controller owner may carry its owner's stamp: the deployment controller copies it to
// ReplicaSets, and writes it over whatever else is there, which must not become a fight.
//
// One request, several calls. An API server calls again where a later webhook has changed the object
// (reinvocationPolicy). What was stored in this request is known by its trace; where the API server does not trace, each call
// is a trace of its own, and the second checksum of caused-at tells the object, and the time that it was seconds ago.
//
// With TraceContextOptions.CreateSpans an owned object gets a span of its own, `create
// <Kind>` below its owner's, and stores that: as the annotation where a controller has
// not written it, and in any case as create-traceparent, which counts for as
// long as it is of the stored cause's trace. Where that span is not sampled the owner's cause is
// stored, as in a dry run. An owner gets as many of these spans as it wants objects, as far as that is known (a
// ReplicaSet's annotation deployment.kubernetes.io/desired-replicas, else 10), and one more a
// minute: a controller tries again and again what a quota refuses.
//
// Whom to believe. Anybody who may write an object may write its cause. So Trust counts for it, too: with
// TrustLink and TrustNone no span of ours is made in the trace of an annotation (CreateSpans
// does nothing), and with TrustNone none links to it. What is stored is the same in
// all three; whoever reads it decides what to do with it.
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
//	refused      overloaded              503   -      none    warn   too many bytes of requests at once, see ServerOptions.MaxBytesInFlight; or too many large requests
//	refused      malformed_review        400   -      none    warn   the same as odd_review, and no UID to be found
//	refused      unsupported_version     400   -      none    warn   not an admission.k8s.io/v1 AdmissionReview
//	refused      no_request              400   -      none    warn   without request or UID
//
// An odd review has, for example, the same name twice in an object, a field of the wrong
// type, half a surrogate pair, more than 10,000 levels, 65,536 names or 4,096 annotations. Where UID, kind
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
//
// # What callers can make a Server hold
//
// A Server has limits that hold before anything is known of the caller: connections
// (ServerOptions.MaxConnections), bytes of requests under way (MaxBytesInFlight), a
// header's size and time (MaxHeaderBytes, HeaderTimeout), a body's time (?timeout= of
// the call, 10 s without it and 30 s at most). Whoever is slow or idle gives way to whoever is
// not. What is beyond a limit is refused at once and counted, as a call in
// tracehook.admission.duration or as a connection in
// tracehook.admission.connections.refused. The table of all of them is in deploy/README.md.
package webhook
