//! The documentation says what is so: its configuration loads, its links lead somewhere, its metrics and keys exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proctor::config::Config;
use proctor::model::decode::{Documented, from_text};
use proctor::probe::{KEYS, KINDS};
use proctor::web::access::AccessConfig;
use regex::Regex;

/// What a YAML block of somebody else's begins with: Prometheus, its rules and their tests, docker compose.
const OTHERS: [&str; 4] = ["scrape_configs", "groups", "services", "rule_files"];

/// The probes that a block without any takes for granted.
const ASSUMED: &str = "
probes:
  cache: {memcached: {address: '127.0.0.1:11211'}}
  app: {gunicorn: {listen: '127.0.0.1:8000', host_header: coursys.example.org}}
  csrpt: {tunnel: {address: '127.0.0.1:50000', speaks: db2}}
";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Holds what stands in a page from a mark on against its source; `make docs` writes it there. Returns the page.
pub(crate) fn holds(page: &str, mark: &str, written: &str) -> String {
    let path = root().join(page);
    let text = fs::read_to_string(&path).expect("it is there");
    let (by_hand, _) = text.split_once(mark).unwrap_or_else(|| panic!("{mark} is missing in {page}"));
    let wanted = by_hand.to_owned() + written;
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).expect("is written");
    } else {
        assert!(text == wanted, "{page} is not what its source says: run `make docs`");
    }
    wanted
}

/// Returns every file below a folder with this ending.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.expect("can be read").path()) {
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The README and all pages, with their texts.
fn pages() -> Vec<(PathBuf, String)> {
    let paths = files(&root().join("docs"), "md").into_iter().chain([root().join("README.md")]);
    paths.map(|path| (path.clone(), fs::read_to_string(&path).expect("is text"))).collect()
}

/// Returns the blocks of a page with the line on which each begins and its language; `None` stands for what is no block.
fn parts(page: &str) -> Vec<(usize, Option<&str>, String)> {
    let mut parts = vec![(1, None, String::new())];
    for (index, line) in page.lines().enumerate() {
        let inside = parts.last().is_some_and(|(_, language, _)| language.is_some());
        match line.strip_prefix("```") {
            Some(_) if inside => parts.push((index + 2, None, String::new())),
            Some(language) => parts.push((index + 2, Some(language.trim()), String::new())),
            None => parts.last_mut().expect("has a first").2 += &format!("{line}\n"),
        }
    }
    parts
}

/// What replaces what, each of which must be there.
pub(crate) fn adapted(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}:\n{text}");
        text.replace(from, to)
    })
}

/// Returns a block of a page below `docs` by its language and its number among those, from 0, adapted.
pub(crate) fn block(page: &str, language: &str, number: usize, changes: &[(&str, &str)]) -> String {
    let text = fs::read_to_string(root().join("docs").join(page)).expect("it is there");
    let found = parts(&text).into_iter().filter(|(_, of, _)| *of == Some(language)).nth(number);
    adapted(&found.unwrap_or_else(|| panic!("{page} has no block {number} of {language}")).2, changes)
}

/// How many blocks each page has of each language that is not loaded by a test over all pages.
pub(crate) fn blocks() -> BTreeMap<(String, String), usize> {
    let mut found = BTreeMap::new();
    for (path, text) in pages() {
        let page = path.strip_prefix(root()).expect("is below").display().to_string();
        for (_, language, _) in parts(&text) {
            if let Some(language) = language.filter(|language| !["yaml", "promql"].contains(language)) {
                *found.entry((page.clone(), language.to_owned())).or_default() += 1;
            }
        }
    }
    found
}

