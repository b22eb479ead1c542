package gitops

import (
	"strings"
	"testing"
)

// Argo CD's engine compares and applies as kubectl does on the client, from what was applied last: its sync is a `kubectl apply`.
func TestWhoeverAppliesOnTheClientSeesNoDriftEither(t *testing.T) {
	manifests := write(t, strings.ReplaceAll(shop(firstCommit, "app:1"), "shop", "argo"))
	mustKubectl(t, "apply", "-f", manifests)
	t.Cleanup(func() { mustKubectl(t, "delete", "namespace", "argo", "--wait=false") })
	wantQuiet := func(when string) {
		t.Helper()
		before := stateOf(t, "argo")
		stampOf(t, "argo", "deployment/web")
		if drift := mustKubectl(t, "diff", "-f", manifests); drift != "" {
			t.Errorf("%s: kubectl diff says\n%s", when, drift)
		}
		for line := range strings.Lines(mustKubectl(t, "apply", "-f", manifests)) {
			if !strings.HasSuffix(strings.TrimSpace(line), " unchanged") {
				t.Errorf("%s: kubectl apply says %q, want unchanged", when, line)
			}
		}
		if now := stateOf(t, "argo"); now != before {
			t.Errorf("%s: to apply again changed\n%s\nto\n%s", when, before, now)
		}
	}
	wantQuiet("the same commit")

	mustKubectl(t, "-n", "argo", "set", "image", "deployment/web", "main=other:1")
	mustKubectl(t, "apply", "-f", manifests)
	if image := mustKubectl(t, "-n", "argo", "get", "deployment/web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"); image != "app:1" {
		t.Errorf("the image is %s, want app:1 put back", image)
	}
	wantQuiet("after it was put back")
}
