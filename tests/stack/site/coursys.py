"""A small Django site in one file, for the tests: behind a proxy that speaks TLS, as CourSys is.

    gunicorn --chdir tests/stack/site --workers 3 --bind 127.0.0.1:8000 coursys:application

SITE_DB    host:port or path of the PostgreSQL that /healthcheck asks; without it the database counts as well
SITE_CRASH file: while it exists, a worker that imports the site dies at once
SITE_MAIL  folder that takes the mails to ADMINS, one file each; without it they are dropped
"""

import os
import socket
import time

from django.conf import settings

if os.path.exists(os.environ.get("SITE_CRASH", "/nonexistent")):
    os._exit(1)

MAIL = os.environ.get("SITE_MAIL")

settings.configure(
    ADMINS=[("Admin", "admin@example.org")],
    ALLOWED_HOSTS=["coursys.example.org"],
    DEBUG=False,
    EMAIL_BACKEND="django.core.mail.backends." + ("filebased" if MAIL else "dummy") + ".EmailBackend",
    EMAIL_FILE_PATH=MAIL,
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="known to everybody: only for tests",
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
    SECURE_REDIRECT_EXEMPT=[r"^healthcheck$", r"^slow$"],
    SECURE_SSL_REDIRECT=True,
)

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


def home(request):
    return HttpResponse("<!doctype html><title>CourSys</title><p>It works.")


def database():
    """Asks PostgreSQL for its first byte; returns what is wrong, nothing where all is well."""
    where = os.environ.get("SITE_DB")
    if not where:
        return None
    try:
        if where.startswith("/"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(2)
            connection.connect(where)
        else:
            host, port = where.rsplit(":", 1)
            connection = socket.create_connection((host, int(port)), timeout=2)
        with connection:
            connection.sendall(bytes.fromhex("0000000804d2162f"))  # SSLRequest
            answer = connection.recv(1)
    except OSError as error:
        return str(error)
    return None if answer in (b"S", b"N") else "the database closed the connection"


def healthcheck(request):
    wrong = database()
    text = "database: " + (wrong or "okay") + "\n"
    return HttpResponse(text, content_type="text/plain", status=503 if wrong else 200)


def slow(request):
    time.sleep(min(float(request.GET.get("s", "1")), 120))
    return HttpResponse("slow\n", content_type="text/plain")


def error(request):
    raise RuntimeError("on purpose")


urlpatterns = [path("", home), path("healthcheck", healthcheck), path("slow", slow), path("error", error)]

application = get_wsgi_application()
