package senders

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strconv"
	"sync"

	"ampcio/recordings"
)

// attempt is one request that is sent, in its bytes.
type attempt struct {
	wire   []byte
	method string // by which its answer is read
	// framed: it ends where it says, so it is one request, gets one answer, and the connection goes on behind it. What is
	// not may be several requests to whom reads it: it is the last on its connection.
	framed bool
	calm   bool // nothing but its body may be wrong, so others can be sent behind it before it is answered
	door   door
	// plain is the body as the daemon should see it, for a 200 to be held against. Of a form it is its identification.
	plain []byte
	what  string // was done to it
}

// door is an endpoint that takes events.
type door struct {
	path, list string // list = the member that has the events; "" = the body itself
	form       bool
}

var (
	httpapi  = door{path: "/2/httpapi", list: "events"}
	batch    = door{path: "/batch", list: "events"}
	root     = door{path: "/", list: "events"}
	identify = door{path: "/identify", list: "identification"}
	form     = door{path: "/identify", form: true}
	webhook  = door{path: "/webhook/amplitude"}
)

// webhookSecret is in the configuration of these trials.
const webhookSecret = "secret-of-the-rehearsed-webhook"

// exported is an event as Amplitude's webhook destination sends it.
const exported = `{"$insert_id":"i-1","amplitude_id":415231237452,"app":312345,"client_event_time":"2026-11-23 11:59:58.612","city":"Berlin","country":"Germany",` +
	`"device_carrier":null,"device_id":"device-1","event_id":187,"event_properties":{"total":12.50},"event_time":"2026-11-23 11:59:58.795","event_type":"Order Placed",` +
	`"groups":{},"ip_address":"203.0.113.9","platform":"iOS","user_id":"user-000001","user_properties":{"plan":"pro","email":"ada@example.com"},"version_name":"3.14.1"}`

const identification = `{"user_id":"user-000001","device_id":"device-0001","user_properties":{"$set":{"plan":"pro","name":"Zoë"},"$add":{"visits":1},"$unset":{"old":"-"}},"app_version":"1.2.3"}`

// template is a body cut where each use is to have something of its own: insert_ids, so that nothing counts as a
// duplicate, and users, so that they do not all wait for one.
type template struct {
	pieces [][]byte // what stands between two cuts
	ids    []string // by cut: the member's name
}

// What is made of patterns is made when it is first asked for: each process of all trials would make it at its start.
var own = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`"(\$?insert_id|user_id|device_id)": ?"([^"]*)"`) })

func cut(body []byte) (t template) {
	from := 0
	for _, at := range own().FindAllSubmatchIndex(body, -1) {
		t.pieces = append(t.pieces, body[from:at[4]])
		t.ids = append(t.ids, string(body[at[2]:at[3]]))
		from = at[5]
	}
	t.pieces = append(t.pieces, body[from:])
	return t
}

// recorded are the bodies of real SDKs, as templates.
var recorded = sync.OnceValue(func() (all []template) {
	for _, r := range recordings.All() {
		all = append(all, cut(r.Body))
	}
	return all
})

var (
	exportedTemplate       = sync.OnceValue(func() template { return cut([]byte(exported)) })
	identificationTemplate = sync.OnceValue(func() template { return cut([]byte(identification)) })
)

// grammar makes requests by chance. It belongs to one goroutine.
type grammar struct {
	*rand.Rand
	name string // of the goroutine, in the insert_ids
	zip  zipper
}

// fill is a body with insert_ids that no other has.
func (g *grammar) fill(to []byte, t template) []byte {
	user := g.IntN(300)
	for i, id := range t.ids {
		to = append(to, t.pieces[i]...)
		switch id {
		case "user_id":
			to = fmt.Appendf(to, "user-%06d", user)
		case "device_id":
			to = fmt.Appendf(to, "device-%06d", user)
		default:
			to = fmt.Appendf(to, "%s-%016x", g.name, g.Uint64())
		}
	}
	return append(to, t.pieces[len(t.pieces)-1]...)
}

// percent says yes so often of a hundred times.
func (g *grammar) percent(n int) bool { return g.IntN(100) < n }

