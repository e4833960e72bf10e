// Package days lets virtual days pass for the real queue and the real delivery, while Customer.io fails for hours and
// days. Virtual time is a test's, so all of it is one, which the trial "virtual days" builds and runs by its seed.
package days

// What the trial gives to the test by the environment.
const (
	EnvSeed   = "AMPCIO_FAULTS_SEED"
	EnvDays   = "AMPCIO_FAULTS_DAYS"
	EnvFolder = "AMPCIO_FAULTS_FOLDER" // in memory: days of commits ask nothing of a real disk
)
