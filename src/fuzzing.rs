//! The parsers of ours as functions of bytes, for the targets in `fuzz/`; built only under `cfg(fuzzing)`, which
//! cargo-fuzz sets.
//!
//! Here is no more than the name: what is private is handed out beside itself, by an `impl crate::fuzzing::Parsers`, so
//! that nothing is more public than it must be. What is public anyway is called by its target.

use std::cell::RefCell;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use tokio::runtime::{Builder, Runtime};

/// Every parser that is private.
pub struct Parsers;

/// Gives a client a connection on which these bytes come and then the end, and returns what it made of them.
pub(crate) fn answered<T>(bytes: &[u8], ask: impl AsyncFnOnce(tokio::net::UnixStream) -> T) -> T {
    thread_local!(static RUNTIME: RefCell<Runtime> = RefCell::new(Builder::new_current_thread().enable_all().build().expect("a runtime")));
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("is set");
    // The socket takes more than the longest input, `-max_len`.
    theirs.write_all(bytes).expect("fits the socket");
    theirs.shutdown(Shutdown::Write).expect("is open");
    RUNTIME.with_borrow(|runtime| {
        runtime.block_on(async {
            let made = ask(tokio::net::UnixStream::from_std(ours).expect("is taken")).await;
            drop(theirs);
            made
        })
    })
}