func pick[T any](g *grammar, all []T) T { return all[g.IntN(len(all))] }

// attempt makes a request: a body of a real sender, mutated as a text, packed, framed and addressed, each wrongly now
// and then. At most one layer but the body is wrong at a time, so that a fault is not hidden by another before it.
func (g *grammar) attempt() *attempt {
	a := &attempt{method: "POST", framed: true}
	var header []string
	switch n := g.IntN(100); {
	case n < 60:
		a.door = httpapi
	case n < 72:
		a.door = batch
	case n < 76:
		a.door = root
	case n < 84:
		a.door = identify
	case n < 90:
		a.door = form
	default:
		a.door = webhook
		header = append(header, "Authorization: Bearer "+webhookSecret)
	}
	var body []byte
	switch a.door {
	case webhook:
		body = g.several(exportedTemplate())
	case identify:
		body = append(fmt.Appendf(nil, `{"api_key":%q,"identification":`, recordings.Key), g.several(identificationTemplate())...)
		body = append(body, '}')
	case form:
		body = g.several(identificationTemplate())
	default:
		body = g.fill(nil, pick(g, recorded()))
	}
	layer := pick(g, []string{"body", "body", "body", "body", "body", "body", "coding", "framing", "header", "line"})
	if layer == "body" || g.percent(30) {
		body = g.spoil(body, a)
	}
	a.plain = body
	if a.door.form {
		body, header = g.formOf(body, header, layer == "body")
	} else {
		header = append(header, pick(g, []string{"Content-Type: application/json", "Content-Type: application/json; charset=utf-8", "Content-Type: text/plain;charset=UTF-8", "Content-Type: application/octet-stream"}))
	}
	if layer == "coding" || g.percent(10) {
		body, header = g.coding(body, header, a, layer == "coding")
	}
	a.calm = layer == "body" || layer == "coding"
	g.frame(body, header, a, layer)
	return a
}

// several is one value of a template, or an array of them.
func (g *grammar) several(t template) []byte {
	if g.percent(60) {
		return g.fill(nil, t)
	}
	body := []byte{'['}
	for i := range 1 + g.IntN(4) {
		if i > 0 {
			body = append(body, ',')
		}
		body = g.fill(body, t)
	}
	return append(body, ']')
}

// formOf is an identification as a form: of a browser, or in parts.
func (g *grammar) formOf(identification []byte, header []string, spoil bool) ([]byte, []string) {
	values := url.Values{"api_key": {recordings.Key}, "identification": {string(identification)}}
	if spoil {
		switch g.IntN(12) {
		case 0:
			values.Del("api_key")
		case 1:
			values.Add("identification", string(identification))
		case 2:
			values.Set("options", string(g.value()))
		case 3:
			values.Set("api_key", "strange")
		}
	}
	if !spoil || g.percent(60) {
		body := []byte(values.Encode())
		if spoil && g.percent(10) {
			body = append(body, pick(g, []string{"&x=%", "&x=%zz", "&%f", ";y=1", "&=", "&&&", "\x00", "&api_key=x"})...)
		}
		return body, append(header, "Content-Type: application/x-www-form-urlencoded")
	}
	const boundary = "----ABoundary7MA4YWxk"
	var b bytes.Buffer
	for _, name := range []string{"api_key", "identification", "options"} {
		for _, v := range values[name] {
			fmt.Fprintf(&b, "--%s\r\nContent-Disposition: form-data; name=%q\r\n\r\n%s\r\n", boundary, name, v)
		}
	}
	said := boundary
	switch g.IntN(8) {
	case 0:
		said = pick(g, []string{"", "other", `"`, `"` + boundary, "----A Boundary", string(bytes.Repeat([]byte{'b'}, 300))})
	case 1:
		b.Truncate(g.IntN(b.Len())) // its last part has no end then
	default:
		fmt.Fprintf(&b, "--%s--\r\n", boundary)
	}
	return b.Bytes(), append(header, "Content-Type: multipart/form-data; boundary="+said)
}

