package users

import (
	"context"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"ampcio/queue"
)

// Look is what a users.db that no process uses knows of a user or device, and of the
// devices that are linked to a user.
type Look struct {
	Known
	Devices []string
	Good    uint64 // what was stored behind this record is not in it yet
}

// LookInto reads a users.db that no process uses: queue.ErrLocked when one does. Nothing is
// written.
func LookInto(ctx context.Context, path, projectName string, isDevice bool, id string) (l Look, err error) {
	o := fileOptions()
	o.ReadOnly, o.MmapBytes = true, 0
	db, err := queue.OpenDB(path, o)
	if err != nil {
		return l, err
	}
	defer db.Close()
	get := func(tx *bolt.Tx, k kind, id string) state {
		key := appendKey(nil, projectName, id)
		st, err := readEntry(k, key, tx.Bucket(bucketOf(k)).Get(key))
		if err != nil {
			return state{} // there is none, or it is damaged and counts as none
		}
		return st
	}
	err = queue.Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			if l.Good, _, _, err = readMeta(tx); err != nil {
				return err
			}
			k := user
			if isDevice {
				k = device
			}
			st := get(tx, k, id)
			l.InsertIDs, l.UserID = st.recent.n, id
			if isDevice {
				if l.UserID = string(st.user); l.UserID != "" {
					st = get(tx, user, l.UserID)
				}
			}
			l.Seq, l.Seen = st.seq, st.seen
			if len(st.builtins) > 0 {
				l.Builtins = append([]byte(nil), st.builtins...)
			}
			if l.Properties = append([]byte(nil), st.properties...); len(st.properties) == 0 {
				l.Properties = noProperties
			}
			if isDevice {
				return nil
			}
			return tx.Bucket(bucketDevices).ForEach(func(key, value []byte) error {
				project, device, ok := splitKey(key)
				if st, err := readEntry(kind('d'), key, value); err == nil && ok && project == projectName && string(st.user) == id {
					l.Devices = append(l.Devices, device)
				}
				return ctx.Err()
			})
		})
	})
	if err != nil {
		return l, fmt.Errorf("look into %s: %w", path, err)
	}
	return l, nil
}
