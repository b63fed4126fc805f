package test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// long tells whether tests are to take the size that a release is judged by.
func long() bool { return os.Getenv("SHOAL_LONG") != "" }

// each policy that a cluster of seven chunk servers is tested with; either bears the loss of two shards.
var healed = []string{"replicas=3", "ec=4+2"}

// startPolicy starts a cluster with one metaserver, in which everything has a policy.
func startPolicy(t *testing.T, policy string, chunks int, mountFlags ...string) *processes {
	t.Helper()
	c := startProcesses(t, 1, chunks, mountFlags...)
	if _, err := c.shoal("policy", "set", "shoal:/", policy); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestScrubRepairsAllDamage damages every chunk file of one server all over, and one byte in each of many chunk files of the
// others, but no chunk in more places than its redundancy bears. One scrub finds all of it, all of it is repaired, and nobody
// ever reads a wrong byte. SHOAL_LONG=1 damages 200 chunk files.
func TestScrubRepairsAllDamage(t *testing.T) {
	for _, policy := range healed {
		t.Run(policy, func(t *testing.T) { scrubRepairs(t, policy) })
	}
}

func scrubRepairs(t *testing.T, policy string) {
	sessions, damages := 12, 24
	if long() {
		sessions, damages = 120, 200
	}
	c := startPolicy(t, policy, 7, "--cache", "1", "--memory", "64")
	rnd := rand.New(rand.NewPCG(11, 3))
	want := c.copyIn(rnd, sessions)
	open, err := os.Create(filepath.Join(c.mountDir, "open")) // its chunks are written while everything is checked
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }() // when the test has failed
	want["open"] = randomBytes(rnd, 3<<20+77)
	if _, err := open.Write(want["open"]); err != nil {
		t.Fatal(err)
	}
	if err := open.Sync(); err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	var reader sync.WaitGroup
	reads := 0
	reader.Go(func() { reads = readAlways(t, c.mountDir, want, stop) })
	end := sync.OnceFunc(func() { close(stop); reader.Wait() })
	defer end()
	damaged := c.damage(rnd, damages)
	t.Logf("%d chunk files are damaged", len(damaged))
	out, err := c.shoal("scrub")
	if err != nil {
		t.Fatalf("scrub: %v\n%s", err, out)
	}
	t.Logf("scrub:\n%s", out)
	c.sound()
	for path, d := range damaged {
		eventually(t, path+" is repaired", func() error { return d.repaired(path) })
	}
	end()
	if reads == 0 {
		t.Error("nothing was read meanwhile")
	}
	if err := open.Close(); err != nil {
		t.Error(err)
	}

	c.mount.end(syscall.SIGTERM) // whatever anything remembers
	c.all(c.chunks, func(p *process) { p.end(syscall.SIGTERM) })
	c.all(c.chunks, (*process).start)
	c.mount.start()
	for name, data := range want {
		if got, err := os.ReadFile(filepath.Join(c.mountDir, name)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes of %d or others: %v", name, len(got), len(data), err)
		}
	}
	if out, err = c.shoal("scrub", "--json"); err != nil || !strings.Contains(out, `"found": 0`) {
		t.Errorf("the second scrub: %v\n%s", err, out)
	}
}

// copyIn copies files into the cluster, some in each of so many sessions, each of which has chunks of its own, and returns what
// they are to hold by name.
func (c *processes) copyIn(rnd *rand.Rand, sessions int) map[string][]byte {
	c.t.Helper()
	want := map[string][]byte{}
	for s := range sessions {
		dir := filepath.Join(c.t.TempDir(), fmt.Sprintf("s%d", s))
		if err := os.Mkdir(dir, 0o755); err != nil {
			c.t.Fatal(err)
		}
		for i, size := range []int{1 + rnd.IntN(200), 4096, rnd.IntN(100_000), 1<<20 + rnd.IntN(1<<20)} {
			name := fmt.Sprintf("s%d/f%d", s, i)
			want[name] = randomBytes(rnd, size)
			if err := os.WriteFile(filepath.Join(filepath.Dir(dir), name), want[name], 0o644); err != nil {
				c.t.Fatal(err)
			}
		}
		if out, err := c.shoal("cp", "-r", dir, "shoal:/"); err != nil {
			c.t.Fatalf("%v\n%s", err, out)
		}
	}
	return want
}

