package lifecycle

// How far the cluster's story has been told. Pure.

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A Mark says, for each resource, up to which resource version everything has been told and exported. Who goes on from it tells
// nothing that is older and has not changed since. A nil Mark is that of a beginning.
//
// Kubernetes orders the resource versions of one resource since 1.35 (KEP-5504), and etcd always did.
type Mark map[string]uint64

// mostMark is longer than any Mark that is written here.
const mostMark = 1024

// String writes a Mark so that ParseMark reads it: "deployments=5,pods=7".
func (m Mark) String() string {
	var parts []string
	for _, resource := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, resource+"="+strconv.FormatUint(m[resource], 10))
	}
	return strings.Join(parts, ",")
}

// ParseMark reads a Mark; "" is nil. An error means that it was not written by String.
func ParseMark(text string) (Mark, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > mostMark {
		return nil, fmt.Errorf("read mark: %d bytes, want at most %d", len(text), mostMark)
	}
	m := Mark{}
	for part := range strings.SplitSeq(text, ",") {
		resource, version, _ := strings.Cut(part, "=")
		n, err := strconv.ParseUint(version, 10, 64)
		if err != nil || resource == "" {
			return nil, fmt.Errorf("read mark: %q, want RESOURCE=VERSION", part)
		}
		m[resource] = n
	}
	return m, nil
}

// version reads a resource version as a number, which those of Kubernetes are.
func version(text string) (uint64, bool) {
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil
}
