package certs

// Bundles. In: a caBundle as it is stored, what to make of it, the time. Out: the bundle to
// store, and in words what was done. Errors: none; what cannot be read is dropped, with a word
// about it.

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"
)

// BundleChange is what to make of a bundle. The rest of it stays, but for what has expired, what
// is there twice and what cannot be read.
type BundleChange struct {
	Add []*x509.Certificate
	// Drop comes before Add: what is in both stays.
	Drop []*x509.Certificate
	// Only: nothing stays but what is added.
	Only bool
	// Touch writes the same certificates with an empty line more or less if there is nothing to change, so that API servers
	// hear of a change: see proveAndTouch in prove.go.
	Touch bool
	// Verify sets insecureSkipTLSVerify of an APIService to false in the same update. MergeBundle
	// has no use for it.
	Verify bool
}

// MergeBundle applies a change to a bundle. It returns the new bundle, PEM, and what was done in
// words. If there was nothing to do it returns the bundle as it came. What was there keeps its order,
// what is added comes after it.
func MergeBundle(live []byte, change BundleChange, now time.Time) (bundle []byte, done []string) {
	say := func(format string, args ...any) { done = append(done, fmt.Sprintf(format, args...)) }
	among := func(list []*x509.Certificate, c *x509.Certificate) bool { return slices.ContainsFunc(list, c.Equal) }
	var kept []*x509.Certificate

	old, unreadable := ParseBundle(live)
	for _, what := range unreadable {
		say("removed what cannot be read: %s", what)
	}
	for _, c := range old {
		added := among(change.Add, c)
		switch {
		case now.After(c.NotAfter):
			say("removed %s: it expired on %s", describe(c), stamp(c.NotAfter))
		case among(kept, c):
			say("removed a second copy of %s", describe(c))
		case among(change.Drop, c) && !added:
			say("removed %s: it is to be trusted no longer", describe(c))
		case change.Only && !added:
			say("removed %s: others are to be trusted instead", describe(c))
		default:
			kept = append(kept, c)
		}
	}
	for _, c := range change.Add {
		if !among(kept, c) && !now.After(c.NotAfter) {
			kept = append(kept, c)
			say("added %s", describe(c))
		}
	}
	switch {
	case len(done) > 0:
	case change.Touch && bytes.HasSuffix(live, []byte("\n\n")):
		return live[:len(live)-1], []string{"an empty line less"}
	case change.Touch && len(old) > 0:
		return append(slices.Clone(live), '\n'), []string{"an empty line more"}
	default:
		return live, nil
	}
	var out bytes.Buffer
	for _, c := range kept {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes everything
	}
	return out.Bytes(), done
}
