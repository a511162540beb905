# Says what a Django project is made of, as JSON on standard output, and then ends at once. Run by `proctor init` as the
# owner of manage.py. It only reads settings; a password is never said: what has one says only that it has.
import json
import os
import runpy
import sys
import traceback
import types

MOST = 100  # of a list
LONGEST = 300  # characters of a text
# What the project itself prints goes nowhere: it is not asked for, may be without end, and may hold secrets.
answer = os.dup(1)
nowhere = os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(nowhere, descriptor)


def say(what):
    data = json.dumps(what).encode("ascii")
    while data:
        data = data[os.write(answer, data):]
    # Neither hooks at the exit nor threads of the project run any more.
    os._exit(0)


def text(value):
    value = "" if value is None else str(value)
    return value if len(value) <= LONGEST else ""


def texts(values):
    return [text(value) for value in list(values)[:MOST]]


def place(url):
    """The parts of a URL without its password; without the user as well where that may be a key."""
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(str(url))
    return {
        "scheme": text(parts.scheme),
        "host": text(parts.hostname),
        "port": parts.port,
        "path": text(unquote(parts.path)),
        "username": text(unquote(parts.username or "")),
        "has_password": bool(parts.password),
    }


def admins(settings):
    found = []
    quoted = lambda name: name.replace("\\", "\\\\").replace('"', '\\"')
    for admin in list(settings.ADMINS)[:MOST]:
        # Pairs up to Django 5.2, texts from 6.0 on.
        found.append(text(admin) if isinstance(admin, str) else '"%s" <%s>' % (quoted(text(admin[0])), text(admin[1])))
    return found


def mail(settings):
    # Django 6.1 has MAILERS; the others have EMAIL_*.
    mailer = (getattr(settings, "MAILERS", None) or {}).get("default")
    if mailer is not None:
        options = mailer.get("OPTIONS", {})
        backend = mailer.get("BACKEND", "django.core.mail.backends.smtp.EmailBackend")
        get = lambda name, default=None: options.get(name, default)
    else:
        names = {"host": "HOST", "port": "PORT", "username": "HOST_USER", "password": "HOST_PASSWORD", "use_tls": "USE_TLS", "use_ssl": "USE_SSL"}
        backend = settings.EMAIL_BACKEND
        get = lambda name, default=None: getattr(settings, "EMAIL_" + names[name], default)
    tls = "starttls" if get("use_tls") else "tls" if get("use_ssl") else "none"
    return {
        "backend": text(backend),
        "host": text(get("host", "localhost")),
        "port": int(get("port") or {"starttls": 587, "tls": 465, "none": 25}[tls]),
        "tls": tls,
        "username": text(get("username")),
        "has_password": bool(get("password")),
        "mailers": mailer is not None,
    }


def caches(settings):
    found = []
    for cache in settings.CACHES.values():
        where = cache.get("LOCATION") or []
        where = where.replace(";", ",").split(",") if isinstance(where, str) else where
        # A URL may hold a password.
        where = [text(one) if "://" not in str(one) else "" for one in where]
        found.append({"backend": text(cache.get("BACKEND")), "locations": where[:MOST]})
    return found[:MOST]


def databases(settings):
    found = []
    for alias, database in list(settings.DATABASES.items())[:MOST]:
        entry = {"alias": text(alias), "engine": text(database.get("ENGINE"))}
        for name in ("HOST", "PORT", "NAME"):
            value = text(database.get(name))
            entry[name.lower()] = value if "://" not in value and "@" not in value else ""
        found.append(entry)
    return found


