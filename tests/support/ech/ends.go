// The two ends of a connection with Encrypted ClientHello, by Go's TLS: no other server that can be installed
// everywhere takes it.
//
//	ends server LISTEN CHAIN KEY ECH-FILE [retry]   answers each client with the name that it has asked for, then echoes
//	ends client CONNECT NAME CA ECH-CONFIG          prints what the server answers and ACCEPTED, or why it was refused
//
// Without a key (ECH-FILE is `-`) the server takes inner ClientHellos only: Go's servers know them by themselves. With
// `retry` the server asks for another key share first (HelloRetryRequest).
package main

import (
	"bufio"
	"crypto/ecdh"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

func main() {
	log.SetFlags(0)
	switch os.Args[1] {
	case "server":
		server(os.Args[2], os.Args[3], os.Args[4], os.Args[5], len(os.Args) > 6)
	case "client":
		client(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// The key file of RFC 9934.
func echKeys(file string) []tls.EncryptedClientHelloKey {
	var key tls.EncryptedClientHelloKey
	for rest := must(os.ReadFile(file)); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "PRIVATE KEY":
			key.PrivateKey = must(x509.ParsePKCS8PrivateKey(block.Bytes)).(*ecdh.PrivateKey).Bytes()
		case "ECHCONFIG":
			// Behind the length of the list, which has one.
			key.Config = block.Bytes[2:]
		}
	}
	key.SendAsRetry = true
	return []tls.EncryptedClientHelloKey{key}
}

func server(address, chain, key, ech string, retry bool) {
	config := &tls.Config{Certificates: []tls.Certificate{must(tls.LoadX509KeyPair(chain, key))}}
	if ech != "-" {
		config.EncryptedClientHelloKeys = echKeys(ech)
	}
	if retry {
		config.CurvePreferences = []tls.CurveID{tls.CurveP384}
	}
	listener := must(net.Listen("tcp", address))
	for {
		raw := must(listener.Accept())
		go func() {
			defer raw.Close()
			conn := tls.Server(raw, config)
			if err := conn.Handshake(); err != nil {
				log.Print(err)
				return
			}
			fmt.Fprintln(conn, conn.ConnectionState().ServerName)
			io.Copy(conn, conn)
			conn.CloseWrite()
		}()
	}
}

func client(address, name, ca, ech string) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(ca)))
	conn, err := tls.Dial("tcp", address, &tls.Config{
		ServerName:                     name,
		RootCAs:                        roots,
		EncryptedClientHelloConfigList: must(base64.StdEncoding.DecodeString(ech)),
	})
	var rejected *tls.ECHRejectionError
	if errors.As(err, &rejected) {
		fmt.Printf("rejected, retry with %s\n", base64.StdEncoding.EncodeToString(rejected.RetryConfigList))
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	name = must(bufio.NewReader(conn).ReadString('\n'))
	fmt.Println(name[:len(name)-1], conn.ConnectionState().ECHAccepted)
	conn.Close()
}
