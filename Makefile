# `make` lists what there is. Everything that is built goes to bin/, everything that a run writes to out/.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := $(CURDIR)/bin
# What `tracehook version` says; without a tag or a repository the binary says "devel".
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
# The commit and its time go into the image and the archives, instead of the time of the build: the same source gives the same bytes.
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
# Where image-push publishes.
REPOSITORY ?= ghcr.io/tracehook/tracehook
# How long each fuzz target runs.
FUZZTIME ?= 10s
# What runs `go test`. In CI a test that fails runs again, twice at most, and $(AGAIN) tells of it; more than three are no accident.
AGAIN := $(CURDIR)/out/again
GOTEST = mkdir -p $(AGAIN) && $(BIN)/gotestsum $(if $(CI),--rerun-fails=2 --rerun-fails-max-failures=3 --rerun-fails-run-root-test --rerun-fails-report=$(AGAIN)/$@-$(1).txt)
# Modules of their own beside the product's.
MODULES := .ci/actionlint .ci/gotestsum .ci/helm-docs .ci/image .ci/krew .ci/tools e2e/controlplane e2e/controlplane/collector e2e/controlplane/flux e2e/controlplane/helm e2e/controlplane/jaeger e2e/controlplane/node e2e/controlplane/policy e2e/controlplane/prometheus

export CGO_ENABLED := 0

# What a chart's values mean, as a page.
HELM_DOCS = $(BIN)/helm-docs --chart-search-root deploy/chart --template-files README.md.gotmpl --log-level warning

# Two of these at once only take each other's processor, and mix their output.
.NOTPARALLEL:

##@ Try it

.PHONY: demo
demo: build ## One kubectl create, one trace, and what became of it, on a real control plane (KEEP=1: leave it running, without a node; OUT=DIR: where the report goes)
	@e2e/controlplane/build.sh etcd kube-apiserver kube-controller-manager kube-scheduler kubectl otelcol jaeger
	@go run ./e2e/demo

.PHONY: kind-demo
kind-demo: build ## The same on a kind cluster whose API server traces (needs docker, kind 0.33 and ko in PATH; CI does not run it)
	@kind get clusters 2>/dev/null | grep -qx tracehook || kind create cluster --config deploy/kind/cluster.yaml
	@VERSION="$(VERSION)" REVISION="$(REVISION)" KO_DOCKER_REPO=kind.local KIND_CLUSTER_NAME=tracehook ko build --base-import-paths --tags demo ./cmd/tracehook
	@kubectl --context kind-tracehook apply -k deploy/overlays/kind
	@kubectl --context kind-tracehook -n tracehook-system rollout status --timeout=3m deployment/jaeger deployment/otel-collector deployment/tracehook
	@OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 OTEL_EXPORTER_OTLP_PROTOCOL=grpc \
		$(BIN)/tracehook trace --trace-url 'http://localhost:16686/trace/{traceID}' -- kubectl --context kind-tracehook create configmap "hello-$$(date +%s)"

##@ Build

.PHONY: build
build: ## Build bin/tracehook
	@go build -trimpath -ldflags "-s -w -X main.buildVersion=$(VERSION) -X main.buildCommit=$(REVISION)" -o $(BIN)/tracehook ./cmd/tracehook

.PHONY: controlplane
controlplane: ## Build what is missing of etcd, Kubernetes, containerd, Collector, Jaeger, Prometheus, Helm and what applies as Flux does (about 22 min from nothing; KUBEBUILDER_ASSETS=DIR: use those)
	@e2e/controlplane/build.sh

.PHONY: otelcol jaeger prometheus promtool
otelcol jaeger prometheus promtool: ## Build one of them alone
	@e2e/controlplane/build.sh $@

.PHONY: image
image: ## Build the image into out/image, an OCI layout, without an engine: 6 min from nothing, most of it ko (BASE_DIGEST=sha256:…: on this base, as a rebuild of a release)
	@go -C .ci/image run . -source $(CURDIR) -version "$(VERSION)" -revision "$(REVISION)" -base-digest "$(BASE_DIGEST)" \
		-layout $(CURDIR)/out/image -sboms $(CURDIR)/out/sboms

.PHONY: image-push
image-push: ## Publish the image to REPOSITORY, on the base of .ko.yaml (the release workflow does)
	@go -C .ci/image run . -source $(CURDIR) -version "$(VERSION)" -revision "$(REVISION)" -remote-base -push "$(REPOSITORY)" -sboms $(CURDIR)/out/sboms

