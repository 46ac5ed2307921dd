// Segment a CT with pfms, from Go:
//
//	go run pfms.go SERVER upload MODEL WEIGHTS
//	go run pfms.go SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
//	go run pfms.go SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"time"
)

func main() {
	log.SetFlags(0)
	counts := map[string]int{"upload": 5, "infer": 6, "submit": 7}
	if len(os.Args) < 3 || len(os.Args) != counts[os.Args[2]] {
		fmt.Fprintln(os.Stderr, "usage: pfms SERVER upload MODEL WEIGHTS")
		fmt.Fprintln(os.Stderr, "       pfms SERVER infer  MODEL VOLUME OUTPUT")
		fmt.Fprintln(os.Stderr, "       pfms SERVER submit MODEL VOLUME OUTPUT KEY")
		os.Exit(2)
	}
	server, command, model, file := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	route := "NIfTIinference"
	if command == "upload" {
		route = "modelpth"
	}
	address := server + "/api/v1/spleenseg/" + route + "?modelID=" + url.QueryEscape(model)
	body, contentType := form(file)
	request := must(http.NewRequest("POST", address, body))
	request.Header.Set("Content-Type", contentType)
	if command == "submit" {
		// The same key again finds the same job, so a call that broke off can be made again.
		request.Header.Set("Prefer", "respond-async")
		request.Header.Set("Idempotency-Key", os.Args[6])
	}
	answer := call(request)
	if command == "upload" {
		fmt.Println("stored with the checksum", fields(answer)["sha256"])
		return
	}
	fmt.Println("job", answer.Header.Get("X-Pfms-Job"))
	if answer.StatusCode == http.StatusAccepted {
		job := must(answer.Location()).String()
		for state := "queued"; state == "queued" || state == "running"; {
			time.Sleep(time.Second)
			state, _ = fields(get(job))["state"].(string)
		}
		answer = get(job + "/result")
	}
	defer answer.Body.Close()
	must(io.Copy(must(os.Create(os.Args[5])), answer.Body))
}

// form sends the file piece by piece, so that it need not fit into memory.
func form(file string) (io.Reader, string) {
	content := must(os.Open(file))
	reader, writer := io.Pipe()
	parts := multipart.NewWriter(writer)
	go func() {
		part, err := parts.CreateFormFile("file", file)
		if err == nil {
			_, err = io.Copy(part, content)
		}
		if err == nil {
			err = parts.Close()
		}
		writer.CloseWithError(err)
	}()
	return reader, parts.FormDataContentType()
}

func get(address string) *http.Response {
	return call(must(http.NewRequest("GET", address, nil)))
}

func call(request *http.Request) *http.Response {
	answer := must(http.DefaultClient.Do(request))
	if answer.StatusCode >= 400 {
		if answer.Header.Get("Content-Type") == "application/problem+json" {
			problem := fields(answer)
			log.Fatal(problem["detail"], " ", problem["remedy"])
		}
		log.Fatal(answer.Status) // for example from a proxy
	}
	return answer
}

func fields(answer *http.Response) (fields map[string]any) {
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&fields); err != nil {
		log.Fatal(err)
	}
	return fields
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
