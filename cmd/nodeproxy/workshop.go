//go:build !agent

package main

import "github.com/spf13/cobra"

// workshop are the commands for those who work on nodeproxy. Released programs, which run
// as root on nodes, are built without them: -tags agent.
func workshop() []*cobra.Command { return []*cobra.Command{newLabCommand(), newBenchCommand()} }
