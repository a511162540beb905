//! Asks Elasticsearch (5 to 8) or OpenSearch for a document out of the index, and how cluster and node are.
//!
//! Cluster health says nothing of what the site's users see: an index that is gone or empty, and one that takes no
//! writes since the disk filled up, are green. Six small GETs, one after the other, each over a connection of its own.
//! Names are those of elasticsearch_exporter; what it does not measure is `elasticsearch_index_*` and
//! `elasticsearch_search_duration_seconds`. The paths are those of Elasticsearch's REST reference, 5.6 and 7.17.

mod answer;
mod counts;
mod numbers;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::time::Instant;

use super::http::{self, failure_of};
use super::{Planned, Probe, Recorder, failure_at};
use crate::client::http::{Request, Seen, Url, exchange, secure};
use crate::client::net::{self, Trust};
use crate::client::secret;
use crate::model::decode::{self, Decode};
use crate::model::yaml::Node;
use crate::model::{Failure, Family, Problems, Reason, Sight, Target};
use crate::store::{Batch, Store};
use crate::tasks;

use answer::{Complaint, Found};
use counts::Counts;
use numbers::number;

/// The most bytes of one answer. The largest, that of a node, has about 4 KB; as a tree of values the worst answer of
/// this size takes sixteen times as much.
const MAX_ANSWER: usize = 128 * 1024;
/// How long Elasticsearch itself may look for its master, and each shard for a document.
const PATIENCE: &str = "2s";
/// The longest name of an index: Elasticsearch's own limit, in bytes.
const MAX_INDEX: usize = 255;
/// The longest word that is searched for, in characters.
const MAX_WORD: usize = 60;

static UP: Family = Family::gauge("elasticsearch_up", "Whether Elasticsearch answered and the index gives documents and takes new ones");
static FOUND: Family = Family::gauge("elasticsearch_index_found", "Whether the index exists");
static DOCUMENTS: Family = Family::gauge("elasticsearch_index_documents", "Documents in the index, as a search sees them");
static DAY_AGO: Family = Family::gauge("elasticsearch_index_documents_day_ago", "How many documents were in the index a day ago");
static WRITABLE: Family =
    Family::gauge("elasticsearch_index_writable", "Whether no block keeps the index, or the whole cluster, from taking writes");
static SEARCH: Family = Family::gauge("elasticsearch_search_duration_seconds", "How long it took to get a document out of the index");

crate::config_struct! {
    /// Asks Elasticsearch or OpenSearch: a document out of the index, blocks, health, the node's own numbers.
    pub struct ElasticsearchConfig {
        /// Where, such as `http://127.0.0.1:9200`.
        url: Url,
        /// The index, or an alias, that the site searches in; without it only cluster and node are asked.
        index: Option<IndexName>,
        /// The fewest documents that are right.
        min_documents: u64 = "1",
        /// A word that at least one document holds: it must be found. Default: any document.
        word: Option<Word>,
        /// Who asks; with `password_file`. Default: nobody in particular.
        username: Option<String>,
        /// File with the password; read in every run.
        password_file: Option<PathBuf>,
        /// File with an API key as Elasticsearch gives it (`encoded`), instead of user and password; read in every run.
        api_key_file: Option<PathBuf>,
        /// File with the certificates of the authorities that are trusted instead of the host's own, such as
        /// `/etc/elasticsearch/certs/http_ca.crt`.
        ca_file: Option<PathBuf>,
    }
}

/// The name of one index or alias: no pattern, no list, and nothing that means more in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexName(String);

impl Decode for IndexName {
    const EXPECTED: &'static str = "the name of one index, such as haystack";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let good = |text: &String| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '.')
                && !text.trim_matches('.').is_empty()
                && text.len() <= MAX_INDEX
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let name = String::decode(node, &mut Problems::default()).filter(good);
        if name.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        name.map(Self)
    }
}

/// One word, without anything that means something to a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word(String);

impl Decode for Word {
    const EXPECTED: &'static str = "one word of letters and digits";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let good = |text: &String| (1..=MAX_WORD).contains(&text.chars().count()) && text.chars().all(char::is_alphanumeric);
        let word = String::decode(node, &mut Problems::default()).filter(good);
        if word.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        word.map(Self)
    }
}

