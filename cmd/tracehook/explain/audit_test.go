package explain

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// auditLine is a line of an audit log.
func auditLine(id, verb, name, at, more string) string {
	return fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":%q,"stage":"ResponseComplete","verb":%q,"user":{"username":"alice"},"userAgent":"kubectl/v1.36.3 (linux/amd64)",`+
		`"objectRef":{"resource":"deployments","apiGroup":"apps","namespace":"shop","name":%q},"responseStatus":{"code":200},"requestReceivedTimestamp":"2026-11-28T%s.000000Z","stageTimestamp":"2026-11-28T%[4]s.900000Z"%[5]s}`+"\n", id, verb, name, at, more)
}

var webQuery = AuditQuery{SpanIDs: []string{"2222222222222222"}, Objects: []AuditObject{{Resource: schema.GroupResource{Group: "apps", Resource: "deployments"}, Namespace: "shop", Name: "web"}}}

func TestOfAnAuditLogTheWritesThatAreLookedForAreKept(t *testing.T) {
	whole := auditLine("first", "create", "other", "09:00:00", "") +
		auditLine("get", "get", "web", "14:02:09", "") +
		auditLine("status", "patch", "web", "14:02:10", `,"objectRef":{"resource":"deployments","apiGroup":"apps","namespace":"shop","name":"web","subresource":"status"}`) +
		auditLine("denied", "patch", "web", "14:02:10", `,"responseStatus":{"code":403}`) +
		auditLine("early", "patch", "web", "14:02:10", `,"stage":"RequestReceived"`) +
		auditLine("by-name", "patch", "web", "14:02:11", "") +
		auditLine("by-span", "create", "", "14:02:12", `,"annotations":{"webhook.tracehook.dev/span-id":"2222222222222222"}`) +
		auditLine("last", "create", "other", "15:00:00", "")
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write([]byte(whole)); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	var list map[string]any
	if err := json.Unmarshal([]byte(`{"kind":"EventList","items":[`+strings.ReplaceAll(strings.TrimSpace(whole), "\n", ",")+`]}`), &list); err != nil {
		t.Fatal(err)
	}
	batch, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		log  string
		want string // audit ids
		odd  int
		cut  bool
		err  string
	}{
		"as it is written":         {log: whole, want: "by-name by-span"},
		"gzip'd":                   {log: zipped.String(), want: "by-name by-span"},
		"gzip'd and cut off":       {log: zipped.String()[:zipped.Len()-9], want: "by-name by-span", cut: true},
		"still being written":      {log: whole + auditLine("half", "patch", "web", "15:00:01", "")[:90], want: "by-name by-span", odd: 1},
		"without a last newline":   {log: strings.TrimSpace(whole), want: "by-name by-span"},
		"batches of a webhook":     {log: string(batch) + "\n", want: "by-name by-span"},
		"with a line of rubbish":   {log: `"web" is not JSON` + "\n" + whole, want: "by-name by-span", odd: 1},
		"with a very long line":    {log: auditLine("long", "create", "web", "08:00:00", `,"requestObject":{"data":"`+strings.Repeat("x", mostAuditLine)+`"}`) + whole, want: "by-name by-span", odd: 1},
		"empty":                    {},
		"in the format of before":  {log: "2026-11-28T10:00:00Z AUDIT: id=\"x\" name=\"web\"\n", err: "no audit events in JSON"},
		"another file altogether":  {log: "root:x:0:0\n", err: "no audit events in JSON"},
		"a gzip file without more": {log: "\x1f\x8b", err: "uncompress"},
	} {
		t.Run(name, func(t *testing.T) {
			var log AuditLog
			err := log.Add(strings.NewReader(test.log), webQuery)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range log.Events {
				got = append(got, e.AuditID)
			}
			if strings.Join(got, " ") != test.want || log.Odd != test.odd || log.Cut != test.cut {
				t.Errorf("found %v, %d odd, cut off: %t; want %s, %d, %t", got, log.Odd, log.Cut, test.want, test.odd, test.cut)
			}
			if test.want != "" && !test.cut && log.To.Format("15:04:05") != "15:00:00" {
				t.Errorf("the log ends at %s", log.To)
			}
		})
	}
}

func TestAuditLogsAreFoundByNameAndByPattern(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"audit.log": auditLine("new", "patch", "web", "14:02:11", ""), "audit-2026-11-28T13-00-00.000.log": auditLine("old", "create", "web", "10:00:00", "")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := ReadAudit([]string{filepath.Join(dir, "audit*.log"), "-"}, strings.NewReader(auditLine("piped", "patch", "web", "15:00:00", "")), webQuery)
	if err != nil || len(log.Events) != 3 {
		t.Errorf("%v, %+v", err, log)
	}
	if _, err := ReadAudit([]string{dir}, nil, webQuery); err == nil || !strings.Contains(err.Error(), "is a directory: name its files") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := ReadAudit([]string{filepath.Join(dir, "nowhere.log")}, nil, webQuery); err == nil {
		t.Error("a file that is not there is no error")
	}
}

