// Package page opens the page of cmd/tracehook/report in a real Chromium and uses it as a reader does.
package page

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
	"github.com/tracehook/tracehook/e2e/internal/browser"
)

func TestThePageShowsARowForEverySpan(t *testing.T) {
	p := open(t, demo(t))
	p.equal(`document.querySelectorAll("#trace-1 .row[data-span]").length`, 22)
	p.equal(`document.querySelectorAll("#trace-2 .row[data-span]").length`, 20)
	p.equal(`[...document.querySelectorAll(".row[data-span]")].filter(r => !r.hidden && r.getBoundingClientRect().height < 20).length`, 0)
	p.equal(`document.querySelector("#trace-1-16 .name .text").textContent`, "POST /mutate")
	p.equal(`document.querySelector("#trace-1-16 .service").textContent.trim()`, "tracehook")
	p.equal(`document.querySelector("#trace-1-16 .duration").textContent`, "148 µs")
	p.equal(`document.querySelector("#trace-1-16").getAttribute("aria-level")`, "7") // the API server's filters are no levels

	// The bars are where the times are: the child within its parent, in the
	// service's colour.
	p.equal(`(() => {
		const box = (id) => document.querySelector(id + " .bar .span").getBoundingClientRect();
		const outer = box("#trace-1-0"), post = box("#trace-1-7"), webhook = box("#trace-1-16");
		const share = webhook.width / outer.width;
		return [post.left > outer.left && post.right <= outer.right + 1,
			webhook.left > post.left && webhook.right < post.right,
			Math.abs(share - 148 / 3943) < 0.005].join();
	})()`, "true,true,true")
	p.equal(`new Set(["#trace-1-0", "#trace-1-8", "#trace-1-16", "#trace-1-20"].map(
		(id) => getComputedStyle(document.querySelector(id + " .bar .own")).fill)).size`, 4)
	p.equal(`getComputedStyle(document.querySelector("#trace-1-20 .dot rect")).fill === getComputedStyle(document.querySelector("#trace-2-18 .dot rect")).fill`, true)

	// An error says so in words.
	p.equal(`document.querySelector("#trace-2 .row.failed .mark").textContent.trim()`, "✗ error")
	p.equal(`document.querySelector("#trace-2 .row.failed .message").textContent.includes("use SANs instead")`, true)
	p.equal(`document.querySelectorAll(".counters tbody tr").length`, 3)
	p.shot("light")
	p.quiet()
}

func TestAClickOpensTheDetailsOfASpan(t *testing.T) {
	p := open(t, demo(t))
	const webhook = "#trace-1-14" // Call mutating webhook
	p.click(webhook + " .text")
	p.equal(`document.querySelectorAll(".details").length`, 1)
	for _, text := range []string{
		"Call mutating webhook", "configuration", "trace-context.tracehook.dev", "Patch applied", "+588 µs",
		"k8s.io/component-base/tracing", "internal", "0af7651916cd43dd8448eb211c80319c", "service.name", "apiserver",
	} {
		p.equal(fmt.Sprintf(`document.querySelector("%s .details").innerText.includes(%q)`, webhook, text), true)
	}
	p.equal(fmt.Sprintf(`document.querySelector("%s .details").innerText.includes("subresource\tempty")`, webhook), true)
	p.shot("details")

	// Reading, selecting and copying must not close them.
	p.click(webhook + " .details h3")
	p.equal(`document.querySelectorAll(".details").length`, 1)
	p.click(webhook + " .duration")
	p.equal(`document.querySelectorAll(".details").length`, 0)

	// The other trace has its own data.
	p.click("#trace-2 .row.failed .text")
	p.equal(`document.querySelector("#trace-2 .details").innerText.includes("*tls.CertificateVerificationError")`, true)
	p.quiet()
}