.PHONY: dist
dist: ## Build what a release attaches into out/dist: archives, kubectl plugin, krew manifest, checksums (IMAGE=REFERENCE: install.yaml too)
	@VERSION="$(VERSION)" REVISION="$(REVISION)" IMAGE="$(IMAGE)" .ci/dist

.PHONY: manifests
manifests: $(BIN)/helm-docs ## Render deploy/install.yaml anew, and what the Helm chart has of manifests and documentation
	@deploy/render.sh
	@$(HELM_DOCS)

.PHONY: reference
reference: ## Write docs/reference anew, from the commands
	@TRACEHOOK_REFERENCE=write go test -count=1 -run '^TestTheReferenceIsWhatTheCommandsSay$$' ./cmd/tracehook

##@ Check

.PHONY: test
test: packages test-unit test-e2e test-nodes ## All tests but test-rotation: unit, then end to end, then as Pods on real nodes

.PHONY: packages
packages: ## Install what the tests need of Debian's packages; asks first at a terminal
	@.ci/packages || echo "packages: going on; what needs them will fail, or say that it did not run"

.PHONY: test-unit
test-unit: $(BIN)/gotestsum ## Unit tests with the race detector (needs gcc)
	@echo "==> unit tests, with the race detector"
	@export CGO_ENABLED=1 GORACE=atexit_sleep_ms=0; $(call GOTEST,1) --format standard-quiet --packages "$$(go list ./... | grep -v /e2e)" -- -race

.PHONY: test-e2e
test-e2e: build controlplane $(BIN)/gotestsum ## End-to-end tests: the built binary on a real control plane, pages in real Chromium
	@echo "==> end-to-end tests, against a real control plane"
	@# In CI one package at a time: it takes 10 min more there, and no test waits for another's control plane.
	@echo "    $(if $(CI),,two packages at a time, as most of them wait; )each is printed when it has ended, the longest after about 7 min"
	@$(call GOTEST,1) --format standard-verbose --packages "$$(go list ./e2e/... | grep -v -e /e2e/rotation -e /e2e/nodes -e /e2e/internal/node -e /e2e/hostile -e /e2e/bench)" -- -count=1 -p $(if $(CI),1,2) -timeout 25m
	@echo "==> end-to-end tests that need the machine for themselves"
	@$(call GOTEST,2) --format standard-verbose --packages "./e2e/bench ./e2e/hostile" -- -count=1 -p 1 -timeout 20m

# The test's program itself and not `go test`, which would call a run that was not possible "ok".
.PHONY: test-nodes
test-nodes: build controlplane $(BIN)/gotestsum ## As Pods on real nodes (Linux and root; elsewhere it says that it did not run, with CI=true it fails)
	@echo "==> tests on real nodes"
	@$(call GOTEST,1) --format standard-verbose --packages ./e2e/internal/node -- -count=1
	@go test -c -o out/nodes.test ./e2e/nodes
	@cd e2e/nodes && export TRACEHOOK_NODES=$(if $(CI),,optional); $(call GOTEST,2) --format standard-verbose --raw-command -- \
		go tool test2json -t -p ./e2e/nodes ../../out/nodes.test -test.v=test2json -test.timeout 20m

.PHONY: test-rotation
test-rotation: build controlplane $(BIN)/gotestsum ## Certificates are replaced under load without a failed request: two API servers, two replicas
	@echo "==> rotations under load, against a real control plane"
	@$(call GOTEST,1) --format standard-verbose --packages ./e2e/rotation -- -count=1 -timeout 20m

.PHONY: test-kubernetes
test-kubernetes: build ## What depends on the API server, with another version of it: KUBERNETES=1.28, 1.33 or 1.37 (12 min; 7 more from nothing)
	$(if $(KUBERNETES),,$(error say which: make test-kubernetes KUBERNETES=1.37))
	@KUBERNETES= e2e/controlplane/build.sh etcd kubectl jaeger otelcol prometheus promtool
	@KUBERNETES=$(KUBERNETES) e2e/controlplane/build.sh
	@echo "==> end-to-end tests, against Kubernetes $(KUBERNETES)"
	@# Before 1.33 the API server only links to a client's trace: what e2e itself wants is not there.
	@KUBEBUILDER_ASSETS=$(BIN)/kubernetes-$(KUBERNETES) go test -count=1 -p 1 -timeout 30m -v \
		$(if $(filter 1.2% 1.30 1.31 1.32,$(KUBERNETES)),,./e2e) $(addprefix ./e2e/,authority deploy migrate monitoring mtls rotation trust)