func TestWhoSentARequestIsSaidOnlyWhereItIsCertain(t *testing.T) {
	at := time.Date(2026, 11, 28, 14, 2, 11, 204e6, time.UTC)
	object := webQuery.Objects[0]
	for name, test := range map[string]struct {
		log        string
		auditIDs   []string
		want       string // audit id and how it was found
		candidates int
	}{
		"the webhook's own note":              {auditLine("a", "patch", "web", "14:02:11", "") + auditLine("b", "patch", "web", "13:00:00", `,"annotations":{"x/span-id":"2222222222222222"}`), nil, "b span-id", 1},
		"the audit id of the trace":           {auditLine("a", "patch", "web", "14:02:11", "") + auditLine("b", "patch", "web", "14:02:11", ""), []string{"b"}, "b audit-id", 1},
		"the only write of the object then":   {auditLine("a", "patch", "web", "14:02:11", "") + auditLine("b", "patch", "web", "13:00:00", ""), nil, "a time", 1},
		"two writes of the object then":       {auditLine("a", "patch", "web", "14:02:11", "") + auditLine("b", "patch", "web", "14:02:12", ""), nil, "", 2},
		"a write of another object then":      {auditLine("a", "patch", "shop", "14:02:11", ""), nil, "", 0},
		"a log that begins after the request": {auditLine("a", "patch", "web", "15:00:00", ""), nil, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			var log AuditLog
			if err := log.Add(strings.NewReader(test.log), webQuery); err != nil {
				t.Fatal(err)
			}
			who, candidates := log.who(Cause{SpanID: "2222222222222222", At: &at}, object, test.auditIDs)
			got := ""
			if who != nil {
				got = who.AuditID + " " + who.By
			}
			if got != test.want || candidates != test.candidates {
				t.Errorf("%q of %d, want %q of %d", got, candidates, test.want, test.candidates)
			}
		})
	}
}

func FuzzAnyFileIsReadAsAnAuditLogOrRefused(f *testing.F) {
	f.Add([]byte(auditLine("a", "patch", "web", "14:02:11", "")))
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Add([]byte(`{"items":[{"auditID":"web","user":null,"annotations":{"/span-id":"x"}}]}` + "\n\n[]"))
	f.Fuzz(func(t *testing.T, file []byte) {
		var log AuditLog
		if err := log.Add(bytes.NewReader(file), webQuery); err != nil {
			return
		}
		log.who(Cause{}, webQuery.Objects[0], nil)
		if log.To.Before(log.From) || log.scope() == "" {
			t.Fatalf("%+v", log)
		}
	})
}

func TestOfTooManyWritesTheNewestAreKeptAndThoseOfTheCause(t *testing.T) {
	var log strings.Builder
	log.WriteString(auditLine("cause", "create", "web", "00:00:00", `,"annotations":{"webhook.tracehook.dev/span-id":"2222222222222222"}`))
	const writes = 2*mostAudited + 500
	for i := range writes {
		log.WriteString(auditLine(fmt.Sprint("w", i), "patch", "web", fmt.Sprintf("%02d:%02d:%02d", 1+i/3600, i/60%60, i%60), ""))
	}
	for name, files := range map[string][]string{"in one file": {log.String()}, "the newer file first": {log.String()[log.Len()/2+strings.IndexByte(log.String()[log.Len()/2:], '\n')+1:], log.String()[:log.Len()/2+strings.IndexByte(log.String()[log.Len()/2:], '\n')+1]}} {
		l := &AuditLog{}
		for _, file := range files {
			if err := l.Add(strings.NewReader(file), webQuery); err != nil {
				t.Fatal(err)
			}
		}
		if len(l.Events) != mostAudited || l.LeftOut != writes+1-mostAudited {
			t.Errorf("%s: %d kept and %d left out of %d", name, len(l.Events), l.LeftOut, writes+1)
		}
		if first, second, last := l.Events[0].AuditID, l.Events[1].AuditID, l.Events[len(l.Events)-1].AuditID; first != "cause" || second != fmt.Sprint("w", writes-mostAudited+1) || last != fmt.Sprint("w", writes-1) {
			t.Errorf("%s: kept are %s, %s … %s", name, first, second, last)
		}
	}
}
