package queue

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// bare is a log with consumer p, without the goroutines of a house.
type bare struct {
	log *Log
	c   *Consumer
}

func openBare(t testing.TB, dir string) bare {
	t.Helper()
	l, err := Open(small(dir))
	must(t, err)
	c, err := OpenConsumer(l, consumerOptions("p"))
	must(t, err)
	return bare{l, c}
}

func (b bare) close(t testing.TB) {
	t.Helper()
	must(t, b.c.Close())
	must(t, b.log.Close())
}

// deliverAll reads what there is and delivers it; an error is that of a checkpoint, after
// which a process would have ended.
func (b bare) deliverAll(t testing.TB) error {
	t.Helper()
	r := b.log.Reader(b.c.read)
	last := map[string]uint64{}
	for more := true; more; {
		chunk, _, err := r.look()
		must(t, err)
		if more = chunk != nil; more {
			must(t, b.c.take(chunk, b.c.epoch))
		}
		b.c.Hasten(time.Time{})
		for cl := b.c.TryClaim(); cl != nil; cl = b.c.TryClaim() {
			for _, r := range cl.Records() {
				if !strings.HasPrefix(string(r.Body), cl.Lane()+":") || r.Seq <= last[cl.Lane()] {
					t.Errorf("lane %s: record %d, %.20q, behind %d", cl.Lane(), r.Seq, r.Body, last[cl.Lane()])
				}
				last[cl.Lane()] = r.Seq
			}
			cl.Finish(delivered(len(cl.Records())))
			if err := b.c.checkpoint(); err != nil {
				return err
			}
		}
	}
	return b.c.checkpoint()
}

// Whatever bit of a ledger flips, one with a side place, dead letters and a rewind: the
// consumer opens, delivers what is there in order, and after an audit and a start or two
// its books balance again; what is missing is counted as lost.
func TestDamageToALedgerIsCounted(t *testing.T) {
	bytesOnly(t)
	from := quickDir(t)
	lived(t, from)
	before := audited(t, from)
	mustBalance(t, before)
	file, err := os.ReadFile(ledgerPath(from, "p"))
	must(t, err)
	// Where what the ledger needs most stands, and anywhere.
	var targets []int
	for at := 0; at < len(file); at += 4096 {
		for _, what := range []string{"state", "refused", "aside", "id:3", "event/delivered", "http_500"} {
			if bytes.Contains(file[at:at+4096], []byte(what)) {
				targets = append(targets, at)
			}
		}
	}
	size := int(metaAt(t, ledgerPath(from, "p"), 0).pages) * 4096
	rounds := 120
	if testing.Short() || raceEnabled {
		rounds = 40
	}
	path, err := filepath.Rel(from, ledgerPath(from, "p"))
	must(t, err)
	to := filepath.Join(quickDir(t), "flipped")
	random := rand.New(rand.NewPCG(5, 6))
	away, lost, found, anew := 0, 0, 0, 0
	for range rounds {
		bit := random.IntN(8 * size)
		if random.IntN(3) > 0 {
			bit = 8*targets[random.IntN(len(targets))] + random.IntN(8*4096)
		}
		flipped(t, from, to, path, bit)
		for start := 0; ; start++ {
			b := openBare(t, to)
			if b.c.SetAside() != nil {
				away++
			}
			err := b.deliverAll(t)
			var a Audit
			if err == nil {
				a, err = b.c.Audit(t.Context())
			}
			b.close(t)
			switch {
			case err != nil && !errors.Is(err, ErrDamaged):
				t.Fatalf("bit %d: %v", bit, err)
			case err == nil && a.Balanced():
				mustBalance(t, a)
				if a.Books.Pending != 0 {
					t.Errorf("bit %d: %+v", bit, a.Books)
				}
				if a.Books.Lost > 0 {
					lost++
				}
				if a.Books.Rewound != before.Books.Rewound {
					anew++
				}
			case start < 3:
				found++
				continue
			default:
				t.Errorf("bit %d: it never mends: %v\n%s", bit, err, strings.Join(a.Differences, "\n"))
			}
			break
		}
		if t.Failed() {
			t.Fatalf("bit %d", bit)
		}
	}
	t.Logf("of %d flips %d had the ledger set aside, %d were found by an audit, after %d something was lost, %d lost the state", rounds, away, found, lost, anew)
	if away == 0 || lost == 0 || anew == 0 { // an open looks at all of a ledger of this size
		t.Error("that shows less than it says")
	}
}

