package webhook

// Stage: a body that the strict reader refused in, whose request it is out. Pure.
//
// An API server writes what a client sent in it, and a client may send what the strict
// reader refuses: the same name twice where an object may hold anything, say. Such a
// request is allowed as it is. For that its UID must be found, before or behind what is
// odd, so nothing but quotes and brackets means anything here. It is linear in the body.

import (
	"bytes"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// salvage returns what is known of the request in body, without its objects. The UID is
// empty where body is no review of ours, or does not say clearly which request it is of.
func salvage(body []byte) Request {
	var r Request
	var kind, apiVersion string
	var request []byte
	ok := eachMember(body, []string{"kind", "apiVersion", "request"}, func(name string, value []byte) {
		switch name {
		case "kind":
			kind = textOf(value)
		case "apiVersion":
			apiVersion = textOf(value)
		case "request":
			request = value
		}
	})
	if !ok || kind != "AdmissionReview" || apiVersion != reviewVersion {
		return Request{}
	}
	uid, known := "", []string(nil)
	ok = eachMember(request, []string{"uid"}, func(name string, value []byte) {
		switch name {
		case "uid":
			uid = textOf(value)
		case "kind", "resource", "subResource", "name", "namespace", "operation", "dryRun":
			if slices.Contains(known, name) {
				return // once is enough: many would cost more than their bytes
			}
			known = append(known, name)
			before := r
			d := reviewDecoder{json: scanner{doc: value}}
			if d.requestField([]byte(name), &r) != nil || d.json.end() != nil {
				r = before
			}
		}
	})
	if !ok || len(uid) > mostText {
		return Request{}
	}
	r.UID = types.UID(uid)
	return r
}

// eachMember calls f with each member of the object that doc begins with, as far as it
// can be told, a value that doc breaks off in among them. It is not ok where one of the
// names in once is there twice.
func eachMember(doc []byte, once []string, f func(name string, value []byte)) (ok bool) {
	var seen []string
	doc = bytes.TrimLeft(doc, " \t\r\n")
	for opener := byte('{'); len(doc) > 0 && doc[0] == opener; opener = ',' {
		doc = bytes.TrimLeft(doc[1:], " \t\r\n")
		length := valueLength(doc)
		name := textOf(doc[:length])
		doc = bytes.TrimLeft(doc[length:], " \t\r\n")
		if len(doc) == 0 || doc[0] != ':' {
			break
		}
		doc = bytes.TrimLeft(doc[1:], " \t\r\n")
		if slices.Contains(once, name) {
			if slices.Contains(seen, name) {
				return false
			}
			seen = append(seen, name)
		}
		length = valueLength(doc)
		f(name, doc[:length])
		doc = bytes.TrimLeft(doc[length:], " \t\r\n")
	}
	return true
}

// valueLength is how far the value reaches that doc begins with: to the end of a string, to
// the bracket that closes its first one, or else to a comma, a colon or such a bracket.
func valueLength(doc []byte) int {
	depth := 0
	for i := 0; i < len(doc); i++ {
		switch doc[i] {
		case '"':
			for i++; i < len(doc) && doc[i] != '"'; i++ {
				if doc[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return min(i+1, len(doc))
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ':':
			if depth == 0 {
				return i
			}
		}
	}
	return len(doc)
}

// textOf is what a string says, "" where value is none.
func textOf(value []byte) string {
	s := scanner{doc: value}
	if _, err := s.quoted(); err != nil || s.pos != len(value) {
		return ""
	}
	text, err := unquote(value)
	if err != nil {
		return ""
	}
	return string(text)
}
