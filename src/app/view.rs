//! What the status page shows, and Proctor's own metrics as samples.

use super::Loaded;
use crate::model::labels::NAME;
use crate::model::{Alert, AlertState, Labels, Sight};
use crate::snapshot::Latest;
use crate::web::{AlertRow, Status, TargetRow};

/// Makes the rows of the status page: what is wrong first.
pub(super) fn status(loaded: &Loaded, latest: &[Latest], alerts: &[Alert], mut notices: Vec<String>) -> Status {
    if let Some(found) = &loaded.found {
        notices.push("No configuration: Proctor watches what it found on this host by looking only.".to_owned());
        notices.extend(found.left_out.iter().map(|line| format!("Not watched: {line}")));
    }
    let mut rows: Vec<AlertRow> = alerts
        .iter()
        .filter(|alert| alert.state != AlertState::Inactive)
        .map(|alert| AlertRow {
            state: if alert.is_firing() { "firing" } else { "pending" },
            severity: alert.labels.get("severity").unwrap_or("").to_owned(),
            name: alert.name().to_owned(),
            summary: alert.annotations.get("summary").unwrap_or("").to_owned(),
            since: alert.active_at,
            note: match (alert.attempts.last(), alert.evidence.first()) {
                (Some(attempt), _) => format!("{}: {}", attempt.action, attempt.outcome),
                (None, evidence) => evidence.cloned().unwrap_or_default(),
            },
        })
        .collect();
    rows.sort_by_key(|row| (row.state != "firing", row.since));
    let mut targets: Vec<TargetRow> = latest.iter().map(target).collect();
    targets.sort_by_key(|row| row.well != Some(false));
    Status { site: loaded.config.site.name.clone(), notices, alerts: rows, targets }
}

fn target(latest: &Latest) -> TargetRow {
    let result = latest.result.as_ref();
    let detail = result.map(|result| match (&result.outcome, &result.sight) {
        (Err(failure), _) => format!("{}: {}", failure.reason, failure.detail),
        (Ok(()), Sight::Full) => String::new(),
        (Ok(()), Sight::Partial { missing, remedy } | Sight::Blind { missing, remedy }) => format!("cannot see {missing}; {remedy}"),
    });
    TargetRow {
        name: latest.target.to_string(),
        kind: latest.target.kind,
        well: result.map(|result| result.is_success()),
        detail: detail.unwrap_or_default(),
        took: result.map(|result| result.duration).unwrap_or_default(),
        since: latest.since,
        at: result.map(|result| result.at),
    }
}

/// Reads Proctor's own metrics back from their OpenMetrics text, since the library shows them in no other way.
pub(super) fn own_samples(text: &str, site: &Labels) -> Vec<(Labels, f64)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            // Values of our own labels hold no quotes and no commas: names of probes and closed sets.
            let pairs = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()));
            Some((site.with(pairs.chain([(NAME.to_owned(), name.to_owned())])), value.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn our_own_metrics_are_samples_like_any_other() {
        let samples = own_samples(&Metrics::new().encode(), &Labels::new([("instance", "a")]));
        let wanted = r#"proctor_actions_total{instance="a", outcome="failed"}"#;
        assert!(samples.iter().any(|(labels, value)| labels.to_string() == wanted && *value == 0.0), "{samples:?}");
    }
}
