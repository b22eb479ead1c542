// This file asks a store. A trace id comes in, a Trace goes out. Errors: ErrNotFound,
// an unreachable or failing store, an answer that Decode does not understand, and from
// Wait the last reason why a trace was not complete.

package tracestore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// ErrNotFound says that the store holds no span of a trace (yet).
var ErrNotFound = errors.New("no span of this trace has arrived")

// Kind is a store's query API.
type Kind string

const (
	// Jaeger is that of Jaeger 2, /api/v3: what its documentation calls stable.
	Jaeger Kind = "jaeger"
	// Tempo is Grafana Tempo's, /api/v2/traces and /api/search. It is written to Tempo's
	// documentation and has not been run against a Tempo.
	Tempo Kind = "tempo"
)

// Client reads from a store.
type Client struct {
	// Kind is the store's API. "": Jaeger.
	Kind Kind
	// BaseURL is where the query API listens, "http://127.0.0.1:16686".
	BaseURL string
	// Header goes with every question, for authentication. It is never part of an error.
	Header http.Header
	// HTTP makes the requests. Nil: one that gives up after 10 s, and follows no redirection
	// to another host, which would get Header.
	HTTP *http.Client
	// Every is how long Wait pauses between two questions. 0: 250 ms.
	Every time.Duration
}

// Open reads a store as a user names it: "jaeger=http://localhost:16686" or
// "tempo=https://tempo.example/prefix".
func Open(spec string, header http.Header) (*Client, error) {
	const form = `want "jaeger=URL" or "tempo=URL"`
	kind, address, found := strings.Cut(spec, "=")
	if kind := Kind(kind); !found || kind != Jaeger && kind != Tempo {
		return nil, fmt.Errorf("store %q: %s", withoutUser(spec), form)
	}
	u, err := url.Parse(address)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, fmt.Errorf("store %q: %s, with http:// or https://", withoutUser(spec), form)
	case u.User != nil:
		return nil, fmt.Errorf("store %s=%s: a password does not belong into a URL; give a header Authorization", kind, u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("store %q: want a URL without ? and #", spec)
	}
	return &Client{Kind: Kind(kind), BaseURL: strings.TrimSuffix(u.String(), "/"), Header: header}, nil
}

// userInURL finds what may be a password in what is no URL.
var userInURL = regexp.MustCompile(`//[^/]*@`)

func withoutUser(spec string) string { return userInURL.ReplaceAllString(spec, "//xxxxx@") }

// Page is where a person finds a trace in the store's own interface; "" where that is
// elsewhere, as Tempo's is in a Grafana.
func (c *Client) Page(id string) string {
	if c.Kind == Tempo {
		return ""
	}
	return c.BaseURL + "/trace/" + id
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
	path := "/api/v3/traces/" + url.PathEscape(id) + "?raw_traces=true" // as they were exported
	if c.Kind == Tempo {
		path = "/api/v2/traces/" + url.PathEscape(id)
	}
	var trace Trace
	err := c.get(ctx, path, func(body io.Reader) (err error) {
		trace, err = Decode(body)
		return err
	})
	if err == nil && !strings.EqualFold(trace.ID, id) {
		return Trace{}, fmt.Errorf("%s answered with trace %s", c.BaseURL, trace.ID)
	}
	return trace, err
}

// Search is what spans have in common that are looked for.
type Search struct {
	Service    string            // of one of the spans; not ""
	Attributes map[string]string // of the same span
	Start, End time.Time         // between which it began
	Limit      int               // 0: 20
}

// Find returns the ids of traces with such a span, the latest first; none is no error.
func (c *Client) Find(ctx context.Context, s Search) ([]string, error) {
	if s.Limit == 0 {
		s.Limit = 20
	}
	ids, err := c.find(ctx, s)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("look for traces of %s: %w", s.Service, err)
	}
	return ids, nil
}

