package explain

// The answer, as it is printed with -o json. This is the documented form: a field is added at any time, and changed or
// taken away with another apiVersion only.

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the answers call themselves.
const (
	APIVersion = "tracehook.dev/v1alpha1"
	// KindExplanation is a Story, KindExplanationList several, KindCarriers the answer to `--trace`.
	KindExplanation     = "Explanation"
	KindExplanationList = "ExplanationList"
	KindCarriers        = "TraceObjects"
)

// Ref names an object.
type Ref struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"` // "": of the whole cluster
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
}

// Story is why an object is as it is.
type Story struct {
	metav1.TypeMeta `json:",inline"`
	// Object is the one asked for.
	Object Ref `json:"object"`
	// Causes are the requests that led to it, the first one first. None: they are not known, and NotKnown says why.
	Causes []Cause `json:"causes"`
	// Chain is the object's owners from the first on, and the object itself as the last.
	Chain []Step `json:"chain"`
	// Node is what the Pod's kubelet and containerd did, the longest of it, by the store.
	Node []NodeWork `json:"node,omitempty"`
	// Slowest is what took longest of each request, and of what came after.
	Slowest []Slow `json:"slowest,omitempty"`
	// Made is what the object owns, and what that owns.
	Made []Made `json:"made,omitempty"`
	// Written is who wrote which of the object's fields last, the latest last (metadata.managedFields).
	Written []Writer `json:"written,omitempty"`
	// Events are the object's Events, the latest last.
	Events []Event `json:"events,omitempty"`
	// Notes say what is odd about the object, its owners or what is stored on them.
	Notes []string `json:"notes,omitempty"`
	// NotKnown is what was not found out, and which source would tell.
	NotKnown []Unknown `json:"notKnown,omitempty"`
}

// List is several stories.
type List struct {
	metav1.TypeMeta `json:",inline"`
	Items           []Story `json:"items"`
}

// Cause is a request that wanted an object as it is.
type Cause struct {
	TraceID string `json:"traceID"`
	SpanID  string `json:"spanID"`
	// Sampled is false where no store has the trace.
	Sampled bool `json:"sampled"`
	// At is when the cause was stored (annotation caused-at), or else when the object was created.
	At *time.Time `json:"at,omitempty"`
	// Exact is false where At is the object's creation, in whole seconds.
	Exact bool `json:"exact"`
	// Why says what made the owner act, where the request was its controller's: `schedule "0 4 * * *" of CronJob nightly`.
	Why string `json:"why,omitempty"`
	// Request is the write itself, as managedFields have it. Absent: they have forgotten it.
	Request *Request `json:"request,omitempty"`
	// Who sent it, by the audit log.
	Who *Who `json:"who,omitempty"`
	// Trace is what the store knows of the request.
	Trace *TraceFacts `json:"trace,omitempty"`
	// PreviousTraceID is the trace of the cause that this one replaced.
	PreviousTraceID string `json:"previousTraceID,omitempty"`
}

// Request is a write.
type Request struct {
	Manager   string     `json:"manager,omitempty"`   // its field manager
	Operation string     `json:"operation,omitempty"` // Update or Apply, as managedFields say
	At        *time.Time `json:"at,omitempty"`        // to the second
	Fields    []string   `json:"fields,omitempty"`    // what the manager owns outside metadata and status, at most 20
	FieldSum  int        `json:"fieldSum,omitempty"`  // how many these are in all
	// Or are other managers that wrote in the same second: it may have been one of them.
	Or []string `json:"or,omitempty"`
}

// Who is the sender of a request, as the audit log has it.
type Who struct {
	User         string `json:"user"`
	Impersonated string `json:"impersonated,omitempty"` // whom it acted as
	UserAgent    string `json:"userAgent,omitempty"`
	Verb         string `json:"verb"`
	AuditID      string `json:"auditID"`
	// By is how the event was found: "span-id" and "audit-id" are certain, "time" is the only write of the object then.
	By string `json:"by"`
}

// TraceFacts are what a trace tells of the request that is a cause.
type TraceFacts struct {
	// Command is the name that `tracehook trace` gave it, of the executable and its verb. Absent: another client.
	Command        string  `json:"command,omitempty"`
	CommandSeconds float64 `json:"commandSeconds,omitempty"`
	// CommandTraceID is the command's trace where the API server links to it and does not continue it.
	CommandTraceID string `json:"commandTraceID,omitempty"`
	// Request is method and path, or as the client's span has it.
	Request        string  `json:"request,omitempty"`
	RequestSeconds float64 `json:"requestSeconds,omitempty"`
	AuditID        string  `json:"auditID,omitempty"`
	UserAgent      string  `json:"userAgent,omitempty"`
	// Slowest are the parts of the request that took longest: a webhook or a write to etcd as a whole, everything else without
	// what it waited for.
	Slowest []Part `json:"slowest,omitempty"`
	// Source is what was applied, where a GitOps tool has written that on the object.
	Source *Source `json:"source,omitempty"`
	Spans  int     `json:"spans"`

	start time.Time // the request's
	link  string    // the trace that the request's span links to
}

