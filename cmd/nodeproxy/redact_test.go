package main

import (
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	for text, secret := range map[string]string{
		"Authorization: Bearer abcdef123456":                                             "abcdef123456",
		"authorization: basic dXNlcjpodW50ZXIy":                                          "dXNlcjpodW50ZXIy",
		`-A X -m comment --comment "token=s3cr3tvalue" -j ACCEPT`:                        "s3cr3tvalue",
		`level=INFO msg=x url=https://user:hunter2@example.com/path`:                     "hunter2",
		"--password hunter2 --mode ebpf":                                                 "hunter2",
		"AWS_SECRET_ACCESS_KEY=AKIAabc":                                                  "AKIAabc",
		`{"client-key-data": "TFMwdExTMUNSVWRKVGlC"}`:                                    "TFMwdExTMUNSVWRKVGlC",
		"    client-certificate-data: TFMwdExTMUNSVWRKVGlC":                              "TFMwdExTMUNSVWRKVGlC",
		"certificate-authority-data: QUJDREVG":                                           "QUJDREVG",
		`msg="api_key: 'k-123'"`:                                                         "k-123",
		`"{\"password\":\"hunter2\"}"`:                                                   "hunter2",
		"eyJhbGciOiJSUzI1NiIsImtpZCI6Ing.eyJpc3MiOiJrdWJl.c2lnbmF0dXJl x":                "eyJpc3MiOiJrdWJl",
		"kubeadm join --token abcdef.0123456789abcdef":                                   "0123456789abcdef",
		"joined with abcdef.0123456789abcdef":                                            "0123456789abcdef",
		"a -----BEGIN RSA PRIVATE KEY-----\nMIIE\nvQ==\n-----END RSA PRIVATE KEY----- b": "MIIE",
		"-----BEGIN PRIVATE KEY-----\nMIIEcut":                                           "MIIEcut",
	} {
		got := string(redact([]byte(text)))
		if strings.Contains(got, secret) || !strings.Contains(got, redacted) {
			t.Errorf("%q becomes %q", text, got)
		}
	}
	for _, plain := range []string{
		"-A NODEPROXY-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j NODEPROXY-10.96.0.10",
		`{"address":"fd00::1","service":"default/web:http","verdict":"translated"}`,
		"net.netfilter.nf_conntrack_max = 262144",
		"nodeproxy_packets_total{reason=\"no_endpoints\",verdict=\"rejected\"} 4",
		"default via 192.168.77.1 dev eth0 proto static",
	} {
		if got := string(redact([]byte(plain))); got != plain {
			t.Errorf("%q becomes %q", plain, got)
		}
	}
}