func (c *Client) find(ctx context.Context, s Search) ([]string, error) {
	query := url.Values{"limit": {strconv.Itoa(s.Limit)}}
	path := "/api/traces?" // Jaeger's /api/v3 finds by attributes over gRPC alone
	if c.Kind == Tempo {
		path = "/api/search?"
		conditions := []string{"resource.service.name = " + strconv.Quote(s.Service)}
		for key, value := range s.Attributes {
			conditions = append(conditions, "span."+strconv.Quote(key)+" = "+strconv.Quote(value))
		}
		query.Set("q", "{ "+strings.Join(conditions, " && ")+" }")
		query.Set("start", strconv.FormatInt(s.Start.Unix(), 10))
		query.Set("end", strconv.FormatInt(s.End.Unix()+1, 10))
	} else {
		query.Set("service", s.Service)
		query.Set("start", strconv.FormatInt(s.Start.UnixMicro(), 10))
		query.Set("end", strconv.FormatInt(s.End.UnixMicro(), 10))
		if len(s.Attributes) > 0 {
			tags, err := json.Marshal(s.Attributes)
			if err != nil {
				return nil, err
			}
			query.Set("tags", string(tags))
		}
	}
	var found []string
	err := c.get(ctx, path+query.Encode(), func(body io.Reader) (err error) {
		found, err = decodeFound(body)
		return err
	})
	return found[:min(len(found), s.Limit)], err
}

// decodeFound reads the ids out of what either store answers to a search.
func decodeFound(r io.Reader) ([]string, error) {
	var answer struct {
		Data []struct { // Jaeger
			TraceID string `json:"traceID"`
		} `json:"data"`
		Traces []struct { // Tempo, which leaves zeros at the front out
			TraceID string `json:"traceID"`
		} `json:"traces"`
	}
	if err := json.NewDecoder(io.LimitReader(r, maxBytes)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("decode the store's answer: %w", err)
	}
	var ids []string
	for _, t := range append(answer.Data, answer.Traces...) {
		padded, err := id(fmt.Sprintf("%032s", t.TraceID), 16)
		if err != nil {
			return nil, fmt.Errorf("decode the store's answer: %w", err)
		}
		ids = append(ids, padded)
	}
	return ids, nil
}

// get asks for a path and hands on what is answered with 200.
func (c *Client) get(ctx context.Context, path string, decode func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.BaseURL, "/")+path, nil)
	if err != nil {
		return err
	}
	for name, values := range c.Header {
		req.Header[name] = values
	}
	req.Header.Set("Accept", "application/json")
	resp, err := c.httpClient().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		if html := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html"); html {
			return fmt.Errorf("%s answers with a page for people: want the address of the query API, and the header that it asks for", c.BaseURL)
		}
		return decode(resp.Body)
	case http.StatusNotFound:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		if c.Kind == Tempo {
			if bytes.Contains(body, []byte("404 page not found")) {
				return c.noQueryAPI()
			}
			return ErrNotFound
		}
		// Jaeger says 404 in JSON; anything else means that this is no Jaeger.
		if _, err := Decode(bytes.NewReader(body)); errors.Is(err, ErrNotFound) {
			return ErrNotFound
		}
		return c.noQueryAPI()
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%s: %s: it wants a header for authentication, or another one", c.BaseURL, resp.Status)
	default:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // only to quote it
		return fmt.Errorf("%s: %s", resp.Status, firstLine(string(body)))
	}
}

func (c *Client) noQueryAPI() error {
	if c.Kind == Tempo {
		return fmt.Errorf("%s has no query API of Tempo (/api/v2/traces, since 2.7)", c.BaseURL)
	}
	return fmt.Errorf("%s has no query API of Jaeger 2 (/api/v3/traces)", c.BaseURL)
}

func (c *Client) httpClient() *http.Client {
	if c.HTTP != nil {
		return c.HTTP
	}
	return &http.Client{
		Timeout: 10 * time.Second,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Host != via[0].URL.Host || req.URL.Scheme != via[0].URL.Scheme || len(via) > 5 {
				return fmt.Errorf("it sends on to %s: does it ask for a login?", req.URL.Host)
			}
			return nil
		},
	}
}

// Wait asks until complete returns nil and returns that trace: spans travel in
// batches, so that a trace arrives in pieces. When ctx ends first, Wait returns
// what did arrive, and an error that wraps both the context's cause and the
// last reason: complete's, ErrNotFound or what kept the store from answering.
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