func randomBytes(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// readAlways reads files at random, and compares, until stop is closed; it returns how many it read.
func readAlways(t *testing.T, dir string, want map[string][]byte, stop <-chan struct{}) (n int) {
	for {
		for name, data := range want { // in another order each time
			select {
			case <-stop:
				return n
			default:
			}
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes of %d or others: %v", name, len(got), len(data), err)
				return n
			}
			n++
		}
	}
}

// damagedFile is a chunk file of which a byte was changed.
type damagedFile struct {
	info os.FileInfo
	at   int64
	was  byte
}

// repaired tells whether the file is gone, another, or right again.
func (d damagedFile) repaired(path string) error {
	info, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return err
	case !os.SameFile(info, d.info):
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if int64(len(data)) <= d.at || data[d.at] != d.was {
		return fmt.Errorf("the byte at %d is still damaged", d.at)
	}
	return nil
}

// damage changes a byte in every 64 KiB of all chunk files of the first server, and one byte in each of n chunk files of others,
// so that no chunk has more than two bad shards. It returns one byte of each.
func (c *processes) damage(rnd *rand.Rand, n int) map[string]damagedFile {
	c.t.Helper()
	out, bad := map[string]damagedFile{}, map[uint64]int{}
	var others []string
	for i := range c.chunks {
		for _, path := range chunkFiles(c.t, c.chunkDir(i)) {
			if i > 0 {
				others = append(others, path)
				continue
			}
			bad[chunkOf(c.t, path)]++
			out[path] = flipAll(c.t, path, rnd)
		}
	}
	rnd.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	for _, path := range others {
		if id := chunkOf(c.t, path); n > 0 && bad[id] < 2 {
			bad[id]++
			n--
			out[path] = flipOne(c.t, path, rnd)
		}
	}
	if n > 0 {
		c.t.Fatalf("%d chunk files too few to damage; %d are", n, len(out))
	}
	return out
}

func (c *processes) chunkDir(i int) string {
	return filepath.Join(c.dir, fmt.Sprintf("chunk-%d", i+1))
}

// chunkFiles lists the chunk files below a directory; some may be gone when it returns.
func chunkFiles(t testing.TB, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Ext(path) == ".chunk" {
			paths = append(paths, path)
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// chunkOf returns the chunk that a file holds a shard of.
func chunkOf(t testing.TB, path string) uint64 {
	t.Helper()
	id, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), ".chunk"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(chunk.ID(id).Chunk())
}

func size(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func flipOne(t testing.TB, path string, rnd *rand.Rand) damagedFile {
	t.Helper()
	return flipAt(t, path, rnd.Int64N(size(t, path)), rnd)
}

// flipAll changes a byte in every 64 KiB and returns the first.
func flipAll(t testing.TB, path string, rnd *rand.Rand) (first damagedFile) {
	t.Helper()
	size := size(t, path)
	for at := int64(0); at < size; at += 64 << 10 {
		d := flipAt(t, path, at+rnd.Int64N(min(64<<10, size-at)), rnd)
		if at == 0 {
			first = d
		}
	}
	return first
}

func flipAt(t testing.TB, path string, at int64, rnd *rand.Rand) damagedFile {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // the write tells whether it worked
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d := damagedFile{info, at, b[0]}
	b[0] ^= byte(1 + rnd.IntN(255))
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDrainUnderLoad drains a server while files are written and read: it ends, and the server is empty.
func TestDrainUnderLoad(t *testing.T) {
	for _, policy := range healed {
		t.Run(policy, func(t *testing.T) { drainUnderLoad(t, policy) })
	}
}

func drainUnderLoad(t *testing.T, policy string) {
	c := startPolicy(t, policy, 7, "--cache", "1")
	load := c.startLoad(64 << 20)
	defer load.end()
	eventually(t, "every server holds something", func() error {
		for i := range c.chunks {
			if len(chunkFiles(t, c.chunkDir(i))) == 0 {
				return fmt.Errorf("chunk-%d does not", i+1)
			}
		}
		return nil
	})
	if long() {
		load.run(time.Minute)
	}
	began := time.Now()
	if out, err := c.shoal("servers", "drain", c.serverID(0)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("the drain took %v", time.Since(began).Round(time.Second/10))
	eventually(t, "nothing is left there", func() error {
		if left := chunkFiles(t, c.chunkDir(0)); len(left) > 0 {
			return fmt.Errorf("%d chunk files, such as %s", len(left), left[0])
		}
		return nil
	})
	load.end()
	if out, err := c.shoal("servers", "remove", c.serverID(0)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.chunks[0].end(syscall.SIGTERM)
	c.mount.end(syscall.SIGTERM)
	c.sound()
	c.mount.start()
	load.verify()
}

// serverID is the number that the metaserver gave a chunk server.
func (c *processes) serverID(i int) string {
	c.t.Helper()
	log, err := os.ReadFile(c.chunks[i].log)
	if err != nil {
		c.t.Fatal(err)
	}
	_, after, found := strings.Cut(string(log), "msg=registered server=")
	id, _, _ := strings.Cut(after, " ")
	if !found {
		c.t.Fatalf("%s has not registered", c.chunks[i].name)
	}
	return id
}

// fileLoad is programs that write, read, overwrite and remove files through a mount.
type fileLoad struct {
	c    *processes
	stop chan struct{}
	end  func() // stops them; safe to call more than once
	mu   sync.Mutex
	want map[string][]byte // what was acknowledged
}

// startLoad starts two writers, each of which keeps about so many bytes, and a reader.
func (c *processes) startLoad(keep int) *fileLoad {
	l := &fileLoad{c: c, stop: make(chan struct{}), want: map[string][]byte{}}
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() { l.write(w, keep) })
	}
	wg.Go(func() { l.read() })
	l.end = sync.OnceFunc(func() { close(l.stop); wg.Wait() })
	return l
}

// run lets the load go on for a while.
func (l *fileLoad) run(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.c.t.Context().Done():
	}
}

func (l *fileLoad) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return l.c.t.Failed()
	}
}

