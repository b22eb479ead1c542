package main

// `certs issue`. In: a Service, or a live object that sends API servers somewhere. Out: files, and what to do with
// them on stdout. Errors: usage (exit 2) for flags, files in the way and a cluster that does not answer; exit 1 when a
// file cannot be written.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	lifetime      time.Duration
	force         bool
	output        string
}

func newCertsIssueCommand() *cobra.Command {
	var o certsIssueOptions
	cmd := &cobra.Command{
		Use:   "issue (--service NAMESPACE/NAME | --for KIND/NAME) --output-dir DIR",
		Short: "Make a certificate authority and a serving certificate for a Service",
		Long: `Make a new certificate authority and a serving certificate signed by it with every
name under which the Service can be called, and write them to DIR:

  ca.crt    the authority, for caBundle
  ca.key    its key: whoever has it can pass for the webhook, so keep it out of the cluster
  tls.crt   the serving certificate alone; the authority is not sent in a handshake
  tls.key   its key

With --for the names are those that the API servers verify today for a live webhook
configuration, CustomResourceDefinition or APIService: of all Services and URLs in it.

Nobody renews the certificate. The command says until when it is to be replaced, and how.

Exit codes: 0 done, 1 the files could not be written, 2 it could not begin.`,
		Example: "  tracehook certs issue --service tracehook-system/tracehook --output-dir certs\n  tracehook certs issue --for validatingwebhookconfiguration/policy --output-dir certs",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interruptible(cmd, nil, nil)
			defer stop()
			return signalled(ctx, issueCerts(ctx, o, time.Now(), cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	cmd.Flags().StringVar(&o.service, "service", "", "`NAMESPACE/NAME` of the Service that the API server calls")
	cmd.Flags().StringVar(&o.object, "for", "", "`KIND/NAME` of the live object that sends the API server there: mutatingwebhookconfiguration, validatingwebhookconfiguration, crd or apiservice")
	cmd.Flags().StringVar(&o.dir, "output-dir", "", "`DIR` to write to; made if it is not there")
	cmd.Flags().StringVar(&o.clusterDomain, "cluster-domain", certs.DefaultClusterDomain, "DNS `DOMAIN` of the cluster")
	cmd.Flags().IPSliceVar(&o.ips, "ip", nil, "IP `ADDRESS` to serve as well, for a webhook configured by URL (may be repeated)")
	cmd.Flags().DurationVar(&o.lifetime, "lifetime", certs.DefaultLeafLifetime, "how long the certificate is valid; nobody renews it. The authority is valid as long, and 90 days at least")
	cmd.Flags().BoolVar(&o.force, "force", false, "replace the files that DIR holds already")
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", "`FORMAT` of what is said about it: text, json or yaml")
	o.bind(cmd, namespaceUsage{usage: "`NAMESPACE` of the Service, if --service gives a NAME alone"})
	offer(cmd, "for", o.completeTarget)
	return cmd
}

// issueReport is what was made.
type issueReport struct {
	metav1.TypeMeta `json:",inline"`
	For             string   `json:"for"`
	Directory       string   `json:"directory"`
	Names           []string `json:"names,omitempty"`
	IPs             []net.IP `json:"ips,omitempty"`

	Certificate issuedCertificate `json:"certificate"`
	CA          issuedCertificate `json:"ca"`
	// Next are commands for a shell.
	Next []string `json:"next"`
	// Renew is what to do before the certificate ends.
	Renew issueRenewal `json:"renew"`
}

// issueRenewal is how the next certificate takes the place of this one.
type issueRenewal struct {
	Best   time.Time `json:"best"`   // two thirds of the life: a third is left for repairs
	Before time.Time `json:"before"` // from then on calls fail
	// Otherwise is what becomes of requests if nobody does it.
	Otherwise string `json:"otherwise"`
	// Commands are for a shell, and no request fails meanwhile.
	Commands []string `json:"commands"`
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
	// otherwise is what becomes of requests when the certificate has ended.
	otherwise string
}

// issuePatch puts the authority into an object.
type issuePatch struct {
	resource, name string
	pointers       []string // of caBundle fields
	verify         string   // pointer of an insecureSkipTLSVerify to be set to false; "": there is none
}

// issueCerts makes the pairs at now, writes them and says on out what was made and what to run next.
func issueCerts(ctx context.Context, o certsIssueOptions, now time.Time, out, errOut io.Writer) error {
	subject, err := o.subject(ctx, errOut)
	if err != nil {
		return usageError(err)
	}
	subject.ips = append(subject.ips, o.ips...)

	ca, err := certs.NewCA(certs.CAOptions{Now: now, Lifetime: max(certs.DefaultCALifetime, o.lifetime)})
	if err != nil {
		return err
	}
	leaf, err := certs.Issue(ca, certs.LeafOptions{Now: now, Lifetime: o.lifetime, Names: subject.names, IPs: subject.ips})
	if err != nil {
		return err
	}
	files, err := certFiles(ca, leaf)
	if err != nil {
		return err
	}
	if err := writeCertFiles(ctx, o.dir, files, o.force, now); err != nil {
		return err
	}
	in := func(file string) string { return filepath.Join(o.dir, file) }
	report := issueReport{
		TypeMeta: typeMeta(kindIssued),
		For:      subject.text, Directory: o.dir, Names: subject.names, IPs: subject.ips,
		Certificate: issuedCertificate{in("tls.crt"), in("tls.key"), certs.Fingerprint(leaf.Certificate), leaf.Certificate.NotAfter},
		CA:          issuedCertificate{in("ca.crt"), in("ca.key"), certs.Fingerprint(ca.Certificate), ca.Certificate.NotAfter},
		Next:        nextCommands(subject, in),
		Renew: issueRenewal{
			Best: now.Add(o.lifetime * 2 / 3).UTC().Truncate(time.Second), Before: leaf.Certificate.NotAfter,
			Otherwise: subject.otherwise, Commands: renewCommands(subject, o.lifetime),
		},
	}
	if o.output != "text" {
		return writeMachine(out, o.output, report)
	}

	served := subject.names
	for _, ip := range subject.ips {
		served = append(served, ip.String())
	}
	inUse := ""
	if o.object != "" {
		inUse = "While it is in use, requests fail between these commands. The command below replaces a certificate without that.\n"
	}
	text := fmt.Sprintf(`Issued for %s, in %s:
  tls.crt, tls.key   valid until %s, for %s
  ca.crt, ca.key     valid until %s; keep ca.key out of the cluster

Next, give the pair to the server and the authority to the API server:
  %s
%s
Nobody renews the certificate: from %s on %s.
Replace it before, best by %s; no request fails while this does it:
  %s
`, subject.text, o.dir,
		untilText(leaf.Certificate.NotAfter, now), strings.Join(served, ", "),
		untilText(ca.Certificate.NotAfter, now), strings.Join(report.Next, "\n  "), inUse,
		dateText(report.Renew.Before), report.Renew.Otherwise, dateText(report.Renew.Best), strings.Join(report.Renew.Commands, "\n  "))
	_, err = io.WriteString(out, text)
	return err
}

// renewCommands replace a certificate that is in use. The Secret is the one that nextCommands makes.
func renewCommands(s issueSubject, lifetime time.Duration) (commands []string) {
	secret := ""
	if len(s.services) == 1 {
		secret = " --secret " + s.services[0] + "-certs"
	}
	for _, p := range s.patches {
		commands = append(commands, fmt.Sprintf("tracehook certs migrate %s/%s --to issued%s --lifetime %s --apply", p.resource, p.name, secret, lifetime))
	}
	return commands
}

func (o *certsIssueOptions) subject(ctx context.Context, errOut io.Writer) (issueSubject, error) {
	switch {
	case o.service == "" && o.object == "":
		return issueSubject{}, errors.New("--service NAMESPACE/NAME is missing, or --for KIND/NAME")
	case o.service != "" && o.object != "":
		return issueSubject{}, errors.New("--service and --for say for whom in two ways: give one of them")
	case o.dir == "":
		return issueSubject{}, errors.New("--output-dir DIR is missing")
	case o.lifetime < time.Minute:
		return issueSubject{}, fmt.Errorf("--lifetime %s: want a minute or more", o.lifetime)
	}
	if err := checkChoice("output", o.output, "text", "json", "yaml"); err != nil {
		return issueSubject{}, err
	}
	if o.object != "" {
		return o.liveSubject(ctx, errOut)
	}
	if err := o.validate(); err != nil {
		return issueSubject{}, err
	}
	o.service = o.in(o.service)
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
		patches:   []issuePatch{{resource: "mutatingwebhookconfiguration", name: name, pointers: []string{"/webhooks/0/clientConfig/caBundle"}}},
		otherwise: "every call of it fails",
	}, nil
}

// liveSubject asks the cluster where an object sends API servers.
func (o *certsIssueOptions) liveSubject(ctx context.Context, errOut io.Writer) (issueSubject, error) {
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
	nameLeftProofs(ctx, cluster, errOut)
	return subjectOf(ref, live, o.clusterDomain)
}

// subjectOf derives names from what API servers verify.
func subjectOf(ref certs.Ref, live []certs.LiveBundle, domain string) (issueSubject, error) {
	s := issueSubject{text: ref.String(), otherwise: "every call of it fails"}
	switch {
	case ref.Kind == certs.KindCRD:
		s.otherwise = "no object of it can be read or written in another version than the stored one"
	case ref.Kind == certs.KindAPIService:
		s.otherwise = "its API is unavailable, and no namespace can be deleted"
	case slices.ContainsFunc(live, func(b certs.LiveBundle) bool { return b.FailurePolicy != "Ignore" }):
		s.otherwise = "every request that it is called for is refused (failurePolicy: Fail)"
	case len(live) > 0:
		s.otherwise = "requests pass without it, and nobody is told (failurePolicy: Ignore)"
	}
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

const (
	stagingPrefix = ".issue-" // of files that are not in their place yet
	// A run takes less than this: what is older was left by one that was killed.
	stagingAge = time.Minute
)

// writeCertFiles writes every file beside its place first and only then renames them, so that a full disk leaves what was
// there before, and nobody ever reads half a file. Nothing is written outside of dir, whatever links there are in it, and
// without force no file is replaced, not even one that comes meanwhile. When ctx ends before the first is in place, nothing stays.
func writeCertFiles(ctx context.Context, dir string, files []certFile, force bool, now time.Time) (err error) {
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
		return usageError(fmt.Errorf("make --output-dir: %w", err))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return usageError(fmt.Errorf("open --output-dir: %w", err))
	}
	defer root.Close()
	if err := removeStaged(root, now); err != nil {
		return usageError(err)
	}
	run := stagingPrefix + rand.Text() + "-"
	partial := map[string]bool{} // what is of no use without the rest
	defer func() {
		for name := range partial {
			if err != nil {
				err = errors.Join(err, root.Remove(name))
			}
		}
	}()
	for _, file := range files {
		partial[run+file.name] = true
		if err := writeSynced(root, run+file.name, file.contents, file.mode); err != nil {
			return fmt.Errorf("write certificates: %w", err)
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("write certificates: %w", context.Cause(ctx))
	}
	for _, file := range files {
		if !force { // an empty file takes the place first, as a rename would replace what came meanwhile
			if err := writeSynced(root, file.name, nil, file.mode); err != nil {
				return usageError(fmt.Errorf("%w; --force replaces the whole set", err))
			}
			partial[file.name] = true
		}
		if err := root.Rename(run+file.name, file.name); err != nil {
			return fmt.Errorf("put certificates in place: %w", err)
		}
		delete(partial, run+file.name)
	}
	if err := syncDirectory(root); err != nil {
		return err
	}
	clear(partial)
	return nil
}

// removeStaged removes what runs that were killed have left. A younger file is another run's, or was until a moment ago.
func removeStaged(root *os.Root, now time.Time) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("look for files in the way: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), stagingPrefix) {
			continue
		}
		info, err := entry.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("look for files in the way: %w", err)
		case now.Sub(info.ModTime()) < stagingAge:
			return fmt.Errorf("another `certs issue` writes to %[1]s, or was killed and has left a key there: wait a minute, or remove %[2]s",
				root.Name(), filepath.Join(root.Name(), entry.Name()))
		}
		if err := root.RemoveAll(entry.Name()); err != nil {
			return fmt.Errorf("remove what a killed run has left: %w", err)
		}
	}
	return nil
}

// writeSynced makes a file that was not there, and returns when it is on the disk.
func writeSynced(root *os.Root, name string, contents []byte, mode fs.FileMode) error {
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(contents)
	return errors.Join(err, file.Sync(), file.Close())
}

// syncDirectory has the names on the disk too. Windows knows no such thing.
func syncDirectory(root *os.Root) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	dir, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("put certificates in place: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("put certificates in place: %w", err)
	}
	return nil
}

func untilText(end, now time.Time) string {
	if left := end.Sub(now); left < 48*time.Hour {
		return fmt.Sprintf("%s (%s)", dateText(end), left.Round(time.Minute))
	}
	return fmt.Sprintf("%s (%d days)", dateText(end), int(end.Sub(now).Round(time.Hour).Hours()/24))
}

func dateText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

var shellSafe = regexp.MustCompile(`^[A-Za-z0-9_./,:@%+-]+$`)

// shellQuote makes a word that a POSIX shell reads as s.
func shellQuote(s string) string {
	if shellSafe.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
