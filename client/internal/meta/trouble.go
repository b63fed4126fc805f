package meta

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/rpc"
)

// Trouble is why a metaserver was given up, for people to read.
type Trouble struct {
	Address  string
	Reason   string
	Follower bool // it answers, but does not lead
}

func (t Trouble) String() string { return t.Address + ": " + t.Reason }

func joined(list []Trouble) string {
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = t.String()
	}
	return strings.Join(out, ", ")
}

// trouble returns what is wrong with each address tried since a metaserver last served.
func (c *conn) trouble() []Trouble {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.troubles)
}

// skip goes on with the next target after an answer that a metaserver would not give.
func (c *conn) skip(err error) {
	c.mu.Lock()
	t := c.now
	c.mu.Unlock()
	if t != nil {
		c.leave(t, err)
	}
}

// noteTrouble remembers why a target was given up, and logs it when nothing has worked for a while: those who wait are to
// know for what. mu is held.
func (c *conn) noteTrouble(address string, err error) {
	t := Trouble{Address: address, Reason: reasonOf(err), Follower: rpc.Kind(err) == rpc.NotLeader}
	if i := slices.IndexFunc(c.troubles, func(old Trouble) bool { return old.Address == address }); i >= 0 {
		c.troubles[i] = t
	} else if len(c.troubles) < maxMembers {
		c.troubles = append(c.troubles, t)
	}
	now := time.Now()
	if c.since.IsZero() {
		c.since = now
	}
	if now.Sub(c.since) < waitTold || (!c.told.IsZero() && now.Sub(c.told) < waitAgain) {
		return
	}
	c.told = now
	c.log.Warn("waiting for the cluster: no metaserver leads, or none can be reached", "since", now.Sub(c.since).Round(time.Second), "tried", joined(c.troubles))
}

// noteEnd forgets the troubles: a target works. mu is held.
func (c *conn) noteEnd(address string) {
	if !c.told.IsZero() {
		c.log.Info("the cluster answers again", "metaserver", address, "after", time.Since(c.since).Round(time.Second))
	}
	c.troubles, c.since, c.told = nil, time.Time{}, time.Time{}
}

// reasonOf says in a few words why a call to a metaserver failed. What gRPC tells is meant for programmers.
func reasonOf(err error) string {
	if d := rpc.Detail(err); d.GetKind() == rpc.NotLeader {
		if d.Leader != "" {
			return "follows the metaserver at " + d.Leader
		}
		return "answers, but knows no leader"
	}
	s := status.Convert(err) // other errors keep their text
	msg := s.Message()
	switch {
	case s.Code() == codes.Unimplemented, strings.Contains(msg, "server preface: http2:"):
		return "what answers there is no metaserver"
	case strings.Contains(msg, "server preface"):
		return "takes the connection, but does not answer like a metaserver"
	case !strings.Contains(msg, "while dialing"):
		return msg
	}
	cause := strings.TrimRight(msg[strings.LastIndex(msg, ": ")+2:], `"`)
	if strings.Contains(msg, ": lookup ") {
		return "the name does not resolve (" + cause + ")"
	}
	return cause
}
