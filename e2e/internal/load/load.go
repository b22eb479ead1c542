// Package load calls a webhook through API servers, steadily, and counts what went
// wrong.
//
// In: API servers. Out: how many requests were made, how many failed and how. Errors:
// none of its own; a request that was refused, that got no answer, or whose object came
// back without the webhook's mark is a failure and counted.
package load

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Mark is the annotation that tracehook leaves on what it was called for. An object
// without it was stored unseen: no failure to its client, but one here.
const Mark = "tracehook.dev/traceparent"

const (
	kept     = 5 // error texts
	storedIn = 5 // one request in so many is stored, the others are dry runs
)

// Options of a load.
type Options struct {
	// Through are the API servers, by name. Each gets the same load.
	Through map[string]*rest.Config
	// Workers per API server; each makes one request after the other. Zero: 4.
	Workers int
	// Every is how long a wave takes: one request of each worker. It is the least; a
	// wave begins when the one before is answered. Zero: no pause.
	Every time.Duration
	// Namespace of the ConfigMaps. Empty: "default".
	Namespace string
	// Unstored makes requests that end behind mutating admission: by validation, which
	// they cannot pass. So an API server whose etcd is slow is no slower with them.
	Unstored bool
	// Between is called between waves, when no request is under way. Nil: nothing.
	Between func(context.Context) error
}

// Result is what came of it.
type Result struct {
	Requests, Failures int
	Errors             []string // the first ones that differ
	Took               time.Duration
	Slowest            time.Duration // of all requests
}

func (r Result) String() string {
	text := fmt.Sprintf("%d requests in %.1fs, %d failed, the slowest took %dms", r.Requests, r.Took.Seconds(), r.Failures, r.Slowest.Milliseconds())
	for _, e := range r.Errors {
		text += "\n\t" + e
	}
	return text
}

// Load is under way from Start to Stop.
type Load struct {
	begin time.Time
	stop  context.CancelFunc
	ended chan struct{}

	mu     sync.Mutex
	result Result
}

// Start begins to make requests. Stop ends it, and so does ctx.
func Start(ctx context.Context, o Options) (*Load, error) {
	if o.Workers == 0 {
		o.Workers = 4
	}
	if o.Namespace == "" {
		o.Namespace = metav1.NamespaceDefault
	}
	prefix := "load-" + strings.ToLower(rand.Text())
	var workers []*worker
	for name, config := range o.Through {
		config = rest.CopyConfig(config)
		config.QPS = -1
		clients, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, fmt.Errorf("make client of %s: %w", name, err)
		}
		for range o.Workers {
			workers = append(workers, &worker{server: name, clients: clients, namespace: o.Namespace, name: fmt.Sprintf("%s-%d", prefix, len(workers)), unstored: o.Unstored})
		}
	}
	ctx, stop := context.WithCancel(ctx)
	l := &Load{begin: time.Now(), stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		for ctx.Err() == nil {
			next := time.After(o.Every)
			var wave sync.WaitGroup
			for _, w := range workers {
				// A request that is under way is answered, also when ctx ends.
				wave.Go(func() { l.count(w.create(context.WithoutCancel(ctx))) })
			}
			wave.Wait()
			if o.Between != nil {
				if err := o.Between(ctx); err != nil && ctx.Err() == nil {
					l.count(0, fmt.Errorf("between two waves: %w", err))
				}
			}
			select {
			case <-next:
			case <-ctx.Done():
			}
		}
	}()
	return l, nil
}

// Stop waits for the requests under way and returns the result.
func (l *Load) Stop() Result {
	l.stop()
	<-l.ended
	return l.Sofar()
}

// Sofar is the result at this moment.
func (l *Load) Sofar() Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.result
	r.Took = time.Since(l.begin)
	return r
}

// Await returns when n more requests were made, or ctx ends.
func (l *Load) Await(ctx context.Context, n int) error {
	for want := l.Sofar().Requests + n; l.Sofar().Requests < want; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %d requests: %w", n, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (l *Load) count(took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.result
	r.Requests++
	r.Slowest = max(r.Slowest, took)
	if err == nil {
		return
	}
	r.Failures++
	text := fmt.Sprintf("after %.2fs: %v", time.Since(l.begin).Seconds(), err)
	_, what, _ := strings.Cut(text, ": ")
	for _, known := range r.Errors {
		if strings.HasSuffix(known, what) {
			return
		}
	}
	if len(r.Errors) < kept {
		r.Errors = append(r.Errors, text)
	}
}

// worker makes one request at a time.
type worker struct {
	server    string
	clients   *kubernetes.Clientset
	namespace string
	name      string // no two alike
	made      int
	unstored  bool
}

func (w *worker) create(ctx context.Context) (time.Duration, error) {
	// More patience than the API server has with a webhook, so that it tells the reason.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	w.made++
	// No generated name: before 1.31 an API server refuses one that is taken.
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", w.name, w.made)}}
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	if w.made%storedIn == 0 {
		options.DryRun = nil
	}
	if w.unstored {
		object.Name, object.GenerateName = "", "NO_NAME_" // see Options.Unstored
	}
	begin := time.Now()
	created, err := w.clients.CoreV1().ConfigMaps(w.namespace).Create(ctx, object, options)
	if w.unstored && apierrors.IsInvalid(err) {
		return time.Since(begin), nil // that it was marked is for the API server's counters to say
	}
	if err == nil && created.Annotations[Mark] == "" {
		err = errors.New("the object came back unmarked: the webhook was not called")
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", w.server, err)
	}
	return time.Since(begin), err
}
