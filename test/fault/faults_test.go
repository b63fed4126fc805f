package fault

import (
	"syscall"
	"testing"
	"time"
)

func TestKill(t *testing.T) {
	Need(t)
	c := Start(t, Options{Binary: binary(t), Metaservers: 1})
	l, err := c.StartLoad(LoadOptions{Seed: 1, Rate: 2 << 20, Large: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	if err := c.Chunks[0].End(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	if err := c.Chunks[0].Start(); err != nil {
		t.Fatal(err)
	}
	if err := l.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := c.Healthy(); err != nil {
		t.Fatal(err)
	}
	r, err := l.Check()
	if err != nil {
		t.Fatal(err)
	}
	res, err := l.Results(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", res)
	if e := res.Errors(); len(e) > 0 {
		t.Errorf("errors:\n%s", some(e))
	}
	if e := res.Wrong(); len(e) > 0 {
		t.Errorf("wrong:\n%s", some(e))
	}
	c.Fsck()
}
