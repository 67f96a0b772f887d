//go:build agent

package main

import "github.com/spf13/cobra"

func workshop() []*cobra.Command { return nil }
