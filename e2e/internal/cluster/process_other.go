//go:build unix && !linux

package cluster

import "syscall"

// dieWithParent does nothing: only Linux can tie a child's life to its parent's. Stop,
// Ctrl-C and a failed start clean up here too; kill -9 does not.
func dieWithParent(*syscall.SysProcAttr) {}

// isolated is nothing here: nodes need Linux, and package node says so before it asks for it.
func isolated() *syscall.SysProcAttr { return nil }
