// Package follow watches what a command has created or changed until all of it is ready, has
// failed, or a time is over.
//
//	Seen ─ the proxy's answers ─▶ roots ─▶ Until ─ once a second ─▶ look ─▶ Lines ─▶ View
//
// A root is a Pod, Deployment, StatefulSet, DaemonSet or Job. Below it are the Pods that its
// owner references lead to, a Deployment's through its newest ReplicaSet. What other kinds of
// objects wait for is not known, so nothing waits for them.
//
// It asks with the user's own rights, only for what a root's selector finds.
package follow
