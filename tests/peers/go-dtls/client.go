package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v2"
)

func (e *endpoint) dial() (net.Conn, error) {
	return net.Dial("udp", e.address)
}

// Does the handshake and sends the header in a record of its own.
func open(socket net.Conn, config *dtls.Config, h header, legacy bool) (*dtls.Conn, error) {
	data, err := h.encode(legacy)
	if err != nil {
		return nil, err
	}
	conn, err := dtls.Client(socket, config)
	if err != nil {
		return nil, err
	}
	log.Print("connected")
	if _, err := conn.Write(data); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Datagrams on a stream: each after its length in two bytes, big-endian.
func readFrame(from io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return nil, err
	}
	data := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(from, data); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return data, nil
}

func writeFrame(to io.Writer, data []byte) error {
	_, err := to.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...))
	return err
}

func runClient(args []string) error {
	e := newEndpoint("client")
	legacy := e.flags.Bool("legacy", false, "send the header of the older generation")
	untilClosed := e.flags.Bool("until-closed", false, "take replies until the agent ends it, not one for each datagram")
	window := e.flags.Int("window", 16, "how many datagrams may be without a reply")
	h, err := e.destination(args)
	if err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	socket, err := e.dial()
	if err != nil {
		return err
	}
	conn, err := open(socket, config, h, *legacy)
	if err != nil {
		return err
	}
	defer conn.Close()
	places, sent := make(chan struct{}, *window), make(chan error, 1)
	go func() {
		in, count := bufio.NewReader(os.Stdin), 0
		for {
			data, err := readFrame(in)
			if err == nil {
				if !*untilClosed {
					places <- struct{}{}
				}
				count++
				_, err = conn.Write(data)
			}
			if err != nil {
				if errors.Is(err, io.EOF) {
					log.Printf("sent %d", count)
					err = nil
				}
				sent <- err
				return
			}
		}
	}()
	replies, buffer := make(chan error, 1), make([]byte, maxDatagram)
	go func() {
		for {
			size, err := conn.Read(buffer)
			if err == nil {
				err = writeFrame(os.Stdout, buffer[:size])
			}
			if err != nil {
				replies <- err
				return
			}
			if !*untilClosed {
				<-places
			}
		}
	}()
	for sent != nil || len(places) > 0 || *untilClosed {
		select {
		case err := <-replies:
			if *untilClosed && errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("reading: %w", err)
		case err := <-sent:
			if err != nil {
				return err
			}
			sent = nil
		case <-time.After(time.Millisecond):
			// Has the last reply come?
		}
	}
	return nil
}

// A socket that can be left: nothing more goes out, and nothing closes it.
type left struct {
	net.Conn
	silent *atomic.Bool
}

func (l left) Write(data []byte) (int, error) {
	if l.silent.Load() {
		return len(data), nil
	}
	return l.Conn.Write(data)
}

func (l left) Close() error { return nil }

func runRestart(args []string) error {
	e := newEndpoint("restart")
	times := e.flags.Int("times", 2, "how many sessions")
	h, err := e.destination(args)
	if err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	socket, err := e.dial()
	if err != nil {
		return err
	}
	defer socket.Close()
	for i := 1; i <= *times; i++ {
		if err := socket.SetDeadline(time.Time{}); err != nil {
			return err
		}
		silent := new(atomic.Bool)
		conn, err := open(left{socket, silent}, config, h, false)
		if err != nil {
			return fmt.Errorf("session %d: %w", i, err)
		}
		word, answer := fmt.Sprintf("session %d", i), make([]byte, maxDatagram)
		if _, err := conn.Write([]byte(word)); err != nil {
			return err
		}
		size, err := conn.Read(answer)
		if err != nil {
			return fmt.Errorf("session %d: %w", i, err)
		}
		fmt.Println(string(answer[:size]))
		silent.Store(i < *times)
		if err := conn.Close(); err != nil {
			return err
		}
	}
	return nil
}

func runProbe(args []string) error {
	e := newEndpoint("probe")
	if err := e.flags.Parse(args); err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	socket, err := e.dial()
	if err != nil {
		return err
	}
	conn, err := open(socket, config, header{Flag: flagProbe}, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	size, err := conn.Read(make([]byte, maxDatagram))
	if err == nil {
		return fmt.Errorf("a probe was answered with %d bytes", size)
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	fmt.Println("healthy")
	return nil
}
