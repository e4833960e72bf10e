package queue

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is what a log with one consumer promises, without a disk: the records in
// order, and which have ended, as of now and as of the last checkpoint.
type model struct {
	t       *rapid.T
	tb      testing.TB
	root    string
	life    int
	log     *Log
	c       *Consumer
	r       *Reader
	claims  []*Claim
	enabled bool

	texts   []string // of project app, by number; "" = not taken
	seqs    []uint64
	ended   map[int]Ending
	durable map[int]Ending
	// Those that had ended so, and were taken once more.
	rewound, rewoundDurable [endings]uint64
}

func (m *model) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) dir() string { return filepath.Join(m.root, fmt.Sprint(m.life)) }

func (m *model) open() {
	o := options(m.dir())
	o.RotateBytes = 60 << 10
	var err error
	m.log, err = Open(o)
	m.check(err)
	co := consumerOptions("p")
	co.Enabled, co.WindowBytes = m.enabled, 4096
	m.c, err = OpenConsumer(m.log, co)
	m.check(err)
	m.r = m.log.Reader(m.c.read)
	m.written()
}

// written says that all of now is on disk.
func (m *model) written() { m.durable, m.rewoundDurable = maps.Clone(m.ended), m.rewound }

// claimed says whether a lane has an open claim.
func (m *model) claimed(lane string) bool {
	return slices.ContainsFunc(m.claims, func(cl *Claim) bool { return cl.Lane() == lane })
}

// dead picks some dead letters, by number.
func (m *model) dead(t *rapid.T, but func(lane string) bool) (numbers []int, seqs []uint64) {
	for number := range m.texts {
		if m.ended[number] == Dead && !but(laneOf(m.texts[number])) && rapid.Bool().Draw(t, "this one") {
			numbers, seqs = append(numbers, number), append(seqs, m.seqs[number])
		}
	}
	return numbers, seqs
}

// crash goes on with the files as they are, and forgets the memory.
func (m *model) crash() {
	next := filepath.Join(m.root, fmt.Sprint(m.life+1))
	copyTree(m.tb, m.dir(), next)
	m.c.Close()
	m.log.Close()
	os.RemoveAll(m.dir())
	m.life++
	m.claims = nil
	m.ended, m.rewound = maps.Clone(m.durable), m.rewoundDurable
}

func (m *model) append(project string, texts []string) {
	b := &pending{batch: &texts_{project, texts}, done: make(chan error, 1)}
	m.check(commitNow(m.log, b))
	m.check(<-b.done)
	if m.log.spare != nil {
		m.check(m.log.prepare()) // no file comes and goes while a crash copies the folder
	}
	if project == "app" {
		for i, text := range texts {
			if !m.enabled {
				text = ""
			}
			m.texts = append(m.texts, text)
			m.seqs = append(m.seqs, m.log.Tail()-uint64(len(texts)-1-i))
		}
	}
}

// texts_ keeps its items, unlike texts, for rapid to print.
type texts_ struct {
	project string
	items   []string
}

func (b *texts_) Size() int       { return 1 }
func (b *texts_) Project() string { return b.project }
func (b *texts_) Resolve(w *Writer) error {
	return (&texts{project: b.project, items: b.items}).Resolve(w)
}

// end ends the first n records of a claim and checks that they are their lane's next.
func (m *model) end(cl *Claim, n int, ending Ending) {
	for _, r := range cl.Records()[:n] {
		var number int
		fmt.Sscanf(string(r.Body)[2:], "%d", &number)
		if m.texts[number] != string(r.Body) {
			m.t.Fatalf("%s is not record %d", r.Body, number)
		}
		for earlier := range number {
			if text := m.texts[earlier]; text != "" && laneOf(text) == r.Lane && m.ended[earlier] == 0 {
				m.t.Fatalf("%s before %s", r.Body, text)
			}
		}
		if m.ended[number] != 0 {
			m.t.Fatalf("%s ends twice", r.Body)
		}
		m.ended[number] = ending
	}
}

