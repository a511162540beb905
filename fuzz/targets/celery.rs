//! What Celery says: answers of workers, results of tasks, events.

#![no_main]

use proctor::fuzzing::Parsers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    Parsers::celery_answer(bytes);
    Parsers::celery_result(bytes);
    Parsers::celery_events(bytes);
});
