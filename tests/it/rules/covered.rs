//! Every failure that probes tell apart has its alert, and one: the root, not its symptoms beside it. What is written here
//! stands as a table in docs/alerts.md.

use std::fmt::Write;
use std::path::Path;

use proctor::config;
use proctor::model::Reason;
use proctor::model::Reason::*;
use proctor::probe::KINDS;
use proctor::rules::unit;

/// A way in which a target of some kind fails.
pub(super) struct Case {
    pub(super) kind: &'static str,
    pub(super) what: &'static str,
    /// What is measured beside `probe_success 0` and `probe_failure_info`: `name{label="value"} number`.
    measured: &'static [&'static str],
    /// The label `target`.
    target: &'static str,
    pub(super) reasons: &'static [Reason],
    /// All alerts that fire.
    pub(super) alerts: &'static [&'static str],
}

const fn case(
    kind: &'static str,
    what: &'static str,
    target: &'static str,
    measured: &'static [&'static str],
    reasons: &'static [Reason],
    alerts: &'static [&'static str],
) -> Case {
    Case { kind, what, measured, target, reasons, alerts }
}

/// What can go wrong on the way to any service.
const ANY: &[Reason] = Reason::ALL;

pub(super) const CASES: &[Case] = &[
    case("http", "the page is not as it should be", "", &[], ANY, &["ProbeFailing"]),
    case("tcp", "the port is not as it should be", "", &[], ANY, &["ProbeFailing"]),
    case("command", "the program fails, or cannot be run", "", &["command_up 0", "command_state 2"], ANY, &["CommandFailing"]),
    case("command", "a plugin warns", "", &["command_up 0", "command_state 1"], &[Mismatch], &["CommandWarns"]),
    case("command", "a plugin cannot say", "", &["command_up 0", "command_state 3"], &[Mismatch, Unavailable], &["CommandCannotSay"]),
    case("file", "the file is not as it should be", "", &["file_up 0"], ANY, &["FileWrong"]),
    case("heartbeat", "no report", "", &["heartbeat_up 0", "heartbeat_overdue 1"], &[Overdue], &["HeartbeatOverdue"]),
    case("heartbeat", "the last run failed", "", &["heartbeat_up 0", "heartbeat_failed 1"], &[Mismatch], &["HeartbeatFailed"]),
    case("heartbeat", "a run does not end", "", &["heartbeat_up 0", "heartbeat_runs_too_long 1"], &[Stalled], &["HeartbeatRunsTooLong"]),
    case(
        "heartbeat",
        "a check of the site",
        "",
        &["heartbeat_up 0", "heartbeat_check_ok{check=\"db\"} 0"],
        &[Mismatch],
        &["HeartbeatCheckFailing"],
    ),
    case("host", "a file system hangs or is not there", "disk", &[], &[AnswerTimeout, Missing, Unavailable, Internal], &["HostDiskBroken"]),
    case(
        "host",
        "a disk is full",
        "disk",
        &[
            "node_filesystem_avail_bytes{mountpoint=\"/\"} 1e6",
            "node_filesystem_size_bytes{mountpoint=\"/\"} 1e12",
            "node_filesystem_readonly{mountpoint=\"/\"} 0",
        ],
        &[Saturated],
        &["HostDiskFull"],
    ),
    case(
        "host",
        "inodes are short",
        "disk",
        &[
            "node_filesystem_avail_bytes{mountpoint=\"/\"} 9e11",
            "node_filesystem_size_bytes{mountpoint=\"/\"} 1e12",
            "node_filesystem_files{mountpoint=\"/\"} 1e6",
            "node_filesystem_files_free{mountpoint=\"/\"} 100",
            "node_filesystem_readonly{mountpoint=\"/\"} 0",
        ],
        &[Saturated],
        &["HostInodesShort"],
    ),
    case(
        "host",
        "memory is short",
        "memory",
        &["node_load1 1", "node_memory_MemAvailable_bytes 1e7", "node_memory_MemTotal_bytes 8e9"],
        &[Saturated],
        &["HostMemoryShort"],
    ),
    case("host", "a new port", "ports", &["host_open_ports 9", "host_open_port_new{port=\"4444\"} 1"], &[Mismatch], &["HostNewPort"]),
    case("host", "the clock is wrong", "clock", &["host_clock_offset_seconds 2.2"], &[Mismatch], &["HostClockWrong"]),
    case("host", "memory cannot be read", "memory", &[], &[AnswerTimeout, Internal], &["HostNotMeasured"]),
    case("host", "ports cannot be read", "ports", &[], &[AnswerTimeout, Internal], &["HostNotMeasured"]),
    case("host", "the other clock does not answer", "clock", &[], ANY, &["HostNotMeasured"]),
    case("host", "the relay would not take a mail", "mail", &["host_mail_accepted 0"], ANY, &["HostMailRefused"]),
    case("nginx", "it does not answer: its status page", "status", &["nginx_up 0"], ANY, &["NginxDown"]),
    case("nginx", "a page or a redirect of it", "https://coursys.example.org/", &["probe_http_status_code 502"], ANY, &["ProbeFailing"]),
    case(
        "nginx",
        "its processes",
        "workers",
        &["nginx_master_up 0"],
        &[Missing, Stalled, Unavailable, AnswerTimeout],
        &["NginxMasterDown"],
    ),
    case(
        "nginx",
        "a log",
        "/var/log/nginx/access.log",
        &["nginx_log_followed 0"],
        &[Missing, Unavailable, AnswerTimeout],
        &["NginxLogMissing"],
    ),
    case("gunicorn", "no worker answers", "", &["gunicorn_up 0", "gunicorn_accept_queue 0"], ANY, &["GunicornDown"]),
    case(
        "gunicorn",
        "requests wait, none is answered",
        "",
        &["gunicorn_up 0", "gunicorn_accept_queue 7"],
        &[AnswerTimeout, ConnectTimeout, Saturated],
        &["GunicornSaturated"],
    ),
    case(
        "gunicorn",
        "workers die as they start",
        "",
        &["gunicorn_up 0", "gunicorn_accept_queue 7", "gunicorn_crash_loop 1"],
        &[Stalled],
        &["GunicornCrashLoop"],
    ),
    case(
        "memcached",
        "it does not answer, or not as it should",
        "",
        &["memcached_up 0"],
        &[Resolve, Refused, ConnectTimeout, AnswerTimeout, Eof, Protocol, Mismatch],
        &["MemcachedDown"],
    ),
    case("memcached", "all its connections are in use", "", &["memcached_up 0"], &[Saturated], &["MemcachedSaturated"]),
    case(
        "certificate",
        "a file is missing or broken",
        "/etc/letsencrypt/live/*/fullchain.pem",
        &[],
        &[Missing, TooLarge, Certificate, Mismatch, Internal, AnswerTimeout],
        &["CertificateFileUnreadable"],
    ),
    case("certificate", "what serves it does not answer", "coursys.example.org:443", &[], ANY, &["ProbeFailing"]),
    case(
        "certificate",
        "expired",
        "coursys.example.org:443",
        &["certificate_served_valid{address=\"a\"} 0", "certificate_remaining_seconds{address=\"a\"} -1"],
        &[Reason::Certificate],
        &["CertificateExpired"],
    ),
    case(
        "certificate",
        "not valid yet",
        "coursys.example.org:443",
        &["certificate_served_valid{address=\"a\"} 0", "x509_cert_not_before{address=\"a\"} 9e9"],
        &[Reason::Certificate],
        &["CertificateNotYetValid"],
    ),
    case(
        "certificate",
        "of another name",
        "coursys.example.org:443",
        &["certificate_served_valid{address=\"a\"} 0", "certificate_covers_name{address=\"a\"} 0"],
        &[Reason::Certificate],
        &["CertificateNameNotCovered"],
    ),
    case(
        "certificate",
        "without its intermediates",
        "coursys.example.org:443",
        &["certificate_served_valid{address=\"a\"} 0", "certificate_chain_complete{address=\"a\"} 0"],
        &[Reason::Certificate],
        &["CertificateChainIncomplete"],
    ),
    case(
        "certificate",
        "of an authority that nobody knows",
        "coursys.example.org:443",
        &["certificate_served_valid{address=\"a\"} 0"],
        &[Reason::Certificate],
        &["CertificateNotTrusted"],
    ),
    case(
        "certificate",
        "renewed, and not reloaded",
        "coursys.example.org:443",
        &[
            "certificate_served_valid{address=\"a\"} 1",
            "certificate_served_matches_disk{address=\"a\"} 0",
            "certificate_disk_newer_seconds{address=\"a\"} 9",
        ],
        &[Mismatch],
        &["CertificateNotReloaded"],
    ),
    case("tunnel", "it does not lead to its service", "", &["tunnel_up 0"], ANY, &["TunnelDown"]),
    case("rabbitmq", "it does not answer, or lets nobody in", "", &["rabbitmq_up 0"], ANY, &["RabbitmqDown"]),
    case(
        "rabbitmq",
        "it takes no messages",
        "",
        &["rabbitmq_up 1", "rabbitmq_publish_blocked{reason=\"disk\"} 1"],
        &[Blocked],
        &["RabbitmqPublishBlocked"],
    ),
    case(
        "rabbitmq",
        "a queue does not exist",
        "",
        &["rabbitmq_up 1", "rabbitmq_queue_missing{queue=\"q\", vhost=\"v\"} 1"],
        &[Missing],
        &["RabbitmqQueueMissing"],
    ),
    case("rabbitmq", "something else of it", "", &["rabbitmq_up 1"], &[Forbidden, AnswerTimeout], &["ProbeFailing"]),
    case("elasticsearch", "it does not answer a search", "", &["elasticsearch_up 0"], ANY, &["ElasticsearchDown"]),
    case(
        "elasticsearch",
        "the index does not exist",
        "",
        &["elasticsearch_up 0", "elasticsearch_index_found{index=\"i\"} 0"],
        &[Missing],
        &["ElasticsearchIndexMissing"],
    ),
    case(
        "elasticsearch",
        "the index is not whole",
        "",
        &["elasticsearch_up 0", "elasticsearch_index_documents{index=\"i\"} 0"],
        &[Mismatch],
        &["ElasticsearchIndexIncomplete"],
    ),
    case(
        "elasticsearch",
        "the index takes no writes",
        "",
        &["elasticsearch_up 0", "elasticsearch_index_writable{index=\"i\"} 0"],
        &[Blocked],
        &["ElasticsearchIndexBlocked"],
    ),
    case(
        "elasticsearch",
        "an index has no primary",
        "",
        &["elasticsearch_up 0", "elasticsearch_cluster_health_status{color=\"red\"} 1"],
        &[Unavailable],
        &["ElasticsearchRed"],
    ),
    case("markup", "no right answer", "", &["markup_up 0"], ANY, &["MarkupDown"]),
    case("markup", "right, but slowly", "", &["markup_up 1"], &[Backlog], &["MarkupSlow"]),
    case("celery", "nodes cannot be asked", "", &["celery_up 0"], ANY, &["CeleryUnreachable"]),
    case("celery", "only one queue cannot be asked about", "email", &["celery_up 0"], ANY, &["ProbeFailing"]),
    case("celery", "no node answers", "", &["celery_up 1", "celery_nodes 0"], &[AnswerTimeout, Missing], &["CeleryDown"]),
    case(
        "celery",
        "a node that should be there is not",
        "",
        &["celery_up 1", "celery_nodes 1", "celery_worker_missing{worker=\"w\", queue=\"q\"} 1"],
        &[Missing, AnswerTimeout],
        &["CeleryWorkerMissing"],
    ),
    case(
        "celery",
        "a queue has no consumer",
        "q",
        &["celery_queue_up{queue=\"q\"} 0"],
        &[NoConsumer, Missing],
        &["CeleryQueueWithoutConsumer"],
    ),
    case("celery", "a worker hangs", "q", &["celery_queue_up{queue=\"q\"} 0"], &[AnswerTimeout], &["CeleryWorkerFrozen"]),
    case("celery", "a pool hangs", "q", &["celery_queue_up{queue=\"q\"} 0"], &[Stalled], &["CeleryPoolFrozen"]),
    case(
        "celery",
        "tasks that run too long hold a queue up",
        "q",
        &["celery_queue_up{queue=\"q\"} 0"],
        &[Saturated],
        &["CeleryQueueSaturated"],
    ),
    case("celery", "the canary does not come back", "q", &["celery_queue_up{queue=\"q\"} 0"], &[Overdue], &["CeleryCanaryLost"]),
    case("beat", "beat hangs", "", &["celery_beat_schedule_stale 1"], &[Stalled], &["CeleryBeatStalled"]),
    case("beat", "a periodic task is not run", "", &["celery_beat_task_overdue{task=\"t\"} 1"], &[Overdue], &["CeleryBeatTaskOverdue"]),
    case(
        "beat",
        "an entry is not sent",
        "",
        &["celery_beat_entry_overdue{name=\"n\", task=\"t\"} 1"],
        &[Overdue, Stalled],
        &["CeleryBeatEntryOverdue"],
    ),
    case("beat", "its schedule cannot be read, or is not there", "", &[], ANY, &["ProbeFailing"]),
    case("code", "processes run the code of before", "", &["site_code_restart_overdue 1"], &[Overdue], &["CodeNotRestarted"]),
    case("code", "there is no repository", "", &[], &[Missing, Unavailable, AnswerTimeout], &["ProbeFailing"]),
    case(
        "systemd",
        "a unit ended, and nobody had ordered it",
        "u",
        &[
            "systemd_unit_up{name=\"u\"} 0",
            "systemd_unit_state{name=\"u\", state=\"failed\", type=\"simple\"} 1",
            "systemd_unit_stop_requested{name=\"u\"} 0",
        ],
        &[Unavailable],
        &["SystemdUnitDied"],
    ),
    case(
        "systemd",
        "a unit is not up",
        "u",
        &["systemd_unit_up{name=\"u\"} 0"],
        &[Missing, Mismatch, Unavailable, Starting],
        &["SystemdUnitDown"],
    ),
    case(
        "systemd",
        "a unit does not stay up",
        "u",
        &[
            "systemd_unit_up{name=\"u\"} 0",
            "systemd_unit_stop_requested{name=\"u\"} 0",
            "systemd_unit_state{name=\"u\", state=\"activating\", type=\"simple\"} 1",
        ],
        &[Unavailable, Starting],
        &["SystemdUnitDoesNotStay"],
    ),
    case(
        "systemd",
        "a process of it is gone",
        "u",
        &["systemd_unit_up{name=\"u\"} 0", "systemd_unit_process_missing{name=\"u\", process=\"p\"} 1"],
        &[Missing],
        &["SystemdUnitProcessMissing"],
    ),
    case(
        "systemd",
        "what a timer starts failed",
        "u",
        &["systemd_unit_up{name=\"u\"} 0", "systemd_timer_service_failed{name=\"u\", unit=\"s\"} 1"],
        &[Unavailable, Missing],
        &["SystemdTimerFailed"],
    ),
    case(
        "systemd",
        "a timer did not fire",
        "u",
        &["systemd_unit_up{name=\"u\"} 0", "systemd_timer_overdue{name=\"u\", unit=\"s\"} 1"],
        &[Overdue, Stalled],
        &["SystemdTimerOverdue"],
    ),
    case("systemd", "systemd does not answer", "u", &[], ANY, &["ProbeFailing"]),
    case("postgres", "it does not let in or does not answer", "", &["pg_up 0"], ANY, &["PostgresDown"]),
    case("postgres", "it takes no writes", "", &["pg_up 1", "pg_writable 0"], &[Blocked], &["PostgresNotWritable"]),
    case(
        "postgres",
        "no connection is left",
        "",
        &["pg_up 1", "pg_writable 1", "pg_connections_left 0"],
        &[Saturated],
        &["PostgresConnectionsExhausted"],
    ),
    case(
        "postgres",
        "a query of the configuration",
        "",
        &["pg_up 1", "pg_writable 1", "pg_query_success{query=\"q\"} 0"],
        &[Mismatch, Forbidden, Blocked, TooLarge],
        &["PostgresQueryFailing"],
    ),
    case("mysql", "it does not let in or does not answer", "", &["mysql_up 0"], ANY, &["MysqlDown"]),
    case("mysql", "it takes no writes", "", &["mysql_up 1", "mysql_writable 0"], &[Blocked], &["MysqlNotWritable"]),
    case(
        "mysql",
        "no connection is left",
        "",
        &["mysql_up 1", "mysql_writable 1", "mysql_connections_left 0"],
        &[Saturated],
        &["MysqlConnectionsExhausted"],
    ),
    case(
        "mysql",
        "a query of the configuration",
        "",
        &["mysql_up 1", "mysql_writable 1", "mysql_query_success{query=\"q\"} 0"],
        &[Mismatch, Forbidden, Blocked, TooLarge],
        &["MysqlQueryFailing"],
    ),
    case("docker", "docker does not answer", "", &["docker_up 0"], ANY, &["DockerDown"]),
    case(
        "docker",
        "a container died, and docker does not start it",
        "s",
        &[
            "docker_service_replicas_expected{service=\"s\"} 1",
            "docker_service_replicas_running{service=\"s\"} 0",
            "docker_service_replicas_dead{service=\"s\"} 1",
        ],
        &[Unavailable],
        &["DockerServiceDied"],
    ),
    case(
        "docker",
        "no container of a service is well",
        "s",
        &[
            "docker_service_replicas_expected{service=\"s\"} 1",
            "docker_service_replicas_running{service=\"s\"} 0",
            "docker_service_replicas_dead{service=\"s\"} 0",
        ],
        &[Missing, Unavailable],
        &["DockerServiceDown"],
    ),
    case(
        "docker",
        "some containers of a service are not well",
        "s",
        &[
            "docker_service_replicas_expected{service=\"s\"} 2",
            "docker_service_replicas_running{service=\"s\"} 1",
            "docker_service_replicas_dead{service=\"s\"} 0",
        ],
        &[Unavailable],
        &["DockerServiceDegraded"],
    ),
];

