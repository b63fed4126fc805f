package main

import (
	"net"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

const remotePrefix = "shoal:"

// location is a path as given on the command line.
type location struct {
	remote bool
	std    bool   // "-": standard input or output
	path   string // remote: absolute and clean; local: as given
	base   string // the last element, "" where it names a directory itself (".", "..", "/")
	slash  bool   // written with a slash at the end: must be a directory
}

// parseLocation reads a command-line path. A local file whose name begins with "shoal:" is written ./shoal:…
func parseLocation(arg string) location {
	if arg == "-" {
		return location{std: true, path: "-", base: "-"}
	}
	l := location{path: arg}
	rest := arg
	if r, ok := strings.CutPrefix(arg, remotePrefix); ok {
		l.remote, rest = true, r
		l.path = path.Clean("/" + r)
	}
	trimmed := strings.TrimRight(rest, "/")
	l.slash = len(trimmed) < len(rest)
	l.base = path.Base(trimmed)
	if trimmed == "" || l.base == "." || l.base == ".." {
		l.base = ""
	}
	return l
}

// String is the location as one would write it.
func (l location) String() string {
	if l.remote {
		return remotePrefix + l.path
	}
	return l.path
}

// remotePath reads an argument that has to be in the cluster.
func remotePath(arg string) (string, error) {
	l := parseLocation(arg)
	if !l.remote {
		return "", usagef("%s is a local path; paths in the cluster are written shoal:/path", quoted(arg))
	}
	return l.path, nil
}

// remotePaths reads several, the root if there is none.
func remotePaths(args []string) ([]string, error) {
	if len(args) == 0 {
		return []string{"/"}, nil
	}
	var out []string
	for _, arg := range args {
		p, err := remotePath(arg)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// checkAddresses finds mistakes in HOST:PORT[,HOST:PORT…] before anybody waits for an answer from there.
func checkAddresses(addrs string) error {
	for addr := range strings.SplitSeq(addrs, ",") {
		if err := checkAddress(strings.TrimSpace(addr), false); err != nil {
			return err
		}
	}
	return nil
}

// checkAddress checks one HOST:PORT; port 0 is allowed where one listens.
func checkAddress(addr string, listen bool) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return usagef("address %q: want HOST:PORT", addr)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || (n == 0 && !listen) {
		return usagef("address %q: %q is no port", addr, port)
	}
	if host == "" && !listen {
		return usagef("address %q: the host is missing", addr)
	}
	return nil
}

// anyHost tells whether an address to listen on stands for all of the machine's.
func anyHost(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || (ip != nil && ip.IsUnspecified()))
}

func joinLocal(dir, name string) string  { return filepath.Join(dir, name) }
func joinRemote(dir, name string) string { return path.Join(dir, name) }
