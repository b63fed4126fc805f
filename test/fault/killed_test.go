package fault

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/private"
)

const doomedEnv = "SHOAL_FAULT_DOOMED"

// TestDoomed is what TestNothingIsLeftOfAKilledTest kills.
func TestDoomed(t *testing.T) {
	if os.Getenv(doomedEnv) == "" {
		t.Skip("only to be killed by another test")
	}
	c, l := loaded(t, Options{OnDisk: onDisk("chunk-", "meta-")})
	var pids []any
	for _, s := range c.Servers() {
		pids = append(pids, s.cmd.Process.Pid)
	}
	for _, cl := range l.Clients {
		pids = append(pids, cl.cmd.Process.Pid)
	}
	for _, m := range c.Mounts {
		pids = append(pids, m.cmd.Process.Pid)
	}
	fmt.Println("doomed", fmt.Sprint(pids...))
	if err := l.Run(Patience); err != nil {
		t.Fatal(err)
	}
}

// TestNothingIsLeftOfAKilledTest kills a test in the middle of everything: servers, clients and their mounts must end with it, which
// they do not while anything keeps the disk alive that they wait for.
func TestNothingIsLeftOfAKilledTest(t *testing.T) {
	Need(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDoomed$", "-test.v")
	dir := t.TempDir()
	cmd.Env = append(os.Environ(), doomedEnv+"=1", "SHOAL_KEEP="+dir, "SHOAL_BINARY="+Binary(t), private.Env+"=")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids, said []string
	for lines := bufio.NewScanner(out); pids == nil && lines.Scan(); {
		said = append(said, lines.Text())
		if list, ok := strings.CutPrefix(lines.Text(), "doomed "); ok {
			pids = strings.Fields(list)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGKILL) // gone already, at worst
	_ = cmd.Wait()                          // it was killed
	if pids == nil {
		t.Fatalf("the test that was to be killed came to nothing:\n%s", strings.Join(said, "\n"))
	}
	deadline := time.Now().Add(Patience)
	for _, pid := range pids {
		for alive(pid) {
			if time.Now().After(deadline) {
				t.Fatalf("process %s still lives", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// alive tells whether a process has not ended yet. One that nobody has asked how it ended has.
func alive(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	threads, err := os.ReadDir("/proc/" + pid + "/task")
	_, rest, _ := strings.Cut(string(b), ") ")
	return err == nil && !(strings.HasPrefix(rest, "Z") && len(threads) <= 1)
}
