//go:build linux

package node

// Tracing of a node. In: the directory of the configurations that are shipped. Out: the same for this node and
// Collector. Errors: of the file system.

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// tracing reads what has kubelet and containerd trace: a drop-in of kubelet's, and variables of containerd's environment.
// Only the addresses, and the node's name, are not as shipped.
func tracing(dir, node, collector string) (kubelet string, containerd []string, err error) {
	here := strings.NewReplacer("localhost:4317", collector, "%H", node) // systemd.unit(5): the host's name
	var texts [2]string
	for i, name := range []string{"kubelet-tracing.conf", "containerd-tracing.conf"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", nil, fmt.Errorf("read configuration of tracing: %w", err)
		}
		texts[i] = here.Replace(string(text))
	}
	for line := range strings.Lines(texts[1]) {
		if variable, found := strings.CutPrefix(strings.TrimSpace(line), "Environment="); found {
			containerd = append(containerd, variable)
		}
	}
	return texts[0], containerd, nil
}
