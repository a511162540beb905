//! `proctor mail test`: one mail to every ADMIN, with all that the relay says.

use std::error::Error;

use clap::Subcommand;

use super::{Exit, complain, say};
use crate::app::{self, Source};
use crate::client::net::chain;
use crate::client::smtp::{self, Limits};
use crate::notify::email::compose;
use crate::notify::message::Voice;
use crate::notify::{Channel, Delivery, Weight, bulletin};
use crate::tasks;

#[derive(Debug, Subcommand)]
pub(super) enum Mail {
    /// Sends one mail to every ADMIN and prints what both sides say, secrets hidden; needs no running Proctor
    #[command(after_help = "Example: proctor mail test    # 0 the relay took every mail, 1 it did not")]
    Test,
}

pub(super) fn run(source: &Source, Mail::Test: &Mail) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    let config = app::load(source)?.config;
    let Some(notify) = config.notify.as_ref().map(|notify| &notify.value) else {
        return Err("the configuration has no notify section: nobody would be mailed".into());
    };
    let Some(smtp) = &notify.smtp else { return Err("the configuration has no notify.smtp: it names no relay".into()) };
    let relay = smtp.relay(Limits::default())?;
    let author = app::ways(&config).author;
    let voice = Voice::new(notify, &config.site.name, config.site.external_url.clone());
    super::block_on(async {
        let mut failed = 0;
        for admin in &notify.admins {
            let now = tasks::now();
            let id = voice.message_id(&format!("test-{}", now.0), 0, now);
            let to = admin.value.to_string();
            let delivery = Delivery {
                message: bulletin::message(&voice, "test", &id, bulletin::test(&voice)),
                id,
                channel: Channel::Email { to: to.clone() },
                weight: Weight::Firing,
                queued_at: now,
                attempts: 0,
                next_at: now,
                last_error: None,
            };
            say(&format!("To {to}, by {}:{}\n", relay.host, relay.port))?;
            let (envelope, message) = compose(&author, &to, &delivery)?;
            let (transcript, why) = match smtp::deliver(&relay, &envelope, &message).await {
                Ok(accepted) => (accepted.transcript, None),
                Err(error) => (error.transcript.clone(), Some(chain(&error))),
            };
            for line in transcript {
                say(&format!("  {line}\n"))?;
            }
            match why {
                None => say("Taken by the relay. Whether it arrives, look into the mailbox.\n\n")?,
                Some(why) => {
                    failed += 1;
                    complain(&format!("Not sent: {why}\n"));
                }
            }
        }
        Ok(if failed == 0 { Exit::Well } else { Exit::Failed })
    })?
}
