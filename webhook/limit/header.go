package limit

import "bytes"

// mostLines is how many lines a header may have, the request line included. An API server sends about ten,
// and in net/http's map a line of 3 bytes costs 130.
const mostLines = 100

// headerReader follows a request as its bytes arrive: how many lines its header has, and how much came
// after that. net/http bounds the bytes of a header alone.
type headerReader struct {
	lines int
	text  bool // the line under way is not empty
	begun bool // one has not been: net/http skips empty ones in front of a request
	whole bool
	after int64
}

// read takes what has arrived. It returns false if the header has too many lines.
func (h *headerReader) read(p []byte) bool {
	for !h.whole && len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte{'\n'})
		h.text = h.text || len(bytes.TrimRight(line, "\r")) > 0
		if !ended {
			return true
		}
		if h.lines++; h.lines > mostLines {
			return false
		}
		h.begun = h.begun || h.text
		h.whole, h.text, p = h.begun && !h.text, false, rest
	}
	h.after += int64(len(p))
	return true
}

// next prepares for the next request of the connection, after one with a body of that length. It returns
// false if the beginning of the next one has arrived already: nobody counts its lines then. One byte may have, by
// which net/http sees that a caller goes away.
func (h *headerReader) next(length int64) bool {
	alone := h.after <= length+1
	*h = headerReader{}
	return alone
}
