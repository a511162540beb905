//! The probe certificate: files of all kinds, a real nginx, a mail server, PostgreSQL, and hostile servers.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proctor::model::{ProbeResult, Reason, Sight, Timestamp};

use super::probes_web::{ask_target, failed, value, well};
use super::support::hostile::{Manner, hostile};
use super::support::nginx::{Authority, Nginx};
use super::support::process::{Process, eventually, free_port, install, program};
use super::support::proctor::Proctor;
use super::support::smtp::{Manners, Quirk, Sink, Wire};
use super::support::watched::Watched;

const SITE: &str = "coursys.example.org";

async fn ask(yaml: &str, target: &str) -> ProbeResult {
    ask_target(yaml, Some(target), Duration::from_secs(5)).await
}

/// Asks what nginx serves for a name, with its file on disk.
async fn ask_nginx(nginx: &Nginx, name: &str) -> ProbeResult {
    let (port, ca, file) = (nginx.https, nginx.ca_file(), nginx.certificate_file());
    let yaml = format!(
        "certificate: {{files: ['{}'], served: ['{name}:{port}'], address: 127.0.0.1, ca_file: '{}'}}",
        file.display(),
        ca.display()
    );
    ask(&yaml, &format!("{name}:{port}")).await
}

/// Asks for the files of a pattern.
async fn ask_files(pattern: &Path) -> ProbeResult {
    let pattern = pattern.display().to_string();
    ask(&format!("certificate: {{files: ['{pattern}']}}"), &pattern).await
}

/// Serves another certificate.
async fn serve(nginx: &Nginx, pair: &(String, String)) {
    nginx.swap_certificate(pair);
    nginx.reload().await;
}

/// The value of a metric whose labels are these, among others.
fn labelled(result: &ProbeResult, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has =
        |sample: &proctor::model::Sample| labels.iter().all(|(name, value)| sample.labels.iter().any(|(n, v)| n == name && **v == **value));
    result.samples.iter().find(|sample| sample.family.name == name && has(sample)).map(|sample| sample.value)
}

#[track_caller]
fn nearly(found: Option<f64>, wanted: f64) {
    let found = found.expect("it is measured");
    assert!((found - wanted).abs() < 0.01, "expected {wanted}, found {found}");
}

#[tokio::test]
async fn a_certificate_that_was_renewed_without_a_reload_is_reported_and_so_is_the_way_back() {
    let Some(nginx) = Nginx::start().await else { return };
    let matches = "certificate_served_matches_disk";
    let result = ask_nginx(&nginx, SITE).await;
    well(&result);
    assert_eq!(value(&result, matches), Some(1.0));
    assert_eq!(
        result.samples.iter().find(|sample| sample.family.name == matches).map(|sample| sample.labels.clone()),
        Some(vec![("address", "127.0.0.1".into())])
    );

    nginx.swap_certificate(&nginx.authority.issue_for(&[SITE], (-1.0, 89.0)));
    let result = ask_nginx(&nginx, SITE).await;
    well(&result);
    assert_eq!(value(&result, matches), Some(0.0), "users still get the old one");
    assert!(value(&result, "certificate_disk_newer_seconds") > Some(0.0));
    assert!(
        result.evidence[0].contains("site.pem holds a newer certificate")
            && result.evidence[0].contains("nginx -t && systemctl reload nginx"),
        "{:?}",
        result.evidence
    );

    // A reload that has not come after minutes is said by `check` too.
    assert!(Command::new("touch").args(["-d", "6 minutes ago"]).arg(nginx.certificate_file()).status().expect("touch runs").success());
    failed(&ask_nginx(&nginx, SITE).await, Reason::Mismatch, "site.pem holds a newer certificate");

    nginx.reload().await;
    let result = ask_nginx(&nginx, SITE).await;
    well(&result);
    assert_eq!(value(&result, matches), Some(1.0));
    assert_eq!(result.evidence, Vec::<String>::new());
    // The other way round: what is on disk was put back.
    nginx.swap_certificate(&nginx.authority.issue_for(&[SITE], (-60.0, 30.0)));
    let result = ask_nginx(&nginx, SITE).await;
    assert_eq!(value(&result, matches), Some(0.0));
    nearly(value(&result, "certificate_disk_newer_seconds").map(|seconds| seconds / 86_400.0), -59.0);
    assert!(result.evidence[0].contains("a newer certificate is served than the one in"), "{:?}", result.evidence);
}

