package ingest

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"strconv"
	"strings"
)

// The form of amplitude-js, Amplitude-Android and Amplitude-iOS: client is the API key, e the events as JSON, upload_time
// the sender's clock in ms; v is the version of all that, and checksum, which only amplitude-js sends, the MD5 of the others.
// The events differ from those of the HTTP V2 API (timestamp, uuid, version_name, api_properties, library as an object);
// mapping reads both, so they are stored as they came.
//
// These SDKs look at the status. After a 200 they forget what they sent, after a 413 they send half of it, and after anything
// else all of it, with their next event or after their upload interval: none of them loops.

// startsOldForm says whether body begins as that form does, whatever its Content-Type says.
func startsOldForm(body []byte) bool {
	name, _, ok := bytes.Cut(body[:min(len(body), len("upload_time="))], []byte("="))
	switch {
	case !ok:
		return false
	case string(name) == "client", string(name) == "e", string(name) == "v", string(name) == "upload_time", string(name) == "checksum":
		return true
	}
	return false
}

// uploadedWhole checks the checksum, where there is one, and reads the sender's clock.
func uploadedWhole(q *request, p parameters) *refusal {
	if sent := bytes.TrimSpace(p["checksum"]); len(sent) > 0 {
		sum := md5.New()
		for _, name := range []string{"v", "client", "e", "upload_time"} {
			sum.Write(p[name])
		}
		if !strings.EqualFold(string(sent), hex.EncodeToString(sum.Sum(nil))) {
			return refuseChecksum
		}
	}
	// As with client_upload_time, what is no time is as good as none.
	if ms, err := strconv.ParseInt(string(bytes.TrimSpace(p["upload_time"])), 10, 64); err == nil {
		q.uploaded = max(0, ms)
	}
	return nil
}
