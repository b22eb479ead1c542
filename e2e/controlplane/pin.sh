#!/usr/bin/env bash
# Pins another version of Kubernetes for `make test-kubernetes`.
#
#   pin.sh v1.33.13
#
# Out: kubernetes-1.33/go.mod and go.sum beside this file. As in that release, Kubernetes' own modules are all of one version,
# and the rest is what its go.mod asks for; so are the language version and GODEBUG's defaults.
set -euo pipefail
export LC_ALL=C

kubernetes=${1:?which version? For example: pin.sh v1.33.13}
IFS=. read -r _ minor patch <<<"$kubernetes"
libraries=v0.$minor.$patch
dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/kubernetes-1.$minor
programs=(k8s.io/kubernetes/cmd/kube-{apiserver,controller-manager,scheduler})

mkdir -p "$dir"
cd "$dir"
theirs=$(go mod download -json "k8s.io/kubernetes@$kubernetes" | awk -F'"' '$2 == "GoMod" { print $4 }')
{
  printf 'module github.com/tracehook/tracehook/e2e/controlplane/kubernetes-1.%s\n\n' "$minor"
  awk '$1 == "go" || $1 == "godebug" && NF == 2 { print $0 "\n" }' "$theirs"
  printf 'require k8s.io/kubernetes %s\n\nreplace (\n' "$kubernetes"
  grep -oE '=> \./staging/src/[^ ]+' "$theirs" | sed 's|.*/staging/src/||' | sort -u |
    while read -r module; do printf '\t%s => %s %s\n' "$module" "$module" "$libraries"; done
  echo ')'
} >go.mod
rm -f go.sum
for os in linux darwin; do
  GOOS=$os GOFLAGS=-mod=mod go list -deps "${programs[@]}" >/dev/null
done
echo "pinned: Kubernetes $kubernetes in ${dir##*/}"
