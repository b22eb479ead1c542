#!/usr/bin/env bash
# Builds the programs that the demo and the end-to-end tests run, from source, at the versions pinned beside this file.
#
#   build.sh [NAME...]     default: all of them
#
# In:  go.mod and go.sum here, in jaeger/, in prometheus/, in helm/, in node/, in policy/, in flux/ (main.go too) and in collector/; collector/builder.yaml.
# Out: BIN/NAME (BIN: bin/ at the repository root, or $BIN) and BIN/.stamps/NAME, a hash of everything that the
#      program was built from. A program whose stamp is still right is not built again.
# KUBERNETES: another version of Kubernetes, one of kubernetes-*/ here (1.28, for example). Then only its API server, controllers and
#      scheduler are built, into BIN/kubernetes-1.28.
# KUBEBUILDER_ASSETS: what that directory holds of Kubernetes and etcd is used instead and not built.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${BIN:-$root/bin}
all=(etcd kube-apiserver kube-controller-manager kube-scheduler kubectl otelcol jaeger prometheus promtool helm3 helm4 flux-apply)
nodes=(kubelet kube-proxy containerd containerd-shim-runc-v2 ctr ptp host-local kube-router)
if [[ $(go env GOOS) == linux ]]; then all+=("${nodes[@]}"); fi # they are nowhere else
pinned=$here
if [[ -n ${KUBERNETES:-} ]]; then
  pinned=$here/kubernetes-$KUBERNETES
  if [[ ! -d $pinned ]]; then
    echo "build.sh: Kubernetes $KUBERNETES is not pinned; there are:$(cd "$here" && printf ' %s' kubernetes-* | sed 's/kubernetes-//g'). To add one: pin.sh" >&2
    exit 2
  fi
  bin=$bin/kubernetes-$KUBERNETES
  all=(kube-apiserver kube-controller-manager kube-scheduler)
  unset KUBEBUILDER_ASSETS
fi

# The version of a module as a go.mod requires it.
version() { awk -v module="$2" '{ sub(/^(require)?[ \t]+/, "") } $1 == module && NF > 1 { print $2; exit }' "$1/go.mod"; }

kubernetes=$(version "$pinned" k8s.io/kubernetes)
IFS=. read -r major minor _ <<<"${kubernetes#v}"
# What `go build` cannot know and the build scripts of Kubernetes stamp in: kubectl and the API server compare versions.
stamp=k8s.io/component-base/version
kube_ldflags="-s -w -X $stamp.gitVersion=$kubernetes -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor -X $stamp.gitTreeState=clean"

# describe NAME sets what it takes to build it: the module, the package, flags, the version to show
# and how long it takes on 2 cores with an empty build cache.
describe() {
  ldflags="-s -w" tags=""
  case $1 in
  etcd)
    module=$here package=go.etcd.io/etcd/server/v3 about="half a minute"
    shown=$(version "$module" go.etcd.io/etcd/server/v3) ;;
  kube-apiserver)
    module=$pinned package=k8s.io/kubernetes/cmd/$1 about="4 min" shown=$kubernetes ldflags=$kube_ldflags ;;
  kube-controller-manager | kube-scheduler | kubectl | kubelet | kube-proxy)
    module=$pinned package=k8s.io/kubernetes/cmd/$1 about="1 min" shown=$kubernetes ldflags=$kube_ldflags ;;
  otelcol)
    module=$here/collector package=. about="2 min"
    shown=$(version "$module" go.opentelemetry.io/collector/cmd/builder) ;;
  jaeger)
    module=$here/jaeger package=github.com/jaegertracing/jaeger/cmd/jaeger about="6 min"
    shown=$(version "$module" github.com/jaegertracing/jaeger) ;;
  prometheus | promtool)
    # The tests name their targets themselves; without this tag the SDKs of all clouds are compiled too.
    module=$here/prometheus package=github.com/prometheus/prometheus/cmd/$1 tags=remove_all_sd about="2 min"
    shown=$(version "$module" github.com/prometheus/prometheus)
    ldflags="$ldflags -X github.com/prometheus/common/version.Version=${shown#v}" ;;
  flux-apply)
    module=$here/flux package=. about="half a minute"
    shown=$(version "$module" github.com/fluxcd/pkg/ssa) ;;
  helm3 | helm4)
    module=$here/helm package=helm.sh/helm/v${1#helm}/cmd/helm about="1 min"
    shown=$(version "$module" helm.sh/helm/v${1#helm})
    # What `go build` cannot know, and Helm's own Makefile stamps in.
    stamp=helm.sh/helm/v${1#helm}/internal/version
    ldflags="$ldflags -X $stamp.version=$shown -X $stamp.gitTreeState=clean" ;;
  containerd | containerd-shim-runc-v2 | ctr)
    module=$here/node package=github.com/containerd/containerd/v2/cmd/$1 about="half a minute"
    shown=$(version "$module" github.com/containerd/containerd/v2)
    ldflags="$ldflags -X github.com/containerd/containerd/v2/version.Version=$shown" ;;
  ptp)
    module=$here/node package=github.com/containernetworking/plugins/plugins/main/$1 about="a few seconds"
    shown=$(version "$module" github.com/containernetworking/plugins) ;;
  kube-router)
    module=$here/policy package=github.com/cloudnativelabs/kube-router/v2/cmd/$1 about="1 min"
    shown=$(version "$module" github.com/cloudnativelabs/kube-router/v2) ;;
  host-local)
    module=$here/node package=github.com/containernetworking/plugins/plugins/ipam/$1 about="a few seconds"
    shown=$(version "$module" github.com/containernetworking/plugins) ;;
  *)
    echo "build.sh: no such program: $1 (there are: ${all[*]})" >&2
    exit 2 ;;
  esac
}

