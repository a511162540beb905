//! Proctor watches over a Django site: it asks every service whether it really works, shows the answers to Prometheus,
//! decides by rules what is wrong, mails ADMINS, and repairs what it may repair.
//!
//! This page is the map. A test (`tests/it/architecture.rs`) holds it against the tree.
//!
//! # The flow is the architecture
//!
//! ```text
//!  services ◄─ask─ probe ──► snapshot ──► web /metrics ──► Prometheus, Grafana
//!                   ├──────► window ──► promql ◄── rules ──► alerts ──┬─► notify: route → group → mute → dedup → outbox ──► mail, webhook
//!                   └──────► changes ──► mails                        │
//!                                                                     └─► remediate: guard → act → verify
//!                                                         store ◄── alerts, outbox, silences, attempts
//! ```
//!
//! Data moves from left to right and never back. A room knows only the rooms to its left. What must cross sideways is
//! handed over as a function by [`app`] (ask these probes now, for [`remediate`] and [`notify`]; reload, for [`web`]) or
//! lies in a table that both read (attempts reach mails through [`alerts`]).
//!
//! # Floors
//!
//! Each imports only from floors above it in this list, never from its own.
//!
//! | floor | rooms |
//! |---|---|
//! | 1 | `model` `metrics` `tasks` `fuzzing` |
//! | 2 | `client` `window` `snapshot` `changes` `alerts` `store` |
//! | 3 | `mute` |
//! | 4 | `probe` `promql` `notify` `remediate` |
//! | 5 | `rules` |
//! | 6 | `web` |
//! | 7 | `config` |
//! | 8 | `discover` |
//! | 9 | `app` |
//! | 10 | `cli` |
//!
//! (`metrics` uses the outcomes of `model` for its labels, and `tasks` its moments: within floor 1, `model` comes first.)
//!
//! # Where is what
//!
//! | path | what lives there |
//! |---|---|
//! | `src/main.rs` | parses, calls [`cli`], maps to an exit code; nothing else |
//! | `src/model` | labels, sample, probe result and reason, alert, attempt and outcome, problem with position, YAML tree and its decoding, durations, secret, one line of any text: plain types, no I/O, no clock |
//! | `src/metrics.rs` | every `proctor_*` metric: name, help, labels; the only place that registers one |
//! | `src/tasks.rs` | the clock, named supervised tasks and whether their loops come round, the staged stop |
//! | `src/fuzzing.rs` | the parsers that are private, for `fuzz`; in no build but that |
//! | `src/client` | thin bounded clients that several rooms share: net (resolve, connect, TLS by phases), reach (which hosts were reached), http, amqp, sql (one standing connection to a database), docker, systemd, smtp, sock_diag and process (sockets of this host and who holds them), program (runs one), secret files |
//! | `src/window.rs` | the last samples of every series, in memory, as long as the loaded rules look back |
//! | `src/snapshot.rs` | the newest result of every target, with its age, already rendered |
//! | `src/snapshot` | the last answers of every target, as a small picture |
//! | `src/changes` | what changed on the host lately, from jobs, events, files; bounded |
//! | `src/alerts.rs` | the table of what is active now, with a change signal |
//! | `src/store` | what survives a crash: memory is the truth, written through to SQLite, each record with a checksum |
//! | `src/mute` | why something is not said now: silence, acknowledgement, hold, maintenance, first look and boot, `depends_on`, our own actions, we cannot see |
//! | `src/probe` | the trait, the scheduler, and one file or folder per service; what a probe must know over a restart it keeps in the store |
//! | `src/promql` | evaluates a parsed expression at one instant over the window |
//! | `src/notify` | route, dispatch, dedup, message, outbox, email, webhook |
//! | `src/remediate` | guard (decides), runner (acts, verifies, records), and the ways to act |
//! | `src/rules` | Prometheus rule files: load, alert state machine, one turn of a rule, group loop, templates, unit tests in promtool's format |
//! | `src/web` | `/metrics`, status page and what is changed on it, health answers, who may read them, control socket, the reports of jobs |
//! | `src/config` | puts the components' own config structs together, loads, cross-checks; works out the timeline of a failure |
//! | `src/discover` | looks at the host and at a Django project; what follows is YAML that goes through [`config`]'s own loader, or what differs from a file |
//! | `src/app` | builds everything in order, named stops, reload; whether Proctor itself is well, the heartbeat out |
//! | `src/cli` | one file per command; what systemd is told of `serve` |
//! | `templates` | the HTML of the status page and of mails |
//! | `alerts` | Prometheus rule files, used by Proctor and by Prometheus unchanged; `alerts/tests` in promtool's format |
//! | `dashboards` | Grafana dashboards, written from `dashboards.yml` by `make dashboards` |
//! | `docs` | pages for people; what they show is run by tests |
//! | `docs/init.md` | the first start |
//! | `docs/probes` | a page per kind of probe: what it asks and costs, what it exports, what each reason means, what to do |
//! | `docs/web.md` | for people: the status page, and who may read what is served over HTTP |
//! | `docs/performance.md` | what Proctor costs in time and memory |
//! | `benches` | what measures that: beside other programs, and piece by piece |
//! | `deploy` | the commented example configurations; the unit, user and folders of an installation; what other tools read of ours (docker, compose, Prometheus, Alertmanager, Grafana) |
//! | `deploy/demo` | `make demo`: breaks a real site, shows what Proctor says and does |
//! | `docs/life.md` | for people who run it: start, stop, reload, watchdog, heartbeat, exit codes |
//! | `fuzz` | a fuzz target for every parser of ours, with what each begins with |
//! | `tests/it` | one integration binary against real services |
//! | `tests/stack` | installs and starts the real services |
//!
//! # Invariants
//!
//! 1. `rules::{state, template}`, [`promql`], `notify::{route, dedup}`, [`mute`], `remediate::guard` read no clock and do
//!    no I/O: `now` is an argument, read once per tick or flush.
//! 2. State is level-triggered: consumers re-read the whole alert table after a signal. The only queue is the outbox.
//! 3. Nothing is sent that is not in the outbox; notification log and outbox rows commit in one transaction. Delivery is
//!    at least once, with a stable Message-ID. If the store cannot be used, Proctor evaluates and mails from memory,
//!    sets `proctor_state_degraded 1`, says so in every mail, runs no action, and is whole again within 5 s of space
//!    returning; a corrupt file is set aside under a dated name.
//! 4. A failing probe is data, not an error of the program. One that hangs or panics costs one result, never the
//!    scheduler, never another probe's slot.
//! 5. An action runs only if the guard allowed it and the store recorded the intent first. An action in doubt after a
//!    crash is not repeated: probes decide.
//! 6. Missing data is not health. A result older than `max(3 × interval, 1m)` drops out of `/metrics` and the window;
//!    after a start no restored alert resolves until the window spans its look-back again, and nothing fires before each
//!    probe has answered once; down time does not count toward `for`.
//! 7. Not being allowed to look is neither red nor green: a probe is `full`, `partial` or `blind`, and says so.
//! 8. Every buffer, queue, label set, reply, line and wait has a bound, written down next to it.
//! 9. Secrets come from files, are never printed, and a canary test proves it.
//! 10. Without being told to, Proctor only looks: it sets no key, creates no file on the site, sends no mail, acts on
//!     nothing.
//!
//! # Where the design was left, and why
//!
//! - YAML comes from `granit-parser`, the parser beneath serde-saphyr: its events carry the place of every node, and a
//!   scalar stays the text that was written. Decoding is `model::decode`, which notes every mistake and goes on.
//! - The grammar of PromQL is ours, in `promql::{lex, parse}`, and not the crate promql-parser's: it gives every mistake
//!   its place, bounds the stack, and does not panic on `up offset inf`. The crate is the tests' oracle.
//! - AMQP is spoken by `client::amqp` and not lapin: one frame of 7.5 KiB with nested tables, which anybody who may publish
//!   can send, overflows the stack of lapin 4.12.3 and aborts the process; its reader queues without a bound.
//! - docker is asked through `client::http` and not bollard: five requests, bounded replies and events, and no environment
//!   of a container is ever decoded.
//! - HTTP out is hyper over `client::net`, for probes and webhooks alike, and not reqwest: probes need the phases, unix
//!   sockets and hard caps, and one way to do a thing is enough.
//! - MySQL is spoken by `client::sql` and not mysql_async: it opens its connections itself, without our phases and trust,
//!   and one that a run's deadline drops half-way is read on by a task of its own without a limit, so that a frozen server
//!   is left one more connection with each run. PostgreSQL is tokio-postgres, over a stream of ours that bounds it.

pub mod alerts;
pub mod app;
pub mod changes;
pub mod cli;
pub mod client;
pub mod config;
pub mod discover;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod metrics;
pub mod model;
pub mod mute;
pub mod notify;
pub mod probe;
pub mod promql;
pub mod remediate;
pub mod rules;
pub mod snapshot;
pub mod store;
pub mod tasks;
pub mod web;
pub mod window;
