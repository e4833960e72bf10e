package queue

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

var plain = DBOptions{Buckets: []string{"b"}, Format: 3}

// makeDB makes a file of n commits: key "n" holds the number of the last.
func makeDB(t testing.TB, path string, n int) {
	t.Helper()
	db, err := OpenDB(path, plain)
	must(t, err)
	for i := range n {
		must(t, db.Update(func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("b")).Put([]byte("n"), []byte{byte(i + 1)})
		}))
	}
	must(t, db.Close())
}

func lastCommit(t testing.TB, path string) int {
	t.Helper()
	db, err := OpenDB(path, plain)
	must(t, err)
	defer db.Close()
	n := 0
	must(t, db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket([]byte("b")).Get([]byte("n")); v != nil {
			n = int(v[0])
		}
		return nil
	}))
	return n
}

// edit changes bytes of a file in place.
func edit(t testing.TB, path string, f func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, f(b), 0o600))
}

func metaAt(t testing.TB, path string, page int) metaPage {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	m, ok := readMeta(f, int64(page*os.Getpagesize()))
	if !ok {
		t.Fatalf("meta page %d is not whole", page)
	}
	return m
}

func TestMetaPages(t *testing.T) {
	const page = 4096
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 4; return b }
	}
	for _, tt := range []struct {
		name    string
		commits int // the meta pages take turns: with an odd number another one is the newest
		change  func([]byte) []byte
		want    func(commits, newest int) int
		err     error
	}{
		{"whole", 5, nil, func(n, newest int) int { return n }, nil},
		{"first torn", 5, flip(30), func(n, newest int) int { return n - 1 + newest }, nil},
		{"first torn", 6, flip(30), func(n, newest int) int { return n - 1 + newest }, nil},
		{"second torn", 5, flip(page + 40), func(n, newest int) int { return n - newest }, nil},
		{"second torn", 6, flip(page + 40), func(n, newest int) int { return n - newest }, nil},
		{"first all zero", 6, func(b []byte) []byte { clear(b[:page]); return b }, func(n, newest int) int { return n - 1 + newest }, nil},
		{"both torn", 5, func(b []byte) []byte { b[30] ^= 1; b[page+30] ^= 1; return b }, nil, ErrDamaged},
		{"empty", 5, func(b []byte) []byte { return nil }, nil, ErrDamaged},
		{"one byte", 5, func(b []byte) []byte { return b[:1] }, nil, ErrDamaged},
		{"one page", 5, func(b []byte) []byte { return b[:page] }, nil, ErrDamaged},
		{"cut within", 5, func(b []byte) []byte { return b[:4*page] }, nil, ErrDamaged},
		{"something else", 5, func(b []byte) []byte { return bytes.Repeat([]byte("not a database\n"), 2000) }, nil, ErrDamaged},
	} {
		t.Run(fmt.Sprintf("%s, %d commits", tt.name, tt.commits), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.db")
			makeDB(t, path, tt.commits)
			newest := 0
			if metaAt(t, path, 1).txid > metaAt(t, path, 0).txid {
				newest = 1
			}
			if tt.change != nil {
				edit(t, path, tt.change)
			}
			before, err := os.ReadFile(path)
			must(t, err)
			if tt.err != nil {
				if _, err := OpenDB(path, plain); !errors.Is(err, tt.err) {
					t.Fatalf("%v, want %v", err, tt.err)
				}
				if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
					t.Fatal("the file was changed")
				}
				return
			}
			if got, want := lastCommit(t, path), tt.want(tt.commits, newest); got != want {
				t.Fatalf("opened at commit %d, want %d (newest meta page: %d)", got, want, newest)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Fatal("an open changes no byte")
			}
		})
	}
}

func TestTheNewestMetaPageIsWrittenAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	makeDB(t, path, 5)
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(path, old, old))
	o := plain
	o.ReadOnly = true
	db, err := OpenDB(path, o)
	must(t, err)
	must(t, db.Close())
	if st, _ := os.Stat(path); !st.ModTime().Equal(old.Truncate(1)) {
		t.Fatal("a read-only open has written")
	}
	lastCommit(t, path)
	if st, _ := os.Stat(path); st.ModTime().Equal(old.Truncate(1)) {
		t.Fatal("nothing was written")
	}
}

// What a crash leaves at each step of the creation of a file.
func TestAFileIsBornWhole(t *testing.T) {
	for _, leftover := range []string{"", "half", "whole"} {
		path := filepath.Join(t.TempDir(), "x.db")
		switch leftover {
		case "half":
			write(t, path+newSuffix, "half a file")
		case "whole":
			makeDB(t, path+newSuffix, 3)
		}
		if got := lastCommit(t, path); got != 0 {
			t.Fatalf("leftover %q was taken for the file: commit %d", leftover, got)
		}
		if exists(path + newSuffix) {
			t.Fatalf("%q is left over", leftover)
		}
	}
	o := plain
	o.ReadOnly = true
	if _, err := OpenDB(filepath.Join(t.TempDir(), "x.db"), o); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("read-only never creates: %v", err)
	}
}

