#!/usr/bin/env python3
"""Measures Proctor beside its peers, in one run and on one machine, and says where it misses what is wanted.

    benches/peers.py [serve] [memory] [targets] [celery] [events] [site] [scale]    default: all but scale, which says whether cost grows with targets

Needs target/release/proctor and what `tests/stack/stack bench-install` installs. Ratios are medians over rounds that
take turns, so that another program that keeps the machine busy meets Proctor and its peers alike.
"""
import contextlib
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("PROCTOR_STACK", "/tmp/proctor-stack")) / "venv"
PROCTOR = Path(os.environ.get("PROCTOR_BIN", ROOT / "target/release/proctor"))
ROUNDS, ROUND_SECONDS = 7, 3
ACTIVE_SECONDS = int(os.environ.get("BENCH_SECONDS", 60))
MIB = 1 << 20
started, rows = [], []


def port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(name, *argv, env=None):
    # In a group of its own: some are shells and pools whose children must end with them.
    process = subprocess.Popen(argv, env=env, stdout=open(dir / f"{name}.log", "wb"), stderr=subprocess.STDOUT, start_new_session=True)
    started.append(process)
    return process


def stop(process, how=signal.SIGTERM):
    started.remove(process)
    os.killpg(process.pid, how)
    process.wait(20)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def wait_for(what, done, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if done():
                return
        except OSError:
            pass
        time.sleep(0.05)
    logs = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in dir.glob("*.log"))
    sys.exit(f"bench: {what} is not there after {seconds} s\n{logs}")


def write(name, text):
    (dir / name).write_text(text)
    return str(dir / name)


def nginx():
    """One nginx is the peer, and what is asked: a static file, stub_status, TLS, and an open port on all of 127.0.0.0/8."""
    plain, tls = port(), port()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", dir / "key.pem", "-out", dir / "cert.pem"], check=True, capture_output=True)
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    write("trust.pem", (dir / "cert.pem").read_text() + (authorities.read_text() if authorities.exists() else ""))
    (dir / "www").mkdir()
    write("www/index.html", "all is well\n")
    config = f"""daemon off; worker_processes auto; pid {dir}/nginx.pid; error_log {dir}/nginx-error.log; user root;
        events {{ worker_connections 8192; }}
        http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;
          fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
          server {{ listen 0.0.0.0:{plain} backlog=8192; listen 127.0.0.1:{tls} ssl; ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;
            root {dir}/www; location = /status {{ stub_status; }} }} }}"""
    start("nginx", "nginx", "-c", write("nginx.conf", config))
    wait_for("nginx", lambda: get(f"http://127.0.0.1:{plain}/"))
    return plain, tls


class Proctor:
    def __init__(self, name, probes, defaults):
        at = port()
        config = f"""web: {{listen: "127.0.0.1:{at}"}}
state: {{path: {dir}/{name}.db}}
control: {{socket: {dir}/{name}.sock}}
defaults: {defaults}
probes:
{probes}"""
        # What TLS trusts: this host's authorities, as on any site, and the one of the run.
        env = os.environ | {"SSL_CERT_FILE": str(dir / "trust.pem")}
        self.url = f"http://127.0.0.1:{at}"
        self.process = start(name, PROCTOR, "--config", write(f"{name}.yml", config), "serve", env=env)
        wait_for("Proctor", lambda: get(self.url + "/-/ready"))

    def metrics(self):
        return get(self.url + "/metrics").decode()

    def sum(self, metric, text=None):
        return sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text or self.metrics(), re.M))

    def spent(self):
        return spent(self.process.pid)


def spent(pid):
    """Returns the CPU that a process has taken, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Returns the resident memory in bytes: whole, and its anonymous part."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return [int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M)[1]) * 1024 for name in ("Rss", "Anonymous")]


def scrape_for(proctor, seconds):
    """Scrapes once a second, as much more often than Prometheus does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        proctor.metrics()
        time.sleep(1)


def judge(what, measured, wanted, ok):
    rows.append((what, measured, wanted, "ok" if ok else "MISSED"))
    print(f"bench: {what}: {measured} (wanted: {wanted})", flush=True)


