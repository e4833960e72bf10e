package main

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ampcio/admin"
	"ampcio/config"
	"ampcio/queue"
)

// ageBuckets are the ages by which what is pending is counted, unless somebody asks for others.
var ageBuckets = []time.Duration{time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 12 * time.Hour, 72 * time.Hour}

// boundsOf are those ages, and those from which on events of some sync are late.
func boundsOf(cfg *config.Config, ages []time.Duration) []time.Duration {
	bounds := slices.Clone(ages)
	for _, name := range streamNames(cfg) {
		if late := lateAfter(cfg, name); late > 0 {
			bounds = append(bounds, late)
		}
	}
	slices.Sort(bounds)
	return slices.Compact(bounds)
}

func lateAfter(cfg *config.Config, name string) time.Duration {
	if set := settingsOf(cfg, name); set != nil {
		return set.options.LateAfter
	}
	return 0
}

// addDetail adds what a look has told beside the counts.
func addDetail(y *admin.Sync, st queue.ConsumerStats, d queue.Detail, ages []time.Duration, cfg *config.Config, hash func() userHash) {
	y.NewestAge, y.Approximate = ageOf(st.Newest, d.Now), st.Approximate
	y.AgeBuckets = bucketsOf(st.Ages, d.Bounds, ages)
	if limit := lateAfter(cfg, y.Name); limit > 0 {
		s := seconds(limit)
		y.Late.Limit = &s
		if y.OldestAge != nil {
			left := s - *y.OldestAge
			y.Late.OldestLeft = &left
		}
		if i := slices.Index(d.Bounds, limit); i >= 0 && len(st.Ages) > 0 {
			for _, n := range st.Ages[i+1:] {
				y.Late.Over += n
			}
		}
	}
	y.Kept.OldestAge = ageOf(st.OldestDead, d.Now)
	for i := range y.Waiting {
		w := &y.Waiting[i]
		if record := st.Waiting[w.Reason].Example; record != nil {
			w.Example = exampleOf(y.Name, record, d.Now, hash)
		}
	}
}

func exampleOf(sync string, r *queue.Record, now time.Time, hash func() userHash) *admin.Example {
	l := openDeadLetter(sync, queue.DeadLetter{Record: *r}) // it need not be one to be opened
	x := &admin.Example{Event: clipText(l.event, 100), AgeS: max(seconds(now.Sub(time.UnixMilli(r.Received))), 0)}
	if key := hash(); key != nil {
		x.User = key.of(l.user())
	}
	return x
}

// bucketsOf sums up what was counted by finer bounds.
func bucketsOf(counts []uint64, bounds, ages []time.Duration) []admin.AgeBucket {
	buckets := make([]admin.AgeBucket, len(ages)+1)
	for i, age := range ages {
		s := seconds(age)
		buckets[i].LE = &s
	}
	for i, n := range counts {
		at := len(ages)
		if i < len(bounds) {
			at, _ = slices.BinarySearch(ages, bounds[i])
		}
		buckets[at].Count += n
	}
	return buckets
}

// latencySteps are the bounds that are told of: one of a few within each tenfold.
var latencySteps = func() (steps []int) {
	for i := range queue.LatencyBounds {
		if i%6 == 0 || i%6 == 2 || i%6 == 4 { // 1, 2 and 5 of each
			steps = append(steps, i)
		}
	}
	return steps
}()

func addLatency(y *admin.Sync, st queue.ConsumerStats) {
	l := st.Latencies
	if p50 := l.Quantile(0.5); p50 != nil {
		y.Latency = &admin.Latency{P50: inSeconds(*p50), P95: inSeconds(*l.Quantile(0.95)), P99: inSeconds(*l.Quantile(0.99))}
	}
	sum, next := uint64(0), 0
	for i, n := range l.Total {
		sum += n
		if next < len(latencySteps) && latencySteps[next] == i {
			bound := queue.LatencyBounds[i].Seconds()
			y.LatencyBuckets = append(y.LatencyBuckets, admin.LatencyBucket{LE: &bound, Count: sum})
			next++
		}
	}
	y.LatencyBuckets = append(y.LatencyBuckets, admin.LatencyBucket{Count: sum})
	y.LatencySum = l.Sum.Seconds()
}

