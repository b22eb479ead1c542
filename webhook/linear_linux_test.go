package webhook

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// evilReviews are bodies of about size bytes that could cost more than others of that size.
func evilReviews(size int) map[string]string {
	repeated := func(format string) string { // of members or elements; %[1]d is a number
		var b strings.Builder
		for i := 0; b.Len() < size; i++ {
			if i > 0 {
				b.WriteByte(',')
			}
			if strings.Contains(format, "%") {
				fmt.Fprintf(&b, format, i)
			} else {
				b.WriteString(format)
			}
		}
		return b.String()
	}
	review := func(operation, object, old string) string {
		return fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","operation":%q,"resource":{"group":"","version":"v1","resource":"pods"},"object":%s,"oldObject":%s}}`, operation, object, old)
	}
	create := func(object string) string { return review("CREATE", object, "null") }
	update := func(object string) string { return review("UPDATE", object, object[:len(object)-1]+`,"z":1}`) }
	spec := func(value string) string { return `{"metadata":{},"spec":` + value + `}` }
	some := repeated(`{"a":[1.5,true,"text"]}`)
	asks := `{"metadata":{"annotations":{"tracehook.dev/inject-env":"true"}},"spec":{"containers":`
	return map[string]string{
		"plain":                        create(spec(`[` + some + `]`)),
		"top-level fields":             update(`{` + repeated(`"f%07d":"a value of some length"`) + `}`),
		"the same, too many":           update(`{` + repeated(`"%d":0`) + `}`),
		"one escaped name":             create(spec(`[` + repeated(`{"\u0061":0}`) + `]`)),
		"two escaped names":            create(spec(`[` + repeated(`{"\u0061":0,"\u0062":0}`) + `]`)),
		"objects of 33 names":          create(spec(`[` + repeated(manyNames(33, "")) + `]`)),
		"objects of 33 escaped names":  create(spec(`[` + repeated(strings.ReplaceAll(manyNames(33, ""), "n", `\u006e`)) + `]`)),
		"names all alike":              create(spec(`{` + repeated(`"a%08db":"a value of some length"`) + `}`)),
		"a long escaped name":          create(spec(`{"` + strings.Repeat(`\u0061`, size/6) + `":0,"b":0}`)),
		"long escaped names":           create(spec(`{` + repeated(`"`+strings.Repeat(`\u0061`, 1000)+`%d":0`) + `}`)),
		"an escaped text":              create(spec(`"` + strings.Repeat(`\u0061`, size/6) + `"`)),
		"a text of no ASCII":           create(spec(`"` + strings.Repeat("ü", size/2) + `"`)),
		"digits":                       create(spec(strings.Repeat("1", size))),
		"blanks":                       create(spec(strings.Repeat(" ", size) + "1")),
		"empty lists":                  create(spec(`[` + repeated(`[]`) + `]`)),
		"as deep as it goes":           create(spec(`[` + repeated(strings.Repeat("[", 9000)+strings.Repeat("]", 9000)) + `]`)),
		"annotations of texts":         create(`{"metadata":{"annotations":{"a":"` + strings.Repeat(`\"`, size/2) + `"}}}`),
		"annotations":                  update(`{"metadata":{"annotations":{` + repeated(`"a%07d":"a value of some length"`) + `}}}`),
		"annotations, escaped":         update(`{"metadata":{"annotations":{` + repeated(`"\u0061%07d":"\u0061 value of some length"`) + `}}}`),
		"an update's spec":             update(spec(`[` + some + `]`)),
		"an update's names":            update(spec(`[` + repeated(manyNames(33, "")) + `]`)),
		"an update as deep as it goes": update(spec(`[` + repeated(strings.Repeat("[", 9000)+strings.Repeat("]", 9000)) + `]`)),
		"an update of the spec":        review("UPDATE", spec(`[`+some+`,1]`), spec(`[`+some+`,2]`)),
		"owners":                       create(`{"metadata":{"ownerReferences":[` + repeated(`{"apiVersion":"v1","kind":"A","name":"b","uid":"c","controller":false}`) + `]}}`),
		"owners, escaped":              create(`{"metadata":{"ownerReferences":[` + repeated(`{"apiVersion":"\u0076","kind":"\u0076","name":"\u0076","uid":"\u0076"}`) + `]}}`),
		"containers":                   create(asks + `[` + repeated(`{"env":[]}`) + `]}}`),
		"variables":                    create(asks + `[{"env":[` + repeated(`{"name":"A","value":"B"}`) + `]}]}}`),
		"not JSON at its end":          create(spec(`[` + some + `,x]`)),
		"a name twice at its end":      create(spec(`{"a":[` + some + `],"a":1}`)),
		"not JSON, and no UID":         `{"request":{"object":[` + some + `,x]}}`,
		"opened only":                  create(spec(strings.Repeat("[", size))),
		"the names of a request":       `{"request":{` + repeated(`"%d":0`) + `}}`,
		"the same name again":          `{` + repeated(`"a":%d`) + `}`,
	}
}

// oddReviews are those of evilReviews that are not as an API server writes them.
var oddReviews = map[string]bool{
	"the same, too many": true, "annotations": true, "annotations, escaped": true,
	"not JSON at its end": true, "a name twice at its end": true, "not JSON, and no UID": true, "opened only": true, "the names of a request": true, "the same name again": true,
}

// Four times the bytes are four times the work, whatever they say; and no bytes are much more
// work than others. A square would be 16 times; the bounds are wide, for the garbage collector
// takes its part.
func TestEveryReviewCostsInProportionToItsSize(t *testing.T) {
	handler, err := New(Options{Mutators: Chain{
		{Name: "trace-context", Mutator: newTraceContext(t, TraceContextOptions{Always: true})},
		{Name: "environment", Mutator: Environment{}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // its CPU is what is measured: others may be busy, too
	defer runtime.UnlockOSThread()
	cost := func(body string) time.Duration {
		least := time.Hour
		for range 5 {
			r := httptest.NewRequest(http.MethodPost, "/mutate?timeout=30s", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Traceparent", testTraceparent)
			start := cpu(t)
			handler.ServeHTTP(httptest.NewRecorder(), r)
			least = min(least, cpu(t)-start)
		}
		return least
	}
	const size = 256 << 10
	small, large := evilReviews(size), evilReviews(4*size)
	plainPerByte := float64(cost(large["plain"])) / float64(len(large["plain"]))
	for name := range large {
		t.Run(name, func(t *testing.T) {
			if want := oddReviews[name]; (new(reviewDecoder).decode([]byte(large[name]), new(Request)) != nil) != want {
				t.Fatalf("odd: %t, want the opposite", !want)
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			few, many := cost(small[name]), cost(large[name])
			perByte := float64(many) / float64(len(large[name])) / plainPerByte
			t.Logf("%d bytes: %s, %d bytes: %s, %.1f times a plain one's per byte", len(small[name]), few, len(large[name]), many, perByte)
			if many > 12*few+5*time.Millisecond {
				t.Errorf("%d bytes take %s, %d take %s", len(small[name]), few, len(large[name]), many)
			}
			if perByte > 20 {
				t.Errorf("a byte costs %.1f times what one of a plain review costs", perByte)
			}
		})
	}
}

// cpu is what this thread has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var used unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Nano())
}
