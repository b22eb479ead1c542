package main

// The end. In: the report. Out: trace.html, trace.json and report.md, page.png where there is
// Chromium, and with KEEP=1 how to go on by hand. Errors: files that cannot be written.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/tracehook/tracehook/cmd/tracehook/report"
	"github.com/tracehook/tracehook/e2e/internal/browser"
)

func publish(ctx context.Context, s *stage, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return fmt.Errorf("make the directory of the report: %w", err)
	}
	s.heading("The report")
	for _, file := range []struct {
		name  string
		write func(io.Writer, report.Report) error
		what  string
	}{
		{"trace.html", report.HTML, "open it in a browser: every span, its attributes and events"},
		{"trace.json", report.JSON, "the same as data"},
		{"report.md", report.Markdown, "the same to read and to share"},
	} {
		path := filepath.Join(out, file.name)
		if err := write(path, s.report, file.write); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		s.say("%-24s %s", path, file.what)
	}
	return s.picture(ctx, filepath.Join(out, "trace.html"), filepath.Join(out, "page.png"))
}

// toPicture has the trace of the section with a heading at the top, and what kubectl only
// read folded.
const toPicture = `(heading => {
	const h = [...document.querySelectorAll("h2")].find(h => h.textContent === heading);
	const trace = h?.closest("section").querySelector(".trace");
	if (!trace) return false;
	for (const row of trace.querySelectorAll(".row[aria-level='2'][aria-expanded=true]")) {
		if (row.querySelector(".text").textContent.startsWith("GET ")) row.querySelector(".fold").click();
	}
	document.activeElement.blur();
	scrollTo(0, trace.getBoundingClientRect().top + scrollY - 8);
	return true;
})(%q)`

// picture takes a picture of the page, in light colours, with the trace of the section s.shot.
// Where there is no Chromium there is no picture.
func (s *stage) picture(ctx context.Context, page, to string) (err error) {
	chromium, err := browser.Find()
	if err != nil {
		s.say("%-24s not made: %v", to, err)
		return nil
	}
	if page, err = filepath.Abs(page); err != nil {
		return fmt.Errorf("find the page: %w", err)
	}
	profile, err := os.MkdirTemp("", "tracehook-demo-")
	if err != nil {
		return fmt.Errorf("make a profile for Chromium: %w", err)
	}
	defer os.RemoveAll(profile)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	const width, height = 1400, 1080
	ctx, cancel = chromedp.NewExecAllocator(ctx, browser.Options(chromium, profile, width, height)...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	defer func() { err = errors.Join(err, chromedp.Cancel(ctx)) }() // it is gone before its profile is
	at := (&url.URL{Scheme: "file", Path: page}).String()
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(width, height), chromedp.Navigate(at), chromedp.WaitReady(chromedp.CSS("body"))); err != nil {
		return fmt.Errorf("open the page in Chromium: %w", err)
	}
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media: "screen", Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "light"}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	}); err != nil {
		return fmt.Errorf("have the page light and still: %w", err)
	}
	found, err := chromedp.Run(ctx, chromedp.Evaluate[bool](fmt.Sprintf(toPicture, s.shot)))
	if err != nil {
		return fmt.Errorf("look for %q on the page: %w", s.shot, err)
	}
	if !found {
		return fmt.Errorf("look for %q on the page: it has no such trace", s.shot)
	}
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		return fmt.Errorf("take a picture of the page: %w", err)
	}
	if err := os.WriteFile(to, png, 0o644); err != nil {
		return fmt.Errorf("write the picture: %w", err)
	}
	s.say("%-24s a picture of it", to)
	return nil
}

func write(path string, r report.Report, content func(io.Writer, report.Report) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := content(file, r); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

func (s *stage) explainHowToGoOn() {
	s.heading("Everything is left running until Ctrl-C")
	s.say(`
  export KUBECONFIG=%s
  export PATH=%s:$PATH
  export OTEL_EXPORTER_OTLP_ENDPOINT=http://%s OTEL_EXPORTER_OTLP_PROTOCOL=grpc
  export TRACEHOOK_STORE=jaeger=%s
  tracehook trace -- kubectl create configmap mine

  Jaeger             %[4]s   (its query API; a Jaeger built from source has no web interface)
  Collector zpages   %[5]s
  tracehook metrics  %[6]s
  logs               %[7]s`,
		s.cluster.Kubeconfig, filepath.Dir(s.tracehook), s.cluster.CollectorGRPC, s.cluster.JaegerURL,
		s.cluster.ZPagesURL, s.webhook.MetricsURL, s.cluster.Logs)
}
