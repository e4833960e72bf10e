// Package archive reads archives of lines: zips whose members are gzipped or plain, gzipped and plain files, folders of
// all these. Its promise: the lines of an archive come in an order that is always the same, in memory that does not grow
// with it.
//
// It is made for Amplitude's Export archives, whose members are parts of an hour (app_2026-11-20_7#12.json.gz): all parts
// of one hour are one [Part], hours come in their order, and the lines of a Part in order of a time that the caller reads
// from each.
package archive

import (
	"archive/zip"
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// Set is some archives that are open. It is for one goroutine.
type Set struct {
	parts []*Part
	hours map[string]*Part // by name
	files []*os.File
	// Ignored are the files found in folders whose names are not those of archives, and empty ones in zips.
	Ignored []string
}

// Part is what is read together: the members of one hour of one archive, or one file.
type Part struct {
	Name    string // for people
	hour    string // sorts as the hour does; "" = its name has none
	members []member
}

type member struct {
	name string // for people
	open func() (io.ReadCloser, error)
}

// Open opens files, and what is in folders, by what is in them and not by their names. They stay open until Close, so
// what is read later is the same files, whatever happens to their names.
func Open(paths []string) (s *Set, err error) {
	s = &Set{hours: map[string]*Part{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return s, err
		}
		if !st.IsDir() {
			if err := s.addFile(p, filepath.Dir(p)); err != nil {
				return s, err
			}
			continue
		}
		if err := s.addFolder(p); err != nil {
			return s, err
		}
	}
	s.arrange()
	return s, nil
}

var archiveNames = []string{".zip", ".gz", ".json", ".jsonl", ".ndjson"}

func (s *Set) addFolder(folder string) error {
	folder += string(filepath.Separator) // or a link to a folder would be walked as the file that it is
	return filepath.WalkDir(folder, func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(e.Name(), ".") && p != folder:
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case e.IsDir():
			return nil
		case !slices.Contains(archiveNames, strings.ToLower(filepath.Ext(p))):
			s.Ignored = append(s.Ignored, p)
			return nil
		}
		// Parts of an hour belong together if they are in one folder.
		return s.addFile(p, filepath.Dir(p))
	})
}

// addFile adds one file; within is where the parts of its hour are looked for.
func (s *Set) addFile(name, within string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	s.files = append(s.files, f)
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a plain file: send what comes through a pipe to stdin, and name it -", name)
	}
	return s.add(f, st.Size(), name, within)
}

// Spool adds what r has, by way of a file without a name in the folder for temporary files: it is read twice.
func Spool(r io.Reader) (*Set, error) {
	f, err := os.CreateTemp("", "ampcio-import-*")
	if err != nil {
		return nil, err
	}
	s := &Set{hours: map[string]*Part{}, files: []*os.File{f}}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	size, err := io.Copy(f, r)
	if err == nil {
		err = s.add(f, size, "stdin", "stdin")
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.arrange()
	return s, nil
}

func (s *Set) add(f io.ReaderAt, size int64, name, within string) error {
	magic := make([]byte, 4)
	n, err := f.ReadAt(magic, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.HasPrefix(magic[:n], []byte("PK")) {
		s.place(member{name, func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, size)), nil }}, within, name)
		return nil
	}
	z, err := zip.NewReader(f, size)
	if err != nil {
		return fmt.Errorf("%s: %w: it is not whole; export it again", name, err)
	}
	for _, m := range z.File {
		base := path.Base(m.Name)
		switch {
		case m.FileInfo().IsDir(), strings.HasPrefix(base, "."), strings.HasPrefix(m.Name, "__MACOSX/"):
		case m.UncompressedSize64 == 0:
			s.Ignored = append(s.Ignored, name+": "+m.Name)
		default:
			s.place(member{name + ": " + m.Name, m.Open}, name+": "+path.Dir(m.Name), m.Name)
		}
	}
	return nil
}

var hourName = regexp.MustCompile(`^(.*_)(\d{4}-\d{2}-\d{2})_(\d{1,2})#.*$`)

