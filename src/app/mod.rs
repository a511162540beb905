//! Builds everything in the order of the flow and stops it in the other one.
//!
//! What outlives a reload (metrics, store, results, window, alert table, web) is built once; what belongs to a
//! configuration (probes and what is made from them) is a [`Tasks`] child that a reload swaps as a whole.

mod booting;
mod changed;
mod explain;
mod health;
mod heartbeat_out;
mod life;
mod operate;
mod paths;
mod repairing;
mod seeing;
mod telling;
mod view;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::alerts::AlertTable;
use crate::changes::{Changes, Kind};
use crate::client::net::chain;
use crate::config::{self, Config};
use crate::discover::{self, Found};
use crate::metrics::Metrics;
use crate::model::{Labels, ProbeResult, Problem, Problems, Target, Timestamp};
use crate::mute::depends::Depends;
use crate::notify::dispatch::{Board, Mutes};
use crate::notify::outbox::Outbox;
use crate::probe::heartbeat::Inbox;
use crate::probe::scheduler::{Occasion, Scheduled, Scheduler, Sink};
use crate::probe::{self, Shared};
use crate::remediate::{self, Planned, Runner, Tools};
use crate::rules;
use crate::rules::group::{self, Context, Nudge};
use crate::rules::load::RuleGroup;
use crate::snapshot::Snapshot;
use crate::store::{CLOSE_WITHIN, Store, StoreError};
use crate::tasks::{self, Tasks};
use crate::web::access::{Access, Gate};
use crate::web::{self, Pages, WebError};
use crate::window::{Limits, Window};

pub use paths::{DEFAULT_CONFIG, control_socket, state_path};
use repairing::plan_actions;
pub use telling::ways;

/// The whole stop is over within this time.
pub const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How often Proctor's own metrics go into the window, and results that are too old leave it.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(15);

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// None: what this host shows is watched by looking only.
    Host,
}

/// Why Proctor does not start, or does not take a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration has mistakes.
    #[error("the configuration is not taken:\n{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<Problem>),
    /// The state cannot be used by us.
    #[error("the state cannot be used")]
    Store(#[from] StoreError),
    /// The web does not come up.
    #[error("the web does not come up")]
    Web(#[from] WebError),
}

/// What a configuration was made of.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Where it stands.
    pub file: PathBuf,
    /// The configuration.
    pub config: Arc<Config>,
    /// The rules it names.
    pub rules: Vec<RuleGroup>,
    /// What was found on the host, where there is no file.
    pub found: Option<Found>,
    /// What is asked of those who read over HTTP.
    pub gate: Gate,
}

/// Loads the configuration, or makes one of what the host shows.
///
/// # Errors
/// [`AppError::Config`].
pub fn load(source: &Source) -> Result<Loaded, AppError> {
    let file = match source {
        Source::File(path) => path.clone(),
        Source::Host => PathBuf::from("what was found on this host"),
    };
    let (config, found) = match source {
        Source::File(path) => (Config::load(path).map_err(AppError::Config)?, None),
        Source::Host => {
            let found = discover::look();
            (Config::from_text(&file, &found.probes()).map_err(AppError::Config)?, Some(found))
        }
    };
    let rules = rules::load::load(&config.rules, config::read);
    // The mistakes of all files come in one run.
    match (rules, Gate::load(&config.web, config.site.external_url.as_deref(), config::read)) {
        (Ok(rules), Ok(gate)) => Ok(Loaded { file, config: Arc::new(config), rules, found, gate }),
        (rules, gate) => Err(AppError::Config([rules.err(), gate.err()].into_iter().flatten().flatten().collect())),
    }
}

