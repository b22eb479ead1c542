package authority

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
)

func TestFromNothingToServingWithRightsForTwoSecretsByName(t *testing.T) {
	p := newPlace(t)
	kubeconfig, err := shared.User("authority-of-" + p.name)
	if err != nil {
		t.Fatal(err)
	}
	p.grant("authority-of-" + p.name)
	config := restConfig(t, kubeconfig)
	o := p.options(config, "a")
	o.Now = nil // the API server's clock
	p.start(o)
	status := p.settled(always)
	if err := p.healthy(); err != nil {
		t.Errorf("settled, and calls would fail: %v", err)
	}
	if status.Phase != certs.PhaseStable || status.Leader != "a" || status.CA == nil || status.Leaf == nil || len(status.Findings) > 0 {
		t.Errorf("status %+v", status)
	}
	serving := p.secret(certs.DefaultServingSecret)
	if key := p.secret(certs.DefaultCASecret).Data["ca.key"]; len(key) == 0 {
		t.Error("the CA's Secret holds no key")
	} else {
		for name, data := range serving.Data {
			if bytes.Contains(data, bytes.TrimSpace(key)) {
				t.Errorf("%s of the serving Secret holds the CA's key", name)
			}
		}
	}
	if !bytes.Equal(serving.Data[certs.ServingCA], p.bundle()) {
		t.Error("ca.crt of the serving Secret is not the live bundle")
	}

	// And no other Secret, in either way of creating one.
	clients := o.Clients.CoreV1().Secrets(p.name)
	if _, err := clients.Apply(p.ctx, coreapply.Secret("other", p.name), metav1.ApplyOptions{FieldManager: "a"}); !apierrors.IsForbidden(err) {
		t.Errorf("another Secret by server-side apply: %v, want forbidden", err)
	}
	if _, err := clients.Create(p.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("another Secret by create: %v, want forbidden", err)
	}
}

