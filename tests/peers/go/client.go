package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

func dialAgent(address string, config *tls.Config) (*tls.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	conn, err := tls.DialWithDialer(dialer, "tcp", address, config)
	if err != nil {
		return nil, err
	}
	state := conn.ConnectionState()
	log.Printf("connected tls=%s resumed=%t alpn=%s", versionName(state), state.DidResume, state.NegotiatedProtocol)
	return conn, nil
}

func (e *endpoint) open(config *tls.Config, h header, legacy bool) (*tls.Conn, error) {
	data, err := h.encode(legacy)
	if err != nil {
		return nil, err
	}
	conn, err := dialAgent(e.address, config)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(data); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
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

func runStream(args []string) error {
	e := newEndpoint("stream", alpnStream)
	legacy := e.flags.Bool("legacy", false, "send the header of the older generation")
	h, err := e.destination(args)
	if err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	conn, err := e.open(config, h, *legacy)
	if err != nil {
		return err
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, os.Stdin)
		if err == nil {
			err = conn.CloseWrite()
		}
		sent <- err
	}()
	if _, err := io.Copy(os.Stdout, conn); err != nil {
		return err
	}
	// Whoever reads it sees the end of the stream while ours may still be open.
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	return <-sent
}

func runProbe(args []string) error {
	e := newEndpoint("probe", alpnStream)
	wait := e.flags.Bool("wait", false, "read until the agent closes; Go servers do not")
	if err := e.flags.Parse(args); err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	conn, err := e.open(config, header{Flag: flagProbe}, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !*wait {
		return nil
	}
	answer, err := io.ReadAll(conn)
	if err == nil && len(answer) > 0 {
		err = fmt.Errorf("a probe was answered with %q", answer)
	}
	return err
}

type resumed struct {
	TLS     string `json:"tls"`
	Resumed bool   `json:"resumed"`
	Echo    string `json:"echo"`
}

func runResume(args []string) error {
	e := newEndpoint("resume", alpnStream)
	times := e.flags.Int("times", 3, "how many streams")
	h, err := e.destination(args)
	if err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	out := json.NewEncoder(os.Stdout)
	for i := 0; i < *times; i++ {
		echo, state, err := e.echo(config, h)
		if err != nil {
			return err
		}
		if err := out.Encode(resumed{versionName(state), state.DidResume, echo}); err != nil {
			return err
		}
	}
	return nil
}

// One word there and back, to the clean end of the stream: the session ticket is in by then.
func (e *endpoint) echo(config *tls.Config, h header) (string, tls.ConnectionState, error) {
	conn, err := e.open(config, h, false)
	if err != nil {
		return "", tls.ConnectionState{}, err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "again"); err != nil {
		return "", tls.ConnectionState{}, err
	}
	if err := conn.CloseWrite(); err != nil {
		return "", tls.ConnectionState{}, err
	}
	echo, err := io.ReadAll(conn)
	return string(echo), conn.ConnectionState(), err
}
