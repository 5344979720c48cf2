package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"time"
)

const apiPrefix = "/godoxy/agent"

// What an agent says about itself.
type info struct {
	Version   string `json:"version"`
	Name      string `json:"name"`
	Runtime   string `json:"runtime"`
	TCPStream bool   `json:"supports_tcp_stream"`
	UDPStream bool   `json:"supports_udp_stream"`
}

type health struct {
	Healthy bool          `json:"healthy"`
	Detail  string        `json:"detail"`
	Latency time.Duration `json:"latency"`
}

// One answer, as this program prints it.
type answer struct {
	Status int    `json:"status"`
	Proto  string `json:"proto"`
	Type   string `json:"type"`
	Length int64  `json:"length"`
	Body   string `json:"body"`
	// Whether the connection had carried a request before.
	Reused bool `json:"reused"`
	// Where the answer has a Go type: it, decoded and encoded again.
	Decoded any `json:"decoded,omitempty"`
}

func runAPI(args []string) error {
	e := newEndpoint("api", "")
	atOnce := e.flags.Bool("at-once", false, "all requests at the same time, not one after another")
	http2 := e.flags.Bool("http2", false, "let net/http offer HTTP/2")
	if err := e.flags.Parse(args); err != nil {
		return err
	}
	config, err := e.config()
	if err != nil {
		return err
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	transport := &http.Transport{
		TLSClientConfig:   config,
		ForceAttemptHTTP2: *http2,
		// The name in the URL is the one that is verified; the agent is elsewhere.
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, e.address)
		},
	}
	client := &http.Client{Transport: transport}
	requests := e.flags.Args()
	answers, errs := make([]answer, len(requests)), make([]error, len(requests))
	done := make(chan struct{}, len(requests))
	for i, request := range requests {
		i, request := i, request
		ask := func() {
			answers[i], errs[i] = call(client, request)
			done <- struct{}{}
		}
		if *atOnce {
			go ask()
		} else {
			ask()
		}
	}
	out := json.NewEncoder(os.Stdout)
	for range requests {
		<-done
	}
	for i, err := range errs {
		if err != nil {
			return err
		}
		if err := out.Encode(answers[i]); err != nil {
			return err
		}
	}
	transport.CloseIdleConnections()
	return nil
}

// One request, "METHOD /endpoint". A POST has a body.
func call(client *http.Client, text string) (answer, error) {
	method, endpoint, found := strings.Cut(text, " ")
	if !found {
		return answer{}, fmt.Errorf("not a request: %q", text)
	}
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader("something")
	}
	request, err := http.NewRequest(method, "https://"+serverName+apiPrefix+endpoint, body)
	if err != nil {
		return answer{}, err
	}
	var reused bool
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { reused = got.Reused }}
	response, err := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	decoded, err := decode(request, response, data)
	return answer{
		Status:  response.StatusCode,
		Proto:   response.Proto,
		Type:    response.Header.Get("Content-Type"),
		Length:  response.ContentLength,
		Body:    string(data),
		Reused:  reused,
		Decoded: decoded,
	}, err
}

func decode(request *http.Request, response *http.Response, data []byte) (any, error) {
	if response.StatusCode != http.StatusOK || request.Method != http.MethodGet {
		return nil, nil
	}
	switch strings.TrimPrefix(request.URL.Path, apiPrefix) {
	case "/info":
		// Like Go servers, which ignore what they do not know.
		var it info
		return &it, json.Unmarshal(data, &it)
	case "/health":
		var it health
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.DisallowUnknownFields()
		err := decoder.Decode(&it)
		if err == nil && decoder.More() {
			err = errors.New("more than one value")
		}
		return &it, err
	}
	return nil, nil
}
