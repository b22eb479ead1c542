package explain

// Everything that was read, in one story. In: Known. Out: a Story. Pure, and total: whatever objects hold, it has an answer.

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/tracehook/tracehook/webhook/cause"
	"github.com/tracehook/tracehook/webhook/cause/lifecycle"
)

// Join tells the story of the object that was read.
func Join(k Known) Story {
	s := Story{
		TypeMeta: metav1.TypeMeta{APIVersion: APIVersion, Kind: KindExplanation},
		Object:   k.Chain[0].Ref,
		Causes:   []Cause{},
		Chain:    []Step{},
	}
	object := k.Chain[0].Object
	s.Written = writersOf(object)
	s.Events = eventsOf(k.Events[object.GetUID()])
	j := joiner{Known: k, Story: &s}
	j.chain()
	j.traces()
	j.who()
	j.slowest()
	j.made()
	j.notKnown()
	return s
}

type joiner struct {
	Known
	*Story
	stamps []stamp // of Chain, from the first owner on
	links  []Link  // Chain, from the first owner on
	later  []bool  // an owner has been changed since it made what comes below it
}

// chain goes from the first owner down to the object.
func (j *joiner) chain() {
	j.links = slices.Clone(j.Known.Chain)
	slices.Reverse(j.links)
	for _, link := range j.links {
		var s stamp
		if link.Object != nil {
			var err error
			if s, err = stampOf(link.Object, j.Keys); errors.Is(err, cause.ErrInvalid) {
				j.note("%s %s: what stands in its annotation is no trace context (%v)", link.Ref.Kind, link.Ref.Name, err)
			}
		}
		j.stamps = append(j.stamps, s)
	}
	// A cause of an owner's counts only if what it owns is not older than it.
	j.later = make([]bool, len(j.links))
	for i := range j.links {
		below := i + 1
		for below < len(j.links) && !j.stamps[below].ok() {
			below++
		}
		j.later[i] = below < len(j.links) && j.stamps[i].ok() && j.changedSince(i, below)
	}
	for i, link := range j.links {
		step := Step{Ref: link.Ref, Cause: len(j.Causes) - 1}
		s := j.stamps[i]
		switch {
		case link.Object == nil && (errors.Is(link.Err, errGone) || errors.Is(link.Err, errOther)):
			step.Change = ChangeGone
			j.note("%s %s, its owner: %v", link.Ref.Kind, link.Ref.Name, link.Err)
		case link.Object == nil:
			step.Change = ChangeUnread
			j.unknown(fmt.Sprintf("the owner %s %s", link.Ref.Kind, link.Ref.Name), whyUnread(link.Err))
		case j.later[i]:
			step.Change, step.Since = ChangeChangedSince, j.causeOf(i)
		case !s.ok():
			step.Change = ChangeCreated
		case len(j.Causes) > 0 && j.Causes[len(j.Causes)-1].TraceID == s.traceID():
			step.Change = ChangeCreated
			if j.links[i].Object.GetCreationTimestamp().Add(mostApart).Before(timeOf(j.Causes[len(j.Causes)-1].At)) {
				step.Change = ChangeChanged // it was there before its owner was changed
			}
		default:
			step.Change = j.begin(i)
			step.Cause = len(j.Causes) - 1
		}
		if link.Object != nil {
			created := link.Object.GetCreationTimestamp().UTC()
			step.Created = &created
			b := becameOf(link.Object, j.Known.Events[link.Object.GetUID()], s.at)
			step.Stages, step.State, step.Failing = b.stages, b.state, b.failing
			if step.Change == ChangeCreated && step.Cause >= 0 {
				step.AfterSeconds = new(max(0, created.Sub(j.Causes[step.Cause].At.Truncate(time.Second)).Seconds()))
			}
		}
		if len(link.Others) > 0 {
			j.note("%s %s has further owners: %s", link.Ref.Kind, link.Ref.Name, strings.Join(link.Others, ", "))
		}
		if !link.Controller {
			j.note("%s %s is an owner of %s, and not its controller: a cause is not handed down from there", link.Ref.Kind, link.Ref.Name, j.links[i+1].Ref.Name)
		}
		j.Story.Chain = append(j.Story.Chain, step)
	}
	// The cause that an owner had before, or that nobody can read, is that of what comes below it.
	for i := range j.Story.Chain {
		step := &j.Story.Chain[i]
		if step.Cause < 0 && len(j.Causes) > 0 && j.Causes[0].Why == "" && (step.Change == ChangeChangedSince || j.links[i].Object == nil) {
			step.Cause = 0
		}
	}
}

