package load

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Base is added to each user's sequence numbers, which begin at 1: so they have the same width in every body.
const Base = 1_000_000_000_000

// Key is the API key of all bodies.
const Key = "0123456789abcdef0123456789abcdef"

// body is a request that is made once; what differs from one sending to the next has a fixed width and is written over.
type body struct {
	bytes []byte
	slots []slot
}

// slot says where the variable parts of an event are. 0 = it has none.
type slot struct{ user, device, time, insert, logins, seq, sent int }

// event is what is written over.
type event struct {
	user, run, number, seq uint64
	us                     int64 // of sending, since 1970
}

func (b *body) set(i int, e event) {
	s, p := &b.slots[i], b.bytes
	decimal(p[s.user:s.user+9], e.user)
	decimal(p[s.device:s.device+9], e.user)
	decimal(p[s.time:s.time+13], uint64(e.us/1000))
	hex(p[s.insert:s.insert+12], e.run)
	hex(p[s.insert+12:s.insert+24], e.number)
	if s.logins > 0 {
		decimal(p[s.logins:s.logins+8], 10_000_000+(e.seq+e.run)%90_000_000)
	}
	decimal(p[s.seq:s.seq+13], Base+e.seq)
	decimal(p[s.sent:s.sent+16], uint64(e.us))
}

func decimal(b []byte, v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + v%10)
		v /= 10
	}
}

func hex(b []byte, v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = "0123456789abcdef"[v&15]
		v >>= 4
	}
}

var (
	names  = strings.Split("Product Viewed,Cart Updated,Checkout Started,Order Completed,Search Performed,Page Viewed,Signup Completed,Login,Video Played,Notification Opened,Filter Applied,Coupon Applied", ",")
	cities = strings.Fields("Berlin Lisbon Toronto Osaka Nairobi Austin Lyon Gdansk")
	words  = strings.Fields("amber basin cedar delta ember fjord grove heron inlet jetty knoll larch marsh north ocean pearl quartz ridge shoal thorn umber vale wharf yarrow zephyr")
)

// newBody makes a body of n events of size bytes each, as Amplitude's SDKs send them. Users who are steady never change a property.
func newBody(n, size int, steady bool, r *rand.Rand) *body {
	var b bytes.Buffer
	all := &body{slots: make([]slot, n)}
	fmt.Fprintf(&b, `{"api_key":%q,"events":[`, Key)
	for i := range all.slots {
		if i > 0 {
			b.WriteByte(',')
		}
		from, s := b.Len(), &all.slots[i]
		gap := func(before string, width int) int {
			b.WriteString(before)
			at := b.Len()
			b.WriteString(strings.Repeat("0", width))
			return at
		}
		s.user = gap(`{"user_id":"user-`, 9)
		s.device = gap(`","device_id":"dev-`, 9)
		s.time = gap(fmt.Sprintf(`","event_type":%q,"time":`, names[r.IntN(len(names))]), 13)
		s.insert = gap(`,"insert_id":"`, 24)
		fmt.Fprintf(&b, `","session_id":17000000%05d,"app_version":"4.12.3","platform":"iOS","os_name":"ios","os_version":"17.4.1","device_brand":"Apple","device_model":"iPhone15,2","country":"Germany","city":"Berlin","language":"de","ip":"203.0.113.%d","user_properties":{"plan":"premium"`, r.IntN(1e5), r.IntN(255))
		if !steady {
			s.logins = gap(`,"logins":`, 8)
		}
		s.seq = gap(`},"event_properties":{"seq":`, 13)
		s.sent = gap(`,"sent":`, 16)
		fmt.Fprintf(&b, `,"product_id":"sku-%07d","category":%q,"price":%d.%02d,"currency":"EUR","position":%d,"in_stock":%t,"city":%q`,
			r.IntN(1e7), words[r.IntN(len(words))], 1+r.IntN(900), r.IntN(100), r.IntN(50), r.IntN(2) == 0, cities[r.IntN(len(cities))])
		for k := 0; b.Len()-from < size-60; k++ {
			fmt.Fprintf(&b, `,"p%d":"%s-%s %d"`, k, words[r.IntN(len(words))], words[r.IntN(len(words))], r.IntN(1e6))
		}
		b.WriteString(`,"x":"`)
		for b.Len()-from < size-len(`"}}`) {
			b.WriteByte('a' + byte(r.IntN(26)))
		}
		b.WriteString(`"}}`)
	}
	b.WriteString(`]}`)
	all.bytes = b.Bytes()
	return all
}

// A Request is a body for who calls the rooms of ampcio themselves.
type Request struct {
	b    *body
	sent uint64
}

// NewRequest makes one of n events.
func NewRequest(n int) *Request {
	return &Request{b: newBody(n, 700, false, rand.New(rand.NewPCG(1, uint64(n))))}
}

// Next has other events of so many users each time; the bytes are the same ones.
func (r *Request) Next(users int) []byte {
	for i := range r.b.slots {
		r.b.set(i, event{user: r.sent % uint64(users), number: r.sent, seq: r.sent/uint64(users) + 1, us: 1_795_432_617_042_123 + int64(r.sent)})
		r.sent++
	}
	return r.b.bytes
}
