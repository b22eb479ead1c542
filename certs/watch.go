package certs

// One object, watched. In: its name. Out: it, whenever it has changed, or that it is not there. Errors: why it could
// not be seen yet. Once it was, an API server that does not answer is waited for, and what was seen last holds.

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// watched is what is known of an object.
type watched[T runtime.Object] struct {
	object T
	there  bool
	err    error // why it was not seen yet
}

// lister lists and watches objects of one type.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// namedListWatch is for one object, by its name, so that a right which is limited to that name suffices. client is whose client of the
// API client is a part of.
func namedListWatch[L runtime.Object](name string, objects lister[L], client any) cache.ListerWatcher {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	var p pace
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return objects.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return p.watch(ctx, func() (watch.Interface, error) { return objects.Watch(ctx, o) })
		},
	}, client)
}

const (
	// A watch that ended sooner than shortWatch is begun again after a pause, of firstPause, then twice as long each time, up to longestPause.
	shortWatch               = 30 * time.Second
	firstPause, longestPause = time.Second, 30 * time.Second
)

// pace keeps watches that end at once from being begun again at once. (client-go waits after errors, and not after a watch that
// told something before it ended.)
type pace struct {
	mu    sync.Mutex
	began time.Time // the last one; zero: none did
	pause time.Duration
}

// watch begins a watch, after a pause if that is due.
func (p *pace) watch(ctx context.Context, begin func() (watch.Interface, error)) (watch.Interface, error) {
	if err := sleep(ctx, p.next(time.Now())); err != nil {
		return nil, err
	}
	w, err := begin()
	if err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.began = time.Now()
	}
	return w, err
}

// next is how long to wait at now.
func (p *pace) next(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() || now.Sub(p.began) >= shortWatch {
		p.pause = 0
		return 0
	}
	p.pause = min(max(2*p.pause, firstPause), longestPause)
	return p.pause
}

// watchNamed calls changed, from one goroutine at a time, until ctx ends.
func watchNamed[T runtime.Object, L runtime.Object](ctx context.Context, clients kubernetes.Interface, name string, example T, client lister[L], changed func(watched[T])) {
	informer := cache.NewSharedIndexInformer(namedListWatch(name, client, clients), example, 0, cache.Indexers{})
	var mu sync.Mutex
	tell := func(err error) { // what is there is read from the store, so that the last one to tell is right
		mu.Lock()
		defer mu.Unlock()
		w := watched[T]{err: err}
		for _, object := range informer.GetStore().List() {
			w.object, w.there = object.(T)
		}
		changed(w)
	}
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{ // neither fails before the start
		AddFunc:    func(any) { tell(nil) },
		UpdateFunc: func(any, any) { tell(nil) },
		DeleteFunc: func(any) { tell(nil) },
	})
	_ = informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		if informer.HasSynced() {
			cache.DefaultWatchErrorHandler(ctx, r, err)
			return
		}
		tell(err)
	})
	go func() {
		if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) && len(informer.GetStore().List()) == 0 {
			tell(nil)
		}
	}()
	informer.RunWithContext(ctx)
}
