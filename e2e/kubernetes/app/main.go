// An app that knows nothing of Bluebox, for the tests on Kubernetes: it is called, it calls, and it dies in all ways when it is told to.
//
//	/work/ID?ms=N      answers after N ms; with LEDGER=http://HOST:PORT it first tells a ledger that it began, and at last that it ended
//	/healthz           200; also as gRPC (grpc.health.v1) over h2c
//	/exit?code=N       ends
//	/crash             dies of a signal
//	/hang              from now on answers nothing, at no connection
//	/call?to=URL&wait=S calls, and answers with what came of it
//	/load?to=URL&rate=N&seconds=N&name=NAME&enough=N   makes calls to URL/NAME-NUMBER in the background, until so many were answered with 200; /loaded says what came of them
//	/greeted?at=HOST:PORT what a server there says that speaks first
//	/ledger            a ledger: POST adds an entry, GET says what there is
//
// It can also be a server that speaks first, and one for metrics (greet.go).
//
// `app healthy` ends with 0 if the app beside it answers.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	pod    = os.Getenv("HOSTNAME")
	ledger = os.Getenv("LEDGER")
	hung   atomic.Bool
	// Past every proxy that the environment names.
	direct = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 10 * time.Second}
	calls  = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 256}}
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "healthy" {
		response, err := direct.Get("http://127.0.0.1:8080/healthz")
		if err != nil || response.StatusCode != 200 {
			log.Fatal("not healthy: ", err)
		}
		return
	}
	at := os.Getenv("LISTEN")
	if at == "" {
		at = ":8080"
	}
	http.HandleFunc("/work/{id}", work)
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	http.HandleFunc("/grpc.health.v1.Health/Check", grpcHealth)
	http.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) { os.Exit(number(r, "code")) })
	http.HandleFunc("/crash", func(http.ResponseWriter, *http.Request) {
		signal.Reset()
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		os.Exit(139)
	})
	http.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { hung.Store(true); select {} })
	http.HandleFunc("/call", call)
	http.HandleFunc("/load", load)
	http.HandleFunc("/loaded", loaded)
	http.HandleFunc("/ledger", keep)
	http.HandleFunc("/greeted", greeted)
	serveOthers()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: at, Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hung.Load() {
			select {}
		}
		http.DefaultServeMux.ServeHTTP(w, r)
	})}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	go func() {
		<-told
		log.Printf("%s ends", pod)
		os.Exit(0)
	}()
	log.Printf("%s listens at %s", pod, at)
	log.Fatal(server.ListenAndServe())
}

func number(r *http.Request, name string) int {
	n, _ := strconv.Atoi(r.FormValue(name))
	return n
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}

func work(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	note := entry{ID: id, Pod: pod, Attempt: r.Header.Get("Bluebox-Attempt"), MayHaveStarted: r.Header.Get("Bluebox-May-Have-Started") == "true"}
	note.What = "began"
	tell(note)
	time.Sleep(time.Duration(number(r, "ms")) * time.Millisecond)
	note.What = "ended"
	tell(note)
	answer(w, map[string]any{"id": id, "pod": pod, "attempt": note.Attempt})
}

func grpcHealth(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.Write([]byte{0, 0, 0, 0, 2, 8, 1}) // one message, of two bytes: status SERVING
	w.Header().Set("Grpc-Status", "0")
}