#[tokio::test]
async fn admins_are_mailed_of_a_missing_reload_and_of_its_end() {
    let Some(nginx) = Nginx::start().await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().display();
    let sink = Sink::start().await;
    let built_in = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/alerts/certificate.yml")).expect("it is there");
    // The rules as they are, without their patience.
    let hurried = regex::Regex::new("for: .*").expect("a pattern").replace_all(&built_in, "for: 1s").into_owned();
    std::fs::write(folder.path().join("certificate.yml"), hurried).expect("is written");
    let config = format!(
        r#"
web: {{listen: "127.0.0.1:{web}"}}
state: {{path: "{root}/state.db"}}
control: {{socket: "{root}/control.sock"}}
defaults: {{interval: 1s, timeout: 1s}}
rules: {{files: ["{root}/certificate.yml"], interval: 1s}}
startup: {{first_look: 0s, after_boot: 0s}}
probes:
  certs: {{certificate: {{files: ["{file}"], served: ["{SITE}:{https}"], address: 127.0.0.1, ca_file: "{ca}"}}}}
notify:
  admins: [ann@example.org]
  from: proctor@example.org
  group_wait: 1s
  resolve_wait: 1s
  smtp: {{host: 127.0.0.1, port: {relay}}}
"#,
        web = free_port(),
        file = nginx.certificate_file().display(),
        https = nginx.https,
        ca = nginx.ca_file().display(),
        relay = sink.port,
    );
    std::fs::write(folder.path().join("proctor.yml"), config).expect("is written");
    nginx.swap_certificate(&nginx.authority.issue_for(&[SITE], (-1.0, 89.0)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
    command.arg("--config").arg(folder.path().join("proctor.yml")).arg("serve");
    let _proctor = Process::start(&mut command, &folder.path().join("log"));
    let mails = sink.wait_for(1, Duration::from_secs(30)).await;
    let words = mails[0].text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("does not serve the renewed certificate that lies on disk"), "{}", mails[0].raw);
    assert!(words.contains("`nginx -t && systemctl reload nginx`"), "{}", mails[0].raw);
    nginx.reload().await;
    let mails = sink.wait_for(2, Duration::from_secs(30)).await;
    assert_eq!(mails[1].header("X-Alert-State"), "RESOLVED", "{}", mails[1].raw);
    assert_eq!(mails.len(), 2, "one cause, one mail and its end");
}

#[tokio::test]
async fn what_is_served_is_measured_under_the_names_that_dashboards_know() {
    let Some(nginx) = Nginx::start().await else { return };
    let result = ask_nginx(&nginx, SITE).await;
    for (name, wanted) in [
        ("certificate_served_valid", 1.0),
        ("certificate_covers_name", 1.0),
        ("certificate_chain_complete", 1.0),
        ("probe_ssl_earliest_cert_expiry", 2_208_988_800.0),
        ("probe_tls_version_info", 1.0),
        ("x509_cert_not_before", 1_577_836_800.0),
        ("x509_cert_not_after", 2_208_988_800.0),
        ("x509_cert_expired", 0.0),
    ] {
        assert_eq!(value(&result, name), Some(wanted), "{name}");
    }
    assert!(value(&result, "probe_dns_lookup_time_seconds").is_some());
    assert_eq!(nginx.access_log(), "", "a handshake is all that is asked for");
    // Without a certificate of that name on disk there is nothing to compare.
    let result = ask_nginx(&nginx, "default.example.org").await;
    well(&result);
    assert_eq!(value(&result, "certificate_served_matches_disk"), None);
    assert_eq!(result.sight, Sight::Full);
}

#[tokio::test]
async fn the_share_of_the_lifetime_means_the_same_for_6_45_and_90_days() {
    let Some(nginx) = Nginx::start().await else { return };
    for (days, share) in [(6.0, 0.5), (6.0, 0.1), (45.0, 0.25), (90.0, 0.25), (90.0, 0.9)] {
        serve(&nginx, &nginx.authority.issue_for(&[SITE], (-days * (1.0 - share), days * share))).await;
        let served = ask_nginx(&nginx, SITE).await;
        let on_disk = ask_files(&nginx.certificate_file()).await;
        for result in [served, on_disk] {
            well(&result);
            nearly(value(&result, "certificate_remaining_share"), share);
            nearly(value(&result, "certificate_remaining_seconds").map(|seconds| seconds / 86_400.0), days * share);
        }
    }
}

/// certbot's folders below a root of their own, as certbot 5.1 leaves them: `etc/letsencrypt/{live,renewal}`.
struct Lineage {
    root: tempfile::TempDir,
    authority: Authority,
}

impl Lineage {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        for folder in ["etc/letsencrypt/live/a", "etc/letsencrypt/renewal"] {
            std::fs::create_dir_all(root.path().join(folder)).expect("a folder");
        }
        Self { root, authority: Authority::new() }
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        std::fs::write(path, text).expect("is written");
    }

    /// Puts a certificate of so many days there, of which so many are left.
    fn certificate(&self, days: f64, left: f64) {
        self.write("etc/letsencrypt/live/a/fullchain.pem", &self.authority.issue_for(&[SITE], (left - days, left)).0);
    }

    /// Writes its configuration, with lines before its only section and lines behind.
    fn conf(&self, before: &str, behind: &str) {
        let live = self.path("etc/letsencrypt/live/a");
        let live = live.display();
        let text = format!(
            "{before}\nversion = 5.1.0\narchive_dir = {live}\ncert = {live}/cert.pem\nfullchain = {live}/fullchain.pem\n[renewalparams]\nserver = https://ca.example.org/directory\n{behind}\n"
        );
        self.write("etc/letsencrypt/renewal/a.conf", &text);
    }

    async fn ask(&self) -> ProbeResult {
        let result = ask_files(&self.path("etc/letsencrypt/live/*/fullchain.pem")).await;
        well(&result);
        result
    }

    /// Returns by how many days the renewal is overdue.
    async fn overdue(&self) -> Option<f64> {
        value(&self.ask().await, "certificate_renewal_overdue_seconds").map(|seconds| seconds / 86_400.0)
    }
}