#[test]
fn every_configuration_in_the_documentation_loads() {
    let ours: BTreeSet<&str> = Config::KEYS.iter().map(|key| key.name).collect();
    let key = Regex::new(r"(?m)^([a-z_]+):").expect("is a pattern");
    let (mut wrong, mut loaded) = (Vec::new(), 0);
    for (path, text) in pages() {
        for (line, _, block) in parts(&text).into_iter().filter(|(_, language, _)| *language == Some("yaml")) {
            let place = format!("{}:{line}", path.display());
            let keys: Vec<&str> = key.captures_iter(&block).filter_map(|found| found.get(1)).map(|name| name.as_str()).collect();
            if keys.iter().any(|key| OTHERS.contains(key)) {
                continue;
            }
            if keys.iter().any(|key| AccessConfig::KEYS.iter().any(|known| known.name == *key)) {
                loaded += 1;
                let problems = from_text::<AccessConfig>(&path, &block).err().into_iter().flatten();
                wrong.extend(problems.map(|problem| format!("{place}: {problem}")));
                continue;
            }
            if !keys.iter().any(|key| ours.contains(key)) {
                wrong.push(format!("{place}: expected a key of the configuration at the left margin, found {keys:?}"));
                continue;
            }
            let whole = if keys.contains(&"probes") { block } else { block + ASSUMED };
            // The broker has a page of its own.
            let lacks = whole.contains("via: rabbitmq") && !whole.contains("  rabbitmq:");
            let whole = if lacks { whole.replace("probes:\n", "probes:\n  rabbitmq: {rabbitmq: {}}\n") } else { whole };
            loaded += 1;
            if let Err(problems) = Config::from_text(&path, &whole) {
                wrong.extend(problems.iter().map(|problem| format!("{place}: {problem}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(loaded > 10, "only {loaded} blocks were found");
}

/// Splits a line as a shell does, up to what ends or redirects the command; only quotes are understood.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('>' | '|' | '&' | ';', None) => break,
            ('#', None) if word.is_none() => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn every_command_of_ours_in_the_documentation_is_one_that_there_is() {
    use clap::Parser;
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion, MissingRequiredArgument, MissingSubcommand,
    };
    let (mut wrong, mut parsed) = (Vec::new(), 0);
    let code = Regex::new(r"`((?:sudo )?proctor [^`]+)`").expect("is a pattern");
    let shell = Regex::new(r"sh -c '(?:[^']*; )?(proctor [^']+)'").expect("is a pattern");
    for (path, text) in pages() {
        for (line, language, block) in parts(&text) {
            // In sentences what is in backticks may be the beginning of a command, or leave something out.
            let prose = language.is_none();
            if !prose && !matches!(language, Some("sh" | "text" | "make")) {
                continue;
            }
            let quoted = || code.captures_iter(&block).map(|found| found[1].to_owned()).filter(|command| !command.contains('…'));
            let block = if prose { quoted().collect::<Vec<_>>().join("\n") } else { block.replace("\\\n", " ") };
            for command in block.lines() {
                // What a shell of that line runs.
                let inner = shell.captures(command).map(|found| found[1].to_owned());
                let words = words(inner.as_deref().unwrap_or(command));
                let Some(at) = words.iter().position(|word| word == "proctor" || word.ends_with("/proctor")) else { continue };
                // A command, and not the name of a user, a package or a unit.
                let begins = at == 0 || ["sudo", "&&", "*"].contains(&words[at - 1].as_str());
                let partly =
                    |kind| prose && matches!(kind, MissingRequiredArgument | MissingSubcommand | DisplayHelpOnMissingArgumentOrSubcommand);
                if !begins || (language == Some("text") && words.get(at + 1).is_none_or(|word| word != "run")) {
                    continue;
                }
                parsed += 1;
                if let Err(error) = proctor::cli::Cli::try_parse_from(&words[at..])
                    && !matches!(error.kind(), DisplayHelp | DisplayVersion)
                    && !partly(error.kind())
                {
                    wrong.push(format!("{}:{line}: {command}: {error}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(parsed > 100, "only {parsed} commands were found");
}

#[test]
fn what_the_documentation_gives_to_a_shell_or_to_prometheus_is_right_there() {
    use std::process::Command;
    let promtool = crate::support::process::program("promtool");
    let folder = tempfile::tempdir().expect("a folder");
    let (mut wrong, mut shells, mut scraping) = (Vec::new(), 0, 0);
    for (path, text) in pages() {
        for (line, language, block) in parts(&text) {
            let file = folder.path().join("block");
            fs::write(&file, &block).expect("it can be written");
            let mut command = match (language, &promtool) {
                (Some("sh"), _) => {
                    shells += 1;
                    let mut command = Command::new("sh");
                    command.arg("-n");
                    command
                }
                (Some("yaml"), Some(promtool)) if block.contains("scrape_configs:") => {
                    scraping += 1;
                    let mut command = Command::new(promtool);
                    command.args(["check", "config", "--syntax-only"]);
                    command
                }
                _ => continue,
            };
            let output = command.arg(&file).output().expect("it runs");
            if !output.status.success() {
                wrong.push(format!(
                    "{}:{line}: {}{}",
                    path.display(),
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(shells > 15 && (promtool.is_none() || scraping >= 3), "only {shells} and {scraping} were found");
}

/// The place that a heading leads to, as GitHub and most others make it.
#[test]
fn with_the_logging_of_the_documentation_django_mails_what_visitors_meet_and_not_what_only_proctor_saw() {
    let Some(venv) = super::support::gunicorn::venv() else { return };
    let page = fs::read_to_string(root().join("docs/probes/http.md")).expect("is text");
    let (_, _, settings) = parts(&page).into_iter().find(|(_, language, _)| *language == Some("python")).expect("the page has it");
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("shown.py"), settings).expect("it can be written");
    let site = "
import sys, django
from shown import LOGGING
from django.conf import settings
settings.configure(DEBUG=False, ALLOWED_HOSTS=['*'], ADMINS=[('Ann', 'ann@example.org')], ROOT_URLCONF='__main__', SECRET_KEY='x',
                   EMAIL_BACKEND='django.core.mail.backends.locmem.EmailBackend', LOGGING=LOGGING)
django.setup()
from django.core import mail
from django.test import Client
from django.urls import path
urlpatterns = [path('', lambda request: 1 / 0)]
mail.outbox = []
for agent in sys.argv[1:]:
    Client(raise_request_exception=False).get('/', headers={'user-agent': agent})
    print(agent, len(mail.outbox))
";
    let agent = concat!("Proctor/", env!("CARGO_PKG_VERSION"));
    let output = std::process::Command::new(venv.join("bin/python"))
        .args(["-c", site, agent, "Mozilla/5.0", agent])
        .env("PYTHONPATH", folder.path())
        .output()
        .expect("python runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, format!("{agent} 0\nMozilla/5.0 1\n{agent} 1\n"), "{}", String::from_utf8_lossy(&output.stderr));
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>();
    kept.replace(' ', "-")
}

#[test]
fn every_relative_link_in_the_documentation_leads_to_a_file_and_to_a_heading_of_it() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("is a pattern");
    let (mut dead, mut followed) = (Vec::new(), 0);
    for (path, text) in pages() {
        for (_, _, prose) in parts(&text).into_iter().filter(|(_, language, _)| language.is_none()) {
            for target in link.captures_iter(&prose).filter_map(|found| found.get(1)) {
                let (file, place) = target.as_str().split_once('#').unwrap_or((target.as_str(), ""));
                if file.contains("://") {
                    continue;
                }
                followed += 1;
                let leads = if file.is_empty() { path.clone() } else { path.parent().expect("has a folder").join(file) };
                let text = fs::read_to_string(&leads).unwrap_or_default();
                let headings = || text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
                if !leads.exists() || (!place.is_empty() && !headings().any(|heading| anchor(heading) == place)) {
                    dead.push(format!("{}: {}", path.display(), target.as_str()));
                }
            }
        }
    }
    assert!(dead.is_empty(), "these lead nowhere:\n{}", dead.join("\n"));
    assert!(followed > 10, "only {followed} links were found");
}

#[test]
fn the_index_of_the_documentation_names_every_page() {
    let index = fs::read_to_string(root().join("docs/README.md")).expect("it is there");
    let docs = root().join("docs");
    let named = |path: &PathBuf| path.strip_prefix(&docs).expect("is below").display().to_string();
    let all = files(&docs, "md").iter().map(named).filter(|page| page != "README.md").collect::<Vec<_>>();
    let missing: Vec<&String> = all.iter().filter(|page| !index.contains(&format!("({page})"))).collect();
    assert!(missing.is_empty(), "docs/README.md does not lead to {missing:?}");
}

/// The pages of the probes, by kind.
fn of_probes() -> Vec<(String, String)> {
    let page =
        |path: PathBuf| (path.file_stem().expect("has a name").to_string_lossy().into_owned(), fs::read_to_string(path).expect("is text"));
    files(&root().join("docs/probes"), "md").into_iter().map(page).collect()
}

/// Returns what stands in the first cells of a page's tables between backticks.
fn first_cells(text: &str) -> Vec<String> {
    let name = Regex::new(r"`([a-z][a-z0-9_]+\*?)").expect("is a pattern");
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")).filter_map(|row| row.split(" | ").next());
    cells.flat_map(|cell| name.captures_iter(cell).map(|found| found[1].to_owned()).collect::<Vec<_>>()).collect()
}

#[test]
fn every_metric_in_the_tables_of_a_probe_is_exported() {
    let source: String = files(&root().join("src"), "rs").iter().map(|path| fs::read_to_string(path).expect("is text")).collect();
    for (kind, page) in of_probes() {
        let (_, rest) = page.split_once("\n## What it exports\n").unwrap_or_else(|| panic!("{kind}: says what it exports"));
        let names = first_cells(rest.split("\n## ").next().unwrap_or_default());
        assert!(!names.is_empty(), "{kind}: a table of metrics");
        for name in names {
            let quoted = name.strip_suffix('*').map_or_else(|| format!("\"{name}\""), |prefix| format!("\"{prefix}"));
            assert!(source.contains(&quoted), "{kind}: {name} is exported by nothing in src");
        }
    }
}

#[test]
fn the_page_of_a_probe_names_its_metrics_and_keys() {
    let family = Regex::new(r#"Family::(?:gauge|counter|borrowed_counter)\(\s*"([a-z0-9_]+)""#).expect("is a pattern");
    let token = Regex::new(r"`([a-z][a-z0-9_]*_[a-z0-9_{},*]*)`").expect("is a pattern");
    let labels = Regex::new(r"\{[a-z_,]+\}$").expect("is a pattern");
    for (kind, page) in of_probes() {
        let index = KINDS.iter().position(|known| *known == kind).unwrap_or_else(|| panic!("{kind} is no kind of probe"));
        let named = first_cells(&page);
        for key in KEYS[index] {
            assert!(named.iter().any(|name| name == key.name), "{kind}: the key {} is missing", key.name);
        }
        // `name`, `name{label}`, `name_{one,other}_total`, `name_*`
        let pattern = |token: &str| {
            let token = token.replace('*', "[a-z0-9_]*").replace('{', "(").replace('}', ")").replace(',', "|");
            Regex::new(&format!("^{token}$")).unwrap_or_else(|error| panic!("{kind}: {error}"))
        };
        let tokens = token.captures_iter(&page).flat_map(|found| [found[1].to_owned(), labels.replace(&found[1], "").into_owned()]);
        let metrics: Vec<Regex> = tokens.map(|token| pattern(&token)).collect();
        let probe = root().join("src/probe");
        let file = probe.join(format!("{kind}.rs"));
        let sources = if file.exists() { vec![file] } else { files(&probe.join(&kind), "rs") };
        for path in sources {
            let source = fs::read_to_string(&path).expect("is text");
            for metric in family.captures_iter(&source).map(|found| found[1].to_owned()) {
                assert!(metrics.iter().any(|token| token.is_match(&metric)), "{kind}: the metric {metric} is missing");
            }
        }
    }
}

/// What stands above it in docs/configuration.md is written by hand.
const MARK: &str = "<!-- From here on written by `make docs` from the documentation of the configuration's structs: change those. -->\n";

/// The tables of every section.
fn reference() -> String {
    use std::fmt::Write;
    let cell = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let mut page = MARK.to_owned();
    for (section, keys) in proctor::config::sections() {
        let title = if section.is_empty() { "The file" } else { &section };
        write!(page, "\n## {title}\n\n| key | default | takes | |\n|---|---|---|---|\n").expect("fits");
        for key in keys {
            let default = match key.default {
                Some("{}" | "[]") => "none".to_owned(),
                Some(default) => format!("`{}`", cell(default)),
                None => String::new(),
            };
            writeln!(page, "| `{}` | {default} | {} | {} |", key.name, cell(key.expected), cell(key.doc)).expect("fits");
        }
        if let Some(kind) = section.strip_prefix("probes.NAME.").filter(|kind| KINDS.contains(kind)) {
            write!(page, "\nMore: [{kind}](probes/{kind}.md).\n").expect("fits");
        }
    }
    page
}

#[test]
fn the_reference_of_the_configuration_is_what_its_structs_say() {
    holds("docs/configuration.md", MARK, &reference());
}

/// Returns the code of a kind of probe, without its tests.
fn code_of(kind: &str) -> String {
    let (file, folder) = (root().join(format!("src/probe/{kind}.rs")), root().join(format!("src/probe/{kind}")));
    let sources = if folder.is_dir() { files(&folder, "rs") } else { vec![file] };
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    sources.iter().map(read).map(|text| text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()).collect()
}

/// Says whether a page names a metric: as it is, as `a_{b,c}_d`, or by how it begins, `a_*`.
fn names(page: &str, metric: &str) -> bool {
    let braces = Regex::new(r"([a-z0-9_]+_)\{([a-z_,]+)\}([a-z_]*)").expect("is one");
    let all = Regex::new(r"`([a-z0-9_]+)\*`").expect("is one");
    page.contains(metric)
        || all.captures_iter(page).any(|found| metric.starts_with(&found[1]))
        || braces.captures_iter(page).any(|found| found[2].split(',').any(|one| format!("{}{one}{}", &found[1], &found[3]) == metric))
}

#[test]
fn each_metric_that_a_probe_exports_and_each_reason_that_it_gives_stands_on_its_page() {
    let metric = Regex::new(r#"Family::(?:gauge|counter)\(\s*"([a-z0-9_]+)""#).expect("is one");
    let histogram = Regex::new(r#""([a-z0-9_]+)_bucket""#).expect("is one");
    let reason = Regex::new(r"(?:Failure::new|waiting)\(\s*Reason::(\w+)").expect("is one");
    let (mut missing, mut seen) = (Vec::new(), 0);
    for kind in KINDS {
        let (code, page) =
            (code_of(kind), fs::read_to_string(root().join(format!("docs/probes/{kind}.md"))).expect("each kind has its page"));
        let exported: BTreeSet<&str> = metric
            .captures_iter(&code)
            .chain(histogram.captures_iter(&code))
            .map(|found| found.get(1).expect("is there").as_str())
            .collect();
        seen += exported.len();
        missing.extend(exported.iter().filter(|name| !names(&page, name)).map(|name| format!("{kind}: the metric {name}")));
        // A defect of Proctor itself is on no page.
        for found in reason.captures_iter(&code).filter(|found| &found[1] != "Internal") {
            let reason = proctor::model::Reason::ALL.iter().find(|reason| format!("{reason:?}") == found[1]).expect("is one");
            if !page.contains(&format!("`{reason}`")) {
                missing.push(format!("{kind}: the reason {reason}"));
            }
        }
    }
    assert!(seen > 300, "{seen} metrics are found in the code");
    missing.sort();
    missing.dedup();
    assert!(missing.is_empty(), "write them into docs/probes:\n{}", missing.join("\n"));
}