func TestThePageWorksWithTheKeyboardAlone(t *testing.T) {
	p := open(t, demo(t))
	focused := `document.activeElement.id`
	// The sections' links and the buttons come first.
	for range 12 {
		p.press(key(kb.Tab))
		if p.text(focused) == "trace-1-0" {
			break
		}
	}
	p.equal(focused, "trace-1-0")
	p.equal(`getComputedStyle(document.activeElement).outlineStyle`, "solid")
	p.equal(`parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 2`, true)

	p.press(key(kb.ArrowDown))
	p.equal(focused, "trace-1-1")
	p.press(key(kb.ArrowLeft)) // folds HTTP GET
	p.equal(`document.activeElement.getAttribute("aria-expanded")`, "false")
	p.equal(`document.querySelectorAll("#trace-1 .row[data-span][hidden]").length`, 5+4)
	p.equal(`getComputedStyle(document.activeElement.querySelector(".below")).display !== "none" && document.activeElement.querySelector(".below").textContent`, "+5")
	p.press(key(kb.ArrowDown))
	p.equal(focused, "trace-1-7")
	p.press(key(kb.ArrowUp))
	p.press(key(kb.ArrowRight)) // unfolds …
	p.equal(`document.querySelectorAll("#trace-1 .row[data-span][hidden]").length`, 4+4)
	p.press(key(kb.ArrowRight)) // … and goes in
	p.equal(focused, "trace-1-2")
	p.press(key(kb.End))
	p.equal(focused, "trace-1-21")
	p.press(key(kb.ArrowDown))
	p.equal(focused, "trace-1-21")
	p.press(key(kb.ArrowLeft))
	p.equal(focused, "trace-1-13") // its parent

	p.press(key(kb.Enter))
	p.equal(`document.activeElement.querySelectorAll(".details").length`, 1)
	p.press(key(kb.Enter))
	p.equal(`document.activeElement.querySelectorAll(".details").length`, 0)
	before := p.text(`String(scrollY)`)
	p.press(' ')
	p.equal(`document.activeElement.querySelectorAll(".details").length`, 1)
	p.equal(`String(scrollY)`, before) // a space does not also scroll
	p.press(key(kb.Escape))
	p.equal(`document.activeElement.querySelectorAll(".details").length`, 0)
	p.press(key(kb.Home))
	p.equal(focused, "trace-1-0")

	// One Tab leaves the tree: to the next trace's part of the page.
	p.press(key(kb.Tab))
	p.equal(`document.activeElement.closest("#trace-1") === null`, true)

	// Folding what holds the focus moves the focus to what is still there.
	p.run(chromedp.Focus(chromedp.CSS("#trace-1-0")))
	p.press(key(kb.End))
	p.click("#trace-1 [data-do=collapse]")
	p.equal(`[...document.querySelectorAll("#trace-1 .row[data-span]")].filter(r => !r.hidden).length`, 1)
	p.equal(`document.querySelector("#trace-1 .row[tabindex='0']").id`, "trace-1-0")
	p.click("#trace-1 [data-do=expand]")
	p.equal(`document.querySelectorAll("#trace-1 .row[hidden]").length`, 0)
	p.quiet()
}

// What a screen reader is told, taken from the browser's accessibility tree.
func TestAScreenReaderFindsATreegrid(t *testing.T) {
	p := open(t, demo(t))
	seen, err := chromedp.Call(p.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		t.Fatal(err)
	}
	roles, rows := make(map[string]int), make(map[string]map[string]string)
	value := func(v *accessibility.Value) string {
		if v == nil {
			return ""
		}
		var decoded any
		if err := json.Unmarshal(v.Value, &decoded); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(decoded)
	}
	for _, n := range seen.Nodes {
		role := value(n.Role)
		roles[role]++
		if role == "row" {
			properties := make(map[string]string)
			for _, property := range n.Properties {
				properties[string(property.Name)] = value(property.Value)
			}
			rows[value(n.Name)] = properties
		}
	}
	if roles["treegrid"] != 2 {
		t.Errorf("%d treegrids, want 2", roles["treegrid"])
	}
	name := "tracehook: POST /mutate, server, 148 µs, starts at 1.78 ms, about configmaps/hello in default, on the critical path for 127 µs"
	row, found := rows[name]
	if !found {
		var names []string
		for n := range rows {
			names = append(names, n)
		}
		t.Fatalf("no row is called %q, but\n%s", name, strings.Join(names, "\n"))
	}
	if row["level"] != "7" || row["expanded"] != "true" || row["focusable"] != "true" {
		t.Errorf("the row's properties are %v, want level 7, expanded, focusable", row)
	}
	p.equal(`(() => {
		const r = document.querySelector("#trace-1-14");
		return [r.getAttribute("aria-posinset"), r.getAttribute("aria-setsize")].join(" of ");
	})()`, "1 of 3")
	p.equal(`document.querySelector("#trace-1-17").hasAttribute("aria-expanded")`, false) // a leaf folds nothing
	p.quiet()
}