#[tokio::test]
async fn when_the_client_should_have_renewed_is_known_from_its_own_configuration() {
    let lineage = Lineage::new();
    lineage.conf("# renew_before_expiry = 99 days", "");
    for (days, left, overdue) in
        [(90.0, 29.0, 1.0), (90.0, 31.0, -1.0), (45.0, 14.0, 1.0), (6.0, 2.0, 1.0), (6.0, 3.5, -0.5), (365.0, 31.0, -1.0)]
    {
        lineage.certificate(days, left);
        nearly(lineage.overdue().await, overdue);
    }
    // What certbot was told counts before its custom; more than the whole lifetime is all of it.
    lineage.certificate(90.0, 10.0);
    for (told, overdue) in [("5 days", -5.0), ("2 weeks", 4.0), ("'1 week 2 days' # late", -1.0), ("100 years", 80.0)] {
        lineage.conf(&format!("renew_before_expiry = {told}"), "");
        nearly(lineage.overdue().await, overdue);
    }
    // acme.sh notes the moment beside the certificate.
    let moment = lineage.ask().await.at.0 / 1000 - 86_400;
    lineage.write("acme/a.example.org_ecc/fullchain.cer", &lineage.authority.issue_for(&[SITE], (-60.0, 30.0)).0);
    lineage.write("acme/a.example.org_ecc/a.example.org.conf", &format!("Le_Domain='a.example.org'\nLe_NextRenewTime='{moment}'\n"));
    let result = ask_files(&lineage.path("acme/a.example.org_ecc/fullchain.cer")).await;
    nearly(value(&result, "certificate_renewal_overdue_seconds").map(|seconds| seconds / 86_400.0), 1.0);
}

#[tokio::test]
async fn a_renewal_whose_moment_is_not_known_is_judged_by_the_share_and_the_evidence_says_why() {
    let lineage = Lineage::new();
    lineage.certificate(90.0, 60.0);
    let says = async |words: &str| {
        let result = lineage.ask().await;
        assert_eq!(value(&result, "certificate_renewal_overdue_seconds"), None, "{words}");
        nearly(value(&result, "certificate_remaining_share"), 2.0 / 3.0);
        assert!(result.evidence.iter().any(|line| line.contains(words)), "{words}: {:?}", result.evidence);
    };
    says("renewal/a.conf, so certbot does not renew it").await;
    lineage.conf("renew_before_expiry = a fortnight", "");
    says("has a renew_before_expiry that is not understood: \"a fortnight\"").await;
    lineage.conf("", "autorenew = False");
    says("tells certbot not to renew it").await;
    lineage.write("etc/letsencrypt/renewal/a.conf", "\u{0}garbage");
    says("is no configuration of a renewal").await;
    lineage.write("etc/letsencrypt/renewal/a.conf", &"#".repeat(100_000));
    says("is larger than").await;
    // Where no client is seen, there is nothing to say.
    std::fs::remove_dir_all(lineage.path("etc/letsencrypt/renewal")).expect("is removed");
    let result = lineage.ask().await;
    assert!(result.evidence.is_empty() && value(&result, "certificate_renewal_overdue_seconds").is_none(), "{:?}", result.evidence);
}

#[tokio::test]
async fn of_a_renewal_that_is_overdue_it_is_said_what_is_seen_of_its_job() {
    let lineage = Lineage::new();
    lineage.conf("", "");
    let told = async || lineage.ask().await.evidence.join("\n");
    lineage.certificate(90.0, 29.5);
    assert_eq!(told().await, "", "the job may still come today");
    lineage.certificate(90.0, 20.0);
    let nothing = told().await;
    for words in [
        "by ",
        "etc/letsencrypt/renewal/a.conf its renewal was due 10d ago",
        "var/log/letsencrypt/letsencrypt.log: certbot does not run",
        "no timer of certbot is enabled",
    ] {
        assert!(nothing.contains(words), "{words}: {nothing}");
    }
    // As certbot 5.1 wrote it.
    let log = "2026-11-26 04:23:22,013:ERROR:certbot._internal.renewal:Failed to renew certificate a with error: no account\n\
               2026-11-26 04:23:22,019:ERROR:certbot._internal.renewal:Failed to renew certificate b with error: other\n\
               2026-11-26 04:23:22,020:ERROR:certbot._internal.log:2 renew failure(s), 0 parse failure(s)\n";
    lineage.write("var/log/letsencrypt/letsencrypt.log", &format!("{}\n{log}", "x".repeat(100_000)));
    lineage.write("etc/cron.d/certbot", "");
    let links = lineage.path("etc/systemd/system/timers.target.wants");
    std::fs::create_dir_all(&links).expect("a folder");
    symlink("/lib/systemd/system/certbot.timer", links.join("certbot.timer")).expect("a link");
    lineage.conf("", "[acme_renewal_info]\nari_retry_after = 2026-11-26T10:23:21");
    let all = told().await;
    for words in [
        "Failed to renew certificate a with error: no account",
        "was last written",
        "certbot noted in",
        "timers.target.wants/certbot.timer, ",
        "etc/cron.d/certbot",
    ] {
        assert!(all.contains(words), "{words}: {all}");
    }
    // Another command of certbot's ran last.
    lineage.write("var/log/letsencrypt/letsencrypt.log", "2026-11-26 04:23:23,403:DEBUG:certbot._internal.renewal:no renewal failures\n");
    assert!(told().await.contains("no renewal failures"));
}

