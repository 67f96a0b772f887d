package main

import "regexp"

// redacted stands where something secret was.
const redacted = "REDACTED"

// secrets are patterns of what must not leave a node, and what is put in their place.
// They err on the side of taking too much out: a bundle goes to strangers.
var secrets = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\z)`), redacted},
	// What looks like a JSON web token: ServiceAccounts have these.
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?`), redacted},
	// Tokens of kubeadm's kind.
	{regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), redacted},
	{regexp.MustCompile(`(?i)\b(bearer|basic)([ +]+)[A-Za-z0-9._~+/=-]{4,}`), "${1}${2}" + redacted},
	{regexp.MustCompile(`(?i)(://)[^/\s"'@]+@`), "${1}" + redacted + "@"},
	// NAME=VALUE, NAME: VALUE, --NAME VALUE, "NAME": "VALUE".
	{regexp.MustCompile(`(?i)([a-z0-9_-]*(?:token|passw(?:or)?d|passphrase|secret|credential|api[_-]?key|private[_-]?key|access[_-]?key|key-data|certificate-data|authority-data)[a-z0-9_-]*\\?["']?(?:\s*[=:]\s*|\s+)\\?["']?)[^\s"',;\\]+`), "${1}" + redacted},
}

// redact takes out of a text what looks like a secret.
func redact(text []byte) []byte {
	for _, s := range secrets {
		text = s.pattern.ReplaceAll(text, []byte(s.by))
	}
	return text
}
