package boot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ampcio/sandbox"
)

// A machine is a booted container, whose Customer.io is this process: it answers inside of the machine's own network, and
// remembers what it has got when the power of the machine goes off.
type machine struct {
	script  *exec.Cmd
	orders  io.WriteCloser
	answers *bufio.Reader
	said    bytes.Buffer // by the script

	customerio *sandbox.Sandbox

	mu      sync.Mutex
	leader  int      // process id of its init; 0 = it is off
	network *os.File // its network; nil = it is off
	server  *http.Server
}

// Where Customer.io is for the machine, and where SDKs connect: the default of ampcio.socket.
const (
	customerioAddress = "127.0.0.1:8090"
	publicAddress     = "127.0.0.1:8080"
)

// newMachine makes a machine that is off. Its files are in TMPDIR, in memory, until it is closed.
func newMachine(ctx context.Context, customerio *sandbox.Sandbox) (*machine, error) {
	m := &machine{script: exec.Command("boot/container"), customerio: customerio}
	// Ctrl-C is for this process, which ends the script by closing its input.
	m.script.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	m.script.Stderr = &m.said
	var err error
	if m.orders, err = m.script.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := m.script.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.answers = bufio.NewReader(out)
	if err := m.script.Start(); err != nil {
		return nil, err
	}
	if _, err := m.answer(ctx, "ready"); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// close ends the machine, and waits until nothing of it is left.
func (m *machine) close() error {
	m.down()
	m.customerio.Close()
	_ = m.orders.Close()
	rest, err := io.ReadAll(m.answers)
	if err = errors.Join(err, m.script.Wait()); err != nil {
		return fmt.Errorf("the container ended badly: %w\n%s%s", err, rest, m.said.Bytes())
	}
	return nil
}

// order has the script do something, which ends with an answer.
func (m *machine) order(ctx context.Context, what, want string) (string, error) {
	if _, err := fmt.Fprintln(m.orders, what); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	got, err := m.answer(ctx, want)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return got, nil
}

// answer reads a line of the script; want "" = any.
func (m *machine) answer(ctx context.Context, want string) (string, error) {
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		s, err := m.answers.ReadString('\n')
		read <- line{strings.TrimSpace(s), err}
	}()
	select {
	case l := <-read:
		if l.err != nil || want != "" && l.text != want {
			return "", fmt.Errorf("the container said %q instead of %q: %w", l.text, want, errors.Join(l.err, errContainer))
		}
		return l.text, nil
	case <-ctx.Done():
		// The reader above ends with the script, which nobody asks any more after this.
		_ = m.orders.Close()
		<-read
		return "", context.Cause(ctx)
	}
}

var errContainer = errors.New("it does not do what it is told")

// boot switches the machine on. Customer.io is there before any service starts that is enabled; but for the moment until then.
func (m *machine) boot(ctx context.Context) error {
	answer, err := m.order(ctx, "boot", "")
	if err != nil {
		return err
	}
	leader, err := strconv.Atoi(answer)
	if err != nil {
		return fmt.Errorf("the container does not boot: %s", answer)
	}
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", leader))
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.leader, m.network = leader, network
	m.mu.Unlock()
	var l net.Listener
	err = m.inside(func() (err error) {
		l, err = net.Listen("tcp", customerioAddress)
		return err
	})
	if err != nil {
		return err
	}
	m.server = &http.Server{Handler: m.customerio, ReadHeaderTimeout: time.Minute}
	go func(s *http.Server) { _ = s.Serve(l) }(m.server)
	return nil
}

// cut switches the machine off as a power failure does; halt as an operator does.
func (m *machine) cut(ctx context.Context) error  { return m.off(ctx, "cut") }
func (m *machine) halt(ctx context.Context) error { return m.off(ctx, "halt") }

func (m *machine) off(ctx context.Context, how string) error {
	_, err := m.order(ctx, how, "off")
	m.down()
	return err
}

// down forgets the machine's network, which ends with it.
func (m *machine) down() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.network != nil {
		_ = m.server.Close()
		_ = m.network.Close()
	}
	m.leader, m.network = 0, nil
}

var errOff = errors.New("the machine is off")

// serving is the process, by this machine's number, that has the admin socket open; 0 = none. Unlike a question to systemd
// it costs next to nothing.
func (m *machine) serving() int {
	c, err := net.Dial("unix", m.path("/run/ampcio/admin.sock"))
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	return pid
}

// inside does f in the machine's network: what it opens there stays there.
func (m *machine) inside(f func() error) error {
	m.mu.Lock()
	if m.network == nil {
		m.mu.Unlock()
		return errOff
	}
	there, err := unix.FcntlInt(m.network.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	defer unix.Close(there)
	runtime.LockOSThread()
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(here)
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if back := unix.Setns(here, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // locked still: the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// dial connects from within the machine's network.
func (m *machine) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = m.inside(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// path is a file of the machine, as this process reaches it.
func (m *machine) path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.leader), name)
}

// run runs a command in the machine, as root, and gives what it says.
func (m *machine) run(ctx context.Context, command ...string) (string, error) {
	return m.runWith(ctx, nil, command...)
}

func (m *machine) runWith(ctx context.Context, input []byte, command ...string) (string, error) {
	if m.leader == 0 {
		return "", errOff
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(m.leader), "--all", "--wd=/", "--"}, command...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	// Files, not pipes: a pipe is at its end when nobody has it open any more, and what nsenter leaves in the machine when it
	// is killed may have it for as long as the machine is on.
	in, err := memory(input)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := memory(nil)
	if err != nil {
		return "", err
	}
	defer out.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, out
	err = cmd.Run()
	text, unread := io.ReadAll(io.NewSectionReader(out, 0, 1<<30))
	said := strings.TrimSpace(string(text))
	if err = errors.Join(err, unread); err != nil {
		return said, fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, said)
	}
	return said, nil
}

// memory is a file that has no name, and this text.
func memory(text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("text", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "text")
	if _, err := f.WriteAt(text, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// all runs commands one after the other.
func (m *machine) all(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		if _, err := m.run(ctx, strings.Fields(c)...); err != nil {
			return err
		}
	}
	return nil
}

// write writes a file of the machine.
func (m *machine) write(ctx context.Context, name, mode, group, text string) error {
	_, err := m.runWith(ctx, []byte(text), "install", "-D", "-m", mode, "-g", group, "/dev/stdin", name)
	return err
}

// soonLimit is far above what anything here takes: ten times the slowest on a machine that is busy.
const soonLimit = 90 * time.Second

// soon waits until something is so; the last error of yes says what it is like instead.
func soon(ctx context.Context, what string, yes func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, soonLimit)
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		ok, err := yes()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited for: %s: %w", what, context.Cause(ctx)), err)
		case <-time.After(pause):
		}
	}
}
