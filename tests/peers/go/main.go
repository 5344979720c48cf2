// Command peer is the other end of adit's tests: the stream protocol and the agent's HTTP API with
// Go's own TLS and HTTP, which GoDoxy's servers and agents use. Standard library only.
//
//	peer stream [flags] HOST:PORT          standard input and output through an agent
//	peer probe [flags]                     a health probe, the way Go servers make it
//	peer resume [flags] HOST:PORT          streams one after another with one session cache
//	peer api [flags] "METHOD /endpoint"... calls of the HTTP API, in JSON
//	peer agent [flags]                     an agent
//	peer headers                           the headers for lines of JSON, in hexadecimal
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"
	"time"
)

const (
	alpnStream = "godoxy-agent-stream/1"
	serverName = "godoxy.agent"
	// For dialling, and for reading the header.
	dialTimeout = 10 * time.Second
	// A peer that hangs ends its test instead of stalling it.
	patience = 2 * time.Minute
)

func main() {
	log.SetFlags(0)
	commands := map[string]func([]string) error{
		"stream":  runStream,
		"probe":   runProbe,
		"resume":  runResume,
		"api":     runAPI,
		"agent":   runAgent,
		"headers": runHeaders,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		log.Fatal("peer: stream, probe, resume, api, agent or headers")
	}
	if os.Args[1] != "agent" {
		time.AfterFunc(patience, func() { log.Fatal("out of patience") })
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		log.Fatal(err)
	}
}

// Flags of every subcommand that speaks TLS.
type endpoint struct {
	flags         *flag.FlagSet
	address       string
	ca, cert, key string
	tls           string
	alpn          string
	serverName    string
}

func newEndpoint(name, alpn string) *endpoint {
	e := &endpoint{flags: flag.NewFlagSet(name, flag.ExitOnError)}
	e.flags.StringVar(&e.address, "address", "127.0.0.1:0", "where the agent listens")
	e.flags.StringVar(&e.ca, "ca", "", "PEM `file` of the authority of the other side")
	e.flags.StringVar(&e.cert, "cert", "", "PEM `file` of the certificate; none is shown without it")
	e.flags.StringVar(&e.key, "key", "", "PEM `file` of its key")
	e.flags.StringVar(&e.tls, "tls", "", "the only TLS version (1.1, 1.2 or 1.3; default: 1.2 and 1.3)")
	e.flags.StringVar(&e.alpn, "alpn", alpn, "protocols to ask for or to offer, with commas between")
	e.flags.StringVar(&e.serverName, "server-name", serverName, "SNI and the name to verify")
	return e
}

func (e *endpoint) config() (*tls.Config, error) {
	pem, err := os.ReadFile(e.ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", e.ca)
	}
	config := &tls.Config{
		RootCAs:    pool,
		ClientCAs:  pool,
		ServerName: e.serverName,
		MinVersion: tls.VersionTLS12,
	}
	if e.alpn != "" {
		config.NextProtos = strings.Split(e.alpn, ",")
	}
	if e.cert != "" {
		pair, err := tls.LoadX509KeyPair(e.cert, e.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	if e.tls != "" {
		versions := map[string]uint16{"1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
		version, known := versions[e.tls]
		if !known {
			return nil, fmt.Errorf("unknown TLS version %q", e.tls)
		}
		config.MinVersion, config.MaxVersion = version, version
	}
	return config, nil
}

func versionName(state tls.ConnectionState) string {
	switch state.Version {
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	}
	return fmt.Sprintf("%#x", state.Version)
}
