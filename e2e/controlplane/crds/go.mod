// Where the custom resource definitions come from that our manifests refer to: the YAML files in
// these modules. Nothing of them is built or imported, so `go mod tidy` would find nothing to keep here;
// `go mod download` takes the versions from this file and go.sum checks what it gets.
module github.com/tracehook/tracehook/e2e/controlplane/crds

go 1.26.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