def celery(settings):
    conf, queues = {}, set()
    if "celery" in sys.modules:
        from celery import current_app

        # The app that the project made, if it made one; otherwise there is nothing but defaults in it.
        if current_app.main or getattr(current_app, "_config_source", None):
            conf = current_app.conf
            try:
                current_app.loader.import_default_modules()
                queues |= {task.queue for task in current_app.tasks.values() if getattr(task, "queue", None)}
            except Exception:
                pass

    def setting(new, *old):
        value = conf.get(new) if conf else None
        for name in ("CELERY_" + new.upper(),) + old:
            value = value or getattr(settings, name, None)
        return value

    broker = setting("broker_url", "BROKER_URL")
    broker = broker[0] if isinstance(broker, (list, tuple)) and broker else broker
    if not broker:
        return None
    declared = setting("task_queues", "CELERY_QUEUES") or ()
    queues |= {one if isinstance(one, str) else one.name for one in declared}
    routes = setting("task_routes", "CELERY_ROUTES") or {}
    for route in routes if isinstance(routes, (list, tuple)) else [routes]:
        for pair in route.values() if isinstance(route, dict) else []:
            queue = pair.get("queue") if isinstance(pair, dict) else pair
            queues.add(queue if isinstance(queue, str) else getattr(queue, "name", None))
    queues.add(setting("task_default_queue", "CELERY_DEFAULT_QUEUE") or "celery")
    schedule = setting("beat_schedule", "CELERYBEAT_SCHEDULE") or {}
    return {
        "broker": place(str(broker).split(";")[0]),
        "queues": texts(sorted(queue for queue in queues if isinstance(queue, str))),
        "scheduled": len(schedule),
        "schedule_file": text(setting("beat_schedule_filename", "CELERYBEAT_SCHEDULE_FILENAME")),
        "scheduler": text(setting("beat_scheduler", "CELERYBEAT_SCHEDULER")),
    }


def search(settings):
    found = []
    for connection in (getattr(settings, "HAYSTACK_CONNECTIONS", None) or {}).values():
        url = connection.get("URL")
        if url:
            url = url if isinstance(url, str) else list(url)[0]
            login = bool((connection.get("KWARGS") or {}).get("http_auth") or (connection.get("KWARGS") or {}).get("basic_auth"))
            found.append({"place": place(url), "index": text(connection.get("INDEX_NAME")), "login": login})
    return found[:MOST]


def dump():
    import django
    from django.conf import settings

    said = {"version": django.get_version(), "folder": text(os.getcwd()), "unknown": []}
    parts = {
        "admins": admins,
        "server_email": lambda settings: text(settings.SERVER_EMAIL),
        "subject_prefix": lambda settings: text(settings.EMAIL_SUBJECT_PREFIX),
        "mail": mail,
        "caches": caches,
        "databases": databases,
        "celery": celery,
        "search": search,
        "hosts": lambda settings: texts(settings.ALLOWED_HOSTS),
    }
    settings.ADMINS  # What is wrong with the settings as a whole comes out here.
    for name, read in parts.items():
        try:
            said[name] = read(settings)
        except Exception as error:
            said["unknown"].append("%s (%s)" % (name, type(error).__name__))
    say(said)


def failed(error):
    """The kind of an error, where it happened, and what it says only where that cannot hold a secret."""
    at = traceback.extract_tb(error.__traceback__)
    at = [frame for frame in at if not frame.filename.startswith("<")]
    told = type(error).__name__
    words = str(error)
    harmless = isinstance(error, ImportError) or (isinstance(error, KeyError) and words.strip("'").isidentifier())
    if harmless and len(words) <= LONGEST and "://" not in words:
        told += ": " + words
    if at:
        told += " (%s, line %d)" % (at[-1].filename, at[-1].lineno)
    say({"failed": text(told) or type(error).__name__})


def main():
    manage = os.environ.pop("PROCTOR_MANAGE")
    module = types.ModuleType("proctor_dump")
    module.dump = dump
    sys.modules["proctor_dump"] = module
    sys.path[0] = os.path.dirname(manage)
    sys.argv = [manage, "shell", "-v", "0", "-c", "import proctor_dump; proctor_dump.dump()"]
    try:
        runpy.run_path(manage, run_name="__main__")
    except BaseException as error:
        try:
            # What is wrong with the settings comes first: Django goes on without them, and then fails at something else.
            from django.conf import settings

            settings.ADMINS
        except BaseException as cause:
            failed(cause)
        failed(error)
    say({"failed": "manage.py ended without running the command shell"})


main()