#[tokio::test]
async fn admins_are_mailed_of_a_renewal_that_does_not_come_with_what_is_seen_of_its_job() {
    let (lineage, sink) = (Lineage::new(), Sink::start().await);
    lineage.conf("", "");
    lineage.certificate(90.0, 20.0);
    lineage.write(
        "var/log/letsencrypt/letsencrypt.log",
        "2026-11-26 04:23:22,013:ERROR:x:Failed to renew certificate a with error: no account\n",
    );
    let files = lineage.path("etc/letsencrypt/live/*/fullchain.pem");
    let probes = format!("probes: {{certs: {{certificate: {{files: ['{}']}}}}}}", files.display());
    let _proctor = Proctor::configured(sink.port, &probes).built_in_rules().started();
    let mails = sink.wait_for(1, Duration::from_secs(60)).await;
    let words = mails[0].text.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in [
        "fullchain.pem should have been renewed 10d ",
        "renewal/a.conf its renewal was due 10d ago",
        "Failed to renew certificate a with error: no account",
    ] {
        assert!(words.contains(wanted), "{wanted}: {}", mails[0].text);
    }
    assert!(!words.contains("of its lifetime is left"), "one cause, one alert: {}", mails[0].text);
}

#[tokio::test]
async fn what_browsers_refuse_is_a_failure_with_its_own_words_and_is_measured_all_the_same() {
    let Some(nginx) = Nginx::start().await else { return };
    let between = nginx.authority.intermediate();
    let stranger = Authority::named("A stranger");
    let valid = (-1.0, 89.0);
    let with = |(certificate, key): (String, String), more: &str| (certificate + more, key);
    let own = {
        let signed = rcgen::generate_simple_self_signed([SITE.to_owned()]).expect("is signed");
        (signed.cert.pem(), signed.signing_key.serialize_pem())
    };
    // As `openssl req -x509` makes them.
    let marked = {
        let mut params = rcgen::CertificateParams::new(vec![SITE.to_owned()]).expect("is a name");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        (params.self_signed(&key).expect("is signed").pem(), key.serialize_pem())
    };
    let (expired, early) = (nginx.authority.issue_for(&[SITE], (-92.0, -2.0)), nginx.authority.issue_for(&[SITE], (0.5, 90.5)));
    // What is wrong; certificate_covers_name and certificate_chain_complete.
    for (pair, words, covers, complete) in [
        (expired.clone(), "the certificate expired 2d ago, at ", 1.0, 1.0),
        (early, "is valid only from", 1.0, 1.0),
        (
            nginx.authority.issue_for(&["www.example.org", "*.example.com"], valid),
            "does not cover coursys.example.org, only www.example.org, *.example.com",
            0.0,
            1.0,
        ),
        (between.issue_for(&[SITE], valid), "issuer \"Proctor test intermediate\" is not served with the certificate", 1.0, 0.0),
        (with(between.issue_for(&[SITE], valid), &stranger.pem), "the 1 certificates that come with it belong to another chain", 1.0, 0.0),
        (
            with(stranger.issue_for(&[SITE], valid), &stranger.pem),
            "the chain leads to \"A stranger\", which this host does not trust",
            1.0,
            1.0,
        ),
        (Authority::new().issue_for(&[SITE], valid), "is not signed by the \"Proctor test authority\" that this host trusts", 1.0, 1.0),
        (own, "is self-signed", 1.0, 1.0),
        (marked, "is self-signed", 1.0, 1.0),
        (between.issue_for(&[SITE], (-92.0, -2.0)), "the certificate expired", 1.0, 0.0),
    ] {
        serve(&nginx, &pair).await;
        let result = ask_nginx(&nginx, SITE).await;
        failed(&result, Reason::Certificate, words);
        assert_eq!(value(&result, "certificate_served_valid"), Some(0.0), "{words}");
        assert_eq!(value(&result, "certificate_covers_name"), Some(covers), "{words}");
        assert_eq!(value(&result, "certificate_chain_complete"), Some(complete), "{words}");
        assert_eq!(value(&result, "certificate_served_matches_disk"), if covers == 1.0 { Some(1.0) } else { None }, "{words}");
        assert!(value(&result, "probe_ssl_earliest_cert_expiry").is_some(), "{words}");
        let due = f64::from(u8::from(words.contains("expired")));
        assert_eq!(value(&result, "x509_cert_expired"), Some(due), "{words}");
    }
    // With its intermediate, in whatever order, it is right.
    serve(&nginx, &with(between.issue_for(&[SITE], valid), &(nginx.authority.pem.clone() + &between.pem))).await;
    well(&ask_nginx(&nginx, SITE).await);
    // Expired, and the renewed one lies on disk: the failure says what to do.
    serve(&nginx, &expired).await;
    nginx.swap_certificate(&nginx.authority.issue_for(&[SITE], valid));
    failed(&ask_nginx(&nginx, SITE).await, Reason::Certificate, "that is not served: the server was not reloaded");
}