.PHONY: test-image
test-image: ## The image and the release's files: built twice, opened, started (part of test-e2e; needs no control plane)
	@go -C .ci/image test -count=1 ./...
	@go test -count=1 -v ./e2e/image

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (default 10s)
	@grep -ro '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' certs cmd e2e webhook | sort | while IFS=: read -r file func; do \
		echo "==> $${func#func } in $$(dirname "$$file")"; \
		go test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "./$$(dirname "$$file")"; \
	done

.PHONY: bench
bench: otelcol ## What a call costs, beside a null handler and the usual webhook: 80 s, to out/bench (RECORD=1: also to e2e/bench, for docs/cost.md)
	@go run ./e2e/bench
	@if [ -n "$${RECORD:-}" ]; then cp out/bench/table.md e2e/bench/result.md; cp out/bench/plot.svg e2e/bench/result.svg; fi

.PHONY: bench-lifecycle
bench-lifecycle: build ## `tracehook lifecycle` with PODS (default 50000) and 100 changes a second on a real API server: delay, memory, restart
	@e2e/controlplane/build.sh etcd kube-apiserver kubectl
	@TRACEHOOK_BENCH_PODS=$${PODS:-50000} go test -count=1 -timeout 2h -v -run TestManyPods ./e2e/lifecycle

.PHONY: lint
lint: $(BIN)/golangci-lint $(BIN)/actionlint ## Style, likely mistakes, who may import whom (.golangci.yml); the workflow files
	@$(BIN)/golangci-lint run ./...
	@$(BIN)/actionlint

.PHONY: vuln
vuln: $(BIN)/govulncheck ## Known vulnerabilities in what we import (asks vuln.go.dev)
	@$(BIN)/govulncheck ./...

.PHONY: verify
verify: $(BIN)/helm-docs ## Whatever can be generated or tidied is as it should be
	@echo "==> go.mod and go.sum are tidy"
	@go mod tidy -diff
	@for module in $(MODULES); do go -C $$module mod tidy -diff; done
	@echo "==> the Collector's modules are what builder.yaml gives"
	@e2e/controlplane/collector/lock.sh --check
	@echo "==> deploy/install.yaml and the chart's manifests are what deploy/ gives"
	@deploy/render.sh --check
	@echo "==> the chart's README is what its values say"
	@$(HELM_DOCS) --dry-run | diff -u deploy/chart/README.md -
	@echo "==> docs/reference is what the commands say"
	@TRACEHOOK_REFERENCE=check go test -count=1 -run '^TestTheReferenceIsWhatTheCommandsSay$$' ./cmd/tracehook
	@go -C e2e/controlplane/crds mod verify >/dev/null # not in MODULES: nothing is imported there, and tidying would empty it

$(BIN)/golangci-lint: .ci/tools/go.mod .ci/tools/go.sum
	@echo "==> building golangci-lint (about 3 min on 2 cores from nothing)"
	@go -C .ci/tools build -trimpath -ldflags "-s -w" -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(BIN)/gotestsum: .ci/gotestsum/go.mod .ci/gotestsum/go.sum
	@go -C .ci/gotestsum build -trimpath -ldflags "-s -w" -o $@ gotest.tools/gotestsum

$(BIN)/helm-docs: .ci/helm-docs/go.mod .ci/helm-docs/go.sum
	@go -C .ci/helm-docs build -trimpath -ldflags "-s -w" -o $@ github.com/norwoodj/helm-docs/cmd/helm-docs

$(BIN)/actionlint: .ci/actionlint/go.mod .ci/actionlint/go.sum
	@go -C .ci/actionlint build -trimpath -ldflags "-s -w" -o $@ github.com/rhysd/actionlint/cmd/actionlint

$(BIN)/govulncheck: .ci/tools/go.mod .ci/tools/go.sum
	@go -C .ci/tools build -trimpath -ldflags "-s -w" -o $@ golang.org/x/vuln/cmd/govulncheck

##@ Keep house

.PHONY: fmt
fmt: ## Format the code
	@gofmt -w -s $$(git ls-files --cached --others --exclude-standard '*.go')

.PHONY: tidy
tidy: ## Renew every go.mod, go.sum and the Collector's pins
	@go mod tidy
	@for module in $(MODULES); do go -C $$module mod tidy; done
	@e2e/controlplane/collector/lock.sh

.PHONY: clean
clean: ## Remove bin/tracehook and out/
	@rm -rf $(BIN)/tracehook out

.PHONY: clean-all
clean-all: clean ## Remove bin/ too: the control plane has to be built again
	@rm -rf $(BIN)

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+( [a-z0-9-]+)*:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
