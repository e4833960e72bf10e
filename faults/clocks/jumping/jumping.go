// Package jumping is a wall clock that somebody else sets. The product is built with its Now in place of time's: the
// monotonic clock goes on as before, as when the clock of a machine is set.
package jumping

import (
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Env names the file that says how the clock was set: a count, then for each time that it was set when that was (Unix
// ns, by the real clock) and by how much it differs from then on (s). All are int64s of this machine.
const Env = "AMPCIO_FAULTS_CLOCK"

// Most is how often the clock may be set.
const Most = 1000

// Bytes is the size of the file.
const Bytes = 8 * (1 + 2*Most)

var table = open()

func open() *[1 + 2*Most]int64 {
	path := os.Getenv(Env)
	if path == "" {
		return new([1 + 2*Most]int64)
	}
	f, err := os.Open(path)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	b, err := syscall.Mmap(int(f.Fd()), 0, Bytes, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*[1 + 2*Most]int64)(unsafe.Pointer(&b[0]))
}

// ahead is by how many seconds the clock differs at a moment of the real one.
func ahead(at int64) int64 {
	for n := atomic.LoadInt64(&table[0]); n > 0; n-- {
		if table[2*n-1] <= at {
			return table[2*n]
		}
	}
	return 0
}

// Now is time.Now by the clock as it is set.
func Now() time.Time {
	t := time.Now()
	set(&t, ahead(t.UnixNano()))
	return t
}

// Since is time.Since by this clock.
func Since(t time.Time) time.Duration { return Now().Sub(t) }

// Until is time.Until by this clock.
func Until(t time.Time) time.Duration { return t.Sub(Now()) }

// Written is when a file was written, of which the real clock says this.
func Written(t time.Time) time.Time { return t.Add(time.Duration(ahead(t.UnixNano())) * time.Second) }

// set moves the wall clock's side of a time with two sides: its seconds stand above the 30 bits of the nanoseconds.
func set(t *time.Time, seconds int64) { *(*uint64)(unsafe.Pointer(t)) += uint64(seconds) << 30 }

// A time is not made so for ever: then nothing here means anything.
func init() {
	before := time.Now()
	t := before
	set(&t, 86_400)
	if t.Sub(before) != 0 || t.UnixNano()-before.UnixNano() != 86_400e9 {
		panic("time.Time is made in another way than it was")
	}
}
