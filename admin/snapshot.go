// Package admin shows what ampcio is doing: to queue-stats, monitors and people,
// over the admin unix socket and a local listener, and as a table. It changes
// nothing. Everybody sees the same Snapshot.
package admin

import "time"

// Schema is the version of Snapshot's JSON. Members may be added under the same
// number; readers ignore those they do not know.
const Schema = 1

// Snapshot is the state of one installation at one moment. Times are UTC, ages and
// waits whole seconds, sizes bytes; null means unknown or none. Counts are present
// also when 0.
type Snapshot struct {
	Schema  int       `json:"schema"`
	Source  string    `json:"source"` // daemon: asked while it runs | files: read while it is stopped
	At      time.Time `json:"at"`
	Version string    `json:"version"`
	Uptime  *int64    `json:"uptime_s"`
	// Versions of what runs or, where it is stopped, of what reads.
	Versions Versions `json:"versions"`
	Health   Health   `json:"health"` // the worst there is: of a sync, or of the house itself
	House    Health   `json:"house"`  // of what all syncs share: the disk, the certificate, the reload, whether it runs
	Syncs    []Sync   `json:"syncs"`
	Door     Door     `json:"door"`
	Disk     Disk     `json:"disk"`
	Reload   *Reload  `json:"reload"` // the last one since the start; null = there was none, or it is stopped
	Audit    Audit    `json:"audit"`  // of all syncs: the difference is the sum of theirs, whatever the sign
	// Notes are sentences that a person should read: files that were set aside, a start
	// that refuses events.
	Notes []string `json:"notes"`
}

// Pending is how many records wait, in all syncs.
func (s Snapshot) Pending() (n uint64) {
	for _, y := range s.Syncs {
		n += y.Books.Pending
	}
	return n
}

// Versions are of the program.
type Versions struct {
	Version string `json:"version"`
	Commit  string `json:"commit"` // "" = not known
	Go      string `json:"go"`
}

// Reload is an attempt to put the configuration file in force anew.
type Reload struct {
	At    time.Time `json:"at"`
	OK    bool      `json:"ok"`
	Error string    `json:"error"` // why the configuration before stays in force; "" when it does not
}

// Audit is what the last audit said, which counts what is pending by reading it; where
// there was none since the start (At is null), what the books themselves say.
type Audit struct {
	At         *time.Time `json:"at"`
	Balanced   bool       `json:"balanced"`
	Difference int64      `json:"difference"` // of an audit: how many differences it found
}

// Status of a Sync, in one word.
const (
	StatusOK          = "delivering"
	StatusChecking    = "checking"
	StatusUnreachable = "unreachable"
	StatusBlocked     = "blocked"
	StatusPaused      = "paused"
	StatusDisabled    = "disabled"
	StatusDryRun      = "dry_run"
	StatusOrphaned    = "orphaned"
	StatusStopped     = "stopped"
)

// Destination of a Sync.
const (
	ToCustomerIO = "customerio"
	ToAmplitude  = "amplitude" // it is a relay: its name is relay.PROJECT
)

// Sync is one stream to Customer.io, or to Amplitude.
type Sync struct {
	Name        string `json:"name"`
	Project     string `json:"project"`
	Destination string `json:"destination"`
	Status      string `json:"status"`
	Health      Health `json:"health"`
	// Acknowledged: somebody knows that it does not deliver; null = nobody has said so.
	Acknowledged *Acknowledged `json:"acknowledged"`
	// Why it is not delivering, since when, when it is tried next, and what to do.
	Reason    string     `json:"blocked_reason"`
	Detail    string     `json:"detail"`
	Advice    string     `json:"advice"`
	Since     *time.Time `json:"since"`
	NextProbe *int64     `json:"next_probe_s"`

	PausedSince    *time.Time      `json:"paused_since"` // also of one that is blocked, too
	Gate           string          `json:"gate"`         // open | closed: one user is tried at a time | opening; "" = it does not deliver
	GateSince      *time.Time      `json:"gate_since"`
	Workspace      int64           `json:"workspace"` // Customer.io's environment_id, 0 = not known yet
	OtherWorkspace *OtherWorkspace `json:"other_workspace"`
	NoCheckpoint   string          `json:"no_checkpoint"` // why nothing is sent: the disk takes no checkpoint; "" = it does

	Depth     Depth  `json:"depth"`
	OldestAge *int64 `json:"oldest_age_s"` // of what is pending
	NewestAge *int64 `json:"newest_age_s"`
	// AgeBuckets counts what is pending by its age. Approximate says that some of it, and
	// NewestAge, are reckoned from samples of what is on disk.
	AgeBuckets  []AgeBucket `json:"age_buckets"`
	Approximate bool        `json:"approximate"`
	Groups      *Groups     `json:"groups,omitempty"` // where somebody asked for them
	Late        Late        `json:"late"`
	Latency     *Latency    `json:"latency_s"` // null: nothing was delivered in the last minutes
	// LatencyBuckets and LatencySum count every delivery since the process began: they
	// only grow. None while it is stopped.
	LatencyBuckets []LatencyBucket `json:"latency_buckets"`
	LatencySum     float64         `json:"latency_sum_s"`

	NextAttempt *int64   `json:"next_attempt_s"`
	RateIn      *float64 `json:"rate_in"`  // records a second over the last minute; null when stopped
	RateOut     *float64 `json:"rate_out"` // ended records a second over the last minute
	DrainETA    *int64   `json:"drain_eta_s"`

	PendingBytes int64  `json:"pending_bytes"`     // of what is pending, on disk and about
	MaxPending   int64  `json:"max_pending_bytes"` // 0 = no bound of its own
	WhenFull     string `json:"when_full"`         // refuse | discard_oldest

	Waiting   []Waiting   `json:"waiting"`   // what waits for a retry, by the last failure
	Aside     Aside       `json:"aside"`     // of these and of what is behind them: what others need not wait for
	Filtered  []Reason    `json:"filtered"`  // why events and user updates were not sent
	Dead      []Reason    `json:"dead"`      // why they were refused, since the sync began
	Discarded []Reason    `json:"discarded"` // why records were given up
	Kept      DeadLetters `json:"dead_letters"`

	DryRun *DryRun `json:"dry_run"` // null: it is in none

	Totals        Totals     `json:"totals"`
	Books         Books      `json:"books"`
	Audit         Audit      `json:"audit"`
	LastRewind    *time.Time `json:"last_rewind"`
	LastDelivered *time.Time `json:"last_delivered"`
	LastAnswer    string     `json:"last_answer"` // the destination's newest
	LedgerBytes   int64      `json:"ledger_bytes"`
	LedgerDamaged bool       `json:"ledger_damaged"` // it cannot be read: all counts are unknown, whatever they say; only while stopped
}