// inSeconds is a duration for people and machines: no more digits than it is worth.
func inSeconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// answerOf says what a reason for which something waits means.
func answerOf(reason string) string {
	if code, ok := strings.CutPrefix(reason, "http_"); ok {
		if n, err := strconv.Atoi(code); err == nil {
			return strings.TrimSpace(code + " " + http.StatusText(n))
		}
	}
	switch reason {
	case "timeout":
		return "no answer in time"
	case "dns":
		return "the host's name could not be looked up"
	case "refused":
		return "the connection was refused"
	case "tls":
		return "no trusted TLS"
	case "no_route":
		return "no route to the host"
	case "connection_cut":
		return "the connection was cut"
	case "network":
		return "the network failed"
	}
	return ""
}

// lazyHash opens the key of the hashes that stand for users when it is first wanted; nil
// when there is none.
func lazyHash(open func() (userHash, error)) func() userHash {
	return sync.OnceValue(func() userHash {
		key, err := open()
		if err != nil {
			return nil
		}
		return key
	})
}

// storedUserHash reads the key, and makes none.
func storedUserHash(storage string) (userHash, error) {
	path := filepath.Join(storage, hashKeyFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return openUserHash(storage)
}

// finish adds what follows from the rest of a snapshot. Whoever makes one calls it last.
func finish(snap *admin.Snapshot) {
	snap.Audit.Balanced = true
	for i := range snap.Syncs {
		y := &snap.Syncs[i]
		if y.Audit.At == nil {
			y.Audit = admin.Audit{Balanced: y.Books.Balanced, Difference: y.Books.Difference}
		}
		a := &snap.Audit
		a.Balanced = a.Balanced && y.Audit.Balanced
		a.Difference += max(y.Audit.Difference, -y.Audit.Difference)
		if at := y.Audit.At; at != nil && (a.At == nil || at.Before(*a.At)) {
			a.At = at
		}
		if y.AgeBuckets == nil {
			y.AgeBuckets = []admin.AgeBucket{}
		}
		if y.LatencyBuckets == nil {
			y.LatencyBuckets = []admin.LatencyBucket{}
		}
	}
	snap.Advise()
	snap.Judge(admin.DefaultThresholds())
}

// lastLooks are what came of the last reload and of the last audits, as long as the
// process lives.
type lastLooks struct {
	mu     sync.Mutex
	reload *admin.Reload
	audits map[string]auditSaid
}

type auditSaid struct {
	admin.Audit
	taken uint64 // by then: less means that the ledger is another one
}

func (l *lastLooks) reloaded(at time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reload = &admin.Reload{At: at.UTC().Truncate(time.Second), OK: err == nil}
	if err != nil {
		l.reload.Error = err.Error()
	}
}

func (l *lastLooks) lastReload() *admin.Reload {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reload
}

func (l *lastLooks) audited(at time.Time, a *queue.Audit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.audits == nil {
		l.audits = map[string]auditSaid{}
	}
	at = at.UTC().Truncate(time.Second)
	l.audits[a.Name] = auditSaid{admin.Audit{At: &at, Balanced: a.Balanced(), Difference: int64(len(a.Differences))}, a.Books.Taken}
}

// addAudit adds the last audit of a sync, if there was one.
func (l *lastLooks) addAudit(y *admin.Sync) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, known := l.audits[y.Name]
	if known && a.taken <= y.Books.Taken {
		y.Audit = a.Audit
	}
}

// keepFilling notes how the disk fills.
func (d *daemon) keepFilling(ctx context.Context) {
	tick := time.NewTicker(admin.FillingEvery)
	defer tick.Stop()
	for {
		waits := int64(0) // syncs share the log: the one of which most waits counts
		for _, name := range d.names() {
			if c := d.consumer(name); c != nil {
				if st, err := c.Stats(); err == nil {
					waits = max(waits, st.PendingBytes)
				}
			}
		}
		d.filling.Note(time.Now(), disk(d.config(), d.records.Stats()), waits)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