/// Plans every target and every action of a configuration; connects to nothing. What the file alone does not show comes
/// out here, such as a secret that cannot be read: all of it in one run, at its probe or action.
///
/// # Errors
/// [`AppError::Config`].
pub fn plan_all(loaded: &Loaded, tasks: &Tasks, changes: &Changes, tools: &Tools) -> Result<(Vec<Scheduled>, Vec<Planned>), AppError> {
    let mut problems = Problems::new(&loaded.file);
    let scheduled = plan(&loaded.config, tasks, changes, &mut problems);
    let actions = plan_actions(&loaded.config, tools, &mut problems);
    if problems.is_empty() { Ok((scheduled, actions)) } else { Err(AppError::Config(problems.into_sorted())) }
}

/// Plans every target of a configuration; connects to nothing. The connections that probes will keep belong to `tasks`.
/// A probe that cannot be built is left out and noted.
pub fn plan(config: &Config, tasks: &Tasks, changes: &Changes, problems: &mut Problems) -> Vec<Scheduled> {
    let mut all = Vec::new();
    let mut shared = Shared::new(tasks.clone(), changes.clone()).maintained_by(&config.maintenance.files);
    for (name, probe, planned) in probe::plan_entries(config.probes.0.iter().map(|(name, probe)| (name, probe)), &mut shared, problems) {
        let kind = probe.kinds().first().copied().unwrap_or("none");
        for one in planned {
            let target = Target {
                probe: name.as_str().into(),
                target: one.target.map(Into::into),
                kind,
                interval: probe.interval.unwrap_or(config.defaults.interval),
                timeout: probe.timeout.unwrap_or(config.defaults.timeout),
                depends_on: probe.needs().map(Into::into).collect(),
            };
            all.push(Scheduled { target: Arc::new(target), probe: one.probe });
        }
    }
    all
}

/// What belongs to one configuration.
struct Scoped {
    loaded: Loaded,
    scheduler: Scheduler,
    depends: Arc<Depends>,
    patience: Patience,
    tasks: Tasks,
}

/// How long an alert about a probe, by name, may take to fire once it fails.
type Patience = Arc<dyn Fn(&str) -> Duration + Send + Sync>;

/// How often the probes are asked while an action is verified.
const VERIFY_EVERY: Duration = Duration::from_secs(2);

impl Scoped {
    fn new(loaded: Loaded, mut scheduled: Vec<Scheduled>, sink: Sink, metrics: &Arc<Metrics>, store: &Store, tasks: Tasks) -> Self {
        for Scheduled { target, probe } in &mut scheduled {
            probe.remember(target, store);
        }
        let edges = loaded.config.probes.0.iter().map(|(name, probe)| (name.value.clone(), probe.needs().map(str::to_owned).collect()));
        // The configuration was checked for circles and unknown names.
        let depends = Arc::new(Depends::new(edges).unwrap_or_default());
        let patience = telling::patience(&loaded, &scheduled);
        Self { loaded, scheduler: Scheduler::new(scheduled, sink, metrics.clone()), depends, patience, tasks }
    }
}

/// The running program.
pub struct App {
    source: Source,
    metrics: Arc<Metrics>,
    store: Store,
    snapshot: Snapshot,
    window: Window,
    changes: Changes,
    alerts: AlertTable,
    nudge: Nudge,
    mutes: Arc<Mutex<Mutes>>,
    /// Wakes the dispatcher.
    wake: Arc<Notify>,
    outbox: Outbox,
    runner: Runner,
    tools: Tools,
    scoped: Arc<Mutex<Scoped>>,
    /// Held during a reload: reloads come one after the other.
    reloading: tokio::sync::Mutex<()>,
    tasks: Tasks,
    /// Says whether the host is still starting.
    starting: booting::Starting,
    /// Whether Proctor itself is well, under the configuration in force.
    health: Mutex<Option<health::Health>>,
    /// When the command of a hold was last heard of, by the hold's id.
    heard: Mutex<BTreeMap<String, Timestamp>>,
    web: Mutex<Option<std::net::SocketAddr>>,
    /// What is asked of those who read over HTTP.
    access: Access,
    /// Where the mails of all groups stand.
    board: Mutex<Board>,
    /// Why the last reload was refused; nothing once one was taken.
    refused: Mutex<Option<view::Refused>>,
}

