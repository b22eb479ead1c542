package main

// What killed processes have left in a cluster of their proofs. In: a cluster. Out: lines on stderr, and for commands that write to the
// cluster, the objects removed. Errors: none; where rights are missing nothing is said.

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/tracehook/tracehook/certs"
)

// nameLeftProofs is for commands that write nothing to the cluster.
func nameLeftProofs(ctx context.Context, c *cluster, errOut io.Writer) {
	left, _ := certs.FindLeftProofs(ctx, c.clients, c.dynamic) // who may not list them is not meant
	for _, l := range left {
		fmt.Fprintf(errOut, "tracehook: %s was left behind by a process that was killed; remove it: %s\n", l.Ref, deleteCommand(l.Ref))
	}
}

// removeLeftProofs works beside the command, which waits for it at its end.
func removeLeftProofs(ctx context.Context, c *cluster, errOut io.Writer) (wait func()) {
	var group sync.WaitGroup
	var removed []certs.LeftProof
	group.Go(func() { removed, _ = certs.RemoveLeftProofs(ctx, c.clients, c.dynamic) })
	return func() {
		group.Wait()
		for _, l := range removed {
			fmt.Fprintf(errOut, "tracehook: removed %s, which a process that was killed had left behind\n", l.Ref)
		}
	}
}

// deleteCommand is for a shell.
func deleteCommand(ref certs.Ref) string {
	return fmt.Sprintf("kubectl delete %s %s", strings.ToLower(ref.Kind), ref.Name)
}