// Acknowledged is that somebody knows that a sync is blocked or unreachable, until when.
// It ends when the sync delivers again.
type Acknowledged struct {
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	Until  time.Time `json:"until"`
}

// AgeBucket counts what is younger than its bound and not younger than the one before.
type AgeBucket struct {
	LE    *int64 `json:"le_s"` // null: of the last, which has no bound
	Count uint64 `json:"count"`
}

// Groups are what is pending, put together by what it has in common.
type Groups struct {
	By   string  `json:"by"` // reason | event | status | user
	Rows []Group `json:"rows"`
	// Of what is in no row: how many groups, and how much.
	LeftOut      int    `json:"left_out"`
	LeftOutCount uint64 `json:"left_out_count"`
	Approximate  bool   `json:"approximate"` // reckoned from a sample
}

// Group is one of them.
type Group struct {
	Key        string      `json:"key"` // a reason, an event's name, a status, or the keyed hash of a user
	Count      uint64      `json:"count"`
	OldestAge  *int64      `json:"oldest_age_s"` // of those that were looked at
	AgeBuckets []AgeBucket `json:"age_buckets"`
}

// Late is of delivery.late_after, by when events were received: what is older starts no
// campaigns in Customer.io.
type Late struct {
	Limit      *int64 `json:"limit_s"`       // null: nobody configured the sync, so there is none
	OldestLeft *int64 `json:"oldest_left_s"` // of the oldest pending event; below 0 it is late; null: nothing is pending
	Over       uint64 `json:"over"`          // pending ones that are late
}

// Latency is how long it took from a record's receipt until the destination accepted it,
// in the last minutes, in seconds.
type Latency struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

// LatencyBucket counts what took no longer than its bound, that of the buckets before included.
type LatencyBucket struct {
	LE    *float64 `json:"le_s"` // null: of the last, which has no bound
	Count uint64   `json:"count"`
}

// DryRun is what a sync in a dry run would have done since that began. All else that is
// told of the sync is what it has really done.
type DryRun struct {
	Since       *time.Time `json:"since"`
	File        string     `json:"file"` // of the requests
	Requests    uint64     `json:"requests"`
	Bytes       uint64     `json:"bytes"`
	Events      uint64     `json:"events"`
	UserUpdates uint64     `json:"user_updates"`
	LeftOut     uint64     `json:"lines_left_out"` // requests that are counted, and not in the file
	Pending     uint64     `json:"pending"`        // not yet looked at
	Passed      uint64     `json:"passed_over"`    // deleted before they were looked at
	Filtered    []Reason   `json:"filtered"`       // why events and user updates would not have been sent
	Refused     []Reason   `json:"refused"`        // why they would have become dead letters without being sent
}

// OtherWorkspace is of a sync whose keys are those of another workspace than before.
type OtherWorkspace struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Aside is the side place: users who wait by themselves, while others go on.
type Aside struct {
	Users     int    `json:"users"`
	Records   uint64 `json:"records"`
	Bytes     int64  `json:"bytes"`
	OldestAge *int64 `json:"oldest_age_s"`
}

// DeadLetters are those that are kept, and the bounds of that.
type DeadLetters struct {
	Count    uint64 `json:"count"`
	Bytes    int64  `json:"bytes"`
	KeepFor  int64  `json:"keep_s"`
	MaxBytes int64  `json:"max_bytes"`
	// OldestAge is how long ago the first of them, by sequence, was refused.
	OldestAge *int64 `json:"oldest_age_s"`
}

