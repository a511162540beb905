//! One docker engine, whoever of several probes asks it: its one event stream, and what that has told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::ledger::Ledger;
use crate::changes::Changes;
use crate::client::docker::{Docker, DockerError, Event, Service, explain};
use crate::model::{Reason, Timestamp};
use crate::tasks::{self, Tasks};

/// How far back the first stream looks, so that what was stopped just before a start or a reload is known as such.
const FIRST_LOOK_BACK: Duration = Duration::from_secs(600);

/// How far a stream that is taken up again looks back before the last event: others may have been overtaken by it.
const OVERTAKEN: Duration = Duration::from_secs(1);

/// How long after an attempt the next one comes: longer with each that fails at once, and where events are not allowed.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(15);
const AGAIN_FORBIDDEN: Duration = Duration::from_secs(60);

/// How long docker may take to begin to answer.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);

/// A stream is taken up anew after this time: what lies between may have dropped a connection without a word.
const STREAM_AT_MOST: Duration = Duration::from_secs(300);

/// How the event stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Nobody follows it (`proctor check`), or it is just being begun.
    Unasked,
    /// It stands.
    Stands,
    /// It does not, since then, for this reason.
    Broken {
        /// Since when.
        since: Timestamp,
        /// Why, for people.
        why: String,
        /// Whether it is not allowed, and the rest may be.
        forbidden: bool,
    },
}

/// A target that is woken by events.
struct Watch {
    /// Whether something about this service is news to it; it is always told of a stream that breaks.
    wants: Box<dyn Fn(&Service) -> bool + Send + Sync>,
    wake: Arc<Notify>,
}

/// One engine.
pub(crate) struct Engine {
    /// How it is asked.
    pub(super) docker: Docker,
    ledger: Mutex<Ledger>,
    watches: Mutex<Vec<Watch>>,
    stream: Mutex<Stream>,
    /// Something came that the task has to judge.
    stirred: Notify,
    followed: AtomicBool,
    tasks: Tasks,
    changes: Changes,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Connects to nothing: the stream begins with [`Engine::follow`].
    pub(crate) fn new(docker: Docker, tasks: Tasks, changes: Changes) -> Self {
        Self {
            docker,
            ledger: Mutex::default(),
            watches: Mutex::default(),
            stream: Mutex::new(Stream::Unasked),
            stirred: Notify::new(),
            followed: AtomicBool::new(false),
            tasks,
            changes,
        }
    }

    /// Returns what events have told.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Returns how the event stream stands.
    pub(super) fn stream(&self) -> Stream {
        lock(&self.stream).clone()
    }

    /// Wakes this target by events of the services that it wants.
    pub(super) fn watch(&self, wants: impl Fn(&Service) -> bool + Send + Sync + 'static) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        lock(&self.watches).push(Watch { wants: Box::new(wants), wake: wake.clone() });
        wake
    }

    /// Begins to follow the events, once.
    pub(super) fn follow(self: &Arc<Self>) {
        if !self.followed.swap(true, Ordering::Relaxed) {
            let engine = self.clone();
            self.tasks.spawn_until_stopped("docker events", async move { engine.keep_following().await });
        }
    }

    async fn keep_following(&self) {
        let mut again = AGAIN_FIRST;
        loop {
            let begin = Instant::now();
            let ended = self.follow_once().await;
            let forbidden = ended.as_ref().is_err_and(|error| error.reason() == Reason::Forbidden);
            match ended {
                Ok(()) => again = AGAIN_FIRST,
                Err(error) => {
                    let why = explain(&error);
                    tracing::debug!(why, "the event stream of docker has ended");
                    let was = std::mem::replace(&mut *lock(&self.stream), Stream::Unasked);
                    let since = match was {
                        Stream::Broken { since, .. } => since,
                        Stream::Unasked | Stream::Stands => tasks::now(),
                    };
                    *lock(&self.stream) = Stream::Broken { since, why, forbidden };
                    if was == Stream::Stands {
                        // Most likely the engine is going down: that is news to all.
                        self.wake_all();
                    }
                    again = if begin.elapsed() > AGAIN_MOST { AGAIN_FIRST } else { (again * 2).min(AGAIN_MOST) };
                }
            }
            let pause = if forbidden { AGAIN_FORBIDDEN } else { again };
            self.judge_for(pause).await;
        }
    }

    fn wake_all(&self) {
        for watch in &*lock(&self.watches) {
            watch.wake.notify_one();
        }
    }

    /// Follows the events until the stream ends, and judges meanwhile what has come.
    async fn follow_once(&self) -> Result<(), DockerError> {
        let api = tokio::time::timeout(BEGIN_WITHIN, self.docker.api()).await.unwrap_or_else(|_| self.too_slow())?;
        let since = self.ledger().last().map_or_else(|| tasks::wall_now() - FIRST_LOOK_BACK, |last| last - OVERTAKEN);
        let mut take = |event: Option<Event>| match event {
            None => {
                // After an absence all is asked at once, by what has been missed.
                if std::mem::replace(&mut *lock(&self.stream), Stream::Stands) != Stream::Stands {
                    self.wake_all();
                }
            }
            Some(event) => {
                self.ledger().take(event, tasks::now());
                self.stirred.notify_one();
            }
        };
        let begin = Instant::now();
        let mut followed = std::pin::pin!(api.follow(since, &mut take));
        loop {
            let stands = self.stream() == Stream::Stands;
            let limit = begin + if stands { STREAM_AT_MOST } else { BEGIN_WITHIN };
            tokio::select! {
                ended = &mut followed => return ended.and_then(|()| self.closed(begin)),
                () = self.judge_once() => {}
                () = tokio::time::sleep_until(limit) => return if stands { Ok(()) } else { self.too_slow() },
            }
        }
    }

    /// A proxy may close a stream that was silent for long; one that closes at once again and again is no stream.
    fn closed(&self, begin: Instant) -> Result<(), DockerError> {
        if begin.elapsed() > AGAIN_MOST {
            return Ok(());
        }
        Err(DockerError::Reply { what: "its events".to_owned(), why: "expected a stream that stands, but it was closed at once".to_owned() })
    }

    fn too_slow<T>(&self) -> Result<T, DockerError> {
        let at = self.docker.endpoint()?.clone();
        Err(DockerError::Timeout { at, what: "its events".to_owned(), limit: BEGIN_WITHIN })
    }

    /// Judges what is due, for a while.
    async fn judge_for(&self, pause: Duration) {
        let until = Instant::now() + pause;
        // A timeout is the ordinary end of it.
        while tokio::time::timeout_at(until, self.judge_once()).await.is_ok() {}
    }

    /// Waits until something is due, or something came, and judges it.
    async fn judge_once(&self) {
        let due = self.ledger().due();
        match due {
            None => self.stirred.notified().await,
            Some(due) => {
                // Something that comes meanwhile may be due earlier.
                let wait = tokio::time::sleep(due.since(tasks::now()));
                tokio::select! {
                    () = wait => {}
                    () = self.stirred.notified() => {}
                }
            }
        }
        let settled = self.ledger().settle(tasks::now());
        for change in settled.changes {
            self.changes.record(change);
        }
        for watch in &*lock(&self.watches) {
            if settled.stirred.iter().any(|service| (watch.wants)(service)) {
                watch.wake.notify_one();
            }
        }
    }
}
