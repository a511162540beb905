"""A stand-in for CourSys's markup service (ruby-markup/markdown2html-server.rb), for the tests: it speaks exactly its
protocol over the queue, and the same over HTTP.

    markup.py amqp://USER:PASSWORD@HOST:PORT/VHOST     the queue markdown2html_queue
    markup.py http://127.0.0.1:PORT                    POST to any path

It knows one piece of Markdown, *emphasis*. What it does wrong is said in its environment:

SITE_MARKUP   delay:SECONDS   answers that much later
              plain           renders nothing
              garbage         answers with bytes that are no JSON
              huge            answers with more than 1 MiB
              uncorrelated    leaves the correlation_id out
              mute            takes each question and never answers
              status:CODE     over HTTP, with this status
"""

import json
import os
import re
import sys
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

WRONG, _, VALUE = os.environ.get("SITE_MARKUP", "").partition(":")


def render(body):
    """Turns {"md": "*x*"} into {"html": "<p><em>x</em></p>"}."""
    if WRONG == "delay":
        time.sleep(float(VALUE))
    elif WRONG == "garbage":
        return b"\xff\x00"
    elif WRONG == "huge":
        return b"x" * (1 << 21)
    text = json.loads(body)["md"]
    if WRONG != "plain":
        text = re.sub(r"\*(\w+)\*", r"<em>\1</em>", text)
    return json.dumps({"html": f"<p>{text}</p>"}).encode()


def serve_queue(url):
    import amqp

    where = urlsplit(url)
    connection = amqp.Connection(
        host=f"{where.hostname}:{where.port}", userid=where.username, password=where.password, virtual_host=where.path[1:] or "/"
    )
    connection.connect()
    channel = connection.channel()
    # As the Ruby service declares it: gone with the broker's restart, open to everybody.
    channel.queue_declare("markdown2html_queue", durable=False, exclusive=False, auto_delete=False)

    def answer(message):
        html = render(message.body)
        if WRONG == "mute":
            return
        properties = {} if WRONG == "uncorrelated" else {"correlation_id": message.properties["correlation_id"]}
        reply = amqp.Message(html, expiration="60000", **properties)
        channel.basic_publish(reply, exchange="", routing_key=message.properties["reply_to"])

    # Answered outside the callback: publishing takes what has come meanwhile, and would call it within itself.
    waiting = deque()
    channel.basic_consume("markdown2html_queue", no_ack=True, callback=waiting.append)
    print("ready", flush=True)
    while True:
        connection.drain_events()
        while waiting:
            answer(waiting.popleft())


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        html = render(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(int(VALUE) if WRONG == "status" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(html)))
        self.end_headers()
        self.wfile.write(html)


def serve_http(url):
    server = HTTPServer((urlsplit(url).hostname, urlsplit(url).port), Handler)
    print("ready", flush=True)
    server.serve_forever()


serve_queue(sys.argv[1]) if sys.argv[1].startswith("amqp:") else serve_http(sys.argv[1])
