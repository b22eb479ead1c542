//go:build !linux

package main

import "context"

func whyNoNode(bool) string { return "that needs Linux" }

func playOnNode(string) (code int) { return 1 }

func (s *stage) showOnNode(context.Context) error { return nil }
