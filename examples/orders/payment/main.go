// Takes the money for an order, and has a receipt sent.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

type charge struct {
	Order string `json:"order"`
	Cents int    `json:"cents"`
}

// One line in this app's ledger. It is in the file before anything else happens, so that a killed app has it too.
func writeDown(c charge) error {
	directory := os.Getenv("LEDGER")
	if directory == "" {
		directory = "ledger"
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(directory, "payment.jsonl"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	return json.NewEncoder(file).Encode(c)
}

func take(w http.ResponseWriter, r *http.Request) {
	var c charge
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := writeDown(c); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	body, _ := json.Marshal(c)
	answer, err := http.Post("http://mail/receipts", "application/json", bytes.NewReader(body))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 300 {
		w.Header().Set("Retry-After", answer.Header.Get("Retry-After"))
		w.WriteHeader(answer.StatusCode)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	json.NewEncoder(w).Encode(map[string]string{"receipt": "R-" + strings.TrimPrefix(c.Order, "A-")})
}

func main() {
	port := os.Getenv("PORT")
	if port == "" {
		port = "8083"
	}
	http.HandleFunc("/charges", take)
	log.Fatal(http.ListenAndServe(net.JoinHostPort("127.0.0.1", port), nil))
}
