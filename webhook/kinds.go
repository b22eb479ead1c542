package webhook

// Discovery: a kind in, its resource and scope out, asked of the API server one group and version at a
// time. Anybody may refer to an owner of any kind, so memory, requests and time are
// bounded. Errors: errNoSuchKind, errTooMany, errDiscovery, or the context's.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// A kind's resource and scope do not change; a CRD may be made anew with others, or get more kinds.
	kindsTTL = 10 * time.Minute
	// noKindsTTL is how long a kind that was not there is not asked for again: a CRD may come.
	noKindsTTL = 10 * time.Second
	// A look-up has less time. The answer is for the next one then.
	discoveryTimeout = 5 * time.Second
	// Groups and versions that are remembered, those that exist and those that do not.
	mostGroupVersions = 128
	// A group version has 20 kinds, or a few hundred; CRDs of any number may share one.
	mostKinds = 512
	// Discovery requests a second, and under way at once.
	discoveryRate, mostDiscoveries = 5, 8
)

var (
	errNoSuchKind = errors.New("the API server knows no such kind")
	errDiscovery  = errors.New("discovery")
)

// kindPlace is where objects of a kind are found.
type kindPlace struct {
	resource   string
	namespaced bool
}

// kinds remembers what the API server says of groups and versions.
type kinds struct {
	fetch    func(ctx context.Context, place, pattern, accept string) (body []byte, status int, err error)
	now      func() time.Time
	limit    *rate.Limiter
	underWay chan struct{}

	mu sync.Mutex
	// Those that are not known to exist are kept apart: anybody can think of more of them than there is room for.
	found, missing *simplelru.LRU[schema.GroupVersion, *groupVersion]
}

// groupVersion is one request, under way or answered.
type groupVersion struct {
	done  chan struct{} // closed when the rest is written
	kinds map[string]kindPlace
	err   error
	since time.Time
}

func newKinds(fetch func(ctx context.Context, place, pattern, accept string) ([]byte, int, error), now func() time.Time) *kinds {
	k := &kinds{fetch: fetch, now: now, limit: rate.NewLimiter(discoveryRate, 4*discoveryRate), underWay: make(chan struct{}, mostDiscoveries)}
	k.found, _ = simplelru.NewLRU[schema.GroupVersion, *groupVersion](mostGroupVersions, nil) // an error only of size 0
	k.missing, _ = simplelru.NewLRU[schema.GroupVersion, *groupVersion](mostGroupVersions, nil)
	return k
}

// find waits until the API server has answered, or ctx ends; the request goes on then.
func (k *kinds) find(ctx context.Context, kind schema.GroupVersionKind) (kindPlace, error) {
	g, err := k.join(ctx, kind)
	if err != nil {
		return kindPlace{}, err
	}
	select {
	case <-g.done:
	case <-ctx.Done():
		return kindPlace{}, ctx.Err()
	}
	if g.err != nil {
		return kindPlace{}, g.err
	}
	place, ok := g.kinds[kind.Kind]
	if !ok {
		return kindPlace{}, errNoSuchKind
	}
	return place, nil
}

// join returns what is remembered of the kind's group and version, or the request that is under way.
func (k *kinds) join(ctx context.Context, kind schema.GroupVersionKind) (*groupVersion, error) {
	gv := kind.GroupVersion()
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if g, ok := k.found.Get(gv); ok {
		ttl := noKindsTTL
		if _, there := g.kinds[kind.Kind]; there {
			ttl = kindsTTL
		}
		if now.Sub(g.since) < ttl {
			return g, nil
		}
	}
	if g, ok := k.missing.Get(gv); ok {
		select {
		case <-g.done:
			if now.Sub(g.since) < noKindsTTL {
				return g, nil
			}
		default:
			return g, nil
		}
	}
	if !k.limit.AllowN(now, 1) {
		return nil, errTooMany
	}
	select {
	case k.underWay <- struct{}{}:
	default:
		return nil, errTooMany
	}
	g := &groupVersion{done: make(chan struct{})}
	k.missing.Add(gv, g)
	go k.do(context.WithoutCancel(ctx), gv, g)
	return g, nil
}

// do asks, and moves a group version that exists to those.
func (k *kinds) do(ctx context.Context, gv schema.GroupVersion, g *groupVersion) {
	defer func() { <-k.underWay }()
	defer close(g.done)
	defer func() { // of somebody's transport, say; nobody above this goroutine would catch it
		if value := recover(); value != nil {
			g.err = fmt.Errorf("%w: panic: %v", errDiscovery, value)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	g.kinds, g.err = k.ask(ctx, gv)
	g.since = k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if g.kinds != nil {
		k.missing.Remove(gv)
		k.found.Add(gv, g)
	}
}

func (k *kinds) ask(ctx context.Context, gv schema.GroupVersion) (map[string]kindPlace, error) {
	place, pattern := groupVersionPath(gv)
	body, status, err := k.fetch(ctx, place, pattern, "application/json")
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errDiscovery, err)
	case status == http.StatusNotFound:
		return nil, errNoSuchKind
	case status != http.StatusOK:
		return nil, fmt.Errorf("%w: %d %s", errDiscovery, status, http.StatusText(status))
	}
	return readKinds(body)
}

// readKinds reads an APIResourceList (meta.k8s.io/v1).
func readKinds(body []byte) (map[string]kindPlace, error) {
	var list struct {
		Resources []struct {
			Name       string `json:"name"`
			Kind       string `json:"kind"`
			Namespaced bool   `json:"namespaced"`
		} `json:"resources"`
	}
	if json.Unmarshal(body, &list) != nil {
		return nil, fmt.Errorf("%w: the answer is no list of resources", errDiscovery)
	}
	kinds := make(map[string]kindPlace)
	for _, r := range list.Resources {
		if strings.Contains(r.Name, "/") || len(content.IsPathSegmentName(r.Name)) > 0 || len(kinds) == mostKinds {
			continue // a subresource
		}
		if _, ok := kinds[r.Kind]; !ok {
			kinds[r.Kind] = kindPlace{resource: r.Name, namespaced: r.Namespaced}
		}
	}
	return kinds, nil
}
