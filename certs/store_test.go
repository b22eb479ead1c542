package certs

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// inTheMiddle is a State with everything that can be stored.
func inTheMiddle(t testing.TB) State {
	t.Helper()
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	s := State{Names: []string{"tracehook"}, Phase: PhaseNone}
	for _, a := range []Action{
		{Step: StepBootstrap, Phase: PhaseStable},
		{Step: StepIssueLeaf, Phase: PhaseStable, Leaf: true},
		{Step: StepIssueCA, Phase: PhaseIssued},
		{Step: StepIssueLeaf, Phase: PhaseIssued, Leaf: true, Next: true},
	} {
		var err error
		if s, err = a.apply(s, now, issuing{}); err != nil {
			t.Fatal(err)
		}
	}
	s.Distrusted, s.SkipSoak, s.Handled, s.Proof = []string{"abc"}, true, now, &Proof{Time: now, Certainty: Sampled, Servers: []string{"one"}}
	return s
}

func encoded(t testing.TB, s State) (ca, serving *corev1.Secret) {
	t.Helper()
	ca, serving = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "ca"}}, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "serving"}}
	if err := s.encodeCA(ca); err != nil {
		t.Fatal(err)
	}
	if err := s.encodeServing(serving, s.status()); err != nil {
		t.Fatal(err)
	}
	return ca, serving
}

func TestWhatIsStoredReadsBack(t *testing.T) {
	s := inTheMiddle(t)
	ca, serving := encoded(t, s)
	got := parseState(ca, serving)
	if len(got.Findings) > 0 {
		t.Errorf("findings %+v", got.Findings)
	}
	if got.caDiffers(s) || got.servingDiffers(s) || got.Phase != s.Phase || !got.Since.Equal(s.Since) || !reflect.DeepEqual(got.Proof, s.Proof) {
		t.Errorf("%+v\nwant\n%+v", got.status(), s.status())
	}
	if !bytes.Equal(ca.Data[caKey], must(s.CA.KeyPEM())) || bytes.Contains(serving.Data[ServingKey], ca.Data[caKey]) {
		t.Error("keys are not where they belong")
	}
	for name, text := range serving.Annotations {
		if strings.Contains(text, "PRIVATE") {
			t.Errorf("annotation %s holds a key", name)
		}
	}
}

func must(out []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return out
}

func TestEverythingElseInASecretStays(t *testing.T) {
	s := inTheMiddle(t)
	_, serving := encoded(t, s)
	serving.Data["theirs"], serving.Labels = []byte("x"), map[string]string{"theirs": "x"}
	serving.Annotations["theirs"] = "x"
	key := serving.Data[ServingKey]
	if err := s.encodeServing(serving, Status{}); err != nil {
		t.Fatal(err)
	}
	if string(serving.Data["theirs"]) != "x" || serving.Labels["theirs"] != "x" || serving.Annotations["theirs"] != "x" || !bytes.Equal(key, serving.Data[ServingKey]) {
		t.Errorf("%v %v", serving.Labels, serving.Annotations)
	}
}

func TestOneKindOfFaultIsOneFindingAndTheRestIsRead(t *testing.T) {
	for _, c := range []struct {
		what    string
		harm    func(ca, serving *corev1.Secret)
		phase   Phase
		finding string
	}{
		{"half a pair", func(_, s *corev1.Secret) { delete(s.Data, ServingKey) }, PhaseIssued, "the key is missing"},
		{"the other half", func(_, s *corev1.Secret) { delete(s.Data, ServingCertificate) }, PhaseIssued, "the certificate is missing"},
		{"garbage", func(_, s *corev1.Secret) { s.Data[ServingCertificate] = []byte("x") }, PhaseIssued, "cannot be read"},
		{"a garbage key", func(_, s *corev1.Secret) { s.Data[ServingKey] = []byte("x") }, PhaseIssued, "the key cannot be read"},
		{"another's key", func(_, s *corev1.Secret) { s.Data[ServingKey] = s.Data[ServingNextKey] }, PhaseIssued, "is not that of"},
		{"the phase is lost", func(ca, _ *corev1.Secret) { delete(ca.Annotations, stateAnnotation) }, PhaseIssued, "by what else there is"},
		{"the phase is one of a later version", func(ca, _ *corev1.Secret) { ca.Annotations[stateAnnotation] = `{"phase":"later"}` }, PhaseIssued, "by what else there is"},
		{"phase and next CA are lost", func(ca, _ *corev1.Secret) {
			delete(ca.Annotations, stateAnnotation)
			delete(ca.Data, caNextCertificate)
			delete(ca.Data, caNextKey)
		}, PhaseSwitched, "by what else there is"},
		{"phase, next and previous CA are lost", func(ca, _ *corev1.Secret) {
			ca.Annotations = nil
			for _, key := range []string{caNextCertificate, caNextKey, caPrevious} {
				delete(ca.Data, key)
			}
		}, PhaseStable, "by what else there is"},
		{"a request that is none", func(_, s *corev1.Secret) { s.Annotations[requestAnnotation] = "soon" }, PhaseIssued, "is no request"},
	} {
		ca, serving := encoded(t, inTheMiddle(t))
		c.harm(ca, serving)
		s := parseState(ca, serving)
		if len(s.Findings) != 1 || !strings.Contains(s.Findings[0].Message, c.finding) || s.Phase != c.phase {
			t.Errorf("%s: phase %s, findings %+v", c.what, s.Phase, s.Findings)
		}
	}
	if s := parseState(nil, nil); s.Phase != PhaseNone || len(s.Findings) > 0 {
		t.Errorf("nothing is stored: %+v", s)
	}
}

