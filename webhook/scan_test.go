package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// accepts says whether the scanner takes a whole document.
func accepts(doc []byte) bool {
	s := scanner{doc: doc}
	return s.skip() == nil && s.end() == nil
}

// jsontextAccepts says whether jsontext does, reading token by token as well as at once.
func jsontextAccepts(t *testing.T, doc []byte) bool {
	t.Helper()
	atOnce := jsontext.NewDecoder(bytes.NewReader(doc))
	err := atOnce.SkipValue()
	if err == nil {
		if _, err = atOnce.ReadToken(); err == nil {
			err = errors.New("another value")
		} else if err == io.EOF { //nolint:errorlint // jsontext documents the bare io.EOF
			err = nil
		}
	}
	return err == nil
}

// Each of these is a rule of the grammar, held or broken.
var documents = []string{
	``, ` `, `{}`, "\t{ }\r\n", `[]`, `[ ]`, `null`, `nul`, `nulll`, `true`, `True`, `false`, `falsey`,
	`0`, `-0`, `-`, `01`, `1.`, `.1`, `1.0`, `1e`, `1e+`, `1E-7`, `+1`, `1_0`, `0x1`, `12345678901234567890.5e400`, `NaN`,
	`""`, `"`, `"a`, `"12345678"`, `"1234567890123456"`, `"1234567` + "\x1f" + `"`, `"1234567` + "\x7f" + `"`, "\"1234567\n\"",
	`"\`, `"\"`, `"\n\t\b\f\r\/\\\""`, `"\a"`, `"\u"`, `"\u00e"`, `"\u00eg"`, `"\u00E9"`, `"\ud83d\ude00"`, `"\ud83d"`, `"\ude00"`, `"\ude00\ud83d"`,
	`"\ud83dx"`, `"\ud83d\n12345"`, `"\ud83d\u0041"`, `"\ud83d\ud83d"`, `"\uFFFD"`, `"\u0000"`, "\"\x00\"",
	`"ü"`, `"日本語 und mehr"`, `"😀"`, "\"\xef\xbf\xbd\"", "\"\xff\"", "\"\xc3\"", "\"\xc3", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"1234567\xc3\xa9\"",
	`{"a":1}`, `{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{"a" 1}`, `{a:1}`, `{"a":1 "b":2}`, `{"a":1;"b":2}`, `{"a":1]`, `{1:2}`, `{null:1}`,
	`[1,2]`, `[1,]`, `[,1]`, `[1 2]`, `[1}`, `[`, `{`, `}`, `]`, `[[]`, `[]]`, `{} {}`, `{}x`, `{}` + "\x00", "\ufeff{}", "{}\u00a0",
	`{"a":1,"a":2}`, `{"a":1,"A":2}`, `{"a":1,"\u0061":2}`, `{"a\"":1,"a\"":2}`, `{"a\"":1,"a\u0022":2}`, `{"a\"":1,"b\"":2}`, `{"a\/":1,"a/":2}`, `{"a/":1,"a\/":2}`, `{"a\n":1,"a\u000a":2}`, `{"a\n":1,"a\r":2}`, `{"\u0061":1,"a":2}`, `{"\u0061":1,"\u0061":2}`, `{"":1,"":2}`, `{"":1,"a":2}`, `{"a":{"a":1},"b":{"a":1}}`, `{"a":{"b":1,"b":2}}`,
	`{"ab":1,"a\u0062":1}`, `{"axb":1,"ayb":2,"azb":3,"ayb":4}`, `{"a":[{"b":1},{"b":2}],"b":3,"a":4}`,
	manyNames(mostCompared, ""), manyNames(mostCompared+1, ""), manyNames(mostCompared+1, `,"n0":0`), manyNames(mostCompared-1, `,"n0":0`), manyNames(200, `,"n\u0031":0`), manyNames(200, `,"\u006d":0`),
}

// manyNames is an object of n different names, and the rest.
func manyNames(n int, rest string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"n%d":{}`, i)
	}
	return "{" + b.String()[1:] + rest + "}"
}

func TestScannerAcceptsWhatJSONTextAccepts(t *testing.T) {
	verdicts := map[bool]int{}
	for _, doc := range documents {
		want := jsontextAccepts(t, []byte(doc))
		if got := accepts([]byte(doc)); got != want {
			t.Errorf("%.100q: accepted %t, by jsontext %t", doc, got, want)
		}
		verdicts[want]++
	}
	if verdicts[true] < 30 || verdicts[false] < 60 {
		t.Errorf("the documents have lost their edge: %v", verdicts)
	}
}

// Rules meet: a document inside another one, cut off, or with a byte that is not its own.
func TestScannerAgreesWhereRulesMeet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func() string { return documents[random.IntN(len(documents))] }
	accepted := 0
	for range 50000 {
		doc := []byte(fmt.Sprintf([]string{`[%s,%s]`, `{"a":%s,"b":%s}`, `{"a":[%s],"a":%s}`, `{%s:%s}`, ` %s %s`, `%[2]s`}[random.IntN(6)], pick(), pick()))
		switch at := random.IntN(len(doc) + 1); random.IntN(4) {
		case 0:
			doc = doc[:at]
		case 1:
			doc = slices.Insert(doc, at, byte(random.IntN(256)))
		case 2:
			doc = slices.Insert(doc, at, `{}[],:"\ 0`[random.IntN(10)])
		}
		want := jsontextAccepts(t, doc)
		if got := accepts(doc); got != want {
			t.Fatalf("%q: accepted %t, by jsontext %t", doc, got, want)
		}
		if want {
			accepted++
		}
	}
	if accepted < 2000 {
		t.Errorf("only %d of 50000 documents were right", accepted)
	}
}

