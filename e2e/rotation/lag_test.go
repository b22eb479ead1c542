package rotation

import (
	"context"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/load"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// lag is far more than anybody would wait without looking.
const lag = 1500 * time.Millisecond

// A CA whose key nobody holds any more is replaced, so nothing can be cross-signed and order is all there is; and one API
// server learns everything a good second late. By hand and with a short wait it fails. The Authority waits for
// the proof.
func TestAnAPIServerThatLagsBehindIsWaitedFor(t *testing.T) {
	ctx := story.Within(t, 4*time.Minute)
	delay := startDelay(t, shared.EtcdURL)
	late, err := shared.StartAPIServerWith(ctx, cluster.APIServerOptions{EtcdURL: delay.url})
	if err != nil {
		t.Fatal(err)
	}
	all := shared.servers
	shared.servers = append(all[:2:2], late)
	defer func() {
		shared.servers = all
		if err := late.Stop(); err != nil {
			t.Error(err)
		}
	}()

	d := install(ctx, t, "certs-authority")
	pairs := []string{t.TempDir(), t.TempDir()}
	bundles := [][]byte{issue(ctx, t, pairs[0]), issue(ctx, t, pairs[1])}
	putSecret(ctx, t, pairs[0])
	if err := shared.SetCABundle(ctx, bundles[0]); err != nil {
		t.Fatal(err)
	}
	d.startReplicas(ctx, t)
	d.awaitReady(ctx, t, 2)
	delay.by.Store(int64(lag))

	t.Run("a wait of 200 ms", func(t *testing.T) {
		m := underLoad(ctx, t, d.front, unstored, 0, func(ctx context.Context, l *load.Load) {
			if err := shared.WriteCABundle(ctx, append(append([]byte{}, bundles[0]...), bundles[1]...)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
			putSecret(ctx, t, pairs[1])
			time.Sleep(2 * lag)
		})
		if m.Failures == 0 {
			t.Errorf("none of %d requests failed: nobody lags", m.Requests)
		}
	})
	t.Run("a proof", func(t *testing.T) {
		before := d.look(ctx, t)
		var done certs.Status
		underLoad(ctx, t, d.front, unstored, 1000, func(ctx context.Context, l *load.Load) {
			begin := time.Now()
			d.startAuthorities(ctx, t)
			done = d.await(ctx, t, "taken over", func(s certs.Status) bool { return s.Settled && s.Phase == certs.PhaseStable })
			progress(t, "taken over after %.1fs", time.Since(begin).Seconds())
		}).wantZero(t)
		after := d.look(ctx, t)
		// Of the two that were trusted, the first had served before and is not the Authority's to remove.
		if after.leaf.Equal(before.leaf) || len(after.trusted) != 2 || !slices.Contains(after.trusted, before.trusted[0]) {
			t.Errorf("trusted is %q, before it was %q", after.trusted, before.trusted)
		}
		if done.Proof == nil || done.Proof.Certainty != certs.Proven || len(done.Proof.Servers) != 3 {
			t.Errorf("the proof is %+v, want one of all three API servers", done.Proof)
		}
	})
	delay.by.Store(0)
}

// putSecret makes the Secret that is served from files, as an operator does.
func putSecret(ctx context.Context, t *testing.T, dir string) {
	t.Helper()
	data := map[string][]byte{}
	for _, name := range []string{"tls.crt", "tls.key"} {
		data[name] = []byte(read(t, filepath.Join(dir, name)))
	}
	secrets := shared.clients.CoreV1().Secrets(namespace)
	_, err := secrets.Patch(ctx, certs.DefaultServingSecret, types.MergePatchType, secretPatch(t, data), metav1.PatchOptions{})
	if err != nil {
		_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: certs.DefaultServingSecret}, Data: data}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// delay is a long line: what one end says arrives at the other later, in order and as fast as it was said.
type delay struct {
	url string
	by  atomic.Int64 // nanoseconds, from the server to its client
}

func startDelay(t *testing.T, to string) *delay {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	d := &delay{url: "http://" + listener.Addr().String()}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target.Host)
			if err != nil {
				client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(server, client)
				server.Close()
			}()
			go d.copy(client, server)
		}
	}()
	return d
}

func (d *delay) copy(to, from net.Conn) {
	type part struct {
		due  time.Time
		data []byte
	}
	line := make(chan part, 10000)
	go func() {
		defer to.Close()
		for p := range line {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				from.Close()
			}
		}
	}()
	defer close(line)
	for {
		buffer := make([]byte, 32<<10)
		n, err := from.Read(buffer)
		if n > 0 {
			line <- part{time.Now().Add(time.Duration(d.by.Load())), buffer[:n]}
		}
		if err != nil {
			return
		}
	}
}
