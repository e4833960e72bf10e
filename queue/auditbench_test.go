package queue

import (
	"context"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkAudit audits a backlog that is all pending.
func BenchmarkAudit(b *testing.B) {
	dir := b.TempDir()
	h, cs := mustOpen(b, options(dir), "p")
	const requests = 3000
	for i := range requests {
		if err := h.log.Append(b.Context(), request(i)); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for range b.N {
		a, err := cs["p"].Audit(b.Context())
		if err != nil || !a.Balanced() || a.Books.Pending != 100*requests {
			b.Fatalf("%+v, %v", a, err)
		}
	}
	b.ReportMetric(float64(b.N*100*requests)/b.Elapsed().Seconds(), "records/s")
	b.StopTimer()
	h.close(cs)
}

// synced writes a file as the command line does.
type synced struct {
	f     *os.File
	since int
}

func (s *synced) Write(b []byte) (int, error) {
	if s.since += len(b); s.since >= 8<<20 {
		s.since = 0
		if err := s.f.Sync(); err != nil {
			return 0, err
		}
	}
	return s.f.Write(b)
}

// BenchmarkBackup shows what backups cost those who append and deliver meanwhile: one
// after the other is made, to the same disk. "without" is the same without them.
func BenchmarkBackup(b *testing.B) {
	for _, with := range []bool{false, true} {
		name := "without"
		if with {
			name = "with"
		}
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			h, cs := mustOpen(b, options(dir), "p", "idle")
			c := cs["p"]
			for i := range 3000 { // some 200 MB that the consumer idle keeps
				if err := h.log.Append(b.Context(), request(i)); err != nil {
					b.Fatal(err)
				}
			}
			drain(b, c)
			ctx, stop := context.WithCancel(context.Background())
			var work sync.WaitGroup
			backups, bytes := 0, int64(0)
			if with {
				work.Go(func() {
					for ctx.Err() == nil {
						f, err := os.Create(dir + "/backup.tar")
						if err != nil {
							b.Error(err)
							return
						}
						_, err = h.log.Backup(ctx, &synced{f: f}, backupOptions(cs))
						n, _ := f.Seek(0, io.SeekEnd)
						f.Sync()
						f.Close()
						if err == nil {
							backups, bytes = backups+1, bytes+n
						}
					}
				})
			}
			for range 2 {
				work.Go(func() {
					for {
						cl, err := c.Claim(ctx)
						if err != nil {
							return
						}
						cl.Finish(delivered(len(cl.Records())))
					}
				})
			}
			const callers = 16
			took := make([]time.Duration, b.N)
			before := mustStats(b, c).Books.Delivered
			b.ResetTimer()
			var senders sync.WaitGroup
			for s := range callers {
				senders.Go(func() {
					for i := s; i < b.N; i += callers {
						begun := time.Now()
						if err := h.log.Append(context.Background(), request(i)); err != nil {
							b.Error(err)
							return
						}
						took[i] = time.Since(begun)
					}
				})
			}
			senders.Wait()
			b.StopTimer()
			rate := func(n uint64) float64 { return float64(n) / b.Elapsed().Seconds() }
			b.ReportMetric(rate(uint64(100*b.N)), "appended/s")
			b.ReportMetric(rate(mustStats(b, c).Books.Delivered-before), "delivered/s")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99-append")
			stop()
			work.Wait()
			if with {
				b.ReportMetric(float64(backups), "backups")
			}
			h.close(cs)
		})
	}
}
