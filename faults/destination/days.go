package destination

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"

	"ampcio-faults/destination/days"
	"ampcio-faults/scoreboard"
)

// virtualDays is a story of some days, in a process of its own: virtual time is a test's.
func virtualDays(ctx context.Context, c *scoreboard.Case) (passed int, err error) {
	passed = min(4, c.Left)
	program := filepath.Join(c.Dir, "days.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./destination/days").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the test of virtual days: %w\n%s", err, out)
	}
	test := exec.CommandContext(ctx, program, "-test.run=^TestDays$", "-test.v", "-test.timeout=0")
	test.Env = append(test.Environ(), days.EnvSeed+"="+strconv.FormatUint(c.Seed, 10), days.EnvDays+"="+strconv.Itoa(passed), days.EnvFolder+"="+c.Memory)
	if out, err := test.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return passed, fmt.Errorf("within %d days: %w\n%s", passed, err, out)
	}
	return passed, nil
}
