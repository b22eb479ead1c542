package pageserver_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/cmd/tracehook/pageserver"
	"github.com/tracehook/tracehook/cmd/tracehook/report"
)

func start(t *testing.T, o pageserver.Options) *pageserver.Server {
	t.Helper()
	o.Random = rand.Reader
	server, err := pageserver.Start(o, report.Report{Title: "first"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

// reader is a browser with cookies of its own.
func reader(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar}
}

func get(t *testing.T, client *http.Client, url string) (int, http.Header, string) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func base(s *pageserver.Server) string {
	base, _, _ := strings.Cut(s.URL, "?")
	return base
}

func TestTheTokenIsGoodForOneVisitAndNothingIsServedWithout(t *testing.T) {
	server := start(t, pageserver.Options{Linked: func(context.Context, string) (report.Report, error) { return report.Report{Title: "secret"}, nil }})
	stranger := reader(t)
	for _, path := range []string{"", "events", "trace/" + strings.Repeat("a", 32), "?token=", "?token=guess"} {
		if code, _, body := get(t, stranger, base(server)+path); code != http.StatusForbidden || strings.Contains(body, "secret") {
			t.Errorf("/%s answers %d to a stranger: %s", path, code, body)
		}
	}
	user := reader(t)
	if code, _, body := get(t, user, server.URL); code != http.StatusOK || !strings.Contains(body, `url=/"`) {
		t.Fatalf("the first visit is answered %d %s", code, body)
	}
	code, header, body := get(t, user, base(server))
	if code != http.StatusOK || !strings.Contains(body, "<h1>first</h1>") {
		t.Errorf("the page is answered %d", code)
	}
	if policy := header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "connect-src 'self'") || !strings.Contains(policy, "frame-ancestors 'none'") {
		t.Errorf("the policy is %q", policy)
	}
	if header.Get("Cache-Control") != "no-store" || header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("headers %v", header)
	}
	if code, _, _ := get(t, stranger, server.URL); code != http.StatusForbidden {
		t.Errorf("the second visit is answered %d", code)
	}
	if code, _, _ := get(t, user, server.URL); code != http.StatusOK {
		t.Errorf("whoever has the cookie is answered %d", code)
	}
}

func TestAnotherNameThatLeadsHereIsRefused(t *testing.T) {
	server := start(t, pageserver.Options{})
	req, err := http.NewRequest(http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "rebound.example"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("answered %d", resp.StatusCode)
	}
	if resp, err := http.Post(server.URL, "", nil); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a POST is answered %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

func TestALinkLeadsToTheOtherTrace(t *testing.T) {
	known := strings.Repeat("ab", 16)
	server := start(t, pageserver.Options{Linked: func(_ context.Context, id string) (report.Report, error) {
		if id != known {
			return report.Report{}, errors.New("read trace: <b>nothing</b> there")
		}
		return report.Report{Title: "the other"}, nil
	}})
	user := reader(t)
	get(t, user, server.URL)
	if _, _, page := get(t, user, base(server)); !strings.Contains(page, `data-trace="/trace/{traceID}"`) {
		t.Errorf("the page does not know where links lead")
	}
	if code, _, body := get(t, user, base(server)+"trace/"+known); code != http.StatusOK || !strings.Contains(body, "<h1>the other</h1>") {
		t.Errorf("the other trace is answered %d", code)
	}
	if _, _, body := get(t, user, base(server)+"trace/"+strings.Repeat("cd", 16)); !strings.Contains(body, "This trace cannot be shown") || strings.Contains(body, "<b>nothing") {
		t.Errorf("one that is not there: %s", body)
	}
	for _, path := range []string{"trace/x", "trace/../", "favicon.ico", "trace/" + strings.Repeat("A", 32)} {
		if code, _, _ := get(t, user, base(server)+path); code != http.StatusNotFound && code != http.StatusOK {
			t.Errorf("%s is answered %d", path, code)
		}
	}
}

func TestThePageHearsOfEachChangeAndOfTheEnd(t *testing.T) {
	server := start(t, pageserver.Options{Leave: 10 * time.Millisecond})
	user := reader(t)
	get(t, user, server.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base(server)+"events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := user.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	next := func() string {
		for lines.Scan() {
			if line := lines.Text(); strings.HasPrefix(line, "data") || strings.HasPrefix(line, "event") {
				return line
			}
		}
		return "(end)"
	}
	server.Set(report.Report{Title: "second"}, "1 of 2\nready")
	if got := next() + "|" + next(); got != "event: changed|data: 1 of 2 ready" {
		t.Errorf("the page hears %q", got)
	}
	if _, _, page := get(t, user, base(server)); !strings.Contains(page, "<h1>second</h1>") {
		t.Error("the page is still the first")
	}
	server.Over("all ready")
	if got := next() + "|" + next(); got != "event: over|data: all ready" {
		t.Errorf("the page hears %q", got)
	}
	resp.Body.Close()
	if err := server.Wait(ctx, time.Minute); err != nil {
		t.Errorf("after the page has been closed: %v", err)
	}
}

func TestWhereNoBrowserComesTheWaitSaysSo(t *testing.T) {
	server := start(t, pageserver.Options{})
	if err := server.Wait(t.Context(), time.Millisecond); !errors.Is(err, pageserver.ErrNobodyCame) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := server.Wait(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := pageserver.Start(pageserver.Options{Random: strings.NewReader("short")}, report.Report{}); err == nil || !strings.Contains(err.Error(), "make a one-time token") {
		t.Error(fmt.Sprint(err))
	}
}
