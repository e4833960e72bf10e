// Package queue keeps records durable and in order.
//
// A Log holds the records of all projects, once. A Consumer, one per sync, reads
// the log, sorts the records into lanes (one per user), hands out claims (at most
// one at a time per lane, which is what keeps the order of each user) and enters
// their endings in its ledger. A record ends for each consumer exactly once, and
// the books say as what.
//
// The order of things is everywhere the same: disk first, memory next, answer
// last. After any commit error the outcome on disk is unknown; then nothing more
// is accepted and the process ends, because only a fresh look at the disk can tell.
package queue
