package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Family is one metric with all its series.
type Family struct {
	Name, Help string
	Type       string // counter | gauge | histogram
	Labels     []string
	When       string // it is there only then; "" = always

	desc *prometheus.Desc
}

// The families, in the order of docs/metrics.md, which a test compares with them.
var families []*Family

func family(kind, name, help, when string, labels ...string) *Family {
	f := &Family{Name: "ampcio_" + name, Help: help, Type: kind, Labels: labels, When: when}
	f.desc = prometheus.NewDesc(f.Name, help, labels, nil)
	families = append(families, f)
	return f
}

func gauge(name, help string, labels ...string) *Family {
	return family("gauge", name, help, "", labels...)
}

func gaugeWhen(when, name, help string, labels ...string) *Family {
	return family("gauge", name, help, when, labels...)
}

func counter(name, help string, labels ...string) *Family {
	return family("counter", name, help, "", labels...)
}

// ofSync are the labels of what is told of each sync, and of each relay, which is relay.PROJECT.
func ofSync(more ...string) []string { return append([]string{"sync", "destination"}, more...) }

// What the house is.
var (
	buildInfo = gauge("build_info", "1; what it is that runs.", "version", "commit", "goversion")

	running = gauge("running", "1 when the daemon has told this, 0 when it is stopped and the files were read.")
	// process_start_time_seconds is not there under the hardened unit, which hides /proc/stat.
	startedAt = gaugeWhen("not from queue-stats", "start_time_seconds", "When the process started.")
	houseIs   = gauge("health", "1 for how well the house and its syncs are, by the default thresholds of queue-stats --check: ok, warning, critical, unknown; 0 for the others.", "level")

	reloadOK = gaugeWhen("while it runs", "config_last_reload_successful", "1 when the last reload took the configuration file, or there was none since the start; 0 when it was refused and the one before stays in force.")
	reloadAt = gaugeWhen("since the first reload", "config_last_reload_timestamp_seconds", "When the configuration was last reloaded, or a reload was refused.")
)

// The door, since the start of the process.
var (
	doorRequests   = counter("door_requests_total", "HTTP requests to the public listener, of any kind.")
	doorEvents     = counter("door_events_total", "Events that were answered 200, duplicates included.")
	doorDuplicates = counter("door_duplicates_total", "Of these, events that were stored already.")
	doorRefused    = family("counter", "door_refused_total", "Requests that were turned away, by reason.", "since the first of a reason", "reason")
	doorLast       = gaugeWhen("since its first request", "door_last_request_timestamp_seconds", "When a request with a key of the project last came.", "project")
	certEnd        = gaugeWhen("with HTTPS, while it runs", "certificate_not_after_timestamp_seconds", "When the certificate of the public listener ends.")
	certProblem    = gaugeWhen("with HTTPS, while it runs", "certificate_problem", "1 while the certificate's files, as they are now, cannot be used.")
)

// The disk.
var (
	storageUsed    = gauge("storage_used_bytes", "What the storage folder takes.")
	storageMax     = gauge("storage_max_bytes", "storage.max_bytes: at it, new events are refused.")
	storageFree    = gauge("storage_free_bytes", "What is free on the disk of the storage folder.")
	storageMinFree = gauge("storage_min_free_bytes", "storage.min_free: below it, new events are refused.")
	storageRatio   = gauge("storage_used_ratio", "How much of the space that may be used is; at 1 new events are refused.")
	storageETA     = gaugeWhen("while it is filling", "storage_full_eta_seconds", "Until new events are refused, if it goes on as in the last minutes.")
	storageFull    = gauge("storage_full", "1 while new events are refused because the storage is full.")
	storageDamaged = gauge("storage_damaged_chunks", "Pieces of the log that could not be read, since the start.")
	logFiles       = gauge("log_files", "Files of the log.")
	logBytes       = gauge("log_bytes", "What the files of the log take.")
)

