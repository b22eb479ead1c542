//go:build linux

package nodes

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tracehook/tracehook/e2e/internal/story"
)

// An administrator's LimitRange may give every container a limit. It takes longer then, and works.
func TestReplicasStartWithATwentiethOfAProcessor(t *testing.T) {
	text := render(t, "overlays/split")
	collectorOnHost(t)
	apply(t, `
apiVersion: v1
kind: LimitRange
metadata: {name: small, namespace: tracehook-system}
spec: {limits: [{type: Container, default: {cpu: 50m}}]}
`)
	begin := time.Now()
	apply(t, text)
	rolledOut(t, "tracehook", "tracehook-authority")
	firstStamp(t)
	t.Logf("from apply to all replicas Ready: %.1fs", time.Since(begin).Seconds())
	for _, pod := range pods(t, ours) {
		if limit := pod.Spec.Containers[0].Resources.Limits.Cpu().String(); limit != "50m" {
			t.Errorf("%s has the limit %s, so this shows nothing", pod.Name, limit)
		}
	}
	well(t)
}

// What the manifests ask for is what the kernel enforces.
func TestTheProcessHasNoMoreThanTheRestrictedProfileGives(t *testing.T) {
	install(t, "overlays/split", "components/monitoring")
	for _, pod := range pods(t, ours) {
		process := filepath.Join("/proc", fmt.Sprint(processOf(t, pod, "tracehook")))
		status, err := os.ReadFile(filepath.Join(process, "status"))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"Uid": "65532\t65532\t65532\t65532", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
		} {
			_, rest, _ := strings.Cut(string(status), "\n"+name+":\t")
			if got, _, _ := strings.Cut(rest, "\n"); got != want {
				t.Errorf("%s: %s is %q, want %q", pod.Name, name, got, want)
			}
		}
		mounts, err := os.ReadFile(filepath.Join(process, "mountinfo"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			if mount := strings.Fields(line); mount[4] == "/" && !strings.HasPrefix(mount[5], "ro") {
				t.Errorf("%s: the root is mounted %s", pod.Name, mount[5])
			}
		}
	}

	t.Run("metrics are for whom the manifests name", func(t *testing.T) {
		secret, err := shared.clients.CoreV1().Secrets(namespace).Get(story.Within(t, patience), "tracehook-metrics-reader", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		serving, err := shared.clients.CoreV1().Secrets(namespace).Get(story.Within(t, patience), "tracehook-certs", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(serving.Data["ca.crt"]) {
			t.Fatal("Secret tracehook-certs has no ca.crt to verify the pods with")
		}
		for _, pod := range pods(t, ours) {
			for _, asker := range []struct {
				name, token string
				want        int
			}{
				{"Prometheus", string(secret.Data["token"]), http.StatusOK},
				{"nobody", "", http.StatusUnauthorized},
			} {
				if got := metricsOf(t, pod, roots, asker.token); got != asker.want {
					t.Errorf("%s asks %s: %d, want %d", asker.name, pod.Name, got, asker.want)
				}
			}
		}
	})
}

// metricsOf asks a Pod over TLS as the ServiceMonitor has Prometheus do.
func metricsOf(t *testing.T, pod corev1.Pod, roots *x509.CertPool, token string) (status int) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "tracehook.tracehook-system.svc"}}}
	defer client.CloseIdleConnections()
	story.Eventually(t, patience, 200*time.Millisecond, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+pod.Status.PodIP+":8080/metrics", nil)
		if err != nil {
			return err
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		response.Body.Close()
		if status = response.StatusCode; status >= 500 {
			return errors.New(response.Status)
		}
		return nil
	})
	return status
}

// processOf is the number, here outside, of a process of a Pod: the one with this name. "": any of them, as all share one network.
func processOf(t *testing.T, pod corev1.Pod, name string) (pid int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		cgroups, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(cgroups, []byte(pod.UID)) {
			continue // ended meanwhile, or another
		}
		if comm, err := os.ReadFile(filepath.Join(filepath.Dir(file), "comm")); err != nil || name != "" && strings.TrimSpace(string(comm)) != name {
			continue // the sandbox
		}
		if _, err := fmt.Sscanf(file, "/proc/%d/cgroup", &pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("no process of %s found", pod.Name)
	return 0
}
