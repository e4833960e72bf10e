package queue

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// request is 100 records of about 700 bytes, of the kind that JSON events are.
func request(n int) *texts {
	b := &texts{project: "app", size: 70000}
	for i := range 100 {
		b.items = append(b.items, fmt.Sprintf("%d:{\"event_type\":\"Order Placed\",\"user_id\":\"u%d\",\"event_properties\":{\"total\":%d,\"note\":%q},\"library\":\"amplitude-ts/2.1\"%s}",
			n%1000, n%1000, i*n, noise(uint64(n*100+i), 150), strings.Repeat(",\"platform\":\"Web\"", 24)))
	}
	return b
}

func BenchmarkAppend(b *testing.B) {
	h, cs := mustOpen(b, options(b.TempDir()))
	const callers = 64
	b.ResetTimer()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			r := request(c)
			for i := c; i < b.N; i += callers {
				again := *r
				again.places = nil
				if err := h.log.Append(context.Background(), &again); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N*100)/b.Elapsed().Seconds(), "records/s")
	b.StopTimer()
	h.close(cs)
}

// BenchmarkDrain reads a backlog from the files, claims and delivers it.
func BenchmarkDrain(b *testing.B) {
	dir := b.TempDir()
	h, cs := mustOpen(b, options(dir))
	cs["p"], _ = OpenConsumer(h.log, consumerOptions("p"))
	for i := range b.N {
		if err := h.log.Append(b.Context(), request(i)); err != nil {
			b.Fatal(err)
		}
	}
	h.close(cs)
	b.ResetTimer()
	co := consumerOptions("p")
	co.WindowBytes = 16 << 20
	h, cs = mustOpenAs(b, options(dir), co)
	for n := 0; n < b.N*100; {
		cl := mustClaim(b, cs["p"])
		n += len(cl.Records())
		cl.Finish(delivered(len(cl.Records())))
	}
	b.ReportMetric(float64(b.N*100)/b.Elapsed().Seconds(), "records/s")
	b.StopTimer()
	h.close(cs)
}

// BenchmarkStart opens a log and a ledger behind a million records, and looks at what
// that costs in memory.
func BenchmarkStart(b *testing.B) {
	if testing.Short() {
		b.Skip("a million records")
	}
	dir := b.TempDir()
	o := options(dir)
	o.RotateBytes = 128 << 20
	h, cs := mustOpen(b, o)
	cs["p"], _ = OpenConsumer(h.log, consumerOptions("p"))
	for i := range 10000 {
		if err := h.log.Append(b.Context(), request(i)); err != nil {
			b.Fatal(err)
		}
	}
	disk := folderBytes(dir)
	h.close(cs)
	runtime.GC()
	var took time.Duration
	for b.Loop() {
		begun := time.Now()
		l, err := Open(o)
		if err != nil {
			b.Fatal(err)
		}
		co := consumerOptions("p")
		co.WindowBytes = 16 << 20
		c, err := OpenConsumer(l, co)
		if err != nil {
			b.Fatal(err)
		}
		took += time.Since(begun)
		b.StopTimer()
		ctx, stop := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		for full := false; !full; time.Sleep(time.Millisecond) { // it reads ahead as far as it may
			c.mu.Lock()
			full = c.windowBytes >= co.WindowBytes
			c.mu.Unlock()
		}
		begun = time.Now()
		st, err := c.Stats()
		if err != nil || st.Books.Pending != 1000000 {
			b.Fatal(st.Books, err)
		}
		l.Stats()
		b.ReportMetric(float64(time.Since(begun).Microseconds())/1000, "stats-ms")
		runtime.GC()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		b.ReportMetric(float64(mem.HeapInuse)/(1<<20), "heap-MiB")
		b.ReportMetric(resident(), "anon-MiB")
		stop()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		c.Close()
		l.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(took.Microseconds())/1000/float64(b.N), "open-ms")
	b.ReportMetric(float64(disk)/(1<<20), "disk-MiB")
}

// resident is the process's anonymous resident memory in MiB.
func resident() float64 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "RssAnon: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	return 0
}
