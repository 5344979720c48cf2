package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"time"
)

// An agent: one listener, where ALPN picks between net/http and streams.
func runAgent(args []string) error {
	e := newEndpoint("agent", "http/1.1,"+alpnStream)
	name := e.flags.String("name", "go-agent", "what the agent calls itself")
	old := e.flags.Bool("old", false, "answer plain text only, as agents did before /info")
	if err := e.flags.Parse(args); err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	listener, err := tls.Listen("tcp", e.address, config)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           endpoints(info{Version: "v0.31.0", Name: *name, Runtime: "podman", TCPStream: true}, *old),
		ReadHeaderTimeout: dialTimeout,
		ErrorLog:          log.Default(),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			alpnStream: func(_ *http.Server, conn *tls.Conn, _ http.Handler) { serveStream(conn) },
		},
	}
	log.Printf("listening on %s", listener.Addr())
	return server.Serve(listener)
}

func endpoints(i info, old bool) http.Handler {
	mux := http.NewServeMux()
	text := func(endpoint, value string) {
		mux.HandleFunc(apiPrefix+endpoint, func(w http.ResponseWriter, _ *http.Request) {
			if _, err := io.WriteString(w, value); err != nil {
				log.Print(err)
			}
		})
	}
	text("/version", i.Version)
	text("/name", i.Name)
	text("/runtime", i.Runtime)
	if !old {
		mux.HandleFunc(apiPrefix+"/info", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(i); err != nil {
				log.Print(err)
			}
		})
	}
	return mux
}

func serveStream(conn *tls.Conn) {
	state := conn.ConnectionState()
	log.Printf("connection tls=%s resumed=%t sni=%s cert=%q", versionName(state), state.DidResume,
		state.ServerName, state.PeerCertificates[0].Subject.CommonName)
	if err := conn.SetReadDeadline(time.Now().Add(dialTimeout)); err != nil {
		log.Print(err)
		return
	}
	var raw bytes.Buffer
	h, err := readHeader(io.TeeReader(conn, &raw))
	if err == nil {
		err = strict(raw.Bytes())
	}
	if err != nil {
		log.Printf("stream refused: %v", err)
		return
	}
	if h.isProbe() {
		log.Printf("probe answered")
		return
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		log.Print(err)
		return
	}
	far, err := net.DialTimeout("tcp", h.destination(), dialTimeout)
	if err != nil {
		log.Printf("stream refused: %v", err)
		return
	}
	defer far.Close()
	up, down := make(chan copied, 1), make(chan copied, 1)
	go func() { up <- carry(far.(*net.TCPConn), conn) }()
	go func() { down <- carry(conn, far.(*net.TCPConn)) }()
	var sent, received copied
	for i := 0; i < 2; i++ {
		var one copied
		select {
		case one = <-up:
			sent = one
		case one = <-down:
			received = one
		}
		if one.err != nil {
			// Whatever is left has nowhere to go.
			far.Close()
			conn.Close()
		}
	}
	log.Printf("stream ended dst=%s up=%d down=%d errors=%v/%v", h.destination(), sent.size, received.size,
		sent.err, received.err)
}

type copied struct {
	size int64
	err  error
}

type halfCloser interface {
	io.ReadWriter
	CloseWrite() error
}

// Copies one direction, and passes its end on.
func carry(to, from halfCloser) copied {
	size, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	return copied{size, err}
}
