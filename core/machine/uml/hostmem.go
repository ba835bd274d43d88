package uml

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/memory"
)

// minMemory is the least memory with which Debian's 6.1 kernel was seen to reach /init (24 MiB: deadlocked on memory).
const minMemory = 32 << 20

// shmDir is where memory belongs: a tmpfs.
const shmDir = "/dev/shm"

// placeMemory checks the size of guest memory and chooses the directory of its file. User-Mode Linux makes a sparse file
// and removes its name at once; if the file system fills up later, the guest dies of SIGBUS, so its space must be there.
func placeMemory(size, initrd uint64, runDir string) (dir string, err error) {
	if need := minMemory + 2*initrd; size < need { // packed and unpacked
		return "", fmt.Errorf("user-mode linux: memory of %d bytes is too small: this kernel and initrd need at least %d MiB", size, (need+1<<20-1)>>20)
	}
	if err := memory.CheckSize(size); err != nil {
		return "", fmt.Errorf("user-mode linux: %w", err)
	}
	var best uint64
	for _, d := range []string{shmDir, runDir} {
		free, ok := freeForMemory(d)
		if ok && free >= size {
			return d, nil
		}
		best = max(best, free)
	}
	return "", fmt.Errorf("user-mode linux: memory of %d MiB: neither %s nor %s has that much space where programs may be mapped (most: %d MiB): ask for less memory, or enlarge %s",
		size>>20, shmDir, runDir, best>>20, shmDir)
}

// freeForMemory is the space of d's file system in bytes; ok: files may be made there and mapped for execution.
func freeForMemory(d string) (free uint64, ok bool) {
	var st unix.Statfs_t
	if unix.Statfs(d, &st) != nil || unix.Access(d, unix.W_OK|unix.X_OK) != nil {
		return 0, false
	}
	free = st.Bavail * uint64(st.Bsize) //nolint:gosec // a block size is positive
	return free, st.Flags&unix.ST_NOEXEC == 0
}