impl App {
    /// Builds and starts everything.
    ///
    /// # Errors
    /// See [`AppError`]; nothing is left running then.
    pub async fn start(source: Source) -> Result<Arc<Self>, AppError> {
        let loaded = load(&source)?;
        let tasks = Tasks::new();
        let scoped_tasks = tasks.child();
        let changes = Changes::default();
        let tools = Tools::of_this_host(None);
        let (scheduled, actions) = plan_all(&loaded, &scoped_tasks, &changes, &tools)?;
        let metrics = Arc::new(Metrics::new());
        metrics.start_time.set(tasks::wall_now().as_secs_f64());
        let state = state_path(&loaded.config);
        if state.is_none() {
            tracing::warn!(
                "the state is kept in memory only, since there is neither state.path nor $STATE_DIRECTORY, $XDG_STATE_HOME or $HOME: a restart forgets alerts, silences and mails that wait"
            );
        }
        let store = Store::open(state.as_deref(), metrics.clone())?;
        changed::recall(&store, &changes);
        let snapshot = Snapshot::new(metrics.clone());
        let window = Window::new(Limits::default(), metrics.clone());
        let nudge = Nudge::default();
        let mutes = Arc::new(Mutex::new(telling::mutes(&loaded, &store)));
        let outbox = Outbox::new(store.clone(), metrics.clone(), telling::ways(&loaded.config));
        let access = Access::new(loaded.gate.clone(), config::read);
        let starting = booting::watch(&loaded.config.startup, &tasks);
        let sink = sink(&snapshot, &window, &nudge, loaded.config.site.labels.clone());
        let scoped = Arc::new(Mutex::new(Scoped::new(loaded, scheduled, sink, &metrics, &store, scoped_tasks)));
        let alerts = AlertTable::default();
        let wiring = remediate::Wiring {
            alerts: alerts.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
            probe_now: repairing::probe_now(&scoped),
            withheld: repairing::withheld(&scoped, &mutes, &snapshot, &alerts, &starting),
            verify_every: VERIFY_EVERY,
            tasks: tasks.clone(),
        };
        let runner = Runner::new(actions, wiring);
        let app = Arc::new(Self {
            source,
            metrics,
            store,
            snapshot,
            window,
            changes,
            alerts,
            nudge,
            mutes,
            wake: Arc::default(),
            outbox,
            runner,
            tools,
            scoped,
            reloading: tokio::sync::Mutex::new(()),
            tasks,
            starting,
            health: Mutex::default(),
            heard: Mutex::default(),
            web: Mutex::new(None),
            access,
            board: Mutex::default(),
            refused: Mutex::default(),
        });
        app.keep_changes();
        app.start_scoped().await;
        app.tasks.spawn("outbox", app.outbox.clone().run(app.tasks.token()));
        app.tasks.spawn("remediate", app.runner.clone().run());
        let housekeeping = app.clone();
        app.tasks.spawn_until_stopped("housekeeping", async move { housekeeping.keep_house().await });
        let seeing = app.clone();
        app.tasks.spawn_until_stopped("sight", async move { seeing.look_beyond().await });
        let config = app.loaded().config;
        match web::start(&config.web, app.pages(), app.access.clone(), app.metrics.clone(), &app.tasks).await {
            Ok(address) => *app.web.lock().unwrap_or_else(PoisonError::into_inner) = Some(address),
            Err(error) => {
                app.stop().await;
                return Err(error.into());
            }
        }
        app.start_control(&config).await;
        app.metrics.config_reload_time.set(tasks::wall_now().as_secs_f64());
        Ok(app)
    }

