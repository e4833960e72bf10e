package queue

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// A person is forgotten by a tombstone: what some lanes have in the log up to a sequence
// counts as not there. The records stay in their file until it is deleted, but every
// Reader gives them without lane and body (Record.Forgotten); consumers end them as
// Discarded. Tombstones are in the file forgotten.jsonl, which is replaced as a whole:
//
//  1. the resolver, between two commits, writes the tombstone, with the names of the
//     lanes and what else is needed to go on (Forgetting), and the caller clears its
//     memory of the person in the same turn: no record is between the two;
//  2. ledgers (Consumer.Forget) and users.db let go of the person;
//  3. the names are taken out of the tombstone (FinishForgetting): what stays are hashes.
//
// A crash before 1 leaves everything as it was; behind it, the next start does 2 and 3.
// A tombstone goes when no file of the log has records before its end any more.
const (
	tombstoneFile    = "forgotten.jsonl"
	tombstoneVersion = 1
)

// ForgottenReason is why a forgotten record is Discarded.
const ForgottenReason = "forgotten"

var forgottenTally = Tally{Key: "record/discarded/" + ForgottenReason}

// Forgetting is what has to be known to forget a person, until that is done.
type Forgetting struct {
	Lanes []string // whose records are forgotten
	Sent  []string // identifiers of which the ledgers must not know any more what they were sent
}

// Tombstone is one act of forgetting.
type Tombstone struct {
	ID         string
	Project    string
	UpTo       uint64      // records behind this one are of somebody new
	At         int64       // ms since 1970 UTC
	Unfinished *Forgetting // nil = it is done

	salt  []byte
	lanes []laneHash
}

type laneHash [16]byte

// tombstones are all that there are; they do not change.
type tombstones struct {
	list  []Tombstone
	most  uint64 // no record behind this one is forgotten
	salts [][]byte
	upTo  []map[laneHash]uint64 // by salt
}

func newTombstones(list []Tombstone) *tombstones {
	ts := &tombstones{list: list}
	for _, t := range list {
		ts.most = max(ts.most, t.UpTo)
		i := slices.IndexFunc(ts.salts, func(s []byte) bool { return bytes.Equal(s, t.salt) })
		if i < 0 {
			i = len(ts.salts)
			ts.salts, ts.upTo = append(ts.salts, t.salt), append(ts.upTo, map[laneHash]uint64{})
		}
		for _, h := range t.lanes {
			ts.upTo[i][h] = max(ts.upTo[i][h], t.UpTo)
		}
	}
	return ts
}

func hashOfLane(salt []byte, project, lane string) laneHash {
	b := append(make([]byte, 0, 256), salt...)
	b = appendBytes(b, project)
	b = append(b, lane...)
	sum := sha256.Sum256(b)
	return laneHash(sum[:16])
}

// cover says whether a record is forgotten. nil has none.
func (ts *tombstones) cover(project, lane string, seq uint64) bool {
	return ts != nil && seq <= ts.most && ts.upToOf(project, lane) >= seq
}

// unless is f for all but the dead letters of who is forgotten, but not everywhere yet.
func (ts *tombstones) unless(f func(DeadLetter) error) func(DeadLetter) error {
	if ts == nil {
		return f
	}
	return func(d DeadLetter) error {
		if ts.cover(d.Record.Project, d.Record.Lane, d.Record.Seq) {
			return nil
		}
		return f(d)
	}
}

// tombstonesIn reads those of a folder that nobody has open; nil = there are none.
func tombstonesIn(storage string) (*tombstones, error) {
	list, _, err := readTombstones(filepath.Join(storage, tombstoneFile))
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return newTombstones(list), nil
}

// upToOf is up to where a lane is forgotten; 0 = it is not.
func (ts *tombstones) upToOf(project, lane string) (upTo uint64) {
	if ts == nil {
		return 0
	}
	for i, salt := range ts.salts {
		upTo = max(upTo, ts.upTo[i][hashOfLane(salt, project, lane)])
	}
	return upTo
}

// marked is the chunk, for readers that must not see what is forgotten by now.
func (l *Log) marked(c *Chunk) *Chunk {
	ts := l.forgotten.Load()
	if c == nil || ts == nil || c.First > ts.most {
		return c
	}
	seen := *c
	seen.forgotten = ts
	return &seen
}