// place puts a member where the others of its hour are.
func (s *Set) place(m member, within, name string) {
	base := path.Base(filepath.ToSlash(name))
	found := hourName.FindStringSubmatch(base)
	if found == nil {
		s.parts = append(s.parts, &Part{Name: m.name, members: []member{m}})
		return
	}
	hour, _ := strconv.Atoi(found[3])
	p := &Part{Name: fmt.Sprintf("%s: %s%s_%d", within, found[1], found[2], hour), hour: fmt.Sprintf("%s %02d", found[2], hour)}
	if begun := s.hours[p.Name]; begun != nil {
		begun.members = append(begun.members, m)
		return
	}
	p.members = []member{m}
	s.parts, s.hours[p.Name] = append(s.parts, p), p
}

// arrange sorts the parts: hours in their order, then those without one as they were given; and members by name.
func (s *Set) arrange() {
	for _, p := range s.parts {
		slices.SortStableFunc(p.members, func(a, b member) int { return natural(a.name, b.name) })
	}
	slices.SortStableFunc(s.parts, func(a, b *Part) int {
		switch {
		case a.hour == "" && b.hour == "":
			return 0
		case a.hour == "":
			return 1
		case b.hour == "":
			return -1
		}
		return cmp.Or(cmp.Compare(a.hour, b.hour), natural(a.Name, b.Name))
	})
}

// natural compares names with the numbers in them as numbers: part #2 comes before part #10.
func natural(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x == "" || y == "" {
			if a[0] != b[0] {
				return cmp.Compare(a[0], b[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		n, m := strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if c := cmp.Or(cmp.Compare(len(n), len(m)), cmp.Compare(n, m), cmp.Compare(len(x), len(y))); c != 0 {
			return c
		}
		a, b = a[len(x):], b[len(y):]
	}
	return cmp.Compare(len(a), len(b))
}

func digits(s string) string {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return s[:n]
}

// Parts are the parts in their order.
func (s *Set) Parts() []*Part { return s.parts }

// Close closes all files.
func (s *Set) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	s.files = nil
	return errors.Join(errs...)
}

// reader reads the lines of a member.
type reader struct {
	m     *member
	from  io.ReadCloser
	lines *bufio.Reader
	row   int
	buf   []byte
}

// MaxLine is how long a line may be, in bytes; of a longer one only so much is read.
const MaxLine = 8 << 20

// openMember begins to read a member, unpacked if it is gzipped. What it has is also written to copy, if that is not nil.
func openMember(m *member, copy io.Writer) (*reader, error) {
	from, err := m.open()
	if err != nil {
		return nil, m.wrong(err)
	}
	r := &reader{m: m, from: from}
	packed := bufio.NewReaderSize(from, 64<<10)
	unpacked := io.Reader(packed)
	if magic, _ := packed.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		if unpacked, err = gzip.NewReader(packed); err != nil {
			return nil, errors.Join(m.wrong(err), from.Close())
		}
	}
	if copy != nil {
		unpacked = io.TeeReader(unpacked, copy)
	}
	r.lines = bufio.NewReaderSize(unpacked, 64<<10)
	return r, nil
}

func (m *member) wrong(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s ends early: it is not whole; export it again", m.name)
	}
	return fmt.Errorf("read %s: %w", m.name, err)
}

// next gives the next line that is not blank, without its end; the memory is the reader's until the next call. io.EOF is the end.
func (r *reader) next() (text []byte, err error) {
	for {
		r.buf = r.buf[:0]
		some := false
		for {
			piece, err := r.lines.ReadSlice('\n')
			some = some || len(piece) > 0
			if room := MaxLine + 1 - len(r.buf); len(piece) > room {
				piece = piece[:room]
			}
			r.buf = append(r.buf, piece...)
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) {
				if !some {
					return nil, io.EOF
				}
				break
			}
			if err != nil {
				return nil, r.m.wrong(err)
			}
			break
		}
		r.row++
		if text = bytes.TrimSpace(r.buf); len(text) > 0 {
			if r.row == 1 {
				text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
			}
			return text, nil
		}
	}
}
