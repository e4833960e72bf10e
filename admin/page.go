package admin

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// The status page is one template and one script. The template alone puts a Snapshot into
// words; so it is whole without the script. The script asks for the page again and takes
// over what has changed: names of elements, some attributes, and text as text.

//go:embed page
var pageFiles embed.FS

// pageTemplate is read when the page is first asked for: every ampcio command would read it at its start else.
var pageTemplate = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("page.html").Funcs(template.FuncMap{
		"count": count, "size": size, "long": longAge, "secs": secs, "rate": pageRate, "share": share, "many": many, "todo": todoList, "sentence": sentence, "of": ofWidth,
		"u": func(n int) uint64 { return uint64(n) }, "i": func(n uint64) int64 { return int64(n) },
		"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") + " UTC" },
		"date":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") + " UTC" },
	}).ParseFS(pageFiles, "page/page.html"))
})

// pagePolicy lets the page load what is beside it and nothing else, from nowhere else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// AddPage adds to mux the status page at /, what belongs to it at /page/, and the numbers
// of its charts at /history.
func AddPage(mux *http.ServeMux, s Source, h *History) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		snap, err := s.Snapshot(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		var page bytes.Buffer
		if err := writePage(&page, snap); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", pagePolicy)
		w.Header().Set("Cache-Control", "no-store")
		w.Write(page.Bytes())
	})
	mux.HandleFunc("GET /history", func(w http.ResponseWriter, r *http.Request) {
		span, known := spans[cmp.Or(r.URL.Query().Get("span"), "1h")]
		if !known {
			http.Error(w, "span is one of 15m, 1h, 6h and 24h", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		json.NewEncoder(w).Encode(h.Of(span, time.Now()))
	})
	for name, file := range pageAssets() {
		mux.HandleFunc("GET /page/"+name, file)
	}
}

// pageAssets are the files of the page. They change with the binary only: a browser asks
// each time whether it has the same.
func pageAssets() map[string]http.HandlerFunc {
	assets := map[string]http.HandlerFunc{}
	for name, kind := range map[string]string{"page.js": "text/javascript", "page.css": "text/css", "uplot.js": "text/javascript", "uplot.css": "text/css",
		"ok.svg": "image/svg+xml", "warning.svg": "image/svg+xml", "critical.svg": "image/svg+xml", "unknown.svg": "image/svg+xml"} {
		b, err := fs.ReadFile(pageFiles, path.Join("page", name))
		if err != nil {
			panic(err) // the binary was built without it
		}
		sum := sha256.Sum256(b)
		tag := `"` + hex.EncodeToString(sum[:8]) + `"`
		assets[name] = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind+"; charset=utf-8")
			w.Header().Set("Cache-Control", "no-cache")
			w.Header().Set("ETag", tag)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		}
	}
	return assets
}

// pageView is what the template shows.
type pageView struct {
	Snapshot
	Headline headline
	Streams  []streamView
	Total    totals
	Build    string // a page of another build is loaded anew
}

// headline is what is read from two metres.
type headline struct {
	Level  string
	Who    string // "" = the house
	What   string
	Why    string
	Advice string
	Others int // syncs that are not well either
}

// Seen is when each project was heard of last.
func (v pageView) Seen() (seen []seenProject) {
	for _, project := range slices.Sorted(maps.Keys(v.Door.LastSeen)) {
		if at, err := time.Parse(time.RFC3339, v.Door.LastSeen[project]); err == nil {
			seen = append(seen, seenProject{project, v.Ago(&at)})
		}
	}
	return seen
}

type seenProject struct{ Project, Ago string }

// Ago is how long something is ago, seen from the Snapshot.
func (v pageView) Ago(t *time.Time) string {
	s := int64(max(v.At.Sub(*t), 0) / time.Second)
	return longAge(&s)
}

// totals are those of all syncs.
type totals struct {
	Pending  uint64
	In, Out  *float64 // nil = unknown
	Oldest   *int64
	Drain    *int64 // of the slowest; nil = nothing drains
	LateLeft *int64 // until the first event is late
	Line     string // age at which events are late; "" when syncs differ in it
	Dead     uint64
}

// lineOf is the age at which events are late, in hours, as it is mostly written.
func lineOf(limit *int64) string {
	if limit == nil {
		return ""
	}
	if *limit%3600 == 0 {
		return count(uint64(*limit/3600)) + "\u202fh"
	}
	return longAge(limit)
}

// Line is the age at which events are late.
func (v streamView) Line() string { return lineOf(v.Late.Limit) }

// Late says whether an event is late already.
func (t totals) Late() bool { return t.LateLeft != nil && *t.LateLeft <= 0 }