// Forgotten says whether a record of a lane is forgotten.
func (l *Log) Forgotten(project, lane string, seq uint64) bool {
	return l.forgotten.Load().cover(project, lane, seq)
}

// ForgottenAt tells when a lane was forgotten last, ms since 1970 UTC, and up to which
// sequence; zeros when it was not, or nothing of that is kept any more.
func (l *Log) ForgottenAt(project, lane string) (at int64, upTo uint64) {
	ts := l.forgotten.Load()
	if ts == nil {
		return 0, 0
	}
	for _, t := range ts.list {
		if t.Project == project && t.UpTo >= upTo && slices.Contains(t.lanes, hashOfLane(t.salt, project, lane)) {
			at, upTo = t.At, t.UpTo
		}
	}
	return at, upTo
}

// Unfinished are the tombstones of which ledgers or users.db may still know the person.
func (l *Log) Unfinished() (list []Tombstone) {
	if ts := l.forgotten.Load(); ts != nil {
		for _, t := range ts.list {
			if t.Unfinished != nil {
				list = append(list, t)
			}
		}
	}
	return list
}

// ErrBackupRuns says that nobody can be forgotten now, since a backup is being made: it
// would hold some of the person, and not the rest.
var ErrBackupRuns = errors.New("a backup is being made")

// ForgetLanes writes a tombstone over all that the log has of some lanes by now, and calls
// clear, which is to forget the person in memory: all in one turn of the resolver, so
// that each record is of the one before or of the one after. When it returns nil the
// tombstone is durable. The caller then sees to ledgers and users.db, and finishes it.
func (l *Log) ForgetLanes(ctx context.Context, project string, f Forgetting, clear func(upTo uint64) error) (t Tombstone, err error) {
	err = l.inTurn(ctx, func() error {
		var id [8]byte
		rand.Read(id[:]) // never fails: crypto/rand ends the process instead
		t = Tombstone{ID: hex.EncodeToString(id[:]), Project: project, UpTo: l.Tail(), At: l.o.Now().UnixMilli(), Unfinished: &f}
		err := l.changeTombstones(func(list []Tombstone) []Tombstone {
			if len(list) > 0 {
				t.salt = list[0].salt
			} else {
				t.salt = make([]byte, 16)
				rand.Read(t.salt)
			}
			for _, lane := range f.Lanes {
				t.lanes = append(t.lanes, hashOfLane(t.salt, project, lane))
			}
			return append(slices.Clone(list), t)
		})
		if err != nil {
			return err
		}
		return clear(t.UpTo)
	})
	return t, err
}

// FinishForgetting takes the names out of a tombstone: nothing but the log has anything of
// the person any more.
func (l *Log) FinishForgetting(id string) error {
	return l.changeTombstones(func(list []Tombstone) []Tombstone {
		list = slices.Clone(list)
		for i := range list {
			if list[i].ID == id {
				list[i].Unfinished = nil
			}
		}
		return list
	})
}

// BarBackups lets no backup begin until letGo: ErrBackupRuns when one has.
func (l *Log) BarBackups() (letGo func(), err error) {
	if !l.backups.TryLock() {
		return nil, ErrBackupRuns
	}
	return l.backups.Unlock, nil
}

// inTurn calls f when nothing is half stored: by the resolver, or by the caller when
// nothing is being committed.
func (l *Log) inTurn(ctx context.Context, f func() error) error {
	if !l.running.Load() {
		return f()
	}
	done := make(chan error, 1)
	select {
	case l.turns <- func() { done <- f() }:
	case <-l.gone:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-l.gone:
	}
	select {
	case err := <-done:
		return err
	default:
		return ErrClosed // what was to be stored before it could not be
	}
}

