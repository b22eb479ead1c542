package main

// `probe`: what a Pod's startupProbe runs. In: the address of the probes' port. Out: it returns as soon as /readyz says
// yes. Errors: nobody answers there (exit 1), or wrong flags (exit 2).
//
// A probe by HTTP meets a closed port while the program starts, and kubelet tells of that in a Warning event. And it asks
// once a second. This one waits inside the container, so kubelet learns of the first "ready" when it is said.

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// probeEvery is how often /readyz is asked.
const probeEvery = 20 * time.Millisecond

func newProbeCommand() *cobra.Command {
	var address string
	var patience time.Duration
	cmd := &cobra.Command{
		Use:   "probe",
		Short: "Wait until the server in this container is ready",
		Long: `Wait until the server in this container is ready, and return at once then. This is
for a Pod's startupProbe; the shipped manifests have it.

A server that answers and is not ready when --patience ends has started all the same:
what it waits for is printed, and the readiness probe judges it from there on. If
nobody answers, the exit code is 1.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkAddress("health-probe-bind-address", address); err != nil {
				return usageError(err)
			}
			if patience <= 0 {
				return usageError(fmt.Errorf("--patience %s: want more than 0", patience))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), patience)
			defer cancel()
			return probe(ctx, address, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&address, "health-probe-bind-address", ":8081", "what the server was started with")
	cmd.Flags().DurationVar(&patience, "patience", 20*time.Second, "how long to wait; a probe's timeoutSeconds must be longer")
	return cmd
}

// probe asks until ctx ends.
func probe(ctx context.Context, address string, stdout io.Writer) error {
	var dialer net.Dialer
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", address) // an empty host is this one
	}}}
	answered, refused := "", error(nil)
	for {
		status, body, err := readyz(ctx, &client)
		switch {
		case err == nil && status == http.StatusOK:
			return nil
		case err == nil:
			answered = body
		case ctx.Err() == nil:
			refused = err
		}
		select {
		case <-ctx.Done():
			if answered == "" {
				return fmt.Errorf("ask %s whether it is ready: %w", address, cmp.Or(refused, ctx.Err()))
			}
			_, err := fmt.Fprintln(stdout, answered)
			return err
		case <-time.After(probeEvery):
		}
	}
}

func readyz(ctx context.Context, client *http.Client) (status int, body string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/readyz", nil)
	if err != nil {
		return 0, "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	return response.StatusCode, printable(oneLine(string(text))), err
}
