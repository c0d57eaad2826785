package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/harden"
	"kms-plugin.io/pkg/keys/awskms"
)

// brokerFD is where a broker finds its socket.
const brokerFD = 3

// brokerCommand is what serve starts before it confines itself, where a profile has
// a credential_process.
func brokerCommand() *cobra.Command {
	return &cobra.Command{Use: "credential-broker", Hidden: true, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		if err := harden.NoDump(); err != nil {
			return err
		}
		signal.Ignore(unix.SIGHUP) // meant for the daemon, which cannot start another of these
		unix.CloseOnExec(brokerFD) // the programs must not have it
		f := os.NewFile(brokerFD, "broker")
		conn, err := net.FileConn(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return cli.WithHint(fmt.Errorf("broker: %w", err), "it is started by kms-plugin serve, not by hand")
		}
		defer conn.Close()
		defer context.AfterFunc(c.Context(), func() { _ = conn.Close() })() // so that the daemon knows
		return awskms.ServeBroker(c.Context(), conn)
	}}
}

// startBroker starts one of this very program. It ends with this process, by the
// end of their socket.
func startBroker() (*awskms.Broker, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "broker"), os.NewFile(uintptr(fds[1]), "broker")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, fmt.Errorf("broker: %w", errors.Join(err, theirs.Close()))
	}
	c := exec.Command("/proc/self/exe", "credential-broker")
	c.Args[0], c.Stderr, c.ExtraFiles = name, os.Stderr, []*os.File{theirs}
	if err := errors.Join(c.Start(), theirs.Close()); err != nil {
		return nil, cli.WithHint(fmt.Errorf("start the process that starts credential_process: %w", errors.Join(err, conn.Close())), "/proc must be mounted")
	}
	go func() { _ = c.Wait() }() // its end is told to who asks for a credential
	return awskms.NewBroker(conn), nil
}