// Source is the application and the commit that an object is of, as labels and annotations on it say.
type Source struct {
	// Kind is Kustomization, HelmRelease or Application. Absent: the label may be anybody's.
	Kind string `json:"kind,omitempty"`
	// Application is its namespace and name.
	Application string `json:"application,omitempty"`
	Repository  string `json:"repository,omitempty"`
	// Ref is a branch or tag.
	Ref string `json:"ref,omitempty"`
	// Revision is a commit.
	Revision string `json:"revision,omitempty"`
}

// Part is a part of a request.
type Part struct {
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
}

// Creation is the request that created an object, as the store has it.
type Creation struct {
	TraceID string    `json:"traceID"`
	Start   time.Time `json:"start"`
	Seconds float64   `json:"seconds"`
	Slowest []Part    `json:"slowest,omitempty"`
}

// NodeWork is what a kubelet, with containerd, did for a Pod at a time.
type NodeWork struct {
	TraceID string    `json:"traceID"`
	Service string    `json:"service"`
	Name    string    `json:"name"`
	Start   time.Time `json:"start"`
	Seconds float64   `json:"seconds"`
	Failed  bool      `json:"failed,omitempty"`
	Slowest []Part    `json:"slowest,omitempty"`
}

// Slow is what took long.
type Slow struct {
	Part
	Of        string  `json:"of"`        // what it is a part of
	OfSeconds float64 `json:"ofSeconds"` // how long all of that took
}

// Step is an object in the chain of owners.
type Step struct {
	Ref `json:",inline"`
	// Cause is the index in Causes of what this object carries, or of what its owner does if it carries none. -1: none.
	Cause int `json:"cause"`
	// Change is what the cause did to it: "created", "changed", "changed since", "deleted since" or "not read".
	Change Change `json:"change"`
	// Creation is the request that created it. Absent: the store does not have it.
	Creation *Creation `json:"creation,omitempty"`
	// Created is the object's creation, to the second. Absent: it is gone or cannot be read.
	Created *time.Time `json:"created,omitempty"`
	// AfterSeconds is the time from that cause to the object's creation. Absent where change is not "created".
	AfterSeconds *float64 `json:"afterSeconds,omitempty"`
	// Exact is false where AfterSeconds is in whole seconds.
	Exact bool `json:"exact,omitempty"`
	// Since is the cause that the object has had since; its own children carry an earlier one.
	Since *Cause `json:"since,omitempty"`
	// Stages are what became of the object: see package webhook/cause/lifecycle.
	Stages []Stage `json:"stages,omitempty"`
	// State is what the object's status says, in a few words.
	State string `json:"state,omitempty"`
	// Failing is true where State is a reason to look at it.
	Failing bool `json:"failing,omitempty"`
}

// Change is what a cause did to an object.
type Change string

// The changes.
const (
	ChangeCreated      Change = "created"
	ChangeChanged      Change = "changed"       // it was there before
	ChangeChangedSince Change = "changed since" // by a later cause, which is Step.Since
	ChangeGone         Change = "deleted since" // an owner that is no longer there, or another object of the same name
	ChangeUnread       Change = "not read"      // an owner; NotKnown says why
)

// Made is an object that another one owns.
type Made struct {
	Ref     `json:",inline"`
	Owner   string     `json:"owner"` // its owner's UID
	Created *time.Time `json:"created,omitempty"`
	TraceID string     `json:"traceID,omitempty"` // of its cause
	Stages  []Stage    `json:"stages,omitempty"`
	State   string     `json:"state,omitempty"`
	Failing bool       `json:"failing,omitempty"`
	// Wanted is how many objects a ReplicaSet wants. Absent: another kind.
	Wanted *int64 `json:"wanted,omitempty"`
}

// Stage is a step in the life of an object, as the cluster tells it.
type Stage struct {
	Name      string     `json:"name"`
	Container string     `json:"container,omitempty"`
	Restart   int32      `json:"restart,omitempty"` // how often the container had been restarted before
	Start     *time.Time `json:"start,omitempty"`
	End       *time.Time `json:"end,omitempty"` // absent: it goes on
	// WholeSeconds is true where the cluster's times are no finer.
	WholeSeconds bool   `json:"wholeSeconds,omitempty"`
	Reason       string `json:"reason,omitempty"` // why it failed; absent: it did not
	Message      string `json:"message,omitempty"`
	ExitCode     int32  `json:"exitCode,omitempty"`
	Image        string `json:"image,omitempty"`
	ImageBytes   int64  `json:"imageBytes,omitempty"`
}

// Writer is a field manager with what it wrote last.
type Writer struct {
	Manager     string     `json:"manager"`
	Operation   string     `json:"operation"`
	Subresource string     `json:"subresource,omitempty"`
	At          *time.Time `json:"at,omitempty"`
	Fields      []string   `json:"fields"` // at most 20
	FieldSum    int        `json:"fieldSum"`
}

// Event is a Kubernetes Event.
type Event struct {
	At      *time.Time `json:"at,omitempty"` // when it was seen last
	Type    string     `json:"type"`
	Reason  string     `json:"reason"`
	Message string     `json:"message"`
	Count   int32      `json:"count"`
	From    string     `json:"from,omitempty"` // who reports it
}

// Unknown is something that was not found out.
type Unknown struct {
	What string `json:"what"`
	Why  string `json:"why"` // and which source would tell
}
