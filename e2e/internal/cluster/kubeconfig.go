package cluster

// Kubeconfigs. In: a user and its groups. Out: a file (0600) with everything in it that
// is needed to be that user. Errors: of the file system, or a name that is no file
// name.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// User returns the path of a kubeconfig for a user of the cluster's first API server,
// identified by a client certificate from the cluster's CA. A member of system:masters
// may do everything; nobody else may do anything that RBAC does not grant.
func (c *Cluster) User(name string, groups ...string) (kubeconfig string, err error) {
	return c.userOf(c.first, name, groups...)
}

// userOf is User for any of the API servers. Nil: the first.
func (c *Cluster) userOf(s *APIServer, name string, groups ...string) (kubeconfig string, err error) {
	if s == nil {
		s = c.first
	}
	file := strings.NewReplacer(string(filepath.Separator), "_", string(filepath.ListSeparator), "_").Replace(name) // KUBECONFIG is a list
	if s != c.first {
		file += "." + s.Name
	}
	path := c.path("users", file+".kubeconfig")
	return path, c.writeKubeconfig(path, s.URL, name, groups)
}

func (c *Cluster) writeKubeconfig(path, server, user string, groups []string) error {
	client, err := c.ca.client(user, groups, time.Now())
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["tracehook"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: c.ca.pem}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: client.cert, ClientKeyData: client.key}
	config.Contexts["tracehook"] = &clientcmdapi.Context{Cluster: "tracehook", AuthInfo: user}
	config.CurrentContext = "tracehook"
	// In one step: somebody who is started at the same time may be reading the file.
	text, err := clientcmd.Write(*config)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		err = replaceFile(path, text)
	}
	if err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", user, err)
	}
	return nil
}

// replaceFile writes a file that only we can read, so that nobody ever sees half of it.
func replaceFile(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// restConfig is what client-go needs to be the user of a kubeconfig.
func restConfig(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS = -1 // a test that creates many things wants them at once
	return config, nil
}
