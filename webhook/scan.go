package webhook

// Stage: the bytes of a JSON document in, its objects and arrays out, member by
// member. Pure, but for a look at the clock.
//
// It accepts what jsontext accepts with its strict defaults and nothing else
// (FuzzScannerAgreesWithJSONText), but for documents with more than mostNames names at
// once, in less than half of the time, which was half of a call's. Time and memory are
// linear in the document, whatever stands in it.
//
// Errors: errSyntax, errRepeatedName, errText, errDepth, errNames, errSize; that the deadline has
// passed; a value of another type than was asked for.

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

var (
	errSyntax       = errors.New("not JSON")
	errRepeatedName = errors.New("an object has the same name twice")
	errText         = errors.New("a string is not valid Unicode")
	errDepth        = fmt.Errorf("nested deeper than %d", mostNested)
	errNames        = fmt.Errorf("objects with more than %d names", mostNames)
	errSize         = errors.New("larger than 4 GiB")
)

const (
	// mostNested is how deep jsontext goes.
	mostNested = 10000
	// mostNames of all objects that are open at once. Each is remembered; nobody's object
	// has so many.
	mostNames = 1 << 16
	// Names of larger objects are found by hash: comparing each with each would let a
	// caller buy minutes with megabytes.
	mostCompared = 32
	// lookEvery is after how many bytes the scanner looks at the clock.
	lookEvery = 64 << 10
	// A scanner that one odd document made large does not stay so.
	keepNames, keepLevels = 4096, 256
)

// scanner walks a document from front to back. After an error it is good for nothing.
type scanner struct {
	doc    []byte
	pos    int
	levels []level    // the objects and arrays that pos is in
	names  []nameSpan // of the members so far of these objects
	slots  []uint32   // the indexes of those that have one, one behind the other
	spare  []byte     // for one name, unescaped
	seed   maphash.Seed

	deadline time.Time // zero: none
	look     int       // where to look at the clock next
}

// level is an object or array that the scanner is in.
type level struct {
	end   byte // what it ends with
	names objectNames
}

// nameSpan is where a name stands, and its hash if it has one.
type nameSpan struct{ start, end, hash uint32 }

func (n nameSpan) span() span { return span{int(n.start), int(n.end)} }

// span is where something stands in the document.
type span struct{ start, end int }

// reset makes the scanner read doc, until the deadline; the zero deadline is none.
func (s *scanner) reset(doc []byte, deadline time.Time) {
	if cap(s.names) > keepNames || cap(s.levels) > keepLevels || cap(s.spare) > keepNames {
		*s = scanner{seed: s.seed}
	}
	*s = scanner{doc: doc, levels: s.levels[:0], names: s.names[:0], slots: s.slots[:0], spare: s.spare[:0], seed: s.seed, deadline: deadline, look: lookEvery}
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

// skip reads one value. It does not call itself for what is in the value: 10,000 levels
// would cost megabytes of stack.
func (s *scanner) skip() error {
	bottom := len(s.levels)
	for {
		var err error
		switch c := s.peek(); c {
		case '{', '[':
			var inside bool
			if inside, err = s.enter(); inside && err == nil {
				continue
			}
		case '"':
			_, err = s.quoted()
		case 't':
			err = s.literal("true")
		case 'f':
			err = s.literal("false")
		case 'n':
			err = s.literal("null")
		default:
			err = s.number()
		}
		// After a value: the next one, or the end of what it is in.
		for more := false; err == nil && !more; {
			if len(s.levels) == bottom {
				return nil
			}
			more, err = s.next()
		}
		if err != nil {
			return err
		}
	}
}

// object reads one object. member, which may be nil, gets each name, unescaped, and
// must read exactly one value.
func (s *scanner) object(member func(name []byte) error) error {
	if s.peek() != '{' {
		return s.wrongType("an object")
	}
	if member == nil {
		return s.skip()
	}
	more, err := s.enter()
	for ; err == nil && more; more, err = s.next() {
		if err = member(s.text(s.names[len(s.names)-1].span())); err != nil {
			return err
		}
	}
	return err
}

// array reads one array. element, which may be nil, gets each index and must read
// exactly one value.
func (s *scanner) array(element func(i int) error) error {
	if s.peek() != '[' {
		return s.wrongType("an array")
	}
	if element == nil {
		return s.skip()
	}
	more, err := s.enter()
	for i := 0; err == nil && more; i++ {
		if err = element(i); err != nil {
			return err
		}
		more, err = s.next()
	}
	return err
}

// enter goes into the object or array that is next, past the name of the first member.
// It is not inside where there is nothing in it.
func (s *scanner) enter() (inside bool, err error) {
	if len(s.levels) == mostNested {
		return false, errDepth
	}
	l := level{end: s.doc[s.pos] + 2} // '{' and '}' are two apart, '[' and ']' too
	l.names = objectNames{first: len(s.names), slots: len(s.slots)}
	s.pos++
	if s.peek() == l.end {
		s.pos++
		return false, nil
	}
	s.levels = append(s.levels, l)
	if l.end == '}' {
		err = s.name()
	}
	return true, err
}

// next goes on after a member or element: past a comma, and the name of a member, to more,
// or past the end.
func (s *scanner) next() (more bool, err error) {
	if s.pos >= s.look {
		if s.look = s.pos + lookEvery; !s.deadline.IsZero() && !time.Now().Before(s.deadline) {
			return false, context.DeadlineExceeded
		}
	}
	l := &s.levels[len(s.levels)-1]
	switch s.peek() {
	case l.end:
		s.pos++
		s.names, s.slots = s.names[:l.names.first], s.slots[:l.names.slots]
		s.levels = s.levels[:len(s.levels)-1]
		return false, nil
	case ',':
		s.pos++
		if s.peek(); l.end == '}' {
			err = s.name()
		}
		return true, err
	}
	return false, errSyntax
}

// name reads the name of a member, and its colon.
func (s *scanner) name() error {
	start := s.pos
	spelled, err := s.quoted()
	if err != nil {
		return err
	}
	if err := s.note(&s.levels[len(s.levels)-1].names, span{start + 1, s.pos - 1}, spelled); err != nil {
		return err
	}
	if s.peek() != ':' {
		return errSyntax
	}
	s.pos++
	return nil
}

// wrongType reads what is there instead.
func (s *scanner) wrongType(belongs string) error {
	value, err := s.value()
	if err != nil {
		return err
	}
	return fmt.Errorf("%s where %s belongs", jsontext.Value(value).Kind(), belongs)
}

// objectNames are the names of one object: a part of scanner.names, and an index where
// comparing would not do.
type objectNames struct {
	first   int
	filter  uint64   // a bit for each name; most names need not be compared with any other
	spelled spelling // of any of them
	slots   int      // where the index begins in scanner.slots
	indexed int      // so many of the names are in it
}

// note remembers a name, and refuses one that the object has already.
func (s *scanner) note(o *objectNames, name span, spelled spelling) error {
	switch {
	case len(s.names) == mostNames:
		return errNames
	case name.end > math.MaxUint32:
		return errSize
	}
	s.names = append(s.names, nameSpan{start: uint32(name.start), end: uint32(name.end)})
	o.spelled = o.spelled || spelled
	known := s.names[o.first : len(s.names)-1]
	if len(known) >= mostCompared || bool(o.spelled) && len(known) > 0 {
		return s.index(o)
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
				return errRepeatedName
			}
		}
	}
	o.filter |= bit
	return nil
}

