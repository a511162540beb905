"""A Celery app with one periodic task, as CourSys has it: beat sends it, a worker of the queue `fast` runs it.

    celery --app periodic beat --schedule FILE
    celery --app periodic worker --queues fast --hostname fast@%h

SITE_BROKER   amqp://USER:PASSWORD@HOST:PORT/VHOST
SITE_STORAGE  how beat keeps its schedule: gnu, ndbm, dumb or sqlite; without it as this Python likes
"""

import os
import pickle
import shelve
import sqlite3

from celery import Celery
from celery.beat import PersistentScheduler


class Sqlite(dict):
    """What dbm.sqlite3 of Python 3.13 does to its file: one table, write-ahead log, a statement per key."""

    def __init__(self, path):
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = wal")
        self.connection.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        for key, value in self.connection.execute("SELECT key, value FROM Dict"):
            self[key.decode()] = pickle.loads(value)

    def sync(self):
        for key, value in self.items():
            self.connection.execute("REPLACE INTO Dict (key, value) VALUES (?, ?)", (key.encode(), pickle.dumps(value)))

    def close(self):
        self.sync()
        self.connection.close()


def opener(storage):
    if storage == "sqlite":
        return lambda path, writeback: Sqlite(path)
    module = __import__(f"dbm.{storage}", fromlist=["open"])
    return lambda path, writeback: shelve.Shelf(module.open(path, "c"), writeback=writeback)


class Scheduler(PersistentScheduler):
    storage = os.environ.get("SITE_STORAGE")
    if storage:

        class persistence:
            open = staticmethod(opener(os.environ["SITE_STORAGE"]))


app = Celery("periodic", broker=os.environ["SITE_BROKER"])
app.conf.update(
    beat_max_loop_interval=1,
    beat_scheduler=Scheduler,
    beat_schedule={"beat test": {"task": "coredata.tasks.beat_test", "schedule": 1.0, "options": {"queue": "fast", "expires": 5}}},
    beat_sync_every=1,
    task_ignore_result=True,
)


@app.task(name="coredata.tasks.beat_test")
def beat_test():
    pass
