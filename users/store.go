package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"ampcio/queue"
)

// Options of a Store. Zero values stand for the defaults named.
type Options struct {
	Path  string           // users.db
	Early *queue.EarlyLook // at it, that LookEarly has begun; nil = none
	// CacheBytes bounds what is held in memory (64 MiB). What two transactions of the log
	// change is held in any case, and may exceed it.
	CacheBytes int64
	// A checkpoint starts when CheckpointBytes of memory are held by changes (half of
	// CacheBytes); else at the earliest after CheckpointEvery (1 s), when it is small
	// against what the log has taken since the last one; else after 150,000 records, or
	// thirty times that.
	CheckpointEvery time.Duration
	CheckpointBytes int64
	// UnlinkedExpiry is how long the properties of a device without a user are kept
	// after its last event (30 days; counted in hours).
	UnlinkedExpiry time.Duration
	// Carry says whether a record whose user has more than CarryBytes (16,000) of
	// properties carries this one; nil = none. It is called by the log's resolver.
	Carry      func(project, property string) bool
	CarryBytes int
	Now        func() time.Time // time.Now
}

func (o *Options) setDefaults() {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = time.Second
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = o.CacheBytes / 2
	}
	if o.UnlinkedExpiry == 0 {
		o.UnlinkedExpiry = 30 * 24 * time.Hour
	}
	if o.CarryBytes == 0 {
		o.CarryBytes = 16_000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// holder is the name under which the log keeps the files that a replay needs.
const holder = "users.db"

// Store knows users, devices and recent insert_ids. Its methods are safe for
// concurrent use. It starts no goroutine.
type Store struct {
	o             Options
	log           *queue.Log
	db            *bolt.DB
	unlinkedHours uint32

	awaited atomic.Bool   // Run waits for the log to commit what a cut holds
	wake    chan struct{} // to Run: look again, there may be something to do

	rewrites  chan *rewriting // to Run
	rewriting sync.RWMutex    // held by who closes db, and for reading by who looks into it without mu
	unknown   error           // of who writes: why users.db has to be opened anew first; nil = it has not

	// mu is held by the log's resolver while it resolves a batch, and by others for moments.
	mu       sync.Mutex
	written  *sync.Cond // a checkpoint has ended, or there will be none
	running  bool       // Run is there to write checkpoints
	alone    bool       // somebody else writes users.db, and Run has not begun
	over     bool       // and has ended
	broken   error      // why nothing is resolved or written any more
	torn     bool       // db is closed already, or bbolt may hold its locks for ever (queue.Stuck)
	resolved uint64     // the last sequence that has moved the state
	good     uint64     // every record at or below is in users.db
	reach    uint64     // as Open found it: no entry in users.db is of a later sequence
	logEnd   []byte     // of the log, as Open found it in users.db; empty = not there
	lastCut  uint64     // sequence of the last cut
	sinceCut int64      // bytes of record bodies since then
	ticks    int        // of CheckpointEvery, since the last cut
	cutting  *cut       // the checkpoint that is being written
	waits    string     // why it could not be, so far; "" = nothing is in its way
	bodyBuf  []byte
	carryBuf []byte
	loginBuf []byte
	userBuf  []byte
	// What an event makes of a user's properties.
	propertyBuf []byte
	// What a record says of built-in properties.
	builtinBuf []byte
	cache
	counters
	asked       bool                   // somebody waits for a checkpoint
	places      map[archivePart]uint64 // how far imports have come
	movedPlaces map[archivePart]uint64 // those that have moved since the last cut

	sweepAt []byte  // Run's: where the search for expired entries goes on
	repair  *Repair // as Open found it
	// interrupt, when a test has set it, is called between the steps of a checkpoint;
	// what it returns ends the checkpoint there, as a crash would.
	interrupt  func(step string) error
	perWrite   int    // entries in one transaction
	mostReplay uint64 // records between two cuts
}

type counters struct {
	changes                                                      uint64 // of entries
	duplicates, links, takeOvers, partial, oversize, unappliable uint64
	expired, replayed, lost, checkpoints, checkpointBytes        uint64
}

// Open opens users.db, or creates it, and brings it up to date from the log: what
// the log holds behind the sequence that users.db is good for is replayed. It tells
// the log what to keep; so it is called before the log's Run. ctx ends a replay.
//
// A users.db that is missing although the log has records, that is damaged, or ahead
// of the log, is repaired: see [Store.Warning]. One of a newer format is (queue.ErrNewerFormat).
func Open(ctx context.Context, log *queue.Log, o Options) (*Store, error) {
	o.setDefaults()
	s, err := open(ctx, log, o)
	if errors.Is(err, queue.ErrDamaged) { // seen only when a replay needed what is damaged
		if !exists(salvageName(o.Path)) {
			if err := setAside(o.Path); err != nil {
				return nil, fmt.Errorf("set aside %s: %w", o.Path, err)
			}
		}
		s, err = open(ctx, log, o)
	}
	return s, err
}

func open(ctx context.Context, log *queue.Log, o Options) (*Store, error) {
	s := &Store{
		o: o, log: log, unlinkedHours: uint32(o.UnlinkedExpiry / time.Hour),
		wake: make(chan struct{}, 1), rewrites: make(chan *rewriting), perWrite: writeEntries, mostReplay: replayRecords,
	}
	s.written = sync.NewCond(&s.mu)
	s.cache = newCache()
	s.places = map[archivePart]uint64{}
	if err := s.openFile(); err != nil {
		return nil, err
	}
	log.Hold(holder, s.good)
	err := s.tellEnd()
	if err == nil {
		err = s.forgetUnfinished()
	}
	if err == nil {
		err = s.replay(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes users.db. The log's Run and the Store's have returned. It writes
// nothing: that was Run's last act.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = queue.ErrClosed
	s.slab.close()
	if s.torn {
		return nil // it would wait for itself; the process is about to end
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close %s: %w", s.o.Path, err)
	}
	return nil
}

// Warning says what had to be repaired when users.db was opened: a *Repair, or nil
// when it was whole.
func (s *Store) Warning() error {
	if s.repair == nil {
		return nil
	}
	return s.repair
}

// Stats is a look at a Store. Counts are since start.
type Stats struct {
	Cached      int    // entries in memory
	CachedBytes int64  // what they hold
	DirtyBytes  int64  // of these, not yet in users.db
	Hits        uint64 // looks answered from memory …
	Misses      uint64 // … and from users.db
	DamagedKeys uint64 // looks for entries that met one that is not what was written: what was looked for may count as none

	Duplicates  uint64 // events not stored again
	Links       uint64 // devices that came to a user, or to another one
	TakeOvers   uint64 // first logins on a device with anonymous properties
	Partial     uint64 // records that carry only part of a very large property set
	Oversize    uint64 // events whose operations would have made the set too large, and did not
	Unappliable uint64 // events whose operations could not be applied to what is stored
	Expired     uint64 // entries whose properties or insert_ids a sweep has dropped

	Resolved        uint64 // sequence of the last record that has moved the state
	Good            uint64 // sequence that users.db is good for
	Replayed        uint64 // records taken from the log at start
	Lost            uint64 // records that were needed then and that the log no longer had
	Checkpoints     uint64
	CheckpointBytes uint64 // keys and values they wrote
	FileBytes       int64  // size of users.db
	Waits           string // why a checkpoint cannot be written now (the disk is full); "" = it can
	Repair          *Repair
}

// Stats looks at the Store.
func (s *Store) Stats() Stats {
	size := fileBytes(s.o.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Cached: s.count, CachedBytes: s.bytes, DirtyBytes: s.dirtyBytes,
		Hits: s.hits, Misses: s.misses, DamagedKeys: s.damaged,
		Duplicates: s.duplicates, Links: s.links, TakeOvers: s.takeOvers, Partial: s.partial,
		Oversize: s.oversize, Unappliable: s.unappliable, Expired: s.expired,
		Resolved: s.resolved, Good: s.good, Replayed: s.replayed, Lost: s.lost,
		Checkpoints: s.checkpoints, CheckpointBytes: s.checkpointBytes, Waits: s.waits,
		FileBytes: size, Repair: s.repair,
	}
}

// Known is what is known of a user or device; a copy.
type Known struct {
	UserID     string // the user; of a device: the one it was last linked to, "" = none
	Properties []byte // JSON object, "{}" when there are none; of the user, else of the device
	Builtins   []byte // and the built-in properties, packed (mapping.BuiltinsJSON); nil when there are none
	Sole       bool   // of a device: no other user was seen on it
	InsertIDs  int    // remembered for it
	Seq        uint64 // of the last record that has changed the one whose properties these are; 0 = none, but see Any
	Seen       uint32 // and the hour since 1970 UTC of that
}

// Any says whether anything is known of the one whose properties these are. What was seeded
// before there was any record has no sequence.
func (k *Known) Any() bool { return k.Seq != 0 || string(k.Properties) != "{}" || k.Builtins != nil }

// User tells what is known of a user now, uncommitted events included.
func (s *Store) User(projectName, userID string) (Known, error) {
	return s.known(projectName, user, userID)
}

// Device tells the same of a device. The properties are those of the user it is
// linked to, if it is.
func (s *Store) Device(projectName, deviceID string) (Known, error) {
	return s.known(projectName, device, deviceID)
}

func (s *Store) known(projectName string, k kind, id string) (Known, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return Known{}, s.broken
	}
	defer s.closeReads()
	s.evict()
	p, hour := s.project(projectName), hourOf(s.o.Now().UnixMilli())
	e, err := s.entry(p, k, id)
	if err != nil {
		return Known{}, s.broke(fmt.Errorf("look into %s: %w", s.o.Path, err))
	}
	b := s.block(e)
	b.expire(hour, s.unlinkedHours)
	out := Known{UserID: string(b.user()), Sole: b.sole(), InsertIDs: b.ids()}
	if k == user {
		out.UserID = id
	} else if out.UserID != "" {
		if e, err = s.entry(p, user, out.UserID); err != nil {
			return Known{}, s.broke(fmt.Errorf("look into %s: %w", s.o.Path, err))
		}
		b = s.block(e)
	}
	out.Seq, out.Seen = b.seq(), b.seen()
	if out.Properties = bytes.Clone(b.properties()); len(out.Properties) == 0 {
		out.Properties = bytes.Clone(noProperties)
	}
	if len(b.builtins()) > 0 {
		out.Builtins = bytes.Clone(b.builtins())
	}
	return out, nil
}
