package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// minSecret is how long the secret of a webhook is at least, in characters: whoever knows it can send events.
const minSecret = 16

const makeSecret = "head -c 24 /dev/urandom | base64 | tr -d '/+=' > "

// webhookSecret reads the secret by which a project's webhook is known. Messages name the file, never what is in it.
func (c checker) webhookSecret(path, name string) Secret {
	path = join(path, "webhook_secret_file")
	if name == "" || c.env.NoSecrets {
		return Secret{}
	}
	if looksLikeKey.MatchString(name) {
		c.check(path, "looks like the secret itself: this is the name of a file that holds it (not shown here)")
		return Secret{}
	}
	secret, file, ok := c.secretFile(path, name, "a secret of your own", fmt.Sprintf(
		"write a secret of your own into it, at least %d characters, and give Amplitude's webhook destination the header Authorization with the value Bearer and the secret. Do: (umask 077; %s%%s)", minSecret, makeSecret))
	switch {
	case !ok:
	case len(secret) < minSecret:
		c.check(path, "%s holds %d characters, and a secret has at least %d. Do: (umask 077; %s%s)", file, len(secret), minSecret, makeSecret, file)
	case !printable(secret):
		c.check(path, "%s does not hold a secret that fits into a header: one word of at most 256 visible ASCII characters", file)
	default:
		return NewSecret(secret)
	}
	return Secret{}
}

// secretFile reads what is in a file of its own, which is where api_key_file would be. It checks that nobody else can;
// holds says what the file of a credential should hold, and todo what to do where there is none, with %s for the file.
func (c checker) secretFile(path, name, holds, todo string) (secret, file string, ok bool) {
	file, credential := c.keyFilePath(name)
	text, info, err := readFile(file, maxKeyFile, true)
	switch {
	case errors.Is(err, fs.ErrNotExist) && credential:
		c.check(path, "%w: the unit needs the line LoadCredential=%s:/etc/ampcio/%s, and that file %s", err, filepath.Base(file), filepath.Base(file), holds)
	case errors.Is(err, fs.ErrNotExist):
		c.check(path, "%w: %s", err, fmt.Sprintf(todo, file))
	case errors.Is(err, fs.ErrPermission):
		c.check(path, "%w: the user that runs ampcio must be able to read it", err)
	case err != nil:
		c.check(path, "%w", err)
	case !credential && info.Mode().Perm()&0o007 != 0:
		c.check(path, "everybody on this machine can get at %s (mode %04o). Do: chmod o= %s", file, info.Mode().Perm(), file)
	default:
		return strings.TrimSpace(strings.TrimPrefix(string(text), "\ufeff")), file, true
	}
	return "", file, false
}
