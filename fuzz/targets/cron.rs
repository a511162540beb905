//! Schedules as in a crontab, and crontabs.

#![no_main]

use jiff::{Timestamp, tz::TimeZone};
use proctor::discover::cron;
use proctor::probe::heartbeat::cron::Cron;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(cron) = Cron::parse(text) {
        let zone = TimeZone::get("America/Vancouver").expect("is built in");
        let mut at = Timestamp::UNIX_EPOCH;
        for _ in 0..5 {
            let Some(next) = cron.after(at, &zone) else { break };
            assert!(next.earliest > at && next.latest >= next.earliest, "{next:?} is not after {at}");
            at = next.earliest;
        }
    }
    for system in [false, true] {
        for job in cron::parse(text, system, "/etc/crontab") {
            job.reported(&job.name());
        }
    }
});
