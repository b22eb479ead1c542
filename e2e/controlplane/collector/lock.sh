#!/usr/bin/env bash
# Pins what builder.yaml leaves open: asks the builder for the go.mod and go.sum of the Collector that builder.yaml
# describes and keeps them in otelcol/, from which build.sh builds.
#
#   lock.sh            renew otelcol/
#   lock.sh --check    exit 1, with the difference, if otelcol/ is not what builder.yaml gives
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed "s|^  output_path:.*|  output_path: $work/otelcol|" builder.yaml >"$work/builder.yaml"
if ! go tool builder --skip-compilation --config "$work/builder.yaml" >"$work/log" 2>&1; then
  cat "$work/log" >&2
  exit 1
fi
for file in go.mod go.sum; do
  if [[ ${1:-} == --check ]]; then
    diff -u "otelcol/$file" "$work/otelcol/$file"
  else
    cp "$work/otelcol/$file" "otelcol/$file"
  fi
done
