package certs

// One object, watched. In: its name. Out: it, whenever it has changed, or that it is not there. Errors: why it could
// not be seen yet. Once it was, an API server that does not answer is waited for, and what was seen last holds.

import (
	"context"
	"sync"

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

// watchNamed calls changed, from one goroutine at a time, until ctx ends. It asks by name, so that a right which is limited to that name
// suffices.
func watchNamed[T runtime.Object, L runtime.Object](ctx context.Context, clients kubernetes.Interface, name string, example T, client interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}, changed func(watched[T])) {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return client.Watch(ctx, o)
		},
	}, clients), example, 0, cache.Indexers{})
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
