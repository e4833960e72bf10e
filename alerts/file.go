package alerts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Format is the version of the file. A newer one, and one that makes no sense, count as
// none: all that is lost is that what is wrong is told once more.
const Format = 1

// state is all that has to survive a restart. It is some kilobytes and changes together,
// so it is one JSON file that is replaced whole: a full disk leaves the old one, a person
// and a stopped ampcio can read it, and it needs no lock. Neither the address nor
// anything of a user is in it.
type state struct {
	Format     int                  `json:"format"`
	Known      map[string]*known    `json:"known"`   // by key
	Waiting    []Message            `json:"waiting"` // to be posted, oldest first
	Mute       bool                 `json:"mute"`    // nobody was told of all this
	Marks      map[string]time.Time `json:"marks"`
	MarksSaved time.Time            `json:"marks_saved"`
	Posted     *time.Time           `json:"posted"`  // when a message was last posted
	Dropped    *Earlier             `json:"dropped"` // what the next message has to tell of; null = nothing
}

// known is a trouble that is there, or was not long ago.
type known struct {
	Kind    string           `json:"kind"`
	Of      string           `json:"of"`
	Cause   string           `json:"cause"`
	Level   string           `json:"level"`
	What    string           `json:"what"`
	Do      string           `json:"do"`
	Since   time.Time        `json:"since"`
	Numbers map[string]int64 `json:"numbers,omitempty"`

	Firing bool      `json:"firing"` // it has been told, and its end has not
	Told   time.Time `json:"told"`   // when it was told last
	Worst  string    `json:"worst"`  // the level that has been told
	Ended  time.Time `json:"ended"`  // of one that was told and is over: when that was told
	Times  int       `json:"times"`  // that it has ended, of late

	// What a restart begins anew.
	seen  time.Time // not firing: since when it is there without a break; zero = it is not
	worse time.Time // firing: since when it is worse than what was told; zero = it is not
	gone  time.Time // firing: since when it is not there; zero = it is
	quiet bool      // somebody knows of it
}

func key(kind, of string) string { return kind + " " + of }

func (s *state) encode() []byte {
	s.Format = Format
	kept := *s
	kept.Known = map[string]*known{}
	for name, k := range s.Known {
		if k.Firing || k.Times > 0 { // others have not been told, and may never be
			kept.Known[name] = k
		}
	}
	b, err := json.Marshal(kept)
	if err != nil {
		panic(err) // there is nothing in it that JSON does not know
	}
	return append(b, '\n')
}

// decode reads a file; problem says why it counts as none.
func decode(b []byte) (s state, problem string) {
	fresh := state{Known: map[string]*known{}}
	if len(b) == 0 {
		return fresh, ""
	}
	err := json.Unmarshal(b, &s)
	switch {
	case err != nil:
		return fresh, "it is damaged: " + err.Error()
	case s.Format < 1 || s.Format > Format:
		return fresh, fmt.Sprintf("it has format %d, of another version of ampcio", s.Format)
	}
	if s.Known == nil {
		s.Known = map[string]*known{}
	}
	for name, k := range s.Known {
		if k == nil || name != key(k.Kind, k.Of) {
			return fresh, "it is damaged"
		}
	}
	return s, ""
}

// shelf is where the file is.
type shelf interface {
	read() ([]byte, error) // nil, nil = there is none
	write([]byte) error    // whole or not at all
}

type fileShelf struct{ path string }

func (f fileShelf) read() ([]byte, error) {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// write replaces the file. A crash leaves the old one or the new one, and perhaps one
// more beside it, which the next write replaces.
func (f fileShelf) write(b []byte) error {
	next, err := os.OpenFile(f.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = next.Write(b)
	if err == nil {
		err = next.Sync()
	}
	if err := errors.Join(err, next.Close()); err != nil {
		return errors.Join(err, os.Remove(next.Name())) // on a full disk its bytes are needed
	}
	if err := os.Rename(next.Name(), f.path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
