// In: the source, a version, a date. Out: the image for every platform of .ko.yaml, in an OCI layout on disk or in a registry, with an SBOM
// each, as files or in the registry; its reference on standard output. Errors: what Go, ko or the registry says.
//
// ko as a library instead of the command: the base image must be able to come from this machine, under a name that does not
// change from run to run, because ko writes that name into the image.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/ko/pkg/build"
	"github.com/google/ko/pkg/commands/options"
	"github.com/google/ko/pkg/publish"
)

// module is what the programs are of.
const module = "github.com/tracehook/tracehook/"

// Annotations by which a layout's index says what the image is called: the tag alone, as the specification has it and skopeo and podman read
// it, and the whole name, which containerd and docker give it.
const (
	refName   = "org.opencontainers.image.ref.name"
	imageName = "io.containerd.image.name"
)

type config struct {
	source     string // the repository's root
	program    string // its directory in source
	name       string // of the repository that a layout's image is called after
	platforms  string // as in linux/amd64,linux/arm64; empty: those of .ko.yaml
	version    string
	revision   string    // commit; may be empty
	date       time.Time // of the source: what is written into the image instead of the time of the build
	remoteBase bool      // the base image of .ko.yaml instead of one made here
	baseDigest string    // which one of the remote base; empty: the newest
	layout     string    // directory of the OCI layout; it is emptied first
	push       string    // repository to publish to instead
	sboms      string    // directory for the SBOMs as files; empty: none
}

func main() {
	// ko tells its steps, and lists every changed file; errors come back as errors.
	log.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	cfg, err := parse(args, getenv)
	if err != nil {
		return err
	}
	result, err := cfg.build(ctx)
	if err != nil {
		return err
	}
	reference, err := cfg.publish(ctx, result)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, reference)
	return err
}

func parse(args []string, getenv func(string) string) (config, error) {
	var cfg config
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&cfg.source, "source", ".", "root of the repository")
	flags.StringVar(&cfg.program, "program", "cmd/tracehook", "directory of the program; another than tracehook's is for tests")
	flags.StringVar(&cfg.name, "name", "ghcr.io/tracehook/tracehook", "what the image in a layout is called, without the tag")
	flags.StringVar(&cfg.platforms, "platforms", "", "build for these instead of .ko.yaml's platforms")
	flags.StringVar(&cfg.version, "version", "", "what tracehook version says; also the tag")
	flags.StringVar(&cfg.revision, "revision", "", "commit of the source, for the labels")
	flags.BoolVar(&cfg.remoteBase, "remote-base", false, "pull the base image of .ko.yaml (without: made on this machine, for tests)")
	flags.StringVar(&cfg.baseDigest, "base-digest", "", "pull this digest of the base image, as a rebuild does (implies -remote-base)")
	flags.StringVar(&cfg.layout, "layout", "", "write an OCI layout into this directory; what is there is removed")
	flags.StringVar(&cfg.push, "push", "", "publish to this repository")
	flags.StringVar(&cfg.sboms, "sboms", "", "also write the SBOMs into this directory")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if cfg.version == "" {
		return config{}, errors.New("-version is missing")
	}
	if (cfg.layout == "") == (cfg.push == "") {
		return config{}, errors.New("one of -layout and -push is needed")
	}
	cfg.remoteBase = cfg.remoteBase || cfg.baseDigest != ""
	if cfg.push != "" && !cfg.remoteBase {
		return config{}, errors.New("an image on a base made here is for tests: -push needs -remote-base")
	}
	seconds, err := strconv.ParseInt(getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return config{}, fmt.Errorf("read SOURCE_DATE_EPOCH (the commit's time in seconds): %w", err)
	}
	cfg.date = time.Unix(seconds, 0).UTC()
	for _, path := range []*string{&cfg.source, &cfg.layout, &cfg.sboms} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return config{}, fmt.Errorf("find %s: %w", *path, err)
		}
	}
	return cfg, nil
}

// labels go into the image's configuration (docker inspect, Kubernetes tools) and as annotations onto its manifests and
// index (registries). Keys: https://github.com/opencontainers/image-spec/blob/main/annotations.md
func (c config) labels() map[string]string {
	labels := map[string]string{
		"org.opencontainers.image.title":         "tracehook",
		"org.opencontainers.image.description":   "Admission webhook that continues the API server's trace and keeps its certificates renewed",
		"org.opencontainers.image.url":           "https://github.com/tracehook/tracehook",
		"org.opencontainers.image.source":        "https://github.com/tracehook/tracehook",
		"org.opencontainers.image.documentation": "https://github.com/tracehook/tracehook/blob/main/README.md",
		"org.opencontainers.image.licenses":      "Apache-2.0",
		"org.opencontainers.image.version":       c.version,
		"org.opencontainers.image.created":       c.date.Format(time.RFC3339),
	}
	if c.revision != "" {
		labels["org.opencontainers.image.revision"] = c.revision
	}
	return labels
}

