package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ampcio/queue"
	"ampcio/users"
)

// importSession has lines taken: by the daemon where one runs, else by this process, which then holds the storage folder
// until the import has ended.
type importSession struct {
	o     *operator
	files *importFiles // nil while a daemon is asked
	asked bool         // a daemon has answered before
}

// errGone means that the daemon does not answer any more: it may come back.
var errGone = errors.New("the daemon has gone")

// call is one request. An error that is errGone leaves open what became of it.
func (s *importSession) call(ctx context.Context, in importing) (out imported, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	told := false
	each := func(line []byte) error {
		told = true
		return json.Unmarshal(line, &out)
	}
	if s.files != nil {
		return out, importVerb(ctx, s.files, body, &lines{each: each})
	}
	err = s.o.ask(ctx, "import", body, each)
	switch {
	case err == nil && told:
		s.asked = true
		return out, nil
	case ctx.Err() != nil:
		return out, exit(exitTemporary, errEndedByOperator)
	case notRunning(err) && !s.asked:
		if s.files, err = openImportFiles(s.o, in.State); err != nil {
			return out, err
		}
		return s.call(ctx, in)
	case err == nil, notRunning(err), codeOf(err) == exitTemporary, codeOf(err) == exitUnavailable && s.asked:
		return out, fmt.Errorf("%w: %w", errGone, err)
	}
	return out, err
}

func (s *importSession) close() error {
	if s.files == nil {
		return nil
	}
	return s.files.close()
}

// importFiles is a stopped house that stores what is imported.
type importFiles struct {
	*stoppedHouse
	store   *users.Store
	stop    []context.CancelFunc // of what runs
	ended   []*sync.WaitGroup
	failing sync.Mutex
	failed  error // guarded by failing
}

func (f *importFiles) importStore() *users.Store { return f.store }

func (f *importFiles) whileTaking(_ context.Context, take func() error) error { return take() }

func openImportFiles(o *operator, state bool) (f *importFiles, err error) {
	cfg := o.cfg
	dir := cfg.Storage.Dir
	if _, err := os.Stat(dir); err != nil {
		return nil, filesError(cfg, err)
	}
	if err := becomeOwner(dir); err != nil {
		return nil, err
	}
	rules, err := compileRules(cfg)
	if err != nil {
		return nil, err
	}
	f = &importFiles{stoppedHouse: &stoppedHouse{cfg: cfg, rules: rules, say: o.say, open: map[string]*queue.Consumer{}}}
	if err := f.openStorage(); err != nil {
		if errors.Is(err, queue.ErrLocked) {
			err = filesError(cfg, err)
		}
		return nil, errors.Join(err, f.stoppedHouse.close())
	}
	if !state {
		if err := f.openNew(); err != nil {
			return nil, errors.Join(storageError(dir, err), f.stoppedHouse.close())
		}
	}
	f.store, err = users.Open(context.Background(), f.records, users.Options{Path: filepath.Join(dir, "users.db")})
	if err != nil {
		return nil, errors.Join(storageError(dir, err), f.stoppedHouse.close())
	}
	if w := f.store.Warning(); w != nil {
		fmt.Fprintln(o.say, w)
	}
	f.run(f.store.Run) // ends behind the log, and makes the last checkpoint
	f.run(f.records.Run)
	return f, nil
}

// openNew creates the ledgers of streams that no ampcio has run with yet: begun at the next
// start only, they would not take what is imported now.
func (f *importFiles) openNew() error {
	for _, name := range streamNames(f.cfg) {
		if f.consumer(name) == nil {
			if err := f.openLedger(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *importFiles) run(part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := new(sync.WaitGroup)
	done.Go(func() {
		if err := part(ctx); err != nil {
			f.failing.Lock()
			defer f.failing.Unlock()
			f.failed = errors.Join(f.failed, err)
		}
	})
	f.stop, f.ended = append(f.stop, cancel), append(f.ended, done)
}

// close ends what runs, as a stop of the daemon does, and closes the files.
func (f *importFiles) close() error {
	for i := len(f.stop) - 1; i >= 0; i-- {
		f.stop[i]()
		f.ended[i].Wait()
	}
	return errors.Join(exit(exitIO, f.failed), exit(exitIO, f.store.Close()), f.stoppedHouse.close())
}

// comeBack is how long a daemon is waited for that has gone in the middle.
const comeBack = time.Minute
