package main

// `version`. In: what the build has stamped in, and for -o an API server. Out: one line, or a document. Errors: exit 2 for flags.
// An API server that does not answer is part of the document.

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"

	"github.com/tracehook/tracehook/cmd/tracehook/explain"
)

// Stamped in by the release build (-ldflags -X main.buildVersion=…).
var buildVersion, buildCommit string

// serverVersionTimeout is for the API server's answer.
const serverVersionTimeout = 5 * time.Second

// version is the stamped version, else the module's, else "devel".
func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

// commit is the stamped commit, else the one that Go has found, else "".
func commit() string {
	if info, ok := debug.ReadBuildInfo(); buildCommit == "" && ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				return setting.Value
			}
		}
	}
	return buildCommit
}

// versionDocument is what machines read.
type versionDocument struct {
	APIVersion    string        `json:"apiVersion"`
	Kind          string        `json:"kind"`
	ClientVersion clientVersion `json:"clientVersion"`
	// ServerVersion is what the API server says of itself. It or ServerError is set, neither with --client.
	ServerVersion *apiversion.Info `json:"serverVersion,omitempty"`
	ServerError   string           `json:"serverError,omitempty"`
}

// clientVersion is of this program.
type clientVersion struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"` // "": the build did not know
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"` // OS/ARCHITECTURE
}

func newVersionCommand() *cobra.Command {
	var flags clusterFlags
	var output string
	var client bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, and with -o all there is to know about the build and the API server",
		Long: `Print the version in one line. With -o it is a document: version, commit, Go's version and
platform of this program, and the version of the API server. An API server that does not
answer within 5 s (--request-timeout) is no error: serverError says why then. With --client
none is asked.`,
		Example: "  tracehook version\n  tracehook version -o json --client",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output == "" {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), version())
				return err
			}
			if err := checkChoice("output", output, "json", "yaml"); err != nil {
				return usageError(err)
			}
			document := versionDocument{
				APIVersion: explain.APIVersion, Kind: "Version",
				ClientVersion: clientVersion{version(), commit(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH},
			}
			if !client {
				if err := flags.validate(); err != nil {
					return usageError(err)
				}
				ctx, stop := interruptible(cmd, nil, nil)
				defer stop()
				var err error
				if document.ServerVersion, err = serverVersion(ctx, flags); err != nil {
					document.ServerError = printable(oneLine(err.Error()))
				}
				if err := signalled(ctx, context.Cause(ctx)); err != nil {
					return err
				}
			}
			return writeMachine(cmd.OutOrStdout(), output, document)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FORMAT` of a document: json or yaml (default the version in one line)")
	cmd.Flags().BoolVar(&client, "client", false, "ask no API server")
	flags.bind(cmd, namespaceUsage{})
	return cmd
}

func serverVersion(ctx context.Context, flags clusterFlags) (*apiversion.Info, error) {
	config, err := flags.config()
	if err != nil {
		return nil, err
	}
	config.Timeout = cmp.Or(config.Timeout, serverVersionTimeout)
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	info, err := until(ctx, client.ServerVersion)
	if err != nil {
		return nil, clusterHint(err)
	}
	return info, nil
}