func TestHostileTextStaysText(t *testing.T) {
	const script, image = `</script><script>window.hacked=1</script>`, `"><img src=x onerror="window.hacked=2">`
	hostile := made("a b<a")
	for i := range hostile.Spans {
		s := &hostile.Spans[i]
		s.Name, s.Service, s.Scope, s.Kind = script+image, image+script, script, image
		s.Status, s.StatusMessage = tracestore.StatusError, script+image
		s.Attributes = map[string]any{script + image: script + image, "__proto__": image, "separator": "\u2028<!--"}
		s.Events = []tracestore.Event{{Name: script + image, Time: s.Start, Attributes: map[string]any{image: script}}}
		s.Links = []tracestore.Link{{TraceID: script, SpanID: image}}
		s.Resource = map[string]any{image: script}
	}
	hostile.Spans[1].ID = image
	hostile.ID = image
	r := report.Report{
		Title: script + image, Summary: script + image, Facts: []report.Fact{{Name: script, Value: image}},
		Sections: []report.Section{{
			Heading: script + image, Text: script + image, Command: script, Output: image, Failed: true,
			Facts: []report.Fact{{Name: image, Value: script}}, Trace: &hostile,
			Counters: []report.Counter{{Name: script, Meaning: image}},
		}},
	}
	p := open(t, r)
	p.click("#trace-1-0 .text")
	p.click("#trace-1-1 .text")
	p.run(chromedp.Sleep(200 * time.Millisecond)) // an onerror would need a moment
	p.equal(`document.querySelectorAll(".details").length`, 2)
	p.equal(`typeof window.hacked`, "undefined")
	p.equal(`document.images.length`, 0)
	p.equal(`document.scripts.length`, 2)
	p.equal(fmt.Sprintf(`[...document.querySelectorAll("#trace-1-0 .details td")].filter(c => c.textContent === %q).length >= 2`, script+image), true)
	p.equal(fmt.Sprintf(`document.querySelector("h1").textContent === %q`, script+image), true)
	p.quiet()

	// Even if something got in, the policy would not run it.
	p.text(`document.body.append(Object.assign(document.createElement("script"), {textContent: "window.hacked = 3"})) || ""`)
	p.equal(`typeof window.hacked`, "undefined")
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.complaints) != 1 || !strings.Contains(p.complaints[0], "Content Security Policy") {
		t.Errorf("the browser should have complained once, of the policy: %q", p.complaints)
	}
}

func TestAPhoneHasNoSidewaysScrolling(t *testing.T) {
	p := open(t, demo(t), chromedp.EmulateViewport(360, 740, chromedp.EmulateScale(2), chromedp.EmulateMobile))
	p.click("#trace-1-8 .text") // the longest name
	p.click("#trace-2 .row.failed .text")
	p.equal(`innerWidth`, 360)
	p.equal(`document.scrollingElement.scrollWidth`, 360)
	p.equal(`[...document.querySelectorAll("body *")].filter(e => !e.closest(".defs, thead") && e.getBoundingClientRect().right > 361).map(e => e.outerHTML.slice(0, 80)).join("\n")`, "")
	// The bar is below the name, and the name is all there.
	p.equal(`(() => {
		const box = (q) => document.querySelector(q).getBoundingClientRect();
		return box("#trace-1-8 .bar").top >= box("#trace-1-8 .name").bottom - 1;
	})()`, true)
	p.equal(`(() => { const e = document.querySelector("#trace-1-8 .text"); return e.scrollWidth <= e.clientWidth + 1; })()`, true)
	// Fingers need room.
	p.equal(`[...document.querySelectorAll(".row[data-span]")].filter(r => !r.hidden && r.getBoundingClientRect().height < 44).length`, 0)
	p.shot("phone")
	p.quiet()
}

