package archive

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// Lines of these tests begin with their time.
func timeOf(text []byte) int64 {
	n, _ := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
	return n
}

func gzipped(text string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write([]byte(text))
	w.Close()
	return b.Bytes()
}

// zipped makes a zip of name, content, …; members named .gz are gzipped.
func zipped(t testing.TB, members ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		m, err := w.Create(members[i])
		if err != nil {
			t.Fatal(err)
		}
		content := []byte(members[i+1])
		if strings.HasSuffix(members[i], ".gz") {
			content = gzipped(members[i+1])
		}
		m.Write(content)
	}
	w.Close()
	return b.Bytes()
}

func file(t testing.TB, folder, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, paths ...string) *Set {
	t.Helper()
	s, err := Open(paths)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// all gives the texts of a set, part by part.
func all(t testing.TB, s *Set, newestFirst bool) (texts []string) {
	t.Helper()
	for _, p := range s.Parts() {
		number := uint64(0)
		err := p.Lines(newestFirst, timeOf, func(l *Line) error {
			if number++; l.Number != number {
				t.Errorf("line %d has number %d", number, l.Number)
			}
			texts = append(texts, string(l.Text))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

func TestHoursComeInOrderAndTheirPartsAsOne(t *testing.T) {
	folder := t.TempDir()
	z := file(t, folder, "export.zip", zipped(t,
		"123/123_2026-11-20_10#0.json.gz", "100 a\n103 b\n",
		"123/123_2026-11-20_9#0.json.gz", "92 c\n90 d\n\n  \n",
		"123/123_2026-11-20_10#10.json.gz", "101 e\r\n102 f",
		"123/123_2026-11-20_10#2.json", "101 g\n",
		"123/123_2026-11-19_23#0.json.gz", "80 h\n",
		"123/complete", "",
	))
	s := open(t, z)
	got := strings.Join(all(t, s, false), ", ")
	if want := "80 h, 90 d, 92 c, 100 a, 101 g, 101 e, 102 f, 103 b"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if len(s.Parts()) != 3 || len(s.Ignored) != 1 {
		t.Errorf("%d parts, ignored %v", len(s.Parts()), s.Ignored)
	}
	backwards := strings.Join(all(t, s, true), ", ")
	if want := "80 h, 92 c, 90 d, 103 b, 102 f, 101 e, 101 g, 100 a"; backwards != want {
		t.Errorf("got  %s\nwant %s", backwards, want)
	}
}

// The same lines have the same digest and numbers, however they are packed; others have not.
func TestDigestIsOfTheLines(t *testing.T) {
	const a, b = "1 a\n3 c\n", "2 b\n4 d\n"
	first, second := "app_2026-11-20_7#0.json", "app_2026-11-20_7#1.json"
	digest := func(paths ...string) string {
		s := open(t, paths...)
		if len(s.Parts()) != 1 {
			t.Fatalf("%d parts", len(s.Parts()))
		}
		if got := strings.Join(all(t, s, false), ","); got != "1 a,2 b,3 c,4 d" && !strings.Contains(got, "x") {
			t.Errorf("lines %s", got)
		}
		d, n, err := s.Parts()[0].Look(func(*Line) error { return nil })
		if err != nil || n != 4 {
			t.Fatal(n, err)
		}
		return fmt.Sprintf("%x", d)
	}
	folder := t.TempDir()
	want := digest(file(t, folder, "gz.zip", zipped(t, "1/"+first+".gz", a, "1/"+second+".gz", b)))
	inFolder := filepath.Dir(file(t, folder, "folder/"+first, []byte(a)))
	file(t, folder, "folder/"+second+".gz", gzipped(b))
	same := map[string]string{
		"plain members":    digest(file(t, folder, "plain.zip", zipped(t, "1/"+second, b, "1/"+first, a))),
		"a folder":         digest(inFolder),
		"files one by one": digest(file(t, folder, "files/"+second+".gz", gzipped(b)), file(t, folder, "files/"+first, []byte(a))),
	}
	for how, got := range same {
		if got != want {
			t.Errorf("%s: %s, want %s", how, got, want)
		}
	}
	if other := digest(file(t, folder, "other.zip", zipped(t, "1/"+first+".gz", a, "1/"+second+".gz", "2 b\n4 x\n"))); other == want {
		t.Error("another line, the same digest")
	}
}

// A part that is larger than the window is sorted as far as that reaches, and comes whole, and each time the same.
func TestAWindowOfLines(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	members := []string{}
	for part := range 3 {
		var text strings.Builder
		for i := range 400 {
			fmt.Fprintf(&text, "%d %d-%d\n", 10*i+rng.IntN(100), part, i)
		}
		members = append(members, fmt.Sprintf("app_2026-11-20_7#%d.json.gz", part), text.String())
	}
	s := open(t, file(t, t.TempDir(), "export.zip", zipped(t, members...)))
	read := func() (texts []string, late int) {
		last := int64(0)
		err := s.Parts()[0].lines(false, 60*(lineBytes+10), timeOf, func(l *Line) error {
			if l.Time < last {
				late++
			}
			last = max(last, l.Time)
			texts = append(texts, string(l.Text))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return texts, late
	}
	first, late := read()
	again, _ := read()
	if len(first) != 1200 || late != 0 || strings.Join(first, "\n") != strings.Join(again, "\n") {
		t.Errorf("%d lines, %d late, the same again: %v", len(first), late, strings.Join(first, "\n") == strings.Join(again, "\n"))
	}
}

func TestInputThatIsWrong(t *testing.T) {
	folder := t.TempDir()
	whole := gzipped(strings.Repeat("1 some line that is packed well\n", 5000))
	cutZip := zipped(t, "a.json.gz", "1 a\n")
	tests := []struct{ name, path, want string }{
		{"no file", filepath.Join(folder, "none"), "no such file"},
		{"a zip that is cut", file(t, folder, "cut.zip", cutZip[:len(cutZip)-10]), "not whole"},
		{"a gzip that is cut", file(t, folder, "cut.gz", whole[:len(whole)-20]), "not whole"},
		{"a gzip that is damaged", file(t, folder, "bad.gz", append(append(bytes.Clone(whole[:20]), 0xff, 0xff, 0xff), whole[23:]...)), "bad.gz"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, err := Open([]string{test.path})
			if err == nil {
				defer s.Close()
				_, _, err = s.Parts()[0].Look(func(*Line) error { return nil })
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestLinesOfAnyLength(t *testing.T) {
	long := "3 " + strings.Repeat("x", 300_000)
	text := "\ufeff1 a\n" + long + "\n2 " + strings.Repeat("y", MaxLine+100) + "\n5 z"
	s, err := Spool(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []string
	if _, _, err := s.Parts()[0].Look(func(l *Line) error { got = append(got, fmt.Sprint(l.At(), " ", len(l.Text))); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("stdin:1 3, stdin:2 %d, stdin:3 %d, stdin:4 3", len(long), MaxLine+1); strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}
}

func TestAFolder(t *testing.T) {
	folder := t.TempDir()
	file(t, folder, "b/x.json", []byte("2 b\n"))
	file(t, folder, "a/x.json.gz", gzipped("1 a\n"))
	file(t, folder, "a/export.zip", zipped(t, "app_2026-11-20_7#0.json.gz", "7 z\n"))
	file(t, folder, "a/README.md", []byte("no archive"))
	file(t, folder, ".hidden/x.json", []byte("3 c\n"))
	s := open(t, folder)
	if got := strings.Join(all(t, s, false), ","); got != "7 z,1 a,2 b" {
		t.Errorf("lines %s", got)
	}
	if len(s.Ignored) != 1 || filepath.Base(s.Ignored[0]) != "README.md" {
		t.Errorf("ignored %v", s.Ignored)
	}
}

// FuzzArchive opens what claims to be an archive: it is refused, or its lines come to an end.
func FuzzArchive(f *testing.F) {
	f.Add(gzipped("{\"t\":1}\n{\"t\":2}\n"))
	f.Add(zipped(f, "1/app_2026-11-20_7#0.json.gz", string(gzipped("{\"t\":1}\n")), "1/app_2026-11-20_7#1.json", "{\"t\":2}\n"))
	f.Add([]byte("{\"t\":1}\n{\"t\""))
	f.Add([]byte("PK\x03\x04"))
	f.Add([]byte("\x1f\x8b"))
	path := filepath.Join(f.TempDir(), "archive")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open([]string{path})
		if err != nil {
			return
		}
		defer s.Close()
		for _, p := range s.Parts() {
			lines := 0
			err := p.Lines(false, timeOf, func(l *Line) error {
				if lines++; len(l.Text) > 1<<20 {
					return errors.New("enough")
				}
				return nil
			})
			if _, n, lookErr := p.Look(func(*Line) error { return nil }); err == nil && (lookErr != nil || int(n) < lines) {
				t.Fatalf("%d lines by one look, %d and %v by another", lines, n, lookErr)
			}
		}
	})
}

// A folder may be given by a link to it, and is read as it is by its own name.
func TestALinkToAFolder(t *testing.T) {
	folder := t.TempDir()
	file(t, folder, "app_2026-01-01_5#0.json.gz", gzipped("1 a\n"))
	link := filepath.Join(t.TempDir(), "archives")
	if err := os.Symlink(folder, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{folder, link} {
		s := open(t, path)
		if got := strings.Join(all(t, s, false), ","); got != "1 a" {
			t.Errorf("%s: lines %s", path, got)
		}
	}
}
