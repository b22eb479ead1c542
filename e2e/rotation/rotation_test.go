package rotation

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/tracehook/tracehook/certs"
	"github.com/tracehook/tracehook/e2e/internal/load"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

func TestRotationsFailNoRequest(t *testing.T) {
	ctx := story.Within(t, 6*time.Minute)
	d := deploy(ctx, t, "certs-managed")

	// A leaf from the same CA, or a CA with a leaf; what was replaced is trusted no longer.
	leaf, ca := []string{}, []string{"--ca"}
	rotate := func(ctx context.Context, t *testing.T, args []string) {
		t.Helper()
		before := d.look(ctx, t)
		d.rotate(ctx, t, args...)
		after := d.look(ctx, t)
		if after.leaf.Equal(before.leaf) {
			t.Error("the leaf is the one from before")
		}
		if len(after.trusted) != 1 || slices.Equal(after.trusted, before.trusted) != (len(args) == 0) {
			t.Errorf("trusted is %q, before it was %q", after.trusted, before.trusted)
		}
	}
	for _, test := range []struct {
		name      string
		rotations [][]string
		requests  int
	}{
		{"leaf renewal", [][]string{leaf}, 1000},
		{"CA rollover", [][]string{ca}, 1000},
		{"ten in a row", [][]string{leaf, ca, leaf, leaf, ca, ca, leaf, ca, ca, leaf}, 3000},
	} {
		for _, c := range []connections{kept, cut} {
			t.Run(test.name+", "+string(c), func(t *testing.T) {
				underLoad(ctx, t, d.front, c, test.requests, func(ctx context.Context, _ *load.Load) {
					for _, args := range test.rotations {
						rotate(ctx, t, args)
					}
				}).wantZero(t)
			})
		}
	}

	t.Run("while the manifests are applied again and again", func(t *testing.T) {
		underLoad(ctx, t, d.front, cut, 1000, func(ctx context.Context, _ *load.Load) {
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				rotate(ctx, t, ca)
			}()
			for applied := 0; ; applied++ {
				select {
				case <-ended:
					progress(t, "applied %d times", applied)
					return
				default:
					d.apply(ctx, t)
				}
			}
		}).wantZero(t)
	})

	// A CA whose key was stolen goes at once.
	t.Run("a CA that must be trusted no longer", func(t *testing.T) {
		underLoad(ctx, t, d.front, cut, 1000, func(ctx context.Context, _ *load.Load) {
			before := d.look(ctx, t)
			d.rotate(ctx, t, "--drop", before.trusted[0], "--skip-soak")
			if after := d.look(ctx, t); slices.Contains(after.trusted, before.trusted[0]) || len(after.trusted) != 1 {
				t.Errorf("trusted is %q, before it was %q", after.trusted, before.trusted)
			}
		}).wantZero(t)
	})
}

// Both replicas, the leader among them, are restarted as a rollout does it, while a CA is replaced.
func TestARolloutDuringARolloverFailsNoRequest(t *testing.T) {
	ctx := story.Within(t, 3*time.Minute)
	// Longer than the balancer takes to notice.
	d := deploy(ctx, t, "certs-managed", "--shutdown-delay=500ms")
	before := d.look(ctx, t)
	underLoad(ctx, t, d.front, cut, 1000, func(ctx context.Context, _ *load.Load) {
		request := d.request(ctx, t, certs.RotateCA)
		for _, w := range d.replicas {
			d.await(ctx, t, "begun", func(s certs.Status) bool { return !s.Request.Before(request.Time) })
			if code, err := w.Stop(); err != nil || code != 0 {
				t.Fatalf("stop replica: exit code %d, %v", code, err)
			}
			if err := w.Restart(ctx); err != nil {
				t.Fatal(err)
			}
			d.awaitReady(ctx, t, 2)
		}
		d.await(ctx, t, "finished", func(s certs.Status) bool { return s.Finished(request) })
	}).wantZero(t)
	after := d.look(ctx, t)
	if after.leaf.Equal(before.leaf) || len(after.trusted) != 1 || slices.Equal(after.trusted, before.trusted) {
		t.Errorf("trusted is %q, before it was %q", after.trusted, before.trusted)
	}
}
