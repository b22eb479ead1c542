// This file asks Jaeger's query API. A trace id comes in, a Trace goes out.
// Errors: ErrNotFound, an unreachable or failing Jaeger, an answer that Decode
// does not understand, and from Wait the last reason why a trace was not complete.

package tracestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// ErrNotFound says that the store holds no span of a trace (yet).
var ErrNotFound = errors.New("no span of this trace has arrived")

// Client reads from a Jaeger of version 1.
type Client struct {
	// BaseURL is where the query API listens, "http://127.0.0.1:16686".
	BaseURL string
	// HTTP makes the requests. Nil: http.DefaultClient.
	HTTP *http.Client
	// Every is how long Wait pauses between two questions. 0: 250 ms.
	Every time.Duration
}

// Trace returns what has arrived of a trace so far. ErrNotFound when nothing has.
func (c *Client) Trace(ctx context.Context, id string) (Trace, error) {
	trace, err := c.trace(ctx, id)
	if err != nil {
		return Trace{}, fmt.Errorf("read trace %s: %w", id, err)
	}
	return trace, nil
}

func (c *Client) trace(ctx context.Context, id string) (Trace, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.BaseURL+"/api/traces/"+url.PathEscape(id), nil)
	if err != nil {
		return Trace{}, err
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return Trace{}, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return Decode(resp.Body)
	case http.StatusNotFound:
		// Jaeger says 404 in JSON; anything else means that this is no Jaeger.
		if _, err := Decode(resp.Body); errors.Is(err, ErrNotFound) {
			return Trace{}, ErrNotFound
		}
		return Trace{}, fmt.Errorf("%s has no query API", c.BaseURL)
	default:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // only to quote it
		return Trace{}, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
}

// Wait asks until complete returns nil and returns that trace: spans travel in
// batches, so that a trace arrives in pieces. When ctx ends first, Wait returns
// what did arrive, and an error that wraps both the context's cause and the
// last reason: complete's, ErrNotFound or what kept Jaeger from answering.
func (c *Client) Wait(ctx context.Context, id string, complete func(Trace) error) (Trace, error) {
	every := c.Every
	if every == 0 {
		every = 250 * time.Millisecond
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()

	var arrived Trace
	reason := ErrNotFound
	for {
		trace, err := c.trace(ctx, id)
		switch {
		case err == nil:
			arrived = trace
			if reason = complete(trace); reason == nil {
				return trace, nil
			}
		case ctx.Err() == nil: // else the question was cut short, which is no reason
			reason = err
		}
		select {
		case <-ctx.Done():
			return arrived, fmt.Errorf("wait for trace %s: %w: %w", id, context.Cause(ctx), reason)
		case <-ticker.C:
		}
	}
}
