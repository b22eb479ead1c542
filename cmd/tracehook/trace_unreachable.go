package main

// What the command is told where an API server cannot be asked. In: the transport's error.
// Out: an answer from which client-go prints the reason. Pure but for the answer.
//
// Alone the command would meet the error itself; here it can only be given an answer. Of one
// with a code from 500 on client-go prints the body if it is text, for every kind of request.
// Of a Status it prints nothing where a caller wants bytes, as discovery does.

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// unreachable is the ErrorHandler of httputil.ReverseProxy.
func (p *traceProxy) unreachable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the command has hung up
	}
	p.failure.add(err)
	host := ""
	if c := callOf(r); c.upstream != nil {
		host = c.upstream.target.Host
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if triedAgain(r.Method, err) {
		w.Header().Set("Retry-After", "1") // seconds
	}
	w.WriteHeader(http.StatusBadGateway)
	fmt.Fprint(w, unreachableReason(host, err))
}

// triedAgain says which errors client-go itself meets with another request, up to ten times
// and a second apart (k8s.io/client-go/rest, Request.request). Retry-After makes it do so here,
// too. What may have changed something it never repeats.
func triedAgain(method string, err error) bool {
	return method == http.MethodGet &&
		(utilnet.IsConnectionReset(err) || utilnet.IsProbableEOF(err) || utilnet.IsHTTP2ConnectionLost(err))
}

// unreachableReason is what kubectl says of err, in one line. host may be "".
func unreachableReason(host string, err error) string {
	var noTLS tls.RecordHeaderError
	if errors.As(err, &noTLS) && string(noTLS.RecordHeader[:]) == "HTTP/" {
		err = errors.New("http: server gave HTTP response to HTTPS client") // as http.Client has it
	}
	reason := oneLine(err.Error())
	if host != "" && strings.Contains(reason, "connection refused") {
		return fmt.Sprintf("The connection to the server %s was refused - did you specify the right host or port? (%s)", host, reason)
	}
	return "Unable to connect to the server: " + reason
}
