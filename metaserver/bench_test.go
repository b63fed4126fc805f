package metaserver

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// BenchmarkCreate makes files in one directory over calls within the process.
func BenchmarkCreate(b *testing.B) {
	s, err := New(Config{ID: 1, Listen: "127.0.0.1:0", Dir: filepath.Join(b.TempDir(), "meta")})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(b.Context()) }()
	defer func() {
		_ = s.Close()
		<-done
	}()
	<-s.Ready()
	pool := new(rpc.Pool)
	defer func() { _ = pool.Close() }()
	conn, err := pool.Get(s.Address())
	if err != nil {
		b.Fatal(err)
	}
	m := pb.NewMetaClient(conn)
	res, err := m.Mutate(b.Context(), &pb.MutateRequest{Op: &pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Nonce: make([]byte, 16)}}}})
	if err != nil || res.Errno != 0 {
		b.Fatal(res, err)
	}
	st, err := m.Session(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if err := st.Send(&pb.SessionPing{Session: res.Session, Ping: 1}); err != nil {
		b.Fatal(err)
	}
	if _, err := st.Recv(); err != nil {
		b.Fatal(err)
	}
	var sequence atomic.Uint64
	b.SetParallelism(32)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			n := sequence.Add(1)
			req := &pb.MutateRequest{Session: res.Session, Sequence: n, Cred: &pb.Cred{}, Op: create(fmt.Sprint("f", n))}
			if n > 1000 {
				req.Unanswered = n - 1000
			}
			if r, err := m.Mutate(b.Context(), req); err != nil || r.Errno != 0 {
				b.Error(r, err)
				return
			}
		}
	})
	b.StopTimer()
	_ = st.CloseSend()
}
