package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

var migrateTime = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const migrateHost = "policy.shop.svc"

// migrateCertificate makes what package certs would not.
func migrateCertificate(t *testing.T, issuer *KeyPair, changes ...func(*x509.Certificate)) KeyPair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: migrateHost}, DNSNames: []string{migrateHost},
		NotBefore: migrateTime.Add(-time.Hour), NotAfter: migrateTime.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, change := range changes {
		change(template)
	}
	if issuer == nil {
		issuer = &KeyPair{Certificate: template, Key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.Certificate, key.Public(), issuer.Key)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return KeyPair{Certificate: made, Key: key}
}

func migrateCA(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject, c.DNSNames, c.ExtKeyUsage, c.NotAfter = pkix.Name{CommonName: name}, nil, nil, migrateTime.AddDate(2, 0, 0)
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	}
}

func withoutName(c *x509.Certificate) { c.DNSNames = nil }
func bySHA1(c *x509.Certificate)      { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }

func migrateBundle(pairs ...KeyPair) (bundle []byte) {
	for _, p := range pairs {
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate.Raw})...)
	}
	return bundle
}

// seenAs is a target with one endpoint, as look would have it.
func seenAs(kind string, trust Trust, served ...KeyPair) MigrateTarget {
	t := MigrateTarget{TargetReport: TargetReport{Target: Target{Kind: kind, Name: "policy", Field: "caBundle", Service: "shop/policy:443", ServerName: migrateHost, Trust: trust}}}
	if kind != KindAPIService && kind != KindCRD {
		t.Webhook = "check.example.com"
	}
	var chain []*x509.Certificate
	for _, p := range served {
		chain = append(chain, p.Certificate)
	}
	findings := Verify(chain, trust, migrateHost, migrateTime)
	t.Endpoints = []EndpointReport{{Address: "10.0.0.1:8443", Findings: findings, Call: new(Predict(findings))}}
	t.Chains = [][]*x509.Certificate{chain}
	return t
}

