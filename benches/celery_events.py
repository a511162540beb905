"""What `benches/peers.py events` compares Proctor with, and what sends the events.

    celery_events.py receive BROKER         celery.events.Receiver feeding prometheus_client, as celery-exporter does it
    celery_events.py send BROKER N SECONDS  1,000 events a second, N in each message: 1, or about 20 as a worker batches them
    celery_events.py inspect BROKER N       N times inspect().stats() and active_queues(); prints each time in seconds
"""
import re
import sys
import time
import uuid

from celery import Celery

RATE = 1000
NODES = ["batch@vm", "email@vm", "fast@vm", "photo@vm", "sims@vm"]
app = Celery("bench", broker=sys.argv[2])


def receive():
    """As celery-exporter does it: names come from Celery's own State, and every counter of a task is made at its first event."""
    from celery.events.state import State
    from prometheus_client import Counter, Gauge, Histogram

    labels = ["name", "hostname", "queue_name"]
    kinds = ["sent", "received", "started", "succeeded", "failed", "rejected", "revoked", "retried"]
    counters = {f"task-{kind}": Counter(f"celery_task_{kind}", kind, [*labels, *["exception"] * (kind == "failed")]) for kind in kinds}
    runtime = Histogram("celery_task_runtime", "runtime", labels)
    active = Gauge("celery_worker_tasks_active", "active", ["hostname"])
    state = State()

    def take(event):
        kind = event["type"]
        state.event(event)
        if kind == "worker-heartbeat":
            active.labels(hostname=event["hostname"].split("@")[-1]).set(event["active"])
        if not kind.startswith("task-"):
            return
        task = state.tasks.get(event["uuid"])
        of = {"name": task.name, "hostname": task.hostname.split("@")[-1], "queue_name": getattr(task, "queue", "celery")}
        for name, counter in counters.items():
            values = dict(of)
            if name == "task-failed":
                found = re.match(r"^(\w+)\(", task.exception) if name == kind else None
                values["exception"] = found[1] if found else ""
            counter.labels(**values).inc(1 if name == kind else 0)
        if kind == "task-succeeded":
            runtime.labels(**of).observe(task.runtime)

    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": take})
        print("ready", flush=True)
        receiver.capture(limit=None, timeout=None, wakeup=False)


def send(count, seconds):
    from kombu import Exchange, Producer

    def events():
        clock = 0
        while True:
            clock += 1
            task, node, now = str(uuid.uuid4()), NODES[clock % 5], time.time()
            common = {"hostname": node, "utcoffset": 0, "pid": 4711, "clock": clock, "uuid": task, "timestamp": now}
            args = {"args": "(12345, 'somebody@example.org')", "kwargs": "{}", "root_id": task, "parent_id": None, "retries": 0, "eta": None, "expires": None}
            yield {"type": "task-received", "name": f"site.task{clock % 20}", **args, **common}
            yield {"type": "task-started", **common}
            if clock % 50:
                yield {"type": "task-succeeded", "result": "None", "runtime": 0.01 * (clock % 100), **common}
            else:
                yield {"type": "task-failed", "exception": "ValueError('no')", "traceback": "Traceback: " + "line\n" * 20, **common}

    stream = events()
    with app.connection() as connection:
        producer = Producer(connection.channel(), exchange=Exchange("celeryev", type="topic"), serializer="json")
        begin, sent = time.monotonic(), 0
        while sent < RATE * seconds:
            batch = [next(stream) for _ in range(count)]
            key = "task.multi" if count > 1 else batch[0]["type"].replace("-", ".")
            producer.publish(batch if count > 1 else batch[0], routing_key=key)
            sent += count
            ahead = sent / RATE - (time.monotonic() - begin)
            if ahead > 0:
                time.sleep(ahead)
    print(sent, flush=True)


def inspect(count):
    for _ in range(count):
        begin = time.monotonic()
        answers = app.control.inspect().stats() or {}
        queues = app.control.inspect().active_queues() or {}
        print(time.monotonic() - begin, len(answers), len(queues), flush=True)


{"receive": receive, "send": lambda: send(int(sys.argv[3]), int(sys.argv[4])), "inspect": lambda: inspect(int(sys.argv[3]))}[sys.argv[1]]()
