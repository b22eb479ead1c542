package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

// emptyCache is not filled before the test is over: what it lists is not answered yet.
type emptyCache struct {
	informertest.FakeInformers
	over chan struct{}
}

func (c *emptyCache) WaitForCacheSync(context.Context) bool {
	<-c.over
	return true
}

// takenLock is a Lease that somebody else holds for ever.
type takenLock struct{ resourcelock.Interface }

func (takenLock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	return &resourcelock.LeaderElectionRecord{HolderIdentity: "another", LeaseDurationSeconds: 3600}, []byte("another"), nil
}
func (takenLock) Create(context.Context, resourcelock.LeaderElectionRecord) error {
	return errors.New("taken")
}
func (takenLock) Update(context.Context, resourcelock.LeaderElectionRecord) error {
	return errors.New("taken")
}
func (takenLock) RecordEvent(string) {}
func (takenLock) Identity() string   { return "one" }
func (takenLock) Describe() string   { return "a taken lock" }

// A replica that never leads, with a cache that waits for a webhook of this process: the
// API server's certificate is renewed by another CA, and must be accepted.
func TestAManagerStartsClientAuthWhoeverLeadsAndWhateverItsCachesWaitFor(t *testing.T) {
	before, after := newTestCA(t, "before"), newTestCA(t, "after")
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, before.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	auth, err := NewClientAuth(ClientAuthOptions{CAFile: file, Enforce: true, Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	mgr, err := manager.New(&rest.Config{Host: "https://127.0.0.1:1"}, manager.Options{
		LeaderElection:                      true,
		LeaderElectionResourceLockInterface: takenLock{},
		NewCache:                            func(*rest.Config, cache.Options) (cache.Cache, error) { return &emptyCache{over: over}, nil },
		MapperProvider:                      func(*rest.Config, *http.Client) (meta.RESTMapper, error) { return meta.NewDefaultRESTMapper(nil), nil },
		Scheme:                              runtime.NewScheme(),
		Metrics:                             metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := mgr.Add(auth); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	defer func() {
		stop()
		close(over)
		if err := <-ended; err != nil {
			t.Logf("the manager ended: %v", err)
		}
	}()

	client, err := x509.ParseCertificate(after.client(t, "kube-apiserver", nil).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{client}}
	if result, _ := auth.verify(state); result != clientUntrusted {
		t.Fatalf("before the change: %s", result)
	}
	if err := os.WriteFile(file, after.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		result, err := auth.verify(state)
		if result == clientAccepted {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the file was not read again: %s, %v", result, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// The names are the caller's slice.
func TestNamesThatChangeLaterChangeNothing(t *testing.T) {
	ca := newTestCA(t, "ca")
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, ca.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	names := []string{"kube-apiserver"}
	auth, err := NewClientAuth(ClientAuthOptions{CAFile: file, Names: names})
	if err != nil {
		t.Fatal(err)
	}
	names[0] = "anybody"
	client, _ := x509.ParseCertificate(ca.client(t, "kube-apiserver", nil).Certificate[0])
	if result, err := auth.verify(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{client}}); result != clientAccepted {
		t.Errorf("got %s, %v", result, err)
	}
}