// grant is what the manifests give to an authority.
func (p *place) grant(user string) {
	p.t.Helper()
	subject := []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}}
	meta := metav1.ObjectMeta{Name: user}
	role := &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{certs.DefaultCASecret, certs.DefaultServingSecret},
			Verbs: []string{"get", "list", "watch", "create", "update", "patch"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: []string{certs.DefaultLeaseName}, Verbs: []string{"get", "update"}},
		{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create"}},
	}}
	clusterRole := &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"admissionregistration.k8s.io"}, Resources: []string{"mutatingwebhookconfigurations"}, ResourceNames: []string{p.name},
			Verbs: []string{"get", "list", "watch", "patch"}},
	}}
	ref := func(kind string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: user}
	}
	rbac := p.admin.RbacV1()
	var errs [4]error
	_, errs[0] = rbac.Roles(p.name).Create(p.ctx, role, metav1.CreateOptions{})
	_, errs[1] = rbac.RoleBindings(p.name).Create(p.ctx, &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: subject, RoleRef: ref("Role")}, metav1.CreateOptions{})
	_, errs[2] = rbac.ClusterRoles().Create(p.ctx, clusterRole, metav1.CreateOptions{})
	_, errs[3] = rbac.ClusterRoleBindings().Create(p.ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta, Subjects: subject, RoleRef: ref("ClusterRole")}, metav1.CreateOptions{})
	for _, err := range errs {
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

func TestALeafIsRenewedAfterTwoThirdsOfItsLifeAndTheCAToo(t *testing.T) {
	p := newPlace(t)
	var mu sync.Mutex
	var phases []certs.Phase
	o := p.options(shared.RESTConfig, "a")
	o.OnStep = func(s certs.Status) {
		mu.Lock()
		defer mu.Unlock()
		if len(phases) == 0 || phases[len(phases)-1] != s.Phase {
			phases = append(phases, s.Phase)
		}
	}
	p.start(o)
	first := p.settled(always)
	bundle := p.bundle()

	p.clock.add(5 * 24 * time.Hour)
	p.poke()
	second := p.settled(func(s certs.Status) bool { return s.Leaf.Fingerprint != first.Leaf.Fingerprint })
	if second.CA.Fingerprint != first.CA.Fingerprint || !bytes.Equal(bundle, p.bundle()) {
		t.Error("with a new leaf CA or bundle changed")
	}
	if want := p.clock.Now().Add(7 * 24 * time.Hour); want.Sub(second.Leaf.NotAfter).Abs() > time.Minute {
		t.Errorf("the new leaf ends on %s, want %s", second.Leaf.NotAfter, want)
	}

	for range 15 { // the authority lives on while time passes
		p.clock.add(4 * 24 * time.Hour)
		p.poke()
		p.settled(func(s certs.Status) bool {
			return !s.Leaf.RenewAt.Before(p.clock.Now()) && !s.CA.RenewAt.Before(p.clock.Now())
		})
		if err := p.healthy(); err != nil {
			t.Fatal(err)
		}
	}
	last := p.status()
	if last.CA.Fingerprint == first.CA.Fingerprint {
		t.Fatalf("after %s the CA is still the first one", 65*24*time.Hour)
	}
	if anchors, _ := certs.ParseBundle(p.bundle()); len(anchors) != 1 || certs.Fingerprint(anchors[0]) != last.CA.Fingerprint {
		t.Errorf("the bundle holds %d certificates, want the new CA alone", len(anchors))
	}
	mu.Lock()
	defer mu.Unlock()
	want := append([]certs.Phase{certs.PhaseDropped}, certs.Phases()[1:]...) // the first CA is proven too
	if want = append(want, certs.PhaseStable); !slices.Equal(phases, want) {
		t.Errorf("phases %q, want %q", phases, want)
	}
	if last.Proof == nil || last.Proof.Certainty != certs.Proven {
		t.Errorf("last proof %+v", last.Proof)
	}
}

func TestAnAuthorityThatDiesAfterEveryStepStillReplacesTheCA(t *testing.T) {
	p := newPlace(t)
	stop := p.start(p.options(shared.RESTConfig, "first"))
	first := p.settled(always)
	stop()
	request := certs.RotationRequest{What: certs.RotateCA, Time: p.clock.Now()}
	if err := certs.RequestRotation(p.ctx, p.admin, p.name, certs.DefaultServingSecret, request); err != nil {
		t.Fatal(err)
	}
	lives := 0
	for finished := false; !finished; lives++ {
		if lives > 40 {
			t.Fatalf("not finished after %d lives: %+v", lives, p.status())
		}
		// It dies before it can tell anybody of its step: in OnStep, that is.
		ctx, die := context.WithCancel(p.ctx)
		o := p.options(shared.RESTConfig, fmt.Sprint("life-", lives))
		o.OnStep = func(s certs.Status) {
			underway := s.Error == "" && (s.Step == certs.StepProve && s.Phase != certs.PhaseProven && s.Phase != certs.PhaseStable || s.Step == certs.StepCheck && s.Phase == certs.PhaseSwitched)
			if !underway {
				finished = s.Finished(request)
				die()
			}
		}
		a, err := certs.NewAuthority(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Start(ctx); err != nil {
			t.Fatal(err)
		}
		die()
		if err := p.healthy(); err != nil {
			t.Fatalf("after life %d, in phase %s: %v", lives, p.status().Phase, err)
		}
	}
	last := p.status()
	if last.CA.Fingerprint == first.CA.Fingerprint || lives < 8 {
		t.Errorf("after %d lives the CA is %+v", lives, last.CA)
	}
}

func TestWhatIsBrokenIsPutRight(t *testing.T) {
	p := newPlace(t)
	p.start(p.options(shared.RESTConfig, "a"))
	p.settled(always)
	other, err := certs.NewCA(certs.CAOptions{Now: p.clock.Now()})
	if err != nil {
		t.Fatal(err)
	}
	expired, err := certs.NewCA(certs.CAOptions{Now: p.clock.Now().AddDate(-1, 0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	expiredLeaf, err := certs.Issue(expired, certs.LeafOptions{Now: p.clock.Now().AddDate(-1, 0, 0), Names: []string{p.host}})
	if err != nil {
		t.Fatal(err)
	}
	serving := func(change func(map[string][]byte)) func() {
		return func() {
			p.change(certs.DefaultServingSecret, func(s *corev1.Secret) {
				if s.Data == nil {
					s.Data = map[string][]byte{}
				}
				change(s.Data)
			})
		}
	}
	pem := func(out []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, c := range []struct {
		what  string
		harm  func()
		newCA bool
	}{
		{"the bundle is wiped", func() { p.setBundle(nil) }, false},
		{"the bundle is garbage", func() { p.setBundle([]byte("garbage")) }, false},
		{"the bundle trusts somebody else instead", func() { p.setBundle(pem(other.CertificatePEM())) }, false},
		{"the serving Secret is deleted", func() {
			if err := p.admin.CoreV1().Secrets(p.name).Delete(p.ctx, certs.DefaultServingSecret, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"half of the pair is missing", serving(func(data map[string][]byte) { delete(data, certs.ServingKey) }), false},
		{"the certificate is garbage", serving(func(data map[string][]byte) { data[certs.ServingCertificate] = []byte("garbage") }), false},
		{"the key is another's", serving(func(data map[string][]byte) { data[certs.ServingKey] = pem(other.KeyPEM()) }), false},
		{"the pair has expired", serving(func(data map[string][]byte) {
			data[certs.ServingCertificate], data[certs.ServingKey] = pem(expiredLeaf.CertificatePEM()), pem(expiredLeaf.KeyPEM())
		}), false},
		{"the CA's key is garbage", func() {
			p.change(certs.DefaultCASecret, func(s *corev1.Secret) { s.Data["ca.key"] = []byte("garbage") })
		}, true},
		{"the CA's Secret is deleted", func() {
			if err := p.admin.CoreV1().Secrets(p.name).Delete(p.ctx, certs.DefaultCASecret, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			p.t = t
			before := p.status()
			c.harm()
			p.until("calls would work again", p.repaired)
			after := p.settled(func(s certs.Status) bool { return p.repaired() == nil && len(s.Findings) == 0 })
			if changed := before.CA.Fingerprint != after.CA.Fingerprint; changed != c.newCA {
				t.Errorf("another CA: %t, want %t", changed, c.newCA)
			}
		})
	}
}

// repaired: calls work, and there is a CA for the next leaf.
func (p *place) repaired() error {
	if err := p.works(); err != nil {
		return err
	}
	ca := p.secret(certs.DefaultCASecret)
	if ca == nil {
		return fmt.Errorf("there is no CA Secret")
	}
	_, err := certs.ParsePair(ca.Data["ca.crt"], ca.Data["ca.key"])
	return err
}

// works: calls do, with what is stored.
func (p *place) works() error {
	secret := p.secret(certs.DefaultServingSecret)
	if secret == nil {
		return fmt.Errorf("there is no serving Secret")
	}
	pair, err := certs.ParsePair(secret.Data[certs.ServingCertificate], secret.Data[certs.ServingKey])
	if err != nil {
		return err
	}
	findings := certs.Verify([]*x509.Certificate{pair.Certificate}, certs.Trust{Bundle: p.bundle()}, p.host, p.clock.Now())
	if !certs.Predict(findings).Works {
		return fmt.Errorf("%+v", findings)
	}
	return nil
}

func TestSomebodyElsesHealthyPairIsTakenOverWithoutAGap(t *testing.T) {
	p := newPlace(t)
	ca, err := certs.NewCA(certs.CAOptions{Now: p.clock.Now(), CommonName: "somebody else's"})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: p.clock.Now(), Names: []string{p.host}})
	if err != nil {
		t.Fatal(err)
	}
	certificate, _ := leaf.CertificatePEM()
	key, _ := leaf.KeyPEM()
	bundle, _ := ca.CertificatePEM()
	if _, err := p.admin.CoreV1().Secrets(p.name).Create(p.ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: certs.DefaultServingSecret, Labels: map[string]string{"theirs": "kept"}},
		Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": certificate, "tls.key": key}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.setBundle(bundle)
	o := p.options(shared.RESTConfig, "a")
	o.OnStep = func(s certs.Status) {
		if err := p.works(); err != nil {
			t.Errorf("after step %s: %v", s.Step, err)
		}
	}
	p.start(o)
	p.settled(always)
	anchors, _ := certs.ParseBundle(p.bundle())
	if len(anchors) != 1 || anchors[0].Equal(ca.Certificate) {
		t.Errorf("the bundle holds %d certificates, want the new CA alone", len(anchors))
	}
	if secret := p.secret(certs.DefaultServingSecret); secret.Labels["theirs"] != "kept" || secret.Type != corev1.SecretTypeTLS {
		t.Errorf("labels %v, type %s: want those that were there", secret.Labels, secret.Type)
	}
}

func TestADroppedCAIsTrustedNoMoreWhoeverPutsItBack(t *testing.T) {
	p := newPlace(t)
	o := p.options(shared.RESTConfig, "a")
	o.Soak = time.Hour // is not waited for
	p.start(o)
	first := p.settled(always)
	compromised := p.bundle()
	request := certs.RotationRequest{What: certs.RotateCA, Drop: []string{first.CA.Fingerprint}, SkipSoak: true, Time: p.clock.Now()}
	if err := certs.RequestRotation(p.ctx, p.admin, p.name, certs.DefaultServingSecret, request); err != nil {
		t.Fatal(err)
	}
	p.settled(func(s certs.Status) bool { return s.Finished(request) })
	p.setBundle(append(compromised, p.bundle()...))
	p.until("the compromised CA is gone again", func() error {
		anchors, _ := certs.ParseBundle(p.bundle())
		if len(anchors) != 1 || certs.Fingerprint(anchors[0]) == first.CA.Fingerprint {
			return fmt.Errorf("the bundle holds %d certificates", len(anchors))
		}
		return nil
	})
}

// Two operators, of whom the second has a clock that is a minute behind: what he asks for is done before he is told so. And of two
// requests that come at once neither is lost.
func TestARotationIsNotDoneBecauseAnotherOperatorsClockIsAhead(t *testing.T) {
	p := newPlace(t)
	o := p.options(shared.RESTConfig, "a")
	o.Soak = time.Hour // is not waited for
	p.start(o)
	p.settled(always)
	ask := func(r certs.RotationRequest) certs.RotationRequest {
		t.Helper()
		r.ID = certs.NewRotationID()
		if err := certs.RequestRotation(p.ctx, p.admin, p.name, certs.DefaultServingSecret, r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	theirs := ask(certs.RotationRequest{What: certs.RotateLeaf, Time: p.clock.Now().Add(time.Minute)})
	first := p.settled(func(s certs.Status) bool { return s.Finished(theirs) })
	mine := certs.RotationRequest{What: certs.RotateCA, Drop: []string{first.CA.Fingerprint}, SkipSoak: true, Time: p.clock.Now()}
	if mine.ID = "not asked yet"; first.Finished(mine) {
		t.Error("done before it was asked for")
	}
	mine = ask(mine)
	also := ask(certs.RotationRequest{What: certs.RotateLeaf, Time: p.clock.Now()})
	second := p.settled(func(s certs.Status) bool {
		return s.Finished(mine) || s.Finished(also) && s.CA.Fingerprint != first.CA.Fingerprint
	})
	if second.CA.Fingerprint == first.CA.Fingerprint {
		t.Errorf("done, and the CA is the one of before: %+v", second)
	}
	p.settled(func(s certs.Status) bool { return s.Finished(also) })
	if anchors, _ := certs.ParseBundle(p.bundle()); len(anchors) != 1 || certs.Fingerprint(anchors[0]) == first.CA.Fingerprint {
		t.Errorf("the bundle holds %d certificates, want the new CA alone", len(anchors))
	}
}

// Without a Lease between them: each leads. The Secrets' versions alone must keep them from undoing each other's work.
func TestOfManyLeadersAtOnceOneMakesTheCA(t *testing.T) {
	p := newPlace(t)
	watch, err := p.admin.CoreV1().Secrets(p.name).Watch(p.ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + certs.DefaultCASecret})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range watch.ResultChan() {
			if secret, ok := event.Object.(*corev1.Secret); ok && len(secret.Data["ca.crt"]) > 0 {
				seen[string(secret.Data["ca.crt"])] = true
			}
		}
	}()
	for i := range 8 {
		o := p.options(shared.RESTConfig, fmt.Sprint("leader-", i))
		o.LeaseName = o.Identity
		p.start(o)
	}
	p.settled(always)
	p.until("calls would work", p.healthy)
	watch.Stop()
	<-done
	if len(seen) != 1 {
		t.Errorf("%d CAs were stored one after the other, want one", len(seen))
	}
}

func TestOneOfTwoAuthoritiesLeadsAndTheOtherFollowsAtOnce(t *testing.T) {
	p := newPlace(t)
	options := func(identity string) certs.AuthorityOptions {
		o := p.options(shared.RESTConfig, identity)
		o.LeaseDuration, o.RenewDeadline = time.Hour, 50*time.Minute // nobody waits for its end
		return o
	}
	stop := p.start(options("one"))
	if s := p.settled(always); s.Leader != "one" {
		t.Fatalf("leader %q", s.Leader)
	}
	p.start(options("two"))
	stop() // the Lease is given back
	request := certs.RotationRequest{What: certs.RotateLeaf, Time: p.clock.Now()}
	if err := certs.RequestRotation(p.ctx, p.admin, p.name, certs.DefaultServingSecret, request); err != nil {
		t.Fatal(err)
	}
	if s := p.settled(func(s certs.Status) bool { return s.Finished(request) }); s.Leader != "two" {
		t.Errorf("leader %q, want two", s.Leader)
	}
}

// held is a transport that keeps the writes of a Secret back while it is armed.
type held struct {
	next    http.RoundTripper
	suffix  string
	armed   chan struct{} // closed: hold
	waiting chan struct{} // a write waits
	release chan struct{} // closed: let go
	once    sync.Once
	answers chan int
}

func (h *held) RoundTrip(req *http.Request) (*http.Response, error) {
	armed := false
	select {
	case <-h.armed:
		armed = true
	default:
	}
	if !armed || req.Method != http.MethodPut || !strings.HasSuffix(req.URL.Path, h.suffix) {
		return h.next.RoundTrip(req)
	}
	h.once.Do(func() { close(h.waiting) })
	<-h.release
	// A process that was stopped and goes on knows nothing of its deadline: the request goes out.
	resp, err := h.next.RoundTrip(req.WithContext(context.WithoutCancel(req.Context())))
	if err == nil {
		select {
		case h.answers <- resp.StatusCode:
		default:
		}
	}
	return resp, err
}

func TestALeaderOfYesterdayOverwritesNothing(t *testing.T) {
	p := newPlace(t)
	h := &held{suffix: "/secrets/" + certs.DefaultCASecret, armed: make(chan struct{}), waiting: make(chan struct{}), release: make(chan struct{}), answers: make(chan int, 1)}
	config := rest.CopyConfig(shared.RESTConfig)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { h.next = next; return h })
	old := p.options(config, "old")
	old.LeaseName = "of-yesterday"
	p.start(old)
	p.settled(always)

	close(h.armed)
	request := certs.RotationRequest{What: certs.RotateCA, Time: p.clock.Now()}
	if err := certs.RequestRotation(p.ctx, p.admin, p.name, certs.DefaultServingSecret, request); err != nil {
		t.Fatal(err)
	}
	<-h.waiting // it has decided, and does not get on
	p.start(p.options(shared.RESTConfig, "new"))
	after := p.settled(func(s certs.Status) bool { return s.Finished(request) })
	close(h.release)
	if code := <-h.answers; code != http.StatusConflict {
		t.Errorf("the write of the old leader: %d, want 409", code)
	}
	if s := p.status(); s.CA.Fingerprint != after.CA.Fingerprint {
		t.Errorf("CA %s, want that of the new leader, %s", s.CA.Fingerprint, after.CA.Fingerprint)
	}
	if err := p.healthy(); err != nil {
		t.Error(err)
	}
}
