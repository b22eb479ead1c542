// Package pageserver shows a report in the user's browser while it still changes.
//
//	Start ─▶ URL with a one-time token ─▶ browser ─▶ cookie ─▶ the page, live
//	Set   ─▶ server-sent event ─▶ the page reads itself anew
//	Over  ─▶ the page says that nothing changes any more
//	Wait  returns when the reader has closed the page
//
// It listens on the loopback interface. The token is good for one visit: other users of the
// machine can see a browser's arguments, and a browser keeps addresses. The visit gets a cookie,
// and whoever comes without it gets nothing.
package pageserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
)

// Options say what is served.
type Options struct {
	// Linked makes the report of another trace, which the reader has followed a link to. Nil:
	// links lead to Report.TraceURL.
	Linked func(ctx context.Context, traceID string) (report.Report, error)
	// Random is where the token and the cookie come from, such as crypto/rand.Reader.
	Random io.Reader
	// Leave is how long the page may be closed before Wait returns: a reload closes it for a
	// moment. 0: 2 s.
	Leave time.Duration
}

// Server serves one report.
type Server struct {
	// URL is where the page is, once.
	URL string

	options  Options
	host     string
	cookie   string // its name; cookies know no ports
	session  string
	listener net.Listener
	server   *http.Server

	mu      sync.Mutex
	token   [sha256.Size]byte
	used    bool
	report  report.Report
	version int
	said    string        // with the newest version
	over    string        // what to say at the end; "": it is not over
	changed chan struct{} // closed, and replaced, when one of these changes
	readers int
	left    chan struct{} // closed when the last reader has been gone for Leave
	leaving *time.Timer
}

// Start listens and serves r until Close.
func Start(o Options, r report.Report) (*Server, error) {
	if o.Leave == 0 {
		o.Leave = 2 * time.Second
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the browser: %w", err)
	}
	secrets := make([]byte, 64)
	if _, err := io.ReadFull(o.Random, secrets); err != nil {
		listener.Close()
		return nil, fmt.Errorf("make a one-time token: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(secrets[:32])
	host := listener.Addr().String()
	_, port, _ := net.SplitHostPort(host)
	s := &Server{
		URL:     "http://" + host + "/?token=" + token,
		options: o, host: host, cookie: "tracehook-" + port, listener: listener,
		session: base64.RawURLEncoding.EncodeToString(secrets[32:]),
		token:   sha256.Sum256([]byte(token)),
		changed: make(chan struct{}), left: make(chan struct{}),
	}
	s.Set(r, "")
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = s.server.Serve(listener) }() // ends with Close
	return s, nil
}

// Set replaces the report. said is one line about how things stand; "" for nothing.
func (s *Server) Set(r report.Report, said string) {
	r.Live = "/events"
	if s.options.Linked != nil {
		r.TraceURL = "/trace/{traceID}"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report, s.said = r, said
	s.version++
	s.notify()
}

// Over says on the page that nothing changes any more.
func (s *Server) Over(said string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = said
	s.notify()
}

func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Left is closed when somebody has looked at the page and closed it.
func (s *Server) Left() <-chan struct{} { return s.left }

// Close ends it, also for those who look at the page.
func (s *Server) Close() error { return s.server.Close() }

var traceID = regexp.MustCompile(`^[0-9a-f]{32}$`)

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	switch {
	case r.Host != s.host: // another name that leads here, of a page that wants to read this one
		http.Error(w, "wrong host", http.StatusMisdirectedRequest)
	case r.Method != http.MethodGet:
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
	case r.URL.Path == "/" && r.URL.Query().Get("token") != "":
		s.enter(w, r)
	case !s.knows(r):
		http.Error(w, "This address was good for one visit. Run the command again for another one.", http.StatusForbidden)
	case r.URL.Path == "/":
		s.mu.Lock()
		current := s.report
		s.mu.Unlock()
		servePage(w, current)
	case r.URL.Path == "/events":
		s.serveEvents(w, r)
	case s.options.Linked != nil && traceID.MatchString(strings.TrimPrefix(r.URL.Path, "/trace/")):
		linked, err := s.options.Linked(r.Context(), strings.TrimPrefix(r.URL.Path, "/trace/"))
		if err != nil {
			linked = report.Report{Title: "This trace cannot be shown", Summary: err.Error(), Generated: time.Now()}
		}
		linked.TraceURL, linked.Live = "/trace/{traceID}", "/events"
		servePage(w, linked)
	default:
		http.NotFound(w, r)
	}
}

// enter takes the token for a cookie.
func (s *Server) enter(w http.ResponseWriter, r *http.Request) {
	given := sha256.Sum256([]byte(r.URL.Query().Get("token")))
	s.mu.Lock()
	good := subtle.ConstantTimeCompare(given[:], s.token[:]) == 1 && !s.used
	s.used = s.used || good
	s.mu.Unlock()
	if !good && !s.knows(r) {
		http.Error(w, "This address was good for one visit. Run the command again for another one.", http.StatusForbidden)
		return
	}
	if good {
		http.SetCookie(w, &http.Cookie{Name: s.cookie, Value: s.session, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
	}
	// The page's own address, without the token. Not a redirection: a browser that was sent here
	// by another program does not send a strict cookie along on it.
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'none'")
	_, _ = io.WriteString(w, `<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/"><title>tracehook</title><a href="/">Go on</a></html>`)
}

func (s *Server) knows(r *http.Request) bool {
	cookie, err := r.Cookie(s.cookie)
	return err == nil && subtle.ConstantTimeCompare([]byte(cookie.Value), []byte(s.session)) == 1
}

func servePage(w http.ResponseWriter, r report.Report) {
	var page bytes.Buffer
	if err := report.HTML(&page, r); err != nil {
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", report.Policy(r)+"; frame-ancestors 'none'")
	_, _ = page.WriteTo(w)
}

// serveEvents tells a page of every change, as long as it is open.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	s.arrive()
	defer s.leave()
	seen := 1 // the version that was there when the page was made may be older
	for {
		s.mu.Lock()
		version, said, over, changed := s.version, s.said, s.over, s.changed
		s.mu.Unlock()
		if version != seen {
			seen = version
			fmt.Fprintf(w, "event: changed\ndata: %s\n\n", oneLine(said))
		}
		if over != "" {
			fmt.Fprintf(w, "event: over\ndata: %s\n\n", oneLine(over))
		}
		fmt.Fprint(w, ": \n\n") // so that the page knows that somebody is there
		if err := control.Flush(); err != nil {
			return
		}
		select {
		case <-changed:
		case <-time.After(15 * time.Second):
		case <-r.Context().Done():
			return
		}
	}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func (s *Server) arrive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers++
	if s.leaving != nil {
		s.leaving.Stop()
	}
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers--
	if s.readers > 0 {
		return
	}
	s.leaving = time.AfterFunc(s.options.Leave, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.readers == 0 && !closed(s.left) {
			close(s.left)
		}
	})
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// ErrNobodyCame says that no browser has opened the page.
var ErrNobodyCame = errors.New("no browser has opened the page")

// Wait returns when the reader has closed the page, ErrNobodyCame when no browser has come
// within the time, or the context's error.
func (s *Server) Wait(ctx context.Context, come time.Duration) error {
	timer := time.NewTimer(come)
	defer timer.Stop()
	for {
		select {
		case <-s.left:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			s.mu.Lock()
			used := s.used
			s.mu.Unlock()
			if !used {
				return ErrNobodyCame
			}
		}
	}
}