type streamView struct {
	Sync
	Open   bool // shown at length
	Told   bool // the headline says why, and what to do
	Safe   bool // nothing is lost although it does not deliver
	To     string
	Reason []reasonGroup
	now    time.Time
}

// Tried is what the destination has accepted or refused.
func (v streamView) Tried() uint64 { return v.Totals.FirstAttempt + v.Totals.AfterRetry + v.Depth.Dead }

// ToDo is what to do about it, if anything.
func (v streamView) ToDo() string { return cmp.Or(v.Health.ToDo, v.Advice) }

// IsLate says whether an event is late already.
func (v streamView) IsLate() bool { return *v.Late.OldestLeft <= 0 }

// LastAgo is how long ago the newest delivery is.
func (v streamView) LastAgo() string {
	s := int64(max(v.now.Sub(*v.LastDelivered), 0) / time.Second)
	return longAge(&s)
}

// The bar of a sync is 1000 long: what went at the first try takes what the others leave.
func (v streamView) WidthAgain() int { return ofWidth(v.Totals.AfterRetry, v.Tried()) }
func (v streamView) WidthDead() int  { return ofWidth(v.Depth.Dead, v.Tried()) }
func (v streamView) StartDead() int  { return v.WidthFirst() + v.WidthAgain() }
func (v streamView) WidthFirst() int {
	if v.Totals.FirstAttempt == 0 {
		return 0
	}
	return 1000 - v.WidthAgain() - v.WidthDead()
}

// reasonGroup is a table of reasons.
type reasonGroup struct {
	Title, Empty string
	Reasons      []Reason
	More         int // not shown
}

// topReasons is how many reasons are shown of each kind.
const topReasons = 6

// openUpTo is up to how many syncs all are shown at length.
const openUpTo = 2

func writePage(w *bytes.Buffer, s Snapshot) error {
	v := pageView{Snapshot: s, Headline: headlineOf(&s), Total: totalsOf(s.Syncs), Build: pageBuild}
	for _, y := range byTrouble(s.Syncs) {
		sv := streamView{Sync: y, now: s.At, To: "Customer.io", Open: len(s.Syncs) <= openUpTo || y.Health.Level != LevelOK,
			Told: y.Name == v.Headline.Who,
			Safe: (y.Status == StatusBlocked || y.Status == StatusUnreachable) && !y.gaveUp()}
		if y.isRelay() {
			sv.To = "Amplitude"
		}
		for _, g := range []reasonGroup{
			{Title: "Dead letters, by reason", Reasons: y.Dead, Empty: "Nothing was refused."},
			{Title: "Not sent, by reason", Reasons: y.Filtered, Empty: "Nothing was left out."},
			{Title: "Given up, by reason", Reasons: y.Discarded},
		} {
			if len(g.Reasons) > topReasons {
				g.Reasons, g.More = g.Reasons[:topReasons], len(g.Reasons)-topReasons
			}
			if len(g.Reasons) > 0 || g.Empty != "" {
				sv.Reason = append(sv.Reason, g)
			}
		}
		v.Streams = append(v.Streams, sv)
	}
	return pageTemplate().Execute(w, v)
}

