//! Texts that nobody meant: every parser of ours gives a value or a mistake with its place, in time, and never panics.
//!
//! A few hundred cases in `make test`; `make test-slow` sets `PROPTEST_CASES`. The parsers of bytes from the network have
//! theirs beside them (SMTP, memcached, sock_diag, the tunnel's dialects), PromQL's are in `promql.rs`.

use std::path::Path;
use std::time::{Duration, Instant};

use proctor::config::Config;
use proctor::model::labels::Matcher;
use proctor::model::{Labels, Problem, Problems};
use proctor::rules::load;
use proctor::rules::template::{Facts, Template};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../../deploy/proctor.example.yml");
const RULES: &str = include_str!("../../alerts/probes.yml");

/// Long for a debug build on a busy machine; what dwells would take minutes.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Words of YAML and of our files in any order.
fn yaml() -> impl Strategy<Value = String> {
    let words = vec![
        "probes",
        "actions",
        "notify",
        "smtp",
        "a",
        "tcp",
        "http",
        "address",
        "url",
        "\"127.0.0.1:1\"",
        "interval",
        "15s",
        "-1",
        "1e999",
        "null",
        "~",
        "true",
        "groups",
        "rules",
        "alert",
        "expr",
        "for",
        "labels",
        "annotations",
        "up == 0",
        ": ",
        ":",
        "{",
        "}",
        "[",
        "]",
        ",",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        "&a ",
        "*a",
        "<<: ",
        "|\n",
        ">-\n",
        "\"",
        "'",
        "\\u0000",
        "\\xff",
        "#",
        "!!str ",
        "!x ",
        "? ",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "\r",
        "é😀",
        "{{",
        "}}",
        "$labels.x",
    ];
    prop::collection::vec(prop_oneof![9 => prop::sample::select(words).prop_map(str::to_owned), 1 => any::<String>()], 0..60)
        .prop_map(|words| words.concat())
}

/// A file that is right, with something cut out, put in or said twice.
fn damaged(file: &'static str) -> impl Strategy<Value = String> {
    let chars = file.chars().count();
    prop::collection::vec((0..chars, 0..80usize, yaml(), 0..3u8), 1..4).prop_map(move |changes| {
        let mut text: Vec<char> = file.chars().collect();
        for (at, length, other, how) in changes {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            match how {
                0 => drop(text.drain(at..end)),
                1 => drop(text.splice(at..end, other.chars())),
                _ => drop(text.splice(at..at, text[at..end].to_vec())),
            }
        }
        text.into_iter().collect()
    })
}

fn placed(text: &str, problems: &[Problem]) -> Result<(), TestCaseError> {
    // YAML knows more line ends than `lines` does.
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1;
    for problem in problems {
        prop_assert!((1..=lines).contains(&problem.at.line) && problem.at.col >= 1, "{problem}");
        prop_assert!(!problem.message.is_empty());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_configuration_is_taken_or_its_mistakes_have_a_place(text in prop_oneof![yaml(), damaged(EXAMPLE)]) {
        let begin = Instant::now();
        if let Err(problems) = Config::from_text(Path::new("proctor.yml"), &text) {
            prop_assert!(!problems.is_empty());
            placed(&text, &problems)?;
        }
        prop_assert!(begin.elapsed() < AT_ONCE);
    }

    #[test]
    fn a_rule_file_is_taken_or_its_mistakes_have_a_place(text in prop_oneof![yaml(), damaged(RULES)]) {
        let begin = Instant::now();
        let mut problems = Problems::new("rules.yml");
        load::from_text(Path::new("rules.yml"), &text, Duration::from_secs(15), &mut problems);
        placed(&text, &problems.into_sorted())?;
        prop_assert!(begin.elapsed() < AT_ONCE);
    }

    #[test]
    fn a_template_is_expanded_or_refused(
        pieces in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "{{", "}}", "{{-", "-}}", " ", "$labels", ".Labels", ".a", "$value", "|", "humanize", "humanize1024", "humanizeDuration",
                "humanizePercentage", "humanizeTimestamp", "printf", "\"%", ".2f", "v", "q", "s", "*d", "[1]", "\"", "`", "(", ")", "/*", "*/",
                "title", "toUpper", "1e308", "-9223372036854775808", "'x'", "\\", "\n",
            ]).prop_map(str::to_owned),
            any::<String>(),
        ], 0..25),
        value in any::<f64>(),
        label in any::<String>(),
    ) {
        let labels = Labels::new([("a", label)]);
        let facts = Facts { labels: &labels, value, external_labels: &labels, external_url: "http://p" };
        for text in [pieces.concat(), format!("{{{{ {} }}}}", pieces.join(" "))] {
            match Template::parse(&text) {
                Ok(template) => drop(template.expand(&facts)),
                Err(error) => prop_assert!(!error.message.is_empty()),
            }
        }
    }

    #[test]
    fn a_matcher_that_is_read_is_printed_so_that_it_reads_the_same(
        name in "[a-z_]{0,3}", op in prop::sample::select(vec!["=", "!=", "=~", "!~", "==", ""]),
        value in prop_oneof![any::<String>(), "\"[ -~]{0,12}\"", "[a-z.*|()\\[\\]+?{}^$\\\\]{0,12}"],
    ) {
        if let Ok(matcher) = Matcher::parse(&format!("{name}{op}{value}")) {
            let printed = matcher.to_string();
            prop_assert!(Matcher::parse(&printed).as_ref() == Ok(&matcher), "{printed}");
            matcher.matches_value(&value);
        }
    }
}
