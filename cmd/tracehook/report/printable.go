// This file makes the text of others safe for a terminal. Any text comes in, one printable
// line goes out. Pure.

package report

import (
	"strings"
	"unicode"
)

// Printable keeps what clusters, servers and spans say from steering a terminal, from breaking
// lines, and from turning the direction of writing: a space for white space, U+FFFD for
// everything else that does not print.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		default:
			return r
		}
	}, text)
}
