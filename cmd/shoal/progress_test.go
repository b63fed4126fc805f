package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// terminal opens a pseudo-terminal of 40 lines and 100 columns; shown returns what was written to it.
func terminal(t *testing.T) (tty *os.File, shown func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testenv.Unavailable(t, "no pseudo-terminals here: %v", err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testenv.Unavailable(t, "no pseudo-terminals here: %v", err)
	}
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100}); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&seen, master) // ends with EIO when the other end is closed
	}()
	return tty, func() string {
		_ = tty.Close() // ends the copying
		<-done
		_ = master.Close() // nothing was written to it
		return seen.String()
	}
}

func TestOnATerminal(t *testing.T) {
	dir := onCluster(t)
	from := t.TempDir()
	for i := range 7 {
		write(t, filepath.Join(from, fmt.Sprintf("name-%d", i)), pattern(i, 100_000), 0o600)
	}
	tty, shown := terminal(t)
	for _, args := range [][]string{{"cp", "-r", from, dir + "/to"}, {"ls", dir + "/to"}} {
		if status := run(context.Background(), args, tty, tty, tty); status != exitOK {
			t.Errorf("%v: status %d", args, status)
		}
	}
	out := shown()
	for _, want := range []string{"7/7 files", "683.6 KiB / 683.6 KiB", "name-0  name-1  name-2  name-3  name-4  name-5  name-6\r\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}
