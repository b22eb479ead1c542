package main

// Whether the trace went on below the API server. In: answers to writes. Out: yes, or
// nothing. An object that a webhook has stamped with this trace shows that the API server
// passed the context on; that it shows nothing means nothing.

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"

	"go.opentelemetry.io/otel/trace"
)

// stampSearchBytes bounds how much of an answer is looked at.
const stampSearchBytes = 1 << 20

// mayHoldStamp is true for answers that hold an object as it was stored.
func mayHoldStamp(method string, response *http.Response) bool {
	switch method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		return response.StatusCode < 300 && response.StatusCode != http.StatusSwitchingProtocols
	}
	return false
}

// stampFinder looks for a traceparent of root's trace in what is read. Neither JSON nor
// protobuf changes how it looks. The spans that the command knows of do not count: it may
// have put them into the object itself.
type stampFinder struct {
	io.ReadCloser
	root, sender trace.SpanContext
	found        *atomic.Bool

	seen int
	tail []byte // the end of what was read before, where a traceparent may begin
}

func (f *stampFinder) Read(into []byte) (int, error) {
	n, err := f.ReadCloser.Read(into)
	if n > 0 && f.seen < stampSearchBytes && !f.found.Load() {
		f.seen += n
		text := append(f.tail, into[:n]...)
		if f.holdsStamp(text) {
			f.found.Store(true)
		}
		f.tail = append([]byte(nil), text[max(0, len(text)-traceparentLength+1):]...)
	}
	return n, err
}

// traceparentLength is that of 00-<32>-<16>-<2>.
const traceparentLength = 55

func (f *stampFinder) holdsStamp(text []byte) bool {
	start := []byte("00-" + f.root.TraceID().String() + "-")
	for {
		i := bytes.Index(text, start)
		if i < 0 {
			return false
		}
		text = text[i+len(start):]
		if len(text) < traceparentLength-len(start) {
			return false
		}
		span := string(text[:16])
		if span != f.root.SpanID().String() && span != f.sender.SpanID().String() && text[16] == '-' {
			return true
		}
	}
}
