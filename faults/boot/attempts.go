package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"ampcio-faults/child"
)

// An attempt is something that the service must not be able to do, or must be, from within its sandbox.
type attempt struct {
	name string
	may  bool // the service needs it
	// container says that a container forbids it even to root, so that it shows nothing but that nothing else allows it.
	container bool
	try       func() error // nil = it could be done
}

// scratch is a folder where whoever tries may write.
const scratch = "/var/lib/ampcio"

var attempts = []attempt{
	{name: "write to its storage", may: true, try: func() error { return create(scratch + "/probe") }},
	{name: "write to its runtime folder", may: true, try: func() error { return create("/run/ampcio/probe") }},
	{name: "write to /tmp", may: true, try: func() error { return create("/tmp/probe") }},
	{name: "read its configuration", may: true, try: func() error { return read("/etc/ampcio/config.toml") }},
	{name: "listen", may: true, try: listen},
	{name: "connect to Customer.io", may: true, try: connect},

	{name: "change its configuration", try: func() error { return open("/etc/ampcio/config.toml", unix.O_WRONLY) }},
	{name: "write to /etc", try: func() error { return create("/etc/probe") }},
	{name: "write to /usr/bin", try: func() error { return create("/usr/bin/probe") }},
	{name: "write to /var", try: func() error { return create("/var/probe") }},
	{name: "write to /boot", try: func() error { return create("/boot/probe") }},
	{name: "read files of others in /tmp", try: func() error { return read("/tmp/others") }},
	{name: "read /home", try: func() error { return read("/home/others") }},
	{name: "read /root", try: func() error { return read("/root/others") }},
	{name: "read /etc/shadow", try: func() error { return read("/etc/shadow") }},
	{name: "read the file of the key", try: func() error { return read("/etc/ampcio/customerio_api_key") }},
	{name: "see processes of others", try: func() error { return read("/proc/1/status") }},
	{name: "read kernel variables", try: func() error { return read("/proc/sys/kernel/ostype") }},
	{name: "change kernel variables", try: func() error { return open("/proc/sys/net/ipv4/ip_forward", unix.O_WRONLY) }},
	{name: "make a control group", try: func() error { return folder("/sys/fs/cgroup/systemd/probe") }},
	{name: "open a device", try: func() error { return open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY) }},
	{name: "read the kernel's log", container: true, try: func() error { return open("/dev/kmsg", unix.O_RDONLY) }},
	{name: "make a device", try: func() error { return device(scratch + "/probe-null") }},
	{name: "make a set-user-id program", try: func() error { return setuid(scratch + "/probe-suid") }},
	{name: "become root by a set-user-id program", try: becomeRoot},
	{name: "become another user", try: func() error { return errno(unix.RawSyscall(unix.SYS_SETUID, 1, 0, 0)) }},
	{name: "signal init", try: func() error { return unix.Kill(1, 0) }},
	{name: "raw socket", try: func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
	{name: "packet socket", try: func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW, 0) }},
	{name: "netlink socket", try: func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE) }},
	{name: "trace a process", try: trace},
	{name: "mount", try: func() error { return mount(scratch + "/probe-mount") }},
	{name: "chroot", try: func() error { return unix.Chroot("/") }},
	{name: "user namespace", container: true, try: func() error { return unix.Unshare(unix.CLONE_NEWUSER | unix.CLONE_FS) }},
	{name: "mount namespace", try: func() error { return unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS) }},
	{name: "network namespace", try: func() error { return unix.Unshare(unix.CLONE_NEWNET) }},
	{name: "change the host's name", try: hostname},
	{name: "memory to write and execute", try: executable},
	{name: "another personality", try: func() error { return errno(unix.RawSyscall(unix.SYS_PERSONALITY, 0x0008, 0, 0)) }},
	{name: "real-time scheduling", container: true, try: realtime},
	{name: "change its priority", try: func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, 5) }},
	{name: "reboot", try: reboots},
	{name: "load a module", container: true, try: func() error { return unix.InitModule([]byte("no module"), "") }},
	{name: "set the clock", container: true, try: setClock},
	{name: "kernel keyring", container: true, try: func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, true); return err }},
	{name: "BPF", container: true, try: func() error { return errno(unix.Syscall(unix.SYS_BPF, 0, 0, 0)) }},
	{name: "swap", container: true, try: func() error { return errno(unix.Syscall(unix.SYS_SWAPOFF, 0, 0, 0)) }},
}

// confinement is what somebody could do, and who that was.
type confinement struct {
	Could  map[string]string // by attempt: "" or what came instead
	Status map[string]string // of /proc/self/status
	Mounts []string          // where, and how: of /proc/self/mountinfo
}