// No clock is compared with another: of two operators' clocks one may be behind.
func TestARequestIsBegunOnceByItsID(t *testing.T) {
	s := inTheMiddle(t)
	s.HandledIDs = []string{"theirs", "taken in"}
	ca, serving := encoded(t, s)
	for _, c := range []struct {
		request RotationRequest
		begun   bool
	}{
		{RotationRequest{ID: "theirs", Time: s.Handled}, true},
		{RotationRequest{ID: "theirs", Time: s.Handled.Add(time.Hour)}, true},
		{RotationRequest{ID: "taken in", Time: s.Handled}, true},
		{RotationRequest{ID: "mine", Time: s.Handled}, false},
		{RotationRequest{ID: "mine", Time: s.Handled.Add(-time.Minute)}, false},
		{RotationRequest{ID: "mine", Time: s.Handled.Add(time.Minute)}, false},
		{RotationRequest{Time: s.Handled.Add(-time.Minute)}, false}, // from before there were IDs
	} {
		c.request.What = RotateLeaf
		text, _ := json.Marshal(c.request)
		serving.Annotations[requestAnnotation] = string(text)
		if got := parseState(ca, serving); got.requested() == c.begun {
			t.Errorf("%+v, the last one was %v of %s: begun %t", c.request, s.HandledIDs, s.Handled, !got.requested())
		}
		done := Status{Phase: PhaseStable, Settled: true, Request: s.Handled, RequestIDs: s.HandledIDs}
		if done.Finished(c.request) != c.begun {
			t.Errorf("%+v, the last one was %v of %s: finished %t", c.request, s.HandledIDs, s.Handled, !c.begun)
		}
	}
	t.Run("by a leader that knows times only", func(t *testing.T) {
		request := RotationRequest{ID: "mine", Time: s.Handled}
		for at, want := range map[time.Time]bool{request.Time: true, request.Time.Add(time.Minute): false} {
			if got := (Status{Phase: PhaseStable, Settled: true, Request: at}).Finished(request); got != want {
				t.Errorf("%s: finished %t, want %t", at, got, want)
			}
		}
	})
	t.Run("when the CA's Secret was lost", func(t *testing.T) {
		text, _ := json.Marshal(RotationRequest{ID: "theirs", Time: s.Handled, What: RotateCA})
		serving.Annotations[requestAnnotation] = string(text)
		if got := parseState(nil, serving); got.requested() {
			t.Errorf("%+v is begun again", got.Request)
		}
	})
}

