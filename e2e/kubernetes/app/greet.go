package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"
)

// With GREET=:8090, a server that speaks first, as those of mail and of databases do; and with METRICS=:9090 one for metrics.
func serveOthers() {
	if at := os.Getenv("GREET"); at != "" {
		listener, err := net.Listen("tcp", at)
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			for {
				connection, err := listener.Accept()
				if err != nil {
					log.Fatal(err)
				}
				fmt.Fprintf(connection, "220 %s at your service\r\n", pod)
				connection.Close()
			}
		}()
	}
	if at := os.Getenv("METRICS"); at != "" {
		metrics := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "up{pod=%q,attempt=%q} 1\n", pod, r.Header.Get("Bluebox-Attempt"))
		})
		go func() { log.Fatal(http.ListenAndServe(at, metrics)) }()
	}
}

// What a server says that speaks first.
func greeted(w http.ResponseWriter, r *http.Request) {
	connection, err := net.DialTimeout("tcp", r.FormValue("at"), 10*time.Second)
	if err != nil {
		answer(w, map[string]any{"error": err.Error()})
		return
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		answer(w, map[string]any{"error": err.Error()})
		return
	}
	answer(w, map[string]any{"said": line})
}
