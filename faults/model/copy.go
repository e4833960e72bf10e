package model

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// copyFolder copies what a crash leaves: every file.
func copyFolder(to, from string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if e.IsDir() {
			err = copyFolder(dst, src)
		} else {
			err = copyFile(dst, src)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file without the holes in it: ledgers are 16 MiB long, and nearly all of that is a hole.
func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	in, out := int(src.Fd()), int(dst.Fd())
	size, err := unix.Seek(in, 0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(out, size); err != nil {
		return err
	}
	b := make([]byte, 32<<10)
	for at := int64(0); at < size; {
		if at, err = unix.Seek(in, at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		} else if err != nil {
			return err
		}
		end, err := unix.Seek(in, at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at < end {
			n, err := unix.Pread(in, b[:min(int64(len(b)), end-at)], at)
			if err != nil || n == 0 {
				return errors.Join(err, io.ErrUnexpectedEOF)
			}
			if _, err := unix.Pwrite(out, b[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
	}
	return nil
}