// index notes by their hash the names that are not in the object's index yet. Objects
// in this one are read, so its index is the last one in scanner.slots.
func (s *scanner) index(o *objectNames) error {
	names := s.names[o.first:]
	size := len(s.slots) - o.slots
	if 2*len(names) > size {
		size = 1 << bits.Len(uint(4*len(names)))
		s.slots = append(s.slots[:o.slots], make([]uint32, size)...)
		o.indexed = 0
	}
	slots := s.slots[o.slots:]
	for ; o.indexed < len(names); o.indexed++ {
		name := &names[o.indexed]
		if name.hash == 0 {
			name.hash = s.hashName(name.span())
		}
		at := name.hash & uint32(size-1)
		for ; slots[at] != 0; at = (at + 1) & uint32(size-1) {
			other := names[slots[at]-1]
			if other.hash == name.hash && bytes.Equal(s.text(other.span()), s.text(name.span())) {
				return errRepeatedName
			}
		}
		slots[at] = uint32(o.indexed + 1)
	}
	return nil
}

// hashName hashes what a name says, however it is spelled.
func (s *scanner) hashName(name span) uint32 {
	text := s.doc[name.start:name.end]
	if bytes.IndexByte(text, '\\') >= 0 {
		s.spare, _ = jsontext.AppendUnquote(s.spare[:0], s.doc[name.start-1:name.end+1])
		text = s.spare
	}
	return uint32(s.hash(text))
}

// hash is of a secret seed, so that nobody can choose texts of the same hash.
func (s *scanner) hash(text []byte) uint64 {
	if s.seed == (maphash.Seed{}) {
		s.seed = maphash.MakeSeed()
	}
	return maphash.Bytes(s.seed, text)
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
			n, err := escapeLength(doc[i:])
			if err != nil {
				return false, err
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
				return false, errText
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

// escapeLength of the escape sequence that b begins with. Two halves of a surrogate pair
// are one sequence.
func escapeLength(b []byte) (int, error) {
	if len(b) < 2 {
		return 0, errSyntax
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2, nil
	}
	first, ok := escapedUnit(b)
	if !ok {
		return 0, errSyntax
	}
	if !utf16.IsSurrogate(first) {
		return 6, nil
	}
	second, ok := escapedUnit(b[6:])
	if !ok || utf16.DecodeRune(first, second) == utf8.RuneError {
		return 0, errText
	}
	return 12, nil
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

// mostExplained bounds what explain costs: jsontext remembers each name of an object.
const mostExplained = 64 << 10

// isGrammar says whether the document is not what jsontext accepts.
func isGrammar(err error) bool {
	return errors.Is(err, errSyntax) || errors.Is(err, errRepeatedName) || errors.Is(err, errText) || errors.Is(err, errDepth)
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