func TestModel(t *testing.T) {
	checks := "20"
	if testing.Short() || raceEnabled {
		checks = "5"
	}
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		f.Value.Set(checks)
		defer f.Value.Set(f.DefValue)
	}
	in := quickDir(t)
	tb := t
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp(in, "model")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		m := &model{t: t, tb: tb, root: root, enabled: true, texts: []string{""}, seqs: []uint64{0}, ended: map[int]Ending{}}
		m.open()
		defer func() { m.c.Close(); m.log.Close() }()
		pick := func(t *rapid.T) *Claim {
			if len(m.claims) == 0 {
				t.Skip("no claim")
			}
			i := rapid.IntRange(0, len(m.claims)-1).Draw(t, "claim")
			cl := m.claims[i]
			m.claims = slices.Delete(m.claims, i, i+1)
			return cl
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				var items []string
				for i := range rapid.IntRange(1, 60).Draw(t, "records") {
					lane := rapid.IntRange(0, 4).Draw(t, "lane")
					items = append(items, fmt.Sprintf("%d:%06d%s", lane, len(m.texts)+i, noise(uint64(i), 200)))
				}
				m.append("app", items)
			},
			"foreign": func(t *rapid.T) { m.append("web", []string{"w:" + noise(1, 9000)}) },
			"read": func(t *rapid.T) {
				if m.c.windowBytes < m.c.o.WindowBytes {
					chunk, _, err := m.r.look()
					m.check(err)
					if chunk != nil {
						m.check(m.c.take(chunk, m.c.epoch))
					}
				}
			},
			"claim": func(t *rapid.T) {
				if cl := m.c.TryClaim(); cl != nil {
					m.claims = append(m.claims, cl)
				}
			},
			"finish": func(t *rapid.T) {
				cl := pick(t)
				ending := Ending(rapid.IntRange(1, 3).Draw(t, "ending"))
				out := delivered(len(cl.Records()))
				for i := range out {
					out[i].Ending = ending
				}
				m.end(cl, len(out), ending)
				cl.Finish(out)
			},
			"partly": func(t *rapid.T) {
				cl := pick(t)
				n := rapid.IntRange(0, len(cl.Records())).Draw(t, "ended")
				cl.Trim(rapid.IntRange(max(n, 1), len(cl.Records())).Draw(t, "trim"))
				m.end(cl, n, Delivered)
				cl.Settle(delivered(n), 0, "again")
			},
			"return": func(t *rapid.T) { pick(t).Return() },
			"audit": func(t *rapid.T) {
				a, err := m.c.Audit(context.Background())
				m.check(err)
				m.written()
				if !a.Balanced() || len(a.Notes) > 0 || a.Counted != a.Books.Pending {
					t.Fatalf("%+v", a)
				}
			},
			"checkpoint": func(t *rapid.T) {
				m.check(m.c.checkpoint())
				m.written()
			},
			"checkpoint on a full disk": func(t *rapid.T) {
				full := m.log.o
				full.MinFree = 1 << 60
				m.log.SetLimits(full)
				m.check(m.c.checkpoint())
				m.log.SetLimits(m.log.o)
				m.written()
			},
			"set aside": func(t *rapid.T) {
				lane := fmt.Sprint(rapid.IntRange(0, 4).Draw(t, "lane"))
				m.c.mu.Lock()
				defer m.c.mu.Unlock()
				if l := m.c.lanes.byKey[lane]; l != nil && l.aside == nil && len(l.records) > 0 {
					m.c.moveAside(l)
				}
			},
			"replay": func(t *rapid.T) {
				numbers, seqs := m.dead(t, m.claimed)
				n, err := m.c.ReplayDead(append(seqs, 1<<40))
				m.check(err)
				if n != len(seqs) {
					t.Fatalf("%d of %d dead letters", n, len(seqs))
				}
				for _, number := range numbers {
					delete(m.ended, number)
				}
				m.written()
			},
			"drop": func(t *rapid.T) {
				numbers, seqs := m.dead(t, func(string) bool { return false })
				n, err := m.c.DropDead(seqs)
				m.check(err)
				if n != len(seqs) {
					t.Fatalf("%d of %d dead letters", n, len(seqs))
				}
				for _, number := range numbers {
					m.ended[number] = Discarded
				}
				m.written()
			},
			"rewind": func(t *rapid.T) {
				for _, cl := range m.claims {
					cl.Return()
				}
				m.claims = nil
				from := rapid.IntRange(0, len(m.texts)-1).Draw(t, "from")
				again := uint64(0)
				for number := from; number < len(m.texts); number++ {
					if e := m.ended[number]; e != 0 && e != Dead {
						again++
					}
				}
				re, err := m.c.Rewind(t.Context(), int64(m.seqs[from])*1000, false, false)
				if errors.Is(err, ErrNotKept) {
					return
				}
				m.check(err)
				if re.Records != again {
					t.Fatalf("%+v, want %d", re, again)
				}
				for number := from; number < len(m.texts); number++ {
					if e := m.ended[number]; e != Dead { // a dead letter is none any more
						m.rewound[e]++
					}
					delete(m.ended, number)
				}
				m.rewound[0] = 0
				m.r = m.log.Reader(m.c.read)
				m.written()
			},
			"clean": func(t *rapid.T) { m.log.clean() },
			"crash": func(t *rapid.T) { m.crash(); m.open() },
			"toggle": func(t *rapid.T) {
				m.crash()
				m.enabled = !m.enabled
				m.open()
			},
			"": func(t *rapid.T) {
				st, err := m.c.Stats()
				m.check(err)
				past := m.rewound
				want := Books{Delivered: past[Delivered], Filtered: past[Filtered], Discarded: past[Discarded]}
				for _, n := range past {
					want.Rewound += n
				}
				for number, text := range m.texts {
					if text == "" {
						continue
					}
					want.Taken++
					switch m.ended[number] {
					case Delivered:
						want.Delivered++
					case Filtered:
						want.Filtered++
					case Dead:
						want.Dead++
					case Discarded:
						want.Discarded++
					default:
						want.Pending++
					}
				}
				if st.Books != want {
					t.Fatalf("books %+v, want %+v", st.Books, want)
				}
			},
		})
	})
}