func TestTheStartDecidesThePlan(t *testing.T) {
	root, other := migrateCertificate(t, nil, migrateCA("root")), migrateCertificate(t, nil, migrateCA("other"))
	intermediate := migrateCertificate(t, &root, migrateCA("intermediate"))
	leaf, nameless := migrateCertificate(t, &root), migrateCertificate(t, &root, withoutName)
	sha1 := migrateCertificate(t, nil, bySHA1)
	deep := migrateCertificate(t, &intermediate)
	public := x509.NewCertPool()
	public.AddCert(root.Certificate)
	webhook := func(bundle []byte, served ...KeyPair) []MigrateTarget {
		return []MigrateTarget{seenAs(KindValidating, Trust{Bundle: bundle}, served...)}
	}
	all := []MigrateStep{MigrateIssue, MigratePublish, MigrateProve, MigrateSwitch, MigrateServed, MigrateSoak, MigrateDrop, MigrateProveAgain, MigrateAudit}
	repair := []MigrateStep{MigrateIssue, MigratePublish, MigrateProve, MigrateSwitch, MigrateServed, MigrateDrop, MigrateProveAgain, MigrateAudit}
	unverified := []MigrateStep{MigrateIssue, MigrateSwitch, MigrateServed, MigrateDrop, MigrateProveAgain, MigrateAudit}
	insecure := Trust{APIService: true, InsecureSkipVerify: true}

	for _, c := range []struct {
		name     string
		sight    MigrateSight
		wish     MigrateWish
		from     MigrateFrom
		steps    []MigrateStep
		says     string // in the promise
		blockers int
	}{
		{name: "a healthy one has nothing to do", sight: MigrateSight{Targets: webhook(migrateBundle(root), leaf)},
			from: FromStatic, says: "nothing to do"},
		{name: "a healthy one goes where it is told", sight: MigrateSight{Targets: webhook(migrateBundle(root), leaf)}, wish: MigrateWish{To: ToIssued},
			from: FromStatic, steps: all, says: "no request fails"},
		{name: "SHA-1, signed by itself", sight: MigrateSight{Targets: webhook(migrateBundle(sha1), sha1)},
			from: FromSHA1SelfSigned, steps: all, says: "no request fails"},
		{name: "the certificate itself is pinned", sight: MigrateSight{Targets: webhook(migrateBundle(leaf), leaf)},
			from: FromPinned, steps: all, says: "no request fails"},
		{name: "a CA of others stands between", sight: MigrateSight{Targets: webhook(migrateBundle(root), deep, intermediate)}, wish: MigrateWish{To: ToIssued},
			from: FromForeignCA, steps: all, says: "no request fails"},
		{name: "several CAs are trusted", sight: MigrateSight{Targets: webhook(migrateBundle(root, other), leaf)}, wish: MigrateWish{To: ToIssued},
			from: FromForeignCA, steps: all, says: "no request fails"},
		{name: "the system's roots are trusted", sight: MigrateSight{Targets: []MigrateTarget{seenAs(KindMutating, Trust{SystemRoots: public}, leaf)}}, wish: MigrateWish{To: ToIssued},
			from: FromForeignCA, steps: all, says: "no request fails"},
		{name: "a common name alone is a repair", sight: MigrateSight{Targets: webhook(migrateBundle(root), nameless)},
			from: FromBroken, steps: repair, says: "a repair: all calls fail"},
		{name: "one of two replicas is sick", sight: MigrateSight{Targets: slices.Concat(webhook(migrateBundle(root), leaf), webhook(migrateBundle(other), leaf))},
			from: FromBroken, steps: all, says: "those that work go on"},
		{name: "an APIService that is not verified", sight: MigrateSight{Targets: []MigrateTarget{seenAs(KindAPIService, insecure, nameless)}},
			from: FromUnverified, steps: unverified, says: "no request fails"},
		{name: "an APIService that is not verified beside a webhook of the same server",
			sight: MigrateSight{Targets: []MigrateTarget{seenAs(KindAPIService, insecure, leaf), seenAs(KindMutating, Trust{Bundle: migrateBundle(root)}, leaf)}},
			from:  FromUnverified, steps: all, says: "no request fails"},
		{name: "to cert-manager", sight: MigrateSight{Targets: webhook(migrateBundle(root), leaf)}, wish: MigrateWish{To: ToCertManager, NewSecret: "shop/new"},
			from: FromStatic, steps: all, says: "no request fails"},
		{name: "cert-manager would overwrite the Secret", sight: MigrateSight{Keeper: "cert-manager", Targets: webhook(migrateBundle(root), leaf)}, wish: MigrateWish{To: ToIssued, Secret: "shop/old"},
			from: FromCertManager, steps: all, says: "no request fails", blockers: 1},
		{name: "somebody writes caBundle", sight: MigrateSight{Injectors: []string{"annotation x of y"}, Targets: webhook(migrateBundle(root), leaf)}, wish: MigrateWish{To: ToIssued},
			from: FromCertManager, steps: all, says: "no request fails", blockers: 1},
		{name: "tracehook keeps it", sight: MigrateSight{Keeper: "tracehook", Targets: webhook(migrateBundle(root), leaf)}, wish: MigrateWish{To: ToIssued, Secret: "shop/old"},
			from: FromManaged, steps: all, says: "no request fails", blockers: 1},
		{name: "to tracehook", sight: MigrateSight{Targets: webhook(migrateBundle(root), leaf)}, wish: MigrateWish{To: ToManaged, Secret: "shop/old"},
			from: FromStatic, steps: []MigrateStep{MigrateTakeOver, MigrateAudit}, says: "no request fails"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.sight.Target, c.wish.Now, c.wish.StateSecret = Ref{Kind: c.sight.Targets[0].Kind, Name: "policy"}, migrateTime, "shop/state"
			plan, err := PlanMigration(c.sight, c.wish)
			if err != nil {
				t.Fatal(err)
			}
			var steps []MigrateStep
			for _, s := range plan.Steps {
				steps = append(steps, s.Step)
				if s.Does == "" || s.Why == "" || s.Proof == "" || s.Back == "" {
					t.Errorf("step %s does not say everything: %+v", s.Step, s)
				}
			}
			if plan.From != c.from || !slices.Equal(steps, c.steps) || !strings.Contains(plan.Promise, c.says) || len(plan.Blockers) != c.blockers {
				t.Errorf("from %s (%s), promise %q, blockers %q, steps %q\nwant %s, %q, %d, %q",
					plan.From, plan.Because, plan.Promise, plan.Blockers, steps, c.from, c.says, c.blockers, c.steps)
			}
		})
	}
}