// What is left of each part of a ledger that was damaged, entry by entry.
func TestDamageToEachPartOfALedger(t *testing.T) {
	bytesOnly(t)
	from := quickDir(t)
	lived(t, from)
	whole := audited(t, from).Books
	spoilAll := func(b []byte, but int) func(t *testing.T, tx *bolt.Tx) {
		return func(t *testing.T, tx *bolt.Tx) {
			bucket := tx.Bucket(b)
			var keys [][]byte
			must(t, bucket.ForEach(func(k, _ []byte) error { keys = append(keys, bytes.Clone(k)); return nil }))
			for i, k := range keys {
				if i >= but {
					v := bytes.Clone(bucket.Get(k))
					v[len(v)-1] ^= 1
					must(t, bucket.Put(k, v))
				}
			}
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, tx *bolt.Tx)
		want  func(b Books) Books
	}{
		{"dead letters", spoilAll(bucketDead, 20), func(b Books) Books {
			b.Lost, b.Dead = b.Dead-20, 20
			return b
		}},
		{"records of the side place", spoilAll(bucketAside, 300), func(b Books) Books {
			b.Lost, b.Pending = 65, b.Pending-65
			return b
		}},
		{"summaries of the side place", spoilAll(bucketAsideLane, 0), func(b Books) Books { return b }},
		{"what was sent, retries and tallies", func(t *testing.T, tx *bolt.Tx) {
			for _, b := range [][]byte{bucketSent, bucketRetry, bucketTally} {
				spoilAll(b, 0)(t, tx)
			}
		}, func(b Books) Books { return b }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(quickDir(t), "spoilt")
			copyTree(t, from, dir)
			editLedger(t, dir, func(tx *bolt.Tx) { tt.spoil(t, tx) })
			suspect(ledgerPath(dir, "p")) // as who meets it does
			b := openBare(t, dir)
			if away := b.c.SetAside(); away == nil || !exists(away.Path) {
				t.Error("the damaged ledger was not set aside")
			}
			a, err := b.c.Audit(t.Context())
			must(t, err)
			mustBalance(t, a)
			if want := tt.want(whole); a.Books != want {
				t.Errorf("%+v\nwant %+v", a.Books, want)
			}
			must(t, b.deliverAll(t))
			a, err = b.c.Audit(t.Context())
			must(t, err)
			mustBalance(t, a)
			b.close(t)
		})
	}
}

// spoilDeadLetter lets a bit of the first dead letter flip, under who has the ledger open.
func spoilDeadLetter(t *testing.T, dir string, c *Consumer) {
	t.Helper()
	var value []byte
	must(t, c.db.View(func(tx *bolt.Tx) error {
		_, v := tx.Bucket(bucketDead).Cursor().First()
		value = bytes.Clone(v)
		return nil
	}))
	f, err := os.OpenFile(ledgerPath(dir, "p"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	all, err := os.ReadFile(f.Name())
	must(t, err)
	found := 0
	for at := 0; ; at++ { // pages that are free may still have it, too
		i := bytes.Index(all[at:], value)
		if i < 0 {
			break
		}
		at += i
		found++
		_, err := f.WriteAt([]byte{value[9] ^ 1}, int64(at+9))
		must(t, err)
	}
	if found == 0 {
		t.Fatal("the dead letter is not in the file")
	}
}

// An audit that meets damage while the daemon runs sees to it that the next start
// mends it.
func TestDamageThatAnAuditFinds(t *testing.T) {
	dir := t.TempDir()
	lived(t, dir)
	b := openBare(t, dir)
	spoilDeadLetter(t, dir, b.c)
	a, err := b.c.Audit(t.Context())
	must(t, err)
	if len(a.Differences) != 2 || !slices.ContainsFunc(a.Notes, func(n string) bool { return strings.Contains(n, "the next start sets the ledger aside") }) {
		t.Errorf("%+v", a)
	}
	dead := a.Books.Dead
	b.close(t)
	b = openBare(t, dir)
	a, err = b.c.Audit(t.Context())
	must(t, err)
	mustBalance(t, a)
	if a.Books.Dead != dead-1 || a.Books.Lost != 1 {
		t.Errorf("%+v", a.Books)
	}
	b.close(t)
}

// What is damaged and nobody misses is deleted by the next start, also where it was met while ampcio did not run.
func TestAStartDeletesWhatIsLeftOut(t *testing.T) {
	dir := quickDir(t)
	lived(t, dir)
	before := audited(t, dir)
	editLedger(t, dir, func(tx *bolt.Tx) {
		flipFirst(t, tx, bucketSent, bucketRetry, bucketTally)
	})
	as, err := AuditFiles(t.Context(), dir)
	must(t, err)
	if len(as) != 1 || len(as[0].Differences) != 3 {
		t.Fatalf("%+v", as)
	}
	b := openBare(t, dir)
	if away := b.c.SetAside(); away != nil {
		t.Errorf("%+v was set aside", away)
	}
	b.close(t)
	as, err = AuditFiles(t.Context(), dir)
	must(t, err)
	mustBalance(t, as[0])
	if as[0].Books != before.Books {
		t.Errorf("%+v\nwant %+v", as[0].Books, before.Books)
	}
}

// So does a forgetting: it is tried again at each start, and would fail for ever.
func TestDamageThatAForgettingFinds(t *testing.T) {
	dir := t.TempDir()
	lived(t, dir)
	b := openBare(t, dir)
	spoilDeadLetter(t, dir, b.c)
	tomb, err := b.log.ForgetLanes(t.Context(), "app", Forgetting{Lanes: []string{"nobody"}}, func(uint64) error { return nil })
	must(t, err)
	if _, err := b.c.Forget(t.Context(), nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("it was forgotten, although a dead letter cannot be read: %v", err)
	}
	b.close(t)
	b = openBare(t, dir)
	defer b.close(t)
	if b.c.SetAside() == nil {
		t.Error("the damaged ledger was not set aside")
	}
	if _, err := b.c.Forget(t.Context(), nil); err != nil {
		t.Error("the next start does not forget either:", err)
	}
	must(t, b.log.FinishForgetting(tomb.ID))
}
