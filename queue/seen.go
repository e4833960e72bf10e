package queue

import "maps"

// Seen makes sure that sequences up to seq are never used again, for a holder that
// knows more than a log that was damaged, or restored from an older copy. It is
// called before Run.
func (l *Log) Seen(seq uint64) error { return l.seen(logEnd{seq: seq}) }

// End gives the end of the log as of the last commit, for a holder that keeps it: see
// SeenEnd.
func (l *Log) End() []byte {
	l.mu.Lock()
	end := l.end
	l.mu.Unlock()
	return seal(keyEnd, end.append(nil))
}

// SeenEnd is Seen for what End gave. What the log took up to there and does not have any
// more is then counted as lost by the consumers, as they pass it: a log that has lost its
// newest records with all that told of them would not miss them. ErrDamaged when it is not
// what End gave. raised says that the log had ended before.
func (l *Log) SeenEnd(stored []byte) (raised bool, err error) {
	v, err := unseal(keyEnd, stored)
	if err != nil {
		return false, err
	}
	end, err := readLogEnd(v)
	if err != nil {
		return false, err
	}
	before := l.Tail()
	err = l.seen(end)
	return l.Tail() > before, err
}

func (l *Log) seen(known logEnd) error {
	from := l.end.seq
	end := logEnd{from, maps.Clone(l.end.counts)}
	end.reach(known.seq, known.counts)
	if end.seq == from {
		if maps.Equal(end.counts, l.end.counts) {
			return nil
		}
		end.seq++ // nobody passes a gap of no sequences
	}
	l.mu.Lock()
	l.end = end
	l.mu.Unlock()
	return l.startFile(from)
}