func TestWishesThatContradictEachOtherAreRefused(t *testing.T) {
	root := migrateCertificate(t, nil, migrateCA("root"))
	sight := MigrateSight{Target: Ref{Kind: KindValidating, Name: "policy"}, Targets: []MigrateTarget{seenAs(KindValidating, Trust{Bundle: migrateBundle(root)}, migrateCertificate(t, &root))}}
	elsewhere, silent := sight, sight
	elsewhere.Elsewhere = []string{"set.example.com"}
	silent.Targets = []MigrateTarget{seenAs(KindValidating, Trust{Bundle: migrateBundle(root)})}
	for _, c := range []struct {
		name  string
		sight MigrateSight
		wish  MigrateWish
		says  string
	}{
		{"nowhere", sight, MigrateWish{To: "vault"}, "none of issued"},
		{"to cert-manager without its Secret", sight, MigrateWish{To: ToCertManager}, "is missing"},
		{"to cert-manager with a Secret to write", sight, MigrateWish{To: ToCertManager, NewSecret: "a/b", Secret: "a/c"}, "no other one to write"},
		{"a new Secret for nobody", sight, MigrateWish{To: ToIssued, NewSecret: "a/b"}, "for the destination cert-manager only"},
		{"to tracehook without a Secret", sight, MigrateWish{To: ToManaged}, "is missing"},
		{"several servers", elsewhere, MigrateWish{}, "name one, as in ValidatingWebhookConfiguration/policy/check.example.com"},
		{"nobody presents a certificate", silent, MigrateWish{}, "nothing could be proven"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.wish.Now = migrateTime
			if _, err := PlanMigration(c.sight, c.wish); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

// An empty caBundle means the system's roots; the first one that is written would end that.
func TestTheOverlapKeepsWhatTheSystemsRootsVouchFor(t *testing.T) {
	root, next := migrateCertificate(t, nil, migrateCA("root")), migrateCertificate(t, nil, migrateCA("next"))
	intermediate := migrateCertificate(t, &root, migrateCA("intermediate"))
	deep, direct := migrateCertificate(t, &intermediate), migrateCertificate(t, &root)
	public := x509.NewCertPool()
	public.AddCert(root.Certificate)
	for name, served := range map[string][]KeyPair{"with an intermediate": {deep, intermediate}, "alone": {direct}} {
		t.Run(name, func(t *testing.T) {
			target := seenAs(KindValidating, Trust{SystemRoots: public}, served...)
			change, err := overlap(target, []*x509.Certificate{next.Certificate}, migrateTime)
			if err != nil {
				t.Fatal(err)
			}
			after := target.Trust
			if after.Bundle, _ = MergeBundle(nil, change, migrateTime); !target.works(0, after, migrateTime) {
				t.Error("what is served would not be accepted any more")
			}
		})
	}
}

func TestServedMeansEveryEndpointThatIsCalled(t *testing.T) {
	root, other := migrateCertificate(t, nil, migrateCA("root")), migrateCertificate(t, nil, migrateCA("other"))
	good, old := seenAs(KindValidating, Trust{}, migrateCertificate(t, &root)), seenAs(KindMutating, Trust{}, migrateCertificate(t, &other))
	starting := seenAs(KindMutating, Trust{})
	starting.Endpoints[0].NotReady = true
	for _, c := range []struct {
		name    string
		targets []MigrateTarget
		served  bool
	}{
		{"all", []MigrateTarget{good}, true},
		{"not all", []MigrateTarget{good, old}, false},
		{"one is starting and does not answer", []MigrateTarget{good, starting}, true},
		{"none", []MigrateTarget{starting}, false},
	} {
		if err := notServed(c.targets, migrateBundle(root), migrateTime); (err == nil) != c.served {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
