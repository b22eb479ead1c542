package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The servers are this program again, which here is the test.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && (os.Args[1] == "serve" || os.Args[1] == "sink") {
		if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestAShortRunMeasuresEveryVariant(t *testing.T) {
	out := t.TempDir()
	var terminal bytes.Buffer
	if err := run(t.Context(), []string{"-duration", "3s", "-rounds", "1", "-out", out}, nil, &terminal); err != nil {
		t.Fatalf("%v\n%s", err, &terminal)
	}
	table, err := os.ReadFile(filepath.Join(out, "table.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range variants {
		if !strings.Contains(string(table), "\n| "+v.name+" | ") {
			t.Errorf("no row %q in\n%s", v.name, table)
		}
	}
	if _, err := os.Stat(filepath.Join(out, "plot.svg")); err != nil {
		t.Error(err)
	}
}

func TestRowsAreMediansAndRatiosWithinARound(t *testing.T) {
	// Everything takes twice the time in the second of three rounds.
	rounds := func(cpu time.Duration, spans, lost int64) []round {
		var all []round
		for _, slow := range []time.Duration{1, 2, 1} {
			r := round{elapsed: slow * time.Second, before: reading{CPU: time.Hour, Mallocs: 7}}
			for i := range 100 {
				r.took = append(r.took, slow*time.Duration(100-i)*time.Millisecond)
			}
			r.after = reading{CPU: time.Hour + 100*slow*cpu, Mallocs: 7 + 4200, Bytes: 100, Spans: spans, Lost: lost}
			all = append(all, r)
		}
		return all
	}
	measured := make([][]round, len(variants))
	for i, v := range variants {
		switch v.name {
		case nullName:
			measured[i] = rounds(20*time.Microsecond, 0, 0)
		case usualName:
			measured[i] = rounds(600*time.Microsecond, 0, 0)
		default:
			measured[i] = rounds(30*time.Microsecond, 200, 50)
		}
	}
	for _, got := range summarize(measured) {
		if got.name != sampledName {
			continue
		}
		want := row{name: sampledName, perSecond: 100, cpu: 30 * time.Microsecond, timesNull: 1.5, cheaper: 20,
			p50: 50 * time.Millisecond, p99: 99 * time.Millisecond, allocs: 42, bytes: 1, spans: 2, lost: .25}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		return
	}
	t.Errorf("no row %q", sampledName)
}

func TestThePlotIsXMLAndNamesEveryRow(t *testing.T) {
	var rows []row
	for i, v := range variants {
		rows = append(rows, row{name: v.name + " <&>", cpu: time.Duration(i) * time.Microsecond, p99: time.Duration(i) * time.Millisecond})
	}
	decoder := xml.NewDecoder(bytes.NewReader(plot(rows, conditions{machine: "a <fast> one"})))
	var text strings.Builder
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if data, ok := token.(xml.CharData); ok {
			text.Write(data)
		}
	}
	for _, r := range rows {
		if n := strings.Count(text.String(), r.name); n != 2 {
			t.Errorf("%q is in the plot %d times, want 2", r.name, n)
		}
	}
}

func TestAWrongAnswerEndsTheRun(t *testing.T) {
	right := `{"response":{"uid":"` + reviewUID + `","allowed":true}}`
	for name, c := range map[string]struct {
		answer string
		want   string // "": none
	}{
		"allowed":         {"HTTP/1.1 200 OK\r\nContent-Length: " + "73" + "\r\n\r\n" + right, ""},
		"refused":         {"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", `the answer is "HTTP/1.1 400 Bad Request"`},
		"without length":  {"HTTP/1.1 200 OK\r\n\r\n", "no Content-Length"},
		"another request": {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not the answer to this review: {}"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAnswerReader(strings.NewReader(c.answer), false)
			err := a.read()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
