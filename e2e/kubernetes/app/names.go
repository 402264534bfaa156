package main

import (
	"encoding/json"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// A nameserver, where the cluster has none: with NAMES={"cart.shop.svc.cluster.local": "10.96.0.7"}, at UDP port 53.
func serveNames() {
	text := os.Getenv("NAMES")
	if text == "" {
		return
	}
	names := map[string]netip.Addr{}
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		log.Fatal("NAMES: ", err)
	}
	socket, err := net.ListenPacket("udp", ":53")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, from, err := socket.ReadFrom(buffer)
			if err != nil {
				log.Fatal(err)
			}
			if answer, err := resolve(buffer[:n], names); err == nil {
				socket.WriteTo(answer, from)
			}
		}
	}()
}

func resolve(message []byte, names map[string]netip.Addr) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(message)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	address, known := names[strings.ToLower(strings.TrimSuffix(question.Name.String(), "."))]
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{question},
	}
	switch {
	case !known:
		reply.RCode = dnsmessage.RCodeNameError
	case question.Type == dnsmessage.TypeA:
		head := dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: 30}
		reply.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: address.As4()}}}
	}
	return reply.Pack()
}
