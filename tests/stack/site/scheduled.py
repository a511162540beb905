"""A Django site whose beat keeps its schedule in the database, by django-celery-beat: settings and Celery app in one.

    django-admin migrate --settings scheduled --pythonpath HERE
    celery --workdir HERE --app scheduled beat --scheduler django_celery_beat.schedulers:DatabaseScheduler

SITE_DATABASE  the port of its PostgreSQL on 127.0.0.1
"""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "scheduled")

SECRET_KEY = "of a test"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_beat"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": os.environ["SITE_DATABASE"],
    }
}

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
