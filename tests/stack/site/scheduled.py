"""A Django site whose beat keeps its schedule in the database, by django-celery-beat: settings and Celery app in one.

    django-admin migrate --settings scheduled --pythonpath HERE
    celery --workdir HERE --app scheduled beat --scheduler django_celery_beat.schedulers:DatabaseScheduler

SITE_DATABASE  postgresql:PORT or mysql:PORT of its database on 127.0.0.1
"""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "scheduled")

SECRET_KEY = "of a test"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
engine, _, port = os.environ["SITE_DATABASE"].partition(":")
if engine == "mysql":
    import pymysql

    pymysql.install_as_MySQLdb()
    database = {"NAME": "site", "USER": "site", "PASSWORD": "site"}
else:
    database = {"NAME": "postgres", "USER": "postgres"}
DATABASES = {"default": {"ENGINE": f"django.db.backends.{engine}", "HOST": "127.0.0.1", "PORT": port, **database}}

from celery import Celery  # noqa: E402

app = Celery("scheduled", broker="memory://")
app.conf.update(
    beat_max_loop_interval=1,
    beat_sync_every=1,
    beat_schedule={"beat test": {"task": "coredata.tasks.beat_test", "schedule": 1.0}},
    task_ignore_result=True,
)


@app.task(name="coredata.tasks.beat_test")
def beat_test():
    pass
