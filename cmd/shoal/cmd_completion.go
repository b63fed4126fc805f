package main

import "github.com/spf13/cobra"

func newCompletion(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Write a script that makes a shell complete shoal's command lines",
		Long: `completion writes a script for a shell. To use it at once:

  bash:  source <(shoal completion bash)
  zsh:   source <(shoal completion zsh)
  fish:  shoal completion fish | source`,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      exactly(1, "the shell (bash, zsh, fish or powershell)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(c.out, true)
			case "zsh":
				return root.GenZshCompletion(c.out)
			case "fish":
				return root.GenFishCompletion(c.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(c.out)
			}
			return usagef("unknown shell %q: bash, zsh, fish or powershell", args[0])
		},
	}
}