# fingerprint NAME: what the binary depends on.
fingerprint() {
  local files=("$module/go.mod" "$module/go.sum")
  if [[ $1 == otelcol ]]; then files+=("$module/builder.yaml" "$module"/otelcol/go.{mod,sum}); fi
  if [[ $1 == flux-apply ]]; then files+=("$module/main.go"); fi
  { go env GOVERSION GOOS GOARCH; echo "$package $ldflags${tags:+ $tags}"; cat "${files[@]}"; } | sha256sum | cut -d' ' -f1
}

# compile NAME builds it at BIN/.new/NAME.
compile() {
  local dir=$module out=$bin/.new/$1
  if [[ $1 == otelcol ]]; then
    # builder.yaml → Go sources under bin/; their go.mod and go.sum are the ones in otelcol/, so that
    # the versions of indirect dependencies are pinned too (`make tidy` renews them).
    dir=$bin/.otelcol-src
    rm -rf "$dir"
    mkdir -p "$dir"
    sed "s|^  output_path:.*|  output_path: $dir|" "$module/builder.yaml" >"$bin/.new/builder.yaml"
    go -C "$module" tool builder --skip-get-modules --skip-compilation --config "$bin/.new/builder.yaml"
    cp "$module"/otelcol/go.{mod,sum} "$dir"
  fi
  CGO_ENABLED=0 go -C "$dir" build -mod=readonly -trimpath -tags "$tags" -ldflags "$ldflags" -o "$out" "$package"
}

# watch PID LOG TITLE says every now and then that PID is still at work, and at what.
watch() {
  local start=$SECONDS next=15 elapsed doing
  while kill -0 "$1" 2>/dev/null; do
    sleep 0.2
    elapsed=$((SECONDS - start))
    if ((elapsed >= next)); then
      next=$((elapsed + 15))
      doing=compiling
      if [[ $(tail -n 1 "$2") == "go: downloading "* ]]; then doing=downloading; fi
      echo "      $3: $doing, ${elapsed} s"
    fi
  done
}

names=("$@")
if ((${#names[@]} == 0)); then names=("${all[@]}"); fi

missing=()
for name in "${names[@]}"; do
  describe "$name"
  if [[ $name == etcd || $name == kube* ]] && [[ -n ${KUBEBUILDER_ASSETS:-} && -x $KUBEBUILDER_ASSETS/$name ]]; then continue; fi
  if [[ -x $bin/$name && $(cat "$bin/.stamps/$name" 2>/dev/null) == "$(fingerprint "$name")" ]]; then continue; fi
  missing+=("$name")
done

if ((${#missing[@]} == 0)); then
  echo "control plane: nothing to build (${names[*]})"
  exit 0
fi

mkdir -p "$bin/.stamps" "$bin/.new" "$bin/.log"
child=
trap 'if [[ -n $child ]]; then kill -- "-$child" 2>/dev/null || true; fi' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

total=$SECONDS
number=0
for name in "${missing[@]}"; do
  describe "$name"
  number=$((number + 1))
  started=$SECONDS
  log=$bin/.log/$name
  echo "[$number/${#missing[@]}] building $name $shown (about $about on 2 cores from nothing)"
  set -m # the compilation gets a process group of its own, so that Ctrl-C can end all of it
  (compile "$name") >"$log" 2>&1 &
  child=$!
  set +m
  watch "$child" "$log" "$name"
  if ! wait "$child"; then
    child=
    echo "build.sh: $name did not build; the end of $log:" >&2
    tail -n 30 "$log" >&2
    exit 1
  fi
  child=
  # A rename, because the old program may be running.
  mv -f "$bin/.new/$name" "$bin/$name"
  fingerprint "$name" >"$bin/.stamps/$name"
  echo "      done in $((SECONDS - started)) s"
done
rm -rf "$bin/.new" "$bin/.log"
echo "control plane: built ${#missing[@]} of ${#names[@]} programs in $((SECONDS - total)) s"
