//go:build !linux

// Package nodes tests tracehook as its users run it, where there is Linux.
package nodes

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(*testing.M) {
	fmt.Fprintln(os.Stderr, "==> NOT RUN: what needs real nodes: they need Linux")
	if os.Getenv("TRACEHOOK_NODES") != "optional" {
		os.Exit(1)
	}
}