#[tokio::test]
async fn a_bundle_is_measured_once_per_certificate_and_its_key_is_looked_at() {
    let folder = tempfile::tempdir().expect("a folder");
    let live = folder.path().join("live/coursys");
    std::fs::create_dir_all(&live).expect("a folder");
    let (authority, between) = (Authority::new(), Authority::new().intermediate());
    let (certificate, key) = between.issue_for(&[SITE], (-30.0, 60.0));
    let (_, other_key) = authority.issue_for(&[SITE], (-1.0, 1.0));
    let write = |name: &str, text: &str| std::fs::write(live.join(name), text).expect("the folder takes files");
    let pattern = folder.path().join("live/*/fullchain.pem");
    let matches = |result: &ProbeResult| value(result, "certificate_key_matches");

    // Twice the leaf, twice the intermediate, and text between them.
    write("fullchain.pem", &format!("{certificate}{}some words\n{certificate}{}", between.pem, between.pem));
    write("privkey.pem", &key);
    let result = ask_files(&pattern).await;
    well(&result);
    let count = |name: &str| result.samples.iter().filter(|sample| sample.family.name == name).count();
    assert_eq!((count("x509_cert_not_after"), count("certificate_remaining_share")), (2, 1));
    let path = live.join("fullchain.pem").display().to_string();
    let labels = [("filepath", path.as_str()), ("position", "leaf"), ("subject_CN", SITE), ("issuer_CN", "Proctor test intermediate")];
    assert_eq!(labelled(&result, "x509_cert_expired", &labels), Some(0.0));
    assert!(
        labelled(&result, "x509_cert_not_before", &[("position", "intermediate"), ("subject_CN", "Proctor test intermediate")]).is_some()
    );
    nearly(value(&result, "certificate_remaining_share"), 2.0 / 3.0);
    assert_eq!(matches(&result), Some(1.0));

    write("privkey.pem", &other_key);
    let result = ask_files(&pattern).await;
    well(&result);
    assert_eq!(matches(&result), Some(0.0), "the key of another certificate");
    write("privkey.pem", "garbage");
    assert_eq!(matches(&ask_files(&pattern).await), None);
    // Not certbot's names: beside it as NAME.key, or in the same file.
    write("site.crt", &certificate);
    write("site.key", &key);
    assert_eq!(matches(&ask_files(&live.join("site.crt")).await), Some(1.0));
    write("site.key", &other_key);
    assert_eq!(matches(&ask_files(&live.join("site.crt")).await), Some(0.0));
    write("combined.pem", &(certificate + &key));
    assert_eq!(matches(&ask_files(&live.join("combined.pem")).await), Some(1.0));

    // A new lineage is seen without a reload of Proctor, expired or not.
    std::fs::create_dir(folder.path().join("live/old")).expect("a folder");
    std::fs::write(folder.path().join("live/old/fullchain.pem"), authority.issue_for(&["old.example.org"], (-100.0, -10.0)).0)
        .expect("is written");
    let result = ask_files(&pattern).await;
    well(&result);
    assert_eq!(labelled(&result, "x509_cert_expired", &[("subject_CN", "old.example.org")]), Some(1.0));
    assert_eq!(labelled(&result, "x509_cert_expired", &[("subject_CN", SITE)]), Some(0.0));
}

