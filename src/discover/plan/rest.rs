//! The host: certificates, units, containers, cron, and what could be done by itself.

use std::collections::BTreeSet;

use super::{Plan, list, quoted};

/// The most names whose certificates are asked for.
const MAX_SERVED: usize = 20;

impl Plan<'_> {
    pub(super) fn certificates(&mut self) {
        let facts = self.facts;
        let mut served = BTreeSet::new();
        for server in facts.nginx.iter().flat_map(|nginx| &nginx.servers) {
            for listen in server.listens.iter().filter(|listen| listen.tls && listen.address.is_none_or(|ip| ip.is_loopback())) {
                served.extend(server.names.iter().filter(|name| name.contains('.')).map(|name| format!("{name}:{}", listen.port)));
            }
        }
        let served: Vec<String> = served.into_iter().take(MAX_SERVED).collect();
        let mut parts = Vec::new();
        if let Some((live, _)) = &facts.certificates {
            parts.push(format!("files: [{}]", quoted(&format!("{}/*/fullchain.pem", live.display()))));
        }
        if !served.is_empty() {
            parts.push(format!("served: [{}], address: 127.0.0.1", served.iter().map(|one| quoted(one)).collect::<Vec<_>>().join(", ")));
        }
        if parts.is_empty() {
            return;
        }
        let about = match (&facts.certificates, served.is_empty()) {
            (Some((live, _)), false) => format!("certificates in {} and as nginx serves them ({})", live.display(), served.join(", ")),
            (Some((live, _)), true) => format!("certificates in {}: how long they are valid", live.display()),
            (None, _) => format!("certificates as nginx serves them ({})", served.join(", ")),
        };
        self.add("certificates", format!("certificate: {{{}}}, interval: 1m", parts.join(", ")), about);
        match &facts.certificates {
            Some((live, true)) => {
                let archive = live.with_file_name("archive");
                let command = format!("setfacl -m u:{}:rx {} {}", facts.user.0, live.display(), archive.display());
                self.half(None, format!("certificates in {}: the user {} may not enter it", live.display(), facts.user.0), command);
            }
            Some((live, false)) if served.is_empty() => self.unwatched(
                format!("whether the certificates in {} are those that are served", live.display()),
                "name where, under probes: (certificate: {served: [\"NAME:443\"]})".to_owned(),
            ),
            _ => {}
        }
    }

    pub(super) fn units(&mut self) {
        let facts = self.facts;
        let units = &facts.units;
        if let Some(why) = &units.unseen {
            self.found.unseen.push(format!("units of systemd: {why}"));
        }
        // What failed is named with what runs: that is just what Proctor is for.
        let up = |active: &str| matches!(active, "active" | "reloading" | "activating" | "failed");
        let (watched, idle): (Vec<_>, Vec<_>) = units.services.iter().partition(|service| up(&service.active));
        let services: Vec<String> = watched.into_iter().map(|service| service.name.clone()).take(100).collect();
        if !services.is_empty() || !units.timers.is_empty() {
            let mut parts = Vec::new();
            if !services.is_empty() {
                parts.push(format!("units: {}", list(&services)));
            }
            if !units.timers.is_empty() {
                parts.push(format!("timers: {}", list(&units.timers)));
            }
            let named: Vec<&str> = services.iter().chain(&units.timers).map(String::as_str).collect();
            self.add(
                "units",
                format!("systemd: {{{}}}", parts.join(", ")),
                format!("systemd's units {}, and whatever else fails", named.join(", ")),
            );
        }
        for service in idle.into_iter().filter(|service| service.kind != "oneshot") {
            self.unwatched(
                format!("{}: it is enabled and does not run", service.name),
                format!("systemctl start {0} and add it to units, or systemctl disable {0}", service.name),
            );
        }
    }

    pub(super) fn containers(&mut self) {
        let containers = &self.facts.containers;
        let Some(engine) = &containers.engine else { return };
        let user = &self.facts.user.0;
        if containers.denied {
            self.found.half.push(super::Half {
                what: format!("the containers of docker at {engine}: not at all"),
                command: format!(
                    "usermod -aG docker {user} (who may use docker's socket is as good as root: a socket proxy is the careful way, docs/probes/docker.md)"
                ),
            });
            return;
        }
        if let Some(why) = &containers.unseen {
            self.found.unseen.push(format!("containers of docker: {why}"));
            return;
        }
        let engine = quoted(engine);
        if containers.projects.is_empty() {
            self.add(
                "docker",
                format!("docker: {{engine: {engine}}}"),
                format!("docker at {engine}: every container that docker itself is to restart"),
            );
            return;
        }
        for (at, (project, services)) in containers.projects.iter().enumerate() {
            let mut body = format!("docker: {{engine: {engine}, project: {}, services: {}", quoted(project), list(services));
            // Named once, with the first project.
            if at == 0 && !containers.others.is_empty() {
                body += &format!(", containers: {}", list(&containers.others));
            }
            self.add("docker", body + "}", format!("compose project {project}: {}", services.join(", ")));
        }
    }

    pub(super) fn host(&mut self) {
        self.add(
            "host",
            "host: {}, interval: 30s, timeout: 20s".to_owned(),
            "this host: disks, memory and load, ports that are newly open".to_owned(),
        );
    }

    pub(super) fn cron(&mut self) {
        let (jobs, denied) = &self.facts.cron;
        let mut names: Vec<String> = Vec::new();
        for job in jobs.iter().filter(|job| !job.followed) {
            let (name, mut unique, mut n) = (job.name(), job.name(), 1);
            while names.contains(&unique) {
                n += 1;
                unique = format!("{name}-{n}");
            }
            names.push(unique.clone());
            self.unwatched(
                format!("cron's job {}: nobody follows whether it runs and ends well", job.place),
                format!("{} and under probes: {unique}: {{heartbeat: {{schedule: {}}}}}", job.reported(&unique), quoted(&job.schedule)),
            );
        }
        for path in denied {
            self.found.unseen.push(format!("cron's tables in {}: run this command as root to see them", path.display()));
        }
    }

    /// Says what could be done by itself for what is watched.
    pub(super) fn actions(&mut self) {
        let services = &self.facts.units.services;
        let unit = |starts: &str| services.iter().find(|service| service.name.starts_with(starts)).map(|service| service.name.clone());
        let mut actions = Vec::new();
        for (starts, name, alert) in [
            ("gunicorn", "restart-gunicorn", "GunicornDown"),
            ("memcached", "restart-cache", "MemcachedDown"),
            ("celery", "restart-celery", "CeleryWorkerMissing"),
        ] {
            actions.extend(unit(starts).map(|unit| (name, format!("systemd: {{unit: {}, verb: restart}}", quoted(&unit)), alert)));
        }
        for services in self.facts.containers.projects.values() {
            for (service, name, alert) in
                [("memcached", "restart-cache", "MemcachedDown"), ("elasticsearch", "restart-search", "ElasticsearchDown")]
            {
                if services.iter().any(|known| known == service) {
                    actions.push((name, format!("docker: {{service: {service}, verb: restart}}"), alert));
                }
            }
        }
        if !self.names.tunnels.is_empty() {
            actions.extend(
                unit("tunnel")
                    .or_else(|| unit("autossh"))
                    .or_else(|| unit("ssh-tunnel"))
                    .map(|unit| ("restart-tunnel", format!("systemd: {{unit: {}, verb: restart}}", quoted(&unit)), "TunnelDown")),
            );
        }
        self.found.actions = actions
            .into_iter()
            .map(|(name, body, alert)| format!("{name}: {{{body}, matchers: ['alertname=\"{alert}\"'], firing_for: 1m}}"))
            .collect();
    }
}
