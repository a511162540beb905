//! Mistakes in files that people write, with the place where each stands.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in a file, both counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub col: usize,
}

/// One mistake: where it stands, what was expected, what was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file as it was named to us.
    pub file: PathBuf,
    /// Where in the file.
    pub at: Position,
    /// What was expected and what was found.
    pub message: String,
}

/// `file:line:col: message`, as compilers print it and editors jump to it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file.display(), self.at.line, self.at.col, self.message)
    }
}

/// All mistakes of one run over one file: nothing stops at the first.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    file: PathBuf,
    found: Vec<Problem>,
}

impl Problems {
    /// The most mistakes that are kept of one file; a file with more is another kind of file.
    pub const MAX: usize = 200;

    /// Begins a run over a file.
    pub fn new(file: impl AsRef<Path>) -> Self {
        Self { file: file.as_ref().to_owned(), found: Vec::new() }
    }

    /// Notes a mistake.
    pub fn push(&mut self, at: Position, message: impl Into<String>) {
        if self.found.len() < Self::MAX {
            self.found.push(Problem { file: self.file.clone(), at, message: message.into() });
        }
    }

    /// Takes over the mistakes of another file.
    pub fn absorb(&mut self, other: Self) {
        self.found.extend(other.found);
    }

    /// Returns how many were noted.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Says whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns the mistakes in the order of the file.
    pub fn into_sorted(mut self) -> Vec<Problem> {
        self.found.sort();
        self.found.dedup();
        self.found
    }
}