#[tokio::test]
async fn what_is_no_certificate_is_refused_at_once_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &[u8]| std::fs::write(path(name), text).expect("the folder takes files");
    let good = Authority::new().issue_for(&[SITE], (-1.0, 1.0)).0;
    write("garbage.pem", b"\xff\xfe garbage");
    write("base64.pem", b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    write("der.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    write("cut.pem", &good.as_bytes()[..good.len() - 40]);
    write("empty.pem", b"");
    let many: String = (0..33).map(|_| Authority::new().pem).collect();
    write("many.pem", many.as_bytes());
    std::fs::File::create(path("big.pem")).and_then(|file| file.set_len(1 << 30)).expect("a sparse file");
    assert!(Command::new("mkfifo").arg(path("fifo.pem")).status().expect("mkfifo runs").success());
    symlink("/dev/zero", path("device.pem")).expect("a link");
    symlink(path("nowhere"), path("dangling.pem")).expect("a link");
    std::fs::create_dir_all(path("live/a")).expect("a folder");
    symlink("../../archive/a/fullchain1.pem", path("live/a/fullchain.pem")).expect("a link");
    write("live/README", b"not a folder");
    for (name, reason, words) in [
        ("garbage.pem", Reason::Certificate, "holds no certificate"),
        ("base64.pem", Reason::Certificate, "is not PEM"),
        ("der.pem", Reason::Certificate, "holds what is no certificate"),
        ("cut.pem", Reason::Certificate, "is not PEM"),
        ("empty.pem", Reason::Certificate, "holds no certificate"),
        ("many.pem", Reason::Certificate, "holds more than 32 certificates"),
        ("big.pem", Reason::TooLarge, "is larger than"),
        ("fifo.pem", Reason::Mismatch, "is no regular file"),
        ("device.pem", Reason::Mismatch, "is no regular file"),
        ("dangling.pem", Reason::Missing, "cannot read"),
        ("absent.pem", Reason::Missing, "cannot read"),
        ("absent*.pem", Reason::Missing, "expected at least one file, found none"),
        // certbot's links whose archive is gone, which a pattern alone would pass over.
        ("live/*/fullchain.pem", Reason::Missing, "live/a/fullchain.pem"),
    ] {
        let begin = std::time::Instant::now();
        let result = ask_files(&path(name)).await;
        failed(&result, reason, words);
        assert!(begin.elapsed() < Duration::from_secs(2), "{name} at once");
        assert_eq!(result.sight, Sight::Full, "{name}");
    }
    // One that is broken hides none that is right.
    write("good.pem", good.as_bytes());
    let result = ask_files(&path("[cg][ou][to]*.pem")).await;
    failed(&result, Reason::Certificate, "cut.pem is not PEM");
    assert!(value(&result, "certificate_remaining_share").is_some());
    std::fs::create_dir(path("hundred")).expect("a folder");
    for n in 0..=100 {
        write(&format!("hundred/{n}.pem"), good.as_bytes());
    }
    let result = ask_files(&path("hundred/*.pem")).await;
    failed(&result, Reason::TooLarge, "more than 100 files");
    assert_eq!(result.samples.iter().filter(|sample| sample.family.name == "certificate_remaining_share").count(), 100);
}

/// What certbot's folders look like to a user who is not root.
#[tokio::test]
async fn folders_that_may_not_be_read_make_it_blind_and_it_says_the_one_line_that_helps() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let Some(setpriv) = program("setpriv") else { return };
    let Some(nginx) = Nginx::start().await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("it is ours");
    let root = folder.path();
    mode(root, 0o755);
    for path in ["live/coursys", "archive/coursys"] {
        std::fs::create_dir_all(root.join(path)).expect("a folder");
    }
    std::fs::copy(nginx.certificate_file(), root.join("archive/coursys/fullchain1.pem")).expect("is copied");
    std::fs::copy(nginx.ca_file(), root.join("ca.pem")).expect("is copied");
    // The program itself, where every user reaches it.
    install(Path::new(env!("CARGO_BIN_EXE_proctor")), &root.join("proctor"));
    symlink("../../archive/coursys/fullchain1.pem", root.join("live/coursys/fullchain.pem")).expect("a link");
    let check = |files: &str| {
        let yaml = format!(
            "probes:\n  certs:\n    certificate: {{files: ['{0}/{files}'], served: ['{SITE}:{1}'], address: 127.0.0.1, ca_file: '{0}/ca.pem'}}\n",
            root.display(),
            nginx.https
        );
        std::fs::write(root.join("proctor.yml"), yaml).expect("is written");
        let mut command = Command::new(&setpriv);
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(root.join("proctor"));
        let output = command.arg("--config").arg(root.join("proctor.yml")).arg("check").output().expect("it runs");
        // Folded for a terminal.
        let told = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        (output.status.code(), told + &String::from_utf8_lossy(&output.stderr))
    };
    let helps = format!("run: setfacl -m u:nobody:rx {0}/live {0}/archive", root.display());
    for (closed, files) in [
        ("live", "live/*/fullchain.pem"),
        ("live", "live/coursys/fullchain.pem"),
        ("archive", "live/*/fullchain.pem"),
        ("archive", "live/coursys/fullchain.pem"),
    ] {
        mode(&root.join(closed), 0o700);
        let (code, told) = check(files);
        assert_eq!(code, Some(0), "neither red nor green: {told}");
        assert!(told.contains(&helps), "{closed} {files}: {told}");
        assert!(told.contains("blind certs/") && told.contains("partly certs/"), "{told}");
        mode(&root.join(closed), 0o755);
    }
    let (code, told) = check("live/*/fullchain.pem");
    assert!(code == Some(0) && told.contains("All 2 targets are well.") && !told.contains("setfacl"), "{told}");
    // Elsewhere the line names what is closed.
    std::fs::create_dir_all(root.join("ssl/own")).expect("a folder");
    std::fs::copy(nginx.certificate_file(), root.join("ssl/own/site.pem")).expect("is copied");
    mode(&root.join("ssl/own/site.pem"), 0o600);
    assert!(check("ssl/own/site.pem").1.contains(&format!("setfacl -m u:nobody:r {}/ssl/own/site.pem", root.display())));
    mode(&root.join("ssl"), 0o700);
    for files in ["ssl/own/site.pem", "ssl/own/*.pem"] {
        let told = check(files).1;
        assert!(told.contains(&format!("setfacl -m u:nobody:rx {}/ssl", root.display())), "{files}: {told}");
    }
}

