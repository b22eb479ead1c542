package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestTheUserIsToldWhatTheAPIServerMakesOfTheTrace(t *testing.T) {
	for _, c := range []struct {
		name    string
		version string
		status  int
		groups  string // JSON
		want    parentage
	}{
		{"a developer", "v1.36.3", http.StatusCreated, `["devs","system:authenticated"]`, parentageUserOnly},
		{"kubeadm's administrator", "v1.33.0", http.StatusCreated, `["kubeadm:cluster-admins","system:authenticated"]`, parentageUserOnly},
		{"a developer of EKS", "v1.34.1-eks-1a2b3c", http.StatusCreated, `["devs"]`, parentageUserOnly},
		{"an administrator", "v1.36.3", http.StatusCreated, `["system:masters","system:authenticated"]`, parentageContinued},
		{"a monitor", "v1.33.0-alpha.1", http.StatusCreated, `["system:authenticated","system:monitoring"]`, parentageContinued},
		{"a version that nobody may see", "", http.StatusCreated, `["system:masters"]`, parentageContinued},
		{"an administrator of an older cluster", "v1.32.9", http.StatusCreated, `["system:masters"]`, parentageNobody},
		{"a cluster that is older still", "v1.27.3-gke.100", http.StatusNotFound, `[]`, parentageNobody},
		{"a forbidden question", "v1.36.3", http.StatusForbidden, `[]`, parentageUnknown},
		{"an answer that is none", "v1.36.3", http.StatusCreated, `nonsense`, parentageUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, config := startAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				for name := range r.Header {
					// Who is impersonated does not matter, and nothing is traced.
					if strings.HasPrefix(name, "Impersonate") || name == "Traceparent" {
						t.Errorf("asked with the header %s", name)
					}
				}
				w.Header().Set("Content-Type", "application/json")
				if r.Method == http.MethodGet && r.URL.Path == "/version" {
					if c.version == "" {
						w.WriteHeader(http.StatusForbidden)
					}
					fmt.Fprintf(w, `{"major":"1","gitVersion":%q}`, c.version)
					return
				}
				var asked struct{ APIVersion, Kind string }
				err := json.NewDecoder(r.Body).Decode(&asked)
				if err != nil || r.Method != http.MethodPost || r.URL.Path != "/apis/authentication.k8s.io/v1/selfsubjectreviews" ||
					asked.APIVersion != "authentication.k8s.io/v1" || asked.Kind != "SelfSubjectReview" || r.Header.Get("Authorization") != "Bearer real" {
					t.Errorf("asked %s %s with %+v, %v", r.Method, r.URL, asked, err)
				}
				w.WriteHeader(c.status)
				fmt.Fprintf(w, `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview","status":{"userInfo":{"username":"alice","groups":%s}}}`, c.groups)
			})
			config.Impersonate.UserName = "bob"
			var r parentageReview
			r.start(t.Context(), config)
			if got := r.result(); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestNobodyIsAskedWhereTheCommandAskedNothing(t *testing.T) {
	var r parentageReview
	if got := r.result(); got != parentageUnknown {
		t.Errorf("got the answer %d to no question", got)
	}
}
