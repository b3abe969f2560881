// The end-to-end peer of the benchmark "pace": a client and a worker of Temporal's Go SDK with its
// defaults, on the workflow that the benchmark runs on our side: one activity that echoes.
//
//	end-to-end -address HOST:PORT worker
//	end-to-end -address HOST:PORT -clients 64 -lasts 30s -input JSON client
//
// The client prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sort"
	"sync"
	"syscall"
	"time"

	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

const queue = "end-to-end"

func echo(_ context.Context, input json.RawMessage) (json.RawMessage, error) {
	return input, nil
}

func echoWorkflow(ctx workflow.Context, input json.RawMessage) (json.RawMessage, error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute})
	var result json.RawMessage
	err := workflow.ExecuteActivity(ctx, echo, input).Get(ctx, &result)
	return result, err
}

func main() {
	address := flag.String("address", "127.0.0.1:7233", "Temporal frontend")
	clients := flag.Int("clients", 64, "workflows in flight")
	lasts := flag.Duration("lasts", 30*time.Second, "how long the client starts workflows")
	input := flag.String("input", "{}", "JSON, the input of each workflow")
	flag.Parse()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	temporal, err := client.Dial(client.Options{HostPort: *address, Logger: sdklog.NewStructuredLogger(quiet)})
	if err != nil {
		log.Fatal(err)
	}
	defer temporal.Close()
	switch flag.Arg(0) {
	case "worker":
		w := worker.New(temporal, queue, worker.Options{})
		w.RegisterWorkflow(echoWorkflow)
		w.RegisterActivity(echo)
		if err := w.Run(worker.InterruptCh()); err != nil {
			log.Fatal(err)
		}
	case "client":
		load(temporal, *clients, *lasts, json.RawMessage(*input))
	default:
		log.Fatal("worker or client")
	}
}

// complete starts a workflow and waits for its result.
func complete(temporal client.Client, input json.RawMessage) error {
	ctx := context.Background()
	run, err := temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{TaskQueue: queue}, echoWorkflow, input)
	if err != nil {
		return err
	}
	var result json.RawMessage
	return run.Get(ctx, &result)
}

func load(temporal client.Client, clients int, lasts time.Duration, input json.RawMessage) {
	// Connects, and shows that the worker runs.
	if err := complete(temporal, input); err != nil {
		log.Fatal(err)
	}
	var lock sync.Mutex
	var took []time.Duration
	errors := 0
	var all sync.WaitGroup
	before, begin := processorTime(), time.Now()
	for range clients {
		all.Go(func() {
			for time.Since(begin) < lasts {
				sent := time.Now()
				err := complete(temporal, input)
				lock.Lock()
				if err == nil {
					took = append(took, time.Since(sent))
				} else {
					errors++
				}
				lock.Unlock()
			}
		})
	}
	all.Wait()
	seconds, cpu := time.Since(begin).Seconds(), processorTime()-before
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	fmt.Printf(`{"completed":%d,"errors":%d,"seconds":%.3f,"p50_ms":%.3f,"p99_ms":%.3f,"cpu_seconds":%.3f}`+"\n",
		len(took), errors, seconds, quantile(took, 0.5), quantile(took, 0.99), cpu.Seconds())
}

func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func quantile(sorted []time.Duration, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	index := min(len(sorted)-1, int(share*float64(len(sorted))))
	return float64(sorted[index].Microseconds()) / 1000
}
