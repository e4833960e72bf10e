package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// hashKeyFile is in the storage folder: the random key of the hashes that stand for
// users wherever something is printed. It is made once. Without it the hashes that
// tickets and notes carry would mean nothing; with it, and a list of users, they could
// be undone.
const hashKeyFile = "hash.key"

const hashKeyBytes = 32

// userHash stands for a user or device: the same in every list of one installation,
// another in any other.
type userHash []byte

// openUserHash reads the key, and makes it when there is none. When it returns nil, a
// power cut does not take the key away any more.
func openUserHash(storage string) (userHash, error) {
	path := filepath.Join(storage, hashKeyFile)
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeHashKey(path); err == nil || errors.Is(err, fs.ErrExist) { // another may have been quicker
			key, err = os.ReadFile(path)
		}
	}
	if err == nil && len(key) != hashKeyBytes {
		err = fmt.Errorf("%s has %d bytes, not %d: delete it, and another is made", path, len(key), hashKeyBytes)
	}
	if err != nil {
		return nil, exit(exitIO, fmt.Errorf("the key of the hashes that stand for users: %w (--show-ids needs none)", err))
	}
	return key, nil
}

func makeHashKey(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), hashKeyFile+".*.new") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	key := make([]byte, hashKeyBytes)
	rand.Read(key)
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename it replaces nothing
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (h userHash) of(id string) string {
	if id == "" {
		return ""
	}
	m := hmac.New(sha256.New, h)
	m.Write([]byte(id))
	return hex.EncodeToString(m.Sum(nil))[:10]
}