var (
	wrongPaths = []string{"/", "//", "/2", "/2/", "/2/httpapi/", "//2//httpapi", "/2/./httpapi", "/x/../2/httpapi", "/../../2/httpapi", "/2/httpapi/../../etc/passwd", "/2/HTTPAPI", "/2/httpapi%00", "/%32/httpapi",
		"/2%2fhttpapi", "/2/httpapi?", "/2/httpapi?api_key=x&e=[]", "/2/httpapi#f", "/httpapi", "/groupidentify", "/healthz", "/readyz", "/stats", "/metrics", "/debug/pprof/", "/do/forget", "/batch/", "/batch/batch", "/identify",
		"/identify?api_key=x&identification={}", "/identify?%zz", "/webhook/amplitude/", "/webhook", "/%", "/%zz", "/\x80\xff", "/" + longText, "http://x/2/httpapi", "http://x:99999/2/httpapi", "https://[::1/2/httpapi", "*", "", "2/httpapi", "x:y",
		"/2/httpapi HTTP/1.1", "/ü", "/2/httpapi\t"}
	wrongMethods  = []string{"GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "post", "Post", "P", "", "POST ", "BREW", "PRI", "\x16\x03\x01", "POST\x00", "PÖST", longText}
	wrongVersions = []string{"HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "HTTP/1.10", "HTTP/3", "http/1.1", "HTTP/1,1", "HTTP/", "", "ICY", "HTTP/-1.1", "HTTP/1.1 x", "HTTP/99999999999999999999.1"}
	wrongHeaders  = []string{"Content-Type: text/html\r\nContent-Type: application/json", "Content-Type: application/x-www-form-urlencoded", "Content-Type: multipart/form-data", "Content-Type: ;;;=", "X: " + longText, "No colon here", ": no name",
		"Name with space: 1", "Space-Before : 1", "Folded: 1\r\n 2", "\tFolded: first", "N\x00l: 1", "Nul: a\x00b", "Control: \x01\x7f", "Ünïcode: ü", "Latin: \xff\xfe", "Bare: a\rb", "Host: twice", "Connection: close", "Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
		"Connection: Upgrade\r\nUpgrade: websocket", "Expect: 100-continue", "Expect: everything", "Expect: 100-continue, 200-ok", "X-Forwarded-For: 1.2.3.4, , nobody, [::1]:x", "X-Forwarded-For: " + longText, "Forwarded: for=\"_x\"",
		"Origin: null", "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST", "Authorization: Bearer", "Authorization: Bearer \x80", "X-Ampcio-Secret: " + longText, "Cookie: a=b; c", "Range: bytes=0-1", "If-None-Match: *", "TE: trailers", "Trailer: Content-Length",
		"Content-Encoding:", "Content-Length-: 5", "Keep-Alive: timeout=99999", "Proxy-Connection: keep-alive", "X-HTTP-Method-Override: DELETE", "Date: never"}
)

// frame writes the request: the line, the header, and the body as its length says.
func (g *grammar) frame(body []byte, header []string, a *attempt, layer string) {
	line := a.method + " " + a.door.path + " HTTP/1.1"
	host := "Host: 127.0.0.1"
	switch layer {
	case "line":
		method, path, version := a.method, a.door.path, "HTTP/1.1"
		switch g.IntN(3) {
		case 0:
			path = pick(g, wrongPaths)
		case 1:
			method = pick(g, wrongMethods)
		case 2:
			version = pick(g, wrongVersions)
			a.framed = false
		}
		if path == "" || method == "" || method == "CONNECT" || method == "PRI" {
			a.framed = false
		}
		a.method, line = method, method+" "+path+" "+version
		a.what += fmt.Sprintf(", line %.60q", line)
	case "header":
		switch g.IntN(8) {
		case 0:
			host = pick(g, []string{"", "Host:", "Host: ", "Host: a b", "Host: ü", "Host: x\r\nHost: y", "Host: [", "Host: " + longText, "HOST: x", "Host: http://x/"})
		case 1:
			for i := range 20 + g.IntN(300) { // beyond 16 kB at the largest
				header = append(header, "X-"+strconv.Itoa(i)+": "+longText[:g.IntN(80)])
			}
		default:
			header = append(header, pick(g, wrongHeaders))
		}
		a.what += fmt.Sprintf(", header %.60q", header[len(header)-1])
	}
	length := "Content-Length: " + strconv.Itoa(len(body))
	if layer == "framing" {
		length, body, a.framed = g.length(body)
		a.what += fmt.Sprintf(", length %.60q", length)
	} else if g.percent(8) {
		length, body = "Transfer-Encoding: chunked", g.chunks(body)
	}
	end := "\r\n"
	if layer == "framing" && g.percent(5) {
		end = "\n" // which RFC 9112 lets a server take
	}
	w := append(make([]byte, 0, len(body)+512), line...)
	w = append(w, end...)
	for _, h := range append([]string{host, length}, header...) {
		if h != "" {
			w = append(append(w, h...), end...)
		}
	}
	a.wire = append(append(w, end...), body...)
}

// length says wrongly how long a body is, or in two ways.
func (g *grammar) length(body []byte) (header string, sent []byte, framed bool) {
	n := len(body)
	said := func(format string, args ...any) string { return fmt.Sprintf("Content-Length: "+format, args...) }
	switch g.IntN(16) {
	case 0:
		return said("%d", g.IntN(n+1)), body, false // what is behind it is taken for a request
	case 1:
		return said("%d", n+1+g.IntN(1000)), body, false // and never comes
	case 2:
		return said("%d\r\nContent-Length: %d", n, n), body, true
	case 3:
		return said("%d\r\nContent-Length: %d", n, n+1), body, false
	case 4:
		return said("%d", n) + "\r\nTransfer-Encoding: chunked", g.chunks(body), false
	case 5:
		return "Transfer-Encoding: chunked\r\n" + said("0"), g.chunks(body), false
	case 6:
		return "Transfer-Encoding: " + pick(g, []string{"gzip", "identity", "chunked, gzip", "gzip, chunked", "xchunked", "chunked\r\nTransfer-Encoding: chunked", " chunked", "\vchunked", "chunked,", "\"chunked\"", ""}), g.chunks(body), false
	case 7:
		return said("%s", pick(g, []string{"-1", "+5", "0x10", "1e3", " ", "99999999999999999999", "9223372036854775807", "5, 5", "1_0", "٣", "12 34", "NaN"})), body, false
	case 8:
		return "", body, false
	case 9: // smuggled: a whole request behind one that ends before it
		return said("0"), append([]byte(fmt.Sprintf("POST /2/httpapi HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", n)), body...), false
	case 10:
		return "Transfer-Encoding: chunked", append([]byte("0\r\n\r\n"), body...), false
	default:
		chunked := g.chunks(body)
		i := g.IntN(len(chunked))
		switch g.IntN(5) {
		case 0:
			chunked = chunked[:i]
		case 1:
			chunked[min(i, 3)] = byte(g.IntN(256))
		case 2:
			chunked = append([]byte(pick(g, []string{"-1\r\n", "ffffffffffffffffff\r\n", "7fffffffffffffff\r\n", "g\r\n", "\r\n", "0x5\r\n", "5;" + longText + "\r\n", " 5\r\n", "+5\r\n"})), chunked...)
		case 3:
			chunked = append(chunked[:len(chunked)-2], pick(g, []string{"X: y\r\n\r\n", "Content-Length: 3\r\n\r\n", "X: " + longText + "\r\n\r\n", "broken\r\n\r\n", "\r"})...)
		case 4:
			chunked = bytes.ReplaceAll(chunked, []byte("\r\n"), []byte("\n"))
		}
		return "Transfer-Encoding: chunked", chunked, false
	}
}

// chunks is a body in chunks, as it should be.
func (g *grammar) chunks(body []byte) (to []byte) {
	for len(body) > 0 {
		n := 1 + g.IntN(len(body))
		to = append(fmt.Appendf(to, "%x\r\n", n), body[:n]...)
		to = append(to, "\r\n"...)
		body = body[n:]
	}
	return append(to, "0\r\n\r\n"...)
}
