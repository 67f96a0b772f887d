package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

func newTopCommand() *cobra.Command {
	var a asking
	var every time.Duration
	var by string
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show which Services have the most connections, bytes and drops",
		Long: `Show which Services have the most connections, bytes and drops, and how many of each there
are in a second. Up and down choose a Service, enter shows its backends, esc leads back; c,
b, d and n sort by connections, bytes, drops and name; q ends. Where the output is no
terminal, one table is printed. What is counted in each mode is told in docs/operations.md.`,
		Example: "  nodeproxy top\n  nodeproxy top --sort drops | head\n  nodeproxy top -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every <= 0 {
				return fmt.Errorf("--interval %v: use more than 0, such as 2s", every)
			}
			key, ok := topKeys[by]
			if !ok {
				return fmt.Errorf("--sort %q: use connections, bytes, drops or name", by)
			}
			read, err := a.counts(cmd)
			if err != nil {
				return err
			}
			rows, err := read(cmd.Context())
			if err != nil {
				return err
			}
			screen, isFile := cmd.OutOrStdout().(*os.File)
			if a.output != "" || !isFile || !term.IsTerminal(int(screen.Fd())) {
				m := newTopModel(read, every, key)
				m.take(rows, time.Now())
				if a.output == "" { // rates need a second look
					if rows, err = m.again(cmd.Context(), rows); err != nil {
						return err
					}
				}
				return a.print(cmd.OutOrStdout(), rows, func(w io.Writer) { fmt.Fprint(w, m.table()) })
			}
			m := newTopModel(read, every, key)
			m.take(rows, time.Now())
			_, err = tea.NewProgram(m, tea.WithContext(cmd.Context())).Run()
			if errors.Is(err, tea.ErrProgramKilled) || errors.Is(err, tea.ErrInterrupted) {
				err = nil // interrupted
			}
			return errors.Join(err, m.err)
		},
	}
	a.register(cmd)
	cmd.Flags().DurationVar(&every, "interval", 2*time.Second, "time between two looks")
	cmd.Flags().StringVar(&by, "sort", "connections", "connections, bytes, drops or name")
	return cmd
}

// counts returns what reads the traffic: the agent, or the kernel.
func (a *asking) counts(cmd *cobra.Command) (func(context.Context) ([]view.Count, error), error) {
	ask := func(ctx context.Context) (rows []view.Count, err error) {
		err = admin.Get(ctx, admin.Socket(a.instance), admin.PathCounts, nil, &rows)
		return rows, err
	}
	_, err := ask(cmd.Context())
	if !errors.Is(err, admin.ErrNoAgent) {
		return ask, err
	}
	kernel, _, err := a.remains(cmd, err)
	if err != nil {
		return nil, err
	}
	return kernel.Counts, nil
}

// topLine is a Service, or a backend, as top shows it.
// againPatience bounds the wait for a second reading of the counters.
const againPatience = 10 * time.Second

// again looks until the counters were read once more, and takes that in.
func (m *topModel) again(ctx context.Context, first []view.Count) (rows []view.Count, err error) {
	for deadline := time.Now().Add(againPatience); ; {
		select {
		case <-ctx.Done():
			return first, ctx.Err()
		case <-time.After(m.every):
		}
		if rows, err = m.read(ctx); err != nil {
			return nil, err
		}
		old := len(rows) > 0 && len(first) > 0 && !rows[0].At.IsZero() && rows[0].At.Equal(first[0].At)
		if !old || time.Now().After(deadline) {
			m.take(rows, time.Now())
			return rows, nil
		}
	}
}

type topLine struct {
	key, name, protocol string
	noBytes             bool
	view.Traffic
	perSecond view.Traffic
}

func (l *topLine) bytes() uint64 { return l.Bytes[0] + l.Bytes[1] }

// tableOf writes lines under headings; at marks one of them, -1 none.
func tableOf(what string, lines []topLine, at int) string {
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "  %s\tPROTOCOL\tCONNECTIONS\t/s\tDROPS\t/s\tBYTES TO\tBYTES FROM\tBYTES/s\n", what)
	for i, l := range lines {
		mark := "  "
		if i == at {
			mark = "> "
		}
		fmt.Fprintf(w, "%s%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", mark, l.name, l.protocol, l.Connections, l.perSecond.Connections,
			l.Drops, l.perSecond.Drops, l.size(l.Bytes[0]), l.size(l.Bytes[1]), l.size(l.perSecond.Bytes[0]+l.perSecond.Bytes[1]))
	}
	_ = w.Flush() // into memory
	return out.String()
}

// size prints bytes for people.
// size writes a number of bytes, or that nobody counts them.
func (l *topLine) size(n uint64) string {
	if l.noBytes && n == 0 {
		return "?"
	}
	return size(n)
}

func size(n uint64) string {
	for _, unit := range []struct {
		name string
		size float64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if v := float64(n) / unit.size; v >= 1 {
			return fmt.Sprintf("%.1f %s", v, unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