#[tokio::test]
async fn a_server_that_does_what_none_should_is_named_within_the_limit() {
    // The head of a handshake record that promises 16 KiB.
    let record = vec![0x16, 0x03, 0x03, 0x40, 0x00, 0x02];
    for (manner, reason) in [
        (Manner::Silent, Reason::AnswerTimeout),
        (Manner::Closes, Reason::Eof),
        (Manner::Resets, Reason::Reset),
        (Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Reason::Tls),
        (Manner::Drips(record.clone()), Reason::AnswerTimeout),
        (Manner::SaysAndHolds(record.clone()), Reason::AnswerTimeout),
        (Manner::Endless(record), Reason::Tls),
        (Manner::Endless(Vec::new()), Reason::Tls),
    ] {
        let port = hostile(manner.clone()).await;
        let target = format!("{SITE}:{port}");
        let yaml = format!("certificate: {{served: ['{target}'], address: 127.0.0.1}}");
        let result = ask_target(&yaml, Some(&target), Duration::from_millis(1500)).await;
        // A connection that is closed at once may come as either.
        let either = |reason| matches!(reason, Reason::Eof | Reason::Reset);
        let found = result.outcome.as_ref().expect_err("it is hostile").reason;
        assert!(found == reason || either(found) && either(reason), "{manner:?}: {:?}", result.outcome);
        failed(&result, found, &target);
        assert_eq!(value(&result, "certificate_served_valid"), None, "{manner:?}");
    }
    let target = format!("{SITE}:{}", free_port());
    failed(&ask(&format!("certificate: {{served: ['{target}'], address: 127.0.0.1}}"), &target).await, Reason::Refused, &target);
    let nowhere = "certificate: {served: ['nowhere.invalid:443']}";
    failed(&ask(nowhere, "nowhere.invalid:443").await, Reason::Resolve, "nowhere.invalid");
}

#[tokio::test]
async fn the_certificate_of_a_mail_server_is_seen_behind_starttls() {
    let sink = Sink::with(Manners { wire: Wire::Starttls, ..Manners::default() }).await;
    let target = format!("smtp://localhost:{}", sink.port);
    let yaml = format!("certificate: {{served: ['{target}'], address: 127.0.0.1, ca_file: '{}', files: ['{0}']}}", sink.ca_file.display());
    let result = ask(&yaml, &target).await;
    well(&result);
    assert_eq!(value(&result, "certificate_served_matches_disk"), Some(1.0));
    assert_eq!(sink.mails().len(), 0);
    for (wire, quirk, reason, words) in [
        (Wire::Plain, None, Reason::Tls, "does not offer STARTTLS"),
        (Wire::Starttls, Some(Quirk::Inject(b"250 more\r\n")), Reason::Protocol, "somebody tampers with the connection"),
        (Wire::Starttls, Some(Quirk::Greets(b"554 no service\r\n")), Reason::Unavailable, "found \"554 no service\""),
        (
            Wire::Starttls,
            Some(Quirk::Greets(b"HTTP/1.1 400 Bad Request\r\n")),
            Reason::Protocol,
            "a mail server's greeting (220), found \"HTTP/1.1 400",
        ),
        (Wire::Starttls, Some(Quirk::EndlessLine), Reason::TooLarge, "larger than"),
        (Wire::Starttls, Some(Quirk::EndlessReply), Reason::TooLarge, "larger than"),
        (Wire::Starttls, Some(Quirk::SilentBanner), Reason::AnswerTimeout, "waiting for the answer before encryption"),
        (Wire::Starttls, Some(Quirk::Drip), Reason::AnswerTimeout, "waiting for the answer before encryption"),
    ] {
        sink.manners(|manners| (manners.wire, manners.quirk) = (wire, quirk));
        let result = ask_target(&yaml, Some(&target), Duration::from_millis(1500)).await;
        failed(&result, reason, words);
    }
}

#[tokio::test]
async fn what_answers_postgresqls_request_for_encryption_is_judged() {
    for (manner, reason, words) in [
        (Manner::Says(b"N".to_vec()), Reason::Tls, "does not offer encryption"),
        (Manner::Says(b"EFATAL".to_vec()), Reason::Unavailable, "with an error"),
        (Manner::Says(b"HTTP/1.1 400\r\n".to_vec()), Reason::Protocol, "found the byte 0x48"),
        // Bytes behind the S are no handshake (CVE-2021-23222).
        (Manner::SaysAndHolds(b"SELECT 1".to_vec()), Reason::Tls, "the TLS handshake"),
        (Manner::Closes, Reason::Eof, "db.example.org"),
        (Manner::Silent, Reason::AnswerTimeout, "before encryption"),
    ] {
        let target = format!("postgres://db.example.org:{}", hostile(manner.clone()).await);
        let yaml = format!("certificate: {{served: ['{target}'], address: 127.0.0.1}}");
        let result = ask_target(&yaml, Some(&target), Duration::from_millis(1500)).await;
        let reset = result.outcome.as_ref().is_err_and(|failure| failure.reason == Reason::Reset) && reason == Reason::Eof;
        failed(&result, if reset { Reason::Reset } else { reason }, words);
    }
}