func init() { child.Register("attempts", makeAttempts) }

// makeAttempts is the work of a child: it tries everything, and says what came of it.
func makeAttempts([]string) error {
	c := confinement{Could: map[string]string{}}
	var err error
	if c.Status, c.Mounts, err = confinementOf("self"); err != nil {
		// Without a look at itself the attempts say less.
		return err
	}
	for _, a := range attempts {
		done := make(chan error)
		go func() {
			// Never unlocked: whatever an attempt makes of its thread ends with it.
			runtime.LockOSThread()
			done <- a.try()
		}()
		if err := <-done; err != nil {
			c.Could[a.name] = err.Error()
		} else {
			c.Could[a.name] = ""
		}
	}
	return json.NewEncoder(os.Stdout).Encode(c)
}

// confinementOf reads what the kernel says of a process.
func confinementOf(process string) (status map[string]string, mounts []string, err error) {
	b, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return nil, nil, err
	}
	status = map[string]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters":
			status[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	if b, err = os.ReadFile("/proc/" + process + "/mountinfo"); err != nil {
		return nil, nil, err
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n") {
		if f := strings.Fields(line); len(f) > 5 {
			mounts = append(mounts, f[4]+" "+f[5])
		}
	}
	return status, mounts, nil
}

func errno(_, _ uintptr, e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

func open(name string, how int) error {
	f, err := os.OpenFile(name, how, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func create(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(name))
}

func read(name string) error {
	_, err := os.ReadFile(name)
	return err
}

func folder(name string) error {
	if err := os.Mkdir(name, 0o700); err != nil {
		return err
	}
	return os.Remove(name)
}

func listen() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return l.Close()
}

func connect() error {
	c, err := net.Dial("tcp", customerioAddress)
	if err != nil {
		return err
	}
	return c.Close()
}

func device(name string) error {
	if err := unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	return os.Remove(name)
}

func setuid(name string) error {
	if err := os.WriteFile(name, nil, 0o700); err != nil {
		return err
	}
	return errors.Join(unix.Chmod(name, 0o4755), os.Remove(name))
}

// setuidProgram is a copy of id that belongs to root and is set-user-id.
const setuidProgram = "/usr/bin/id-of-root"

func becomeRoot() error {
	out, err := exec.Command(setuidProgram, "-u").CombinedOutput()
	if who := strings.TrimSpace(string(out)); err != nil || who != "0" {
		return errors.Join(fmt.Errorf("it is run by %s", who), err)
	}
	return nil
}

func socket(domain, kind, protocol int) error {
	fd, err := unix.Socket(domain, kind, protocol)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func trace() error {
	other := exec.Command("/usr/bin/sleep", "60")
	if err := other.Start(); err != nil {
		return err
	}
	err := unix.PtraceAttach(other.Process.Pid)
	_ = other.Process.Kill()
	_ = other.Wait()
	return err
}

func mount(on string) error {
	if err := os.Mkdir(on, 0o700); err != nil {
		return err
	}
	err := unix.Mount("tmpfs", on, "tmpfs", 0, "")
	if err == nil {
		err = unix.Unmount(on, unix.MNT_DETACH)
	}
	return errors.Join(err, os.Remove(on))
}

func hostname() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	return unix.Sethostname([]byte(unix.ByteSliceToString(u.Nodename[:])))
}

func executable() error {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	return unix.Munmap(b)
}

func realtime() error {
	const fifo = 1
	priority := int32(1)
	return errno(unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, 0, fifo, uintptr(unsafe.Pointer(&priority))))
}

// reboots asks with a number that is none: who may reboot is told so.
func reboots() error {
	if err := errno(unix.Syscall(unix.SYS_REBOOT, 0, 0, 0)); !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

func setClock() error {
	var now unix.Timeval
	if err := unix.Gettimeofday(&now); err != nil {
		return err
	}
	return unix.Settimeofday(&now)
}

// unitOfAttempts is the real unit, with other things to do: whatever restricts the service restricts the attempts.
func unitOfAttempts(unit, program string) string {
	var b strings.Builder
	for line := range strings.Lines(unit) {
		key, _, _ := strings.Cut(line, "=")
		switch key {
		case "Requires", "After", "Wants", "Sockets", "ExecReload", "Restart", "RestartSec", "RestartPreventExitStatus", "WatchdogSec", "WantedBy", "Also":
		case "Type":
			b.WriteString("Type=oneshot\n")
		case "ExecStart":
			fmt.Fprintf(&b, "ExecStart=%s\nEnvironment=%s\n", filepath.Clean(program), child.Environment("attempts"))
		default:
			b.WriteString(line)
		}
	}
	return b.String()
}
