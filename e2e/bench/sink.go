package main

// What stands behind the Collector: a trace store that says thank you and keeps nothing.
// Out: its address as a line on standard output. It ends when standard input does.
//
// It is a process of its own and does not even decode what comes: in the caller's, whole
// batches being decoded would be seen as the slowest answers of the servers.

import (
	"fmt"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

func sink(stdin io.Reader, stdout io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(nothing{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(nil); err != nil {
			return err
		}
		return stream.SendMsg(nil)
	}))
	defer server.Stop()
	go func() { _ = server.Serve(listener) }() // ends with Stop
	fmt.Fprintln(stdout, listener.Addr())
	_, err = io.Copy(io.Discard, stdin)
	return err
}

// nothing reads and writes messages without content, which is what an
// ExportTraceServiceResponse without errors is.
type nothing struct{}

func (nothing) Name() string                         { return "proto" }
func (nothing) Marshal(any) (mem.BufferSlice, error) { return nil, nil }
func (nothing) Unmarshal(mem.BufferSlice, any) error { return nil }
