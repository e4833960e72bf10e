package config

import (
	"errors"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
)

// maxKeyFile bounds a file of one API key, maxKeysFile one of many; in bytes.
const (
	maxKeyFile  = 4 << 10
	maxKeysFile = 256 << 10
)

const whereKeyIs = "in Customer.io under Account Settings > API Credentials > Track API Keys"

// looksLikeKey matches a Track API key (20 hexadecimal digits, by observation), which
// people write where the name of its file belongs. Messages about files name them.
var looksLikeKey = regexp.MustCompile(`^[0-9a-fA-F]{16,64}$`)

// environmentName is the variable that may hold the API key of a sync.
func environmentName(sync string) string {
	return "AMPCIO_SYNC_" + strings.ToUpper(strings.ReplaceAll(sync, "-", "_")) + "_API_KEY"
}

// apiKey finds the Track API key of s, in the one place that was given.
func (c checker) apiKey(path string, s *Sync) {
	if c.env.NoSecrets {
		s.APIKey = Secret{}
		return
	}
	fromFile, fromHere := join(path, "api_key_file"), join(path, "api_key")
	variable := environmentName(s.Name)
	fromEnvironment := c.env.Getenv(variable)
	given := []string{}
	at := fromHere
	if s.APIKeyFile != "" {
		given, at = append(given, "api_key_file"), fromFile
	}
	if !s.APIKey.IsZero() {
		given = append(given, "api_key")
	}
	if fromEnvironment != "" {
		given = append(given, "the environment variable "+variable)
	}
	switch {
	case len(given) > 1:
		c.check(at, "the API key is given more than once, by %s: keep one", strings.Join(given, " and by "))
	case len(given) == 0 && s.DryRun:
	case len(given) == 0:
		file, credential := c.keyFilePath("customerio_api_key")
		c.unfilled(fromFile, []Missing{{Table: path, Text: fileText, Where: keyFileWhere},
			{KeyFile: c.keyFileOf(file, credential), Where: inCustomerIO}}, `no API key. Write it, %s, as the only line of a file that only ampcio can read, and under [%s] the line
    api_key_file = "customerio_api_key"
or set the environment variable %s`, whereKeyIs, path, variable)
	case looksLikeKey.MatchString(s.APIKeyFile):
		c.check(fromFile, "looks like the API key itself: this is the name of a file that holds the key (not shown here)")
	case s.APIKeyFile != "":
		file, credential := c.keyFilePath(s.APIKeyFile)
		s.APIKey, s.APIKeyFrom = c.keyFile(fromFile, file, credential), file
	case fromEnvironment != "":
		for _, other := range c.Sync.Names() {
			if other != s.Name && environmentName(other) == variable {
				c.check(path, "the environment variable %s could also be meant for sync %s: use api_key_file", variable, other)
			}
		}
		s.APIKey, s.APIKeyFrom = c.key(fromHere, "environment variable "+variable, fromEnvironment), "environment variable "+variable
	default:
		s.APIKey, s.APIKeyFrom = c.key(fromHere, "api_key", s.APIKey.Reveal()), "api_key"
		if c.open {
			c.warn(fromHere, "a secret in a file that everybody on this machine can read: chmod o= %s, or use api_key_file", c.problems.places.file)
		}
	}
}

// keyFilePath says where a file of a secret is, and whether it is a credential that systemd
// handed over: those need no check of their mode.
func (c checker) keyFilePath(name string) (path string, credential bool) {
	folder := c.env.Getenv("CREDENTIALS_DIRECTORY")
	path = name
	switch {
	case filepath.IsAbs(name):
	case folder != "":
		path = filepath.Join(folder, name)
	default:
		path = filepath.Join(c.folder, name)
	}
	if folder == "" {
		return path, false
	}
	inside, err := filepath.Rel(folder, path)
	return path, err == nil && filepath.IsLocal(inside)
}

func (c checker) keyFile(path, file string, credential bool) Secret {
	text, info, err := readFile(file, maxKeyFile, true)
	switch {
	case errors.Is(err, fs.ErrNotExist) && credential:
		c.check(path, "%w: the unit needs the line LoadCredential=%s:/etc/ampcio/%s, and that file the API key (%s)", err, filepath.Base(file), filepath.Base(file), whereKeyIs)
		return Secret{}
	case errors.Is(err, fs.ErrNotExist):
		c.unfilled(path, []Missing{{KeyFile: file, Where: inCustomerIO}}, "%w: write the API key (%s) into it as its only line, and then: chmod 600 %s", err, whereKeyIs, file)
		return Secret{}
	case errors.Is(err, fs.ErrPermission):
		c.check(path, "%w: the user that runs ampcio must be able to read it", err)
		return Secret{}
	case err != nil:
		c.check(path, "%w", err)
		return Secret{}
	case !credential && info.Mode().Perm()&0o007 != 0:
		c.check(path, "everybody on this machine can get at %s (mode %04o). Do: chmod o= %s", file, info.Mode().Perm(), file)
		return Secret{}
	}
	key := strings.TrimSpace(strings.TrimPrefix(string(text), "\ufeff"))
	if key == "" && credential {
		c.unfilled(path, []Missing{{KeyFile: c.keyFileOf(file, true), Where: inCustomerIO}}, "the credential %s is empty: write the API key (%s) into the file that LoadCredential=%s:… of the unit names, and restart", filepath.Base(file), whereKeyIs, filepath.Base(file))
		return Secret{}
	}
	if key == "" {
		c.unfilled(path, []Missing{{KeyFile: file, Where: inCustomerIO}}, "%s is empty: write the API key into it (%s)", file, whereKeyIs)
		return Secret{}
	}
	return c.key(path, file, key)
}

// key checks that what was found can be a key. Messages name its place, never itself.
func (c checker) key(path, from, key string) Secret {
	if !printable(key) {
		c.check(path, "%s does not hold an API key: it has more than one word or line, or a character that no key has", from)
		return Secret{}
	}
	return NewSecret(key)
}

// keysFile reads Amplitude API keys, one a line, with empty lines and # comments. The
// file is beside the configuration: such keys are public, so no credential folder and
// no mode is asked for.
func (c checker) keysFile(path, file string) ([]string, bool) {
	if !filepath.IsAbs(file) {
		file = filepath.Join(c.folder, file)
	}
	text, _, err := readFile(file, maxKeysFile, true)
	if errors.Is(err, fs.ErrNotExist) {
		c.check(path, "%w: write the project's Amplitude API keys into it, one a line", err)
		return nil, false
	}
	if err != nil {
		c.check(path, "%w", err)
		return nil, false
	}
	var keys []string
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		line, _, _ = strings.Cut(line, "#")
		if key := strings.TrimSpace(line); key != "" {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		c.check(path, "%s holds no key: write the project's Amplitude API keys into it, one a line", file)
		return nil, false
	}
	return keys, true
}
