//! Runs a program and judges by how it ends: any script, or a plugin of Nagios with its performance data.
//!
//! The forms are those of <https://nagios-plugins.org/doc/guidelines.html>: a first line of text, `|`, then
//! `'label'=value[unit];[warn];[crit];[min];[max]`, separated by spaces; exit codes 0 to 3.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Planned, Probe, Recorder};
use crate::client::program::{self, Argv, Ending, Program};
use crate::model::duration::print_measured;
use crate::model::{Failure, Family, Labels, Reason, one_line};

static UP: Family = Family::gauge("command_up", "Whether the program ended with code 0");
static CODE: Family = Family::gauge("command_exit_code", "With what the program ended");
static STATE: Family = Family::gauge("command_state", "What the program said: 0 well, 1 warning, 2 critical, 3 that it cannot say");
static PERFDATA: Family = Family::gauge("command_perfdata", "A number of the program's performance data, in the base unit that the label says");

/// The most numbers of one run, and the longest name of one, in characters.
const MAX_NUMBERS: usize = 50;
const MAX_LABEL: usize = 80;
/// The most variables, and the most bytes of arguments.
const MAX_ENVIRONMENT: usize = 20;
/// More than any limit of a run: the scheduler ends it, and with it the program.
const NEVER: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

crate::config_struct! {
    /// Runs a program as Proctor's user, with `/` as its folder; 0 is well. At the probe's `timeout` it is killed with all
    /// its children.
    pub struct CommandConfig {
        /// The absolute path of the program and its arguments; no shell reads them.
        argv: Argv,
        /// Whether it is a plugin of Nagios: 1 is a warning, 3 is that it cannot say, and what follows `|` are numbers.
        nagios: bool = "false",
        /// Its environment besides `PATH` and `LANG`; no secrets.
        environment: Labels = "{}",
    }
}

/// Builds the one target.
///
/// # Errors
/// Too many variables.
pub fn plan(config: &CommandConfig) -> Result<Vec<Planned>, String> {
    let found = config.environment.iter().count();
    if found > MAX_ENVIRONMENT {
        return Err(format!("environment: expected at most {MAX_ENVIRONMENT} variables, found {found}"));
    }
    Ok(Planned::only(Command(config.clone())))
}

struct Command(CommandConfig);

impl Probe for Command {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

impl Command {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let CommandConfig { argv, nagios, environment } = &self.0;
        let path = &argv.0[0];
        rec.waiting(Reason::AnswerTimeout, format!("waiting for {path} to end; it was killed with all its children"));
        let environment = environment.iter().map(|(name, value)| (name, value.to_owned())).collect();
        let ran = program::run(&Program { argv, environment, timeout: NEVER, leaves: false, folder: None, user: None }).await;
        let took = print_measured(ran.took);
        let status = match ran.ending {
            Ending::Ended(status) => status,
            Ending::NotStarted(why) => return Err(Failure::new(Reason::Missing, why)),
            Ending::Killed | Ending::Hangs => return Err(Failure::new(Reason::AnswerTimeout, format!("{path} did not end"))),
        };
        let code = status.code();
        let state = match (code, nagios) {
            (Some(0), _) => 0,
            (Some(1), true) => 1,
            (Some(3), true) => 3,
            _ => 2,
        };
        if let Some(code) = code {
            rec.set(&CODE, f64::from(code));
        }
        rec.set(&STATE, f64::from(state));
        let text = if *nagios {
            let (text, numbers) = read(&ran.output);
            for number in numbers {
                rec.set_with(&PERFDATA, &[("label", &number.label), ("unit", number.unit)], number.value);
            }
            format!(": {text}")
        } else {
            ran.last_line()
        };
        if state == 0 {
            return Ok(());
        }
        rec.evidence_text(end_of(&ran.output));
        let ended = program::status_text(status);
        Err(match state {
            1 => Failure::new(Reason::Mismatch, format!("{path} warns{text}")),
            3 => Failure::new(Reason::Unavailable, format!("{path} cannot say{text}")),
            _ => Failure::new(Reason::Mismatch, format!("{path} ended with {ended} after {took}, expected status 0{text}")),
        })
    }
}

/// Returns the last 10 KiB of a text.
fn end_of(text: &str) -> &str {
    let mut begin = text.len().saturating_sub(10 * 1024);
    while !text.is_char_boundary(begin) {
        begin += 1;
    }
    &text[begin..]
}

/// One number of the performance data.
#[derive(Clone, Debug, PartialEq)]
struct Number {
    label: String,
    unit: &'static str,
    value: f64,
}

/// Reads a plugin's output: the first line's text, and the numbers behind `|` in the first line, and in the lines from
/// the second `|` on. What is no number is passed over.
fn read(output: &str) -> (String, Vec<Number>) {
    let mut lines = output.lines();
    let first = lines.next().unwrap_or("");
    let (text, data) = first.split_once('|').unwrap_or((first, ""));
    let mut numbers = Vec::new();
    take(data, &mut numbers);
    let mut in_data = false;
    for line in lines {
        match (in_data, line.split_once('|')) {
            (true, _) => take(line, &mut numbers),
            (false, Some((_, data))) => {
                in_data = true;
                take(data, &mut numbers);
            }
            (false, None) => {}
        }
    }
    (text.trim().to_owned(), numbers)
}

