package webhook

// Stage: the bytes of a JSON document in, its objects and arrays out, member by
// member. Pure.
//
// It accepts what jsontext accepts with its strict defaults and nothing else
// (FuzzScannerAgreesWithJSONText), in less than half of the time, which was half of a
// call's. What it refuses jsontext reads again, to say why: see explain.
//
// Errors: errSyntax; a value of another type than was asked for.

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

var errSyntax = errors.New("not strictly JSON")

const (
	// mostNested is how deep jsontext goes.
	mostNested = 10000
	// Names of larger objects are found by hash: comparing each with each would let a
	// caller buy minutes with megabytes.
	mostCompared = 32
)

// scanner walks a document from front to back. After an error it is good for nothing.
type scanner struct {
	doc   []byte
	pos   int
	depth int
	names []span // of the members so far of all objects that pos is in
}

// span is where something stands in the document.
type span struct{ start, end int }

func (s *scanner) reset(doc []byte) {
	*s = scanner{doc: doc, names: s.names[:0]}
}

// peek returns the first byte of what comes next, 0 at the end of the document.
func (s *scanner) peek() byte {
	for ; s.pos < len(s.doc); s.pos++ {
		switch c := s.doc[s.pos]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

// end is for after the last value.
func (s *scanner) end() error {
	if s.peek(); s.pos < len(s.doc) {
		return errSyntax
	}
	return nil
}

// value reads one value and returns its bytes in the document.
func (s *scanner) value() ([]byte, error) {
	s.peek()
	start := s.pos
	if err := s.skip(); err != nil {
		return nil, err
	}
	return s.doc[start:s.pos:s.pos], nil
}

// skip reads one value.
func (s *scanner) skip() error {
	switch s.peek() {
	case '{':
		return s.object(nil)
	case '[':
		return s.array(nil)
	case '"':
		_, err := s.quoted()
		return err
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	}
	return s.number()
}

// object reads one object. member, which may be nil, gets each name, unescaped, and
// must read exactly one value.
func (s *scanner) object(member func(name []byte) error) error {
	if s.peek() != '{' {
		return s.wrongType("an object")
	}
	if err := s.open(); err != nil {
		return err
	}
	names := objectNames{first: len(s.names)}
	for c := s.peek(); c != '}'; {
		start := s.pos
		spelled, err := s.quoted()
		if err != nil {
			return err
		}
		name := span{start + 1, s.pos - 1}
		if repeated := s.note(&names, name, spelled); repeated || s.peek() != ':' {
			return errSyntax
		}
		s.pos++
		if member == nil {
			err = s.skip()
		} else {
			err = member(s.text(name))
		}
		if err != nil {
			return err
		}
		if c, err = s.next('}'); err != nil {
			return err
		}
	}
	s.close()
	s.names = s.names[:names.first]
	return nil
}

// array reads one array. element, which may be nil, gets each index and must read
// exactly one value.
func (s *scanner) array(element func(i int) error) error {
	if s.peek() != '[' {
		return s.wrongType("an array")
	}
	if err := s.open(); err != nil {
		return err
	}
	for i, c := 0, s.peek(); c != ']'; i++ {
		var err error
		if element == nil {
			err = s.skip()
		} else {
			err = element(i)
		}
		if err != nil {
			return err
		}
		if c, err = s.next(']'); err != nil {
			return err
		}
	}
	s.close()
	return nil
}

func (s *scanner) open() error {
	if s.depth == mostNested {
		return errSyntax
	}
	s.depth++
	s.pos++
	return nil
}

func (s *scanner) close() {
	s.depth--
	s.pos++
}

// next goes on after a member or an element: past a comma to another one, or to the end.
func (s *scanner) next(end byte) (byte, error) {
	c := s.peek()
	switch c {
	case end:
	case ',':
		s.pos++
		if c = s.peek(); c == end {
			return 0, errSyntax
		}
	default:
		return 0, errSyntax
	}
	return c, nil
}

// wrongType reads what is there instead.
func (s *scanner) wrongType(belongs string) error {
	value, err := s.value()
	if err != nil {
		return err
	}
	return fmt.Errorf("%s where %s belongs", jsontext.Value(value).Kind(), belongs)
}

// objectNames are the names of one object: a part of scanner.names, or an index where
// comparing would not do.
type objectNames struct {
	first  int
	filter uint64 // a bit for each name; most names need not be compared with any other
	index  map[string]struct{}
}

// note remembers a name, and says whether the object has it already.
func (s *scanner) note(o *objectNames, name span, spelled spelling) (repeated bool) {
	known := s.names[o.first:]
	if o.index == nil && (spelled == spelledFreely || len(known) == mostCompared) {
		o.index = make(map[string]struct{}, 2*mostCompared)
		for _, n := range known {
			o.index[string(s.text(n))] = struct{}{}
		}
	}
	if o.index != nil {
		text := s.text(name)
		_, repeated = o.index[string(text)]
		o.index[string(text)] = struct{}{}
		return repeated
	}
	raw := s.doc[name.start:name.end]
	hash := len(raw)
	if hash > 0 {
		hash += 3*int(raw[0]) + 5*int(raw[len(raw)-1])
	}
	bit := uint64(1) << (hash % 64)
	if o.filter&bit != 0 {
		for _, n := range known {
			if bytes.Equal(s.doc[n.start:n.end], raw) {
				return true
			}
		}
	}
	o.filter |= bit
	s.names = append(s.names, name)
	return false
}

// text is what stands between two quotes, unescaped: a part of the document where
// nothing is escaped.
func (s *scanner) text(inside span) []byte {
	text, _ := unquote(s.doc[inside.start-1 : inside.end+1]) // quoted has looked at it
	return text
}

// spelling says in how many ways a string could have been written. Two strings that
// have but one way say the same only if they are the same bytes.
type spelling bool

const (
	spelledOneWay spelling = false // \" for a quote, \n for a new line, …
	spelledFreely spelling = true  // \u0061 for an a, \/ for a slash
)

// quoted reads one string.
func (s *scanner) quoted() (spelling, error) {
	doc, i := s.doc, s.pos
	if i >= len(doc) || doc[i] != '"' {
		return false, errSyntax
	}
	spelled := spelledOneWay
	i++
	for {
		i += plain(doc[i:])
		if i >= len(doc) {
			return false, errSyntax
		}
		switch c := doc[i]; {
		case c == '"':
			s.pos = i + 1
			return spelled, nil
		case c == '\\':
			n := escapeLength(doc[i:])
			if n == 0 {
				return false, errSyntax
			}
			if n > 2 || doc[i+1] == '/' {
				spelled = spelledFreely
			}
			i += n
		case c < ' ':
			return false, errSyntax
		default:
			r, n := utf8.DecodeRune(doc[i:])
			if r == utf8.RuneError && n == 1 {
				return false, errSyntax
			}
			i += n
		}
	}
}

// plain counts the bytes in front that say themselves: all but controls, '"', '\\' and
// what is not ASCII. It looks at eight at once.
func plain(b []byte) (n int) {
	const each, high = 0x0101010101010101, 0x8080808080808080
	for len(b)-n >= 8 {
		w := binary.LittleEndian.Uint64(b[n:])
		// The highest bit of a byte is set here where the byte is not plain; above the
		// lowest such byte a borrow may set others.
		odd := (w | (w - each*' ') | ((w ^ each*'"') - each) | ((w ^ each*'\\') - each)) & high
		if odd != 0 {
			return n + bits.TrailingZeros64(odd)/8
		}
		n += 8
	}
	for n < len(b) && b[n] >= ' ' && b[n] != '"' && b[n] != '\\' && b[n] < utf8.RuneSelf {
		n++
	}
	return n
}

// escapeLength of the escape sequence that b begins with; 0 if it is none. Two halves
// of a surrogate pair are one sequence.
func escapeLength(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	}
	first, ok := escapedUnit(b)
	if !ok {
		return 0
	}
	if !utf16.IsSurrogate(first) {
		return 6
	}
	second, ok := escapedUnit(b[6:])
	if !ok || utf16.DecodeRune(first, second) == utf8.RuneError {
		return 0
	}
	return 12
}

// escapedUnit reads \uXXXX.
func escapedUnit(b []byte) (unit rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	var v [2]byte
	_, err := hex.Decode(v[:], b[2:6])
	return rune(binary.BigEndian.Uint16(v[:])), err == nil
}

func (s *scanner) literal(word string) error {
	if !bytes.HasPrefix(s.doc[s.pos:], []byte(word)) {
		return errSyntax
	}
	s.pos += len(word)
	return nil
}

func (s *scanner) number() error {
	doc, i := s.doc, s.pos
	at := func(oneOf, or byte) bool { return i < len(doc) && (doc[i] == oneOf || doc[i] == or) }
	digits := func() bool {
		start := i
		for i < len(doc) && '0' <= doc[i] && doc[i] <= '9' {
			i++
		}
		return i > start
	}
	if at('-', '-') {
		i++
	}
	if at('0', '0') {
		i++
	} else if !digits() {
		return errSyntax
	}
	if at('.', '.') {
		if i++; !digits() {
			return errSyntax
		}
	}
	if at('e', 'E') {
		if i++; at('+', '-') {
			i++
		}
		if !digits() {
			return errSyntax
		}
	}
	s.pos = i
	return nil
}

// explain says where a document is broken, never what stands there.
func explain(doc []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(doc))
	err := d.SkipValue()
	if err == nil {
		if _, err = d.ReadToken(); err == nil {
			return errors.New("another value after the review")
		}
	}
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		return fmt.Errorf("at byte %d: %w", syntactic.ByteOffset, syntactic.Err)
	}
	return errSyntax
}
