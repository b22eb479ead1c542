//go:build !linux

package main

import "os/exec"

// Only on Linux can a process be put on a processor; elsewhere the numbers are as good
// as the system's scheduler.

func processors() (server, other int, err error) { return 0, 0, nil }

func newStarter() starter { return func(cmd *exec.Cmd, _ int) error { return cmd.Start() } }

func settle(int) error { return nil }
