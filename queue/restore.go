package queue

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrNotEmpty says that the folder to restore into is in use, or was.
var ErrNotEmpty = errors.New("the folder is not empty")

// ErrBadBackup says that a backup is not whole, or none.
var ErrBadBackup = errors.New("the backup cannot be used")

// manifestMost bounds what is read of a manifest, which has some 150 bytes for each file: a forged one takes no more memory.
const manifestMost = 64 << 20

// restoring is what the folder is called in which a restore is prepared.
const restoring = ".restoring"

// Restore makes a storage folder of a backup. dir does not exist, or is empty (else
// ErrNotEmpty). All is written into a folder beside it, compared with the manifest, looked
// at by check, if that is set, and synced; only then it gets its name. So a crash, or a
// backup that is not whole (ErrBadBackup; of a later version: ErrNewerFormat), leaves dir as
// it was. What a crash has left beside it, the next restore removes.
//
// The files belong to the owner of dir if it is there and this process may give them away.
func Restore(ctx context.Context, backup io.Reader, dir string, check func(folder string) error) (Manifest, error) {
	dir = filepath.Clean(dir)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	owner, err := emptyFolder(dir)
	if err != nil {
		return Manifest{}, err
	}
	beside := dir + restoring
	if err := os.RemoveAll(beside); err != nil {
		return Manifest{}, err
	}
	m, err := unpack(ctx, backup, beside)
	if err == nil {
		err = knownFormats(beside)
	}
	if err == nil && check != nil {
		err = check(beside)
	}
	if err == nil {
		err = giveAway(beside, owner)
	}
	if err == nil {
		err = putIntoPlace(beside, dir)
	}
	if err != nil {
		return m, errors.Join(err, os.RemoveAll(beside))
	}
	return m, nil
}

// emptyFolder makes sure that nothing is lost by a restore, and gives the folder's owner.
func emptyFolder(dir string) (owner *syscall.Stat_t, err error) {
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotEmpty)
	}
	owner, _ = st.Sys().(*syscall.Stat_t)
	return owner, nil
}

// unpack writes the files of a backup and compares them with its manifest.
func unpack(ctx context.Context, backup io.Reader, to string) (m Manifest, err error) {
	for _, dir := range []string{to, filepath.Join(to, "log"), filepath.Join(to, "sync")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return m, err
		}
	}
	var found []ManifestFile
	tr := tar.NewReader(backup)
	for {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		h, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return m, fmt.Errorf("%w: it is cut off: its last entry, the manifest, is missing", ErrBadBackup)
		case errors.Is(err, tar.ErrHeader) && len(found) == 0:
			return m, fmt.Errorf("%w: this is no backup of ampcio, or its begin is damaged", ErrBadBackup)
		case errors.Is(err, tar.ErrHeader):
			return m, fmt.Errorf("%w: it is damaged behind %s", ErrBadBackup, found[len(found)-1].Name)
		case err != nil:
			return m, fmt.Errorf("read the backup: %w", err)
		case h.Name == manifestName:
			if m, err = readManifest(tr); err != nil {
				return m, err
			}
			return m, compare(m, found)
		case h.Typeflag != tar.TypeReg || !isBackupName(h.Name):
			return m, fmt.Errorf("%w: it holds %q, which a backup of ampcio never does", ErrBadBackup, h.Name)
		}
		f, err := unpackFile(ctx, tr, filepath.Join(to, filepath.FromSlash(h.Name)))
		if err != nil {
			return m, err
		}
		f.Name = h.Name
		found = append(found, f)
	}
}

// unpackFile writes one file, and syncs it.
func unpackFile(ctx context.Context, from io.Reader, path string) (f ManifestFile, err error) {
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return f, err
	}
	sum := sha256.New()
	f.Bytes, err = io.Copy(stoppable{ctx, io.MultiWriter(to, sum)}, from)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it is cut off in %s", ErrBadBackup, filepath.Base(path))
	}
	f.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return f, errors.Join(err, to.Sync(), to.Close())
}

func readManifest(r io.Reader) (m Manifest, err error) {
	text, err := io.ReadAll(io.LimitReader(r, manifestMost+1))
	if err != nil {
		return m, fmt.Errorf("%w: it is cut off in its manifest", ErrBadBackup)
	}
	if len(text) > manifestMost {
		return m, fmt.Errorf("%w: its manifest has more than %d MiB", ErrBadBackup, manifestMost>>20)
	}
	i := bytes.IndexByte(text, '\n') + 1
	if sum := sha256.Sum256(text[:i]); i == 0 || string(text[i:]) != hex.EncodeToString(sum[:])+"\n" {
		return m, fmt.Errorf("%w: its manifest is damaged", ErrBadBackup)
	}
	if err := json.Unmarshal(text[:i], &m); err != nil || m.Format < 1 {
		return m, fmt.Errorf("%w: its manifest cannot be read", ErrBadBackup)
	}
	if m.Format > backupFormat {
		return m, fmt.Errorf("the backup is of format %d, this version knows up to %d: %w", m.Format, backupFormat, ErrNewerFormat)
	}
	return m, nil
}

// compare says what was found that is not as the manifest has it.
func compare(m Manifest, found []ManifestFile) error {
	for i, want := range m.Files {
		switch {
		case i >= len(found) || found[i].Name != want.Name:
			return fmt.Errorf("%w: %s is missing", ErrBadBackup, want.Name)
		case found[i] != want:
			return fmt.Errorf("%w: %s is damaged: it is not what was backed up", ErrBadBackup, want.Name)
		}
	}
	if len(found) > len(m.Files) {
		return fmt.Errorf("%w: it holds %s, of which its manifest knows nothing", ErrBadBackup, found[len(m.Files)].Name)
	}
	return nil
}

// knownFormats says whether this version can read what it would have to. What is
// damaged was so when it was backed up: the next start sees to it.
func knownFormats(dir string) error {
	if _, err := newestFormat(filepath.Join(dir, "log")); err != nil {
		return err
	}
	if _, _, err := readTombstones(filepath.Join(dir, tombstoneFile)); err != nil {
		return err
	}
	_, _, err := ledgersKnow(dir)
	return err
}

// giveAway makes the owner of a folder that of all that was restored.
func giveAway(dir string, owner *syscall.Stat_t) error {
	if owner == nil || os.Geteuid() != 0 {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}

// putIntoPlace gives a folder, in which all files are synced, its name.
func putIntoPlace(beside, dir string) error {
	for _, d := range []string{filepath.Join(beside, "log"), filepath.Join(beside, "sync"), beside} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	err := syscall.Rename(beside, dir) // over an empty folder, which os.Rename refuses
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%s is where a disk is mounted: restore into a folder on that disk, and let storage.dir name it", dir)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: beside, New: dir, Err: err}
	}
	return syncDir(filepath.Dir(dir))
}
