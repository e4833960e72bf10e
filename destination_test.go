package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ampcio/admin"
	"ampcio/recordings"
	"ampcio/rehearsal"
	"ampcio/sandbox"
)

// A key that ampcio does not know: the SDK is told so, and the operator sees who it was.
func TestWrongAPIKeyOfAnSDK(t *testing.T) {
	t.Parallel()
	r := rehearse(t, rehearsal.Settings{})
	up(t, r)
	body := numbered("ann-1", 1, 3)
	a := send(t, r, strings.Replace(body, recordings.Key, "00000000000000000000000000000000", 1))
	if want := `{"code":400,"error":"Invalid API key: 00000000000000000000000000000000"}`; a.status != 400 || a.body != want {
		t.Errorf("answered %d %s, want %s", a.status, a.body, want)
	}
	a = send(t, r, strings.Replace(body, `"api_key":"`+recordings.Key+`",`, "", 1))
	if want := `{"code":400,"error":"Request missing required field","missing_field":"api_key"}`; a.status != 400 || a.body != want {
		t.Errorf("answered %d %s, want %s", a.status, a.body, want)
	}
	table := run(t, "queue-stats", "--config", r.ConfigPath).stdout
	contains(t, steady(table), "refused    invalid_api_key: 1, last TIME ago from 127.0.0.1\n", "missing_api_key: 1, last TIME ago from 127.0.0.1\n")
	contains(t, table, "no events have come. Give an SDK this server URL:\n             http://"+r.Listen+"/2/httpapi\n")
	snap := stats(t, r)
	if y := only(t, snap); y.Books.Taken != 0 || len(snap.Door.LastSeen) != 0 {
		t.Errorf("%d taken, seen %v", y.Books.Taken, snap.Door.LastSeen)
	}
	// What the operator sees is still there when ampcio is stopped.
	down(t, r)
	if refused := statsOfFiles(t, r).Door.Refused; len(refused) != 2 || refused[0].LastAddress != "127.0.0.1" || refused[0].Count != 1 {
		t.Errorf("after the stop: %+v", refused)
	}
	// With the right key the same events, insert_ids and all, are taken.
	up(t, r)
	accepted(t, r, body)
	balanced(t, drained(t, r))
	complete(t, r, map[string]int{"ann-1": 3})
	down(t, r)
}

// Wrong keys, region or endpoint: the daemon starts, takes events, says what is wrong
// and what to do, keeps everything, and delivers it in order once it is set right.
func TestDestinationThatIsSetUpWrong(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		sandbox    sandbox.Options
		wrong      func(t *testing.T, r *rehearsal.Rehearsal)
		right      func(t *testing.T, r *rehearsal.Rehearsal)
		reason     string
		detail, do []string
	}{
		{
			name: "wrong API key",
			wrong: func(t *testing.T, r *rehearsal.Rehearsal) {
				write(t, filepath.Join(r.Dir, "customerio_api_key"), "not-the-key\n")
			},
			right: func(t *testing.T, r *rehearsal.Rehearsal) {
				write(t, filepath.Join(r.Dir, "customerio_api_key"), rehearsal.APIKey+"\n")
			},
			reason: "http_401", detail: []string{"does not accept the Site ID and API key"}, do: []string{"check site_id and the Track API key", `region "eu"`},
		},
		{
			name: "wrong Site ID",
			wrong: func(t *testing.T, r *rehearsal.Rehearsal) {
				edit(t, r, fmt.Sprintf("%q", rehearsal.SiteID), `"another-site"`)
			},
			right: func(t *testing.T, r *rehearsal.Rehearsal) {
				edit(t, r, `"another-site"`, fmt.Sprintf("%q", rehearsal.SiteID))
			},
			reason: "http_401", detail: []string{"does not accept the Site ID and API key"}, do: []string{"check site_id and the Track API key"},
		},
		{
			name:   "wrong region",
			wrong:  func(t *testing.T, r *rehearsal.Rehearsal) { edit(t, r, `region       = "eu"`, `region = "us"`) },
			right:  func(t *testing.T, r *rehearsal.Rehearsal) { edit(t, r, `region = "us"`, `region       = "eu"`) },
			reason: "wrong_region", detail: []string{`this account is in region "eu"`}, do: []string{`region = "us": set region = "eu"`},
		},
		{
			name:    "the host of the other region",
			sandbox: sandbox.Options{WrongRegion: "redirect"},
			wrong:   func(*testing.T, *rehearsal.Rehearsal) {},
			right: func(t *testing.T, r *rehearsal.Rehearsal) {
				// What a person would do is to name the other host: here, a sandbox that is right.
				other := rehearse(t, rehearsal.Settings{})
				edit(t, r, fmt.Sprintf("%q", r.SandboxURL), fmt.Sprintf("%q", other.SandboxURL))
				r.Sandbox, other.Sandbox = other.Sandbox, r.Sandbox
			},
			reason: "wrong_region", detail: []string{"redirects"}, do: []string{`region = "eu": set region = "us"`},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, rehearsal.Settings{Sandbox: test.sandbox})
			test.wrong(t, r)
			up(t, r)
			for i := range 10 {
				accepted(t, r, numbered("ann-1", 10*i+1, 10*i+10))
				accepted(t, r, numbered("bob-2", 10*i+1, 10*i+10))
			}
			eventually(t, 10*time.Second, "the sync is blocked", func() bool { return only(t, stats(t, r)).Status == admin.StatusBlocked })
			y := only(t, stats(t, r))
			if y.Reason != test.reason || y.Books.Pending != 200 || y.Depth.Held != 200 || y.NextProbe == nil || y.Since == nil {
				t.Errorf("%+v", y)
			}
			contains(t, y.Detail, test.detail...)
			contains(t, y.Advice, test.do...)
			table := run(t, "queue-stats", "--config", r.ConfigPath).stdout
			contains(t, table, "blocked", "nothing is lost", "pending 200\n", "  next probe in ")
			contains(t, strings.Join(strings.Fields(table), " "), "why "+y.Detail, "to do "+y.Advice) // lines may be broken
			if a := ask(t, "GET", "http://"+r.Admin+"/readyz", ""); a.status != 200 {
				t.Errorf("/readyz is about storing, not about Customer.io: %d %s", a.status, a.body)
			}
			if test.sandbox.WrongRegion == "" {
				check := run(t, "check-config", "--config", r.ConfigPath, "--online")
				if check.code != exitConfig {
					t.Errorf("check-config --online: exit %d", check.code)
				}
				contains(t, check.stderr, "ampcio: sync demo: "+y.Detail+": "+strings.TrimSuffix(y.Advice, "; then: systemctl restart ampcio"))
			}
			if people := r.Sandbox.Report().People; people != 0 {
				t.Errorf("%d people have come through all the same", people)
			}
			down(t, r)
			test.right(t, r)
			up(t, r)
			snap := drained(t, r)
			balanced(t, snap)
			complete(t, r, map[string]int{"ann-1": 100, "bob-2": 100})
			if y := only(t, snap); y.Status != admin.StatusOK || y.Advice != "" || y.Totals.Delivered != 200 {
				t.Errorf("%+v", y)
			}
			down(t, r)
		})
	}
}
