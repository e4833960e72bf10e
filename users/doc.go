// Package users knows who an event belongs to and what is known of them: the links
// from devices to users, user properties, and the insert_ids of late.
//
// The truth is the log; users.db is its cache. An event is resolved when its turn
// in the log has come ([Store.Append]), which moves the state in memory; [Store.Run]
// writes what has moved to users.db from time to time, and only what the log has
// committed. After a crash, [Open] takes up what the log holds behind the sequence
// that users.db is good for. So the state is, at every moment and after every
// crash, the one that the records of the log give when they are taken one by one.
package users
