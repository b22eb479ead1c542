package main

func plot([]row, conditions) []byte { return nil }