/// Builds the one target.
///
/// # Errors
/// A URL with a query, half a login, a file that cannot be read.
pub fn plan(config: &ElasticsearchConfig) -> Result<Vec<Planned>, String> {
    if config.url.path().contains('?') {
        return Err("url: expected one without a query, such as http://127.0.0.1:9200".to_owned());
    }
    match (&config.username, &config.password_file, &config.api_key_file) {
        (Some(_), None, _) => return Err("username is set, but no password_file".to_owned()),
        (None, Some(_), _) => return Err("password_file is set, but no username".to_owned()),
        (Some(_), Some(_), Some(_)) => return Err("expected either username and password_file or api_key_file, found both".to_owned()),
        _ => {}
    }
    for (key, path) in [("password_file", &config.password_file), ("api_key_file", &config.api_key_file)] {
        if let Some(path) = path {
            secret::read(path).map_err(|error| format!("{key}: {}", net::chain(&error)))?;
        }
    }
    let trust = http::trust(config.ca_file.as_ref())?;
    Ok(Planned::only(Elasticsearch { config: config.clone(), trust, counts: Mutex::default(), store: None }))
}

struct Elasticsearch {
    config: ElasticsearchConfig,
    trust: Trust,
    /// How many documents there were, hour by hour.
    counts: Mutex<Counts>,
    /// Where the counts are kept over a restart.
    store: Option<Store>,
}

impl Probe for Elasticsearch {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }

    fn remember(&mut self, target: &Target, store: &Store) {
        let Some(IndexName(index)) = &self.config.index else { return };
        self.counts = Mutex::new(Counts::of(store, &target.to_string(), index));
        self.store = Some(store.clone());
    }
}

/// What one run has found so far.
#[derive(Default)]
struct Run {
    /// What may not be seen.
    missing: Vec<&'static str>,
    /// What is said of the cluster in every message, where it is red.
    red: Option<String>,
}

