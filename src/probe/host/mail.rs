//! The way of the mail up to the recipient: the relay greets, encrypts, takes the login, the sender and the recipient.
//! Then it is told to forget that. Nothing is sent.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Standing;
use crate::client::net::chain;
use crate::client::secret;
use crate::client::smtp::{Cause, Envelope, Limits, Relay, Security, Session, SmtpError};
use crate::model::{Failure, Family, Reason, Sample};
use crate::probe::{Probe, Recorder};

static ACCEPTED: Family = Family::gauge("host_mail_accepted", "Whether the relay would take a mail for the recipient");

/// How often the relay is asked, well or not.
const EVERY: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(60)];

crate::config_struct! {
    /// The way of the mail, as the site goes it: Django's `EMAIL_HOST` and its siblings.
    pub struct MailConfig {
        /// The relay.
        host: String,
        /// Its port.
        port: u16 = "25",
        /// `none`, `starttls` or `tls`.
        tls: Security = "none",
        /// Who logs in; only over TLS or to this very host.
        username: Option<String>,
        /// A file with the password.
        password_file: Option<PathBuf>,
        /// How this host names itself; the default is the domain of `from`.
        hello: Option<String>,
        /// A PEM file of authorities; the default is what the host trusts.
        ca_file: Option<PathBuf>,
        /// The sender, such as Django's `DEFAULT_FROM_EMAIL`.
        from: String,
        /// A recipient that the relay must take.
        to: String,
    }
}

pub(super) struct Mail {
    config: MailConfig,
    envelope: Envelope,
    standing: Standing,
}

impl Mail {
    pub(super) fn new(config: &MailConfig) -> Result<Self, String> {
        let envelope = Envelope::new(&config.from, &config.to).map_err(|why| format!("mail: {why}"))?;
        if config.username.is_some() != config.password_file.is_some() {
            return Err("mail: expected both or neither of username and password_file".to_owned());
        }
        let mail = Self { config: config.clone(), envelope, standing: Standing::new(EVERY[0], EVERY[1]) };
        mail.relay().map(|_| mail).map_err(|why| format!("mail: {why}"))
    }

    fn relay(&self) -> Result<Relay, String> {
        let MailConfig { host, port, tls, username, password_file, hello, ca_file, from, .. } = &self.config;
        let login = match (username, password_file) {
            (Some(username), Some(file)) => Some((username.clone(), secret::read(file).map_err(|error| chain(&error))?)),
            _ => None,
        };
        let domain = || from.rsplit_once('@').map_or("localhost", |(_, domain)| domain).to_owned();
        Ok(Relay {
            host: host.clone(),
            port: *port,
            security: *tls,
            hello: hello.clone().unwrap_or_else(domain),
            login,
            trust: secret::trust(ca_file.as_deref()).map_err(|error| chain(&error))?,
            // The limit of the run is the probe's.
            limits: Limits::default(),
        })
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        if let Some(again) = self.standing.again(rec) {
            return again;
        }
        let MailConfig { host, port, to, .. } = &self.config;
        rec.waiting(Reason::AnswerTimeout, format!("asking the relay {host}:{port} whether it takes a mail to {to}"));
        let relay = self.relay().map_err(|why| Failure::new(Reason::Missing, why))?;
        let asked = async {
            let mut session = Session::open(&relay).await?;
            let answer = session.rehearse(&self.envelope).await;
            session.quit().await;
            answer
        };
        let outcome = asked.await.map_err(|error| {
            error.transcript.iter().for_each(|line| rec.evidence(line));
            Failure::new(reason_of(&error), chain(&error))
        });
        let value = f64::from(u8::from(outcome.is_ok()));
        rec.set(&ACCEPTED, value);
        self.standing.keep(vec![Sample { family: &ACCEPTED, labels: Vec::new(), value }], &outcome);
        outcome
    }
}

impl Probe for Mail {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }
}

fn reason_of(error: &SmtpError) -> Reason {
    match &error.source {
        Cause::Net(error) => error.reason(),
        Cause::Timeout(_) => Reason::AnswerTimeout,
        Cause::Reply(reply) if matches!(reply.code, 530 | 535 | 534) => Reason::Auth,
        Cause::Reply(reply) if reply.code >= 500 => Reason::Forbidden,
        Cause::Reply(_) => Reason::Unavailable,
        Cause::Unsafe(_) => Reason::Tls,
        _ => Reason::Protocol,
    }
}
