// flux-apply applies a file of manifests with Flux' own library, called as kustomize-controller 1.9.0 calls it for the Kustomization
// flux-system/app. It writes a line for each object: what it is, and whether it was created, configured or
// unchanged. The cluster is that of KUBECONFIG.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/polling"
	"github.com/fluxcd/pkg/ssa"
	"github.com/fluxcd/pkg/ssa/normalize"
	"github.com/fluxcd/pkg/ssa/utils"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// Names that kustomize-controller has for itself, its labels and its annotations.
const (
	controller = "kustomize-controller"
	group      = "kustomize.toolkit.fluxcd.io"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: flux-apply FILE")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, file string, out io.Writer) error {
	log.SetLogger(logr.Discard()) // what went wrong is returned
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	objects, err := utils.ReadObjects(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	manager, err := newManager()
	if err != nil {
		return err
	}
	if err := normalize.UnstructuredList(objects); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	manager.SetOwnerLabels(objects, "app", "flux-system")
	changes, err := manager.ApplyAllStaged(ctx, objects, options())
	if err != nil {
		return err
	}
	for _, change := range changes.Entries {
		if _, err := fmt.Fprintln(out, change.Subject, change.Action); err != nil {
			return err
		}
	}
	return nil
}

func newManager() (*ssa.ResourceManager, error) {
	cluster, err := config.GetConfig()
	if err != nil {
		return nil, err
	}
	cluster.UserAgent = controller
	transport, err := clientOf(cluster)
	if err != nil {
		return nil, err
	}
	poller := polling.NewStatusPoller(transport, transport.RESTMapper(), polling.Options{})
	return ssa.NewResourceManager(transport, poller, ssa.Owner{Field: controller, Group: group}), nil
}

// options are what kustomize-controller applies with: what it leaves out, and whose fields it takes over.
func options() ssa.ApplyOptions {
	o := ssa.DefaultApplyOptions()
	o.ExclusionSelector = map[string]string{group + "/reconcile": "disabled", group + "/ssa": "Ignore"}
	o.IfNotPresentSelector = map[string]string{group + "/ssa": "IfNotPresent"}
	o.ForceSelector = map[string]string{group + "/force": "enabled"}
	o.Cleanup = ssa.ApplyCleanupOptions{
		Annotations: []string{corev1.LastAppliedConfigAnnotation, group + "/checksum", "fluxcd.io/sync-checksum"},
		Labels:      []string{"fluxcd.io/sync-gc-mark"},
		FieldManagers: []ssa.FieldManager{
			{Name: "kubectl", OperationType: metav1.ManagedFieldsOperationApply},
			{Name: "kubectl", OperationType: metav1.ManagedFieldsOperationUpdate},
			{Name: "before-first-apply", OperationType: metav1.ManagedFieldsOperationUpdate},
			{Name: controller, OperationType: metav1.ManagedFieldsOperationUpdate},
		},
		Exclusions: map[string]string{group + "/ssa": "Merge"},
	}
	return o
}

func clientOf(cluster *rest.Config) (client.Client, error) {
	web, err := rest.HTTPClientFor(cluster)
	if err != nil {
		return nil, err
	}
	mapper, err := apiutil.NewDynamicRESTMapper(cluster, web)
	if err != nil {
		return nil, err
	}
	return client.New(cluster, client.Options{HTTPClient: web, Mapper: mapper})
}
