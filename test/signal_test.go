package test

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestTwoSignalsAtOnce: timeout(1) and others send the signal to the process and to its group. It ends as after one.
func TestTwoSignalsAtOnce(t *testing.T) {
	cmd := exec.Command(shoalBinary(t), "up", "--data", filepath.Join(t.TempDir(), "data"), "--listen", "127.0.0.1:0", "--http", "")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	logged, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for ready := false; !ready; ready = lines.Text() == "ready" {
		if !lines.Scan() {
			t.Fatalf("ended before it was ready: %v", cmd.Wait())
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for log := bufio.NewScanner(logged); log.Scan(); {
		if strings.Contains(log.Text(), "stopping") {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it has ended already, at worst
		}
	}
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after two signals: %v", err)
	}
}
