package main

import (
	"strings"

	"github.com/shoalfs/shoalfs/chunkserver"
	"github.com/shoalfs/shoalfs/internal/httpd"
)

// chunkPage puts together what the status page of a chunk server shows.
func chunkPage(s *chunkserver.Server, metaservers []string) httpd.ChunkStatus {
	st := s.Status()
	page := httpd.ChunkStatus{
		ID: uint32(st.ID), Address: st.Address, Cluster: st.Cluster, Leader: st.Leader, Metaservers: metaservers,
		Disks: st.Disks, Streams: st.Streams, Read: st.BytesRead, Written: st.BytesWritten,
	}
	if err := s.Health(); err != nil {
		page.Problems = strings.Split(err.Error(), "\n")
	}
	for _, d := range st.Disks {
		if d.Error != "" {
			page.Problems = append(page.Problems, d.Path+": "+d.Error)
		}
	}
	return page
}
