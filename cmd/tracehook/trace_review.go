package main

// Whether the API server continues the user's traces. In: the real credentials. Out:
// an answer, where the API server gives one. Errors stay here: this is advice, and
// `trace` neither fails nor waits for it.

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const reviewTimeout = 2 * time.Second

// parentage is what an API server that traces makes of this user's trace context. Whether
// it traces at all nobody but its administrator can see.
type parentage int

const (
	parentageUnknown   parentage = iota
	parentageContinued           // its spans are children of ours
	parentageUserOnly            // it only links, as this user is in neither of the two groups
	parentageNobody              // it only links, as every API server before Kubernetes 1.33
)

// whyNotContinued is "" where nothing is known to stand against it.
func (p parentage) whyNotContinued() string {
	switch p {
	case parentageUserOnly:
		return "it continues those of system:masters and system:monitoring only (use a client certificate with O=system:monitoring to have one trace)"
	case parentageNobody:
		return "it continues nobody's before Kubernetes 1.33"
	}
	return ""
}

// parentageReview asks in the background, once. The zero value is ready.
type parentageReview struct {
	answer atomic.Pointer[chan parentage]
}

// start asks. It is called when the command's own first call has been answered: by
// then a credential plugin has done its work, and a command that asks nothing of the
// cluster makes tracehook ask nothing either.
func (r *parentageReview) start(ctx context.Context, config *rest.Config) {
	answer := make(chan parentage, 1)
	if !r.answer.CompareAndSwap(nil, &answer) {
		return
	}
	config = rest.CopyConfig(config)
	// The API server decides before it looks at impersonation.
	config.Impersonate = rest.ImpersonationConfig{}
	config.Timeout = reviewTimeout
	config.ContentType = "application/json"
	go func() {
		ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
		defer cancel()
		answer <- reviewParentage(ctx, config)
	}()
}

// result waits for an answer that is still on its way, for reviewTimeout at most.
func (r *parentageReview) result() parentage {
	answer := r.answer.Load()
	if answer == nil {
		return parentageUnknown
	}
	select {
	case p := <-*answer:
		return p
	case <-time.After(reviewTimeout): // a credential plugin heeds no context
		return parentageUnknown
	}
}

// reviewParentage asks the API server who it takes the user for and how old it is. Clusters
// before 1.28 do not answer the first, and an administrator can forbid both.
func reviewParentage(ctx context.Context, config *rest.Config) parentage {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return parentageUnknown
	}
	var info apiversion.Info
	if content, err := client.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Raw(); err == nil {
		_ = json.Unmarshal(content, &info) // without a version only the groups decide
	}
	if continuesNobody(info) {
		return parentageNobody
	}
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	switch {
	case err != nil:
		return parentageUnknown
	case continuesTraces(review.Status.UserInfo.Groups):
		return parentageContinued
	}
	return parentageUserOnly
}

// continuesNobody reports whether the API server is known to be older than 1.33, where the
// tracing filter began to look at who asks.
func continuesNobody(info apiversion.Info) bool {
	v, err := utilversion.ParseGeneric(strings.TrimSpace(info.GitVersion))
	return err == nil && v.LessThan(utilversion.MajorMinor(1, 33))
}

// continuesTraces reports whether the API server makes its spans children of those
// of a user in these groups (Kubernetes 1.33 and later).
func continuesTraces(groups []string) bool {
	return slices.Contains(groups, "system:masters") || slices.Contains(groups, "system:monitoring")
}
