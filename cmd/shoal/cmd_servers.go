package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
)

func newServers(c *cli) *cobra.Command {
	var asJSON bool
	list := func(cmd *cobra.Command, _ []string) error {
		return c.withFS(cmd.Context(), func(fsys *client.FS) error {
			servers, err := fsys.Servers(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(c.out, serversToJSON(servers))
			}
			return writeServers(c.out, servers)
		})
	}
	const long = `ls shows for each chunk server whether it is healthy, suspect (silent for some seconds), dead or being drained; when it was
last heard of; the shards of chunks that it has; its space; where it stands; what is wrong with it, and how far a drain or a scrub is.`
	cmd := &cobra.Command{
		Use:   "servers [ls]",
		Short: "List the chunk servers, drain and remove them",
		Long:  long,
		Args:  exactly(0, "nothing"),
		RunE:  list,
	}
	ls := &cobra.Command{Use: "ls", Short: "List the chunk servers", Long: long, Args: exactly(0, "nothing"), RunE: list}
	for _, one := range []*cobra.Command{cmd, ls} {
		one.Flags().BoolVar(&asJSON, "json", false, "write JSON: an array with an object for each server")
	}
	cmd.AddCommand(ls, newDrain(c), newUndrain(c), newRemove(c))
	return cmd
}

func newUndrain(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "undrain ID",
		Short: "Take a drain back",
		Long:  "undrain ends the drain of a chunk server: it gets new data again. What was moved away already stays where it is now.",
		Args:  exactly(1, "the number of a chunk server"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServer(cmd.Context(), args[0], func(fsys *client.FS, id uint32) error {
				shards, err := fsys.UndrainServer(cmd.Context(), id)
				if err != nil {
					return err
				}
				return c.announce(fmt.Sprintf("chunk server %d is not being drained any more; it holds %s", id, plural(shards, "shard")))
			})
		},
	}
}

func newRemove(c *cli) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove ID [--force]",
		Short: "Make the cluster forget a chunk server",
		Long: `remove makes the cluster forget a chunk server, which has to be empty: drain it first. What it holds, if it is a server that will
never come back, is given up with --force, and made anew as far as the other servers have what that takes; what they have not is lost.`,
		Example: `  shoal servers drain 3 && shoal servers remove 3`,
		Args:    exactly(1, "the number of a chunk server"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServer(cmd.Context(), args[0], func(fsys *client.FS, id uint32) error {
				if err := fsys.RemoveServer(cmd.Context(), id, force); err != nil {
					return err
				}
				line := fmt.Sprintf("chunk server %d is removed", id)
				if force {
					line += "; 'shoal status' says how safe the data is without it"
				}
				return c.announce(line)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "though it holds data, which is given up")
	return cmd
}

// withServer runs fn with a connection and the number of a chunk server.
func (c *cli) withServer(ctx context.Context, arg string, fn func(*client.FS, uint32) error) error {
	id, err := strconv.ParseUint(arg, 10, 32)
	if err != nil || id == 0 {
		return usagef("chunk server %s: want its number, as 'shoal servers' shows it", quoted(arg))
	}
	return c.withFS(ctx, func(fsys *client.FS) error {
		err := fn(fsys, uint32(id))
		if about := (*client.ServerError)(nil); errors.As(err, &about) && ctx.Err() == nil {
			return errors.New(strings.TrimPrefix(about.Error(), about.Op+" ")) // which the command's name says already
		}
		return err
	})
}
