package cluster

// Audit. In: an API server's audit log. Out: its events. Errors: of the file, or a line
// that is no event.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// AuditEvent is what the tests read of an audit.k8s.io/v1 Event. (The type itself lives
// in k8s.io/apiserver, which is much to depend on for a few fields.)
type AuditEvent struct {
	AuditID    string `json:"auditID"` // also attribute audit-id of the request's span
	Stage      string `json:"stage"`   // "ResponseComplete" for most
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	User       struct {
		Username string   `json:"username"`
		Groups   []string `json:"groups"`
	} `json:"user"`
	ObjectRef struct {
		APIGroup    string `json:"apiGroup"`
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"responseStatus"`
	RequestReceivedTimestamp time.Time `json:"requestReceivedTimestamp"`
	// Annotations of the API server's and of webhooks (as <webhook name>/<key>).
	Annotations map[string]string `json:"annotations"`
}

// AuditEvents returns the first API server's events so far. A request's event is
// written when the request is over, which its client may notice a moment earlier: see
// WaitAuditEvent.
func (c *Cluster) AuditEvents() ([]AuditEvent, error) { return c.first.AuditEvents() }

// WaitAuditEvent returns the first event that matches, as soon as there is one.
func (c *Cluster) WaitAuditEvent(ctx context.Context, match func(AuditEvent) bool) (AuditEvent, error) {
	return c.first.WaitAuditEvent(ctx, match)
}

// AuditEvents returns this API server's events so far.
func (s *APIServer) AuditEvents() ([]AuditEvent, error) {
	data, err := os.ReadFile(s.AuditLog)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	var events []AuditEvent
	for number := 1; ; number++ {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole { // the end, or an event that is being written
			return events, nil
		}
		var event AuditEvent
		if err := json.Unmarshal(line, &event); err != nil {
			return nil, fmt.Errorf("read audit log %s, line %d: %w", s.AuditLog, number, err)
		}
		events, data = append(events, event), rest
	}
}

// WaitAuditEvent returns this API server's first event that matches, as soon as there
// is one.
func (s *APIServer) WaitAuditEvent(ctx context.Context, match func(AuditEvent) bool) (AuditEvent, error) {
	for {
		events, err := s.AuditEvents()
		if err != nil {
			return AuditEvent{}, err
		}
		for _, event := range events {
			if match(event) {
				return event, nil
			}
		}
		select {
		case <-ctx.Done():
			return AuditEvent{}, fmt.Errorf("wait for audit event: none of %d in %s matches: %w", len(events), s.AuditLog, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
