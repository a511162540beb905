//! Behaviour against real services, through the public seam of each room.
#![allow(
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    clippy::unwrap_used,
    dead_code,
    reason = "tests spawn and read clocks as they like; not every starter is used by every test"
)]

mod acceptance;
mod alerts_broker;
mod architecture;
mod cannot_see;
mod commands;
mod config;
mod dashboards;
mod deploy;
mod docs;
mod durability;
mod exposition;
mod hostile_text;
mod init;
mod life;
mod mail;
mod ordinary_hour;
mod pipeline;
mod probes_beat;
mod probes_beat_database;
mod probes_broker;
mod probes_celery;
mod probes_celery_events;
mod probes_certificate;
mod probes_code;
mod probes_command;
mod probes_docker;
mod probes_gunicorn;
mod probes_heartbeat;
mod probes_host;
mod probes_markup;
mod probes_memcached;
mod probes_mysql;
mod probes_nginx;
mod probes_postgres;
mod probes_rabbitmq;
mod probes_search;
mod probes_systemd;
mod probes_tunnel;
mod probes_web;
mod promql;
mod remediate;
mod rules;
mod shown;
mod soak;
mod start;
mod support;
mod upgrade;
mod web;
mod web_changes;
