package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ampcio-faults/child"
	"ampcio-faults/house"
	"ampcio-faults/lossy"
	"ampcio/queue"
	userstore "ampcio/users"
)

// otherSync is what the sync is renamed to.
const otherSync = "other"

func init() {
	child.Register("disk-rename", func(args []string) error {
		return withLog(args[0], func(l *queue.Log) error { return queue.RenameLedger(l, house.Sync, otherSync) })
	})
	child.Register("disk-restore", func(args []string) error { return restoreFrom(args[0], args[1]) })
}

// withLog opens the log alone, as far as a ledger that is not open needs it.
func withLog(dir string, f func(*queue.Log) error) error {
	l, err := queue.Open(queue.Options{Dir: dir, RotateBytes: 1 << 20, RotateAfter: time.Hour, KeepBytes: 1 << 30, InFlightBytes: 1 << 20, Now: time.Now})
	if err != nil {
		return err
	}
	return errors.Join(f(l), l.Close())
}

func rename(ctx context.Context, p *point) error {
	return p.work(ctx, "disk-rename", filepath.Join(p.life.Path, storage))
}

// renamed judges after a rename, which is done again where it has not been done: the sync has everything, whatever it is
// called.
func renamed(ctx context.Context, p *point, acted bool) error {
	return p.judge(ctx, storage, func(dir string) error {
		return withLog(dir, func(l *queue.Log) error {
			if ledgerIn(dir, house.Sync) {
				if acted {
					return fmt.Errorf("the sync was renamed, and has its old name")
				}
				if err := queue.RenameLedger(l, house.Sync, otherSync); err != nil {
					return fmt.Errorf("rename again: %w", err)
				}
			}
			return queue.RenameLedger(l, otherSync, house.Sync)
		})
	})
}

func ledgerIn(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, "sync", name+".db"))
	return !errors.Is(err, fs.ErrNotExist)
}

// twoSyncs lets another sync follow the one that there is, as where somebody renames one in the configuration alone.
func twoSyncs(_ context.Context, s *stage) (err error) {
	s.image, err = changed(s, func(dir string) error {
		return withLog(dir, func(l *queue.Log) error {
			for _, sync := range []struct {
				name    string
				enabled bool
			}{{house.Sync, false}, {otherSync, true}} {
				c, err := queue.OpenConsumer(l, queue.ConsumerOptions{Name: sync.name, Project: house.Project, Enabled: sync.enabled, WindowBytes: 64 << 10, Now: time.Now})
				if err != nil {
					return err
				}
				if err := c.Close(); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return err
}

// changed gives the stage's image after a change of its storage folder.
func changed(s *stage, change func(dir string) error) (im lossy.Image, err error) {
	at := filepath.Join(s.c.Memory, "changed")
	defer os.RemoveAll(at)
	if err := s.image.WriteTo(at); err != nil {
		return im, err
	}
	if err := change(filepath.Join(at, storage)); err != nil {
		return im, err
	}
	return lossy.ReadImage(at)
}

// A restore is made from a backup on another disk, into a folder that is not there.
const restoredFolder = "restored"

func backupOf(s *stage) string { return filepath.Join(s.c.Memory, "backup.tar") }

// backedUp makes the backup, and clears the disk.
func backedUp(ctx context.Context, s *stage) error {
	_, err := changed(s, func(dir string) error {
		h, err := house.Open(ctx, house.Settings{Dir: dir, Keep: time.Hour})
		if err != nil {
			return err
		}
		var b bytes.Buffer
		_, err = h.Log.Backup(ctx, &b, queue.BackupOptions{Now: time.Now, Others: h.Users.Backup,
			Consumers: func(copies func([]*queue.Consumer) error) error { return copies([]*queue.Consumer{h.Ledger}) }})
		return errors.Join(err, h.Close(), os.WriteFile(backupOf(s), b.Bytes(), 0o600))
	})
	s.image = lossy.Image{Files: map[string]lossy.Content{}}
	return err
}

func restoreFrom(backup, dir string) error {
	f, err := os.Open(backup)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = queue.Restore(context.Background(), f, dir, func(folder string) error { return userstore.Check(filepath.Join(folder, "users.db")) })
	return err
}

func restore(ctx context.Context, p *point) error {
	return p.work(ctx, "disk-restore", backupOf(p.s), filepath.Join(p.life.Path, restoredFolder))
}

// restored judges after a restore: everything is there, or nothing, and then the restore can be made again.
func restored(ctx context.Context, p *point, acted bool) error {
	return p.judge(ctx, restoredFolder, func(dir string) error {
		_, err := os.Stat(dir)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return err
		case acted:
			return errors.New("it was restored, and is not there")
		}
		if err := restoreFrom(backupOf(p.s), dir); err != nil {
			return fmt.Errorf("restore again: %w", err)
		}
		return nil
	})
}