func TestThePageFollowsTheColourScheme(t *testing.T) {
	p := open(t, demo(t))
	scheme := func(media, value string) {
		if _, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Media: media, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	// How light something is, from 0 to 255.
	lightness := func(selector, property string) string {
		return fmt.Sprintf(`(() => {
			const [r, g, b] = getComputedStyle(document.querySelector(%q))[%q].match(/[\d.]+/g).map(Number);
			return 0.2126 * r + 0.7152 * g + 0.0722 * b;
		})()`, selector, property)
	}
	scheme("screen", "light")
	p.equal(lightness("body", "backgroundColor")+" > 230", true)
	p.equal(lightness("body", "color")+" < 60", true)
	scheme("screen", "dark")
	p.equal(lightness("body", "backgroundColor")+" < 40", true)
	p.equal(lightness(".trace", "backgroundColor")+" < 50", true)
	p.equal(lightness("body", "color")+" > 200", true)
	p.click("#trace-1-16 .text")
	p.shot("dark")

	// On paper it is light, whatever the screen is.
	scheme("print", "dark")
	p.equal(lightness("body", "backgroundColor")+" > 250", true)
	p.equal(`getComputedStyle(document.querySelector(".tools")).display`, "none")
	p.quiet()
}

func TestHundredsOfSpansStayUsable(t *testing.T) {
	var spans []string
	for i := range 800 { // twenty branches, each forty deep
		parent := fmt.Sprintf("<s%d", i-1)
		switch {
		case i == 0:
			parent = ""
		case i%40 == 0:
			parent = "<s0"
		}
		spans = append(spans, fmt.Sprintf("s%d%s", i, parent))
	}
	many := made(strings.Join(spans, " "))
	p := open(t, report.Report{Title: "Many", Sections: []report.Section{{Trace: &many}}})
	p.equal(`document.querySelectorAll(".row[data-span]").length`, 800)
	p.equal(`document.scrollingElement.scrollWidth <= innerWidth`, true)
	p.equal(`Math.max(...[...document.querySelectorAll(".row[data-span]")].map(r => r.getAttribute("aria-level"))) > 30`, true)
	p.equal(`[...document.querySelectorAll(".row[data-span]")].filter(r =>
		r.querySelector(".text").getBoundingClientRect().right > r.querySelector(".service").getBoundingClientRect().left).length`, 0)
	p.run(chromedp.Focus(chromedp.CSS("#trace-1-0")))
	p.press(key(kb.End))
	p.press(key(kb.Enter))
	p.equal(`document.querySelector("#trace-1-799 .details") !== null`, true)
	// The quickest of five, because others use this machine too.
	took, err := chromedp.Run(p.ctx, chromedp.Evaluate[float64](`Math.min(...[1, 2, 3, 4, 5].map(() => {
		const began = performance.now();
		document.querySelector("[data-do=collapse]").click();
		document.querySelector("[data-do=expand]").click();
		document.body.getBoundingClientRect();
		return performance.now() - began;
	}))`))
	if err != nil {
		t.Fatal(err)
	}
	if took > 1000 {
		t.Errorf("folding and unfolding 800 spans took %.0f ms, want less than a second", took)
	}
	p.quiet()
}

// pageUnderTest is a report in a browser of its own.
type pageUnderTest struct {
	*testing.T
	ctx  context.Context
	file string

	mu         sync.Mutex
	complaints []string // console, exceptions, log
	requests   []string
}

// open writes the report to a file and opens it in headless Chromium. before
// runs ahead of the page.
func open(t *testing.T, r report.Report, before ...chromedp.Action[chromedp.Void]) *pageUnderTest {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trace.html")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := report.HTML(f, r); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	return browse(t, (&url.URL{Scheme: "file", Path: path}).String(), before...)
}

// browse opens an address in headless Chromium.
func browse(t *testing.T, address string, before ...chromedp.Action[chromedp.Void]) *pageUnderTest {
	t.Helper()
	// Not the test's own context, which ends before the browser is closed below.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	path, err := browser.Find()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = chromedp.NewExecAllocator(ctx, browser.Options(path, t.TempDir(), 1400, 1000)...)
	t.Cleanup(cancel)
	p := &pageUnderTest{T: t, file: address}
	p.ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(p.listen))
	// Runs first: the browser must be gone before its directory is removed.
	t.Cleanup(func() {
		if err := chromedp.Cancel(p.ctx); err != nil {
			t.Errorf("close the browser: %v", err)
		}
		cancel()
	})
	enable(p, network.Enable, network.EnableParams{})
	enable(p, log.Enable, cdp.Empty{})
	enable(p, runtime.Enable, cdp.Empty{})
	p.run(before...)
	p.run(chromedp.Navigate(p.file), chromedp.WaitReady(chromedp.CSS("body")))
	return p
}

