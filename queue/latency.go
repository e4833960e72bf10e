package queue

import (
	"slices"
	"time"
)

// LatencyBounds are the upper bounds of the classes in which the times from a record's
// receipt to its delivery are counted; what took longer is in one more class.
var LatencyBounds = latencyBounds()

// latencyClasses is how many classes there are: six in each of eight tenfolds, and one.
const latencyClasses = 8*6 + 1

func latencyBounds() []time.Duration {
	var bounds []time.Duration
	for unit := 10 * time.Millisecond; len(bounds) < latencyClasses-1; unit *= 10 {
		for _, tenths := range []time.Duration{10, 15, 20, 30, 50, 70} {
			bounds = append(bounds, unit*tenths/10)
		}
	}
	return bounds
}

// latencyMinutes is how long a time counts as one of the last minutes.
const latencyMinutes = 5

// latencies count how long records took: since the open, and in each of the last minutes.
// It is guarded by the consumer, and costs a record some nanoseconds.
type latencies struct {
	total   [latencyClasses]uint64
	sum     time.Duration
	minutes [latencyMinutes + 1]struct {
		minute int64 // since 1970
		counts [latencyClasses]uint64
	}
}

func (l *latencies) note(nowMillis, receivedMillis int64) {
	took := time.Duration(max(nowMillis-receivedMillis, 0)) * time.Millisecond
	class, _ := slices.BinarySearch(LatencyBounds, took)
	l.total[class]++
	l.sum += took
	minute := nowMillis / 60_000
	m := &l.minutes[minute%int64(len(l.minutes))]
	if m.minute != minute {
		m.minute, m.counts = minute, [latencyClasses]uint64{}
	}
	m.counts[class]++
}

// Latencies are how long records took from receipt to delivery, by class of LatencyBounds.
// Dead letters that are tried again and what was rewound are not among them.
type Latencies struct {
	Recent []uint64 // in the last minutes
	Total  []uint64 // since the open: these only grow
	Sum    time.Duration
}

func (l *latencies) stats(nowMillis int64) Latencies {
	recent := make([]uint64, latencyClasses)
	for i := range l.minutes {
		m := &l.minutes[i]
		if age := nowMillis/60_000 - m.minute; age < 0 || age > latencyMinutes {
			continue
		}
		for class, n := range m.counts {
			recent[class] += n
		}
	}
	return Latencies{recent, slices.Clone(l.total[:]), l.sum}
}

// Quantile is the time within which a share of the recent ones was delivered; nil when
// there are none.
func (l Latencies) Quantile(share float64) *time.Duration {
	var all uint64
	for _, n := range l.Recent {
		all += n
	}
	if all == 0 {
		return nil
	}
	wanted, below := share*float64(all), 0.0
	for class, n := range l.Recent {
		if n == 0 || below+float64(n) < wanted {
			below += float64(n)
			continue
		}
		var low, high time.Duration
		if class > 0 {
			low = LatencyBounds[class-1]
		}
		if high = low; class < len(LatencyBounds) {
			high = LatencyBounds[class]
		}
		q := low + time.Duration((wanted-below)/float64(n)*float64(high-low))
		return &q
	}
	return &LatencyBounds[len(LatencyBounds)-1]
}
