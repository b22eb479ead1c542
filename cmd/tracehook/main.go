// Command tracehook is an instrumented admission webhook server, and the tools
// around it: `serve`, `trace`, `certs`.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(exitCode(run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr), os.Stderr))
}
