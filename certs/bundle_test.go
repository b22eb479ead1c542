package certs_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
)

func TestMergingBundles(t *testing.T) {
	a, b, c := forge(t, nil, asCA("a")), forge(t, nil, asCA("b")), forge(t, nil, asCA("c"))
	over := forge(t, nil, asCA("over"), expired)
	block := func(kind string, headers map[string]string, content []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Headers: headers, Bytes: content}))
	}
	text := func(pairs ...certs.KeyPair) string { return string(bundle(pairs...)) }
	list := func(pairs ...certs.KeyPair) (certificates []*x509.Certificate) {
		for _, p := range pairs {
			certificates = append(certificates, p.Certificate)
		}
		return certificates
	}
	for name, row := range map[string]struct {
		live   string
		change certs.BundleChange
		want   string
		done   []string // how each begins
	}{
		"nothing and nothing":                  {},
		"the first":                            {change: certs.BundleChange{Add: list(a)}, want: text(a), done: []string{`added certificate "CN=a"`}},
		"what is there already":                {live: text(a), change: certs.BundleChange{Add: list(a)}, want: text(a)},
		"another, at the end":                  {live: text(b, a), change: certs.BundleChange{Add: list(c)}, want: text(b, a, c), done: []string{`added certificate "CN=c"`}},
		"the same twice":                       {change: certs.BundleChange{Add: list(a, a)}, want: text(a), done: []string{"added"}},
		"one that has expired":                 {change: certs.BundleChange{Add: list(over)}},
		"a second copy":                        {live: text(a, b, a), want: text(a, b), done: []string{`removed a second copy of certificate "CN=a"`}},
		"an expired one":                       {live: text(over, a), want: text(a), done: []string{`removed certificate "CN=over"`}},
		"the last, expired":                    {live: text(over), done: []string{`removed certificate "CN=over"`}},
		"a drop":                               {live: text(a, b), change: certs.BundleChange{Drop: list(a)}, want: text(b), done: []string{`removed certificate "CN=a"`}},
		"a drop of what is not there":          {live: text(a), change: certs.BundleChange{Drop: list(b)}, want: text(a)},
		"a drop of what is added":              {live: text(a), change: certs.BundleChange{Add: list(a, b), Drop: list(a, b)}, want: text(a, b), done: []string{`added certificate "CN=b"`}},
		"only":                                 {live: text(a, b), change: certs.BundleChange{Add: list(b, c), Only: true}, want: text(b, c), done: []string{`removed certificate "CN=a"`, `added certificate "CN=c"`}},
		"only what is there":                   {live: text(a), change: certs.BundleChange{Add: list(a), Only: true}, want: text(a)},
		"a comment before a certificate stays": {live: "# our CA\n" + text(a), change: certs.BundleChange{Add: list(a)}, want: "# our CA\n" + text(a)},
		"a comment goes when something else changes":   {live: "# our CA\n" + text(a), change: certs.BundleChange{Add: list(b)}, want: text(a, b), done: []string{"added"}},
		"a key among the certificates":                 {live: text(a) + block("PRIVATE KEY", nil, []byte("x")) + text(b), want: text(a, b), done: []string{`removed what cannot be read: block 2 is a "PRIVATE KEY"`}},
		"headers":                                      {live: block("CERTIFICATE", map[string]string{"k": "v"}, a.Certificate.Raw) + text(b), want: text(b), done: []string{"removed what cannot be read: block 1 has headers"}},
		"no certificate within":                        {live: block("CERTIFICATE", nil, []byte("x")) + text(b), want: text(b), done: []string{"removed what cannot be read: block 1: "}},
		"half a block at the end":                      {live: text(a) + text(b)[:100], want: text(a), done: []string{"removed what cannot be read: 100 bytes that are not PEM"}},
		"no PEM, and one added":                        {live: "Cg==", change: certs.BundleChange{Add: list(a)}, want: text(a), done: []string{"removed what cannot be read: ", "added"}},
		"the leaf itself, pinned":                      {live: text(forgeLeaf(t, a)), change: certs.BundleChange{Add: list(a)}, done: []string{"added"}},
		"two CAs of one name are two":                  {live: text(a), change: certs.BundleChange{Add: list(forge(t, nil, asCA("a")))}, done: []string{"added"}},
		"not yet valid ones are kept for their time":   {live: text(a), change: certs.BundleChange{Add: list(forge(t, nil, asCA("later"), later))}, done: []string{`added certificate "CN=later"`}},
		"Verify alone has nothing to do with a bundle": {live: text(a), change: certs.BundleChange{Verify: true}, want: text(a)},
	} {
		t.Run(name, func(t *testing.T) {
			got, done := certs.MergeBundle([]byte(row.live), row.change, now)
			if row.want != "" || len(row.done) == 0 {
				if string(got) != row.want {
					t.Errorf("the bundle is\n%s\nwant\n%s", got, row.want)
				}
			}
			if !slices.EqualFunc(done, row.done, strings.HasPrefix) {
				t.Errorf("done is %q, want %q", done, row.done)
			}
			again, done := certs.MergeBundle(got, row.change, now)
			if !bytes.Equal(again, got) || len(done) > 0 {
				t.Errorf("done again it is another: %q", done)
			}
		})
	}
}