// changeTombstones replaces the file, and then what is in force. After an error of the
// folder's sync the file may be the new one: the next start tells.
func (l *Log) changeTombstones(change func([]Tombstone) []Tombstone) error {
	l.burying.Lock()
	defer l.burying.Unlock()
	var list []Tombstone
	if ts := l.forgotten.Load(); ts != nil {
		list = ts.list
	}
	list = change(list)
	path := filepath.Join(l.o.Dir, tombstoneFile)
	err := writeTombstones(path+newSuffix, list)
	if NoSpace(err) && l.GiveReserve() {
		err = writeTombstones(path+newSuffix, list)
	}
	if err == nil {
		err = renameDurably(path+newSuffix, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	l.forgotten.Store(newTombstones(list))
	return nil
}

// dropTombstones lets go of those that forget nothing any more that the log has.
func (l *Log) dropTombstones() {
	ts := l.forgotten.Load()
	if ts == nil || len(ts.list) == 0 {
		return
	}
	l.mu.Lock()
	first := l.files[0].first
	l.mu.Unlock()
	over := func(t Tombstone) bool { return t.Unfinished == nil && t.UpTo < first }
	if slices.ContainsFunc(ts.list, over) {
		// What cannot be written now is tried again.
		_ = l.changeTombstones(func(list []Tombstone) []Tombstone { return slices.DeleteFunc(slices.Clone(list), over) })
	}
}

// storedTombstone is a line of the file, behind the checksum of the rest of the line. Names
// are bytes, which need not be text.
type storedTombstone struct {
	Version int      `json:"v"`
	ID      string   `json:"id"`
	Project []byte   `json:"project"`
	UpTo    uint64   `json:"up_to"`
	At      int64    `json:"at"`
	Salt    []byte   `json:"salt"`
	Lanes   [][]byte `json:"lanes"`
	Names   [][]byte `json:"names,omitempty"` // of an unfinished one
	Sent    [][]byte `json:"sent,omitempty"`
	Open    bool     `json:"unfinished,omitempty"`
}

func writeTombstones(path string, list []Tombstone) error {
	var text []byte
	for _, t := range list {
		s := storedTombstone{Version: tombstoneVersion, ID: t.ID, Project: []byte(t.Project), UpTo: t.UpTo, At: t.At, Salt: t.salt}
		for _, h := range t.lanes {
			s.Lanes = append(s.Lanes, h[:])
		}
		if f := t.Unfinished; f != nil {
			s.Open = true
			for _, name := range f.Lanes {
				s.Names = append(s.Names, []byte(name))
			}
			for _, key := range f.Sent {
				s.Sent = append(s.Sent, []byte(key))
			}
		}
		line, err := json.Marshal(s)
		if err != nil {
			return err
		}
		text = fmt.Appendf(text, "%08x %s\n", crc32.Checksum(line, castagnoli), line)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// readTombstones reads the file; damaged is how many lines cannot be read.
func readTombstones(path string) (list []Tombstone, damaged int, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	for line := range bytes.Lines(text) {
		var s storedTombstone
		sum, rest, _ := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
		want, err := strconv.ParseUint(string(sum), 16, 32)
		if err != nil || crc32.Checksum(rest, castagnoli) != uint32(want) || json.Unmarshal(rest, &s) != nil {
			damaged++
			continue
		}
		if s.Version > tombstoneVersion {
			return nil, 0, fmt.Errorf("%s: format %d, this version knows up to %d: %w", path, s.Version, tombstoneVersion, ErrNewerFormat)
		}
		t := Tombstone{ID: s.ID, Project: string(s.Project), UpTo: s.UpTo, At: s.At, salt: s.Salt}
		for _, h := range s.Lanes {
			if len(h) == len(laneHash{}) {
				t.lanes = append(t.lanes, laneHash(h))
			}
		}
		if s.Open {
			t.Unfinished = &Forgetting{}
			for _, name := range s.Names {
				t.Unfinished.Lanes = append(t.Unfinished.Lanes, string(name))
			}
			for _, key := range s.Sent {
				t.Unfinished.Sent = append(t.Unfinished.Sent, string(key))
			}
		}
		list = append(list, t)
	}
	slices.SortStableFunc(list, func(a, b Tombstone) int { return cmp.Compare(a.UpTo, b.UpTo) })
	return list, damaged, nil
}

// openTombstones reads the file at a start. Of a damaged one a copy is put aside, and what
// can be read of it counts.
func (l *Log) openTombstones() error {
	path := filepath.Join(l.o.Dir, tombstoneFile)
	if err := os.Remove(path + newSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	list, damaged, err := readTombstones(path)
	if err != nil {
		return fmt.Errorf("who was forgotten: %w", err)
	}
	if len(list) > 0 {
		l.forgotten.Store(newTombstones(list))
	}
	if damaged == 0 {
		return nil
	}
	away, err := putAside(&l.o, path, fmt.Errorf("%d lines of those who were forgotten: %w", damaged, ErrDamaged), len(list))
	if err != nil {
		return err
	}
	l.setAway = append(l.setAway, away)
	return l.changeTombstones(func(list []Tombstone) []Tombstone { return list })
}
