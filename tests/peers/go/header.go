package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"strings"
)

const (
	headerVersion = "0.1.0"

	versionSize = 8
	hostSize    = 255
	portSize    = 5

	hostAt = versionSize + 1
	portAt = hostAt + hostSize + 1
	flagAt = portAt + portSize

	// The older generation has its checksum where the flag is now.
	legacySize = flagAt + crc32.Size
	headerSize = flagAt + 1 + crc32.Size

	flagProbe = 1
)

var errHeader = errors.New("invalid header")

type header struct {
	Host string `json:"host"`
	Port string `json:"port"`
	Flag byte   `json:"flag"`
}

func headerFor(destination string) (header, error) {
	host, port, err := net.SplitHostPort(destination)
	return header{Host: host, Port: port}, err
}

func (h header) destination() string { return net.JoinHostPort(h.Host, h.Port) }

func (h header) isProbe() bool { return h.Flag&flagProbe != 0 }

func (h header) encode(legacy bool) ([]byte, error) {
	if len(h.Host) > hostSize || len(h.Port) > portSize {
		return nil, fmt.Errorf("%s does not fit the header", h.destination())
	}
	data := make([]byte, flagAt, headerSize)
	copy(data, headerVersion)
	data[hostAt-1] = byte(len(h.Host))
	copy(data[hostAt:], h.Host)
	data[portAt-1] = byte(len(h.Port))
	copy(data[portAt:], h.Port)
	if !legacy {
		data = append(data, h.Flag)
	}
	return binary.BigEndian.AppendUint32(data, crc32.ChecksumIEEE(data)), nil
}

// Reads a header of either generation and not a byte more.
func readHeader(from io.Reader) (header, error) {
	data := make([]byte, legacySize, headerSize)
	if _, err := io.ReadFull(from, data); err != nil {
		return header{}, err
	}
	if h, err := decodeHeader(data); err == nil {
		return h, nil
	}
	data = data[:headerSize]
	if _, err := io.ReadFull(from, data[legacySize:]); err != nil {
		return header{}, err
	}
	return decodeHeader(data)
}

func decodeHeader(data []byte) (header, error) {
	body, sum := data[:len(data)-crc32.Size], data[len(data)-crc32.Size:]
	version := string(bytes.TrimRight(body[:versionSize], "\x00"))
	legacy := len(data) == legacySize
	known := version == headerVersion || legacy && version == headerVersion+".0"
	hostLength, portLength := int(body[hostAt-1]), int(body[portAt-1])
	if !known || portLength > portSize || crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(sum) {
		return header{}, errHeader
	}
	h := header{
		Host: string(body[hostAt : hostAt+hostLength]),
		Port: string(body[portAt : portAt+portLength]),
	}
	if !legacy {
		h.Flag = body[flagAt]
	}
	return h, nil
}

// Not the protocol's rules but this program's: what an encoder of today leaves zero.
func strict(data []byte) error {
	h, err := decodeHeader(data)
	if err != nil {
		return err
	}
	again, err := h.encode(len(data) == legacySize)
	if err == nil && !bytes.Equal(again, data) {
		err = errors.New("the padding of a header is not zero")
	}
	return err
}

func runHeaders([]string) error {
	lines := json.NewDecoder(os.Stdin)
	var out strings.Builder
	for lines.More() {
		var h header
		if err := lines.Decode(&h); err != nil {
			return err
		}
		data, err := h.encode(false)
		if err != nil {
			return err
		}
		fmt.Fprintln(&out, hex.EncodeToString(data))
	}
	_, err := io.WriteString(os.Stdout, out.String())
	return err
}