func TestATouchedBundleIsAnotherWithTheSameCertificates(t *testing.T) {
	ca, err := certs.NewCA(certs.CAOptions{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.CertificatePEM()
	if err != nil {
		t.Fatal(err)
	}
	touch := certs.BundleChange{Touch: true}
	once, done := certs.MergeBundle(text, touch, now)
	if bytes.Equal(once, text) || len(done) != 1 {
		t.Errorf("touched once it is the same: %q", done)
	}
	if in, ignored := certs.ParseBundle(once); len(in) != 1 || !in[0].Equal(ca.Certificate) || len(ignored) > 0 {
		t.Errorf("touched it holds %d certificates and %q", len(in), ignored)
	}
	if twice, _ := certs.MergeBundle(once, touch, now); !bytes.Equal(twice, text) {
		t.Errorf("touched twice it is\n%q, want\n%q", twice, text)
	}
	if _, done := certs.MergeBundle(once, certs.BundleChange{Add: []*x509.Certificate{ca.Certificate}}, now); len(done) > 0 {
		t.Errorf("what was touched wants changing: %q", done)
	}
	if nothing, done := certs.MergeBundle(nil, touch, now); len(nothing) > 0 || len(done) > 0 {
		t.Errorf("touching nothing makes %q: %q", nothing, done)
	}
}

func later(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }

func forgeLeaf(t testing.TB, ca certs.KeyPair) certs.KeyPair {
	t.Helper()
	return forge(t, &ca)
}

func FuzzMergingBundles(f *testing.F) {
	pairs := []certs.KeyPair{forge(f, nil, asCA("a")), forge(f, nil, asCA("b")), forge(f, nil, asCA("c"), expired)}
	f.Add([]byte(nil), uint8(1), uint8(0), false)
	f.Add(bundle(pairs...), uint8(2), uint8(1), false)
	f.Add(append([]byte("# comment\n"), bundle(pairs[0], pairs[0])...), uint8(7), uint8(7), true)
	f.Add(bundle(pairs...)[:500], uint8(0), uint8(0), true)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), uint8(0), uint8(0), false)
	f.Fuzz(func(t *testing.T, live []byte, add, drop uint8, only bool) {
		change := certs.BundleChange{Only: only}
		for i, p := range pairs {
			if add&(1<<i) != 0 {
				change.Add = append(change.Add, p.Certificate)
			}
			if drop&(1<<i) != 0 {
				change.Drop = append(change.Drop, p.Certificate)
			}
		}
		got, done := certs.MergeBundle(live, change, now)
		if len(done) == 0 && !bytes.Equal(got, live) {
			t.Error("changed without a word")
		}
		anchors, ignored := certs.ParseBundle(got)
		if len(ignored) > 0 {
			t.Errorf("the result does not parse: %q", ignored)
		}
		for i, c := range anchors {
			if slices.ContainsFunc(anchors[:i], c.Equal) {
				t.Error("there twice")
			}
			if now.After(c.NotAfter) {
				t.Error("expired")
			}
		}
		for _, c := range change.Add {
			if !now.After(c.NotAfter) && !slices.ContainsFunc(anchors, c.Equal) {
				t.Error("not added")
			}
		}
		if again, done := certs.MergeBundle(got, change, now); len(done) > 0 || !bytes.Equal(again, got) {
			t.Errorf("done again it is another: %q", done)
		}
	})
}
