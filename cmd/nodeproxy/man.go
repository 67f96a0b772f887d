package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIRECTORY",
		Short:   "Write man pages of all commands",
		Example: "  nodeproxy man /usr/share/man/man8",
		Args:    between(1, 1, "say where to write them", "man /usr/share/man/man8"),
		Hidden:  true, // for who makes packages
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("write man pages: %w", err)
			}
			day := time.Unix(0, 0).UTC() // the same bytes on every day
			header := &doc.GenManHeader{Section: "8", Source: "nodeproxy", Manual: "nodeproxy", Date: &day}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("write man pages: %w", err)
			}
			return nil
		},
	}
}
