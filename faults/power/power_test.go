package power

import (
	"os"
	"testing"

	"ampcio-faults/child"
)

func TestMain(m *testing.M) {
	child.Main()
	os.Exit(m.Run())
}
