package main

import (
	"log/slog"
	"testing"

	"go.opentelemetry.io/otel/metric/noop"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/certs"
)

// API servers see the changes of one kind in their order, and say nothing about another kind by that.
func TestEachKindOfConfigurationIsProvenByOneOfItsOwn(t *testing.T) {
	mutating, validating := certs.Ref{Kind: certs.KindMutating, Name: "a"}, certs.Ref{Kind: certs.KindValidating, Name: "a"}
	proof := certsConfig{Namespace: "a", ProofService: "proof", ProofConfiguration: "proof"}
	for _, test := range []struct {
		name    string
		config  certsConfig
		targets []certs.Ref
		want    func(certs.Prover) bool
	}{
		{"one kind", proof, []certs.Ref{mutating}, func(p certs.Prover) bool { _, ok := p.(*certs.Canary); return ok }},
		{"both kinds", proof, []certs.Ref{mutating, validating}, func(p certs.Prover) bool { all, ok := p.(certs.Provers); return ok && len(all) == 2 }},
		{"the other kind alone", proof, []certs.Ref{validating}, func(p certs.Prover) bool { all, ok := p.(certs.Provers); return ok && len(all) == 2 }},
		{"no proof wanted", certsConfig{Namespace: "a"}, []certs.Ref{mutating}, func(p certs.Prover) bool { return p == nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			prover, err := newProver(test.config, &cluster{rest: &rest.Config{Host: "https://127.0.0.1:1"}}, test.targets,
				&telemetry{meterProvider: noop.NewMeterProvider()}, slog.New(slog.DiscardHandler))
			if err != nil || !test.want(prover) {
				t.Errorf("got %T, %v", prover, err)
			}
		})
	}
}