/// Puts labels in front of those that a series has.
fn with(series: &str, labels: &str) -> String {
    let (name, value) = series.rsplit_once(' ').expect("a name and a value");
    match name.split_once('{') {
        Some((name, rest)) => format!("{name}{{{labels}, {rest} {value}"),
        None => format!("{name}{{{labels}}} {value}"),
    }
}

#[test]
fn every_failure_that_probes_tell_apart_has_its_alert_and_no_other_beside_it() {
    let (mut series, mut asked) = (String::new(), String::new());
    for (index, case) in CASES.iter().enumerate() {
        for reason in case.reasons {
            let probe = format!("{index} {}: {}: {reason}", case.kind, case.what);
            let mut labels = format!("probe=\"{probe}\"");
            if !case.target.is_empty() {
                write!(labels, ", target=\"{}\"", case.target).expect("fits");
            }
            let failed = ["probe_success 0".to_owned(), format!("probe_failure_info{{reason=\"{reason}\"}} 1")];
            // Docker's own target is there beside that of a service.
            let beside = (case.kind == "docker" && !case.target.is_empty()).then(|| format!("docker_up{{probe=\"{probe}\"}} 1"));
            let all = failed.iter().map(String::as_str).chain(case.measured.iter().copied()).map(|one| with(one, &labels)).chain(beside);
            for one in all {
                let (name, value) = one.rsplit_once(' ').expect("a name and a value");
                // Whole numbers: the notation of a series takes exponents.
                writeln!(series, "  - {{series: '{name}', values: '{value}x60'}}").expect("fits");
            }
            let samples: Vec<String> =
                case.alerts.iter().map(|alert| format!("{{labels: '{{alertname=\"{alert}\"}}', value: 1}}")).collect();
            writeln!(asked, "  - {{expr: 'count by (alertname) (ALERTS{{alertstate=\"firing\", probe=\"{probe}\"}})', eval_time: 1h, exp_samples: [{}]}}", samples.join(", ")).expect("fits");
        }
    }
    let text = format!(
        "rule_files: [../*.yml]\nevaluation_interval: 5m\ntests:\n- interval: 1m\n  input_series:\n{series}  promql_expr_test:\n{asked}"
    );
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/tests/covered.yml");
    let verdict = unit::test(&here, |path| if path == here { Ok(text.clone()) } else { config::read(path) });
    let wrong: Vec<String> = verdict.problems.iter().map(|problem| problem.message.clone()).collect();
    assert!(verdict.tests == 1 && wrong.is_empty(), "{} of {}:\n{}", wrong.len(), asked.lines().count(), wrong.join("\n"));
}

#[test]
fn every_kind_of_probe_and_every_reason_is_among_them() {
    for kind in KINDS {
        assert!(CASES.iter().any(|case| case.kind == *kind), "how does {kind} fail, and which alert says so?");
    }
    for reason in Reason::ALL {
        assert!(CASES.iter().any(|case| case.reasons.contains(reason)), "{reason}");
    }
}
