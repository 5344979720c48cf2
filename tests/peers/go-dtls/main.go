// Command peer is the other end of adit's tests over DTLS, with pion, the library that GoDoxy's
// servers and agents use. header.go is the one of tests/peers/go.
//
//	peer client [flags] HOST:PORT    datagrams of standard input through an agent, replies to standard output
//	peer restart [flags] HOST:PORT   two sessions from one port, the first left without a word
//	peer probe [flags]               a health probe
//	peer agent [flags]               an agent
//	peer headers                     the headers for lines of JSON, in hexadecimal
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/pion/dtls/v2"
)

const (
	serverName = "godoxy.agent"
	// For the handshake, and for reading the header.
	dialTimeout = 10 * time.Second
	// A peer that hangs ends its test instead of stalling it.
	patience = 2 * time.Minute
	// What is left of the 8192 bytes that pion reads at once after a record's header, nonce and tag.
	maxDatagram = 8192 - 13 - 8 - 16
)

func main() {
	log.SetFlags(0)
	commands := map[string]func([]string) error{
		"client":  runClient,
		"restart": runRestart,
		"probe":   runProbe,
		"agent":   runAgent,
		"headers": runHeaders,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		log.Fatal("peer: client, restart, probe, agent or headers")
	}
	if os.Args[1] != "agent" {
		time.AfterFunc(patience, func() { log.Fatal("out of patience") })
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		log.Fatal(err)
	}
}

// Flags of every subcommand that speaks DTLS.
type endpoint struct {
	flags         *flag.FlagSet
	address       string
	ca, cert, key string
	serverName    string
	cipher        string
	noEMS         bool
}

func newEndpoint(name string) *endpoint {
	e := &endpoint{flags: flag.NewFlagSet(name, flag.ExitOnError)}
	e.flags.StringVar(&e.address, "address", "127.0.0.1:0", "where the agent listens")
	e.flags.StringVar(&e.ca, "ca", "", "PEM `file` of the authority of the other side")
	e.flags.StringVar(&e.cert, "cert", "", "PEM `file` of the certificate; none is shown without it")
	e.flags.StringVar(&e.key, "key", "", "PEM `file` of its key")
	e.flags.StringVar(&e.serverName, "server-name", serverName, "SNI and the name to verify")
	e.flags.StringVar(&e.cipher, "cipher", "0xc02b", "the only cipher suite, by its number")
	e.flags.BoolVar(&e.noEMS, "no-ems", false, "without the extended master secret")
	return e
}

func (e *endpoint) config() (*dtls.Config, error) {
	pem, err := os.ReadFile(e.ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", e.ca)
	}
	cipher, err := strconv.ParseUint(e.cipher, 0, 16)
	if err != nil {
		return nil, err
	}
	config := &dtls.Config{
		RootCAs:              pool,
		ClientCAs:            pool,
		ClientAuth:           dtls.RequireAndVerifyClientCert,
		ServerName:           e.serverName,
		CipherSuites:         []dtls.CipherSuiteID{dtls.CipherSuiteID(cipher)},
		ExtendedMasterSecret: dtls.RequireExtendedMasterSecret,
		ConnectContextMaker: func() (context.Context, func()) {
			return context.WithTimeout(context.Background(), dialTimeout)
		},
	}
	if e.noEMS {
		config.ExtendedMasterSecret = dtls.DisableExtendedMasterSecret
	}
	if e.cert != "" {
		pair, err := tls.LoadX509KeyPair(e.cert, e.key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// The only argument that is not a flag: the destination.
func (e *endpoint) destination(args []string) (header, error) {
	if err := e.flags.Parse(args); err != nil {
		return header{}, err
	}
	if e.flags.NArg() != 1 {
		return header{}, errors.New("which destination? (HOST:PORT)")
	}
	return headerFor(e.flags.Arg(0))
}
