package explain

// The API server's audit log. In: its files, and what is looked for. Out: the events about it. Errors: a file that cannot be
// read, or holds no audit events. A log may be huge, compressed, cut off or still being written: it is read once, line by
// line, in bounded memory.

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// Bounds of what is kept of an audit log.
const (
	mostAuditLine = 16 << 20 // bytes; an object of etcd's 1.5 MiB is there twice at most, escaped
	mostAudited   = 10_000   // events
)

// AuditQuery is what is looked for: an event that has one of these.
type AuditQuery struct {
	SpanIDs  []string // as tracehook's audit annotation <webhook name>/span-id has them
	AuditIDs []string
	Objects  []AuditObject
}

// AuditObject is what a request wrote.
type AuditObject struct {
	Resource        schema.GroupResource
	Namespace, Name string
}

// AuditLog is what was found.
type AuditLog struct {
	Events []AuditEvent
	// From and To are the first and the last event's times; zero: there is none.
	From, To time.Time
	// LeftOut is how many events about the object are not kept: the oldest, and none that has a wanted id where there are others.
	LeftOut int
	// Odd are lines that are no events: cut off, or longer than 16 MiB.
	Odd int
	// Cut is true where a compressed file ends too early.
	Cut bool
}

// AuditEvent is a write that succeeded.
type AuditEvent struct {
	AuditID             string
	Verb                string
	User, Impersonated  string
	UserAgent           string
	Object              AuditObject
	Subresource         string
	Received, Completed time.Time
	SpanIDs             []string

	named bool // by an id that is looked for, not by the object's name alone
}

// Add reads one file of a log, gzip'd or not.
func (l *AuditLog) Add(file io.Reader, query AuditQuery) error {
	reader := bufio.NewReaderSize(file, 1<<16)
	if magic, _ := reader.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unzipped, err := gzip.NewReader(reader)
		if err != nil {
			return fmt.Errorf("uncompress the audit log: %w", err)
		}
		reader = bufio.NewReaderSize(unzipped, 1<<16)
	}
	needles := query.needles()
	lines, good := 0, 0
	var first, last []byte
	for {
		line, whole, err := readLine(reader)
		if whole && len(line) > 0 {
			if lines++; first == nil {
				first = bytes.Clone(line)
			}
			last = append(last[:0], line...)
			if slices.ContainsFunc(needles, func(n []byte) bool { return bytes.Contains(line, n) }) {
				if l.line(line, query) {
					good++
				} else {
					l.Odd++
				}
			}
		} else if len(line) > 0 || !whole && err == nil {
			l.Odd++
		}
		switch {
		case errors.Is(err, io.EOF):
			return l.ends(lines, good, first, last)
		case errors.Is(err, io.ErrUnexpectedEOF):
			l.Cut = true
			return l.ends(lines, good, first, last)
		case err != nil:
			return fmt.Errorf("read the audit log: %w", err)
		}
	}
}

// ends takes the times from the first and the last line, which need not be looked at otherwise.
func (l *AuditLog) ends(lines, good int, first, last []byte) error {
	l.keepNewest()
	known := false
	for _, line := range [][]byte{first, last} {
		for _, event := range eventsIn(line) {
			known = true
			if at := event.RequestReceivedTimestamp.Time; !at.IsZero() {
				if l.From.IsZero() || at.Before(l.From) {
					l.From = at
				}
				if at.After(l.To) {
					l.To = at
				}
			}
		}
	}
	if lines > 0 && !known && good == 0 {
		return errors.New("read the audit log: its lines are no audit events in JSON (--audit-log-format=json of kube-apiserver)")
	}
	return nil
}

// readLine returns a line without its end. whole is false for what is longer than mostAuditLine, and for what the file ends in.
func readLine(r *bufio.Reader) (line []byte, whole bool, err error) {
	tooLong := false
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > mostAuditLine {
			tooLong, line = true, nil
		}
		if !tooLong {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			line = bytes.TrimSpace(line)
			return line, !tooLong && json.Valid(line), err // the last line of a file may have no end
		}
		return bytes.TrimSpace(line), !tooLong, nil
	}
}

