//! The schedule: a slot per target, one limit for a run, missed slots skipped and counted.
