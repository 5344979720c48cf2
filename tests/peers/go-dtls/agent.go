package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v2"
)

// How many handshakes can be under way.
const handshakes = 64

// An agent, of datagrams alone.
func runAgent(args []string) error {
	e := newEndpoint("agent")
	silent := e.flags.Bool("silent", false, "take what comes and never answer")
	if err := e.flags.Parse(args); err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	config.GetCertificate = func(hello *dtls.ClientHelloInfo) (*tls.Certificate, error) {
		log.Printf("hello sni=%s", hello.ServerName)
		return nil, nil
	}
	address, err := net.ResolveUDPAddr("udp", e.address)
	if err != nil {
		return err
	}
	if *silent {
		return listenOnly(address)
	}
	listener, err := dtls.Listen("udp", address, config)
	if err != nil {
		return err
	}
	log.Printf("listening on %s", listener.Addr())
	// Accept does the handshake too: one that takes its time must not keep others waiting.
	for i := 0; i < handshakes; i++ {
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					log.Printf("handshake failed: %v", err)
					continue
				}
				go serve(conn.(*dtls.Conn))
			}
		}()
	}
	select {}
}

func listenOnly(address *net.UDPAddr) error {
	socket, err := net.ListenUDP("udp", address)
	if err != nil {
		return err
	}
	log.Printf("listening on %s", socket.LocalAddr())
	buffer := make([]byte, maxDatagram)
	for {
		size, from, err := socket.ReadFrom(buffer)
		if err != nil {
			return err
		}
		log.Printf("heard %d bytes from %s", size, from)
	}
}

func serve(conn *dtls.Conn) {
	defer conn.Close()
	cert, err := x509.ParseCertificate(conn.ConnectionState().PeerCertificates[0])
	if err != nil {
		log.Printf("session refused: %v", err)
		return
	}
	log.Printf("session cert=%q", cert.Subject.CommonName)
	h, err := receiveHeader(conn)
	if err != nil {
		log.Printf("session refused: %v", err)
		return
	}
	if h.isProbe() {
		log.Print("probe answered")
		return
	}
	far, err := net.DialTimeout("udp", h.destination(), dialTimeout)
	if err != nil {
		log.Printf("session refused: %v", err)
		return
	}
	var down atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		down.Store(forwardReplies(conn, far))
	}()
	up := forward(far, conn)
	far.Close()
	<-done
	log.Printf("session ended dst=%s up=%d down=%d", h.destination(), up, down.Load())
}

// The header is the whole first record.
func receiveHeader(conn *dtls.Conn) (header, error) {
	if err := conn.SetReadDeadline(time.Now().Add(dialTimeout)); err != nil {
		return header{}, err
	}
	data := make([]byte, headerSize)
	size, err := conn.Read(data)
	if err != nil {
		return header{}, err
	}
	if size != headerSize && size != legacySize {
		return header{}, errHeader
	}
	if err := strict(data[:size]); err != nil {
		return header{}, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return header{}, err
	}
	return decodeHeader(data[:size])
}

// From the client to the destination, until the client ends it. What pion cannot take is dropped.
func forward(far net.Conn, conn *dtls.Conn) int64 {
	buffer, count := make([]byte, maxDatagram), int64(0)
	for {
		size, err := conn.Read(buffer)
		if errors.Is(err, io.EOF) {
			return count
		}
		if err != nil {
			log.Printf("dropped: %v", err)
			continue
		}
		// What the system has to say about an earlier one.
		if _, err := far.Write(buffer[:size]); err != nil {
			log.Printf("destination: %v", err)
		}
		count++
	}
}

// From the destination to the client, until the socket is closed. Too large ones are not sent.
func forwardReplies(conn *dtls.Conn, far net.Conn) int64 {
	buffer, count := make([]byte, maxDatagram+1), int64(0)
	for {
		if err := far.SetReadDeadline(time.Now().Add(dialTimeout)); err != nil {
			return count
		}
		size, err := far.Read(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return count
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
			continue
		case err != nil:
			log.Printf("destination: %v", err)
			continue
		case size == 0 || size > maxDatagram:
			continue
		}
		if _, err := conn.Write(buffer[:size]); err != nil {
			return count
		}
		count++
	}
}