func (l *fileLoad) write(w, keep int) {
	rnd := rand.New(rand.NewPCG(uint64(w), 5))
	var names []string
	held := 0
	for i := 0; !l.stopped(); i++ {
		name := fmt.Sprintf("w%d-%d", w, i)
		data := randomBytes(rnd, []int{rnd.IntN(100_000), 1 << 20, rnd.IntN(6 << 20)}[rnd.IntN(3)])
		if err := os.WriteFile(filepath.Join(l.c.mountDir, name), data, 0o644); err != nil {
			l.c.t.Error(err)
			return
		}
		names, held = append(names, name), held+len(data)
		l.mu.Lock()
		l.want[name] = data
		l.mu.Unlock()
		for held > keep {
			k := rnd.IntN(len(names))
			l.mu.Lock()
			held -= len(l.want[names[k]])
			delete(l.want, names[k])
			l.mu.Unlock()
			if err := os.Remove(filepath.Join(l.c.mountDir, names[k])); err != nil {
				l.c.t.Error(err)
				return
			}
			names[k] = names[len(names)-1]
			names = names[:len(names)-1]
		}
	}
}

// read reads files at random; one that is removed meanwhile may be missing.
func (l *fileLoad) read() {
	for !l.stopped() {
		l.mu.Lock()
		var name string
		var data []byte
		for name, data = range l.want {
			break
		}
		l.mu.Unlock()
		got, err := os.ReadFile(filepath.Join(l.c.mountDir, name))
		l.mu.Lock()
		_, still := l.want[name]
		l.mu.Unlock()
		if still && (err != nil || !bytes.Equal(got, data)) {
			l.c.t.Errorf("%s: %d bytes of %d or others: %v", name, len(got), len(data), err)
			return
		}
	}
}

// verify reads everything.
func (l *fileLoad) verify() {
	l.c.t.Helper()
	for name, data := range l.want {
		if got, err := os.ReadFile(filepath.Join(l.c.mountDir, name)); err != nil || !bytes.Equal(got, data) {
			l.c.t.Errorf("%s: %d bytes of %d or others: %v", name, len(got), len(data), err)
		}
	}
}