// Two operators at once: what one of them wants dropped is not forgotten because the other asks for less.
func TestARequestTakesInTheOneThatWaits(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 4, 0, 0, time.UTC)
	earlier := RotationRequest{What: RotateCA, Drop: []string{"stolen"}, SkipSoak: true, Time: now.Add(time.Minute), ID: "theirs"}
	clients := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "serving"}})
	for _, r := range []RotationRequest{earlier, {What: RotateLeaf, Drop: []string{"stolen", "old"}, Time: now, ID: "mine"}} {
		if err := RequestRotation(t.Context(), clients, "a", "serving", r); err != nil {
			t.Fatal(err)
		}
	}
	secret, err := clients.CoreV1().Secrets("a").Get(t.Context(), "serving", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := parseState(nil, secret)
	want := RotationRequest{What: RotateCA, Drop: []string{"stolen", "old"}, SkipSoak: true, Time: now, ID: "mine", With: []string{"theirs"}}
	if !reflect.DeepEqual(s.Request, want) {
		t.Errorf("%+v\nwant\n%+v", s.Request, want)
	}
	s = s.begun()
	for _, r := range []RotationRequest{earlier, want} {
		if !s.status().Begun(r) {
			t.Errorf("nobody says that %s was begun: %v", r.ID, s.HandledIDs)
		}
	}
	// One that was begun waits no longer.
	secret.Annotations[statusAnnotation] = string(must(json.Marshal(s.status())))
	if _, err := clients.CoreV1().Secrets("a").Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := RequestRotation(t.Context(), clients, "a", "serving", RotationRequest{What: RotateLeaf, Time: now, ID: "third"}); err != nil {
		t.Fatal(err)
	}
	if secret, err = clients.CoreV1().Secrets("a").Get(t.Context(), "serving", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := parseState(nil, secret); s.Request.What != RotateLeaf || len(s.Request.With) > 0 || len(s.Request.Drop) > 0 {
		t.Errorf("it asks again for what was begun: %+v", s.Request)
	}
}

func TestTheNextCADoesNotVouchForACompromisedOne(t *testing.T) {
	s := inTheMiddle(t)
	if s.Cross == nil || s.NextCross == nil || s.Cross.NotAfter.Sub(s.Since) > crossLifetime {
		t.Fatal("without a reason against it each CA vouches for the other, the next one for a day")
	}
	s.Phase, s.Distrusted = PhaseStable, []string{Fingerprint(s.CA.Certificate)}
	got, err := Action{Step: StepIssueCA, Phase: PhaseIssued}.apply(s, s.Since, issuing{})
	if err != nil || got.Cross != nil || got.NextCross == nil {
		t.Errorf("the next CA vouches for it: %t, %v", got.Cross != nil, err)
	}
}

// Whatever is in the Secrets: they are read, something is decided and done, and what is stored then reads back without a finding
// about what was just written.
func FuzzSecretsAreReadWhateverTheyHold(f *testing.F) {
	ca, serving := encoded(f, inTheMiddle(f))
	f.Add(ca.Data[caCertificate], ca.Data[caKey], ca.Data[caNextCertificate], ca.Data[caNextKey], ca.Data[caPrevious], ca.Data[caCross], ca.Annotations[stateAnnotation],
		serving.Data[ServingCertificate], serving.Data[ServingKey], serving.Annotations[statusAnnotation], serving.Annotations[requestAnnotation], []byte{})
	f.Add([]byte("x"), []byte{}, []byte{}, []byte{}, []byte("x"), []byte{}, "{}", []byte("-----BEGIN"), []byte{}, "{", `{"what":"ca","time":"2026-11-22T10:00:00Z"}`, ca.Data[caCertificate])
	now := time.Date(2026, 11, 22, 11, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, caCrt, caK, nextCrt, nextK, previous, cross []byte, state string, crt, key []byte, status, request string, bundle []byte) {
		ca := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{stateAnnotation: state}},
			Data: map[string][]byte{caCertificate: caCrt, caKey: caK, caNextCertificate: nextCrt, caNextKey: nextK, caPrevious: previous, caCross: cross}}
		serving := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{statusAnnotation: status, requestAnnotation: request}},
			Data: map[string][]byte{ServingCertificate: crt, ServingKey: key}}
		s := parseState(ca, serving)
		s.Names = []string{"tracehook"}
		s.Targets = []TargetState{{Bundles: []LiveBundle{{Bundle: bundle, ServerName: "tracehook"}}}}
		action, why := Next(s, now)
		if why == "" {
			t.Errorf("%s without a reason", action.Step)
		}
		after, err := action.apply(s, now, issuing{})
		if err != nil {
			return
		}
		if err := after.encodeCA(ca); err != nil {
			t.Fatal(err)
		}
		if err := after.encodeServing(serving, after.status()); err != nil {
			t.Fatal(err)
		}
		if again := parseState(ca, serving); again.Phase != after.Phase || again.caDiffers(after) {
			t.Errorf("%s: stored %+v, read %+v", action.Step, after.status(), again.status())
		}
	})
}
