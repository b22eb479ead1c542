#!/usr/bin/env bash
# Renders overlays/split to install.yaml, the one file of a release, and copies what the Helm chart is made of to chart/manifests.
#
#   render.sh            renew both
#   render.sh --check    exit 1, with the difference, if one of them is not what base, components and overlays/split give
#
# $KUBECTL, or bin/kubectl of this repository, which is built if it is not there: another version may write the same in
# another order.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

kubectl=${KUBECTL:-../bin/kubectl}
if [[ ! -x $kubectl ]]; then ../e2e/controlplane/build.sh kubectl >&2; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  echo "# kubectl apply -f install.yaml: tracehook with certificates of its own making."
  # .ci/dist leaves the next lines out of a release.
  echo "# No image is published yet: build one in a checkout, and load it on each node (deploy/README.md has other engines than containerd):"
  echo "#   make image VERSION=$(awk '$1 == "newTag:" { print $2 }' components/release/kustomization.yaml)"
  echo "#   tar -C out/image -c . | ctr -n k8s.io images import -"
  echo "# Rendered from deploy/overlays/split by deploy/render.sh; change it there."
  "$kubectl" kustomize overlays/split
} >"$work/install.yaml"
# The chart has no manifests of its own. Copies, and no links: Flux leaves links out of what it fetches.
for dir in base components/*; do
  case ${dir#components/} in collector | jaeger | release) continue ;; esac # demos, and what the chart's labels say
  for file in "$dir"/*.{yaml,json}; do
    if [[ ! -f $file || $file == */kustomization.yaml || $file == base/namespace.yaml ]]; then continue; fi
    mkdir -p "$work/manifests/${dir#components/}"
    cp "$file" "$work/manifests/${dir#components/}"
  done
done
if [[ ${1:-} == --check ]]; then
  diff -u install.yaml "$work/install.yaml"
  diff -ur chart/manifests "$work/manifests"
else
  cp "$work/install.yaml" install.yaml
  rm -rf chart/manifests
  cp -r "$work/manifests" chart/manifests
fi