// changedSince says whether the owner's cause came after the one that its child carries.
func (j *joiner) changedSince(owner, child int) bool {
	o, c := j.stamps[owner], j.stamps[child]
	switch {
	case o.traceID() == c.traceID():
		return false
	case o.previous.TraceID() == c.span.TraceID():
		return true
	case o.at.IsZero():
		return false
	case !c.at.IsZero():
		return o.at.After(c.at)
	}
	return o.at.After(j.links[child].Object.GetCreationTimestamp().Add(time.Second))
}

// begin adds the cause that an object brings in, and says what it did to the object.
func (j *joiner) begin(i int) Change {
	c := j.causeOf(i)
	change := ChangeCreated
	// An owner that has been changed since may still know who wrote what this object was made for.
	if i > 0 && j.later[i-1] && j.links[i-1].Ref.Kind != "CronJob" && c.Exact {
		if r := requestOf(j.links[i-1].Object, *c.At, c.PreviousTraceID != ""); r != nil {
			c.Request = r
			j.Causes = append(j.Causes, *c)
			return ChangeCreated
		}
	}
	created := j.links[i].Object.GetCreationTimestamp().Time
	if c.PreviousTraceID != "" || c.Exact && created.Add(mostApart).Before(*c.At) {
		change = ChangeChanged
	}
	if i > 0 && change == ChangeCreated && (j.links[i-1].Object != nil || j.links[i-1].Ref.Kind == "CronJob") {
		owner := j.links[i-1].Ref.Kind
		c.Why = whyMade(j.links[i-1], j.links[i].Object)
		if before := j.stamps[i-1].at; owner != "CronJob" && c.Exact && !before.IsZero() && c.At.Sub(before) > time.Minute {
			c.Why += ", " + durationText(c.At.Sub(before)) + " later"
		}
	}
	if c.Exact && c.At.Before(created.Add(-mostApart)) {
		// A cause that is older than the object was handed down to it, or chosen by whoever made it.
		j.note("%s %s was created %s after its cause was stored", j.links[i].Ref.Kind, j.links[i].Ref.Name, durationText(created.Sub(*c.At)))
	}
	j.Causes = append(j.Causes, *c)
	return change
}

// causeOf is what an object carries.
func (j *joiner) causeOf(i int) *Cause {
	s, object := j.stamps[i], j.links[i].Object
	c := &Cause{TraceID: s.traceID(), SpanID: s.span.SpanID().String(), Sampled: s.span.IsSampled()}
	at := s.at
	if c.Exact = !at.IsZero(); !c.Exact {
		at = object.GetCreationTimestamp().UTC()
	}
	c.At = &at
	c.Request = requestOf(object, at, s.previous.IsValid())
	if s.previous.IsValid() {
		c.PreviousTraceID = s.previous.TraceID().String()
	}
	return c
}

// whyMade says why a controller made an object that does not continue its owner's cause, as webhook/doc.go has it.
func whyMade(owner Link, object *unstructured.Unstructured) string {
	of := " of " + owner.Ref.Kind + " " + owner.Ref.Name
	if object.GetAnnotations()["cronjob.kubernetes.io/instantiate"] == "manual" {
		return "made by hand" + of
	}
	if owner.Ref.Kind != "CronJob" {
		return "made by the controller" + of
	}
	if owner.Object != nil {
		if schedule, _, _ := unstructured.NestedString(owner.Object.Object, "spec", "schedule"); schedule != "" {
			return fmt.Sprintf("schedule %q", schedule) + of
		}
	}
	return "schedule" + of
}

