package main

// In: the flags of `tracehook certs`. Out: files, and what to do with them on stdout.
// Errors: usage (exit 2) for flags and files in the way; exit 1 when a file cannot be written.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tracehook/tracehook/certs"
)

func newCertsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Make the certificates that API servers verify, and audit those of a cluster",
		Args:  func(cmd *cobra.Command, args []string) error { return usageError(cobra.NoArgs(cmd, args)) },
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCertsIssueCommand(), newCertsAuditCommand())
	return cmd
}

// certsIssueOptions are the flags of `certs issue`.
type certsIssueOptions struct {
	service       string
	dir           string
	clusterDomain string
	ips           []net.IP
	force         bool
}

func newCertsIssueCommand() *cobra.Command {
	var o certsIssueOptions
	cmd := &cobra.Command{
		Use:   "issue --service NAMESPACE/NAME --out DIR",
		Short: "Make a certificate authority and a serving certificate for a Service",
		Long: `Make a new certificate authority (valid 90 days) and a serving certificate signed
by it (valid 7 days) with every name under which the Service can be called, and
write them to DIR:

  ca.crt    the authority, for caBundle
  ca.key    its key: whoever has it can pass for the webhook, so keep it out of the cluster
  tls.crt   the serving certificate alone; the authority is not sent in a handshake
  tls.key   its key`,
		Example: "  tracehook certs issue --service tracehook-system/tracehook --out certs",
		Args:    func(cmd *cobra.Command, args []string) error { return usageError(cobra.NoArgs(cmd, args)) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			return issueCerts(o, time.Now(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.service, "service", "", "`NAMESPACE/NAME` of the Service that the API server calls")
	cmd.Flags().StringVar(&o.dir, "out", "", "`DIR` to write to; made if it is not there")
	cmd.Flags().StringVar(&o.clusterDomain, "cluster-domain", certs.DefaultClusterDomain, "DNS `DOMAIN` of the cluster")
	cmd.Flags().IPSliceVar(&o.ips, "ip", nil, "IP `ADDRESS` to serve as well, for a webhook configured by URL (may be repeated)")
	cmd.Flags().BoolVar(&o.force, "force", false, "replace the files that DIR holds already")
	return cmd
}

// issueCerts makes the pairs at now, writes them and says on out what was made and what to run next.
func issueCerts(o certsIssueOptions, now time.Time, out io.Writer) error {
	if o.service == "" {
		return usageError(errors.New("--service NAMESPACE/NAME is missing"))
	}
	if o.dir == "" {
		return usageError(errors.New("--out DIR is missing"))
	}
	namespace, name, err := certs.ParseService(o.service)
	if err != nil {
		return usageError(fmt.Errorf("--service: %w", err))
	}
	names, err := certs.ServiceNames(namespace, name, o.clusterDomain)
	if err != nil {
		return usageError(fmt.Errorf("--cluster-domain: %w", err))
	}

	ca, err := certs.NewCA(certs.CAOptions{Now: now})
	if err != nil {
		return err
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: now, Names: names, IPs: o.ips})
	if err != nil {
		return err
	}
	files, err := certFiles(ca, leaf)
	if err != nil {
		return err
	}
	if err := writeCertFiles(o.dir, files, o.force); err != nil {
		return err
	}

	served := strings.Join(names, ", ")
	for _, ip := range o.ips {
		served += ", " + ip.String()
	}
	in := func(file string) string { return shellQuote(filepath.Join(o.dir, file)) }
	_, err = fmt.Fprintf(out, `Issued for Service %s, in %s:
  tls.crt, tls.key   valid until %s, for %s
  ca.crt, ca.key     valid until %s; keep ca.key out of the cluster

Next, give the pair to the server and the authority to the API server:
  kubectl -n %s create secret tls %s-certs --cert=%s --key=%s
  kubectl patch mutatingwebhookconfiguration %s --type=json -p '[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"'"$(base64 < %s | tr -d '\n')"'"}]'
`,
		o.service, o.dir,
		untilText(leaf.Certificate.NotAfter, now), served,
		untilText(ca.Certificate.NotAfter, now),
		namespace, name, in("tls.crt"), in("tls.key"),
		name, in("ca.crt"))
	return err
}

type certFile struct {
	name     string
	contents []byte
	mode     fs.FileMode
}

// certFiles are in the order in which they are put in place: a server that watches the
// directory looks at tls.crt, so that one comes last.
func certFiles(ca, leaf certs.KeyPair) ([]certFile, error) {
	caCertificate, caCertificateErr := ca.CertificatePEM()
	caKey, caKeyErr := ca.KeyPEM()
	leafCertificate, leafCertificateErr := leaf.CertificatePEM()
	leafKey, leafKeyErr := leaf.KeyPEM()
	if err := errors.Join(caCertificateErr, caKeyErr, leafCertificateErr, leafKeyErr); err != nil {
		return nil, err
	}
	return []certFile{
		{"ca.key", caKey, 0o600},
		{"ca.crt", caCertificate, 0o644},
		{"tls.key", leafKey, 0o600},
		{"tls.crt", leafCertificate, 0o644},
	}, nil
}

// writeCertFiles writes every file beside its place first and only then renames them, so that a
// full disk leaves what was there before, and nobody ever reads half a file.
func writeCertFiles(dir string, files []certFile, force bool) error {
	for _, file := range files {
		path := filepath.Join(dir, file.name)
		switch _, err := os.Lstat(path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return usageError(fmt.Errorf("look for files in the way: %w", err))
		case !force:
			return usageError(fmt.Errorf("%s exists; --force replaces the whole set", path))
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return usageError(fmt.Errorf("make --out: %w", err))
	}
	staging, err := os.MkdirTemp(dir, ".issue-*")
	if err != nil {
		return fmt.Errorf("write certificates: %w", err)
	}
	defer os.RemoveAll(staging)
	for _, file := range files {
		if err := os.WriteFile(filepath.Join(staging, file.name), file.contents, file.mode); err != nil {
			return fmt.Errorf("write certificates: %w", err)
		}
	}
	for _, file := range files {
		if err := os.Rename(filepath.Join(staging, file.name), filepath.Join(dir, file.name)); err != nil {
			return fmt.Errorf("put certificates in place: %w", err)
		}
	}
	return nil
}

func untilText(end, now time.Time) string {
	return fmt.Sprintf("%s (%d days)", end.UTC().Format("2006-01-02 15:04 MST"), int(end.Sub(now).Round(time.Hour).Hours()/24))
}

var shellSafe = regexp.MustCompile(`^[A-Za-z0-9_./,:@%+-]+$`)

// shellQuote makes a word that a POSIX shell reads as s.
func shellQuote(s string) string {
	if shellSafe.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
