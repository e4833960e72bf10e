package queue

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// BenchmarkSearch looks for one lane among b.N requests of 100 records.
func BenchmarkSearch(b *testing.B) {
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			dir := b.TempDir()
			o := options(dir)
			o.Keep, o.KeepBytes = time.Hour, 1<<40
			h, cs := mustOpen(b, o)
			for i := range b.N {
				if err := h.log.Append(b.Context(), request(i)); err != nil {
					b.Fatal(err)
				}
			}
			h.close(cs)
			l, done, err := OpenToRead(dir)
			if err != nil {
				b.Fatal(err)
			}
			lane := []byte("7")
			b.ResetTimer()
			found, before := 0, processorTime()
			err = l.Search(b.Context(), Search{Project: "app", Workers: workers, Match: func(l, _ []byte) bool { return bytes.Equal(l, lane) }},
				func(Found) error { found++; return nil })
			b.StopTimer()
			if err != nil || found != 100*((b.N+992)/1000) {
				b.Errorf("%d found: %v", found, err)
			}
			b.ReportMetric(float64(100*b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64((processorTime()-before).Nanoseconds())/float64(100*b.N), "cpu-ns/record")
			must(b, done())
		})
	}
}

// processorTime is what this process has used: a machine that has other things to do, too,
// does not change it much.
func processorTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
