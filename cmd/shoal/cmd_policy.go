package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newPolicy(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show and set how new data is stored",
		Long: `policy shows and sets how data is stored that is written from now on. Each file and directory has a policy of its own, or
the cluster's default. What is made in a directory gets the directory's when it is made, and keeps it: what is there already, and what
is stored already, stays as it is when the policy of its directory changes; 'shoal policy apply' changes that too.

  replicas=3             three whole copies on three servers: any two of them may be lost
  ec=4+2                 four shards of data and two of parity on six servers: any two may be lost, at half the space
  ec=4+2,min-copies=6    a write counts when all six are written; without min-copies, when all but one are`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			return usagef("a command is missing: policy get PATH, policy set PATH POLICY, or policy apply PATH")
		},
	}
	cmd.AddCommand(newPolicyGet(c), newPolicySet(c), newPolicyApply(c))
	return cmd
}

func newPolicyGet(c *cli) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "get PATH",
		Short: "Show how data that is written to a file or directory from now on is stored",
		Long: `get shows the policy that holds for new data at PATH, how many shards of a chunk have to be written before a write counts
(min-copies), and whether PATH has that policy itself or the cluster's default holds.`,
		Args: exactly(1, "a path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := remotePath(args[0])
			if err != nil {
				return err
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				p, err := fsys.Policy(cmd.Context(), path)
				switch {
				case err != nil:
					return at(remoteTree{fsys}, path, err)
				case asJSON:
					return writeJSON(c.out, policyToJSON(path, p))
				}
				_, err = fmt.Fprintf(c.out, "%s: %s\n", remoteTree{fsys}.Show(path), policyString(p))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func newPolicySet(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "set PATH POLICY",
		Short: "Set how data that is written to a file or directory from now on is stored",
		Long: `set gives a file or directory a policy. POLICY is replicas=N or ec=K+M, and after a comma, if wanted, min-copies=N: how many
copies or shards have to be written before a write counts. The policy "default" takes it away: the cluster's default holds again.

It is for data that is written from now on. What is made in a directory gets the directory's policy when it is made, so that a
policy set on a directory does not reach what is in there already; there is no -r. Only the owner of PATH and root may set it,
and only one that the cluster has enough healthy chunk servers for.`,
		Example: `  shoal policy set shoal:/archive ec=4+2
  shoal policy set shoal:/scratch replicas=1
  shoal policy set shoal:/archive default`,
		Args: exactly(2, "a path or a policy"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := remotePath(args[0])
			if err != nil {
				return err
			}
			if args[1] != client.DefaultPolicy {
				if err := checkPolicy(args[1]); err != nil {
					return err
				}
			}
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				return at(remoteTree{fsys}, path, fsys.SetPolicy(cmd.Context(), path, args[1]))
			})
		},
	}
}

// checkPolicy finds mistakes in a policy. Where the error lists what there is, it lists the default, too.
func checkPolicy(policy string) error {
	_, err := client.ParsePolicy(policy)
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "want replicas=N"):
		return usagef("%w, or %s", err, client.DefaultPolicy)
	}
	return usageError{err}
}

// policyString says a policy in words.
func policyString(p client.Policy) string {
	if p.Own {
		return fmt.Sprintf("%v, %s; its own", p, counts(p.MinCopies, p.Data+p.Parity))
	}
	return fmt.Sprintf("%v, %s; the cluster's default", p, counts(p.MinCopies, p.Data+p.Parity))
}

// counts says when a write counts.
func counts(least, of int) string { return fmt.Sprintf("%d of %d before a write counts", least, of) }

type jsonPolicy struct {
	Path string `json:"path"`
	Own  bool   `json:"own"` // else it is the cluster's default
	jsonLayout
}

func policyToJSON(path string, p client.Policy) jsonPolicy {
	return jsonPolicy{path, p.Own, jsonLayout{p.String(), p.Data, p.Parity, p.MinCopies}}
}
