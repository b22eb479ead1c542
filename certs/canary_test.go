package certs_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	reviewv1 "k8s.io/api/admission/v1"

	"github.com/tracehook/tracehook/certs"
)

const probe = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","operation":"CREATE","object":{"metadata":{"labels":{"tracehook.dev/proof":"g1"}}}}}`

func TestTheProofHandlerAnswersForWhatItPresentsAndNothingElse(t *testing.T) {
	ca := forge(t, nil, asCA("CA"))
	current, next := forge(t, &ca), forge(t, &ca)
	handler := certs.ProofHandler(func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		switch hello.ServerName {
		case "proof.example.svc":
			return &tls.Certificate{Certificate: [][]byte{next.Certificate.Raw}}, nil
		case "empty.example.svc":
			return &tls.Certificate{}, nil
		case "none.example.svc":
			return nil, errors.New("there is no certificate yet")
		}
		return &tls.Certificate{Certificate: [][]byte{current.Certificate.Raw}}, nil
	})
	fingerprint := certs.Fingerprint(next.Certificate)
	good := "/prove/g1/" + fingerprint + "?timeout=5s"
	for name, row := range map[string]struct {
		method, path, body, host string
		status                   int
		says                     string // in the body, or in the refusal
		allowed                  bool
	}{
		"what is presented":             {path: good, allowed: true},
		"whatever is presented":         {path: "/prove/g1/any", host: "other.example.svc", allowed: true},
		"another certificate":           {path: good, host: "other.example.svc", says: "does not present the certificate that is to be proven yet, but " + certs.Fingerprint(current.Certificate)},
		"no certificate":                {path: good, host: "none.example.svc", says: "there is no certificate yet"},
		"an empty certificate":          {path: good, host: "empty.example.svc", says: "this server has no certificate"},
		"without TLS":                   {path: "/prove/g1/any", host: "-", says: "this connection presents no certificate"},
		"a generation that is no label": {path: "/prove/G%22/any", says: "the generation is no DNS label"},
		"GET":                           {method: http.MethodGet, path: good, status: http.StatusMethodNotAllowed},
		"another path":                  {path: "/prove/g1", status: http.StatusNotFound},
		"no JSON":                       {path: good, body: "{", status: http.StatusBadRequest, says: "read AdmissionReview"},
		"no request":                    {path: good, body: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, status: http.StatusBadRequest, says: "no AdmissionReview"},
		"no UID":                        {path: good, body: strings.Replace(probe, "u-1", "", 1), status: http.StatusBadRequest, says: "no AdmissionReview"},
		"another version":               {path: good, body: strings.Replace(probe, "k8s.io/v1", "k8s.io/v1beta1", 1), status: http.StatusBadRequest, says: "no AdmissionReview"},
		"too long a body":               {path: good, body: probe + strings.Repeat(" ", 256<<10), status: http.StatusBadRequest, says: "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			if row.method == "" {
				row.method = http.MethodPost
			}
			if row.body == "" {
				row.body = probe
			}
			if row.host == "" {
				row.host = "proof.example.svc"
			}
			r := httptest.NewRequest(row.method, row.path, strings.NewReader(row.body))
			if row.host != "-" {
				r.TLS = &tls.ConnectionState{ServerName: row.host}
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			body, _ := io.ReadAll(w.Body)
			if row.status != 0 {
				if w.Code != row.status || !strings.Contains(string(body), row.says) {
					t.Errorf("got %d %s", w.Code, body)
				}
				return
			}
			if w.Code != http.StatusOK || w.Header().Get("Connection") != "close" {
				t.Errorf("got %d, Connection: %s", w.Code, w.Header().Get("Connection"))
			}
			var review reviewv1.AdmissionReview
			if err := json.Unmarshal(body, &review); err != nil {
				t.Fatal(err)
			}
			answer := review.Response
			if review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" || review.Request != nil || answer.UID != "u-1" || answer.Allowed != row.allowed {
				t.Fatalf("got %s", body)
			}
			if row.allowed {
				if string(answer.Patch) != `[{"op":"add","path":"/metadata/annotations","value":{"tracehook.dev/proof":"g1"}}]` || *answer.PatchType != reviewv1.PatchTypeJSONPatch {
					t.Errorf("got %s", body)
				}
			} else if answer.Result == nil || !strings.Contains(answer.Result.Message, row.says) || answer.Patch != nil {
				t.Errorf("got %s", body)
			}
		})
	}
}

func FuzzTheProofHandlerNeverPanics(f *testing.F) {
	handler := certs.ProofHandler(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil })
	f.Add([]byte(probe))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/prove/g1/any", strings.NewReader(string(body)))
		r.TLS = &tls.ConnectionState{}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
			t.Errorf("got %d", w.Code)
		}
	})
}
