package main

// Whether the API server continues the user's traces. In: the real credentials. Out:
// an answer, where the API server gives one. Errors stay here: this is advice, and
// `trace` neither fails nor waits for it.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const (
	reviewTimeout  = 2 * time.Second
	reviewMaxBytes = 1 << 20
)

// parentageReview asks in the background, once.
type parentageReview struct {
	config  *rest.Config
	started atomic.Bool
	answer  chan bool
}

func newParentageReview(c *userCluster) *parentageReview {
	config := rest.CopyConfig(c.rest)
	// The API server decides before it looks at impersonation.
	config.Impersonate = rest.ImpersonationConfig{}
	return &parentageReview{config: config, answer: make(chan bool, 1)}
}

// start asks. It is called when the command's own first call has been answered: by
// then a credential plugin has done its work, and a command that asks nothing of the
// cluster makes tracehook ask nothing either.
func (r *parentageReview) start(ctx context.Context) {
	if r.started.Swap(true) {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
		defer cancel()
		groups, err := groupsOfUser(ctx, r.config)
		r.answer <- err == nil && !continuesTraces(groups)
	}()
}

// linkedOnly reports whether the API server is known to only link to this user's
// traces. It waits for an answer that is still on its way, for reviewTimeout at most.
func (r *parentageReview) linkedOnly() bool {
	if !r.started.Load() {
		return false
	}
	select {
	case linked := <-r.answer:
		return linked
	case <-time.After(reviewTimeout): // a credential plugin heeds no context
		return false
	}
}

// continuesTraces reports whether the API server makes its spans children of those
// of a user in these groups (Kubernetes 1.33 and later).
func continuesTraces(groups []string) bool {
	return slices.Contains(groups, "system:masters") || slices.Contains(groups, "system:monitoring")
}

// groupsOfUser asks the API server who it takes the user for. Clusters before 1.28
// do not answer, and an administrator can forbid the question.
func groupsOfUser(ctx context.Context, config *rest.Config) ([]string, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(authenticationv1.SelfSubjectReview{
		TypeMeta: metav1.TypeMeta{APIVersion: authenticationv1.SchemeGroupVersion.String(), Kind: "SelfSubjectReview"},
	})
	if err != nil {
		return nil, err
	}
	url := base.JoinPath("apis/authentication.k8s.io/v1/selfsubjectreviews").String()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("the API server answers %s", response.Status)
	}
	var answer authenticationv1.SelfSubjectReview
	if err := json.NewDecoder(io.LimitReader(response.Body, reviewMaxBytes)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("decode the SelfSubjectReview: %w", err)
	}
	return answer.Status.UserInfo.Groups, nil
}
