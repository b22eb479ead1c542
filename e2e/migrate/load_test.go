package migrate

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
)

// load calls a stranger through both API servers, two workers each, until stop.
type load struct {
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu       sync.Mutex
	requests int
	failed   int
	last     string // error
	lastAt   time.Time
}

func startLoad(t *testing.T, call func(context.Context, kubernetes.Interface) error) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel}
	for _, server := range shared.servers {
		config := rest.CopyConfig(server.RESTConfig)
		config.QPS = -1
		clients := kubernetes.NewForConfigOrDie(config)
		for range 2 {
			l.workers.Go(func() {
				for ctx.Err() == nil {
					l.count(server.Name, call(context.WithoutCancel(ctx), clients))
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
	}
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *load) count(server string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	if err != nil {
		l.failed++
		l.last, l.lastAt = fmt.Sprintf("%s: %v", server, err), time.Now()
	}
}

// stop returns how many requests were made and failed.
func (l *load) stop() (requests, failed int, last string) {
	l.cancel()
	l.workers.Wait()
	return l.requests, l.failed, l.last
}

// sofar is the count at this moment.
func (l *load) sofar() (requests, failed int, last string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.requests, l.failed, l.last
}

// failedSince says whether any request failed after a time.
func (l *load) failedSince(t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastAt.After(t)
}

// settle returns when each worker has made some more requests.
func (l *load) settle() {
	for begin, _, _ := l.sofar(); ; time.Sleep(10 * time.Millisecond) {
		if now, _, _ := l.sofar(); now >= begin+100 {
			return
		}
	}
}

// admission creates a ConfigMap that the stranger's webhooks are called for.
func (s *stranger) admission(ctx context.Context, clients kubernetes.Interface) error {
	_, err := clients.CoreV1().ConfigMaps(s.namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "load-", Labels: map[string]string{label: s.namespace}},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// aggregated asks the stranger's API.
func (s *stranger) aggregated(ctx context.Context, clients kubernetes.Interface) error {
	_, err := clients.CoreV1().RESTClient().Get().AbsPath("/apis", s.group(), "v1", "things").MaxRetries(0).DoRaw(ctx)
	return err
}

// converted asks for what is stored in another version, alone and in a list. With client-go's retries: after each change of a
// CRD its lists are asked to come back in a second (429). A conversion that fails is not asked to.
func (s *stranger) converted(ctx context.Context, clients kubernetes.Interface) error {
	for _, what := range []string{"widgets/one", "widgets"} {
		if _, err := clients.CoreV1().RESTClient().Get().AbsPath("/apis", s.group(), "v2", what).DoRaw(ctx); err != nil {
			return err
		}
	}
	return nil
}

// inForce waits until calls through both API servers come to the stranger, whether they succeed or not.
func (s *stranger) inForce(t *testing.T, call func(context.Context, kubernetes.Interface) error, works bool) {
	t.Helper()
	for _, server := range shared.servers {
		clients := kubernetes.NewForConfigOrDie(server.RESTConfig)
		deadline := time.Now().Add(30 * time.Second)
		for {
			before := s.calls.Load()
			err := call(t.Context(), clients)
			if works && err == nil && s.calls.Load() > before || !works && err != nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not in force after 30s: %v", server.Name, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// missingSAN is the sum of both missing-SAN counters of both API servers.
func missingSAN(t *testing.T) (sum int64) {
	t.Helper()
	for _, server := range shared.servers {
		metrics, err := kubernetes.NewForConfigOrDie(server.RESTConfig).CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
		must(t, err)
		values, err := certs.ReadCounters(metrics)
		must(t, err)
		for _, v := range values {
			if v.Name == certs.WebhookMissingSAN || v.Name == certs.AggregatorMissingSAN {
				sum += v.Value
			}
		}
	}
	return sum
}
