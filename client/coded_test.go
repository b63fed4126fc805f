package client

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
)

// TestCodedFiles writes files of all sizes under a coded policy and reads them on another client, with all chunk servers and
// without two of them.
func TestCodedFiles(t *testing.T) {
	c := startCluster(t, clusterOptions{chunks: 6})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	must(t, a.Mkdir(ctx, "/dir", 0o755))
	must(t, a.SetPolicy(ctx, "/dir", "ec=4+2"))
	content := map[string][]byte{}
	rnd := rand.NewChaCha8([32]byte{7})
	for _, size := range []int{1, 5000, 100_000, 1 << 20, 5<<20 + 77} {
		p := make([]byte, size)
		_, _ = rnd.Read(p)
		name := fmt.Sprintf("/dir/%d", size)
		content[name] = p
		must(t, a.WriteFile(ctx, name, p, 0o644))
	}
	log, err := a.OpenFile(ctx, "/dir/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must(t, err)
	for i := range 20 {
		p := bytes.Repeat([]byte{byte(i)}, 500*(i+1))
		if _, err := log.Write(p); err != nil {
			t.Fatal(err)
		}
		must(t, log.Sync())
		content["/dir/log"] = append(content["/dir/log"], p...)
	}
	must(t, log.Close())
	check := func(p *peer) {
		t.Helper()
		for name, want := range content {
			got, err := p.ReadFile(ctx, name)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
			}
		}
	}
	check(b)
	for _, s := range c.chunks[:2] {
		_ = s.Close()
	}
	check(c.dial(t))
	// What is written now is stored somehow, and read.
	p := bytes.Repeat([]byte("degraded"), 400_000)
	content["/dir/late"] = p
	must(t, a.WriteFile(ctx, "/dir/late", p, 0o644))
	check(b)
}
