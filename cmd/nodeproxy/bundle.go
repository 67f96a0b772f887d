package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

const (
	// pieceLimit bounds one file of a bundle, in bytes.
	pieceLimit = 32 << 20
	// piecePatience bounds the time that one takes, also where a command hangs.
	piecePatience = 20 * time.Second
)

// piece is one file of a bundle.
type piece struct {
	name, what string
	read       func(context.Context) ([]byte, error)
}

func newSupportBundleCommand() *cobra.Command {
	var a asking
	var file string
	cmd := &cobra.Command{
		Use:   "support-bundle",
		Short: "Write the state of agent and kernel into one tar file, without secrets",
		Long: `Write the state of agent and kernel into one compressed tar file, for somebody who is to find
out what is wrong here. It works without an agent too.

It holds no kubeconfig, no token, no environment and no packet; what looks like a secret in
logs, flags and rules is taken out. It does hold addresses and names of Services, Pods and
interfaces, and the node's firewall rules: look into README.txt in it before you give it away.`,
		Example: "  nodeproxy support-bundle\n  nodeproxy support-bundle --file - | ssh admin@example.com 'cat > node-a.tar.gz'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(validateInstance(a.instance), requireRoot("nodeproxy support-bundle")); err != nil {
				return err
			}
			return writeBundleTo(cmd, file, a.pieces(cmd))
		},
	}
	registerInstance(cmd.Flags(), &a.instance)
	cmd.Flags().StringVarP(&file, "file", "f", "", "where to write it; - is standard output (default nodeproxy-HOST-TIME.tar.gz here)")
	return cmd
}

// writeBundleTo writes a bundle to a file that is not there yet, or to standard output.
func writeBundleTo(cmd *cobra.Command, file string, pieces []piece) error {
	now := time.Now().UTC()
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	top := fmt.Sprintf("nodeproxy-%s-%s", host, now.Format("20060102T150405Z"))
	if file == "-" {
		return writeBundle(cmd.Context(), cmd.OutOrStdout(), top, now, pieces)
	}
	if file == "" {
		file = top + ".tar.gz"
	}
	out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("--file %s is there already: name another", file)
	case err != nil:
		return fmt.Errorf("--file %s cannot be made (%w): name a file in a directory that is there", file, errors.Unwrap(err))
	}
	if err := errors.Join(writeBundle(cmd.Context(), out, top, now, pieces), out.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", file, err), os.Remove(file))
	}
	fmt.Fprintf(cmd.OutOrStdout(), "wrote %s; README.txt in it says what it holds\n", file)
	return nil
}

// writeBundle collects the pieces one after the other. One that cannot be had is a file
// that says why: something is wrong on this node.
func writeBundle(ctx context.Context, w io.Writer, top string, now time.Time, pieces []piece) error {
	zipped := gzip.NewWriter(w)
	archive := tar.NewWriter(zipped)
	add := func(name string, data []byte) error {
		h := &tar.Header{Name: top + "/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: now, Format: tar.FormatPAX}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		_, err := archive.Write(data)
		return err
	}
	var index strings.Builder
	fmt.Fprintf(&index, "nodeproxy support bundle of %s, by %s\n\n", now.Format(time.RFC3339), versionText())
	for _, p := range pieces {
		data, err := p.collect(ctx)
		name := p.name
		if err != nil {
			name += ".error"
			data = fmt.Appendln(nil, err)
		}
		if data = redact(data); len(data) > pieceLimit {
			data = append(data[:pieceLimit], "\nCUT HERE\n"...)
		}
		if err := add(name, data); err != nil {
			return err
		}
		fmt.Fprintf(&index, "%-32s %s\n", name, p.what)
	}
	index.WriteString("\nWhat looked like a secret is replaced by " + redacted + ". NAME.error says why NAME is not there.\n" +
		"Not in it: kubeconfigs, tokens, environments, packets, and who is connected to whom.\n")
	return errors.Join(add("README.txt", []byte(index.String())), archive.Close(), zipped.Close())
}

// collect reads a piece, and gives up on one that takes long.
func (p *piece) collect(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, piecePatience)
	defer cancel()
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := p.read(ctx)
		done <- result{data, err}
	}()
	select {
	case r := <-done:
		return bytes.ToValidUTF8(r.data, []byte("?")), r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", p.name, context.Cause(ctx))
	}
}