func TestScannerGoesAsDeepAsJSONText(t *testing.T) {
	for _, depth := range []int{mostNested, mostNested + 1} {
		for _, ends := range [][2]string{{"[", "]"}, {`{"":`, "}"}} {
			doc := []byte(strings.Repeat(ends[0], depth) + "0" + strings.Repeat(ends[1], depth))
			if got, want := accepts(doc), jsontextAccepts(t, doc); got != want || got != (depth == mostNested) {
				t.Errorf("%q %d deep: accepted %t, by jsontext %t", ends, depth, got, want)
			}
		}
	}
}

// Names of the same length, first and last byte: to compare each with each would take
// minutes. There is a limit to how many are remembered.
func TestManyNamesCostNoMoreThanTheirBytes(t *testing.T) {
	for names, want := range map[int]error{mostNames: nil, mostNames + 1: errNames, 4 * mostNames: errNames} {
		var b strings.Builder
		for i := range names {
			fmt.Fprintf(&b, `,"a%08db":0`, i)
		}
		s := scanner{doc: []byte("{" + b.String()[1:] + "}")}
		start := time.Now()
		if err := s.skip(); !errors.Is(err, want) {
			t.Errorf("%d names: got %v, want %v", names, err, want)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
	}
}

func TestAScannerGivesUpAtItsDeadline(t *testing.T) {
	doc := []byte("[" + strings.Repeat(`{"a":0},`, 100000) + "0]")
	for name, deadline := range map[string]time.Time{"past": time.Now().Add(-time.Second), "far": time.Now().Add(time.Hour), "none": {}} {
		var s scanner
		s.reset(doc, deadline)
		err := s.skip()
		if want := name == "past"; errors.Is(err, context.DeadlineExceeded) != want || !want && err != nil {
			t.Errorf("deadline %s: got %v", name, err)
		}
	}
}

// What one odd document needs does not stay with the scanner.
func TestAScannerDoesNotStayLarge(t *testing.T) {
	var s scanner
	for _, doc := range []string{manyNames(20000, ""), strings.Repeat("[", 9000), `{"` + strings.Repeat(`\u0061`, 100000) + `":0,"b":0}`} {
		s.reset([]byte(doc), time.Time{})
		_ = s.skip()
		s.reset(nil, time.Time{})
		if len := cap(s.names)*12 + cap(s.levels)*56 + cap(s.slots)*4 + cap(s.spare); len > 1<<20 {
			t.Errorf("%.20s…: %d bytes stay", doc, len)
		}
	}
}

func TestScannerSaysWhatStandsInTheWrongPlace(t *testing.T) {
	for doc, want := range map[string]string{
		`"x"`: "string where an object belongs", `[1]`: "[ where an object belongs", `-1`: "number where an object belongs",
		`null`: "null where an object belongs", `x`: errSyntax.Error(),
	} {
		s := scanner{doc: []byte(doc)}
		if err := s.object(nil); err == nil || err.Error() != want {
			t.Errorf("object of %s: got %v, want %s", doc, err, want)
		}
	}
	s := scanner{doc: []byte(`{}`)}
	if err := s.array(nil); err == nil || err.Error() != "{ where an array belongs" {
		t.Errorf("array of {}: got %v", err)
	}
}

// The same verdict on every document; and of those that are accepted, the same
// members and elements.
func FuzzScannerAgreesWithJSONText(f *testing.F) {
	seedReviews(f)
	for _, doc := range documents {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		want := jsontextAccepts(t, doc)
		if got := accepts(doc); got != want {
			t.Fatalf("accepted %t, by jsontext %t: %q", got, want, doc)
		}
		if !want {
			return
		}
		s := scanner{doc: doc}
		var got bytes.Buffer
		if err := rewrite(&s, &got); err != nil {
			t.Fatalf("accepted as a whole, refused in parts: %v: %q", err, doc)
		}
		theirs := jsontext.Value(bytes.Clone(doc))
		ours := jsontext.Value(got.Bytes())
		if err := errors.Join(theirs.Compact(), ours.Compact()); err != nil {
			t.Fatalf("%v: %q from %q", err, got.Bytes(), doc)
		}
		if err := errors.Join(theirs.Format(jsontext.PreserveRawStrings(false)), ours.Format(jsontext.PreserveRawStrings(false))); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(theirs, ours) {
			t.Fatalf("read %s\nof %s", ours, theirs)
		}
	})
}

// rewrite writes the document as the scanner's callbacks see it.
func rewrite(s *scanner, out *bytes.Buffer) error {
	comma := func(i int) {
		if i > 0 {
			out.WriteByte(',')
		}
	}
	switch s.peek() {
	case '{':
		out.WriteByte('{')
		members := 0
		err := s.object(func(name []byte) error {
			comma(members)
			members++
			quoted, err := jsontext.AppendQuote(nil, name)
			if err != nil {
				return err
			}
			out.Write(append(quoted, ':'))
			return rewrite(s, out)
		})
		out.WriteByte('}')
		return err
	case '[':
		out.WriteByte('[')
		err := s.array(func(i int) error {
			comma(i)
			return rewrite(s, out)
		})
		out.WriteByte(']')
		return err
	}
	value, err := s.value()
	out.Write(value)
	return err
}