def wrk(url):
    out = subprocess.run(["wrk", "-t2", "-c16", f"-d{ROUND_SECONDS}s", url], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        sys.exit(f"bench: {url}:\n{out}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])


def tcp_probes(count):
    return "".join(f"  t{n}: {{tcp: {{address: \"127.0.{n // 250}.{n % 250 + 1}:{PLAIN}\"}}}}\n" for n in range(count))


def serve():
    """/metrics of about 8 KB beside nginx with the same bytes, and blackbox_exporter's own /metrics."""
    proctor = Proctor("serve", tcp_probes(5), "{interval: 15s}")
    body = get(proctor.url + "/metrics")
    (dir / "www/metrics").write_bytes(body)
    blackbox = port()
    exporter = start("blackbox", "prometheus-blackbox-exporter", f"--web.listen-address=127.0.0.1:{blackbox}",
                     "--config.file=" + write("blackbox.yml", "modules: {}\n"))
    urls = [proctor.url + "/metrics", f"http://127.0.0.1:{PLAIN}/metrics", f"http://127.0.0.1:{blackbox}/metrics"]
    wait_for("blackbox_exporter", lambda: get(urls[2]))
    rounds = [[wrk(url) for url in urls] for _ in range(ROUNDS)]
    ours, static, theirs = (statistics.median(column) for column in zip(*rounds))
    print(f"bench: requests/s: Proctor {ours:.0f}, nginx {static:.0f}, blackbox_exporter {theirs:.0f}; {len(body)} bytes")
    beside_nginx = statistics.median(one[0] / one[1] for one in rounds)
    judge(f"/metrics ({len(body)} bytes), requests/s beside nginx", f"{beside_nginx:.2f}", "≥ 0.50", beside_nginx >= 0.5)
    beside_blackbox = statistics.median(one[0] / one[2] for one in rounds)
    judge("/metrics, requests/s beside blackbox_exporter", f"{beside_blackbox:.1f}", "≥ 5.0", beside_blackbox >= 5)
    stop(exporter)
    stop(proctor.process)


def rss():
    """Twenty targets of all kinds that need no more than nginx and memcached, asked every second; Monit asks as many."""
    cache = port()
    start("memcached", "memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(cache))
    plain, tls = f"127.0.0.1:{PLAIN}", f"localhost:{TLS}"
    probes = [f"tcp: {{address: \"127.0.0.{n + 1}:{PLAIN}\"}}" for n in range(5)]
    probes += [f"http: {{url: \"http://{plain}/?{n}\", body: well}}" for n in range(5)]
    probes += [f"http: {{url: \"https://{tls}/?{n}\"}}" for n in range(3)]
    probes += [f"memcached: {{address: \"127.0.0.1:{cache}\"}}"] * 2
    probes += [f"nginx: {{status: \"http://{plain}/status\", sites: [\"http://{plain}/\"]}}"]
    probes += [f"certificate: {{files: [{dir}/cert.pem], served: [\"{tls}\"]}}"]
    probes += [f"gunicorn: {{listen: \"{plain}\", host_header: localhost}}"]
    proctor = Proctor("memory", "".join(f"  p{n}: {{{probe}}}\n" for n, probe in enumerate(probes)), "{interval: 1s, timeout: 1s}")
    count = proctor.sum("probe_success")
    for failed in re.findall(r"^probe_failure_info.*", proctor.metrics(), re.M):
        print(f"bench: {failed}")
    checks = [f"if failed port {PLAIN} address 127.0.0.{n % 250 + 1} then alert" for n in range(10)]
    checks += [f"if failed port {PLAIN} protocol http request \"/?{n}\" then alert" for n in range(5)]
    checks += [f"if failed port {TLS} protocol https request \"/?{n}\" with ssl options {{verify: disable, selfsigned: allow}} then alert" for n in range(5)]
    text = f"set daemon 1\nset pidfile {dir}/monit.pid\nset idfile {dir}/monit.id\nset statefile {dir}/monit.state\nset log {dir}/monit.txt\n"
    text += "".join(f"check host h{n} with address 127.0.0.1\n  {check}\n" for n, check in enumerate(checks))
    os.chmod(write("monitrc", text), 0o600)
    monit = start("monit", "monit", "-I", "-c", str(dir / "monitrc"))
    scrape_for(proctor, ACTIVE_SECONDS)
    (whole, anonymous), (peer, _) = memory(proctor.process.pid), memory(monit.pid)
    judge("targets that were asked and found well", f"{count:.0f}", "20", count == 20)
    judge(f"RSS after {ACTIVE_SECONDS} s at 20 targets a second", f"{whole / MIB:.1f} MiB", "≤ 20 MiB", whole <= 20 * MIB)
    judge("its anonymous part, beside all of Monit's RSS", f"{anonymous / MIB:.1f} MiB", f"≤ {peer / MIB:.1f} MiB", anonymous <= peer)
    stop(monit)
    stop(proctor.process)


def site():
    """All probes, each at a real service as the tests start it, every 15 s; a scrape in as many."""
    env = os.environ | {"PROCTOR_BIN": str(PROCTOR.resolve()), "REQUIRE_SERVICES": "1"}
    stack = ROOT / "tests/stack/stack"
    subprocess.run([stack, "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        test = ["cargo", "test", "--locked", "--test", "it", "--", "--ignored", "--nocapture", "soak::all_probes"]
        out = subprocess.run(test, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stderr
    finally:
        subprocess.run([stack, "stop"], stdout=subprocess.DEVNULL)
    count, whole, core = re.search(r"site: targets=(\d+) rss=(\d+) core=(\S+)", out).groups()
    judge(f"all probes on the whole site ({count} targets) every 15 s: RSS", f"{int(whole) / MIB:.1f} MiB", "≤ 24 MiB", int(whole) <= 24 * MIB)
    judge("the same: cores", core, "≤ 0.01", float(core) <= 0.01)


def tcp(count, seconds):
    """So many TCP targets every 15 s: returns the share of a core, missed slots, targets that are well, RSS."""
    proctor = Proctor(f"tcp{count}", tcp_probes(count), "{interval: 15s}")
    # The first run of all targets comes within a second of the start; after one interval each is in its slot.
    scrape_for(proctor, 20)
    begin, before = time.monotonic(), proctor.spent()
    scrape_for(proctor, seconds)
    core = (proctor.spent() - before) / (time.monotonic() - begin)
    text = proctor.metrics()
    missed = proctor.sum("proctor_probe_slots_missed_total", text)
    lost = proctor.sum("proctor_window_samples_dropped_total", text) + proctor.sum("proctor_series_dropped_total", text)
    well, whole = proctor.sum("probe_success", text), memory(proctor.process.pid)[0]
    stop(proctor.process)
    return core, missed, lost, well, whole


def targets():
    core, missed, lost, well, _ = tcp(1000, ACTIVE_SECONDS)
    judge("1,000 TCP targets every 15 s: well", f"{well:.0f}", "1000", well == 1000)
    judge("1,000 TCP targets every 15 s: missed slots, lost samples", f"{missed:.0f}, {lost:.0f}", "0, 0", missed == 0 and lost == 0)
    judge("1,000 TCP targets every 15 s: cores, with a scrape a second", f"{core:.3f}", "< 0.25", core < 0.25)


def blackbox_driven(count, seconds):
    """The same targets as a Prometheus has blackbox_exporter ask them: the share of a core and the RSS of each."""
    exporter, prometheus = port(), port()
    modules = write(f"blackbox{count}.yml", "modules: {tcp: {prober: tcp, timeout: 5s}}\n")
    addresses = ", ".join(f"'127.0.{n // 250}.{n % 250 + 1}:{PLAIN}'" for n in range(count))
    scraping = write(f"prometheus{count}.yml", f"""global: {{scrape_interval: 15s, scrape_timeout: 10s}}
scrape_configs:
- job_name: blackbox
  metrics_path: /probe
  params: {{module: [tcp]}}
  static_configs: [{{targets: [{addresses}]}}]
  relabel_configs:
  - {{source_labels: [__address__], target_label: __param_target}}
  - {{target_label: __address__, replacement: '127.0.0.1:{exporter}'}}
  - {{source_labels: [__param_target], target_label: instance}}
""")
    processes = [start(f"blackbox{count}", "prometheus-blackbox-exporter", f"--web.listen-address=127.0.0.1:{exporter}", f"--config.file={modules}"),
                 start(f"prometheus{count}", "prometheus", f"--config.file={scraping}", f"--storage.tsdb.path={dir}/tsdb{count}",
                       f"--web.listen-address=127.0.0.1:{prometheus}")]
    wait_for("Prometheus", lambda: get(f"http://127.0.0.1:{prometheus}/-/ready"), 120)
    time.sleep(20)
    begin, before = time.monotonic(), [spent(process.pid) for process in processes]
    time.sleep(seconds)
    cores = [(spent(process.pid) - was) / (time.monotonic() - begin) for process, was in zip(processes, before)]
    whole = [memory(process.pid)[0] for process in processes]
    well = json.loads(get(f"http://127.0.0.1:{prometheus}/api/v1/query?query=sum(probe_success)"))["data"]["result"][0]["value"][1]
    for process in reversed(processes):
        stop(process)
    return cores, whole, well


def scale():
    print("| TCP targets every 15 s | of a core | per target | RSS | missed | lost | blackbox_exporter: of a core, RSS | the Prometheus that drives it | well there |\n|---|---|---|---|---|---|---|---|---|")
    for count in (100, 1000, 10000):
        core, missed, lost, _, whole = tcp(count, ACTIVE_SECONDS)
        cores, theirs, well = blackbox_driven(count, ACTIVE_SECONDS)
        beside = " | ".join(f"{cores[n]:.3f}, {theirs[n] / MIB:.0f} MiB" for n in (0, 1))
        print(f"| {count} | {core:.3f} | {core / count * 1e6:.0f} millionths | {whole / MIB:.1f} MiB | {missed:.0f} | {lost:.0f} | {beside} | {well} |", flush=True)


class Broker:
    """A RabbitMQ with the plugin rabbitmq_prometheus, as the tests start one."""

    def __init__(self):
        self.port, self.plugin, epmd, distribution = port(), port(), port(), port()
        folder = dir / f"rabbitmq-{self.port}"
        folder.mkdir()
        write(f"{folder}/rabbitmq.conf", f"listeners.tcp.default = 127.0.0.1:{self.port}\nprometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {self.plugin}\n")
        write(f"{folder}/enabled_plugins", "[rabbitmq_prometheus].")
        env = os.environ | {
            "HOME": str(folder), "ERL_EPMD_PORT": str(epmd), "RABBITMQ_NODENAME": "bench@localhost", "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia", "RABBITMQ_LOG_BASE": f"{folder}/log", "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins", "RABBITMQ_PID_FILE": f"{folder}/pid", "RABBITMQ_NODE_PORT": str(self.port)}
        self.processes = [start("epmd", "epmd", "-port", str(epmd), "-address", "127.0.0.1", env=env),
                          start("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server", env=env)]
        wait_for("RabbitMQ", lambda: get(f"http://127.0.0.1:{self.plugin}/metrics"), 120)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self.probe = f"  rabbitmq: {{rabbitmq: {{port: {self.port}, prometheus: \"http://127.0.0.1:{self.plugin}\"}}}}\n"

    def stop(self):
        for process in self.processes:
            stop(process, signal.SIGKILL)

    def counters(self):
        """What was opened and declared since its start."""
        text = get(f"http://127.0.0.1:{self.plugin}/metrics").decode()
        names = ("rabbitmq_connections_opened_total", "rabbitmq_channels_opened_total", "rabbitmq_queues_declared_total")
        return {name: float(re.search(rf"^{name} (\S+)$", text, re.M)[1]) for name in names}


def python(*arguments):
    return [VENV / "bin/python", ROOT / "benches/celery_events.py", *map(str, arguments)]


def celery():
    """Five nodes and five queues: a run of the probe beside what celery-exporter asks on each scrape, and the load on the broker."""
    broker, queues = Broker(), ["batch", "email", "fast", "photo", "sims"]
    env = os.environ | {"SITE_BROKER": broker.url, "C_FORCE_ROOT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    nodes = []
    for name in queues:
        nodes.append(start(f"node-{name}", VENV / "bin/celery", "--workdir", ROOT / "tests/stack/site", "--app", "queues", "worker",
              "--queues", name, "--hostname", f"{name}@vm", "--concurrency", "2", "--loglevel", "INFO", env=env))
    for name in queues:
        wait_for(f"node {name}", lambda: " ready." in (dir / f"node-{name}.log").read_text(errors="replace"), 120)
    # A look serves the targets of the probe for five seconds.
    proctor = Proctor("celery", broker.probe + f"  celery: {{celery: {{via: rabbitmq, queues: [{', '.join(queues)}]}}}}\n", "{interval: 6s}")
    looks, before = {}, None
    for second in range(ACTIVE_SECONDS + 12):
        text = proctor.metrics()
        for labels, duration in re.findall(r'^probe_duration_seconds{(probe="celery".*?)} (\S+)$', text, re.M):
            at = re.search(rf"^probe_last_run_timestamp_seconds{{{re.escape(labels)}}} (\S+)$", text, re.M)
            looks[labels, at[1]] = float(duration)
        if second == 12:
            looks, before = {}, broker.counters()
        time.sleep(1)
    after = broker.counters()
    # Who looks waits for the nodes; the others are served by that look.
    whole = sorted(looks.values())[-max(1, len(looks) // 6):]
    ours = statistics.median(whole)
    lines = subprocess.run(python("inspect", broker.url, 5), check=True, capture_output=True, text=True).stdout.split("\n")
    theirs = statistics.median(float(line.split()[0]) for line in lines if line)
    print(f"bench: {len(looks)} runs, {len(whole)} looks; the slowest {max(whole) * 1000:.1f} ms; Celery's own {lines}")
    judge("celery, five nodes and queues: a run, p50", f"{ours * 1000:.1f} ms", "< 50 ms", ours < 0.05)
    judge("the same by inspect().stats() and active_queues()", f"{theirs * 1000:.0f} ms", "", True)
    opened = {name: after[name] - before[name] for name in before}
    judge(f"connections, channels, queues opened by the broker in {len(looks)} runs", ", ".join(f"{n:.0f}" for n in opened.values()), "0, 0, 0", not any(opened.values()))
    text = (dir / "celery.yml").read_text()
    # beat knows nobody yet, and asks all the same.
    (dir / "check.yml").write_text(text.rstrip("\n") + "\n  beat: {timeout: 1s, beat: {task: site.fast, via: rabbitmq}}\n")
    begin = time.monotonic()
    check = subprocess.run([PROCTOR, "--config", dir / "check.yml", "check"], capture_output=True, text=True)
    took = time.monotonic() - begin
    judge("proctor check of them and of beat, from start to end", f"{took:.2f} s" if check.returncode == 0 else check.stdout[-200:], "< 1 s", check.returncode == 0 and took < 1)
    stop(proctor.process)
    for node in nodes:
        stop(node, signal.SIGKILL)
    broker.stop()


def events():
    """CPU for 1,000 task events a second beside celery.events.Receiver that feeds prometheus_client as celery-exporter does, both at the same time."""
    broker = Broker()
    # As it is asked on a site: what a run costs is in the figure.
    probes = f"  rabbitmq: {{rabbitmq: {{port: {broker.port}}}}}\n  celery: {{celery: {{via: rabbitmq}}}}\n"
    proctor = Proctor("events", probes, "{interval: 15s}")
    receiver = start("receiver", *python("receive", broker.url))
    wait_for("Celery's receiver", lambda: "ready" in (dir / "receiver.log").read_text())
    wait_for("the listener", lambda: proctor.sum("celery_events_listening") == 1, 120)
    for batch, what in ((20, "in messages of 20, as workers send them"), (1, "one in a message")):
        heard = proctor.sum("celery_events_total")
        ours, theirs = proctor.spent(), spent(receiver.pid)
        subprocess.run(python("send", broker.url, batch, 30), check=True, capture_output=True)
        count = 30_000
        # Both have nothing left to do then. Nobody scrapes meanwhile: that is another figure.
        time.sleep(3)
        ours, theirs = proctor.spent() - ours, spent(receiver.pid) - theirs
        # The next run shows them.
        wait_for("every event", lambda: proctor.sum("celery_events_total") - heard >= count)
        judge(f"{count} task events at 1,000/s, {what}: CPU of Proctor", f"{ours / count * 1e6:.1f} µs ({ours:.2f} s)", "", True)
        judge("the same: of Celery's Receiver, and how much more that is", f"{theirs / count * 1e6:.0f} µs, {theirs / ours:.0f}×", "≥ 20×", theirs >= 20 * ours)
    missed = proctor.sum("celery_events_missed_total") + proctor.sum("celery_events_malformed_total")
    judge("events that Proctor missed", f"{missed:.0f}", "0", missed == 0)
    judge("RSS of Proctor after them", f"{memory(proctor.process.pid)[0] / MIB:.1f} MiB", "≤ 20 MiB", memory(proctor.process.pid)[0] <= 20 * MIB)
    stop(receiver)
    stop(proctor.process)
    broker.stop()


PARTS = {"serve": serve, "memory": rss, "targets": targets, "celery": celery, "events": events, "site": site, "scale": scale}
wanted = sys.argv[1:] or [part for part in PARTS if part != "scale"]
if unknown := [part for part in wanted if part not in PARTS]:
    sys.exit(f"bench: no part {unknown[0]}\n{__doc__}")
if not PROCTOR.exists():
    sys.exit(f"bench: no {PROCTOR}: cargo build --release")
with tempfile.TemporaryDirectory(prefix="proctor-bench-") as folder:
    dir = Path(folder)
    try:
        PLAIN, TLS = nginx()
        for part in wanted:
            PARTS[part]()
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM if process.args[0] == PROCTOR else signal.SIGKILL)
                process.wait(20)
model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
print(f"\n{os.cpu_count()} × {model[1] if model else platform.machine()}, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}")
for row in rows:
    print("{:<66} {:>10}  {:>10}  {}".format(*row))
sys.exit(any(row[3] == "MISSED" for row in rows))
