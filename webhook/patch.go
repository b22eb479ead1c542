package webhook

// Stage: an object as it came and the changes wanted of it in, RFC 6902
// operations out. Pure: no clock, no client, no telemetry, no errors.
//
// Nothing that is there is ever replaced as a whole: a map is added only where
// the object has none, otherwise single members are.

import (
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// change sets one annotation.
type change struct{ key, value string }

// appendPatch appends the JSON Patch (RFC 6902) that makes the changes to o and
// returns it with the number of its operations: none, and nothing appended,
// where there are no changes.
func appendPatch(dst []byte, o *Object, annotations []change) ([]byte, int) {
	if len(annotations) == 0 {
		return dst, 0
	}
	switch {
	case !o.hasMetadata:
		dst = append(dst, `[{"op":"add","path":"/metadata","value":{"annotations":`...)
		dst = appendMap(dst, annotations)
		return append(dst, `}}]`...), 1
	case !o.hasAnnotations: // absent or null: "add" replaces a null (RFC 6902, 4.1)
		dst = append(dst, `[{"op":"add","path":"/metadata/annotations","value":`...)
		dst = appendMap(dst, annotations)
		return append(dst, `}]`...), 1
	}
	open := byte('[')
	for _, a := range annotations {
		dst = append(dst, open)
		dst = append(dst, `{"op":"add","path":`...)
		dst = appendQuoted(dst, "/metadata/annotations/"+escapePointer(a.key))
		dst = append(dst, `,"value":`...)
		dst = appendQuoted(dst, a.value)
		dst = append(dst, '}')
		open = ','
	}
	return append(dst, ']'), len(annotations)
}

func appendMap(dst []byte, annotations []change) []byte {
	open := byte('{')
	for _, a := range annotations {
		dst = append(dst, open)
		dst = appendQuoted(dst, a.key)
		dst = append(dst, ':')
		dst = appendQuoted(dst, a.value)
		open = ','
	}
	return append(dst, '}')
}

// appendQuoted appends s as a JSON string; invalid UTF-8 becomes U+FFFD.
func appendQuoted(dst []byte, s string) []byte {
	dst, _ = jsontext.AppendQuote(dst, s) // the error only reports the replacement
	return dst
}

// escapePointer makes a key one reference token of a JSON Pointer (RFC 6901, section 3).
func escapePointer(key string) string { return pointerEscaper.Replace(key) }

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")
