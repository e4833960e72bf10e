package delivery

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"ampcio/mapping"
)

// hasty answers without having read the request, and reads it when somebody else's stands in its memory.
type hasty struct{ kept []io.ReadCloser }

func (h *hasty) RoundTrip(r *http.Request) (*http.Response, error) {
	first := make([]byte, 5)
	if _, err := io.ReadFull(r.Body, first); err != nil {
		return nil, err
	}
	again, err := r.GetBody() // a connection was stale
	if err != nil {
		return nil, err
	}
	h.kept = append(h.kept, r.Body, again)
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
}

// Once a request is answered its bytes are the next batch's: a transport that is still sending gets no more of them.
func TestNobodyReadsWhatIsTheNextBatchs(t *testing.T) {
	h := &hasty{}
	c := newClient(Options{Region: "us", Transport: h}.withDefaults())
	memory := []byte(`{"action":"event","of":"one person"}`)
	if a := c.do(t.Context(), http.MethodPost, batchPath, content{[]byte(batchOpen), memory, []byte(batchClose)}); a.err != nil || a.status != 200 {
		t.Fatal(a)
	}
	copy(memory, `{"action":"event","of":"another"}   `)
	for i, body := range h.kept {
		if late, err := io.ReadAll(body); len(late) > 0 || err != nil {
			t.Errorf("reader %d still got %q (%v)", i, late, err)
		}
	}
}

// A request's content is the same whether its operations stand in their batch's room in a row, or some of them elsewhere.
func TestElements(t *testing.T) {
	rules, err := mapping.Compile(mapping.Spec{Identifier: "user_id", SendEvents: true, Select: []mapping.SelectSpec{{Event: []string{"*"}}}})
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{room: mapping.NewRoom(32 << 10)}
	of := &taken{memory: m}
	var all []*operation
	var texts []string
	for n := range 20 {
		r := &mapping.Record{UserID: fmt.Sprint("u", n), Properties: []byte("{}"), Raw: []byte(`{"event_type":"A"}`)}
		id, _ := rules.Identifier(r)
		d, err := rules.MapInto(m.room, r, id, nil)
		if err != nil || len(d.Operations) != 1 {
			t.Fatal(d, err)
		}
		all = append(all, &operation{of: of, body: d.Operations[0].Body})
		texts = append(texts, string(d.Operations[0].Body))
	}
	check := func(what string, operations []*operation, texts []string, inPlace bool) {
		t.Helper()
		got := elements(operations)
		if string(got) != strings.Join(texts, ",") {
			t.Errorf("%s: %s", what, got)
		}
		if stands := len(got) > 0 && &got[0] == &operations[0].body[0]; stands != inPlace {
			t.Errorf("%s: sent from where it stands: %t", what, stands)
		}
	}
	check("all", all, texts, true)
	check("half", all[10:], texts[10:], true)
	check("one", all[3:4], texts[3:4], true)
	check("none", nil, nil, false)
	check("one left out", append(all[:4:4], all[5:]...), append(texts[:4:4], texts[5:]...), false)
	all[7].body = []byte(texts[7])
	check("one stands elsewhere", all[:8], texts[:8], false)
	check("one in the middle stands elsewhere", all, texts, false)
	check("before it", all[:7], texts[:7], true)
}

func TestSlab(t *testing.T) {
	var s slab[int]
	for round := range 3 {
		seen := map[*int]bool{}
		for n := range 600 {
			some := s.take(n % 300)
			if len(some) != n%300 || cap(some) != len(some) {
				t.Fatal(len(some), cap(some))
			}
			for i := range some {
				if some[i] != 0 || seen[&some[i]] {
					t.Fatalf("round %d: an element was given twice", round)
				}
				seen[&some[i]], some[i] = true, n+1
			}
		}
		s.reset()
	}
}
