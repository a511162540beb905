//! The first ten minutes of docs/start.md, word for word: a host that boots, with nginx, a Django site under gunicorn,
//! memcached and a relay for mail, on which the package is installed and each block of the page is run in its order.

use std::path::Path;

use super::House;
use super::container::{Host, MINUTE, package};
use crate::docs::block;
use crate::support::gunicorn::venv;
use crate::support::process::{eventually, program};

/// The site: its mail goes to the relay of this host.
const SETTINGS: &str = "
from django.http import HttpResponse
from django.urls import path
SECRET_KEY = 'hunter2'
DEBUG = False
INSTALLED_APPS = []
ROOT_URLCONF = 'site_settings'
urlpatterns = [path('', lambda request: HttpResponse('<title>CourSys</title>'))]
ALLOWED_HOSTS = ['coursys.example.org']
ADMINS = [('Ann', 'ann@example.org'), ('Bob', 'bob@example.org')]
SERVER_EMAIL = 'coursys@example.org'
EMAIL_SUBJECT_PREFIX = '[CourSys] '
EMAIL_HOST = '127.0.0.1'
CACHES = {'default': {'BACKEND': 'django.core.cache.backends.memcached.PyMemcacheCache', 'LOCATION': '127.0.0.1:11211'}}
";
const MANAGE: &str = "import os, sys
os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site_settings')
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
";
const WSGI: &str = "import os
os.environ['DJANGO_SETTINGS_MODULE'] = 'site_settings'
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
";

