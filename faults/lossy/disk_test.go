package lossy

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// story is a disk after operations.
func story(strict bool, ops ...Op) *Disk {
	d := NewDisk(strict)
	for _, o := range ops {
		d.Apply(o)
	}
	return d
}

func create(name string, id uint64) Op { return Op{Kind: Create, Node: Root, Name: name, Child: id} }
func write(id uint64, off int64, s string) Op {
	return Op{Kind: Write, Node: id, Off: off, Data: []byte(s)}
}

var (
	syncRoot = Op{Kind: SyncDir, Node: Root}
	syncTwo  = Op{Kind: Sync, Node: 2}
)

func text(c Content) string {
	b := make([]byte, c.Size)
	return string(b[:c.ReadAt(b, 0)])
}

func TestWhatIsSyncedIsKeptAndTheRestIsNot(t *testing.T) {
	rename := Op{Kind: Rename, Node: Root, Name: "a", To: Root, New: "b", Child: 2}
	for _, c := range []struct {
		name   string
		strict bool
		ops    []Op
		drop   map[string]string // after dropping all that was not synced
		keep   map[string]string // after keeping all
	}{
		{"nothing is synced", false, []Op{create("a", 2), write(2, 0, "x")}, map[string]string{}, map[string]string{"a": "x"}},
		{"a new file's sync keeps its name", false, []Op{create("a", 2), write(2, 0, "x"), syncTwo}, map[string]string{"a": "x"}, map[string]string{"a": "x"}},
		{"but not on a strict disk", true, []Op{create("a", 2), write(2, 0, "x"), syncTwo}, map[string]string{}, map[string]string{"a": "x"}},
		{"a name without content", true, []Op{create("a", 2), write(2, 0, "x"), syncRoot}, map[string]string{"a": ""}, map[string]string{"a": "x"}},
		{"a later write is lost", true, []Op{create("a", 2), write(2, 0, "xyz"), syncTwo, syncRoot, write(2, 1, "Y")}, map[string]string{"a": "xyz"}, map[string]string{"a": "xYz"}},
		{"a truncate is lost", true, []Op{create("a", 2), write(2, 0, "xyz"), syncTwo, syncRoot, {Kind: Truncate, Node: 2, Off: 1}}, map[string]string{"a": "xyz"}, map[string]string{"a": "x"}},
		{"a file that grows has zeros", true, []Op{create("a", 2), syncRoot, write(2, 2, "z"), syncTwo}, map[string]string{"a": "\x00\x00z"}, map[string]string{"a": "\x00\x00z"}},
		{"what was cut off does not come back", true, []Op{create("a", 2), syncRoot, write(2, 0, "xyz"), {Kind: Truncate, Node: 2, Off: 1}, {Kind: Truncate, Node: 2, Off: 3}, syncTwo}, map[string]string{"a": "x\x00\x00"}, map[string]string{"a": "x\x00\x00"}},
		{"a rename is lost", true, []Op{create("a", 2), syncRoot, rename}, map[string]string{"a": ""}, map[string]string{"b": ""}},
		{"a rename is kept", true, []Op{create("a", 2), syncRoot, rename, syncRoot}, map[string]string{"b": ""}, map[string]string{"b": ""}},
		{"a file that was replaced comes back", true, []Op{create("b", 3), write(3, 0, "old"), {Kind: Sync, Node: 3}, create("a", 2), write(2, 0, "new"), syncTwo, syncRoot, rename}, map[string]string{"a": "new", "b": "old"}, map[string]string{"b": "new"}},
		{"a removed file comes back", false, []Op{create("a", 2), write(2, 0, "x"), syncTwo, {Kind: Remove, Node: Root, Name: "a", Child: 2}}, map[string]string{"a": "x"}, map[string]string{}},
		{"a removed file is gone", false, []Op{create("a", 2), write(2, 0, "x"), syncTwo, {Kind: Remove, Node: Root, Name: "a", Child: 2}, syncRoot}, map[string]string{}, map[string]string{}},
		{"a forgetful sync", true, []Op{create("a", 2), syncRoot, write(2, 0, "xy"), {Kind: Sync, Node: 2, Forgets: true}, write(2, 1, "Y"), syncTwo}, map[string]string{"a": "\x00Y"}, map[string]string{"a": "\x00Y"}},
		{"a folder without a name takes its files along", true, []Op{{Kind: Mkdir, Node: Root, Name: "d", Child: 3}, {Kind: Create, Node: 3, Name: "a", Child: 2}, syncTwo, {Kind: SyncDir, Node: 3}}, map[string]string{}, map[string]string{"d/a": ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := story(c.strict, c.ops...)
			r := rand.New(rand.NewPCG(1, 1))
			for way, want := range map[Way]map[string]string{DropAll: c.drop, KeepAll: c.keep} {
				im := d.Image(r, way, 0)
				got := map[string]string{}
				for p, b := range im.Files {
					got[p] = text(b)
				}
				if len(got) != len(want) {
					t.Errorf("%v: %q, want %q", way, got, want)
				}
				for p, s := range want {
					if b, ok := got[p]; !ok || b != s {
						t.Errorf("%v: %q, want %q", way, got, want)
					}
				}
			}
		})
	}
}