    /// Returns the address of the web.
    pub fn web_address(&self) -> Option<std::net::SocketAddr> {
        *self.web.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn board(&self) -> Board {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the configuration in force.
    pub fn loaded(&self) -> Loaded {
        self.scoped.lock().unwrap_or_else(PoisonError::into_inner).loaded.clone()
    }

    async fn start_scoped(&self) {
        let (loaded, scheduler, tasks) = {
            let scoped = self.scoped.lock().unwrap_or_else(PoisonError::into_inner);
            (scoped.loaded.clone(), scoped.scheduler.clone(), scoped.tasks.clone())
        };
        self.snapshot.announce(&scheduler.targets());
        let look_back = loaded.rules.iter().flat_map(|group| &group.rules).map(|rule| rule.expr.look_back()).max();
        self.window.set_limits(Limits::for_targets(scheduler.targets().len()));
        self.window.set_look_back(look_back.unwrap_or_default());
        let snapshot = self.snapshot.clone();
        let context = Context {
            window: self.window.clone(),
            alerts: self.alerts.clone(),
            store: self.store.clone(),
            metrics: self.metrics.clone(),
            site_labels: loaded.config.site.labels.clone(),
            external_url: loaded.config.site.external_url.as_deref().unwrap_or("").into(),
            ready: Arc::new(move || snapshot.all().iter().all(|latest| latest.result.is_some())),
        };
        let groups = group::restore(loaded.rules.clone(), &context, tasks::now()).await;
        let mut pulses = group::start(groups, &self.nudge, &tasks);
        changed::follow(&loaded.config.changes, &self.changes, &tasks);
        self.start_telling(&loaded, &scheduler, &tasks);
        pulses.extend(scheduler.start(&tasks));
        self.start_life(&loaded, pulses, &tasks);
    }

    async fn start_control(self: &Arc<Self>, config: &Config) {
        let path = control_socket(config);
        match web::control::start(&path, self.carries(), self.metrics.clone(), &self.tasks).await {
            Ok(()) => tracing::info!(socket = %path.display(), "control socket"),
            Err(error) => {
                tracing::warn!(socket = %path.display(), %error, "no control socket: silence, hold and reload from the command line do not work")
            }
        }
    }

    /// Returns what carries commands out, wherever they come from.
    fn carries(self: &Arc<Self>) -> web::control::Carry {
        let app = self.clone();
        Arc::new(move |command, peer| {
            let app = app.clone();
            Box::pin(async move { app.carry(command, peer).await })
        })
    }

    /// Loads the configuration anew: all or nothing.
    ///
    /// # Errors
    /// What is wrong with the new one; the old one stays in force.
    pub async fn reload(&self) -> Result<(), AppError> {
        let _alone = self.reloading.lock().await;
        let tasks = self.tasks.child();
        let made = load(&self.source).and_then(|loaded| Ok((plan_all(&loaded, &tasks, &self.changes, &self.tools)?, loaded)));
        let ((scheduled, actions), loaded) = match made {
            Ok(made) => made,
            Err(error) => {
                self.metrics.config_reload_ok.set(0);
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(view::Refused::of(&error));
                tracing::error!("{}; the old configuration stays in force", chain(&error));
                return Err(error);
            }
        };
        life::say_what_waits_for_a_restart(&self.loaded().config, &loaded.config);
        let old = self.scoped.lock().unwrap_or_else(PoisonError::into_inner).tasks.clone();
        old.stop(STOP_WITHIN).await;
        self.access.replace(loaded.gate.clone());
        let sink = sink(&self.snapshot, &self.window, &self.nudge, loaded.config.site.labels.clone());
        let fresh = Scoped::new(loaded, scheduled, sink, &self.metrics, &self.store, tasks);
        {
            let mut scoped = self.scoped.lock().unwrap_or_else(PoisonError::into_inner);
            let kept: HashSet<String> = fresh.scheduler.targets().iter().map(ToString::to_string).collect();
            for gone in scoped.scheduler.targets().iter().map(ToString::to_string).filter(|name| !kept.contains(name)) {
                self.window.forget_owner(&gone, tasks::now());
            }
            *scoped = fresh;
        }
        self.runner.set_actions(actions);
        self.start_scoped().await;
        self.metrics.config_reload_ok.set(1);
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.metrics.config_reload_time.set(tasks::wall_now().as_secs_f64());
        changed::own(&self.changes, Kind::Reloaded, "its configuration and rules");
        tracing::info!("the configuration was loaded anew");
        Ok(())
    }

    /// Puts Proctor's own metrics into the window and lets results that are too old leave it.
    async fn keep_house(&self) {
        let mut tick = tokio::time::interval(HOUSEKEEPING_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            self.end_silent_holds().await;
            let now = tasks::now();
            self.metrics.clock_offset.set((tasks::wall_now().0 - now.0) as f64 / 1000.0);
            self.metrics.window_series.set(i64::try_from(self.window.series_count()).unwrap_or(i64::MAX));
            self.own_into_window(now);
            for latest in self.snapshot.all() {
                if latest.is_old(now) {
                    self.window.forget_owner(&latest.target.to_string(), now);
                }
            }
        }
    }

    fn own_into_window(&self, now: Timestamp) {
        let labels = self.loaded().config.site.labels.clone();
        let up = (labels.with([(crate::model::labels::NAME, "up")]), 1.0);
        let own = view::own_samples(&self.metrics.encode(), &labels);
        self.window.accept("proctor", now, own.into_iter().chain([up]));
    }

    fn pages(self: &Arc<Self>) -> Pages {
        let (ready, status, reported) = (self.clone(), self.clone(), self.clone());
        Pages {
            snapshot: self.snapshot.clone(),
            ready: Arc::new(move || ready.ready()),
            status: Arc::new(move || status.status()),
            inbox: Arc::new(move |name| reported.inbox(name)),
            carry: self.carries(),
        }
    }

    /// Returns where the reports of a heartbeat come in, under the configuration in force.
    fn inbox(&self, name: &str) -> Option<Inbox> {
        self.scoped.lock().unwrap_or_else(PoisonError::into_inner).scheduler.inbox(name)
    }

    fn ready(&self) -> Result<(), String> {
        match self.snapshot.all().iter().filter(|latest| latest.result.is_none()).count() {
            0 => Ok(()),
            waiting => Err(format!("{waiting} targets have not answered yet")),
        }
    }

    /// Stops everything in the order of the flow, within [`STOP_WITHIN`]; returns the names of tasks that were stuck.
    pub async fn stop(&self) -> Vec<String> {
        let begin = tokio::time::Instant::now();
        let scoped = self.scoped.lock().unwrap_or_else(PoisonError::into_inner).tasks.clone();
        let mut stuck = scoped.stop(STOP_WITHIN / 4).await;
        let rest = STOP_WITHIN.saturating_sub(begin.elapsed() + CLOSE_WITHIN);
        stuck.extend(self.tasks.stop(rest).await);
        self.store.close();
        stuck
    }
}

/// Hands a result on: rendered for Prometheus, and as samples for the rules, with the site's labels. One that says
/// something else than the last one is judged at once, and so is one that was made because something changed.
fn sink(snapshot: &Snapshot, window: &Window, nudge: &Nudge, site: Labels) -> Sink {
    let (snapshot, window, nudge) = (snapshot.clone(), window.clone(), nudge.clone());
    // One text for all series.
    let [named, of_probe, of_target] = [crate::model::labels::NAME, "probe", "target"].map(Arc::<str>::from);
    Arc::new(move |result: ProbeResult, occasion: Occasion| {
        let changed = snapshot.accept(&result);
        let target = &result.target;
        let series = result.samples.iter().map(|sample| {
            let own = sample.labels.iter().map(|(name, value)| (Arc::from(*name), Arc::from(&**value)));
            let common = [(named.clone(), Arc::from(sample.family.name)), (of_probe.clone(), target.probe.clone())];
            let one = target.target.clone().map(|target| (of_target.clone(), target));
            (site.with(own.chain(common).chain(one)), sample.value)
        });
        window.accept(&target.to_string(), result.at, series);
        if changed || occasion == Occasion::Changed {
            nudge.all();
        }
    })
}
