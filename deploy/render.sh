#!/usr/bin/env bash
# Renders overlays/split to install.yaml, the one file of a release.
#
#   render.sh            renew install.yaml
#   render.sh --check    exit 1, with the difference, if install.yaml is not what overlays/split gives
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
  echo "# Rendered from deploy/overlays/split by deploy/render.sh; change it there."
  "$kubectl" kustomize overlays/split
} >"$work/install.yaml"
if [[ ${1:-} == --check ]]; then
  diff -u install.yaml "$work/install.yaml"
else
  cp "$work/install.yaml" install.yaml
fi
