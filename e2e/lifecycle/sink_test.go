package lifecycle

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// sink is a trace store: it keeps what it is sent.
type sink struct {
	collector.UnimplementedTraceServiceServer
	address string
	server  *grpc.Server

	mu     sync.Mutex
	spans  map[string]span // by trace and span id
	twice  int             // how many came again
	differ []string        // of these, those that were not the same
}

type span struct {
	*tracepb.Span
	traceID, parent string
	arrived         time.Time
}

// newSink listens on an address, "" for a free one.
func newSink(t *testing.T, address string) *sink {
	t.Helper()
	s := &sink{spans: map[string]span{}, address: address}
	if address == "" {
		s.address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	s.server = grpc.NewServer()
	collector.RegisterTraceServiceServer(s.server, s)
	t.Cleanup(s.server.Stop)
	go func() { _ = s.server.Serve(listener) }() // ends with Stop
	return s
}

func (s *sink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range r.ResourceSpans {
		for _, scope := range of.ScopeSpans {
			for _, one := range scope.Spans {
				id := hex.EncodeToString(one.TraceId) + " " + hex.EncodeToString(one.SpanId)
				got := span{one, hex.EncodeToString(one.TraceId), hex.EncodeToString(one.ParentSpanId), time.Now()}
				if before, again := s.spans[id]; again {
					s.twice++
					if before.String() != one.String() {
						s.differ = append(s.differ, fmt.Sprintf("%s\n%s", before.Span, one))
					}
					continue
				}
				s.spans[id] = got
			}
		}
	}
	return new(collector.ExportTraceServiceResponse), nil
}

// all are the spans by id.
func (s *sink) all() map[string]span {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.spans)
}

// named are the spans of an object with this name, for those of one trace.
func (s *sink) of(traceID, pod string) (found []span) {
	for _, one := range s.all() {
		if one.traceID == traceID && (pod == "" || attribute(one, "k8s.pod.name") == pod) {
			found = append(found, one)
		}
	}
	slices.SortFunc(found, func(a, b span) int {
		return strings.Compare(a.Name+attribute(a, "k8s.container.name"), b.Name+attribute(b, "k8s.container.name"))
	})
	return found
}

// attribute is a span's attribute as text; "" where it has none.
func attribute(s span, key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			switch v := a.Value; {
			case v.GetStringValue() != "":
				return v.GetStringValue()
			default:
				return strings.Trim(strings.SplitN(v.String(), ":", 2)[1], ` "`)
			}
		}
	}
	return ""
}

// lines are name, container, reason and exit code of each.
func lines(spans []span) string {
	var b strings.Builder
	for _, s := range spans {
		fmt.Fprintln(&b, strings.Join(slices.DeleteFunc([]string{s.Name, attribute(s, "k8s.container.name"), attribute(s, "error.type"), attribute(s, "process.exit.code")}, func(s string) bool { return s == "" }), " "))
	}
	return b.String()
}

func says(r io.Reader, text string) bool {
	body, err := io.ReadAll(r)
	return err == nil && strings.Contains(string(body), text)
}

// again is how many spans came that were there already.
func (s *sink) again() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.twice
}
