package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestTheUserIsToldWhereTheAPIServerOnlyLinks(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		groups string // JSON
		want   bool
	}{
		{"a developer", http.StatusCreated, `["devs","system:authenticated"]`, true},
		{"kubeadm's administrator", http.StatusCreated, `["kubeadm:cluster-admins","system:authenticated"]`, true},
		{"an administrator", http.StatusCreated, `["system:masters","system:authenticated"]`, false},
		{"a monitor", http.StatusCreated, `["system:authenticated","system:monitoring"]`, false},
		{"an older cluster", http.StatusNotFound, `[]`, false},
		{"a forbidden question", http.StatusForbidden, `[]`, false},
		{"an answer that is none", http.StatusCreated, `nonsense`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				var asked struct{ APIVersion, Kind string }
				err := json.NewDecoder(r.Body).Decode(&asked)
				if err != nil || r.Method != http.MethodPost || r.URL.Path != "/apis/authentication.k8s.io/v1/selfsubjectreviews" ||
					asked.APIVersion != "authentication.k8s.io/v1" || asked.Kind != "SelfSubjectReview" || r.Header.Get("Authorization") != "Bearer real" {
					t.Errorf("asked %s %s with %+v, %v", r.Method, r.URL, asked, err)
				}
				for name := range r.Header {
					// Who is impersonated does not matter, and nothing is traced.
					if strings.HasPrefix(name, "Impersonate") || name == "Traceparent" {
						t.Errorf("asked with the header %s", name)
					}
				}
				w.WriteHeader(c.status)
				fmt.Fprintf(w, `{"kind":"SelfSubjectReview","status":{"userInfo":{"username":"alice","groups":%s}}}`, c.groups)
			})
			config.Impersonate.UserName = "bob"
			r := newParentageReview(&userCluster{rest: config})
			r.start(t.Context())
			if got := r.linkedOnly(); got != c.want {
				t.Errorf("got %t, want %t", got, c.want)
			}
		})
	}
}

func TestNobodyIsAskedWhereTheCommandAskedNothing(t *testing.T) {
	_, config := startAPIServer(t, func(http.ResponseWriter, *http.Request) { t.Error("the API server was asked") })
	if newParentageReview(&userCluster{rest: config}).linkedOnly() {
		t.Error("got an answer to no question")
	}
}
