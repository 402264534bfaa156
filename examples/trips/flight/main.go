// Has seats. A seat that is taken is a file, so that a killed flight still knows. The same trip twice is one seat, and giving back what is not taken is no mistake.
package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

var (
	directory = filepath.Join(setting("BOOKINGS", "bookings"), "flight")
	lock      sync.Mutex
)

func setting(name, usual string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return usual
}

// The status of the answer, and what it says.
func change(method, seat string, seats int) (int, string) {
	lock.Lock()
	defer lock.Unlock()
	_, err := os.Stat(seat)
	taken := err == nil
	switch {
	case method == http.MethodDelete && taken:
		if err := os.Remove(seat); err != nil {
			return http.StatusInternalServerError, err.Error()
		}
		return http.StatusOK, "given back"
	case method == http.MethodDelete:
		return http.StatusOK, "nothing to give back"
	case method != http.MethodPut:
		return http.StatusMethodNotAllowed, "PUT or DELETE"
	case taken:
		return http.StatusCreated, "booked"
	}
	all, err := os.ReadDir(directory)
	if err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	if len(all) >= seats {
		return http.StatusConflict, "no seat"
	}
	if err := os.WriteFile(seat, nil, 0o644); err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	return http.StatusCreated, "booked"
}

func main() {
	seats, err := strconv.Atoi(setting("SEATS", "3"))
	if err != nil {
		log.Fatal(err)
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/seats/", func(w http.ResponseWriter, r *http.Request) {
		status, text := change(r.Method, filepath.Join(directory, filepath.Base(r.URL.Path)), seats)
		w.WriteHeader(status)
		io.WriteString(w, text)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, nil))
}
