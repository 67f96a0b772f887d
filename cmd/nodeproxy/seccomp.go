package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/deploy/seccomp"
)

func newSeccompProfileCommand() *cobra.Command {
	var install, remove string
	cmd := &cobra.Command{
		Use:   "seccomp-profile",
		Short: "Print the agent's seccomp profile, or put it where a kubelet looks for it",
		Long: `Print the seccomp profile that fits this program: the system calls that an agent and the
commands that it starts make, and no others. The DaemonSet's first container installs it into
the kubelet's directory of profiles, so that the agent's container can run under it.`,
		Example: `  nodeproxy seccomp-profile
  nodeproxy seccomp-profile --install /var/lib/kubelet/seccomp
  nodeproxy seccomp-profile --remove /var/lib/kubelet/seccomp`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case install != "" && remove != "":
				return errors.New("--install and --remove: use one of the two")
			case install != "":
				return seccomp.Install(install)
			case remove != "":
				return seccomp.Remove(remove)
			}
			_, err := cmd.OutOrStdout().Write(seccomp.Profile)
			return err
		},
	}
	cmd.Flags().StringVar(&install, "install", "", "write it into this directory, as "+seccomp.FileName)
	cmd.Flags().StringVar(&remove, "remove", "", "remove it from this directory")
	return cmd
}