// TestEveryWayOfLosingIsMet draws images of one large write over old content, and of a second one behind it.
func TestEveryWayOfLosingIsMet(t *testing.T) {
	const size = 4 * pageSize
	old, first, second := strings.Repeat("o", size), strings.Repeat("f", size), strings.Repeat("s", size)
	d := story(true, create("a", 2), syncRoot, write(2, 0, old), syncTwo, write(2, 0, first), write(2, 0, second))
	r := rand.New(rand.NewPCG(1, 1))
	for way := DropAll; way < Ways; way++ {
		seen := map[string]bool{}
		for range 2000 {
			b := d.Image(r, way, 0.5).Files["a"].Data
			if len(b) != size {
				t.Fatalf("%v: %d bytes", way, len(b))
			}
			for off := 0; off < size; off += sectorSize { // no sector is ever torn
				if s := b[off : off+sectorSize]; !bytes.Equal(s, bytes.Repeat(s[:1], sectorSize)) {
					t.Fatalf("%v: a torn sector", way)
				}
			}
			seen[string(b[0])+string(b[sectorSize])+string(b[size-1])] = true
		}
		has := func(s string) bool { return seen[s] }
		pages := has("oof") && has("ffo") && has("sso") && has("oos")
		sectors := has("ofs") && has("sof")
		whole := has("ooo") || has("fff") || has("sss")
		want := map[Way][3]bool{DropAll: {false, false, true}, KeepAll: {false, false, true}, Torn: {false, false, true}, Writes: {false, false, true}, Pages: {true, false, true}, Sectors: {true, true, true}}[way]
		if got := [3]bool{pages, sectors, whole}; got != want {
			t.Errorf("%v: %v: pages, sectors, whole %v, want %v", way, seen, got, want)
		}
		if way == Torn && !(has("ffo") && has("ssf") && has("sff") && has("ooo") && has("foo")) {
			t.Errorf("torn: %v", seen)
		}
		if way == Torn && (has("sso") || has("oof")) {
			t.Errorf("torn: a later write is there without an earlier one: %v", seen)
		}
	}
}

// TestAnImageIsTheSeeds draws the same image from the same seed, though maps have no order.
func TestAnImageIsTheSeeds(t *testing.T) {
	for seed := range uint64(50) {
		draw := func() Image {
			var ops []Op
			for id := uint64(2); id < 12; id++ {
				ops = append(ops, create(strings.Repeat("n", int(id)), id), write(id, 0, strings.Repeat("x", 9000)))
			}
			r := rand.New(rand.NewPCG(seed, 1))
			way, survive := AnyWay(r)
			return story(seed%2 == 0, ops...).Image(r, way, survive)
		}
		a, b := draw(), draw()
		for p := range a.Files {
			if text(a.Files[p]) != text(b.Files[p]) {
				t.Fatalf("seed %d: %s differs", seed, p)
			}
		}
		if len(a.Files) != len(b.Files) {
			t.Fatalf("seed %d: %d and %d files", seed, len(a.Files), len(b.Files))
		}
	}
}

func TestAnImageThatIsTakenOverIsDurable(t *testing.T) {
	im := Image{Folders: []string{"d", "d/e"}, Files: map[string]Content{"a": {[]byte("x"), 3}, "d/e/b": {[]byte("y"), 1}}}
	d := NewDisk(true)
	d.From(im)
	got := d.Image(nil, DropAll, 0)
	if len(got.Files) != 2 || text(got.Files["d/e/b"]) != "y" || text(got.Files["a"]) != "x\x00\x00" || len(got.Folders) != 2 || d.Unsynced() != 0 {
		t.Errorf("%v, %d not durable", got, d.Unsynced())
	}
}

