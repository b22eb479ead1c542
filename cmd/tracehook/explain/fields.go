package explain

// metadata.managedFields. In: an object. Out: who wrote which fields, and which of these writes was a cause. Pure; what
// cannot be read is left out.

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

const (
	// mostFields is how many fields of a writer are told by name.
	mostFields = 20
	// mostApart is how far a write's time may be from the cause's: managedFields have whole seconds, and two machines two clocks.
	mostApart = 3 * time.Second
)

// writersOf returns the field managers of an object, the latest last.
func writersOf(object metav1.Object) []Writer {
	var list []Writer
	for _, entry := range object.GetManagedFields() {
		w := Writer{Manager: entry.Manager, Operation: string(entry.Operation), Subresource: entry.Subresource}
		if entry.Time != nil {
			w.At = new(entry.Time.UTC())
		}
		w.Fields, w.FieldSum = fieldsOf(entry, func(fieldpath.Path) bool { return true })
		list = append(list, w)
	}
	slices.SortStableFunc(list, func(a, b Writer) int { return timeOf(a.At).Compare(timeOf(b.At)) })
	return list
}

// requestOf finds the write that stored a cause at that time; nil where managedFields have none of then: the same
// manager has written again. Of several in the same second, whoever created the object wrote most of its fields, and changed is
// true for a cause that is not the creation.
func requestOf(object metav1.Object, at time.Time, changed bool) *Request {
	var candidates []*Request
	nearest := mostApart
	for _, entry := range object.GetManagedFields() {
		if entry.Time == nil || entry.Subresource != "" {
			continue // a stamp is stored with the object itself
		}
		distance := entry.Time.Sub(at.Truncate(time.Second)).Abs()
		if distance > nearest {
			continue
		}
		if distance < nearest {
			nearest, candidates = distance, nil
		}
		r := &Request{Manager: entry.Manager, Operation: string(entry.Operation), At: new(entry.Time.UTC())}
		r.Fields, r.FieldSum = fieldsOf(entry, isWanted)
		candidates = append(candidates, r)
	}
	if len(candidates) == 0 {
		return nil
	}
	slices.SortStableFunc(candidates, func(a, b *Request) int { return cmp.Compare(b.FieldSum, a.FieldSum) })
	r := candidates[0]
	if changed && len(candidates) > 1 && r.At.Sub(object.GetCreationTimestamp().Time) <= time.Second {
		r = candidates[1]
	}
	for _, other := range candidates {
		if other != r {
			r.Or = append(r.Or, other.Manager)
		}
	}
	return r
}

// isWanted says whether a field is part of what somebody wants of the object.
func isWanted(path fieldpath.Path) bool {
	if len(path) == 0 || path[0].FieldName == nil {
		return false
	}
	switch *path[0].FieldName {
	case "metadata", "status", "apiVersion", "kind":
		return false
	}
	return true
}

// fieldsOf returns the first fields of an entry, and how many there are.
func fieldsOf(entry metav1.ManagedFieldsEntry, want func(fieldpath.Path) bool) (fields []string, sum int) {
	if entry.FieldsV1 == nil {
		return []string{}, 0
	}
	var set fieldpath.Set
	if set.FromJSON(bytes.NewReader(entry.FieldsV1.GetRawBytes())) != nil {
		return []string{}, 0
	}
	fields = []string{}
	set.Leaves().Iterate(func(path fieldpath.Path) {
		if !want(path) {
			return
		}
		if sum++; len(fields) < mostFields {
			fields = append(fields, pathText(path))
		}
	})
	return fields, sum
}

// pathText writes a path as kubectl's users do, with the name of a list's element: spec.containers[web].image.
func pathText(path fieldpath.Path) string {
	var b strings.Builder
	for _, element := range path {
		switch {
		case element.FieldName != nil:
			name := *element.FieldName
			if strings.ContainsAny(name, "./") { // an annotation's or label's key
				fmt.Fprintf(&b, "[%s]", name)
				continue
			}
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(name)
		case element.Key != nil && len(*element.Key) == 1:
			fmt.Fprintf(&b, "[%v]", (*element.Key)[0].Value.Unstructured())
		case element.Key != nil:
			var keys []string
			for _, key := range *element.Key {
				keys = append(keys, fmt.Sprintf("%s=%v", key.Name, key.Value.Unstructured()))
			}
			fmt.Fprintf(&b, "[%s]", strings.Join(keys, ","))
		case element.Value != nil:
			fmt.Fprintf(&b, "[%v]", (*element.Value).Unstructured())
		case element.Index != nil:
			fmt.Fprintf(&b, "[%d]", *element.Index)
		}
	}
	return b.String()
}

// timeOf is the zero time for nil.
func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
