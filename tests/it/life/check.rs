//! `proctor check` as people and machines call it.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::House;
use crate::support::gunicorn::Gunicorn;
use crate::support::hostile::{Manner, hostile};
use crate::support::nginx::Nginx;
use crate::support::process::{Process, eventually, free_port, program};

fn check(house: &House, arguments: &[&str]) -> Output {
    tokio::task::block_in_place(|| house.command().arg("check").args(arguments).output().expect("it runs"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn real_services_are_one_line_each_and_what_is_wrong_comes_last() {
    let Some(memcached) = program("memcached") else { return };
    let (cache, dead) = (free_port(), free_port());
    let silent = hostile(Manner::Silent).await;
    let hung: String = (0..8).map(|n| format!("  hung-{n}: {{http: {{url: 'http://127.0.0.1:{silent}/'}}, timeout: 1s}}\n")).collect();
    let house = House::new(&format!(
        "probes:\n  cache: {{memcached: {{address: '127.0.0.1:{cache}'}}, interval: 5s, timeout: 5s}}\n  dead: {{tcp: {{address: '127.0.0.1:{dead}'}}}}\n{hung}"
    ));
    let _cache = Process::start(
        Command::new(memcached).args(["-u", "nobody", "-l", "127.0.0.1", "-p"]).arg(cache.to_string()),
        &house.path("memcached.log"),
    );
    let well = || async { (check(&house, &["--only", "cache"]).status.code() == Some(0)).then_some(()) };
    eventually("memcached answers", Duration::from_secs(10), well).await;

    let begin = Instant::now();
    let output = check(&house, &[]);
    assert!(begin.elapsed() < Duration::from_secs(7), "in parallel, not eight seconds: {:?}", begin.elapsed());
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.is_ascii() && said.lines().all(|line| line.len() <= 80), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ") || line.starts_with("FAILED ")).count(), 10, "{said}");
    assert!(said.contains("\nWrong now: 9 of 10 targets.\n"), "{said}");
    let last = said.split("Wrong now").nth(1).expect("it ends with that");
    assert!(last.contains(&format!("dead: cannot connect to 127.0.0.1:{dead}")) && last.contains("hung-7: "), "{said}");
    // Nothing is left: no state, no socket, no key.
    let mut left: Vec<_> = std::fs::read_dir(house.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["memcached.log", "proctor.yml", "rules.yml"]);

    let output = check(&house, &["--only", "cache"]);
    assert_eq!((output.status.code(), text(&output.stdout).lines().last()), (Some(0), Some("The target is well.")));

    let output = check(&house, &["--format", "json", "--only", "dead", "--only", "cache"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert_eq!((&json["version"], &json["site"], &json["counts"]["failed"]), (&1.into(), &"coursys".into(), &1.into()));
    assert_eq!((&json["targets"][0]["probe"], &json["targets"][0]["state"]), (&"cache".into(), &"ok".into()));
    assert_eq!((&json["targets"][1]["state"], &json["targets"][1]["reason"]), (&"failed".into(), &"refused".into()));

    let output = check(&house, &["--format", "nagios", "--only", "cache"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("PROCTOR OK - 1 of 1 targets are well | ok=1;"), "{}", text(&output.stdout));
    let output = check(&house, &["--format", "nagios", "--only", "dead"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).starts_with("PROCTOR CRITICAL - 1 of 1 targets failed: dead (refused) | "), "{}", text(&output.stdout));

    let output = check(&house, &["--format", "junit"]);
    assert_eq!(output.status.code(), Some(1));
    house.write("junit.xml", &text(&output.stdout));
    if let Some(python) = program("python3") {
        let script = "import sys, xml.etree.ElementTree as e; s = e.parse(sys.argv[1]).getroot().find('testsuite')\n\
                      print(s.get('tests'), s.get('failures'), len(s.findall('testcase')), len(s.findall('testcase/failure')))";
        let parsed = Command::new(python).args(["-c", script]).arg(house.path("junit.xml")).output().expect("it runs");
        assert_eq!(text(&parsed.stdout), "10 9 10 9\n", "{}", text(&parsed.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_server_with_several_sites_is_one_line_each_on_80_columns() {
    let (Some(nginx), Some(gunicorn)) = (Nginx::start().await, Gunicorn::tcp().await) else { return };
    let (http, https) = (nginx.http, nginx.https);
    let house = House::new(&format!(
        "probes:\n  web:\n    interval: 10s\n    timeout: 10s\n    nginx:\n      status: 'http://127.0.0.1:{http}/nginx_status'\n      address: 127.0.0.1\n      ca_file: {ca}\n      \
         sites: ['https://coursys.example.org:{https}/', 'https://coursys.example.org:{https}/503', 'https://default.example.org:{https}/']\n  \
         app: {{interval: 10s, timeout: 10s, gunicorn: {{listen: '{listen}', host_header: coursys.example.org}}}}\n",
        ca = nginx.ca_file().display(),
        listen = gunicorn.listen
    ));
    let output = check(&house, &[]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    assert!(said.contains("\nWrong now: 2 of 5 targets.\n"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("ok      app ")), "{said}");
    let of = |page: &str| said.lines().find(|line| line.contains(&format!("{https}{page} "))).unwrap_or("").to_owned();
    assert!(of("/").starts_with("ok ") && of("/503").starts_with("FAILED "), "two pages of one site can be told apart: {said}");
    assert_eq!(said.matches(&format!("https://coursys.example.org:{https}/503")).count(), 2, "once in its line, once below: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_run_is_2_and_for_nagios_3() {
    let house = House::new("probes:\n  cache: {memcached: {address: '127.0.0.1:1'}}\n");
    let output = check(&house, &["--only", "cahce"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--only: ") && text(&output.stderr).contains("\"cache\""), "{}", text(&output.stderr));
    let output = check(&house, &["--only", "cahce", "--format", "nagios"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).starts_with("PROCTOR UNKNOWN - "), "{}", text(&output.stdout));
    house.configure("prboes: {}\n");
    assert_eq!(check(&house, &[]).status.code(), Some(2));
    let output = check(&house, &["--format", "nagios"]);
    assert_eq!((output.status.code(), text(&output.stdout).lines().count()), (Some(3), 1), "{}", text(&output.stdout));
    house.configure("");
    for (format, code) in [("table", 2), ("json", 2), ("junit", 2), ("nagios", 3)] {
        assert_eq!(check(&house, &["--format", format]).status.code(), Some(code), "nothing to ask: {format}");
    }
}
