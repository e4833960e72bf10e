package queue

import (
	"bytes"
	"os"
	"time"
)

// EarlyLook is the look at a bbolt file's pages that OpenDB makes before bbolt has the file, begun before that: a start
// that has more than one file waits for the disk once. It writes nothing and holds no lock; what has changed in the file
// meanwhile, or was not whole, is looked at again.
type EarlyLook struct {
	done    chan struct{}
	file    os.FileInfo // nil = nothing was found out
	written time.Time   // when the file said that it was written last
	meta    metaPage
}

// LookEarly begins to look at the file at path, which need not be there, as an OpenDB for writing with these options
// will, which has to be given the look (DBOptions.Early).
func LookEarly(path string, o DBOptions) *EarlyLook {
	l := &EarlyLook{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return
		}
		if l.meta, err = newestMeta(f); err != nil || st.Size() < l.meta.pages*l.meta.pageSize {
			return
		}
		if checkTree(f, l.meta, true, o) == nil {
			l.file, l.written = st, st.ModTime()
		}
	}()
	return l
}

// found waits for its end, and says whether it has found this file whole, as it is now.
func (l *EarlyLook) found(st os.FileInfo, m metaPage) bool {
	if l == nil {
		return false
	}
	<-l.done
	return l.file != nil && os.SameFile(l.file, st) && l.file.Size() == st.Size() && st.ModTime().Equal(l.written) && l.meta.at == m.at && bytes.Equal(l.meta.bytes, m.bytes)
}
