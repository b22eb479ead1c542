package lifecycle

// A stage in, a span out. The span's id follows from what it tells, so that whoever tells it again makes the same span.

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Attribute keys of the spans, beside those of the semantic conventions.
const (
	// AttributeResolution is that of the span's times in seconds: 1 where the source has whole seconds only.
	AttributeResolution = attribute.Key("tracehook.time.resolution")
	// AttributeObserved is true where the end is when the controller saw it: the cluster does not say.
	AttributeObserved = attribute.Key("tracehook.time.observed")
	// AttributeUnseen is how many earlier runs of the container nobody can tell of any more.
	AttributeUnseen = attribute.Key("tracehook.container.unseen_runs")
	// AttributeImageSize is the size of a pulled image in bytes, as the kubelet says.
	AttributeImageSize = attribute.Key("tracehook.image.size")
)

type idsKey struct{}

type ids struct {
	trace trace.TraceID
	span  trace.SpanID
}

// WantedIDs returns the ids that the span which is started with ctx is to have, and whether there are such. An IDGenerator of the
// OpenTelemetry SDK that asks here gives a Controller the ids that it needs; with any other generator a restart tells the
// same spans again under new ids.
func WantedIDs(ctx context.Context) (trace.TraceID, trace.SpanID, bool) {
	wanted, ok := ctx.Value(idsKey{}).(ids)
	return wanted.trace, wanted.span, ok
}

// SpanID is the id of the span that tells of a stage of the object with this UID. The same cause, object and stage give
// the same id.
func SpanID(cause trace.SpanContext, uid string, s Stage) trace.SpanID {
	sum := digest(cause, uid, s.Key())
	return trace.SpanID(sum[:8])
}

func digest(cause trace.SpanContext, uid, key string) [sha256.Size]byte {
	traceID, spanID := cause.TraceID(), cause.SpanID()
	text := make([]byte, 0, 24+len(uid)+1+len(key))
	text = append(append(append(append(append(text, traceID[:]...), spanID[:]...), uid...), 0), key...)
	sum := sha256.Sum256(text)
	for binary.BigEndian.Uint64(sum[:]) == 0 { // no valid id
		sum = sha256.Sum256(sum[:])
	}
	return sum
}

// Trust says what the cause that stands on an object is to the spans: anybody who may write the object may write it.
type Trust string

// As for webhook.Trust: the spans are part of the cause's trace, or of one of their own with a link to it, or without one.
const (
	TrustParent Trust = "parent"
	TrustLink   Trust = "link"
	TrustNone   Trust = "none"
)

// subject is what all stages of one object have in common.
type subject struct {
	kind, namespace, name, uid, node string
	cause                            trace.SpanContext
	// own says that the cause is the span `create <Kind>` of this very object.
	own bool
	// from is when its story begins: when the cause was stored, or the creation if that is later.
	from, created time.Time
	// These are a Pod's. deleted is zero until its deletion is asked for, scheduled until it has a node, ready until it is.
	scheduled, deleted time.Time
	ready              time.Time // for the first time
}

// tell makes the span of a stage that has ended. late is for what ends so long after its cause that it has a trace of its
// own, linked.
func (s *subject) tell(tracer trace.Tracer, trust Trust, late bool, stage Stage) trace.SpanContext {
	wanted := ids{trace: s.cause.TraceID(), span: SpanID(s.cause, s.uid, stage)}
	parent, own := s.cause, trust != TrustParent || late
	options := []trace.SpanStartOption{trace.WithTimestamp(stage.Start), trace.WithAttributes(s.attributes(stage)...)}
	if own {
		sum := digest(s.cause, s.uid, "trace")
		if late {
			sum = digest(s.cause, s.uid, "late\x00"+stage.Key())
		}
		wanted.trace, parent = trace.TraceID(sum[8:24]), trace.SpanContext{}
	}
	if s.kind == "Pod" && stage.Name != PodAnchor && !late && (own || !s.own) {
		parent = trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: wanted.trace, SpanID: SpanID(s.cause, s.uid, Stage{Name: PodAnchor}),
			TraceFlags: trace.FlagsSampled, TraceState: parent.TraceState(), Remote: true,
		})
	} else if own && trust != TrustNone {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: s.cause}))
	}
	ctx := context.WithValue(context.Background(), idsKey{}, wanted)
	if parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	_, span := tracer.Start(ctx, string(stage.Name), options...)
	if stage.Failed() {
		text := stage.Failure.Reason
		if stage.Failure.Message != "" {
			text += ": " + stage.Failure.Message
		}
		span.SetStatus(codes.Error, text)
	}
	span.End(trace.WithTimestamp(stage.End))
	return span.SpanContext()
}

// tells says whether there is a span for it: where the cause is a Pod's own span, that is the anchor.
func (s *subject) tells(trust Trust, stage Stage) bool {
	return stage.Name != PodAnchor || trust != TrustParent || !s.own
}

func (s *subject) attributes(stage Stage) []attribute.KeyValue {
	a := make([]attribute.KeyValue, 0, 12)
	a = append(a, semconv.K8SNamespaceName(s.namespace))
	switch s.kind {
	case "Pod":
		a = append(a, semconv.K8SPodName(s.name), semconv.K8SPodUID(s.uid))
	case "Deployment":
		a = append(a, semconv.K8SDeploymentName(s.name), semconv.K8SDeploymentUID(s.uid))
	case "StatefulSet":
		a = append(a, semconv.K8SStatefulSetName(s.name), semconv.K8SStatefulSetUID(s.uid))
	case "DaemonSet":
		a = append(a, semconv.K8SDaemonSetName(s.name), semconv.K8SDaemonSetUID(s.uid))
	case "Service":
		a = append(a, semconv.K8SServiceName(s.name), semconv.K8SServiceUID(s.uid))
	case "Job":
		a = append(a, semconv.K8SJobName(s.name), semconv.K8SJobUID(s.uid))
	}
	if s.node != "" {
		a = append(a, semconv.K8SNodeName(s.node))
	}
	if stage.Container != "" {
		a = append(a, semconv.K8SContainerName(stage.Container))
		if !onceForAllRuns(stage.Name) {
			a = append(a, semconv.K8SContainerRestartCount(int(stage.Restart)))
		}
		if stage.Failed() {
			a = append(a, semconv.K8SContainerStatusReasonKey.String(stage.Failure.Reason))
		}
	}
	if stage.Image != "" {
		a = append(a, semconv.ContainerImageName(stage.Image))
	}
	if stage.ImageBytes > 0 {
		a = append(a, AttributeImageSize.Int64(stage.ImageBytes))
	}
	if stage.Name == BindVolumeClaim {
		a = append(a, semconv.K8SPersistentvolumeclaimName(stage.Occurrence))
	}
	if stage.Failed() {
		a = append(a, semconv.ErrorTypeKey.String(stage.Failure.Reason))
		if stage.Failure.ExitCode != 0 {
			a = append(a, semconv.ProcessExitCode(int(stage.Failure.ExitCode)))
		}
	}
	if stage.Unseen > 0 {
		a = append(a, AttributeUnseen.Int(int(stage.Unseen)))
	}
	if stage.Resolution > 0 {
		a = append(a, AttributeResolution.Float64(stage.Resolution.Seconds()))
	}
	if stage.Name == DeletePod {
		a = append(a, AttributeObserved.Bool(true))
	}
	return a
}

// clone holds nothing of the object that s is part of.
func clone(s string) string { return strings.Clone(s) }
