//go:build !agent

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

func newLabEchoCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:    "echo",
		Short:  "Serve what a Pod of the lab serves",
		Hidden: true, // the lab starts it
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return lab.RunEcho(cmd.Context(), name) },
	}
	cmd.Flags().StringVar(&name, "name", "", "name to answer under")
	return cmd
}

func newLabDialerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "dialer",
		Short:  "Dial what standard input asks for",
		Hidden: true, // the lab starts it
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return echo.ServeDialer(os.Stdin, os.Stdout) },
	}
}

func newLabLoadCommand() *cobra.Command {
	var kind, to string
	var d time.Duration
	cmd := &cobra.Command{
		Use:    "load",
		Short:  "Work against an echo server and print how much was done",
		Hidden: true, // the lab starts it
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			addr, err := netip.ParseAddrPort(to)
			if err != nil {
				return fmt.Errorf("--to %q: use ADDRESS:PORT", to)
			}
			result, err := echo.Load(echo.LoadKind(kind), addr, d)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
		},
	}
	cmd.Flags().StringVar(&kind, "kind", string(echo.Connections), "connections or requests")
	cmd.Flags().StringVar(&to, "to", "", "address and port of the server")
	cmd.Flags().DurationVar(&d, "duration", time.Second, "how long")
	return cmd
}
