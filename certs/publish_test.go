package certs_test

import (
	"strings"
	"testing"

	"github.com/tracehook/tracehook/certs"
)

func TestReferencesReadAsPeopleTypeThem(t *testing.T) {
	for text, want := range map[string]string{
		"mutatingwebhookconfiguration/tracehook":                                   "MutatingWebhookConfiguration/tracehook",
		"MutatingWebhookConfigurations/tracehook/trace-context.tracehook.dev":      "MutatingWebhookConfiguration/tracehook/trace-context.tracehook.dev",
		"validatingwebhookconfigurations.admissionregistration.k8s.io/a.b.c/d.e.f": "ValidatingWebhookConfiguration/a.b.c/d.e.f",
		"crd/things.example.org":                                                   "CustomResourceDefinition/things.example.org",
		"CustomResourceDefinitions/things.example.org":                             "CustomResourceDefinition/things.example.org",
		"apiservices/v1beta1.metrics.k8s.io":                                       "APIService/v1beta1.metrics.k8s.io",
		"apiservice":                                                               "!not of the form",
		"apiservice/":                                                              "!not of the form",
		"/name":                                                                    "!not of the form",
		"mutatingwebhookconfiguration/a/":                                          "!not of the form",
		"deployment/tracehook":                                                     "!is none of",
		"crd/things.example.org/hook":                                              "!only one webhook",
		"apiservice/v1.things.example.org/hook":                                    "!only one webhook",
		"mutatingwebhookconfiguration.v1.admissionregistration.k8s.io/tracehook/a.bc": "MutatingWebhookConfiguration/tracehook/a.bc",
	} {
		ref, err := certs.ParseRef(text)
		if wrong, is := strings.CutPrefix(want, "!"); is {
			if err == nil || !strings.Contains(err.Error(), wrong) {
				t.Errorf("%s: %v, want %q", text, err, wrong)
			}
			continue
		}
		if err != nil || ref.String() != want {
			t.Errorf("%s: %s, %v, want %s", text, ref, err, want)
		}
		if again, err := certs.ParseRef(ref.String()); err != nil || again != ref {
			t.Errorf("%s does not read as it is written: %+v, %v", ref, again, err)
		}
	}
}

// What is accepted reads as it is written.
func FuzzParseRef(f *testing.F) {
	for _, seed := range []string{"mutatingwebhookconfiguration/a", "ValidatingWebhookConfigurations/a.b/c.d/e", "crd/a", "apiservices.v1/a", "crds/", "//", "/a/b", "apiservice/\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := certs.ParseRef(text)
		if err != nil {
			return
		}
		if again, err := certs.ParseRef(ref.String()); err != nil || again != ref {
			t.Errorf("%q is read as %+v, which is read as %+v, %v", text, ref, again, err)
		}
	})
}
