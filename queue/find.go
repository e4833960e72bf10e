package queue

import (
	"encoding/binary"
	"errors"

	bolt "go.etcd.io/bbolt"
)

// chunkBehind finds in an open file the chunk that holds seq, or the first one behind
// it; nil when there is none. What is damaged is passed over and counted: a chunk, a
// commit, or a page of the tree with all that hangs on it. limit is where the file
// ends.
func chunkBehind(db *bolt.DB, seq, limit uint64) (c *Chunk, damaged int, err error) {
	c, damaged, err = chunkAt(db, seq)
	if !errors.Is(err, ErrDamaged) {
		return c, damaged, err
	}
	// The page that holds seq cannot be read, so nobody knows what the next one begins
	// with. Look for the first sequence that can be sought: gallop, then halve.
	damaged++
	bad, good := seq, seq
	for step := uint64(1); good == seq; step *= 2 {
		if bad >= limit {
			return nil, damaged, nil
		}
		at := bad + min(step, limit-bad)
		c, _, err = chunkAt(db, at)
		switch {
		case err == nil:
			good = at
		case errors.Is(err, ErrDamaged):
			bad = at
		default:
			return nil, damaged, err
		}
	}
	for bad+1 < good {
		middle := bad + (good-bad)/2
		found, _, err := chunkAt(db, middle)
		switch {
		case err == nil:
			c, good = found, middle
		case errors.Is(err, ErrDamaged):
			bad = middle
		default:
			return nil, damaged, err
		}
	}
	return c, damaged, nil
}

// chunkAt finds the chunk that holds seq, or the first one behind it; nil when there
// is none. Damaged chunks and commits are passed over and counted; a damaged page of
// the tree above them is ErrDamaged.
func chunkAt(db *bolt.DB, seq uint64) (c *Chunk, damaged int, err error) {
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			top := tx.Bucket(bucketLog)
			commits := top.Cursor()
			for k, _ := seekReaching(commits, seq); k != nil; k, _ = commits.Next() {
				err := Guard(func() error {
					found, bad, err := chunkIn(top.Bucket(k), seq)
					c = found
					damaged += bad
					return err
				})
				if errors.Is(err, ErrDamaged) {
					damaged++
					continue
				}
				if err != nil || c != nil {
					return err
				}
			}
			return nil
		})
	})
	return c, damaged, err
}

// seekReaching puts the cursor on the last key at or before seq, which may reach
// over it, else on the first key.
func seekReaching(c *bolt.Cursor, seq uint64) (k, v []byte) {
	k, v = c.Seek(seqKey(seq))
	switch {
	case k == nil:
		return c.Last()
	case len(k) == 8 && binary.BigEndian.Uint64(k) == seq:
		return k, v
	}
	if k, v = c.Prev(); k == nil {
		return c.First()
	}
	return k, v
}

// chunkIn finds in one commit the first whole chunk whose last record is at or
// behind seq.
func chunkIn(commit *bolt.Bucket, seq uint64) (c *Chunk, damaged int, err error) {
	if commit == nil {
		return nil, 1, nil
	}
	cur := commit.Cursor()
	for k, v := seekReaching(cur, seq); k != nil; k, v = cur.Next() {
		if len(k) != 8 {
			damaged++
			continue
		}
		c, err := openChunk(binary.BigEndian.Uint64(k), v)
		switch {
		case errors.Is(err, ErrNewerFormat):
			return nil, damaged, err
		case err != nil:
			damaged++
		case c.Last() >= seq:
			return c, damaged, nil
		}
	}
	return nil, damaged, nil
}

// lastChunk gives the last whole chunk of an open file, nil when it has none.
func lastChunk(db *bolt.DB) (c *Chunk, err error) {
	err = Guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			top := tx.Bucket(bucketLog)
			commits := top.Cursor()
			for k, _ := commits.Last(); k != nil; k, _ = commits.Prev() {
				err := Guard(func() error {
					commit := top.Bucket(k)
					if commit == nil {
						return nil
					}
					chunks := commit.Cursor()
					for k, v := chunks.Last(); k != nil; k, v = chunks.Prev() {
						if len(k) != 8 {
							continue
						}
						whole, err := openChunk(binary.BigEndian.Uint64(k), v)
						if err == nil {
							c = whole
						}
						if err == nil || errors.Is(err, ErrNewerFormat) {
							return err
						}
					}
					return nil
				})
				if c != nil || err != nil && !errors.Is(err, ErrDamaged) {
					return err
				}
			}
			return nil
		})
	})
	return c, err
}
