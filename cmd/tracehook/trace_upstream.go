package main

// The ways to the API servers with the user's credentials. In: a cluster and a user of the
// kubeconfig. Out: transports, made at the first request. Errors: what kubectl would say of
// the kubeconfig.

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// upstream is one API server as one user. Its transports are client-go's, so they heed
// proxy-url, HTTPS_PROXY, NO_PROXY and credential plugins as kubectl does.
type upstream struct {
	config    *rest.Config
	target    *url.URL
	ordinary  http.RoundTripper
	upgrading http.RoundTripper
}

func newUpstream(config *rest.Config) (*upstream, error) {
	target, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("read the API server's address: %w", err)
	}
	config = rest.CopyConfig(config)
	config.DisableCompression = true // what the command asks for goes through as it is
	ordinary, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	// exec, attach and port-forward take the connection over (SPDY, WebSocket), which
	// HTTP/2 does not offer.
	upgradable := rest.CopyConfig(config)
	upgradable.NextProtos = []string{"http/1.1"}
	upgrading, err := rest.TransportFor(upgradable)
	if err != nil {
		return nil, err
	}
	return &upstream{config: config, target: target, ordinary: ordinary, upgrading: upgrading}, nil
}

type clusterUser struct{ cluster, user string }

// upstreams are those that were asked for. The zero value is ready.
type upstreams struct {
	mu   sync.Mutex
	made map[clusterUser]*upstream
}

func (u *upstreams) get(of clusterUser, connect func(cluster, user string) (*rest.Config, error)) (*upstream, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if found := u.made[of]; found != nil {
		return found, nil
	}
	config, err := connect(of.cluster, of.user)
	if err != nil {
		return nil, err
	}
	made, err := newUpstream(config)
	if err != nil {
		return nil, err
	}
	if u.made == nil {
		u.made = map[clusterUser]*upstream{}
	}
	u.made[of] = made
	return made, nil
}

func (u *upstreams) closeIdle() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, up := range u.made {
		utilnet.CloseIdleConnectionsFor(up.ordinary)
		utilnet.CloseIdleConnectionsFor(up.upgrading)
	}
}