// eventsIn reads a line: an event, or what the API server sends to a webhook, a list of them.
func eventsIn(line []byte) []auditv1.Event {
	var list struct {
		auditv1.Event
		Items []auditv1.Event `json:"items"`
	}
	if json.Unmarshal(line, &list) != nil {
		return nil
	}
	if list.AuditID != "" {
		list.Items = append(list.Items, list.Event)
	}
	return list.Items
}

// line keeps what is looked for, and says whether the line holds events.
func (l *AuditLog) line(line []byte, query AuditQuery) bool {
	events := eventsIn(line)
	for _, e := range events {
		event, ok := auditedWrite(e)
		if !ok {
			continue
		}
		if event.named = query.names(event); event.named || event.Subresource == "" && slices.Contains(query.Objects, event.Object) {
			l.Events = append(l.Events, event)
		}
	}
	if len(l.Events) >= 2*mostAudited { // seldom: it sorts
		l.keepNewest()
	}
	return len(events) > 0
}

// keepNewest drops the oldest events that are too many, those that a wanted id names last.
func (l *AuditLog) keepNewest() {
	if len(l.Events) <= mostAudited {
		return
	}
	slices.SortStableFunc(l.Events, func(a, b AuditEvent) int {
		if a.named != b.named {
			if a.named {
				return 1
			}
			return -1
		}
		return a.Received.Compare(b.Received)
	})
	l.LeftOut += len(l.Events) - mostAudited
	l.Events = slices.Clone(l.Events[len(l.Events)-mostAudited:])
	slices.SortStableFunc(l.Events, func(a, b AuditEvent) int { return a.Received.Compare(b.Received) })
}

// auditedWrite is a request that was carried out and over.
func auditedWrite(e auditv1.Event) (AuditEvent, bool) {
	switch e.Verb {
	case "create", "update", "patch":
	default:
		return AuditEvent{}, false
	}
	if e.Stage != auditv1.StageResponseComplete || e.ResponseStatus != nil && e.ResponseStatus.Code >= 300 || e.ObjectRef == nil {
		return AuditEvent{}, false
	}
	event := AuditEvent{
		AuditID: string(e.AuditID), Verb: e.Verb, User: e.User.Username, UserAgent: e.UserAgent,
		Object:      AuditObject{Resource: schema.GroupResource{Group: e.ObjectRef.APIGroup, Resource: e.ObjectRef.Resource}, Namespace: e.ObjectRef.Namespace, Name: e.ObjectRef.Name},
		Subresource: e.ObjectRef.Subresource, Received: e.RequestReceivedTimestamp.Time, Completed: e.StageTimestamp.Time,
	}
	if e.ImpersonatedUser != nil {
		event.Impersonated = e.ImpersonatedUser.Username
	}
	for key, value := range e.Annotations {
		if strings.HasSuffix(key, "/span-id") {
			event.SpanIDs = append(event.SpanIDs, value)
		}
	}
	return event, true
}

// needles are what a line must hold to be looked at: reading JSON takes a hundred times as long.
func (q AuditQuery) needles() [][]byte {
	var needles [][]byte
	for _, text := range slices.Concat(q.SpanIDs, q.AuditIDs) {
		needles = append(needles, []byte(text))
	}
	for _, o := range q.Objects {
		needles = append(needles, []byte(`"`+o.Name+`"`))
	}
	return needles
}

// names says whether a wanted id is the event's.
func (q AuditQuery) names(e AuditEvent) bool {
	return slices.ContainsFunc(e.SpanIDs, func(id string) bool { return slices.Contains(q.SpanIDs, id) }) || slices.Contains(q.AuditIDs, e.AuditID)
}

