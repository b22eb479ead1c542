package main

// `certs issue`. In: a Service, or a live object that sends API servers somewhere. Out: files, and what to do with
// them on stdout. Errors: usage (exit 2) for flags, files in the way and a cluster that does not answer; exit 1 when a
// file cannot be written.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/tracehook/tracehook/certs"
)

// certsIssueOptions are the flags of `certs issue`.
type certsIssueOptions struct {
	clusterFlags
	service       string
	object        string
	dir           string
	clusterDomain string
	ips           []net.IP
	force         bool
	output        string
}

func newCertsIssueCommand() *cobra.Command {
	var o certsIssueOptions
	cmd := &cobra.Command{
		Use:   "issue (--service NAMESPACE/NAME | --for KIND/NAME) --out DIR",
		Short: "Make a certificate authority and a serving certificate for a Service",
		Long: `Make a new certificate authority (valid 90 days) and a serving certificate signed
by it (valid 7 days) with every name under which the Service can be called, and
write them to DIR:

  ca.crt    the authority, for caBundle
  ca.key    its key: whoever has it can pass for the webhook, so keep it out of the cluster
  tls.crt   the serving certificate alone; the authority is not sent in a handshake
  tls.key   its key

With --for the names are those that the API servers verify today for a live webhook
configuration, CustomResourceDefinition or APIService: of all Services and URLs in it.

Exit codes: 0 done, 1 the files could not be written, 2 it could not begin.`,
		Example: "  tracehook certs issue --service tracehook-system/tracehook --out certs\n  tracehook certs issue --for validatingwebhookconfiguration/policy --out certs",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return issueCerts(cmd.Context(), o, time.Now(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.service, "service", "", "`NAMESPACE/NAME` of the Service that the API server calls")
	cmd.Flags().StringVar(&o.object, "for", "", "`KIND/NAME` of the live object that sends the API server there: mutatingwebhookconfiguration, validatingwebhookconfiguration, crd or apiservice")
	cmd.Flags().StringVar(&o.dir, "out", "", "`DIR` to write to; made if it is not there")
	cmd.Flags().StringVar(&o.clusterDomain, "cluster-domain", certs.DefaultClusterDomain, "DNS `DOMAIN` of the cluster")
	cmd.Flags().IPSliceVar(&o.ips, "ip", nil, "IP `ADDRESS` to serve as well, for a webhook configured by URL (may be repeated)")
	cmd.Flags().BoolVar(&o.force, "force", false, "replace the files that DIR holds already")
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", "`FORMAT` of what is said about it: text, json or yaml")
	o.bind(cmd.Flags())
	return cmd
}

// issueReport is what was made.
type issueReport struct {
	For       string   `json:"for"`
	Directory string   `json:"directory"`
	Names     []string `json:"names,omitempty"`
	IPs       []net.IP `json:"ips,omitempty"`

	Certificate issuedCertificate `json:"certificate"`
	CA          issuedCertificate `json:"ca"`
	// Next are commands for a shell.
	Next []string `json:"next"`
}

type issuedCertificate struct {
	File        string    `json:"file"`
	KeyFile     string    `json:"keyFile"`
	Fingerprint string    `json:"fingerprint"` // SHA-256
	NotAfter    time.Time `json:"notAfter"`
}

// issueSubject is for whom to issue.
type issueSubject struct {
	text     string // as a person would write it
	names    []string
	ips      []net.IP
	services []string // NAMESPACE/NAME
	patches  []issuePatch
}

// issuePatch puts the authority into an object.
type issuePatch struct {
	resource, name string
	pointers       []string // of caBundle fields
	verify         string   // pointer of an insecureSkipTLSVerify to be set to false; "": there is none
}

// issueCerts makes the pairs at now, writes them and says on out what was made and what to run next.
func issueCerts(ctx context.Context, o certsIssueOptions, now time.Time, out io.Writer) error {
	subject, err := o.subject(ctx)
	if err != nil {
		return usageError(err)
	}
	subject.ips = append(subject.ips, o.ips...)

	ca, err := certs.NewCA(certs.CAOptions{Now: now})
	if err != nil {
		return err
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: now, Names: subject.names, IPs: subject.ips})
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
	in := func(file string) string { return filepath.Join(o.dir, file) }
	report := issueReport{
		For: subject.text, Directory: o.dir, Names: subject.names, IPs: subject.ips,
		Certificate: issuedCertificate{in("tls.crt"), in("tls.key"), certs.Fingerprint(leaf.Certificate), leaf.Certificate.NotAfter},
		CA:          issuedCertificate{in("ca.crt"), in("ca.key"), certs.Fingerprint(ca.Certificate), ca.Certificate.NotAfter},
		Next:        nextCommands(subject, in),
	}
	if o.output != "text" {
		return writeMachine(out, o.output, report)
	}

	served := subject.names
	for _, ip := range subject.ips {
		served = append(served, ip.String())
	}
	text := fmt.Sprintf(`Issued for %s, in %s:
  tls.crt, tls.key   valid until %s, for %s
  ca.crt, ca.key     valid until %s; keep ca.key out of the cluster

Next, give the pair to the server and the authority to the API server:
  %s
`, subject.text, o.dir,
		untilText(leaf.Certificate.NotAfter, now), strings.Join(served, ", "),
		untilText(ca.Certificate.NotAfter, now), strings.Join(report.Next, "\n  "))
	if o.object != "" {
		text += fmt.Sprintf("\nWhile it is in use, requests fail between these commands. This replaces a certificate without that:\n  tracehook certs migrate %s\n", shellQuote(o.object))
	}
	_, err = io.WriteString(out, text)
	return err
}

func (o *certsIssueOptions) subject(ctx context.Context) (issueSubject, error) {
	switch {
	case o.service == "" && o.object == "":
		return issueSubject{}, errors.New("--service NAMESPACE/NAME is missing, or --for KIND/NAME")
	case o.service != "" && o.object != "":
		return issueSubject{}, errors.New("--service and --for say for whom in two ways: give one of them")
	case o.dir == "":
		return issueSubject{}, errors.New("--out DIR is missing")
	}
	if err := checkChoice("output", o.output, "text", "json", "yaml"); err != nil {
		return issueSubject{}, err
	}
	if o.object != "" {
		return o.liveSubject(ctx)
	}
	namespace, name, err := certs.ParseService(o.service)
	if err != nil {
		return issueSubject{}, fmt.Errorf("--service: %w", err)
	}
	names, err := certs.ServiceNames(namespace, name, o.clusterDomain)
	if err != nil {
		return issueSubject{}, fmt.Errorf("--cluster-domain: %w", err)
	}
	return issueSubject{
		text: "Service " + o.service, names: names, services: []string{o.service},
		// What our manifests call it.
		patches: []issuePatch{{resource: "mutatingwebhookconfiguration", name: name, pointers: []string{"/webhooks/0/clientConfig/caBundle"}}},
	}, nil
}

// liveSubject asks the cluster where an object sends API servers.
func (o *certsIssueOptions) liveSubject(ctx context.Context) (issueSubject, error) {
	ref, err := certs.ParseRef(o.object)
	if err != nil {
		return issueSubject{}, fmt.Errorf("--for: %w", err)
	}
	config, err := o.config()
	if err != nil {
		return issueSubject{}, err
	}
	cluster, err := newCluster(config)
	if err != nil {
		return issueSubject{}, err
	}
	publisher, err := certs.NewPublisher(certs.PublisherOptions{Dynamic: cluster.dynamic})
	if err != nil {
		return issueSubject{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	live, err := publisher.Live(ctx, ref)
	switch {
	case apierrors.IsNotFound(err):
		return issueSubject{}, fmt.Errorf("--for: there is no %s in the cluster", ref)
	case err != nil:
		return issueSubject{}, fmt.Errorf("read %s: %w", ref, err)
	case len(live) == 0:
		return issueSubject{}, fmt.Errorf("--for: %s sends API servers nowhere, so it needs no certificate", ref)
	}
	return subjectOf(ref, live, o.clusterDomain)
}

// subjectOf derives names from what API servers verify.
func subjectOf(ref certs.Ref, live []certs.LiveBundle, domain string) (issueSubject, error) {
	s := issueSubject{text: ref.String()}
	patch := issuePatch{resource: strings.ToLower(ref.Kind), name: ref.Name}
	for _, bundle := range live {
		patch.pointers = append(patch.pointers, jsonPointer(bundle.Field))
		if bundle.InsecureSkipVerify {
			patch.verify = "/spec/insecureSkipTLSVerify"
		}
		names := []string{bundle.ServerName}
		if ip := net.ParseIP(bundle.ServerName); ip != nil {
			if !slices.ContainsFunc(s.ips, ip.Equal) {
				s.ips = append(s.ips, ip)
			}
			continue
		}
		if parts := strings.Split(bundle.ServerName, "."); len(parts) == 3 && parts[2] == "svc" {
			var err error
			if names, err = certs.ServiceNames(parts[1], parts[0], domain); err != nil {
				return s, fmt.Errorf("%s of %s: %w", bundle.Field, ref, err)
			}
			if service := parts[1] + "/" + parts[0]; !slices.Contains(s.services, service) {
				s.services = append(s.services, service)
			}
		}
		for _, name := range names {
			if !slices.Contains(s.names, name) {
				s.names = append(s.names, name)
			}
		}
	}
	s.patches = []issuePatch{patch}
	return s, nil
}

var indexInPath = regexp.MustCompile(`\[(\d+)\]`)

// jsonPointer writes a field path such as webhooks[0].clientConfig.caBundle as RFC 6901 has it.
func jsonPointer(field string) string {
	return "/" + strings.ReplaceAll(indexInPath.ReplaceAllString(field, ".$1"), ".", "/")
}

// nextCommands can be pasted into a shell.
func nextCommands(s issueSubject, in func(string) string) []string {
	var commands []string
	for _, service := range s.services {
		namespace, name, _ := strings.Cut(service, "/")
		commands = append(commands, fmt.Sprintf("kubectl -n %s create secret tls %s-certs --cert=%s --key=%s", namespace, name, shellQuote(in("tls.crt")), shellQuote(in("tls.key"))))
	}
	for _, p := range s.patches {
		var operations []string
		for _, pointer := range p.pointers {
			operations = append(operations, fmt.Sprintf(`{"op":"add","path":%s,"value":"'"$(base64 < %s | tr -d '\n')"'"}`, strconv.Quote(pointer), shellQuote(in("ca.crt"))))
		}
		if p.verify != "" {
			operations = append(operations, fmt.Sprintf(`{"op":"add","path":%s,"value":false}`, strconv.Quote(p.verify)))
		}
		commands = append(commands, fmt.Sprintf("kubectl patch %s %s --type=json -p '[%s]'", p.resource, p.name, strings.Join(operations, ",")))
	}
	return commands
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
