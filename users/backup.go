package users

import (
	"errors"
	"io/fs"

	"ampcio/queue"
)

// fileName is what users.db is called in a backup.
const fileName = "users.db"

// Backup adds users.db to a backup, as it is after its last transaction: a crash may leave
// it so at any moment, and a replay makes it whole. The log is added later, so users.db is
// not ahead of it.
func (s *Store) Backup(b *queue.BackupWriter) error {
	s.mu.Lock()
	err := s.broken
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.rewriting.RLock()
	defer s.rewriting.RUnlock()
	return b.AddDB(fileName, s.db)
}

// BackupFiles adds the same of a folder that no process uses, and a damaged users.db that
// the next start is to salvage.
func BackupFiles(b *queue.BackupWriter) error {
	return errors.Join(b.AddFile(fileName), b.AddFile(salvageName(fileName)))
}

// Check says whether this version can read a users.db: queue.ErrNewerFormat when it
// cannot. One that is missing or damaged is made anew when it is opened.
func Check(path string) error {
	o := fileOptions()
	o.ReadOnly = true
	db, err := queue.OpenDB(path, o)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, queue.ErrDamaged):
		return nil
	case err != nil:
		return err
	}
	return db.Close()
}