// TestAddedServerGetsItsShare fills six servers, adds a seventh, and waits until all are used alike within a tenth, for which no
// more than 1.2 times of the new one's share is moved. Differences of less than 128 MiB are left alone, so this takes several GiB.
func TestAddedServerGetsItsShare(t *testing.T) {
	files := 48
	if long() {
		files = 256
	}
	c := startPolicy(t, "replicas=3", 6)
	rnd := rand.New(rand.NewPCG(1, 7))
	data := randomBytes(rnd, 16<<20)
	for i := range files {
		if err := os.WriteFile(filepath.Join(c.mountDir, fmt.Sprint(i)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.mount.end(syscall.SIGTERM)
	c.sound()
	before := map[string]bool{}
	for i := range c.chunks {
		for _, path := range chunkFiles(t, c.chunkDir(i)) {
			before[path] = true
		}
	}
	added := c.process("chunk-7", "chunk", "--listen", "127.0.0.1:0", "--data", c.chunkDir(6), "--meta", strings.Join(c.metaAddrs, ","))
	c.chunks = append(c.chunks, added)
	began := time.Now()
	added.start()
	ideal := int64(0)
	var used []int64
	eventually(t, "the servers hold alike", func() error {
		used, ideal = used[:0], 0
		for i := range c.chunks {
			n := bytesIn(t, c.chunkDir(i))
			used, ideal = append(used, n), ideal+n
		}
		ideal /= int64(len(c.chunks))
		for _, n := range used {
			if d := max(n-ideal, ideal-n); d > max(ideal/10, slack) {
				return fmt.Errorf("they hold %d MiB", mebibytes(used))
			}
		}
		return nil
	})
	t.Logf("after %v the servers hold %d MiB", time.Since(began).Round(time.Second), mebibytes(used))
	moved, since := int64(-1), time.Now()
	eventually(t, "nothing has moved for a while", func() error {
		last := moved
		moved = 0
		for i := range c.chunks {
			for _, path := range chunkFiles(t, c.chunkDir(i)) {
				if info, err := os.Stat(path); err == nil && !before[path] {
					moved += info.Size()
				}
			}
		}
		if moved != last {
			since = time.Now()
		}
		if time.Since(since) < 10*time.Second {
			return fmt.Errorf("%d bytes were", moved)
		}
		return nil
	})
	t.Logf("%d MiB were moved; the new server's share is %d MiB", moved>>20, ideal>>20)
	if moved-ideal > max(ideal/5, slack) {
		t.Errorf("%d bytes were moved where %d are the new server's share", moved, ideal)
	}
	c.sound()
	c.mount.start()
	for i := range files {
		if got, err := os.ReadFile(filepath.Join(c.mountDir, fmt.Sprint(i))); err != nil || !bytes.Equal(got, data) {
			t.Errorf("file %d: %v", i, err)
		}
	}
}

// slack is the difference, in bytes, that balance leaves alone.
const slack = 128 << 20

func mebibytes(of []int64) (out []int64) {
	for _, n := range of {
		out = append(out, n>>20)
	}
	return out
}

// bytesIn is what chunk files below a directory take on the disk.
func bytesIn(t testing.TB, dir string) (sum int64) {
	t.Helper()
	for _, path := range chunkFiles(t, dir) {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err == nil {
			sum += st.Blocks * 512
		} else if !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return sum
}

// TestStorageOfCodedFiles measures what files take under ec=4+2, of which six shards for four are half as much again: files of
// 1 MiB, and files of 2 to 200 KiB. SHOAL_LONG=1 has 4 GiB and 100,000 of them.
func TestStorageOfCodedFiles(t *testing.T) {
	big, small := 256, 2000
	if long() {
		big, small = 4096, 100_000
	}
	rnd := rand.New(rand.NewPCG(5, 5))
	pool := randomBytes(rnd, 2<<20)
	for name, files := range map[string]struct {
		n    int
		size func() int
	}{
		"1 MiB":        {big, func() int { return 1 << 20 }},
		"2 to 200 KiB": {small, func() int { return 2<<10 + rnd.IntN(198<<10) }},
	} {
		t.Run(name, func(t *testing.T) {
			c := startPolicy(t, "ec=4+2", 7)
			stored := int64(0)
			for i := range files.n {
				size := files.size()
				stored += int64(size)
				dir := filepath.Join(c.mountDir, fmt.Sprint(i/1000))
				if i%1000 == 0 {
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				at := rnd.IntN(len(pool) - size)
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), pool[at:at+size], 0o644); err != nil {
					t.Fatal(err)
				}
			}
			c.mount.end(syscall.SIGTERM)
			c.sound()
			used := int64(0)
			for i := range c.chunks {
				used += bytesIn(t, c.chunkDir(i))
			}
			t.Logf("%d bytes take %d: %.3f times as much", stored, used, float64(used)/float64(stored))
			if float64(used) > 1.6*float64(stored) {
				t.Errorf("%d bytes take %d, more than 1.6 times as much", stored, used)
			}
			c.mount.start()
		})
	}
}
