package faultfs

import (
	"errors"
	"fmt"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	maxWrite = 1 << 20         // bytes in one request
	patience = 5 * time.Second // how long processes that have ended may take to let go of a disk
)

// mount mounts the disk. The connection to the kernel must not be inherited by processes that are started meanwhile, as one
// that go-fuse opens can be: it would not end with this process, and who waits for the disk would wait for ever.
func (d *Disk) mount() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d", fd, maxWrite)
	if err := unix.Mount("faultfs", d.dir, "fuse.faultfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return errors.Join(fmt.Errorf("mount on %s: %w", d.dir, err), unix.Close(fd))
	}
	server, err := gofuse.NewServer(newFuseFS(d), fmt.Sprintf("/dev/fd/%d", fd), &gofuse.MountOptions{
		MaxWrite: maxWrite, MaxBackground: 64, DisableXAttrs: true, DisableReadDirPlus: true,
		// A new mtime alone drops no pages, as it does not on a disk.
		DisabledCapabilities: gofuse.CAP_AUTO_INVAL_DATA,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("serve %s: %w", d.dir, err), unmount(d.dir))
	}
	go server.Serve() // ends with the mount
	d.mu.Lock()
	d.server = server
	d.mu.Unlock()
	return nil
}

// Unmount takes the disk away; nothing may be using it.
func (d *Disk) Unmount() error {
	d.Fail()
	if err := unmount(d.dir); err != nil {
		return err
	}
	d.kernel().Wait()
	d.tree.close()
	return nil
}

// unmount waits a moment for processes that are just ending.
func unmount(dir string) error {
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
