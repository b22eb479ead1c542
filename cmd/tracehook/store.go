package main

// The trace store that a user names, for `trace`, `show` and `explain`. In: flags and
// environment. Out: a client. Errors: usage errors, which never hold a header's value.

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/net/http/httpguts"

	"github.com/tracehook/tracehook/cmd/tracehook/tracestore"
)

const (
	storeVariable        = "TRACEHOOK_STORE"
	storeHeadersVariable = "TRACEHOOK_STORE_HEADERS"
)

// storeFlags say where traces are read back from.
type storeFlags struct {
	Store   string   // "": TRACEHOOK_STORE; both empty: none
	Headers []string // NAME=VALUE; beside those in TRACEHOOK_STORE_HEADERS
}

func (s *storeFlags) bind(f *pflag.FlagSet) {
	f.StringVar(&s.Store, "store", "", "where traces are read back from: jaeger=`URL` (Jaeger 2's query API, http://localhost:16686) or tempo=URL (default: "+storeVariable+")")
	f.StringArrayVar(&s.Headers, "store-header", nil, "`NAME=VALUE` of a header for the store; may be repeated. Other users of this machine can see it: for secrets, set "+storeHeadersVariable+" (NAME=VALUE,..., percent-encoded)")
}

// open returns nil where no store is named.
func (s *storeFlags) open(getenv func(string) string) (*tracestore.Client, error) {
	spec := s.Store
	if spec == "" {
		spec = getenv(storeVariable)
	}
	header := http.Header{}
	for i, entry := range strings.Split(getenv(storeHeadersVariable), ",") {
		if strings.TrimSpace(entry) == "" {
			continue
		}
		if err := addHeader(header, entry, url.PathUnescape); err != nil {
			return nil, fmt.Errorf("%s, entry %d: %w", storeHeadersVariable, i+1, err)
		}
	}
	for i, entry := range s.Headers {
		if err := addHeader(header, entry, asItIs); err != nil {
			return nil, fmt.Errorf("--store-header, the one at place %d: %w", i+1, err)
		}
	}
	if spec == "" {
		return nil, nil
	}
	return tracestore.Open(spec, header)
}

func asItIs(value string) (string, error) { return value, nil }

// addHeader reads NAME=VALUE. No error holds the value: it is a secret.
func addHeader(header http.Header, entry string, decode func(string) (string, error)) error {
	name, value, found := strings.Cut(entry, "=")
	name = strings.TrimSpace(name)
	switch {
	case !found:
		return errors.New("want NAME=VALUE")
	case !httpguts.ValidHeaderFieldName(name):
		return errors.New("want the name of a header before the =")
	}
	value, err := decode(strings.TrimSpace(value))
	if err != nil || !httpguts.ValidHeaderFieldValue(value) {
		return fmt.Errorf("the value of %s cannot be sent in a header", name)
	}
	header.Add(name, value)
	return nil
}
