//! Samples as probes give them, before the scheduler adds `probe`, `target` and the site's labels.

/// What a metric's value means to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value that goes up and down.
    Gauge,
    /// A value that only grows, whose name ends in `_total`.
    Counter,
    /// A counter under another exporter's name, without `_total`: `counter` in text 0.0.4, `unknown` in OpenMetrics,
    /// which would otherwise have to rename it.
    BorrowedCounter,
}

/// The name, help and kind of a metric; one static per metric, so that families are compared by name at no cost.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// The whole name as it stands in `/metrics`, with unit and `_total`.
    pub name: &'static str,
    /// One sentence without a final period.
    pub help: &'static str,
    /// What the value means.
    pub kind: Kind,
}

impl Family {
    /// A gauge.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Gauge }
    }

    /// A counter; its name ends in `_total`.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::Counter }
    }

    /// A counter under another exporter's name, without `_total`.
    pub const fn borrowed_counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: Kind::BorrowedCounter }
    }
}

/// One measured value. Its labels are the probe's own; `probe`, `target` and `site.labels` are added later.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Which metric.
    pub family: &'static Family,
    /// The probe's own labels, in the order in which the probe gave them.
    pub labels: Vec<(&'static str, Box<str>)>,
    /// The value, in the base unit that the name says.
    pub value: f64,
}
