package main

import (
	"fmt"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// rewriting is what is garbage, and what is written anew. Bytes are those of files, one copy counted.
type rewriting struct {
	Garbage     uint64 `json:"garbage"`     // that nothing refers to, by the last look
	Reclaimable uint64 `json:"reclaimable"` // of that, what can be given back
	Running     uint64 `json:"running"`     // new chunks that are being made
	Moved       uint64 `json:"moved"`       // bytes written anew since the metaserver leads
	Files       uint64 `json:"files"`       // being converted to their policies
	FilesLeft   uint64 `json:"files_left"`  // bytes of them
	HeldBack    string `json:"held_back"`
}

func rewritingToJSON(r *pb.Rewriting) *rewriting {
	if r == nil {
		return nil
	}
	return &rewriting{r.Garbage, r.Reclaimable, r.Running, r.Moved, r.Files, r.FilesLeft, r.HeldBack}
}

// rewritingLines say it to people, nothing while there is nothing to say.
func rewritingLines(r *pb.Rewriting) (lines string) {
	if r.GetGarbage() > 0 {
		lines += fmt.Sprintf("garbage       %s, of which %s can be given back\n", humanSize(r.Garbage), humanSize(r.Reclaimable))
	}
	switch {
	case r.GetFiles() == 0:
	case r.FilesLeft == 0: // as far as is known
		lines += fmt.Sprintf("policies      %s being looked at\n", plural(r.Files, "file"))
	default:
		lines += fmt.Sprintf("policies      %s left of %s to be written anew\n", humanSize(r.FilesLeft), plural(r.Files, "file"))
	}
	if held := r.GetHeldBack(); held != "" {
		lines += fmt.Sprintf("waiting       nothing is written anew: %s\n", held)
	}
	return lines
}
