//! The documentation says what is so: its configuration loads, its links lead somewhere, its metrics and keys exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proctor::config::Config;
use proctor::model::decode::Documented;
use proctor::probe::{KEYS, KINDS};
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

#[test]
fn every_relative_link_in_the_documentation_leads_to_a_file() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("is a pattern");
    let (mut dead, mut followed) = (Vec::new(), 0);
    for (path, text) in pages() {
        for (_, _, prose) in parts(&text).into_iter().filter(|(_, language, _)| language.is_none()) {
            for target in link.captures_iter(&prose).filter_map(|found| found.get(1)) {
                let file = target.as_str().split('#').next().unwrap_or_default();
                if file.is_empty() || file.contains("://") {
                    continue;
                }
                followed += 1;
                if !path.parent().expect("has a folder").join(file).exists() {
                    dead.push(format!("{}: {}", path.display(), target.as_str()));
                }
            }
        }
    }
    assert!(dead.is_empty(), "these lead nowhere:\n{}", dead.join("\n"));
    assert!(followed > 10, "only {followed} links were found");
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