func call(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	request, err := http.NewRequest(http.MethodGet, r.FormValue("to"), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// What was sent while nobody knew that the log is away would wait for long.
	if wait := r.FormValue("wait"); wait != "" {
		request.Header.Set("Prefer", "wait="+wait)
	}
	response, err := calls.Do(request)
	if err != nil {
		answer(w, map[string]any{"error": err.Error(), "ms": time.Since(began).Milliseconds()})
		return
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	answer(w, map[string]any{"status": response.StatusCode, "body": string(body), "ms": time.Since(began).Milliseconds()})
}

// What came of a load.
type results struct {
	sync.Mutex
	Sent       int            `json:"sent"`
	TriedAgain int            `json:"triedAgain"`
	Answered   map[string]int `json:"answered"`
	Failed     []string       `json:"failed"`
	Slowest    int64          `json:"slowestMs"`
	Done       bool           `json:"done"`
}

var all = results{Answered: map[string]int{}}

func load(w http.ResponseWriter, r *http.Request) {
	to, name, rate, seconds, enough := r.FormValue("to"), r.FormValue("name"), number(r, "rate"), number(r, "seconds"), number(r, "enough")
	all.Lock()
	all.Sent, all.TriedAgain, all.Answered, all.Failed, all.Slowest, all.Done = 0, 0, map[string]int{}, []string{}, 0, false
	all.Unlock()
	go func() {
		var under sync.WaitGroup
		tick := time.NewTicker(time.Second / time.Duration(rate))
		for n := range rate * seconds {
			<-tick.C
			if enough > 0 && all.right() >= enough {
				break
			}
			under.Add(1)
			go func() {
				defer under.Done()
				one(fmt.Sprintf("%s/%s-%d?ms=20", to, name, n))
			}()
		}
		tick.Stop()
		under.Wait()
		all.Lock()
		all.Done = true
		all.Unlock()
	}()
	fmt.Fprintln(w, "begun")
}

func (r *results) right() int {
	r.Lock()
	defer r.Unlock()
	return r.Answered["200"]
}

func one(url string) {
	began := time.Now()
	response, err := calls.Get(url)
	// Not accepted, and later it may be: as any client does. How often is told.
	for try := 0; try < 30 && err == nil && response.StatusCode == http.StatusServiceUnavailable && response.Header.Get("Retry-After") != ""; try++ {
		response.Body.Close()
		after, _ := strconv.Atoi(response.Header.Get("Retry-After"))
		time.Sleep(time.Duration(max(after, 1)) * time.Second)
		all.Lock()
		all.TriedAgain++
		all.Unlock()
		response, err = calls.Get(url)
	}
	all.Lock()
	defer all.Unlock()
	all.Sent++
	all.Slowest = max(all.Slowest, time.Since(began).Milliseconds())
	if err != nil {
		all.Failed = append(all.Failed, url+": "+err.Error())
		return
	}
	body, _ := io.ReadAll(response.Body)
	response.Body.Close()
	all.Answered[strconv.Itoa(response.StatusCode)]++
	if response.StatusCode != 200 {
		all.Failed = append(all.Failed, fmt.Sprintf("%s: %d %s", url, response.StatusCode, body))
	}
}

func loaded(w http.ResponseWriter, _ *http.Request) {
	all.Lock()
	defer all.Unlock()
	answer(w, &all)
}

// What a ledger is told of a call.
type entry struct {
	ID             string `json:"id"`
	Pod            string `json:"pod"`
	What           string `json:"what"`
	Attempt        string `json:"attempt"`
	MayHaveStarted bool   `json:"mayHaveStarted"`
}

func tell(note entry) {
	if ledger == "" {
		return
	}
	entry, err := json.Marshal(note)
	if err != nil {
		log.Fatal(err)
	}
	// What is not in the ledger counts as lost: on a busy machine one try is not enough. Twice is as good as once.
	for try := range 30 {
		response, err := direct.Post(ledger+"/ledger", "application/json", bytes.NewReader(entry))
		if err == nil {
			response.Body.Close()
			return
		}
		log.Printf("the ledger can't be told (try %d): %v", try+1, err)
		time.Sleep(200 * time.Millisecond)
	}
}

var (
	book   []entry
	inBook sync.Mutex
)

// GET answers how many distinct calls ended, how many deliveries there were, how many of them came straight from a caller and not from a proxy, and which calls began once more after
// they had ended.
func keep(w http.ResponseWriter, r *http.Request) {
	inBook.Lock()
	defer inBook.Unlock()
	if r.Method == http.MethodPost {
		var note entry
		if json.NewDecoder(r.Body).Decode(&note) == nil {
			book = append(book, note)
		}
		return
	}
	ended, again, deliveries, repeated, straight := map[string]bool{}, []string{}, 0, 0, 0
	begun := map[string]bool{}
	for _, note := range book {
		if name := r.FormValue("name"); name != "" && (len(note.ID) < len(name) || note.ID[:len(name)] != name) {
			continue
		}
		if note.What == "ended" {
			ended[note.ID] = true
			continue
		}
		deliveries++
		if note.Attempt == "" {
			straight++
		}
		if begun[note.ID] {
			repeated++
		}
		begun[note.ID] = true
		if ended[note.ID] {
			again = append(again, note.ID)
		}
	}
	answer(w, map[string]any{"ended": len(ended), "deliveries": deliveries, "repeated": repeated, "straight": straight, "againAfterEnd": again})
}
