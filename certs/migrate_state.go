package certs

// How far a migration has come. In: a Secret. Out: the plan with what is done, the new pair, and what the way back
// needs. Errors: the API server's; a Secret of somebody else's; one that another run has written meanwhile.

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	migrateLabel = "tracehook.dev/certs-migration" // marks the Secret as a migration's
	migrateKey   = "state.json"
	// The pair that the written Secret held before.
	previousCertificate = "previous.crt"
	previousKey         = "previous.key"
	previousCA          = "previous-ca.crt"
)

// migrateState is what has to outlive a run.
type migrateState struct {
	Plan    MigratePlan `json:"plan"`
	Wish    MigrateWish `json:"wish"`
	Begun   time.Time   `json:"begun"`
	Aborted bool        `json:"aborted,omitempty"` // the way back has begun
	// CA and Leaf are fingerprints of the new ones, for people.
	CA   string `json:"ca,omitempty"`
	Leaf string `json:"leaf,omitempty"`
	// Before is what was trusted at the start.
	Before []trustBefore `json:"before,omitempty"`

	// Beside it in the Secret: the new CA's certificate, the new pair, and what was in the serving Secret.
	data   map[string][]byte
	secret *corev1.Secret // as stored last; nil: not yet
}

// trustBefore is a target's caBundle, PEM.
type trustBefore struct {
	Target string `json:"target"` // a Ref
	Bundle []byte `json:"bundle,omitempty"`
}

// before returns the certificates of a target's caBundle at the start.
func (s migrateState) before(ref Ref) []*x509.Certificate {
	for _, b := range s.Before {
		if b.Target == ref.String() {
			list, _ := ParseBundle(b.Bundle)
			return list
		}
	}
	return nil
}

// next is the step to be taken; "" if none is left.
func (s migrateState) next() MigrateStep {
	for _, step := range s.Plan.Steps {
		if step.Done == nil {
			return step.Step
		}
	}
	return ""
}

func (s migrateState) doneAt(step MigrateStep) (at time.Time) {
	for _, p := range s.Plan.Steps {
		if p.Step == step && p.Done != nil {
			at = p.Done.At
		}
	}
	return at
}

// load returns nil without an error if there is no state.
func (m *Migration) load(ctx context.Context) (*migrateState, error) {
	namespace, name := splitSecret(m.o.Wish.StateSecret)
	secret, err := m.o.Clients.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read state: %w", err)
	case secret.Labels[migrateLabel] == "":
		return nil, fmt.Errorf("read state: Secret %s is not a migration's (label %s): name another one", m.o.Wish.StateSecret, migrateLabel)
	}
	s := &migrateState{secret: secret, data: secret.Data}
	if err := json.Unmarshal(secret.Data[migrateKey], s); err != nil {
		return nil, fmt.Errorf("read state in Secret %s: %w", m.o.Wish.StateSecret, err)
	}
	return s, nil
}

// save fails if another run has written since load.
func (m *Migration) save(ctx context.Context, s *migrateState) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if s.data == nil {
		s.data = map[string][]byte{}
	}
	s.data[migrateKey] = text
	namespace, name := splitSecret(m.o.Wish.StateSecret)
	secrets := m.o.Clients.CoreV1().Secrets(namespace)
	if s.secret == nil {
		s.secret, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{migrateLabel: "true"}}, Data: s.data,
		}, metav1.CreateOptions{FieldManager: migrateManager})
	} else {
		changed := s.secret.DeepCopy()
		changed.Data = s.data
		s.secret, err = secrets.Update(ctx, changed, metav1.UpdateOptions{FieldManager: migrateManager})
	}
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	s.data = s.secret.Data
	return nil
}

func (m *Migration) forget(ctx context.Context) error {
	namespace, name := splitSecret(m.o.Wish.StateSecret)
	if err := m.o.Clients.CoreV1().Secrets(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}
