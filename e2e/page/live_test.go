package page

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/tracehook/tracehook/cmd/tracehook/explain"
	"github.com/tracehook/tracehook/cmd/tracehook/pageserver"
	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore/recorded"
)

// eventually waits for a JavaScript expression.
func (p *pageUnderTest) eventually(expression string, want any) {
	p.Helper()
	for deadline := time.Now().Add(30 * time.Second); p.text(expression) != fmt.Sprint(want); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.equal(expression, want)
			return
		}
	}
}

// served opens the page as `--open` does.
func served(t *testing.T, r report.Report, linked func(context.Context, string) (report.Report, error)) (*pageUnderTest, *pageserver.Server) {
	t.Helper()
	server, err := pageserver.Start(pageserver.Options{Random: rand.Reader, Linked: linked, Leave: 100 * time.Millisecond}, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	p := browse(t, server.URL)
	p.eventually(`location.pathname + location.search + (document.querySelector("h1") ? "" : " empty")`, "/")
	return p, server
}

func section(traces ...tracestore.Trace) report.Report {
	r := report.Report{Title: "A command", Generated: time.Unix(1795000000, 0)}
	for i := range traces {
		r.Sections = append(r.Sections, report.Section{Trace: &traces[i], StoreURL: "http://127.0.0.1:1/trace/" + traces[i].ID})
	}
	return r
}

func TestAServedPageGrowsWhileItIsReadAndKeepsWhatTheReaderDid(t *testing.T) {
	p, server := served(t, section(made("root get<root answer<get")), nil)
	p.equal(`document.querySelectorAll(".row[data-span]").length`, 3)
	p.equal(`document.querySelector(".store").href`, "http://127.0.0.1:1/trace/0123456789abcdef0123456789abcdef")
	p.click("#trace-1-1 .text") // its details
	p.click("#trace-1-0 .fold")
	p.run(chromedp.SendKeys(chromedp.CSS(".search input"), "answer"))
	p.equal(`document.querySelector(".found").textContent`, "1 of 3")

	server.Set(section(made("root get<root answer<get later<root answer2<later")), "2 of 3 ready")
	p.eventually(`document.querySelectorAll(".row[data-span]").length`, 5)
	p.eventually(`document.querySelector(".live").textContent`, "2 of 3 ready")
	p.equal(`document.querySelectorAll("#trace-1-1 .details").length`, 1)
	p.equal(`document.querySelector("#trace-1-0").getAttribute("aria-expanded")`, "false")
	p.equal(`document.querySelector(".search input").value + document.querySelector(".found").textContent`, "answer2 of 5")
	p.equal(`document.activeElement === document.querySelector(".search input")`, true)
	p.press(key(kb.Enter)) // unfolds what is above the first hit
	p.equal(`document.activeElement.id`, "trace-1-2")
	p.equal(`document.querySelector("#trace-1-0").getAttribute("aria-expanded")`, "true")
	p.press('n')
	p.equal(`document.activeElement.querySelector(".text").textContent`, "answer2")
	p.press('p')
	p.equal(`document.activeElement.id`, "trace-1-2")
	p.press('/')
	p.equal(`document.activeElement.type`, "search")
	p.press(key(kb.Escape))
	p.equal(`document.querySelectorAll(".hit").length + document.querySelector(".found").textContent`, "0")

	server.Over("all ready")
	p.eventually(`document.querySelector(".live").textContent`, "all ready")
	server.Close()
	p.equal(`document.querySelectorAll(".row[data-span]").length`, 5)
	p.shot("live")
}

// The API server's filters are one line at first, which can be opened.
func TestTheFiltersOfTheAPIServerAreOneLineThatOpens(t *testing.T) {
	trace := recorded.Trace(t, "configmap")
	p, server := served(t, section(trace), nil)
	const line, filters = `#trace-1-9-filters`, `[9, 10, 11, 12].map(i => document.querySelector("#trace-1-" + i).hidden).join()`
	p.equal(`document.querySelectorAll(".row[data-span]").length + document.querySelector(".trace-meta").textContent.slice(0, 8)`, "2222 spans")
	p.equal(`[...document.querySelectorAll(".row:not([hidden]) .text")].map(e => e.textContent).filter(t => /audit|impersonation|priority|authorization|filters/.test(t)).join()`, "+4 filters,+4 filters")
	p.equal(`document.querySelector("`+line+` .duration").textContent`, "239 µs")
	p.equal(filters, "true,true,true,true")
	// What they hold is beside them, and not gone.
	p.equal(`document.querySelector("#trace-1-13").hidden + document.querySelector("#trace-1-13").getAttribute("aria-level") + document.querySelector("`+line+`").getAttribute("aria-level")`, "false44")

	p.click(line + " .text")
	p.equal(filters, "false,false,false,false")
	p.equal(`[9, 10, 11, 12].map(i => document.querySelector("#trace-1-" + i + " .text").textContent).join()`, "audit,constrainedimpersonation,priorityandfairness,authorization")
	p.click("#trace-1-10 .text")
	p.equal(`document.querySelector("#trace-1-10 .details").innerText.includes("constrainedimpersonation")`, true)
	p.shot("filters")

	// New data leaves them open, and those of a new request closed.
	more := tracestore.Trace{ID: trace.ID, Spans: append(trace.Spans[:len(trace.Spans):len(trace.Spans)], made("late lateA<late lateB<lateA").Spans...)}
	for i := range more.Spans[len(trace.Spans):] {
		s := &more.Spans[len(trace.Spans)+i]
		s.Start = trace.Spans[len(trace.Spans)-1].End().Add(time.Duration(i) * time.Millisecond)
		if s.ParentID != "" {
			s.Scope = "k8s.io/apiserver/pkg/endpoints/filterlatency"
		}
	}
	server.Set(section(more), "more")
	p.eventually(`document.querySelectorAll(".row[data-span]").length`, 25)
	p.eventually(`document.querySelector(".live").textContent`, "more")
	p.equal(filters, "false,false,false,false")
	p.equal(`document.querySelectorAll(".row[data-span][hidden]").length`, 4+2)
	p.equal(`document.querySelectorAll("#trace-1-10 .details").length`, 1)

	// Keys do what a click does, and a search finds what is closed.
	p.run(chromedp.Focus(chromedp.CSS(line)))
	p.press(key(kb.Enter))
	p.equal(filters, "true,true,true,true")
	p.press(key(kb.ArrowRight))
	p.equal(filters, "false,false,false,false")
	p.press(key(kb.ArrowLeft))
	p.run(chromedp.SendKeys(chromedp.CSS(".search input"), "priorityandfairness"))
	p.equal(`document.querySelector(".found").textContent`, "2 of 25")
	p.press(key(kb.Enter))
	p.press('n')
	p.equal(`document.activeElement.querySelector(".text").textContent + document.activeElement.hidden`, "priorityandfairnessfalse")
	p.equal(filters, "false,false,false,false")
}

// What a Pod's kubelet and containerd did is below the Pod, although it is a trace of its own.
func TestWhatANodeDidIsDrawnBelowThePod(t *testing.T) {
	trace := made("root Pod<root")
	node := made("sync pull<sync")
	node.ID = strings.Repeat("ab", 16)
	trace.Spans[1].Attributes = map[string]any{"k8s.pod.uid": "p-1"}
	node.Spans[0].Service, node.Spans[0].Name = "kubelet", "syncPod"
	node.Spans[0].Attributes = map[string]any{"k8s.pod.uid": "p-1", "k8s.pod.name": "web-1", "k8s.namespace.name": "shop"}
	node.Spans[1].Service, node.Spans[1].Name = "containerd", "PullImage"
	p, server := served(t, section(trace), nil)
	pod := explain.OnNode{Pod: explain.Pod{UID: "p-1", Name: "web-1"}, Traces: []tracestore.Trace{node}}
	server.Set(section(explain.HangOnPods(trace, []explain.OnNode{pod})), "on the node")
	p.eventually(`document.querySelector(".live").textContent`, "on the node")
	p.equal(`[...document.querySelectorAll(".row[data-span]:not([hidden])")].map(r => r.getAttribute("aria-level") + r.querySelector(".service").textContent.trim() + " " + r.querySelector(".text").textContent).join()`,
		"1s root,2s Pod,3kubelet syncPod,4containerd PullImage")
	p.equal(`document.querySelector("#trace-1-2 .object").textContent`, "pods/web-1 in shop, trace "+node.ID)
	p.equal(`document.querySelectorAll("#trace-1-3 .object").length`, 0)
	p.click("#trace-1-3 .text")
	p.equal(`document.querySelector("#trace-1-3 .details").innerText.includes("trace id\t`+node.ID+`")`, true)
	p.click("#trace-1-1 .fold")
	p.equal(`[2, 3].map(i => document.querySelector("#trace-1-" + i).hidden).join()`, "true,true")
	p.shot("node")
}

func TestAPageWhoseServerEndsSaysSo(t *testing.T) {
	p, server := served(t, section(made("root")), nil)
	server.Set(section(made("root get<root")), "still going")
	p.eventually(`document.querySelector(".live").textContent`, "still going")
	server.Close()
	p.eventually(`document.querySelector(".live").textContent`, "tracehook has ended: this is the last that it told")
}

func TestALinkOpensTheOtherTraceAndClosingThePageEndsTheServer(t *testing.T) {
	trace := made("root")
	gone := strings.Repeat("cd", 16)
	other := made("cause effect<cause")
	other.ID = strings.Repeat("ab", 16)
	trace.Spans[0].Links = []tracestore.Link{{TraceID: other.ID, SpanID: "cause"}, {TraceID: gone, SpanID: "x"}}
	p, server := served(t, section(trace), func(_ context.Context, id string) (report.Report, error) {
		if id != other.ID {
			return report.Report{}, errors.New("no span of this trace has arrived")
		}
		r := section(other)
		r.Title = "The other"
		return r, nil
	})
	p.click("#trace-1-0 .text")
	p.equal(`[...document.querySelectorAll(".links a")].map(a => a.getAttribute("href")).join()`, "/trace/"+other.ID+",/trace/"+gone)
	p.click(".links a")
	p.eventually(`document.title`, "The other")
	p.eventually(`document.querySelectorAll(".row[data-span]").length`, 2)
	p.run(chromedp.Navigate(strings.SplitN(server.URL, "?", 2)[0] + "trace/" + gone))
	p.equal(`document.title + ": " + document.querySelector(".summary").textContent`, "This trace cannot be shown: no span of this trace has arrived")

	p.run(chromedp.Navigate("about:blank"))
	if err := server.Wait(t.Context(), time.Minute); err != nil {
		t.Errorf("after the page has been left: %v", err)
	}
}

// In a file, a link leads to a trace in the same page, else to the store.
func TestLinksOfAPageInAFile(t *testing.T) {
	trace, other := made("root"), made("cause")
	other.ID = strings.Repeat("ab", 16)
	trace.Spans[0].Links = []tracestore.Link{{TraceID: other.ID, SpanID: "cause"}, {TraceID: strings.Repeat("cd", 16), SpanID: "x"}}
	r := section(trace, other)
	r.TraceURL = "https://traces.example/trace/{traceID}"
	p := open(t, r)
	p.click("#trace-1-0 .text")
	p.equal(`[...document.querySelectorAll(".links a")].map(a => a.getAttribute("href")).join()`, "#trace-2,https://traces.example/trace/"+strings.Repeat("cd", 16))
	p.quiet()
}

func TestTheCriticalPathIsMarkedAndCanBeShownAlone(t *testing.T) {
	trace := made("root slow<root")
	trace.Spans = append(trace.Spans, tracestore.Span{ID: "aside", ParentID: "root", Name: "aside", Service: "s", Start: trace.Spans[1].Start, Duration: time.Millisecond})
	trace.Spans[0].Duration = 10 * time.Millisecond
	trace.Spans[1].Duration = 8 * time.Millisecond
	trace.Spans[1].Attributes = map[string]any{"url.path": "/api/v1/namespaces/shop/pods/web"}
	p := open(t, section(trace))
	p.equal(`[...document.querySelectorAll(".row.critical .text")].map(e => e.textContent).join()`, "root,slow")
	p.equal(`document.querySelectorAll("#trace-1-0 .path").length`, 2)
	p.equal(`document.querySelector("#trace-1-1 .object").textContent`, "pods/web in shop")
	opacity := `getComputedStyle(document.querySelector("#trace-1-2 .name")).opacity`
	p.equal(opacity, "1")
	p.click("[data-do=critical]")
	p.equal(opacity, "0.35")
	p.equal(`document.querySelector("[data-do=critical]").getAttribute("aria-pressed")`, "true")
	p.click("#trace-1-1 .text")
	p.equal(`document.querySelector(".details").innerText.includes("on the critical path\t8.00 ms") || document.querySelector(".details").innerText.includes("on the critical path\t8 ms")`, true)
	p.shot("critical")
	p.quiet()
}