// traces adds what the store knows.
func (j *joiner) traces() {
	if j.Stored == nil {
		if len(j.Causes) > 0 {
			j.unknown(byStore, "no trace store given (--store)")
		}
		return
	}
	for i := range j.Causes {
		c := &j.Causes[i]
		if c.Trace = j.Stored.Facts[factsKey(c.TraceID, c.SpanID)]; c.Trace != nil && c.Trace.Command == "" {
			j.unknown("the command", "trace "+c.TraceID+" has none: only `tracehook trace` names commands")
		}
	}
	for i := range j.Story.Chain {
		step := &j.Story.Chain[i]
		step.Creation = j.Stored.Created[step.UID]
		if step.Creation != nil && step.AfterSeconds != nil {
			// Caused-at is by another clock, and some way into the request.
			from := j.Causes[step.Cause].At
			if facts := j.Causes[step.Cause].Trace; facts != nil && !facts.start.IsZero() {
				from = &facts.start
			}
			step.AfterSeconds, step.Exact = new(max(0, step.Creation.Start.Sub(*from).Seconds())), true
		}
	}
	j.Node = j.Stored.Node
	j.NotKnown = append(j.NotKnown, j.Stored.Unread...)
}

// slowest tells the longest part of each request, and the longest stage after it.
func (j *joiner) slowest() {
	seen := map[string]bool{}
	add := func(parts []Part, traceID, of string, seconds float64) {
		if len(parts) == 0 || seen[traceID] {
			return
		}
		seen[traceID] = true
		j.Slowest = append(j.Slowest, Slow{Part: parts[0], Of: of, OfSeconds: seconds})
	}
	for _, c := range j.Causes {
		if c.Trace != nil {
			add(c.Trace.Slowest, c.TraceID, c.Trace.Request, c.Trace.RequestSeconds)
		}
	}
	for _, step := range j.Story.Chain {
		if c := step.Creation; c != nil {
			add(c.Slowest, c.TraceID, "the creation of "+step.Kind+" "+step.Name, c.Seconds)
		}
	}
	slices.SortStableFunc(j.Slowest, func(a, b Slow) int { return cmp.Compare(b.Seconds, a.Seconds) })
	var stage Stage
	last := j.Story.Chain[len(j.Story.Chain)-1]
	took := func(s Stage) time.Duration { return timeOf(s.End).Sub(timeOf(s.Start)) }
	for _, s := range last.Stages {
		// What the others are parts of, and what a container does for its living, is not waited for.
		whole := false
		switch lifecycle.Name(s.Name) {
		case lifecycle.StartPod, lifecycle.RunContainer, lifecycle.RollOut, lifecycle.RunJob:
			whole = true
		case lifecycle.StartContainer, lifecycle.StartInitContainer: // with its image
			whole = slices.ContainsFunc(last.Stages, func(o Stage) bool {
				return o.Name == string(lifecycle.PullImage) && o.Container == s.Container && o.End != nil
			})
		}
		if s.End != nil && s.Start != nil && !whole && took(s) > took(stage) && took(s) >= time.Second {
			stage = s
		}
	}
	if stage.Name != "" {
		what := stage.Name
		if stage.Container != "" {
			what += " " + stage.Container
		}
		j.Slowest = append(j.Slowest, Slow{Part: Part{What: what, Seconds: took(stage).Seconds()}, Of: last.Kind + " " + last.Name})
	}
}

// who asks the audit log who sent the requests, and when exactly controllers created what they made.
func (j *joiner) who() {
	if j.Audit == nil {
		if len(j.Causes) > 0 {
			j.unknown("who", "no audit log given (--audit-log)")
		}
		return
	}
	if n := j.Audit.LeftOut; n > 0 {
		j.unknown("older writes", fmt.Sprintf("%d of them in the audit log are left out: the newest %d about the object and its owners are kept", n, mostAudited))
	}
	for i := range j.Causes {
		c := &j.Causes[i]
		at := slices.IndexFunc(j.Story.Chain, func(s Step) bool { return s.Cause == i && s.Change != ChangeUnread && s.Change != ChangeGone })
		if at < 0 {
			continue
		}
		var candidates int
		var auditIDs []string
		if c.Trace != nil {
			auditIDs = append(auditIDs, c.Trace.AuditID)
		}
		c.Who, candidates = j.Audit.who(*c, j.links[at].audited(), auditIDs)
		switch {
		case c.Who != nil:
		case candidates > 1:
			j.unknown("who", fmt.Sprintf("the audit log has %d writes of %s %s at that time", candidates, j.links[at].Ref.Kind, j.links[at].Ref.Name))
		default:
			j.unknown("who", "the audit log does not have the request of trace "+c.TraceID+": "+j.Audit.scope())
		}
	}
	for i := range j.Story.Chain {
		step := &j.Story.Chain[i]
		if step.AfterSeconds == nil || step.Exact {
			continue
		}
		if at := j.Audit.created(j.links[i].audited(), *step.Created); at != nil {
			step.AfterSeconds, step.Exact = new(max(0, at.Sub(*j.Causes[step.Cause].At).Seconds())), true
		}
	}
}

