package webhook

// Stage: an object as it came and the changes wanted of it in, RFC 6902
// operations out. Pure: no clock, no client, no telemetry, no errors.
//
// Nothing that is there is ever replaced as a whole: a map or a list is added only
// where the object has none, otherwise single members are.

import (
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// change is one thing wanted of the object: an annotation set or removed, or, where
// environment is not nil, that.
type change struct {
	key, value  string
	remove      bool // the annotation, which is there
	environment *environment
}

// environment is what one container of a pod gets.
type environment struct {
	container string     // JSON Pointer to the container
	exists    bool       // the container has a list `env`
	variables []variable // at least one
}

type variable struct{ name, value string }

// appendPatch appends the JSON Patch (RFC 6902) that makes the changes to o and
// returns it with the number of its operations: none, and nothing appended,
// where there are no changes.
func appendPatch(dst []byte, o *Object, changes []change) ([]byte, int) {
	dst, operations := appendAnnotations(dst, o, changes)
	for _, c := range changes {
		if c.environment != nil {
			dst, operations = appendEnvironment(dst, operations, c.environment)
		}
	}
	if operations > 0 {
		dst = append(dst, ']')
	}
	return dst, operations
}

func appendAnnotations(dst []byte, o *Object, changes []change) (_ []byte, operations int) {
	for _, c := range changes {
		if c.environment != nil {
			continue
		}
		switch {
		case !o.hasMetadata: // absent or null: "add" replaces a null (RFC 6902, 4.1)
			dst = appendAdd(dst, 0, "/metadata")
			dst = append(dst, `{"annotations":`...)
			dst = appendMap(dst, changes)
			return append(dst, `}}`...), 1
		case !o.hasAnnotations:
			dst = appendAdd(dst, 0, "/metadata/annotations")
			dst = appendMap(dst, changes)
			return append(dst, '}'), 1
		}
		pointer := "/metadata/annotations/" + escapePointer(c.key)
		if c.remove {
			dst = appendOperation(dst, operations, "remove", pointer)
		} else {
			dst = appendAdd(dst, operations, pointer)
			dst = appendQuoted(dst, c.value)
		}
		dst = append(dst, '}')
		operations++
	}
	return dst, operations
}

// appendMap appends all annotations as one object; there are none to remove from it.
func appendMap(dst []byte, changes []change) []byte {
	open := byte('{')
	for _, c := range changes {
		if c.environment != nil {
			continue
		}
		dst = append(dst, open)
		dst = appendQuoted(dst, c.key)
		dst = append(dst, ':')
		dst = appendQuoted(dst, c.value)
		open = ','
	}
	return append(dst, '}')
}

func appendEnvironment(dst []byte, operations int, e *environment) ([]byte, int) {
	if e.exists {
		for i, v := range e.variables { // in front, where $(NAME) in the others can refer to them
			dst = appendAdd(dst, operations, e.container+"/env/"+strconv.Itoa(i))
			dst = appendVariable(dst, v)
			dst = append(dst, '}')
			operations++
		}
		return dst, operations
	}
	dst = appendAdd(dst, operations, e.container+"/env")
	open := byte('[')
	for _, v := range e.variables {
		dst = append(dst, open)
		dst = appendVariable(dst, v)
		open = ','
	}
	return append(dst, `]}`...), operations + 1
}

func appendVariable(dst []byte, v variable) []byte {
	dst = append(dst, `{"name":`...)
	dst = appendQuoted(dst, v.name)
	dst = append(dst, `,"value":`...)
	dst = appendQuoted(dst, v.value)
	return append(dst, '}')
}

// appendAdd opens an operation; its value and a brace are to follow.
func appendAdd(dst []byte, n int, pointer string) []byte {
	dst = appendOperation(dst, n, "add", pointer)
	return append(dst, `,"value":`...)
}

// appendOperation opens operation n of a patch, counted from 0.
func appendOperation(dst []byte, n int, op, pointer string) []byte {
	open := byte(',')
	if n == 0 {
		open = '['
	}
	dst = append(dst, open)
	dst = append(dst, `{"op":"`...)
	dst = append(dst, op...)
	dst = append(dst, `","path":`...)
	return appendQuoted(dst, pointer)
}

// appendQuoted appends s as a JSON string; invalid UTF-8 becomes U+FFFD.
func appendQuoted(dst []byte, s string) []byte {
	dst, _ = jsontext.AppendQuote(dst, s) // the error only reports the replacement
	return dst
}

// escapePointer makes a key one reference token of a JSON Pointer (RFC 6901, section 3).
func escapePointer(key string) string { return pointerEscaper.Replace(key) }

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")