impl Elasticsearch {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let mut run = Run::default();
        let outcome = self.ask_all(rec, &mut run).await;
        if !run.missing.is_empty() {
            let nothing = run.missing.contains(&DOCUMENT) && run.missing.contains(&HEALTH);
            let on_index = self.config.index.as_ref().map(|index| format!(" and read on the index {}", index.0));
            let missing = run.missing.join(", ");
            let remedy = format!("give its user a role with the cluster privilege monitor{}", on_index.unwrap_or_default());
            rec.sight(if nothing { Sight::Blind { missing, remedy } } else { Sight::Partial { missing, remedy } });
        }
        outcome
    }

    async fn ask_all(&self, rec: &mut Recorder, run: &mut Run) -> Result<(), Failure> {
        let url = &self.config.url;
        let root = self.get(rec, "/").await?.or_forbidden(run, "the version")?;
        if let Some(root) = &root {
            if root.pointer("/version/number").and_then(Value::as_str).is_none() {
                return Err(Failure::new(Reason::Protocol, format!("{url}: expected Elasticsearch, found another service that speaks JSON")));
            }
            numbers::record_version(rec, root);
        }
        let health = self.get(rec, &format!("/_cluster/health?timeout={PATIENCE}&master_timeout={PATIENCE}")).await?;
        let health = health.or_missing(run, HEALTH)?;
        if let Some(health) = &health {
            numbers::record_health(rec, health);
            run.red = red(health);
        }
        let stats = self.get(rec, &format!("/_nodes/_local/stats/{}?filter_path={}", numbers::METRICS, numbers::FILTER)).await?;
        let stats = stats.or_missing(run, "the numbers of the node")?;
        if let Some(stats) = &stats {
            numbers::record_node(rec, stats);
        }
        let judged = match &self.config.index {
            Some(index) => self.ask_index(rec, run, &index.0, stats.as_ref()).await,
            None => Ok(()),
        };
        let Some(red) = &run.red else { return judged };
        match judged {
            // All is red until it has started.
            Err(failure) if failure.reason == Reason::Starting => Err(failure),
            Ok(()) => Err(Failure::new(Reason::Unavailable, format!("{url}: {red}, although what was asked for was answered"))),
            Err(failure) => Err(Failure::new(failure.reason, format!("{}; {red}", failure.detail))),
        }
    }

    /// Asks whether the index is there, has documents, gives one, and takes new ones.
    async fn ask_index(&self, rec: &mut Recorder, run: &mut Run, index: &str, stats: Option<&Value>) -> Result<(), Failure> {
        let labels = [("index", index)];
        // In the state of the cluster, and not in the settings of the index: there are those of the whole cluster too,
        // and it needs no right on the index.
        let blocks = self.get(rec, &format!("/_cluster/state/blocks/{index}?master_timeout={PATIENCE}")).await?;
        let blocks = blocks.or_missing(run, "what blocks writes")?;
        let blocked = blocks.as_ref().and_then(|blocks| blocked(blocks, index, stats));
        // While it starts, all is blocked, which is no finding about the index.
        if blocks.is_some() && blocked.as_ref().is_none_or(|failure| failure.reason == Reason::Blocked) {
            rec.set_with(&WRITABLE, &labels, f64::from(u8::from(blocked.is_none())));
        }

        let count = self.get(rec, &format!("/{index}/_count")).await?;
        if let Found::Wrong(Complaint { reason: Reason::Missing, .. }) = &count {
            rec.set_with(&FOUND, &labels, 0.0);
        }
        let Some(count) = count.or_forbidden(run, DOCUMENT)? else { return blocked.map_or(Ok(()), Err) };
        let place = format!("{}: index {index}", self.config.url);
        let Some(documents) = number(&count["count"]) else {
            return Err(Failure::new(Reason::Protocol, format!("{place}: expected a count of its documents, found none in the answer")));
        };
        rec.set_with(&FOUND, &labels, 1.0);
        answer::whole(&place, &count)?;
        rec.set_with(&DOCUMENTS, &labels, documents);
        self.compare(rec, &labels, documents);

        let query = match &self.config.word {
            Some(Word(word)) => format!("&terminate_after=1&q=%22{}%22", encoded(word)),
            None => String::new(),
        };
        let begin = Instant::now();
        let hits = self.get(rec, &format!("/{index}/_search?size=1&_source=false&timeout={PATIENCE}{query}")).await?;
        let Some(hits) = hits.or_forbidden(run, DOCUMENT)? else { return blocked.map_or(Ok(()), Err) };
        answer::whole(&place, &hits)?;
        rec.set_with(&SEARCH, &labels, begin.elapsed().as_secs_f64());
        let none = match hits.pointer("/hits/hits").and_then(Value::as_array) {
            Some(list) => list.is_empty(),
            None => return Err(Failure::new(Reason::Protocol, format!("{place}: expected the hits of a search, found none in the answer"))),
        };
        let least = self.config.min_documents;
        if documents < least as f64 {
            let what = if documents == 0.0 { "no document".to_owned() } else { format!("{documents} documents") };
            return Err(Failure::new(Reason::Mismatch, format!("{place}: expected at least {least} in it, found {what}: searches find nothing, or not all. Is it being rebuilt? Else rebuild it (manage.py rebuild_index)")));
        }
        match &self.config.word {
            Some(Word(word)) if none => {
                Err(Failure::new(Reason::Mismatch, format!("{place}: expected a document with the word {word}, found none among {documents}")))
            }
            None if none && documents > 0.0 => {
                Err(Failure::new(Reason::Mismatch, format!("{place}: has {documents} documents, but a search for any of them finds none")))
            }
            _ => blocked.map_or(Ok(()), Err),
        }
    }

    /// Says how many documents there were a day ago, and notes how many there are now.
    fn compare(&self, rec: &mut Recorder, labels: &[(&'static str, &str)], documents: f64) {
        let Some(store) = &self.store else { return };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = tasks::now();
        if let Some(before) = counts.day_ago(now) {
            rec.set_with(&DAY_AGO, labels, before);
        }
        if counts.note(now, documents) {
            let mut batch = Batch::new();
            batch.put(&*counts);
            // It is in memory and on its way to the disk as soon as it was polled; a slow disk is not Elasticsearch's.
            let _in_memory = store.commit(batch).now_or_never();
        }
    }

    /// Asks for one path and reads what came.
    async fn get(&self, rec: &mut Recorder, path: &str) -> Result<Found, Failure> {
        let base = self.config.url.path().trim_end_matches('/');
        let whole = format!("{base}{path}");
        let url = self.config.url.with_path(&whole).map_err(|why| Failure::new(Reason::Internal, format!("{whole}: {why}")))?;
        let mut request = Request::get(url.clone());
        let read = |path| secret::read(path).map_err(|error| Failure::new(Reason::Auth, net::chain(&error)));
        if let (Some(user), Some(file)) = (&self.config.username, &self.config.password_file) {
            request = request.basic(user, &read(file)?);
        } else if let Some(file) = &self.config.api_key_file {
            request = request.header("authorization", format!("ApiKey {}", read(file)?.expose()));
        }
        let mut seen = Seen::default();
        let stream = rec.connect(&request.endpoint(), &mut seen.net).await?;
        let short = path.split('?').next().unwrap_or(path);
        rec.waiting(Reason::AnswerTimeout, format!("{}: {}, waiting for the answer to GET {short}", request.endpoint(), seen.net));
        let stream = secure(stream, &url, &self.trust, &mut seen).await.map_err(|error| failure_at(&self.config.url, &error))?;
        let place = format!("{}: GET {short}", self.config.url);
        let answer = exchange(stream, &request, MAX_ANSWER, &mut seen).await.map_err(|error| failure_of(&place, &error))?;
        let with_login = request.headers.iter().any(|(name, _)| name == "authorization");
        answer::read(place, &answer, with_login)
    }
}

/// What may not be seen.
const HEALTH: &str = "the health of the cluster";
const DOCUMENT: &str = "the documents of the index";

/// Says how red the cluster is; nothing where it is not.
fn red(health: &Value) -> Option<String> {
    (health["status"].as_str() == Some("red")).then(|| {
        let of = |key: &str| number(&health[key]).unwrap_or(0.0);
        format!(
            "the cluster is red: {} shards are not assigned, {} are being prepared, and at least one index is not whole (GET /_cluster/allocation/explain says why)",
            of("unassigned_shards"),
            of("initializing_shards")
        )
    })
}

/// Says what keeps writes out, of the whole cluster and of the index (its own name, or those behind an alias).
///
/// Each block is `{"description": …, "levels": ["write", …]}` under its number (`ClusterBlocks.toXContent`).
fn blocked(state: &Value, index: &str, stats: Option<&Value>) -> Option<Failure> {
    let blocks = &state["blocks"];
    let global = blocks["global"].as_object().into_iter().flatten().map(|(_, block)| ("the cluster".to_owned(), block));
    let own = blocks["indices"].as_object().into_iter().flatten().flat_map(|(name, own)| {
        own.as_object().into_iter().flatten().map(move |(_, block)| (format!("index {name}"), block))
    });
    let writes = |block: &Value| block["levels"].as_array().is_some_and(|levels| levels.iter().any(|level| level == "write"));
    let (what, block) = global.chain(own).find(|(_, block)| writes(block))?;
    let why = block["description"].as_str().unwrap_or("it does not say why");
    let flooded = why.contains("read-only-allow-delete") || why.contains("read-only / allow delete");
    let disk = stats.and_then(numbers::fullest).map(|disk| format!("; {disk}")).unwrap_or_default();
    let remedy = if flooded {
        format!("{disk}: make room; before 7.4, and where it stays, lift it by PUT /{index}/_settings {{\"index.blocks.read_only_allow_delete\": null}}")
    } else {
        ": somebody set it".to_owned()
    };
    Some(Failure::new(answer::of_block(why).0, format!("{what} takes no writes ({why}), so that searches do not see what is new{remedy}")))
}

/// Percent-encodes a text for a query, every byte of it.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_names_what_is_wrong_with_it() {
        for text in [
            "index: 'a,b'", "index: '*'", "index: _all", "index: '..'", "index: a/b", "index: 'a?b'", "index: -a", "index: ''",
            "word: 'a b'", "word: 'a\"'", "word: ''", "min_documents: -1",
        ] {
            let problems = from_text::<ElasticsearchConfig>("f", &format!("url: 'http://a:9200'\n{text}")).expect_err(text);
            assert!(problems[0].message.starts_with("expected "), "{text}: {}", problems[0]);
        }
        for (text, wrong) in [
            ("url: 'http://a:9200/?x'", "without a query"),
            ("url: 'http://a:9200'\nusername: u", "no password_file"),
            ("url: 'http://a:9200'\npassword_file: /p", "no username"),
            ("url: 'http://a:9200'\nusername: u\npassword_file: /p\napi_key_file: /k", "found both"),
            ("url: 'http://a:9200'\napi_key_file: /nowhere", "api_key_file: cannot read /nowhere"),
            ("url: 'http://a:9200'\nca_file: /dev/null", "no regular file"),
        ] {
            let config: ElasticsearchConfig = from_text("f", text).expect(text);
            let why = plan(&config).err().expect(text);
            assert!(why.contains(wrong), "{text}: {why}");
        }
        assert_eq!(encoded("Zoë1"), "%5A%6F%C3%AB%31");
    }

    #[test]
    fn a_block_is_found_wherever_it_stands_and_one_that_keeps_no_writes_out_is_none() {
        let block = |levels: &str| format!(r#"{{"5": {{"description": "why", "levels": [{levels}]}}}}"#);
        for (state, what) in [
            (format!(r#"{{"global": {}}}"#, block(r#""write", "metadata_write""#)), Some("the cluster takes no writes (why)")),
            (format!(r#"{{"indices": {{"hay-1": {}}}}}"#, block(r#""write""#)), Some("index hay-1 takes no writes (why)")),
            (format!(r#"{{"indices": {{"hay-1": {}}}}}"#, block(r#""read", "metadata_read""#)), None),
            ("{}".to_owned(), None),
            ("[]".to_owned(), None),
            (r#"{"global": 1, "indices": {"a": [], "b": {"1": {"levels": "write"}}}}"#.to_owned(), None),
        ] {
            let state = serde_json::from_str::<Value>(&format!(r#"{{"blocks": {state}}}"#)).expect("is JSON");
            let found = blocked(&state, "hay", None);
            assert_eq!(found.as_ref().map(|failure| failure.reason), what.map(|_| Reason::Blocked), "{state}");
            assert!(found.is_none_or(|failure| failure.detail.starts_with(what.unwrap_or_default())), "{state}");
        }
    }
}