// AuditQuery is what an audit log could tell about the object.
func (k Known) AuditQuery() AuditQuery {
	var q AuditQuery
	for _, link := range k.Chain {
		if link.Object == nil {
			continue
		}
		if s, _ := stampOf(link.Object, k.Keys); s.ok() {
			q.SpanIDs = append(q.SpanIDs, s.span.SpanID().String())
		}
		q.Objects = append(q.Objects, link.audited())
	}
	if k.Stored != nil {
		for _, facts := range k.Stored.Facts {
			if facts != nil && facts.AuditID != "" {
				q.AuditIDs = append(q.AuditIDs, facts.AuditID)
			}
		}
	}
	return q
}

// Merge is what two objects want to know.
func (q AuditQuery) Merge(other AuditQuery) AuditQuery {
	return AuditQuery{
		SpanIDs: slices.Concat(q.SpanIDs, other.SpanIDs), AuditIDs: slices.Concat(q.AuditIDs, other.AuditIDs), Objects: slices.Concat(q.Objects, other.Objects),
	}
}

func (l Link) audited() AuditObject {
	return AuditObject{Resource: l.Resource, Namespace: l.Ref.Namespace, Name: l.Ref.Name}
}

// who finds the request of a cause, which object was written by. Of several that may be it by their time none is, and their
// number is returned.
func (l *AuditLog) who(c Cause, object AuditObject, auditIDs []string) (who *Who, candidates int) {
	told := func(e AuditEvent, by string) *Who {
		return &Who{User: e.User, Impersonated: e.Impersonated, UserAgent: e.UserAgent, Verb: e.Verb, AuditID: e.AuditID, By: by}
	}
	for _, e := range l.Events {
		if slices.Contains(e.SpanIDs, c.SpanID) {
			return told(e, "span-id"), 1
		}
	}
	for _, e := range l.Events {
		if slices.Contains(auditIDs, e.AuditID) && e.Object == object {
			return told(e, "audit-id"), 1
		}
	}
	// A cause is stored while its request is under way, by another machine's clock.
	for _, e := range l.Events {
		if e.Object != object || e.Subresource != "" || c.At == nil ||
			c.At.Before(e.Received.Add(-mostApart)) || c.At.After(e.Completed.Add(mostApart)) {
			continue
		}
		if candidates++; candidates == 1 {
			who = told(e, "time")
		} else {
			who = nil
		}
	}
	return who, candidates
}

// created is when the request that created an object came in, by an audit log; nil: it does not say.
func (l *AuditLog) created(object AuditObject, created time.Time) *time.Time {
	for _, e := range l.Events {
		if e.Object == object && e.Verb != "update" && e.Subresource == "" && e.Received.Sub(created).Abs() <= mostApart {
			return &e.Received
		}
	}
	return nil
}

// scope says what the log could have told.
func (l *AuditLog) scope() string {
	text := "it holds no event"
	if !l.From.IsZero() {
		const layout = "2006-01-02 15:04:05"
		text = "it tells of " + l.From.UTC().Format(layout) + " to " + l.To.UTC().Format(layout) + " UTC, and a policy may leave requests out"
	}
	if l.Cut {
		text += "; a file of it is cut off"
	}
	if l.Odd > 0 {
		text += fmt.Sprintf("; %d lines of it could not be read", l.Odd)
	}
	return text
}

// ReadAudit reads the files of a log: of each path, which may be a pattern such as audit*.log*, or - for stdin.
func ReadAudit(paths []string, stdin io.Reader, query AuditQuery) (*AuditLog, error) {
	log := &AuditLog{}
	for _, path := range paths {
		if path == "-" {
			if err := log.Add(stdin, query); err != nil {
				return nil, fmt.Errorf("stdin: %w", err)
			}
			continue
		}
		files := []string{path}
		if _, err := os.Stat(path); err != nil {
			if matches, _ := filepath.Glob(path); len(matches) > 0 {
				files = matches
			}
		}
		for _, file := range files {
			if err := log.addFile(file, query); err != nil {
				return nil, err
			}
		}
	}
	return log, nil
}

func (l *AuditLog) addFile(path string, query AuditQuery) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory: name its files, as in %s", path, filepath.Join(path, "audit*.log*"))
	}
	if err := l.Add(file, query); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