// enable makes the browser report the events of a domain.
func enable[P, R any](p *pageUnderTest, command cdp.Command[P, R], params P) {
	p.Helper()
	if _, err := chromedp.Call(p.ctx, command, params); err != nil {
		p.Fatalf("%s: %v", command.Method, err)
	}
}

func (p *pageUnderTest) listen(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		var texts []string
		for _, a := range e.Args {
			texts = append(texts, string(a.Value)+a.Description)
		}
		p.complaints = append(p.complaints, fmt.Sprintf("console.%s: %s", e.Type, strings.Join(texts, " ")))
	case *runtime.EventExceptionThrown:
		p.complaints = append(p.complaints, "exception: "+exceptionText(e.ExceptionDetails))
	case *log.EventEntryAdded:
		p.complaints = append(p.complaints, fmt.Sprintf("log %s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, e.Request.URL)
	}
}

func exceptionText(d *runtime.ExceptionDetails) string {
	if d.Exception != nil {
		return d.Text + " " + d.Exception.Description
	}
	return d.Text
}

// quiet fails if the page has complained of anything or asked for anything but itself.
func (p *pageUnderTest) quiet() {
	p.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.complaints {
		p.Errorf("the browser says: %s", c)
	}
	own := 0
	for _, r := range p.requests {
		switch {
		case r == p.file:
			own++
		case strings.HasPrefix(r, "data:"):
		default:
			p.Errorf("the page asked for %s", r)
		}
	}
	if own != 1 {
		p.Errorf("%d requests for the page itself were seen, want 1: %v", own, p.requests)
	}
}

func (p *pageUnderTest) run(actions ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.Fatalf("drive the browser: %v", err)
	}
}

func (p *pageUnderTest) click(selector string) {
	p.Helper()
	p.run(chromedp.Click(chromedp.CSS(selector)))
}

// press does what a keyboard does: the character is part of the key going down,
// so that a page that takes the key keeps the browser from acting on it too.
// (chromedp.KeyEvent sends the character by itself, and a space then scrolls.)
func (p *pageUnderTest) press(key rune) {
	p.Helper()
	events := kb.Encode(key)
	down, up := *events[0], *events[len(events)-1]
	if len(events) == 3 {
		down.Text, down.UnmodifiedText = events[1].Text, events[1].UnmodifiedText
	}
	for _, e := range []input.DispatchKeyEventParams{down, up} {
		if _, err := chromedp.Call(p.ctx, input.DispatchKeyEvent, e); err != nil {
			p.Fatalf("press a key: %v", err)
		}
	}
}

// key is the one rune of which chromedp's names for keys consist.
func key(name string) rune { return []rune(name)[0] }

func (p *pageUnderTest) text(expression string) string {
	p.Helper()
	got, err := chromedp.Run(p.ctx, chromedp.Evaluate[any](expression))
	if err != nil {
		p.Fatalf("evaluate %s: %v", expression, err)
	}
	return fmt.Sprint(got)
}

// equal evaluates a JavaScript expression.
func (p *pageUnderTest) equal(expression string, want any) {
	p.Helper()
	if got := p.text(expression); got != fmt.Sprint(want) {
		p.Errorf("%s\n\tis %s\n\twant %v", expression, got, want)
	}
}

// shot takes a picture of the whole page for whoever runs the tests with -screenshots.
func (p *pageUnderTest) shot(name string) {
	p.Helper()
	if *screenshots == "" {
		return
	}
	p.text(`scrollTo(0, 0) || ""`)
	png, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		p.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o644); err != nil {
		p.Fatal(err)
	}
}