// Depth is how many records are where. Ready, InFlight, Retry and Held are pending.
type Depth struct {
	Ready    uint64 `json:"ready"`
	InFlight uint64 `json:"inflight"`
	Retry    uint64 `json:"retry"`
	Held     uint64 `json:"held"` // the sync is blocked, unreachable, paused, disabled or orphaned
	Dead     uint64 `json:"dead"` // dead letters kept
}

// Waiting is what waits for one reason.
type Waiting struct {
	Reason      string  `json:"reason"`
	Users       int     `json:"users"`
	Records     *uint64 `json:"records"`
	NextAttempt *int64  `json:"next_attempt_s"`
	OldestAge   *int64  `json:"oldest_age_s"`
	LastAnswer  string  `json:"last_answer"` // what the reason means: an HTTP status, or what became of the request
	// Example is the record of them that waits longest; null: it is not at hand.
	Example *Example `json:"example"`
}

// Example is a real record.
type Example struct {
	Event string `json:"event"` // its name
	User  string `json:"user"`  // the keyed hash of whom it is about
	AgeS  int64  `json:"age_s"`
}

// Reason counts what was not sent, or refused, for one reason.
type Reason struct {
	Kind    string     `json:"kind"` // event | user
	Reason  string     `json:"reason"`
	Count   uint64     `json:"count"`
	Newest  *time.Time `json:"newest"`
	Example string     `json:"example"` // an event's name
}

// Totals count since the sync began. Received is what was taken of the project's
// records; the operations are what the destination accepted.
type Totals struct {
	Received        uint64 `json:"received"`
	Delivered       uint64 `json:"delivered"`
	FirstAttempt    uint64 `json:"first_attempt"`
	AfterRetry      uint64 `json:"after_retry"`
	Filtered        uint64 `json:"filtered"`
	Dead            uint64 `json:"dead"`   // those that are kept now
	Buried          uint64 `json:"buried"` // records that became dead letters, whatever became of these since
	Discarded       uint64 `json:"discarded"`
	Lost            uint64 `json:"lost"`
	EventsDelivered uint64 `json:"events_delivered"`
	UsersDelivered  uint64 `json:"users_delivered"`
}

// Books are both sides of the account: taken + rewound = delivered + filtered + dead +
// discarded + lost + pending, or the difference is not 0.
type Books struct {
	Taken      uint64 `json:"taken"`   // from the log
	Rewound    uint64 `json:"rewound"` // once more, after they had ended
	Pending    uint64 `json:"pending"`
	Balanced   bool   `json:"balanced"`
	Difference int64  `json:"difference"`
}

// Door is what came in, and what was turned away. Counts are those of the process,
// or of the last one when ampcio is stopped; null when there was none.
type Door struct {
	URL        string            `json:"url"` // for an SDK's server URL; unix:PATH where a proxy is in front
	Requests   uint64            `json:"requests"`
	Events     uint64            `json:"events"`
	Duplicates uint64            `json:"duplicates"`
	LastSeen   map[string]string `json:"last_seen"` // project → time of its last request, RFC 3339
	Refused    []Refused         `json:"refused"`
	Last       *DoorRequest      `json:"last_request"` // of any kind; null = none since the start

	Certificate *Certificate `json:"certificate"` // of HTTPS; null without, and while stopped
}

// Certificate is that of the public listener.
type Certificate struct {
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"not_after"`
	DaysLeft int       `json:"days_left"` // whole days; below 0 it has expired
	Problem  string    `json:"problem"`   // why the files, as they are now, are not in use; "" when they are
}

// DoorRequest is by which way a request came.
type DoorRequest struct {
	At      time.Time `json:"at"`
	Peer    string    `json:"peer"`    // the other end of the connection; "" = a unix socket
	Proxied bool      `json:"proxied"` // it came through a proxy,
	Trusted bool      `json:"trusted"` // one of server.trusted_proxies
}

// Refused counts requests turned away for one reason.
type Refused struct {
	Reason      string     `json:"reason"`
	Count       uint64     `json:"count"`
	Last        *time.Time `json:"last"`
	LastAddress string     `json:"last_address"`
}

// Disk is what the storage folder takes and what is left.
type Disk struct {
	Dir     string `json:"dir"`
	Used    int64  `json:"used_bytes"`
	Max     int64  `json:"max_bytes"`
	Free    int64  `json:"free_bytes"`
	MinFree int64  `json:"min_free_bytes"`
	// Kept files stay only for later use: they are the first to go when space is needed.
	Kept int64 `json:"kept_bytes"`
	// Share is how much of the space that may be used is: 1 = new events are refused.
	Share float64 `json:"used_share"`
	// FullETA is when new events are refused, if it goes on like the last minutes; null: it is not filling.
	FullETA  *int64 `json:"full_eta_s"`
	LogFiles int    `json:"log_files"`
	LogBytes int64  `json:"log_bytes"`
	Full     string `json:"full"`   // why new events are refused now; "" when they are not
	Advice   string `json:"advice"` // what to do about that
	Damaged  int    `json:"damaged_chunks"`
}
