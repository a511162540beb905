//! `proctor render uploads`: the unit that tries the upload folders as the site's user, and its timer.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::model::duration::print;

/// Writes the unit, or its timer, for the heartbeat of this name.
pub(super) fn render(config: &Config, name: &str, user: &str, program: &str, folders: &[PathBuf], timer: bool) -> Result<String, String> {
    let heartbeat = config.probes.0.iter().find(|(probe, _)| probe.value == name).and_then(|(_, probe)| probe.heartbeat.as_ref());
    let wanted = format!("probes:\n  {name}:\n    heartbeat: {{every: 15m, token_file: /etc/proctor/credentials/{name}}}");
    let Some((every, token)) = heartbeat.and_then(|heartbeat| heartbeat.every.zip(heartbeat.token_file.as_deref())) else {
        return Err(format!("expected a heartbeat of the name {name} with every and token_file in the configuration:\n{wanted}"));
    };
    if timer {
        return Ok(format!(
            "# Written by `proctor render uploads --timer`: when proctor-{name}.service tries the upload folders.\n\
             [Unit]\nDescription=When Proctor tries the upload folders\n\n\
             [Timer]\nOnBootSec=2min\nOnUnitActiveSec={}s\nAccuracySec=10s\n\n[Install]\nWantedBy=timers.target\n",
            every.as_secs()
        ));
    }
    let plain = |path: &Path| {
        let text = path.to_string_lossy();
        let fine = text.starts_with('/') && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@".contains(c));
        if fine {
            Ok(text.into_owned())
        } else {
            Err(format!("expected a path from / of letters, digits and ._-+@, found {text:?}: systemd would read it otherwise"))
        }
    };
    let folders: Vec<String> = folders.iter().map(|folder| plain(folder)).collect::<Result<_, _>>()?;
    let (token, program) = (plain(token)?, plain(Path::new(program))?);
    let all = folders.join(" ");
    Ok(format!(
        "# Written by `proctor render uploads`: creates a file in each upload folder as the site does, removes it, and reports to\n\
         # the heartbeat {name}, at least every {}. It may write nowhere else.\n\
         [Unit]\nDescription=Proctor tries the upload folders\n\n\
         [Service]\nType=oneshot\nUser={user}\nTimeoutStartSec=60\nLoadCredential=token:{token}\n\
         ExecStart={program} run --checks --url http://{} --token-file %d/token {name} -- {program} try-folders {all}\n\
         ProtectSystem=strict\nReadWritePaths={writable}\nNoNewPrivileges=yes\nCapabilityBoundingSet=\nMemoryMax=64M\n",
        print(every),
        config.web.listen.0,
        writable = folders.iter().map(|folder| format!("-{folder}")).collect::<Vec<_>>().join(" "),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_and_its_timer_do_what_the_heartbeat_expects() {
        let text = "web: {listen: '127.0.0.1:9797'}\nprobes:\n  uploads: {heartbeat: {every: 15m, token_file: /etc/proctor/credentials/uploads}}\n  job: {heartbeat: {every: 1h}}\n";
        let config = Config::from_text("f".as_ref(), text).expect("is right");
        let folders = ["/data/submissions".into(), "/data/media".into()];
        let of = |name: &str, timer| render(&config, name, "coursys", "/usr/bin/proctor", &folders, timer);
        insta::assert_snapshot!(of("uploads", false).expect("is written") + "\n" + &of("uploads", true).expect("is written"));
        for name in ["job", "nowhere"] {
            assert!(of(name, false).expect_err("reports over HTTP need a token").contains("with every and token_file"));
        }
        let odd = [PathBuf::from("/data/my uploads")];
        assert!(render(&config, "uploads", "coursys", "/usr/bin/proctor", &odd, false).is_err());
    }
}
