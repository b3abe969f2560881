// Checks the health, follows a subject, publishes an event, starts an execution and waits for it.

import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./agentarea.js";

type CloudEvent = components["schemas"]["CloudEvent"];

const client = createClient<paths>({ baseUrl: process.argv[2] });

const { data: report } = await client.GET("/health");
assert.equal(report?.status, "healthy");
console.log(`${report.service} ${report.version} is ${report.status}`);

const abort = new AbortController();
const following = await client.GET("/v1/events/stream", {
  params: { query: { subject: "typescript-1" } },
  parseAs: "stream",
  signal: abort.signal,
});
assert(following.data);

const { data: published, error: refused } = await client.POST("/v1/events", {
  params: { header: { "Idempotency-Key": "typescript-1" } },
  body: { type: "task.created", subject: "typescript-1", data: { title: "Write the report" } },
});
assert(published, refused?.detail);

const received = await firstEvent(following.data);
assert.equal(received.id, published.id);
assert.deepEqual(received.data, { title: "Write the report" });
console.log(`received ${received.type} ${received.id}`);
abort.abort();

const { data: started } = await client.POST("/v1/executions", {
  body: { workflow: "echo", input: { message: "hello" } },
});
assert(started);
const { data: execution } = await client.GET("/v1/executions/{id}", {
  params: { path: { id: started.id }, query: { wait: "20s" } },
});
assert.equal(execution?.status, "completed");
assert.deepEqual(execution.result, { message: "hello" });
console.log(`completed ${execution.id} with`, execution.result);

async function firstEvent(stream: ReadableStream<Uint8Array>): Promise<CloudEvent> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const piece of stream) {
    text += decoder.decode(piece, { stream: true });
    const data = /^data: (.*)\n/m.exec(text)?.[1];
    if (data !== undefined) return JSON.parse(data) as CloudEvent;
  }
  throw new Error(`the stream ended after ${text}`);
}