// Each sync: how it is.
var (
	syncInfo    = gauge("sync_info", "1; which project a sync is of.", ofSync("project")...)
	syncStatus  = gauge("sync_status", "1 for what the sync does now, 0 for all else it could do.", ofSync("status")...)
	syncBlocked = gauge("sync_blocked", "1 while a person must mend what keeps the sync from delivering, by reason; 0, of reason \"\", when nothing does.", ofSync("reason")...)
	syncPaused  = gauge("sync_paused", "1 while an operator has paused the sync.", ofSync()...)
	syncGate    = gaugeWhen("while it delivers", "sync_gate", "1 for how the gate is: open, closed (the destination fails: one user is tried at a time), opening; 0 for the other two.", ofSync("state")...)
	syncKnown   = gauge("sync_acknowledged", "1 while an operator has acknowledged that the sync does not deliver.", ofSync()...)
	syncHealth  = gauge("sync_health", "1 for how well the sync is, as ampcio_health; 0 for the others.", ofSync("level")...)
	lastSuccess = gaugeWhen("once there is one", "sync_last_success_timestamp_seconds", "When a record was last delivered.", ofSync()...)

	queueDepth   = gauge("queue_depth", "Records that are pending, by state: ready, inflight, retry, held (the sync cannot deliver).", ofSync("state")...)
	queueOldest  = gaugeWhen("unless unknown", "queue_oldest_age_seconds", "Since when the oldest pending record has been stored; 0 when none is pending.", ofSync()...)
	lateLimit    = gaugeWhen("in the configuration", "queue_late_limit_seconds", "delivery.late_after: older events start no campaigns in Customer.io.", ofSync()...)
	lateLeft     = gaugeWhen("in the configuration, unless unknown", "queue_late_left_seconds", "Until the oldest pending record is that old; below 0 it is late. The whole limit when none is pending.", ofSync()...)
	lateRecords  = gaugeWhen("in the configuration", "queue_late_records", "Pending records that are late.", ofSync()...)
	queueBytes   = gauge("queue_bytes", "What is pending takes on the disk, about.", ofSync()...)
	queueMax     = gaugeWhen("with such a bound", "queue_max_bytes", "delivery.max_pending_bytes.", ofSync()...)
	queueWaiting = gaugeWhen("while someone waits", "queue_waiting_users", "Users who wait for a retry, by the last failure.", ofSync("reason")...)
	asideUsers   = gauge("aside_users", "Users in the side place: they wait by themselves while others go on.", ofSync()...)
	asideRecords = gauge("aside_records", "Records in the side place; they are pending.", ofSync()...)
	asideBytes   = gauge("aside_bytes", "What the side place takes.", ofSync()...)

	deadLetters = gauge("dead_letters", "Dead letters that are kept.", ofSync()...)
	deadBytes   = gauge("dead_letters_bytes", "What they take.", ofSync()...)

	auditDifference = gauge("audit_difference", "What the books are out by, taken + rewound - ended - pending; 0 when they balance.", ofSync()...)
	auditAt         = gaugeWhen("since the first audit", "audit_last_timestamp_seconds", "When ampcio audit last compared the books with the disk.", ofSync()...)
	auditLast       = gaugeWhen("since the first audit", "audit_last_difference", "How many differences it found.", ofSync()...)
	ledgerBytes     = gauge("ledger_bytes", "Size of the sync's ledger.", ofSync()...)
	ledgerStuck     = gauge("ledger_checkpoint_failing", "1 while nothing is sent since the disk takes no checkpoint.", ofSync()...)
	ledgerDamaged   = gauge("ledger_damaged", "1 when the ledger cannot be read, and nothing else is known of the sync; only while stopped.", ofSync()...)

	dryRunRequests = gaugeWhen("in a dry run", "dry_run_requests", "Requests that would have been sent since the dry run began.", ofSync()...)
	dryRunEvents   = gaugeWhen("in a dry run", "dry_run_events", "Events in them.", ofSync()...)
	dryRunPending  = gaugeWhen("in a dry run", "dry_run_pending", "Records that the dry run has not looked at yet.", ofSync()...)
)

// Each sync: what it has done. The first six come from its ledger.
var (
	received   = counter("events_received_total", "Records that the sync took from the log.", ofSync()...)
	rewound    = counter("events_rewound_total", "Records that a rewind took once more, after they had ended.", ofSync()...)
	ended      = counter("events_total", "Records by how they ended: delivered, filtered, dead, discarded, lost. One that is tried again, or rewound, ends once more.", ofSync("outcome")...)
	delivered  = counter("events_delivered_total", "Records that were delivered, by attempt: first, retry.", ofSync("attempt")...)
	discarded  = counter("events_discarded_total", "Records that were given up, by reason; max_pending_bytes is always there.", ofSync("reason")...)
	operations = counter("operations_total", "Events and user updates apart (kind: event, user) by outcome: delivered, filtered, dead; and of these two by reason.", ofSync("kind", "outcome", "reason")...)

	attempts = family("counter", "delivery_attempts_total", "Requests with data to the destination, by the class of the answer: 2xx, 3xx, 4xx, 429, 5xx, timeout, network, garbled.", "not from queue-stats", ofSync("code_class")...)
	latency  = family("histogram", "delivery_latency_seconds", "From when a record was stored to when the destination had accepted it.", "while it runs", ofSync()...)
)

// The users.
var (
	usersCached      = gaugeWhen("not from queue-stats", "users_cached", "Users and devices in memory.")
	usersBytes       = gaugeWhen("not from queue-stats", "users_db_bytes", "Size of users.db.")
	usersPartial     = family("counter", "users_partial_total", "Records that carry only part of a very large set of properties.", "not from queue-stats")
	usersOversize    = family("counter", "users_oversize_total", "Property updates that were not applied, as the set would have become too large.", "not from queue-stats")
	usersUnappliable = family("counter", "users_unappliable_total", "Property updates that could not be applied to what was stored.", "not from queue-stats")
)

// Families lists all that there are, but for those of Go and of the process.
func Families() []Family {
	var fs []Family
	for _, f := range families {
		fs = append(fs, *f)
	}
	return slices.Clip(fs)
}