#[tokio::test]
async fn the_certificate_of_a_real_postgresql_is_seen_and_nothing_stands_in_its_log() {
    let (Some(initdb), Some(postgres), Some(setpriv)) = (program("initdb"), program("postgres"), program("setpriv")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let authority = Authority::new();
    let (certificate, key) = authority.issue_for(&["db.example.org"], (-1.0, 89.0));
    for (name, text) in [("ca.pem", &authority.pem), ("db.pem", &certificate)] {
        std::fs::write(folder.path().join(name), text).expect("is written");
    }
    // It refuses to run as root.
    let run = |program: &Path| {
        if !rustix::process::geteuid().is_root() {
            return Command::new(program);
        }
        let mut command = Command::new(&setpriv);
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    };
    if rustix::process::geteuid().is_root() {
        assert!(Command::new("chown").arg("postgres").arg(folder.path()).status().expect("chown runs").success());
    }
    let made = run(&initdb).arg("-D").arg(&data).args(["-A", "trust", "-N"]).output().expect("initdb runs");
    assert!(made.status.success(), "{made:?}");
    for (name, text) in [("server.crt", &certificate), ("server.key", &key)] {
        let file = data.join(name);
        std::fs::write(&file, text).expect("is written");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
        if rustix::process::geteuid().is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&file).status().expect("chown runs").success());
        }
    }
    let port = free_port();
    let log = folder.path().join("log");
    let mut command = run(&postgres);
    command.arg("-D").arg(&data).args(["-c", "ssl=on", "-c", "listen_addresses=127.0.0.1", "-c", "log_min_messages=info"]);
    command.arg("-c").arg(format!("port={port}")).arg("-k").arg(folder.path());
    let _server = Process::start(&mut command, &log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("PostgreSQL is ready", Duration::from_secs(30), || async { said().contains("ready to accept connections").then_some(()) })
        .await;
    let before = said();
    let target = format!("postgres://db.example.org:{port}");
    let (ca, file) = (folder.path().join("ca.pem"), folder.path().join("db.pem"));
    let yaml =
        format!("certificate: {{served: ['{target}'], files: ['{}'], address: 127.0.0.1, ca_file: '{}'}}", file.display(), ca.display());
    for _ in 0..3 {
        let result = ask(&yaml, &target).await;
        well(&result);
        assert_eq!(value(&result, "certificate_served_matches_disk"), Some(1.0));
    }
    assert_eq!(said(), before, "a polite end leaves no line in the log");
}

#[test]
fn its_rules_speak_when_they_should_and_only_then() {
    let Some(promtool) = program("promtool") else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/tests/certificate.yml");
    let output = Command::new(promtool).args(["test", "rules"]).arg(file).output().expect("promtool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_renewed_certificate_is_a_change_of_the_host() {
    let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
    let path = folder.path().join("fullchain.pem");
    let write = |days| std::fs::write(&path, authority.issue_for(&[SITE], (-1.0, days)).0).expect("is written");
    write(20.0);
    let watched = Watched::new(&format!("  certs: {{certificate: {{files: ['{}']}}}}\n", path.display()));
    let told =
        || watched.changes.between(Timestamp(0), Timestamp(i64::MAX)).iter().map(|change| change.subject.clone()).collect::<Vec<_>>();
    watched.run("certs").await;
    watched.run("certs").await;
    assert!(told().is_empty(), "the same again is none");
    write(89.0);
    watched.run("certs").await;
    assert_eq!(told(), [format!("certificate {}", path.display())]);
}

#[tokio::test]
async fn a_certificate_that_takes_names_away_or_is_older_is_not_called_a_renewal() {
    let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new());
    let path = folder.path().join("fullchain.pem");
    let write = |names: &[&str], from| std::fs::write(&path, authority.issue_for(names, (from, 60.0)).0).expect("is written");
    let watched = Watched::new(&format!("  certs: {{certificate: {{files: ['{}']}}}}\n", path.display()));
    let last = || watched.changes.between(Timestamp(0), Timestamp(i64::MAX)).pop().map(|change| (change.kind.as_str(), change.detail));
    write(&[SITE, "www.example.org"], -30.0);
    watched.run("certs").await;
    for (names, from, kind, words) in [
        (&[SITE, "www.example.org", "new.example.org"][..], -20.0, "renewed", ""),
        (&[SITE, "*.example.org"], -10.0, "renewed", ""),
        (&[SITE, "*.example.org"], -40.0, "replaced", "an older one than before"),
        (&["other.example.com"], -1.0, "replaced", "and not for coursys.example.org, *.example.org any more"),
    ] {
        write(names, from);
        watched.run("certs").await;
        let (found, detail) = last().expect("it is a change");
        assert!(found == kind && detail.contains(words), "{names:?}: {found} {detail}");
    }
}
