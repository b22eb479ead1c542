// Package migrate runs `tracehook certs migrate` from every starting point that certs/MIGRATION.md knows, on a real
// cluster with two API servers, under load.
package migrate

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tracehook/tracehook/e2e/internal/cluster"
	"github.com/tracehook/tracehook/e2e/internal/story"
)

// shared is the cluster of all tests of this package.
var shared struct {
	*cluster.Cluster
	servers []*cluster.APIServer // both
	clients *kubernetes.Clientset
	bin     string // a directory for PATH, with tracehook and kubectl
}

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", atATime); err != nil {
		panic(err)
	}
	os.Exit(story.Run(m, cluster.Options{NoTraces: true}, prepare))
}

// atATime: most of a migration is waiting.
const atATime = "4"

func prepare(ctx context.Context, c *cluster.Cluster) error {
	second, err := c.StartAPIServer(ctx)
	if err != nil {
		return err
	}
	shared.Cluster, shared.servers = c, []*cluster.APIServer{c.First(), second}
	config := rest.CopyConfig(c.RESTConfig)
	config.QPS = -1
	if shared.clients, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	return writePrograms(c)
}

// soak is what the examples wait instead of 100 s: nobody here keeps a connection idle.
const soak = "2s"

// writePrograms makes a directory for PATH. The examples read as they do in a cluster whose Service default/kubernetes
// has endpoints; on loopback there can be none, so here `tracehook certs migrate` is told the API servers.
func writePrograms(c *cluster.Cluster) error {
	dir, err := os.MkdirTemp(c.Dir, "programs-")
	if err != nil {
		return err
	}
	shared.bin = dir
	kubectl, err := c.Binary("kubectl")
	if err != nil {
		return err
	}
	tracehook := os.Getenv("TRACEHOOK")
	if tracehook == "" {
		if tracehook, err = c.Binary("tracehook"); err != nil {
			return err
		}
	}
	if err := os.Symlink(kubectl, filepath.Join(dir, "kubectl")); err != nil {
		return err
	}
	flags := []string{"--soak", soak}
	for _, s := range shared.servers {
		flags = append(flags, "--api-server", s.URL)
	}
	script := fmt.Sprintf("#!/bin/sh\n[ \"$2\" = migrate ] && exec %[1]q \"$@\" %[2]s\nexec %[1]q \"$@\"\n", tracehook, strings.Join(flags, " "))
	return os.WriteFile(filepath.Join(dir, "tracehook"), []byte(script), 0o700)
}
