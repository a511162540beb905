//! Holds the map in `src/lib.rs` against the tree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MAP: &str = include_str!("../../src/lib.rs");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the tree") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

/// Floors from the table of the map: room → floor.
fn floors() -> BTreeMap<String, u32> {
    let rows = MAP.lines().filter_map(|line| line.strip_prefix("//! | "));
    rows.filter_map(|row| {
        let (floor, rooms) = row.split_once(" | ")?;
        let floor: u32 = floor.parse().ok()?;
        Some(rooms.split('`').skip(1).step_by(2).map(move |room| (room.to_owned(), floor)).collect::<Vec<_>>())
    })
    .flatten()
    .collect()
}

/// The rooms that one file uses: `crate::room` wherever it stands, and grouped `use crate::{room, …}`.
fn rooms_used(text: &str) -> Vec<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + 7..];
        match rest.strip_prefix('{') {
            // Depth 0 of the group: `{model::{A, B}, client::net}`.
            Some(group) => {
                let mut depth = 0;
                let mut expected = true;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => expected = true,
                        c if expected && depth == 0 && c.is_ascii_alphabetic() => {
                            rooms.push(name(&group[at..]));
                            expected = false;
                        }
                        _ => {}
                    }
                }
            }
            None => rooms.push(name(rest)),
        }
    }
    rooms
}

#[test]
fn every_room_imports_only_from_floors_before_its_own() {
    let floors = floors();
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(root().join("src")).expect("below src");
        let room = relative.components().next().expect("a name").as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
        if room == "lib" || room == "main" {
            continue;
        }
        let floor = *floors.get(&room).unwrap_or_else(|| panic!("{room} has no floor in the map"));
        for used in rooms_used(&std::fs::read_to_string(&file).expect("a file of the tree")) {
            let below = floors.get(&used).is_none_or(|other| *other < floor);
            // Within the first floor, `model` comes first.
            let ground = floor == 1 && used == "model";
            if used != room && !below && !ground {
                wrong.push(format!("{}: {room} (floor {floor}) uses {used}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the flow:\n{}", wrong.join("\n"));
}

#[test]
fn the_map_names_what_is_there_and_all_of_it() {
    let named: Vec<&str> = MAP.lines().filter_map(|line| line.strip_prefix("//! | `")?.split_once("` |")).map(|(path, _)| path).collect();
    for path in &named {
        assert!(root().join(path).exists(), "the map names {path}, which is not there");
    }
    for entry in std::fs::read_dir(root().join("src")).expect("src") {
        let name = entry.expect("an entry").file_name().into_string().expect("a plain name");
        if name != "lib.rs" && name != "snapshots" {
            assert!(named.contains(&format!("src/{name}").as_str()), "src/{name} is not in the map");
        }
    }
}

#[test]
fn no_file_needs_a_map_of_its_own() {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let long: Vec<String> = files
        .iter()
        .map(|file| (file, std::fs::read_to_string(file).expect("a file of the tree").lines().count()))
        .filter(|(_, lines)| *lines > 700)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "these want to be two:\n{}", long.join("\n"));
}

#[test]
fn the_pure_rooms_read_no_clock_and_do_no_io() {
    let mut files = Vec::new();
    for room in ["promql", "mute"] {
        rust_files(&root().join("src").join(room), &mut files);
    }
    files.extend(
        ["rules/state.rs", "rules/template.rs", "notify/route.rs", "notify/dedup.rs", "remediate/guard.rs"]
            .map(|file| root().join("src").join(file)),
    );
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let code = text.split("#[cfg(test)]").next().expect("a first part");
        for word in ["tasks::now", "Instant::now", "SystemTime", "std::fs", "tokio::", "std::net", "async fn"] {
            assert!(!code.contains(word), "{} is pure and must not use {word}", file.display());
        }
    }
}

#[test]
fn everything_that_is_waited_for_or_counted_has_its_own_words() {
    // The names that the design rules out, as modules or public types.
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let words = ["monitor", "checker", "manager", "handler", "helper", "util", "processor"];
    for file in files {
        let name = file.file_stem().expect("a name").to_string_lossy().to_lowercase();
        assert!(!words.iter().any(|word| name.contains(word)), "{} has a name that says nothing", file.display());
    }
}

#[test]
fn every_parser_that_is_handed_out_has_a_fuzz_target_and_every_target_is_built_and_has_something_to_begin_with() {
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    rust_files(&root().join("src"), &mut sources);
    rust_files(&root().join("fuzz/targets"), &mut targets);
    let read = |path: &PathBuf| std::fs::read_to_string(path).expect("a file of the tree");
    let all: String = targets.iter().map(read).collect();
    for file in sources {
        let text = read(&file);
        let Some((_, own)) = text.split_once("impl crate::fuzzing::Parsers {") else { continue };
        let own = own.split("\n}").next().expect("its end");
        for name in own.split("pub fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
            assert!(all.contains(&format!("Parsers::{name}(")), "{}: {name} is called by no target in fuzz/targets", file.display());
        }
    }
    let manifest = read(&root().join("fuzz/Cargo.toml"));
    for target in targets {
        let name = target.file_stem().expect("a name").to_string_lossy();
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
        // These begin with files that are no copies: fuzz/run.
        let begins = matches!(&*name, "config" | "rules") || root().join("fuzz/seeds").join(&*name).is_dir();
        assert!(begins, "fuzz/seeds/{name} is missing");
    }
}
