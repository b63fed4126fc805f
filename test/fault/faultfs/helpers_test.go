package faultfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

const helperEnv = "FAULTFS_HELPER"

// helpers are what a process of its own does in a directory. It prints what the test is to know.
var helpers = map[string]func(dir string) error{
	"write":  helpWrite,
	"direct": helpDirect,
	"mmap":   helpMmap,
	"bolt":   helpBolt,
	"count":  helpCount,
	"fill":   helpFill,
	"sync":   helpSync,
	"space":  helpSpace,
	"list":   helpList,
}

func help(name string) {
	what, dir, _ := strings.Cut(name, " ")
	if err := helpers[what](dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// helpWrite makes files that are durable in all combinations, as their names say.
func helpWrite(dir string) error {
	for _, name := range []string{"d/synced", "d/written", "e/synced"} {
		if err := os.Mkdir(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if _, err := f.WriteString("hello"); err != nil {
			return err
		}
		if filepath.Base(name) == "synced" {
			if err := f.Sync(); err != nil {
				return err
			}
			if _, err := f.WriteString(", world"); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if err := errors.Join(syncDir(filepath.Join(dir, "d")), syncDir(dir)); err != nil {
		return err
	}
	return os.Rename(filepath.Join(dir, "d/synced"), filepath.Join(dir, "d/renamed"))
}

func helpList(dir string) error {
	return filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Printf("%s=%s ", path[len(dir)+1:], b)
		return err
	})
}

// aligned is memory for direct writes.
func aligned(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (blockSize - 1)
	return b[skip : skip+n]
}

// helpDirect writes past the page cache what a mapping and a read through it must see.
func helpDirect(dir string) error {
	name := filepath.Join(dir, "direct")
	if err := os.WriteFile(name, make([]byte, 4*blockSize), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4*blockSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	_ = m[blockSize] // in the page cache
	direct, err := os.OpenFile(name, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	p := aligned(blockSize)
	copy(p, "past the cache")
	if _, err := direct.WriteAt(p, blockSize); err != nil {
		return err
	}
	got := make([]byte, blockSize)
	if _, err := f.ReadAt(got, blockSize); err != nil {
		return err
	}
	if !bytes.Equal(got, p) || !bytes.Equal(m[blockSize:2*blockSize], p) {
		return errors.New("what was written directly is not seen")
	}
	return errors.Join(direct.Sync(), unix.Munmap(m), f.Close(), direct.Close(), syncDir(dir))
}

// helpMmap writes through the page cache what a mapping must see.
func helpMmap(dir string) error {
	f, err := os.Create(filepath.Join(dir, "mapped"))
	if err != nil {
		return err
	}
	if err := f.Truncate(1 << 20); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for i := range 256 {
		p := []byte(fmt.Sprintf("block %d", i))
		if _, err := f.WriteAt(p, int64(i)*blockSize); err != nil {
			return err
		}
		if !bytes.HasPrefix(m[i*blockSize:], p) {
			return fmt.Errorf("block %d is not seen in the mapping", i)
		}
	}
	return errors.Join(unix.Munmap(m), f.Close())
}

var bucket = []byte("numbers")

// helpBolt commits numbers to a database, and prints each that is durable, until it is killed.
func helpBolt(dir string) error {
	db, err := bolt.Open(filepath.Join(dir, "db"), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	for {
		if err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucket)
			if err != nil {
				return err
			}
			n, err := b.NextSequence()
			if err != nil {
				return err
			}
			if n%10 == 0 {
				fmt.Println(n - 1) // all before this one are durable
			}
			return b.Put([]byte(fmt.Sprintf("%08d", n)), bytes.Repeat([]byte{byte(n)}, 3000))
		}); err != nil {
			return err
		}
	}
}

// helpCount checks the database and prints its last number.
func helpCount(dir string) error {
	db, err := bolt.Open(filepath.Join(dir, "db"), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	return errors.Join(db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		n := uint64(0)
		if b := tx.Bucket(bucket); b != nil {
			n = b.Sequence()
			for i := uint64(1); i <= n; i++ {
				if v := b.Get([]byte(fmt.Sprintf("%08d", i))); !bytes.Equal(v, bytes.Repeat([]byte{byte(i)}, 3000)) {
					return fmt.Errorf("number %d is wrong", i)
				}
			}
		}
		fmt.Println(n)
		return nil
	}), db.Close())
}

// helpFill writes until the disk is full, and prints how much fitted.
func helpFill(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "fill"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	n := 0
	for ; ; n++ {
		if _, err = f.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	fmt.Println(n*64, errors.Is(err, unix.ENOSPC))
	return f.Close()
}

func helpSpace(dir string) error {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	fmt.Println(int64(st.Blocks)*st.Bsize>>10, int64(st.Bavail)*st.Bsize>>10)
	return err
}

// helpSync writes a file and prints what a sync of it says, and another.
func helpSync(dir string) error {
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	if _, err := f.WriteString("hello"); err != nil {
		return err
	}
	for range 2 {
		if _, err := f.Seek(0, 0); err != nil {
			return err
		}
		fmt.Print(errors.Is(f.Sync(), unix.EIO), " ")
	}
	return errors.Join(syncDir(dir), f.Close())
}