fn take(mut data: &str, numbers: &mut Vec<Number>) {
    while numbers.len() < MAX_NUMBERS {
        data = data.trim_start();
        let (label, rest) = match data.strip_prefix('\'') {
            // Two quotes stand for one.
            Some(quoted) => {
                let mut end = None;
                let mut chars = quoted.char_indices().peekable();
                while let Some((at, c)) = chars.next() {
                    if c == '\'' && chars.next_if(|(_, next)| *next == '\'').is_none() {
                        end = Some(at);
                        break;
                    }
                }
                let Some(end) = end else { return };
                let Some(rest) = quoted[end + 1..].strip_prefix('=') else { return };
                (quoted[..end].replace("''", "'"), rest)
            }
            None => match data.split_once('=') {
                Some((label, rest)) => (label.to_owned(), rest),
                None => return,
            },
        };
        let (value, rest) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        data = rest;
        let label = one_line(label.trim(), MAX_LABEL);
        let number = number(value.split(';').next().unwrap_or(""));
        // The first of two of one name: the same series cannot have two values.
        if let Some((value, unit)) = number.filter(|_| !label.is_empty() && !numbers.iter().any(|known| known.label == label)) {
            numbers.push(Number { label, unit, value });
        }
    }
}

/// Reads a value with its unit, in Prometheus' base units.
fn number(text: &str) -> Option<(f64, &'static str)> {
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+' | ',')).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    // A locale of the plugin's may write a comma.
    let value: f64 = digits.replace(',', ".").parse().ok().filter(|value: &f64| value.is_finite())?;
    let (factor, unit) = match unit {
        "s" => (1.0, "seconds"),
        "ms" => (1e-3, "seconds"),
        "us" => (1e-6, "seconds"),
        "ns" => (1e-9, "seconds"),
        "%" => (0.01, "ratio"),
        "B" => (1.0, "bytes"),
        "KB" => (1024.0, "bytes"),
        "MB" => (1024.0 * 1024.0, "bytes"),
        "GB" => (1024.0 * 1024.0 * 1024.0, "bytes"),
        "TB" => (1024.0 * 1024.0 * 1024.0 * 1024.0, "bytes"),
        "c" => (1.0, "total"),
        "" => (1.0, ""),
        _ => return None,
    };
    Some((value * factor, unit))
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// What a plugin of Nagios prints.
    pub fn perfdata(bytes: &[u8]) {
        let output = String::from_utf8_lossy(bytes);
        let (_, numbers) = read(&output);
        assert!(numbers.len() <= MAX_NUMBERS);
        assert!(numbers.iter().all(|number| number.value.is_finite() && number.label.chars().count() <= MAX_LABEL));
        assert!(end_of(&output).len() <= 10 * 1024);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_plugin_are_read_in_base_units_and_what_is_none_is_passed_over() {
        let output = "DISK OK - free space: / 3326 MB (56%); | /=2643MB;5948;5958;0;5968 'a b''c'=50%;;;; time=12.5ms load=1,5 x=U y=3furlongs\n\
                      more text\nlong text | /boot=68MB;88;93;0;98\n/home=7;88\nin=99c /=9";
        let (text, numbers) = read(output);
        assert_eq!(text, "DISK OK - free space: / 3326 MB (56%);");
        let found: Vec<(&str, &str, f64)> = numbers.iter().map(|n| (n.label.as_str(), n.unit, n.value)).collect();
        assert_eq!(
            found,
            [
                ("/", "bytes", 2643.0 * 1024.0 * 1024.0),
                ("a b'c", "ratio", 0.5),
                ("time", "seconds", 0.0125),
                ("load", "", 1.5),
                ("/boot", "bytes", 68.0 * 1024.0 * 1024.0),
                ("/home", "", 7.0),
                ("in", "total", 99.0),
            ]
        );
    }

    #[test]
    fn garbage_for_numbers_is_bounded_and_no_defect() {
        for output in ["", "|", "a|'", "a|'x", "a|'x'", "a|=1", "a|x=", "a|x=1e999", "a|x==2", "|\n|\n'é''=5"] {
            assert!(read(output).1.is_empty(), "{output}: {:?}", read(output));
        }
        let many = format!("a|{}", (0..10_000).map(|n| format!("n{n}={n} ")).collect::<String>());
        assert_eq!(read(&many).1.len(), MAX_NUMBERS);
        let long = format!("a|{}=1", "é".repeat(500));
        assert_eq!(read(&long).1[0].label.chars().count(), MAX_LABEL);
    }

    #[test]
    fn a_configuration_has_a_bound_on_its_environment() {
        let variables: String = (0..=MAX_ENVIRONMENT).map(|n| format!("V{n}: x, ")).collect();
        let config: CommandConfig =
            crate::model::decode::from_text("f", &format!("argv: [/bin/true]\nenvironment: {{{variables}}}")).expect("is right");
        assert!(plan(&config).err().expect("is too much").contains("at most 20 variables, found 21"));
    }

    /// What performance data is made of.
    const PIECES: [&str; 16] = ["OK", "x", "|", "|", "'", "'", "=", "=", ";", "1", "2,5", "-0.", "ms", "%", " ", "\n"];

    proptest::proptest! {
        #[test]
        fn whatever_a_plugin_prints_its_numbers_are_numbers_and_bounded(
            // A choice per piece by a regular expression took five times as long as the reading.
            pieces in proptest::collection::vec(proptest::num::u8::ANY, 0..60), any in ".{0,40}",
        ) {
            let output: String = pieces.into_iter().map(|piece| PIECES[usize::from(piece) % PIECES.len()]).chain([&*any]).collect();
            let (_, numbers) = read(&output);
            proptest::prop_assert!(numbers.len() <= MAX_NUMBERS);
            for number in numbers {
                proptest::prop_assert!(number.value.is_finite() && number.label.chars().count() <= MAX_LABEL, "{output:?}");
            }
        }
    }
}
