package certs_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/tracehook/tracehook/certs"
)

func TestAServiceIsCalledByFourNamesOfWhichTheThirdIsVerified(t *testing.T) {
	got, err := certs.ServiceNames("tracehook-system", "tracehook", "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"tracehook",
		"tracehook.tracehook-system",
		"tracehook.tracehook-system.svc",
		"tracehook.tracehook-system.svc.cluster.local",
	}
	if !slices.Equal(got, want) {
		t.Errorf("ServiceNames = %q, want %q", got, want)
	}
	if name := certs.ServerName("tracehook-system", "tracehook"); name != want[2] {
		t.Errorf("ServerName = %q, want %q", name, want[2])
	}
}

func TestTheClusterDomainEndsTheLongestName(t *testing.T) {
	got, err := certs.ServiceNames("a", "b", "k8s.example.org")
	if err != nil {
		t.Fatal(err)
	}
	if last := got[len(got)-1]; last != "b.a.svc.k8s.example.org" {
		t.Errorf("longest name = %q, want b.a.svc.k8s.example.org", last)
	}
}

func TestNamesThatNoClusterHasAreRefusedWithTheReason(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, c := range []struct{ service, domain, reason string }{
		{"tracehook", "", "NAMESPACE/NAME"},
		{"", "", "NAMESPACE/NAME"},
		{"/tracehook", "", "namespace is empty"},
		{"tracehook-system/", "", "service name is empty"},
		{"a/b/c", "", `service name "b/c" is no DNS label`},
		{"a.b/c", "", `namespace "a.b" is no DNS label`},
		{"A/b", "", `namespace "A" is no DNS label`},
		{"a/b_c", "", `service name "b_c" is no DNS label`},
		{"a/-b", "", `service name "-b" is no DNS label`},
		{"a/b-", "", `service name "b-" is no DNS label`},
		{"a/*", "", `service name "*" is no DNS label`},
		{"a/" + long, "", `is no DNS label`},
		{"a/b", "cluster.local.", `cluster domain "cluster.local." is no DNS name`},
		{"a/b", "Cluster", `cluster domain "Cluster" is no DNS name`},
		{"a/b", strings.Repeat("a.", 125) + "a", "longer than the 253 characters"},
	} {
		namespace, name, err := certs.ParseService(c.service)
		if err == nil {
			_, err = certs.ServiceNames(namespace, name, c.domain)
		}
		if err == nil || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("service %q, domain %q: error %v, want one that says %q", c.service, c.domain, err, c.reason)
		}
	}
}

func TestAServiceOfTheLongestLabelsHasNames(t *testing.T) {
	label := strings.Repeat("a", 63)
	namespace, name, err := certs.ParseService(label + "/" + label)
	if err != nil {
		t.Fatal(err)
	}
	names, err := certs.ServiceNames(namespace, name, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 4 {
		t.Errorf("names = %q, want four", names)
	}
}

// Whatever is accepted must read back as what was typed and make names that Go takes for
// host names: a certificate for anything else could never be verified.
func FuzzParseService(f *testing.F) {
	for _, seed := range []string{"tracehook-system/tracehook", "a/b", "a", "/", "a/b/c", "A/b", "a/*", "xn--a/0", "a\x00/b", "é/b", "a/b\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		namespace, name, err := certs.ParseService(s)
		if err != nil {
			if namespace != "" || name != "" {
				t.Errorf("ParseService(%q) = %q, %q with error %v, want nothing with an error", s, namespace, name, err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("ParseService(%q): error %q is more than one line", s, err)
			}
			return
		}
		if namespace+"/"+name != s {
			t.Errorf("ParseService(%q) = %q, %q: does not read back", s, namespace, name)
		}
		names, err := certs.ServiceNames(namespace, name, "")
		if err != nil {
			t.Fatalf("ParseService accepts %q, ServiceNames does not: %v", s, err)
		}
		if !slices.Contains(names, certs.ServerName(namespace, name)) {
			t.Errorf("names %q lack the one that is verified, %q", names, certs.ServerName(namespace, name))
		}
		for _, n := range names {
			if err := hostCertificate(n).VerifyHostname(n); err != nil {
				t.Errorf("%q, from %q, is no host name for Go's verifier: %v", n, s, err)
			}
		}
	})
}