func TestAnImageGoesToAFolderAndComesBack(t *testing.T) {
	data := append(make([]byte, 200_000), "end"...)
	im := Image{Folders: []string{"d", "d/e"}, Files: map[string]Content{"a": {[]byte("x"), 1 << 20}, "d/e/b": {data, int64(len(data))}, "d/c": {}, "z": {nil, 5000}}}
	dir := filepath.Join(t.TempDir(), "image")
	if err := im.WriteTo(dir); err != nil {
		t.Fatal(err)
	}
	got, err := ReadImage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Folders, im.Folders) || len(got.Files) != len(im.Files) {
		t.Errorf("%v, %d files", got.Folders, len(got.Files))
	}
	for p, c := range im.Files {
		if text(got.Files[p]) != text(c) {
			t.Errorf("%s: %d bytes, want %d", p, got.Files[p].Size, c.Size)
		}
	}
	if n := len(got.Files["a"].Data); n > 8192 {
		t.Errorf("%d bytes were read of a sparse file", n)
	}
}

// TestALifeThatIsDoneLeavesItsImages: what gets its memory changes none of them.
func TestALifeThatIsDoneLeavesItsImages(t *testing.T) {
	const size = 2 * spareBytes
	fill := func(b byte) []byte { return bytes.Repeat([]byte{b}, size) }
	im := Image{Files: map[string]Content{"disk": {Data: fill('a'), Size: size}}}
	life := func(b byte) (synced, loose Image) {
		l := &Life{cut: make(chan struct{}), disk: NewDisk(false)}
		l.disk.From(im)
		id, _, _ := l.disk.Lookup(Root, "disk")
		l.disk.Apply(Op{Kind: Write, Node: id, Data: fill(b)})
		l.disk.Apply(Op{Kind: Sync, Node: id})
		synced = l.Image(nil, DropAll, 0)
		l.disk.Apply(Op{Kind: Write, Node: id, Data: []byte("x")})
		loose = l.Image(nil, KeepAll, 0)
		l.Done()
		return synced, loose
	}
	is := func(im Image, begin string, rest byte) {
		t.Helper()
		if want := append([]byte(begin), fill(rest)[len(begin):]...); !bytes.Equal(im.Files["disk"].Data, want) {
			t.Errorf("an image begins with %q, not with %q and %q", im.Files["disk"].Data[:8], begin, rest)
		}
	}
	synced, loose := life('b')
	im = im.Instead(synced)
	for range mostSpare {
		life('c')
	}
	is(im, "", 'b')
	is(loose, "x", 'b')
	if len(spare.list) == 0 {
		t.Error("no memory is used again")
	}
}

// TestTheListOfNamesIsThatOfTheDisk: images are the same whether the list of names is that of the image before or a new one.
func TestTheListOfNamesIsThatOfTheDisk(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	d, next, again := NewDisk(true), uint64(Root), 0
	names := []string{"a", "b", "c"}
	for range 2000 {
		switch name, to := names[r.IntN(3)], names[r.IntN(3)]; r.IntN(6) {
		case 0:
			if next++; d.Names(Root)[name] == 0 {
				d.Apply(Op{Kind: Create, Node: Root, Name: name, Child: next})
			}
		case 1:
			if id := d.Names(Root)[name]; id != 0 {
				d.Apply(Op{Kind: Remove, Node: Root, Name: name, Child: id})
			}
		case 2:
			if id := d.Names(Root)[name]; id != 0 && name != to {
				d.Apply(Op{Kind: Rename, Node: Root, Name: name, To: Root, New: to, Child: id})
			}
		case 3:
			if id := d.Names(Root)[name]; id != 0 {
				d.Apply(Op{Kind: Write, Node: id, Data: []byte(name)})
			}
		default:
			d.Apply(Op{Kind: SyncDir, Node: Root})
		}
		if d.listed != nil {
			again++
		}
		seed := r.Uint64()
		last := d.Image(rand.New(rand.NewPCG(seed, 0)), Writes, 0.5)
		kept := d.listed
		d.listed = nil
		if fresh := d.Image(rand.New(rand.NewPCG(seed, 0)), Writes, 0.5); !reflect.DeepEqual(last, fresh) {
			t.Fatalf("%v, and with a new list %v", last, fresh)
		}
		d.listed = kept
	}
	if again < 100 {
		t.Errorf("a list was used again only %d times", again)
	}
}
