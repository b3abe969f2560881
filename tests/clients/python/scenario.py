"""Checks the health, follows a subject, publishes an event, starts an execution and waits for it."""

import json
import sys

import httpx
from agentarea import Client
from agentarea.api.events import publish_events, stream_events
from agentarea.api.executions import get_execution, start_execution
from agentarea.api.health import get_health
from agentarea.models import ExecutionStatus, HealthStatus, ShortEvent, StartExecution

client = Client(base_url=sys.argv[1], timeout=httpx.Timeout(30), raise_on_unexpected_status=True)

report = get_health.sync(client=client)
assert report.status is HealthStatus.HEALTHY, report
print(report.service, report.version, "is", report.status)

# `stream_events.sync` would wait for the end of the answer, and a stream has none.
following = stream_events._get_kwargs(subject="python-1")
with client.get_httpx_client().stream(**following) as stream:
    assert stream.status_code == 200, stream

    event = ShortEvent(type_="task.created", subject="python-1", data={"title": "Write the report"})
    published = publish_events.sync(client=client, body=event, idempotency_key="python-1")

    lines = (line for line in stream.iter_lines() if line.startswith("data: "))
    received = json.loads(next(lines).removeprefix("data: "))
    assert received["id"] == published.id, (received, published)
    assert received["data"] == event.data, received
    print("received", received["type"], received["id"])

wanted = StartExecution(workflow="echo", input_={"message": "hello"})
execution = start_execution.sync(client=client, body=wanted)
execution = get_execution.sync(execution.id, client=client, wait="20s")
assert execution.status is ExecutionStatus.COMPLETED, execution
assert execution.result == {"message": "hello"}, execution
print("completed", execution.id, "with", execution.result)