func (c config) build(ctx context.Context) (build.Result, error) {
	// .ko.yaml's ldflags take it from there.
	for name, value := range map[string]string{"VERSION": c.version, "REVISION": c.revision} {
		if err := os.Setenv(name, value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	file := options.BuildOptions{WorkingDirectory: c.source}
	if err := file.LoadConfig(); err != nil {
		return nil, fmt.Errorf("read .ko.yaml: %w", err)
	}
	if len(file.BuildConfigs) != 1 || len(file.DefaultPlatforms) == 0 {
		return nil, fmt.Errorf("no build or no platforms in .ko.yaml of %s", c.source)
	}
	if c.platforms != "" {
		file.DefaultPlatforms = strings.Split(c.platforms, ",")
	}
	base, index, err := c.base(ctx, file)
	if err != nil {
		return nil, err
	}
	digest, err := index.Digest()
	if err != nil {
		return nil, fmt.Errorf("take the base image's digest: %w", err)
	}
	created := v1.Time{Time: c.date}
	opts := []build.Option{
		build.WithBaseImages(func(context.Context, string) (name.Reference, build.Result, error) { return base, index, nil }),
		build.WithPlatforms(file.DefaultPlatforms...),
		build.WithConfig(file.BuildConfigs),
		build.WithTrimpath(true),
		build.WithCreationTime(created),
		build.WithKoDataCreationTime(created),
		build.WithSPDX(koVersion()),
		build.WithSBOMDir(c.sboms),
		// A number: the kubelet can check runAsNonRoot only then, and it must not depend on the base.
		build.WithUser("65532:65532"),
	}
	labels := c.labels()
	// What -base-digest takes. ko's own org.opencontainers.image.base.digest on the index is of a copy that ko has annotated before:
	// it can be pulled from nowhere.
	labels["dev.tracehook.base.digest"] = digest.String()
	for key, value := range labels {
		opts = append(opts, build.WithLabel(key, value), build.WithAnnotation(key, value))
	}
	builder, err := build.NewGobuilds(ctx, c.source, file.BuildConfigs, opts...)
	if err != nil {
		return nil, fmt.Errorf("prepare ko: %w", err)
	}
	result, err := builder.Build(ctx, c.importPath())
	if err != nil {
		return nil, fmt.Errorf("build the image: %w", err)
	}
	return result, nil
}

func (c config) importPath() string { return build.StrictScheme + module + c.program }

func (c config) base(ctx context.Context, file options.BuildOptions) (name.Reference, v1.ImageIndex, error) {
	if c.remoteBase {
		return pullBase(ctx, file.BaseImage, c.baseDigest)
	}
	return localBase(file.DefaultPlatforms)
}

// pullBase gets the base image by digest if one is given, but returns the name in .ko.yaml: ko writes that
// into the image, and a rebuild must write the same.
func pullBase(ctx context.Context, image, digest string) (name.Reference, v1.ImageIndex, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, nil, fmt.Errorf("parse the base image's name: %w", err)
	}
	pull := ref
	if digest != "" {
		if pull, err = name.NewDigest(ref.Context().Name() + "@" + digest); err != nil {
			return nil, nil, fmt.Errorf("parse the base image's digest: %w", err)
		}
	}
	descriptor, err := remote.Get(pull, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return nil, nil, fmt.Errorf("pull the base image: %w", err)
	}
	index, err := descriptor.ImageIndex()
	if err != nil {
		return nil, nil, fmt.Errorf("read the base image's platforms: %w", err)
	}
	return ref, index, nil
}

// publish returns the image's reference with its digest; for a layout the directory stands for the repository.
func (c config) publish(ctx context.Context, result build.Result) (string, error) {
	if c.push != "" {
		publisher, err := publish.NewDefault(c.push,
			publish.WithNamer(func(repository, _ string) string { return repository }),
			publish.WithAuthFromKeychain(authn.DefaultKeychain),
			publish.WithTags([]string{c.version}))
		if err != nil {
			return "", fmt.Errorf("prepare to publish: %w", err)
		}
		reference, err := publisher.Publish(ctx, result, c.importPath())
		if err != nil {
			return "", fmt.Errorf("publish to %s: %w", c.push, err)
		}
		return reference.String(), nil
	}
	return c.write(result)
}

// write lays the image down, and nothing beside it: containerd takes every manifest of a layout for an image, and stops at an SBOM.
func (c config) write(result build.Result) (string, error) {
	if err := os.RemoveAll(c.layout); err != nil {
		return "", fmt.Errorf("empty the layout: %w", err)
	}
	directory, err := layout.Write(c.layout, empty.Index)
	if err != nil {
		return "", fmt.Errorf("make the layout: %w", err)
	}
	names := layout.WithAnnotations(map[string]string{refName: c.version, imageName: c.name + ":" + c.version})
	switch image := result.(type) {
	case v1.ImageIndex:
		err = directory.AppendIndex(image, names)
	case v1.Image: // for one platform alone
		err = directory.AppendImage(image, names)
	default:
		err = fmt.Errorf("ko built a %T", result)
	}
	if err != nil {
		return "", fmt.Errorf("write the image: %w", err)
	}
	digest, err := result.Digest()
	if err != nil {
		return "", fmt.Errorf("take the digest: %w", err)
	}
	return c.layout + "@" + digest.String(), nil
}

// koVersion is what go.mod pins; the SBOM names its maker.
func koVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == "github.com/google/ko" {
				return module.Version
			}
		}
	}
	return "unknown"
}
