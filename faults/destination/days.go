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

// daysOfStory is how many days a story has, at most.
const daysOfStory = 4

// daysProgram is what buildDays makes.
const daysProgram = "days.test"

func buildDays(ctx context.Context, folder string) error {
	out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(folder, daysProgram), "./destination/days").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the test of virtual days: %w\n%s", err, out)
	}
	return nil
}

// virtualDays is a story of some days, in a process of its own: virtual time is a test's.
func virtualDays(ctx context.Context, c *scoreboard.Case) (passed int, err error) {
	passed = min(daysOfStory, c.Left)
	test := exec.CommandContext(ctx, filepath.Join(c.Built, daysProgram), "-test.run=^TestDays$", "-test.v", "-test.timeout=0")
	test.Env = append(test.Environ(), days.EnvSeed+"="+strconv.FormatUint(c.Seed, 10), days.EnvDays+"="+strconv.Itoa(passed), days.EnvFolder+"="+c.Memory)
	if out, err := test.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return passed, fmt.Errorf("within %d days: %w\n%s", passed, err, out)
	}
	return passed, nil
}
