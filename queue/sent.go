package queue

// sentMemory is how many bytes of what identifiers were last sent are kept in memory: who
// sends much is asked for again and again, and each look at the file is a transaction.
const sentMemory = 4 << 20

// sentSpareMost bounds the memory that is kept for what identifiers were newly sent.
const sentSpareMost = 1 << 14

// sentTogether is for how many of the next lanes a look at the file is made, where one has to be.
const sentTogether = 64

// sentEntryBytes is about what an entry costs beside its bytes.
const sentEntryBytes = 96

// sentCache holds what the ledger's file has of some identifiers; nil = nothing. When the
// young half is full it becomes the old one: what was asked for meanwhile stays. It is
// guarded by the consumer.
type sentCache struct {
	young, old map[string][]byte
	bytes      int64  // of young
	moved      uint64 // counts the times when what the file has, or is about to have, changed
}

func (s *sentCache) get(identifier string) (v []byte, ok bool) {
	if v, ok = s.young[identifier]; ok {
		return v, true
	}
	if v, ok = s.old[identifier]; ok {
		s.put(identifier, v)
	}
	return v, ok
}

func (s *sentCache) put(identifier string, v []byte) {
	if s.young == nil || s.bytes >= sentMemory/2 {
		s.young, s.old, s.bytes = make(map[string][]byte, len(s.young)), s.young, 0
	}
	if before, ok := s.young[identifier]; ok {
		s.bytes += int64(len(v) - len(before))
	} else {
		s.bytes += int64(len(identifier)+len(v)) + sentEntryBytes
	}
	s.young[identifier] = v
}

// written takes over what a checkpoint has brought into the file, or its forgetting.
func (s *sentCache) written(sent map[string][]byte, forgetting bool) {
	if forgetting {
		s.clear()
	}
	for identifier, v := range sent {
		s.put(identifier, v)
	}
}

func (s *sentCache) clear() {
	s.young, s.old, s.bytes = nil, nil, 0
}