// made tells what the object owns.
func (j *joiner) made() {
	for _, object := range j.Known.Made {
		s, _ := stampOf(object, j.Keys)
		m := Made{Ref: refOf(object), TraceID: s.traceID(), Created: new(object.GetCreationTimestamp().UTC())}
		if owner := metav1.GetControllerOf(object); owner != nil {
			m.Owner = string(owner.UID)
		}
		b := becameOf(object, j.Known.Events[object.GetUID()], s.at)
		m.Stages, m.State, m.Failing = b.stages, b.state, b.failing
		if wanted, ok, _ := unstructured.NestedInt64(object.Object, "spec", "replicas"); ok {
			m.Wanted = &wanted
		}
		j.Story.Made = append(j.Story.Made, m)
	}
	slices.SortStableFunc(j.Story.Made, func(a, b Made) int { return timeOf(a.Created).Compare(timeOf(b.Created)) })
}

// notKnown adds what the sources do not tell.
func (j *joiner) notKnown() {
	last := j.links[len(j.links)-1]
	own := j.stamps[len(j.stamps)-1]
	switch {
	case len(j.Causes) == 0:
		j.unknown("the cause", j.whyNoCause())
	case !own.ok():
		j.note("%s %s itself carries no cause: what is told is its owner's", last.Ref.Kind, last.Ref.Name)
	}
	for _, c := range j.Causes {
		if c.Request == nil && c.Who == nil && c.Trace == nil {
			j.unknown("which request it was", "managedFields have no write of that time: whoever wrote has written again since (--audit-log)")
		}
		if c.Request != nil && len(c.Request.Or) > 0 && c.Who == nil {
			j.unknown("whether it was "+c.Request.Manager, strings.Join(c.Request.Or, " and ")+" wrote in the same second (--audit-log)")
		}
		if !c.Sampled {
			j.unknown("the trace "+c.TraceID, "the request was not sampled, so that no store has it")
		}
	}
	j.NotKnown = append(j.NotKnown, j.Unread...)
}

func (j *joiner) whyNoCause() string {
	about := "neither the object nor an owner carries one"
	if len(j.links) == 1 {
		about = "the object carries none"
	}
	switch {
	case j.Installed == nil:
		return about + "; whether tracehook is installed is not known"
	case !*j.Installed:
		return about + ": tracehook is not installed in this cluster (no webhook configuration has its label)"
	}
	return about + ": it was made before tracehook was installed or while it did not answer, in a namespace or of a kind that it is not called for, or by a request that was not sampled"
}

func (j *joiner) note(format string, args ...any) {
	j.Notes = append(j.Notes, fmt.Sprintf(format, args...))
}

func (j *joiner) unknown(what, why string) {
	u := Unknown{What: what, Why: why}
	if !slices.Contains(j.NotKnown, u) {
		j.NotKnown = append(j.NotKnown, u)
	}
}

// eventsOf orders Events by their last time.
func eventsOf(events []corev1.Event) []Event {
	var list []Event
	for _, e := range events {
		told := Event{Type: e.Type, Reason: e.Reason, Message: e.Message, Count: max(1, e.Count), From: e.ReportingController}
		at := e.LastTimestamp.Time
		if at.IsZero() {
			at = e.EventTime.Time
		}
		if e.Series != nil {
			at, told.Count = e.Series.LastObservedTime.Time, max(told.Count, e.Series.Count)
		}
		if told.From == "" {
			told.From = e.Source.Component
		}
		if !at.IsZero() {
			told.At = new(at.UTC())
		}
		list = append(list, told)
	}
	slices.SortStableFunc(list, func(a, b Event) int { return timeOf(a.At).Compare(timeOf(b.At)) })
	return list
}
