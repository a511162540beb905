"""A Celery app as CourSys has it: five queues, a node for each under one `celery multi`, results over RPC.

    celery multi start batch email fast photo sims -A queues -Q:batch batch -Q:email email ... -c 2

SITE_BROKER   amqp://USER:PASSWORD@HOST:PORT/VHOST
SITE_BACKEND  where results go; rpc:// without it, as CourSys has it
"""

import os
import time

from celery import Celery

app = Celery("queues", broker=os.environ["SITE_BROKER"], backend=os.environ.get("SITE_BACKEND", "rpc://"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="batch",
)


@app.task(name="site.fast")
def fast():
    return "fast"


@app.task(name="site.slow")
def slow(seconds, word=None):
    time.sleep(seconds)


@app.task(name="site.retrying", bind=True)
def retrying(self, countdown, most=144):
    raise self.retry(countdown=countdown, max_retries=most)


@app.task(name="site.failing")
def failing(word=None):
    raise ValueError("no")
