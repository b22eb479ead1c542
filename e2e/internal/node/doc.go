// Package node runs real Kubernetes nodes on one machine, without a container engine:
//
//	the machine                     this program, as it was started
//	└─ namespaces of the run        this program again: control plane, bridge, load, tests
//	   ├─ namespaces of node1       its first process, containerd, kubelet, kube-proxy, Pods
//	   └─ namespaces of node2
//
// A run has network, mount and PID namespaces of its own, and each of its nodes too. So the
// machine's network, mounts and sysctls stay as they are, runs do not meet, and the end of a
// first process ends everything below it. What is left then is a directory and cgroups. A
// process that waits for the end of the run removes them, also after kill -9.
//
// In: the programs in bin, images as OCI layouts. Out: nodes that are Ready. Errors: what
// the machine lacks (Possible), or a *cluster.ProcessError with the log's last lines.
package node
