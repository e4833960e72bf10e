package logbook

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// open is a book whose log can be read, without times.
func open() (*Book, *bytes.Buffer) {
	var log bytes.Buffer
	return New(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})), time.Now), &log
}

var full = Line{Level: slog.LevelError, Message: "events refused", Over: "events are taken again", Quiet: time.Minute}

func TestALongTroubleIsFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, log := open()
		end := time.Now().Add(41 * time.Minute)
		for time.Now().Before(end) {
			b.Note(full, "503", 1, "cause", errors.New("the disk"))
			time.Sleep(137 * time.Millisecond)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		want := `level=ERROR msg="events refused" cause="the disk"
level=ERROR msg="events refused" cause="the disk" times="74 × 503 in 10s" count=74
level=ERROR msg="events refused" cause="the disk" times="512 × 503 in 1m10s" count=512
level=ERROR msg="events refused" cause="the disk" times="4,892 × 503 in 11m" count=4892
level=INFO msg="events are taken again" reason=503 times="17,957 × 503 in 40m" count=17957
`
		if log.String() != want {
			t.Errorf("got:\n%swant:\n%s", log, want)
		}
	})
}

func TestWhatHappensOnceIsOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, log := open()
		b.Note(full, "503", 1)
		b.Note(full, "504", 0)
		time.Sleep(time.Hour)
		synctest.Wait()
		b.Note(full, "503", 1)
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("%s", log)
		}
	})
}

// One kind of trouble hides no other, and each count is told in the end, also when
// ampcio stops.
func TestNothingIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, log := open()
		for range 5 {
			b.Note(full, "503", 2)
			b.Note(full, "busy", 1)
			time.Sleep(time.Second)
		}
		b.Close()
		b.Close()
		time.Sleep(time.Hour)
		for _, want := range []string{"10 × 503 in 4s", "5 × busy in 4s"} {
			if strings.Count(log.String(), want) != 1 {
				t.Errorf("%q not once in\n%s", want, log)
			}
		}
		if n := strings.Count(log.String(), "\n"); n != 4 {
			t.Errorf("%d lines:\n%s", n, log)
		}
	})
}

func TestSomebodySaysThatItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, log := open()
		l := Line{Level: slog.LevelWarn, Message: "not written", Over: "written again"}
		b.Over(l, "")
		b.Note(l, "", 1)
		time.Sleep(100 * time.Hour)
		b.Over(l, "", "more", 1)
		b.Over(l, "")
		want := "level=WARN msg=\"not written\"\nlevel=INFO msg=\"written again\" more=1 times=\"1 time in 0s\" count=1\n"
		if log.String() != want {
			t.Errorf("%s", log)
		}
	})
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 400 * time.Millisecond: "0s", 59 * time.Second: "59s", time.Minute: "1m", 90 * time.Second: "1m30s", 41*time.Minute + 12*time.Second: "41m",
		72 * time.Minute: "1h12m", 47 * time.Hour: "47h", 76 * time.Hour: "3d4h", 31*24*time.Hour + time.Hour: "31d",
	} {
		if got := Short(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}
