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
    /// One of the three series of a [`Histogram`], whose name ends in `_bucket`, `_sum` or `_count`.
    Histogram,
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

    /// Returns the name of the metric that its samples belong to: the three series of a histogram are one metric.
    pub fn metric(&self) -> &'static str {
        match self.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"].iter().find_map(|end| self.name.strip_suffix(end)).unwrap_or(self.name),
            Kind::Gauge | Kind::Counter | Kind::BorrowedCounter => self.name,
        }
    }
}

/// The names, help and buckets of a histogram; one static per metric.
#[derive(Debug)]
pub struct Histogram {
    /// How many observations were at most the label `le`.
    pub bucket: Family,
    /// All observations together.
    pub sum: Family,
    /// How many there were.
    pub count: Family,
    /// The upper bounds of the buckets, growing, without the last, which is `+Inf`.
    pub bounds: &'static [f64],
}

impl Histogram {
    /// A histogram by the names of its series, which end in `_bucket`, `_sum` and `_count`.
    pub const fn new([bucket, sum, count]: [&'static str; 3], help: &'static str, bounds: &'static [f64]) -> Self {
        const fn series(name: &'static str, help: &'static str) -> Family {
            Family { name, help, kind: Kind::Histogram }
        }
        Self { bucket: series(bucket, help), sum: series(sum, help), count: series(count, help), bounds }
    }

    /// Returns how many series it has for each set of labels.
    pub const fn series(&self) -> usize {
        self.bounds.len() + 3
    }
}

/// What was observed for one set of labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// How many fell into each bucket and into none before it, that of `+Inf` last.
    buckets: Box<[u64]>,
    sum: f64,
}

impl Observed {
    /// Nothing yet.
    pub fn nothing(of: &Histogram) -> Self {
        Self { buckets: vec![0; of.bounds.len() + 1].into(), sum: 0.0 }
    }

    /// Takes one observation.
    pub fn add(&mut self, of: &Histogram, value: f64) {
        let at = of.bounds.iter().position(|bound| value <= *bound).unwrap_or(of.bounds.len());
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket += 1;
            self.sum += value;
        }
    }

    /// Returns the series in the order in which OpenMetrics wants them, each with its `le` where it is a bucket.
    pub fn series(&self, of: &'static Histogram) -> impl Iterator<Item = (&'static Family, Option<String>, f64)> {
        let mut count = 0;
        let mut buckets: Vec<_> = (of.bounds.iter().chain([&f64::INFINITY]).zip(&self.buckets))
            .map(|(bound, held)| {
                count += held;
                // As OpenMetrics and Prometheus 3 write it: 1.0, not 1.
                let le = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
                (&of.bucket, Some(le), count as f64)
            })
            .collect();
        buckets.extend([(&of.sum, None, self.sum), (&of.count, None, count as f64)]);
        buckets.into_iter()
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
