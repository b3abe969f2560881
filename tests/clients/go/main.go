// Checks the health, follows a subject, publishes an event, starts an execution and waits for it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"reflect"
	"strings"
	"time"

	"scenario/agentarea"
)

func main() {
	log.SetFlags(0)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client, err := agentarea.NewClientWithResponses(os.Args[1])
	must(err)

	health, err := client.GetHealthWithResponse(ctx)
	must(err)
	if health.JSON200 == nil || health.JSON200.Status != agentarea.HealthStatusHealthy {
		log.Fatalf("health: %s", health.Body)
	}
	fmt.Println(health.JSON200.Service, health.JSON200.Version, "is", health.JSON200.Status)

	subject := "go-1"
	// The parsing variant would wait for the end of the answer, and a stream has none.
	stream, err := client.StreamEvents(ctx, &agentarea.StreamEventsParams{Subject: &subject})
	must(err)
	defer stream.Body.Close()
	if stream.StatusCode != http.StatusOK {
		log.Fatalf("stream: %s", stream.Status)
	}

	data := map[string]any{"title": "Write the report"}
	published, err := client.PublishEventsWithResponse(ctx,
		&agentarea.PublishEventsParams{IdempotencyKey: &subject},
		agentarea.ShortEvent{Type: "task.created", Subject: &subject, Data: data})
	must(err)
	if published.JSON202 == nil {
		log.Fatalf("publish: %s", published.Body)
	}

	received := firstEvent(bufio.NewScanner(stream.Body))
	if received.Id != *published.JSON202.Id || !reflect.DeepEqual(received.Data, any(data)) {
		log.Fatalf("received %+v, published %s", received, *published.JSON202.Id)
	}
	fmt.Println("received", received.Type, received.Id)

	input := map[string]any{"message": "hello"}
	started, err := client.StartExecutionWithResponse(ctx, nil,
		agentarea.StartExecution{Workflow: "echo", Input: input})
	must(err)
	if started.JSON202 == nil {
		log.Fatalf("start: %s", started.Body)
	}
	wait := "20s"
	ended, err := client.GetExecutionWithResponse(ctx, started.JSON202.Id,
		&agentarea.GetExecutionParams{Wait: &wait})
	must(err)
	execution := ended.JSON200
	if execution == nil || execution.Status != agentarea.ExecutionStatusCompleted ||
		!reflect.DeepEqual(execution.Result, any(input)) {
		log.Fatalf("execution: %s", ended.Body)
	}
	fmt.Println("completed", execution.Id, "with", execution.Result)
}

func firstEvent(lines *bufio.Scanner) (event agentarea.CloudEvent) {
	for lines.Scan() {
		if data, is := strings.CutPrefix(lines.Text(), "data: "); is {
			must(json.Unmarshal([]byte(data), &event))
			return event
		}
	}
	log.Fatalf("the stream ended: %v", lines.Err())
	return
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