/// What the container lacks and gets of this host: Python and the programs of the site, each at its place.
fn borrowed(venv: &Path) -> Option<Vec<String>> {
    let python = std::fs::canonicalize("/usr/bin/python3").expect("the venv runs on it");
    let library = Path::new("/usr/lib").join(python.file_name().expect("has a name"));
    let mut files = vec![python, library, "/usr/bin/python3".into(), program("make")?, program("memcached")?];
    for library in ["libevent-2.1.so.7", "libsasl2.so.2"] {
        files.extend(glob::glob(&format!("/usr/lib/*/{library}")).expect("a pattern").flatten());
    }
    let real = |path: &Path| std::fs::canonicalize(path).expect("it is there").display().to_string();
    let mut options = vec!["-v".to_owned(), format!("{}:/srv/venv:ro", real(venv))];
    for file in files {
        options.extend(["-v".to_owned(), format!("{}:{}:ro", real(&file), file.display())]);
    }
    Some(options)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the package that `make deb` makes, and waits for the first look of five minutes: make test-slow"]
async fn the_first_ten_minutes_are_walked_word_for_word_on_a_fresh_host() {
    let (Some(package), Some(venv)) = (package(), venv()) else { return };
    let Some(borrowed) = borrowed(&venv) else { return };
    let house = House::new("");
    for folder in ["target/release", "target/debian", "site"] {
        std::fs::create_dir_all(house.path(folder)).expect("it can be made");
    }
    // `make deb` has built both.
    std::fs::copy(env!("CARGO_BIN_EXE_proctor"), house.path("target/release/proctor")).expect("it can be copied");
    std::fs::copy(package, house.path("target/debian/proctor_0_all.deb")).expect("it can be copied");
    house.write("Makefile", "new-code:\n\ttouch /run/deployed\n");
    for (name, text) in [("manage.py", MANAGE), ("site_settings.py", SETTINGS), ("wsgi.py", WSGI)] {
        house.write(&format!("site/{name}"), text);
    }
    let python = "ExecStart=/srv/venv/bin/python -m";
    for (name, lines) in [
        ("memcached", "User=nobody\nExecStart=/usr/bin/memcached -l 127.0.0.1 -p 11211".to_owned()),
        ("relay", format!("{python} aiosmtpd -n -l 127.0.0.1:25 -c aiosmtpd.handlers.Mailbox /srv/mail")),
        (
            "gunicorn",
            format!(
                "User=www-data\nWorkingDirectory=/srv/site\n{python} gunicorn --no-control-socket --workers 2 --bind 127.0.0.1:8000 wsgi:application"
            ),
        ),
    ] {
        house.write(&format!("{name}.service"), &format!("[Service]\n{lines}\n"));
    }
    let options: Vec<&str> = borrowed.iter().map(String::as_str).collect();
    let Some(host) = Host::boot_with(&house, "", &options) else { return };
    host.state(&["starting"]).await;
    host.is_up().await;
    // As in the test of the rendered unit: systemd#29656. The unit of the package is not yet there.
    let script = "set -e; cd /house; units=/etc/systemd/system; cp -r site /srv/; chown -R www-data /srv/site; rm $units/proctor.service
        cp *.service $units/; mkdir $units/proctor.service.d; printf '[Service]\nPrivateUsers=no\n' >$units/proctor.service.d/container.conf
        systemctl daemon-reload; systemctl start memcached gunicorn relay
        for port in 25 8000 11211; do until bash -c \": </dev/tcp/127.0.0.1/$port\" 2>/dev/null; do sleep 0.3; done; done; echo started";
    assert!(host.run(&["bash", "-c", script]).ends_with("started"));
    // The container has another proctor in /usr/local/bin; what counts is that of the package.
    let walk = |number: usize, without: &str| {
        let text = block("start.md", "sh", number, &[(without, "")]);
        let said = host.run(&["sh", "-ec", &format!("cd /house; PATH=/usr/sbin:/usr/bin:/sbin:/bin\n{text}echo walked")]);
        assert!(said.contains("walked"), "{text}:\n{said}");
        said
    };
    let journal = || host.run(&["journalctl", "--no-pager", "-u", "proctor"]);
    let mails = |words: &str| {
        let found = host.run(&["sh", "-c", &format!("cat /srv/mail/new/* 2>/dev/null | grep -c '{words}'")]);
        found.parse::<usize>().unwrap_or(0)
    };

    let said = walk(0, "");
    assert!(said.contains("No configuration") && said.contains("ok      memcached") && said.contains("targets are well"), "{said}");
    let said = walk(1, "make deb\n");
    assert!(said.contains("active (running)") && said.contains("/usr/bin/proctor serve"), "{said}\n{}", journal());
    assert!(journal().contains("it is watched by looking only, and nobody is mailed"), "{}", journal());

    let said = walk(2, "");
    for words in [
        "Written: /etc/proctor/proctor.yml",
        "as www-data",
        "Watched:",
        "gunicorn at 127.0.0.1:8000: whether a worker answers",
        "Not watched",
    ] {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    let said = walk(3, "");
    assert!(said.contains("MemcachedDown") && said.contains("All 11 targets are well."), "{said}");
    // What it prints for Proctor's own user.
    let said = host.run(&["runuser", "-u", "proctor", "--", "/usr/bin/proctor", "config", "check"]);
    assert!(said.contains("full: memcached, gunicorn, nginx, nginx-80, units, host"), "{said}");
    let said = walk(4, "");
    assert!(said.contains("S: 250 OK") && mails("^To: Ann <ann@example.org>") == 1 && mails("^To: Bob <bob@example.org>") == 1, "{said}");

    walk(5, "");
    assert_eq!(host.show("ActiveState"), "active", "{}", journal());
    assert_eq!(host.run(&["stat", "-c", "%U", &format!("/proc/{}", host.show("MainPID"))]), "proctor");
    assert_eq!(host.run(&["systemctl", "reload", "proctor"]), "", "{}", journal());
    let first = || async { (mails("^FIRST LOOK: watching 11, 11 well, 0 not") == 2).then_some(()) };
    eventually("after five minutes the first mail comes", 10 * MINUTE, first).await;

    let said = walk(6, "");
    assert!(said.contains("A drill: this is invented") && said.contains("Subject: [CourSys] [critical] MemcachedDown memcached"), "{said}");
    assert_eq!(mails("^FIRING"), 0, "a drill sends nothing");
    // Who dares.
    assert_eq!(host.run(&["systemctl", "stop", "memcached"]), "");
    eventually("the first of the two mails", 5 * MINUTE, || async { (mails("^FIRING: MemcachedDown") == 2).then_some(()) }).await;
    assert_eq!(host.run(&["systemctl", "start", "memcached"]), "");
    eventually("and the second", 5 * MINUTE, || async { (mails("^RESOLVED: MemcachedDown") == 2).then_some(()) }).await;
    assert!(walk(7, "").contains("the hold ends in 2m"));
    assert_eq!(host.run(&["ls", "/run/deployed"]), "/run/deployed");
}