// pageBuild is a sum of all that the page is made of.
var pageBuild = func() string {
	sum := sha256.New()
	for _, name := range []string{"page.html", "page.js", "page.css"} {
		b, err := fs.ReadFile(pageFiles, path.Join("page", name))
		if err != nil {
			panic(err) // the binary was built without it
		}
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}()

// headlineOf says the worst there is in a few words.
func headlineOf(s *Snapshot) headline {
	h := headline{Level: s.Health.Level, Why: s.Health.Why}
	var worst *Sync
	ill := 0
	for i := range s.Syncs {
		y := &s.Syncs[i]
		if y.Health.Level == LevelOK {
			continue
		}
		ill++
		if worst == nil && y.Health.Level == s.Health.Level && s.Health.Why == y.Name+": "+y.Health.Why {
			worst = y
		}
	}
	switch {
	case worst != nil:
		h.Who, h.What, h.Why, h.Advice, h.Others = worst.Name, cmp.Or(syncPhrases[worst.Health.Word], "is "+worst.Health.Word), worst.Health.Why, cmp.Or(worst.Health.ToDo, worst.Advice), ill-1
	case s.Health.Level != LevelOK:
		h.What, h.Advice, h.Others = cmp.Or(housePhrases[s.Health.Word], "ampcio: "+s.Health.Word), s.Health.ToDo, ill
	case len(s.Syncs) == 0:
		h.What, h.Why = "Ready, and nowhere to deliver", "no sync is configured yet: what comes is stored, and nobody takes it"
	default:
		h.What = "All is well"
	}
	return h
}

var syncPhrases = map[string]string{
	"refused": "has dead letters", "unbalanced": "does not balance", "full": "cannot write", "waiting": "keeps somebody waiting",
	"filling": "is filling up", "discarding": "gives up events", "off": "is switched off",
}

var housePhrases = map[string]string{
	"refusing": "New events are refused", "disk": "The disk is filling", "certificate": "The certificate needs you",
	"reload": "The last reload failed", "damaged": "Part of the log is damaged", "stopped": "ampcio is stopped",
}

func totalsOf(syncs []Sync) (t totals) {
	lines := 0
	for i := range syncs {
		y := &syncs[i]
		t.Pending += y.Books.Pending
		t.Dead += y.Depth.Dead
		t.In, t.Out = sum(t.In, y.RateIn), sum(t.Out, y.RateOut)
		t.Oldest, t.Drain = larger(t.Oldest, y.OldestAge), larger(t.Drain, y.DrainETA)
		if line := lineOf(y.Late.Limit); line != "" && !y.isRelay() {
			if lines++; lines == 1 || line == t.Line {
				t.Line = line
			} else {
				t.Line = ""
			}
		}
		if left := y.Late.OldestLeft; left != nil && !y.isRelay() && (t.LateLeft == nil || *left < *t.LateLeft) {
			t.LateLeft = left
		}
	}
	return t
}

func sum(a, b *float64) *float64 {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	c := *a + *b
	return &c
}

func larger(a, b *int64) *int64 {
	if a == nil || b != nil && *b > *a {
		return b
	}
	return a
}

// sentence begins with a capital, unless it begins with what is no word: a URL, a key.
func sentence(s string) string {
	word, _, _ := strings.Cut(s, " ")
	if word == "" || strings.ContainsAny(strings.TrimRight(word, ",;:."), ".:/_[=") {
		return s
	}
	first, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(first)) + s[size:]
}

// longAge is an age with a narrow space between its units.
func longAge(s *int64) string {
	var b strings.Builder
	digits := true
	for _, r := range age(s) {
		if isDigit := r >= '0' && r <= '9'; isDigit != digits {
			if digits = isDigit; isDigit {
				b.WriteRune('\u202f')
			}
		}
		b.WriteRune(r)
	}
	return b.String()
}

func pageRate(r *float64) string {
	if r == nil {
		return "–"
	}
	return rate(r)
}

// secs is a number of seconds that may be far below one.
func secs(s float64) string {
	switch {
	case s < 1:
		return fmt.Sprintf("%.0f\u202fms", s*1000)
	case s < 60:
		return fmt.Sprintf("%.1f\u202fs", s)
	}
	whole := int64(s)
	return longAge(&whole)
}

// share is a part of a whole in percent, never rounded to 0 or to 100.
func share(part, whole uint64) string {
	if whole == 0 {
		return "–"
	}
	p := float64(part) / float64(whole) * 100
	switch {
	case part == 0:
		return "0 %"
	case part == whole:
		return "100 %"
	case p < 0.01:
		return "< 0.01 %"
	case p > 99.99:
		return "> 99.99 %"
	}
	return strconv.FormatFloat(p, 'f', 2, 64) + " %"
}

// ofWidth is a part of a whole as a length of a bar that is 1000 long; what is not 0 can be seen.
func ofWidth(part, whole any) int {
	p, w := toFloat(part), toFloat(whole)
	if p <= 0 || w <= 0 {
		return 0
	}
	return int(min(max(p/w*1000, 4), 1000))
}

func toFloat(n any) float64 {
	switch n := n.(type) {
	case int64:
		return float64(n)
	case uint64:
		return float64(n)
	case float64:
		return n
	}
	panic(fmt.Sprintf("a bar of %T", n))
}

// phrase is a piece of advice: words, or what can be copied into a shell or a file.
type phrase struct {
	Text string
	Code bool
}

// todoList cuts advice into steps, and these into words and commands.
func todoList(advice string) (steps [][]phrase) {
	if advice == "" {
		return nil
	}
	for step := range strings.SplitSeq(advice, "; ") {
		var phrases []phrase
		words := ""
		for i, p := range pieces(step) {
			if i > 0 {
				words += " "
			}
			bare := strings.TrimLeft(p, "(")
			command := strings.TrimRight(bare, ",;:.)")
			first, _, several := strings.Cut(command, " ")
			if !several || first != "ampcio" && first != "systemctl" && first != "df" && !strings.Contains(command, " = ") {
				words += p
				continue
			}
			if words += p[:len(p)-len(bare)]; words != "" {
				phrases = append(phrases, phrase{Text: words})
			}
			phrases = append(phrases, phrase{command, true})
			words = bare[len(command):]
		}
		if words != "" {
			phrases = append(phrases, phrase{Text: words})
		}
		steps = append(steps, phrases)
	}
	return steps
}
