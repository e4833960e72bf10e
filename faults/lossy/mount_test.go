package lossy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"

	"ampcio-faults/child"
)

func TestMain(m *testing.M) {
	child.Register("bolt", workWithBolt)
	child.Main()
	os.Exit(m.Run())
}

// workWithBolt puts numbers into a bbolt file, one a transaction, and acknowledges each.
func workWithBolt(args []string) error {
	ack, err := os.OpenFile(filepath.Join(args[0], AckFile), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	db, err := bolt.Open(filepath.Join(args[0], "numbers"), 0o600, nil)
	if err != nil {
		return err
	}
	for i := range 50 {
		err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			return b.Put(fmt.Appendf(nil, "%04d", i), make([]byte, 1000))
		})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(ack, "put %d\n", i); err != nil {
			return err
		}
	}
	return db.Close()
}

func mount(t *testing.T) *Mount {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root mounts")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip(err)
	}
	m, err := NewMount(filepath.Join(t.TempDir(), "m"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// TestALogLeadsToTheSameDisk: what was recorded, done again, has the content that the program saw.
func TestALogLeadsToTheSameDisk(t *testing.T) {
	m := mount(t)
	l := m.Begin(Image{}, LifeOptions{Record: true})
	if out, err := child.Command("bolt", l.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d, acks := NewDisk(false), 0
	for _, o := range l.Log() {
		d.Apply(o)
		if o.Kind == Ack {
			if acks++; !strings.HasPrefix(string(o.Data), "put ") {
				t.Errorf("ack %q", o.Data)
			}
		}
	}
	if acks != 50 {
		t.Errorf("%d acks", acks)
	}
	again, live := text(d.Image(nil, DropAll, 0).Files["numbers"]), text(l.Image(nil, DropAll, 0).Files["numbers"])
	if again != live || len(live) < 50*1000 {
		t.Errorf("%d and %d bytes", len(again), len(live))
	}
}

func TestFaultsAreMet(t *testing.T) {
	m := mount(t)
	for _, c := range []struct {
		name  string
		fault Fault
		want  syscall.Errno
	}{
		{"write", Fault{Kinds: []Kind{Write}, N: 7, Errno: syscall.ENOSPC}, syscall.ENOSPC},
		{"sync", Fault{Kinds: []Kind{Sync}, N: 3, Errno: syscall.EIO}, syscall.EIO},
		{"forgetful sync", Fault{Kinds: []Kind{Sync}, N: 3, Errno: syscall.EIO, Forgets: true}, syscall.EIO},
		{"any, for ever", Fault{N: 20, Sticky: true, Errno: syscall.EIO}, syscall.EIO},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := m.Begin(Image{}, LifeOptions{})
			l.Inject(&c.fault)
			out, err := child.Command("bolt", l.Path).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !strings.Contains(string(out), c.want.Error()) {
				t.Errorf("%v: %s", err, out)
			}
			if n := l.Fired(); n == 0 || n > 1 && !c.fault.Sticky {
				t.Errorf("fired %d times", n)
			}
		})
	}
}

func TestACutKeepsWhatWasAcknowledged(t *testing.T) {
	m := mount(t)
	for _, strict := range []bool{false, true} {
		for n := 1; n < 200; n += 23 {
			l := m.Begin(Image{}, LifeOptions{Strict: strict})
			l.CutAt(n)
			cmd := child.Command("bolt", l.Path)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-l.Dead()
			cmd.Process.Kill()
			cmd.Wait()
			acked := l.Acks()
			if acked == 0 || strict {
				continue // bbolt does not sync the folder
			}
			path := filepath.Join(t.TempDir(), "image")
			if err := l.Image(rand.New(rand.NewPCG(1, uint64(n))), Pages, 0.5).WriteTo(path); err != nil {
				t.Fatal(err)
			}
			db, err := bolt.Open(filepath.Join(path, "numbers"), 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			db.View(func(tx *bolt.Tx) error {
				if k, _ := tx.Bucket([]byte("b")).Cursor().Last(); string(k) < fmt.Sprintf("%04d", acked-1) {
					t.Errorf("cut at %d: %s is the last, %d were acknowledged", n, k, acked)
				}
				return nil
			})
			db.Close()
		}
	}
}
