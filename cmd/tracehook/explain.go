package main

// `tracehook explain`. In: flags and arguments as kubectl has them. Out: why objects exist, or which objects carry a trace.
// Errors: exit 2 for flags, files and kubeconfigs that cannot be used; exit 1 for an object that is not there or may not be
// read, and a cluster that does not answer. What else cannot be read is part of the answer.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/trace"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/cli-runtime/pkg/resource"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/tracehook/tracehook/cmd/tracehook/explain"
)

// mostExplained is how many objects one call explains: each costs some ten requests.
const mostExplained = 100

// storeTimeout is for all questions to the store about one object.
const storeTimeout = 15 * time.Second

// explainOptions are the flags of `explain`.
type explainOptions struct {
	cluster       clusterFlags
	files         resource.FilenameOptions
	selector      string
	allNamespaces bool
	traceID       string
	keys          []string
	auditLogs     []string
	store         storeFlags
	print         *genericclioptions.PrintFlags
}

func newExplainCommand() *cobra.Command {
	o := explainOptions{print: genericclioptions.NewPrintFlags("")}
	o.print.NamePrintFlags = nil
	cmd := &cobra.Command{
		Use:   "explain (KIND/NAME... | KIND NAME... | -f FILE | --trace ID)",
		Short: "Say why an object exists: which request caused it, through whom, and what came of it",
		Long: `Say why an object exists: which request caused it, which owners it came through,
who wrote which of its fields last, and what became of it. This needs no more than
an API server, and rights to read the object, its owners and its Events.
With a trace store (--store) it also says which command it was, how long each step
took and what was slowest; with the audit log (--audit-log), who it was.

With --trace it is the other way round: which objects of the namespace (with -A of
the cluster) carry a trace.

What is not known is at the end, with the source that would tell.`,
		Example: `  tracehook explain pod/web-7d9c4-x2k
  tracehook explain deployment web -n shop -o json
  tracehook explain -f deployment.yaml
  tracehook explain pod/web-7d9c4-x2k --store jaeger=http://localhost:16686 --audit-log '/var/log/kubernetes/audit*.log*'
  tracehook explain --trace 0af7651916cd43dd8448eb211c80319c -A`,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd, nil, nil)
			defer stop()
			return signalled(ctx, o.run(ctx, args, time.Now(), cmd.InOrStdin(), cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.traceID, "trace", "", "list the objects that carry the trace of this `ID` (32 hexadecimal digits, or a traceparent)")
	f.StringSliceVarP(&o.files.Filenames, "filename", "f", nil, "`FILE`, directory or URL that names the objects, or - for stdin")
	f.BoolVarP(&o.files.Recursive, "recursive", "R", false, "with -f: also the directories below")
	f.StringVarP(&o.selector, "selector", "l", "", "objects of the kind with these labels, as a `QUERY`")
	f.BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "look in all namespaces; with --trace also at what has none")
	f.StringSliceVar(&o.keys, "annotation-key", explain.DefaultKeys(), "`KEY` of an annotation that may hold a cause, as given to serve; give several in their order")
	f.StringArrayVar(&o.auditLogs, "audit-log", nil, "`FILE` of the API server's audit log, which says who it was: plain or gzip'd, a pattern such as 'audit*.log*', or - for stdin; may be repeated")
	o.store.bind(f)
	o.print.AddFlags(cmd)
	f.Lookup("output").Usage = "`FORMAT` of the answer: " + strings.Join(o.print.AllowedFormats(), ", ") + " (default text)"
	_ = f.MarkHidden("show-managed-fields") // there is such a flag: AddFlags has made it
	o.cluster.bind(cmd, namespaceUsage{})
	cmd.ValidArgsFunction = o.cluster.completeObject
	offer(cmd, "output", cobra.FixedCompletions(o.print.AllowedFormats(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// validate finds what does not go together.
func (o *explainOptions) validate(args []string) error {
	for _, key := range o.keys {
		if problems := validation.IsQualifiedName(key); len(problems) > 0 {
			return fmt.Errorf("--annotation-key %q: want PREFIX/NAME such as %s", key, explain.DefaultKeys()[0])
		}
	}
	named := len(args) > 0 || len(o.files.Filenames) > 0 || o.selector != ""
	switch {
	case o.traceID != "" && named:
		return errors.New("--trace looks for objects by itself: name none beside it")
	case o.traceID == "" && !named:
		return errors.New("name an object, as KIND/NAME, KIND NAME or -f FILE, or a trace, as --trace ID")
	case len(args) > 0 && len(o.files.Filenames) > 0:
		return errors.New("name objects either by -f or as arguments, not both")
	case slices.Contains(o.auditLogs, "-") && slices.Contains(o.files.Filenames, "-"):
		return errors.New("stdin can be read once: -f - and --audit-log - do not go together")
	case o.traceID != "" && len(o.auditLogs) > 0:
		return errors.New("--trace needs no --audit-log")
	case o.selector != "" && len(o.files.Filenames) > 0:
		return errors.New("-l chooses among the objects of a kind: it does not go together with -f")
	}
	return nil
}

func (o *explainOptions) run(ctx context.Context, args []string, now time.Time, in io.Reader, out io.Writer) error {
	if err := o.validate(args); err != nil {
		return usageError(err)
	}
	print, err := o.answers(now)
	if err != nil {
		return usageError(err)
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // client-go logs what it returns as an error, several times
	o.cluster.with(func(c *rest.Config) {
		c.QPS, c.Burst = 50, 100
		c.UserAgent = "tracehook-explain"
		c.WarningHandler = rest.NoWarnings{} // of deprecated kinds, which nobody here has chosen
	})
	config, err := o.cluster.config()
	if err != nil {
		return usageError(err)
	}
	namespace, _, err := o.cluster.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return usageError(fmt.Errorf("find the namespace: %w", err))
	}
	if o.traceID != "" {
		return o.find(ctx, config, namespace, out, print)
	}
	objects, err := until(ctx, func() ([]*unstructured.Unstructured, error) { return o.objects(args, namespace) })
	if err != nil {
		return clusterHint(err)
	}
	look, err := o.looker(config)
	if err != nil {
		return err
	}
	store, err := o.store.open(os.Getenv)
	if err != nil {
		return usageError(err)
	}
	var known []explain.Known
	var query explain.AuditQuery
	for _, object := range objects {
		k := look.Look(ctx, object)
		if store != nil {
			asked, cancel := context.WithTimeout(ctx, storeTimeout)
			k.Stored = k.Lookup(asked, store)
			cancel()
		}
		known, query = append(known, k), query.Merge(k.AuditQuery())
	}
	var log *explain.AuditLog
	if len(o.auditLogs) > 0 {
		if log, err = until(ctx, func() (*explain.AuditLog, error) { return explain.ReadAudit(o.auditLogs, in, query) }); err != nil {
			return usageError(fmt.Errorf("--audit-log: %w", err))
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err // what is there is not whole
	}
	var stories []explain.Story
	for _, k := range known {
		k.Audit = log
		stories = append(stories, explain.Join(k))
	}
	return print.stories(out, stories)
}

// objects reads those that the user names.
func (o *explainOptions) objects(args []string, namespace string) ([]*unstructured.Unstructured, error) {
	result := resource.NewBuilder(o.cluster).
		Unstructured().
		NamespaceParam(namespace).DefaultNamespace().AllNamespaces(o.allNamespaces).
		FilenameParam(false, &o.files).
		LabelSelectorParam(o.selector).
		ResourceTypeOrNameArgs(true, args...).
		RequestChunksOf(500).
		ContinueOnError().
		Latest(). // what a file holds is not what is there
		Flatten().
		Do()
	var objects []*unstructured.Unstructured
	err := result.Visit(func(info *resource.Info, err error) error {
		if err != nil {
			return err
		}
		object, ok := info.Object.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("%s %s cannot be explained", info.Mapping.GroupVersionKind.Kind, info.Name)
		}
		if objects = append(objects, object); len(objects) > mostExplained {
			return usageError(fmt.Errorf("these are more than %d objects: name fewer", mostExplained))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(objects) == 0 {
		return nil, errors.New("there is no such object")
	}
	return objects, nil
}

// until ends with ctx, which kubectl's library does not know.
func until[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := read()
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// clusterHint says whom client-go could not ask.
func clusterHint(err error) error {
	if !errors.As(err, new(*url.Error)) {
		return err
	}
	return fmt.Errorf("ask the API server: %w", err)
}

func (o *explainOptions) looker(config *rest.Config) (explain.Looker, error) {
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return explain.Looker{}, usageError(fmt.Errorf("make client: %w", err))
	}
	mapper, err := o.cluster.ToRESTMapper()
	if err != nil {
		return explain.Looker{}, usageError(fmt.Errorf("make client: %w", err))
	}
	return explain.Looker{Objects: objects, Mapper: mapper, Keys: o.keys}, nil
}

// find lists what carries a trace.
func (o *explainOptions) find(ctx context.Context, config *rest.Config, namespace string, out io.Writer, print answers) error {
	text, err := parseTraceID(o.traceID)
	if err != nil {
		return usageError(fmt.Errorf("--trace: %w", err))
	}
	id, err := trace.TraceIDFromHex(text)
	if err != nil {
		return usageError(fmt.Errorf("--trace: %w", err))
	}
	if o.allNamespaces {
		namespace = ""
	}
	kinds, err := o.cluster.ToDiscoveryClient()
	if err != nil {
		return usageError(fmt.Errorf("make client: %w", err))
	}
	if _, err := until(ctx, kinds.ServerVersion); err != nil {
		return clusterHint(err)
	}
	kinds.Invalidate() // a kind of today is not in a cache of yesterday
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return usageError(fmt.Errorf("make client: %w", err))
	}
	found := explain.Finder{Discovery: kinds, Metadata: client, Keys: o.keys, Namespace: namespace}.Find(ctx, id)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return print.carriers(out, found)
}

// answers prints answers in the form that the user wants.
type answers struct {
	printer printers.ResourcePrinter // nil: text
	text    explain.TextOptions
}

func (o *explainOptions) answers(now time.Time) (answers, error) {
	a := answers{text: explain.TextOptions{Now: now, Location: time.Local}}
	if *o.print.OutputFormat == "" && *o.print.TemplatePrinterFlags.TemplateArgument == "" {
		return a, nil
	}
	var err error
	a.printer, err = o.print.ToPrinter()
	if err != nil {
		return answers{}, fmt.Errorf("--output: %w", err)
	}
	return a, nil
}

func (a answers) stories(w io.Writer, stories []explain.Story) error {
	switch {
	case a.printer == nil:
		return explain.Text(w, a.text, stories...)
	case len(stories) == 1:
		return a.print(w, stories[0])
	}
	return a.print(w, explain.List{TypeMeta: metav1.TypeMeta{APIVersion: explain.APIVersion, Kind: explain.KindExplanationList}, Items: stories})
}

func (a answers) carriers(w io.Writer, c explain.Carriers) error {
	if a.printer == nil {
		return c.Text(w, a.text)
	}
	return a.print(w, c)
}

// print gives a printer of kubectl's what it takes: an object.
func (a answers) print(w io.Writer, answer any) error {
	text, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	var object unstructured.Unstructured
	if err := json.Unmarshal(text, &object.Object); err != nil {
		return err
	}
	return a.printer.PrintObj(&object, w)
}
