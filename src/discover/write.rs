//! What was found, as a commented configuration.

use super::{Entry, Found, Half};
use crate::model::one_line;

/// Returns the text of a configuration: what is watched, what could be, and at its end what is not.
pub fn text(found: &Found) -> String {
    let mut lines = vec![
        "# Written by `proctor init` from what this host shows. Every key: deploy/proctor.example.yml. After a change:".to_owned(),
        "# proctor config check, then proctor check, then proctor reload. Passwords stand in files of their own, never here.".to_owned(),
        format!("# Asked besides the host: {}.", one_line(found.asked.as_deref().unwrap_or("no Django"), usize::MAX)),
        String::new(),
        format!("site: {{name: {}}}", serde_json::Value::from(found.site.as_str())),
        String::new(),
    ];
    if found.notify.is_empty() {
        lines.extend(
            [
                "# Who is told; without this section nobody is (docs/mail.md).",
                "# notify:",
                "#   admins: [\"Sysadmin <sysadmin@example.org>\"]",
                "#   from: proctor@example.org",
                "#   smtp: {host: localhost, port: 25}",
            ]
            .map(str::to_owned),
        );
    } else {
        lines.push("# Who is told: Django's ADMINS, by the relay that Django uses. `proctor mail test` tries it.".to_owned());
        lines.extend(found.notify.iter().cloned());
    }
    lines.extend([
        String::new(),
        "# Somebody outside should notice when this host dies: heartbeat_out (docs/life.md).".to_owned(),
        String::new(),
    ]);
    if found.entries.iter().any(|entry| !entry.body.is_empty()) {
        lines.push("probes:".to_owned());
    } else {
        lines.push("# probes:".to_owned());
    }
    for entry in &found.entries {
        lines.extend([String::new(), format!("  # {}", entry.about)]);
        if found.asked.is_some() && asks_django(entry) {
            lines.push("  # Django mails its ADMINS each answer of 5xx, also to Proctor's own requests: docs/probes/http.md#django-mails-admins-too".to_owned());
        }
        lines.extend(entry.line().map(|line| format!("  {line}")));
        if !entry.maybe.is_empty() {
            lines.push(format!("  # depends_on: [{}]   # if it uses it", entry.maybe.join(", ")));
        }
        if let Some(later) = &entry.later {
            lines.push("  # instead, once it is open (how: at the end of this file):".to_owned());
            lines.push(format!("  # {}", entry.with(later)));
        }
    }
    lines.push(String::new());
    lines.push("# What Proctor may repair: nothing but what is written here, and only with mode: act (docs/repair.md).".to_owned());
    if !found.actions.is_empty() {
        lines.push("# actions:".to_owned());
        lines.extend(found.actions.iter().map(|action| format!("#   {action}")));
    }
    remark(&mut lines, "Half watched; what opens the rest:", &found.half);
    remark(&mut lines, "Not watched; how it would be:", &found.unwatched);
    if !found.unseen.is_empty() {
        lines.extend([String::new(), "# What could not be found out, and how to add it:".to_owned()]);
        lines.extend(found.unseen.iter().map(|line| format!("# - {}", one_line(line, usize::MAX))));
    }
    lines.join("\n") + "\n"
}

/// Says whether a probe asks for pages of the site.
fn asks_django(entry: &Entry) -> bool {
    let bodies = || [Some(&entry.body), entry.later.as_ref()].into_iter().flatten();
    bodies().any(|body| {
        let asks = |kind: &str| body.starts_with(kind);
        asks("gunicorn: ") || asks("http: ") || (asks("nginx: ") && body.contains("sites: "))
    })
}

fn remark(lines: &mut Vec<String>, title: &str, all: &[Half]) {
    if all.is_empty() {
        return;
    }
    lines.extend([String::new(), format!("# {title}")]);
    for Half { what, command } in all {
        lines.push(format!("# - {}:", one_line(what, usize::MAX)));
        lines.push(format!("#     {}", one_line(command, usize::MAX)));
    }
}
