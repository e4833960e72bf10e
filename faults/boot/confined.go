package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"ampcio-faults/child"
)

// credential: the key is the service's alone. It shows in no environment and no command line, and no other user, no other
// service can read it, nor the service its file.
func credential(ctx context.Context, s *story) error {
	now, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	for _, file := range []string{"environ", "cmdline"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", now.serving, file))
		if err != nil {
			return err
		}
		if strings.Contains(string(b), trackKey) {
			return fmt.Errorf("the key shows in %s", file)
		}
	}
	const file, handed = "/etc/ampcio/customerio_api_key", "/run/credentials/ampcio.service/customerio_api_key"
	if said, err := s.m.run(ctx, "cat", handed); err != nil || said != trackKey {
		return errors.Join(fmt.Errorf("not even root finds the key at %s", handed), err)
	}
	for _, c := range []string{
		"runuser -u nobody -- cat " + handed,
		"systemd-run --quiet --wait --pipe --collect -p User=nobody cat " + handed,
		"systemd-run --quiet --wait --pipe --collect -p DynamicUser=yes cat " + handed,
		"runuser -u nobody -- cat " + file,
		"runuser -u ampcio -- cat " + file,
	} {
		if said, err := s.m.run(ctx, strings.Fields(c)...); err == nil || strings.Contains(said, trackKey) {
			return fmt.Errorf("the key can be read: %s", c)
		}
	}
	return nil
}

// confined makes attempts to leave the sandbox of the service: from within the same unit, but for what it runs. Each of them
// succeeds for root outside of it, or it would show nothing.
func confined(ctx context.Context, s *story) error {
	const program, name = "/usr/bin/ampcio-attempts", "ampcio-attempts.service"
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.m.path(program), self, 0o755); err != nil {
		return err
	}
	unit, err := os.ReadFile(s.m.path("/etc/systemd/system/ampcio.service"))
	if err != nil {
		return err
	}
	if err := s.m.write(ctx, "/etc/systemd/system/"+name, "0644", "root", unitOfAttempts(string(unit), program)); err != nil {
		return err
	}
	for _, others := range []string{"/home/others", "/root/others", "/tmp/others"} {
		if err := s.m.write(ctx, others, "0666", "root", "secret"); err != nil {
			return err
		}
	}
	if err := s.m.all(ctx, "cp /usr/bin/id "+setuidProgram, "chmod 4755 "+setuidProgram, "systemctl daemon-reload"); err != nil {
		return err
	}
	if err := s.m.all(ctx, "systemctl start "+name); err != nil {
		said, _ := s.m.run(ctx, "journalctl", "--no-pager", "--output=cat", "--unit="+name)
		return fmt.Errorf("%w: %s", err, said)
	}
	var service, root confinement
	var garbled error
	// The journal may be a moment behind.
	err = soon(ctx, "what the attempts say", func() (bool, error) {
		said, err := s.m.run(ctx, "journalctl", "--no-pager", "--quiet", "--output=cat", "--unit="+name)
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(said) {
			if strings.HasPrefix(line, "{") {
				garbled = json.Unmarshal([]byte(line), &service)
				return true, nil
			}
		}
		return false, fmt.Errorf("they say %q", said)
	})
	if err := errors.Join(err, garbled); err != nil {
		return err
	}
	said, err := s.m.run(ctx, "env", child.Environment("attempts"), program)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(said), &root); err != nil {
		return fmt.Errorf("root says %q: %w", said, err)
	}
	var errs []error
	for _, a := range attempts {
		instead, tried := service.Could[a.name]
		switch {
		case !tried:
			errs = append(errs, fmt.Errorf("%s: not tried", a.name))
		case a.may && instead != "":
			errs = append(errs, fmt.Errorf("%s: the service needs it, and cannot: %s", a.name, instead))
		case !a.may && instead == "":
			errs = append(errs, fmt.Errorf("%s: the service can do it", a.name))
		}
		if instead := root.Could[a.name]; instead != "" && !a.container {
			errs = append(errs, fmt.Errorf("%s: not even root can (%s), so this shows nothing", a.name, instead))
		}
	}
	return errors.Join(append(errs, s.sameConfinement(ctx, service, name))...)
}

// sameConfinement says whether the service that runs is as confined as the attempts were.
func (s *story) sameConfinement(ctx context.Context, attempted confinement, name string) error {
	now, err := s.m.running(ctx)
	if err != nil {
		return err
	}
	status, mounts, err := confinementOf(strconv.Itoa(now.serving))
	if err != nil {
		return err
	}
	var errs []error
	for name, want := range map[string]string{"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
		if status[name] != want {
			errs = append(errs, fmt.Errorf("%s of the service is %s, not %s", name, status[name], want))
		}
	}
	// Users are numbered anew inside.
	for _, name := range []string{"Uid", "Gid", "Groups"} {
		delete(status, name)
		delete(attempted.Status, name)
	}
	if !maps.Equal(status, attempted.Status) {
		errs = append(errs, fmt.Errorf("the service is confined by %v, the attempts by %v", status, attempted.Status))
	}
	for i, m := range attempted.Mounts {
		attempted.Mounts[i] = strings.ReplaceAll(m, name, "ampcio.service")
	}
	slices.Sort(mounts)
	slices.Sort(attempted.Mounts)
	if !slices.Equal(mounts, attempted.Mounts) {
		errs = append(errs, fmt.Errorf("the service sees\n%s\nthe attempts saw\n%s", strings.Join(mounts, "\n"), strings.Join(attempted.Mounts, "\n")))
	}
	return errors.Join(errs...)
}
