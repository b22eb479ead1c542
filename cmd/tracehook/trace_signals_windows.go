package main

import "os"

// caughtSignals is what a console sends on Ctrl-C, which must not end this process
// before the child.
func caughtSignals() []os.Signal { return []os.Signal{os.Interrupt} }

// deliveredToGroup is true: the console interrupts every process attached to it.
func deliveredToGroup(os.Signal) bool { return true }
