package certs

// When a manager of controller-runtime starts what is added to it. No input, no errors.

import (
	"net/http"

	"sigs.k8s.io/controller-runtime/pkg/healthz"
)

// early is in all that must run while a manager's caches are filled. A list may need the conversion
// webhook of this very process, and that one a certificate; and whoever is called must serve, leader or not.
// A manager starts its webhook servers so: first, and on every replica. It knows them by
// their methods, and early has those.
type early struct{}

// NeedLeaderElection is false: a manager starts this on every replica.
func (early) NeedLeaderElection() bool { return false }

// Register does nothing. With StartedChecker and WebhookMux it makes a manager of controller-runtime start this
// as it starts a webhook server: before its caches.
func (early) Register(string, http.Handler) {}

// StartedChecker returns a check that always passes; see Register.
func (early) StartedChecker() healthz.Checker { return healthz.Ping }

// WebhookMux returns nil; see Register.
func (early) WebhookMux() *http.ServeMux { return nil }