func TestFormats(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	makeDB(t, path, 3)
	older, newer := plain, plain
	older.Format, newer.Format = 2, 4
	before, _ := os.ReadFile(path)
	if _, err := OpenDB(path, older); !errors.Is(err, ErrNewerFormat) {
		t.Fatalf("written by a newer version: %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Fatal("the file was changed")
	}
	db, err := OpenDB(path, newer)
	must(t, err)
	must(t, db.Close())
	foreign := plain
	foreign.Buckets = []string{"another"}
	if _, err := OpenDB(path, foreign); !errors.Is(err, ErrDamaged) {
		t.Fatalf("not ours: %v", err)
	}
}

func TestALogOfANewerVersionIsLeftAlone(t *testing.T) {
	newer := func(path string, o DBOptions) func(t *testing.T) {
		return func(t *testing.T) {
			db, err := OpenDB(path, o)
			must(t, err)
			must(t, db.Update(func(tx *bolt.Tx) error { return put(tx.Bucket(bucketMeta), keyFormat, []byte{99}) }))
			must(t, db.Close())
		}
	}
	for _, what := range []string{"log", "log whose free list is damaged", "ledger", "chunk"} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			h, cs := mustOpen(t, options(dir), "p")
			h.fill("app", 10, 0)
			h.close(cs)
			path := logPaths(t, dir)[0]
			switch what {
			case "log":
				newer(path, logOptions(0))(t)
			case "log whose free list is damaged":
				newer(path, logOptions(0))(t)
				f, err := os.Open(path)
				must(t, err)
				m, err := newestMeta(f)
				must(t, errors.Join(err, f.Close()))
				edit(t, path, func(b []byte) []byte { b[int64(m.freelist)*m.pageSize+8] ^= 1; return b })
			case "ledger":
				path = ledgerPath(dir, "p")
				newer(path, ledgerOptions())(t)
			case "chunk":
				db, err := OpenDB(path, logOptions(0))
				must(t, err)
				must(t, db.Update(func(tx *bolt.Tx) error {
					b := tx.Bucket(bucketLog).Bucket(seqKey(1))
					v := bytes.Clone(b.Get(seqKey(1)))
					v[0] = 9
					return b.Put(seqKey(1), resum(1, v))
				}))
				must(t, db.Close())
			}
			write(t, filepath.Join(dir, "log", spareName), "a spare of the newer version")
			before, _ := os.ReadFile(path)
			l, err := Open(options(dir))
			if what == "chunk" {
				// The file can be opened; who reads the chunk stops.
				must(t, err)
				_, err = l.Reader(0).Try()
				defer l.Close()
			}
			if !errors.Is(err, ErrNewerFormat) {
				t.Fatal(err)
			}
			if after, _ := os.ReadFile(path); what != "chunk" && !bytes.Equal(before, after) {
				t.Fatal("the file was changed")
			}
			if what != "chunk" && !exists(filepath.Join(dir, "log", spareName)) {
				t.Fatal("the folder was changed")
			}
		})
	}
}

func resum(first uint64, v []byte) []byte {
	s := chunkSum(first, v)
	v[1], v[2], v[3], v[4] = byte(s>>24), byte(s>>16), byte(s>>8), byte(s)
	return v
}

func init() {
	roles["hold"] = func(path string) {
		db, err := OpenDB(path, plain)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("open")
		bufio.NewReader(os.Stdin).ReadString('\n')
		db.Close()
	}
}

func TestAFileThatAnotherProcessHasOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	makeDB(t, path, 3)
	cmd := child(t, "hold", path)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("child: %q", line)
	}
	if _, err := OpenDB(path, plain); !errors.Is(err, ErrLocked) {
		t.Fatalf("%v, want ErrLocked", err)
	}
	in.Close()
	must(t, cmd.Wait())
	if lastCommit(t, path) != 3 {
		t.Fatal("the file was changed")
	}
}

// bbolt panics within Open on such a free list; neither its lock nor its descriptor
// may stay behind, or nobody could salvage what the file holds.
func TestAPanicInOpenLetsTheFileGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	makeDB(t, path, 5)
	edit(t, path, func(b []byte) []byte {
		m, other := metaAt(t, path, 0), metaAt(t, path, 1)
		if other.txid > m.txid {
			m = other
		}
		free := m.bytes[boltPageHeader+32]
		b[int(free)*os.Getpagesize()+8] = 0x55 // page flags
		return b
	})
	if _, err := OpenDB(path, plain); !errors.Is(err, ErrDamaged) {
		t.Fatalf("%v, want ErrDamaged", err)
	}
	o := plain
	o.ReadOnly = true
	begun := time.Now()
	db, err := OpenDB(path, o)
	must(t, err)
	must(t, db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket([]byte("b")).Get([]byte("n")); !bytes.Equal(v, []byte{5}) {
			t.Errorf("read %v", v)
		}
		return nil
	}))
	must(t, db.Close())
	if took := time.Since(begun); took > time.Second {
		t.Fatalf("waited %s for a lock", took)
	}
}

func TestGuard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mapped")
	must(t, os.WriteFile(path, make([]byte, 3*os.Getpagesize()), 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	m, err := syscall.Mmap(int(f.Fd()), 0, 3*os.Getpagesize(), syscall.PROT_READ, syscall.MAP_SHARED)
	must(t, err)
	defer syscall.Munmap(m)
	must(t, f.Truncate(1))
	var sum byte
	err = Guard(func() error { sum += m[2*os.Getpagesize()]; return nil })
	if !errors.Is(err, ErrDamaged) {
		t.Fatalf("a fault in mapped memory: %v", err)
	}
	own := errors.New("own")
	if err := Guard(func() error { return own }); err != own {
		t.Fatal(err)
	}
	err = Guard(func() error {
		inner := Guard(func() error { panic("inner") })
		if !errors.Is(inner, ErrDamaged) {
			t.Error(inner)
		}
		sum += m[2*os.Getpagesize()] // still guarded
		return nil
	})
	if !errors.Is(err, ErrDamaged) || strings.Contains(err.Error(), "inner") {
		t.Fatal(err)
	}
}
