//! The tree of an expression, and the tables of what is known.

use crate::model::Matcher;

/// The types of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Scalar,
    Vector,
    Matrix,
    Text,
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Vector => "instant vector",
            Self::Matrix => "range vector",
            Self::Text => "string",
        })
    }
}

/// A part of an expression, with the byte at which it begins and the height of the tree below it.
#[derive(Debug)]
pub(super) struct Node {
    pub at: usize,
    pub height: usize,
    pub kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Number(f64),
    Text(String),
    Selector(Selector),
    /// The samples of a range in milliseconds.
    Range(Selector, i64),
    Subquery(Box<Subquery>),
    Call(Box<Call>),
    Aggregate(Box<Aggregate>),
    Binary(Box<Binary>),
    Negate(Box<Node>),
    Paren(Box<Node>),
}

/// When something is read: shifted, or pinned to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct When {
    /// Milliseconds back; negative is forward.
    pub offset: Option<i64>,
    pub pinned: Option<Pinned>,
}

/// The `@` modifier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pinned {
    /// Milliseconds since the epoch.
    At(i64),
    /// `start()` or `end()`: at one instant both are the instant of the whole evaluation.
    Instant,
}

#[derive(Debug)]
pub(super) struct Selector {
    pub matchers: Vec<Matcher>,
    pub when: When,
}

#[derive(Debug)]
pub(super) struct Subquery {
    pub inner: Node,
    /// Milliseconds.
    pub range: i64,
    /// Milliseconds; nothing where the evaluation's own step is meant.
    pub step: Option<i64>,
    pub when: When,
}

#[derive(Debug)]
pub(super) struct Call {
    pub function: &'static Function,
    pub args: Vec<Node>,
    /// The compiled expression of `label_replace`.
    pub regex: Option<regex::Regex>,
}

/// Which labels make a group, or a match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grouping {
    /// `by`, `on`
    By(Vec<String>),
    /// `without`, `ignoring`
    Without(Vec<String>),
}

impl Grouping {
    pub fn names(&self) -> &[String] {
        match self {
            Self::By(names) | Self::Without(names) => names,
        }
    }
}

#[derive(Debug)]
pub(super) struct Aggregate {
    pub op: &'static str,
    pub param: Option<Node>,
    pub inner: Node,
    pub grouping: Grouping,
}

/// How many elements of which side may match one of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Card {
    OneToOne,
    /// `group_left`, with the labels that are taken from the one side.
    ManyToOne(Vec<String>),
    /// `group_right`, the same.
    OneToMany(Vec<String>),
}

#[derive(Debug)]
pub(super) struct Binary {
    pub op: &'static str,
    pub left: Node,
    pub right: Node,
    pub matching: Grouping,
    pub card: Card,
    pub as_bool: bool,
}

/// Binary operators with their precedence, loosest first.
pub(super) const OPERATORS: [(&str, u8); 16] = [
    ("or", 1),
    ("and", 2),
    ("unless", 2),
    ("==", 3),
    ("!=", 3),
    (">", 3),
    ("<", 3),
    (">=", 3),
    ("<=", 3),
    ("+", 4),
    ("-", 4),
    ("*", 5),
    ("/", 5),
    ("%", 5),
    ("atan2", 5),
    ("^", POWER),
];

/// The tightest binary operator's precedence; a sign in front binds looser than it and tighter than all others.
pub(super) const POWER: u8 = 6;

pub(super) fn is_set_operator(op: &str) -> bool {
    matches!(op, "and" | "or" | "unless")
}

pub(super) fn is_comparison(op: &str) -> bool {
    matches!(op, "==" | "!=" | ">" | "<" | ">=" | "<=")
}

/// Aggregations, and the type of the parameter that some have.
pub(super) const AGGREGATIONS: [(&str, Option<Type>); 12] = [
    ("sum", None),
    ("min", None),
    ("max", None),
    ("avg", None),
    ("count", None),
    ("group", None),
    ("stddev", None),
    ("stdvar", None),
    ("topk", Some(Type::Scalar)),
    ("bottomk", Some(Type::Scalar)),
    ("quantile", Some(Type::Scalar)),
    ("count_values", Some(Type::Text)),
];

/// A function: its arguments, of which the last `optional` may be missing, and its result.
#[derive(Debug)]
pub(super) struct Function {
    pub name: &'static str,
    pub args: &'static [Type],
    pub optional: usize,
    /// The last argument may be repeated.
    pub repeated: bool,
    pub returns: Type,
}

const fn function(name: &'static str, args: &'static [Type], returns: Type) -> Function {
    Function { name, args, optional: 0, repeated: false, returns }
}

const fn dates(name: &'static str) -> Function {
    Function { name, args: &[V], optional: 1, repeated: false, returns: V }
}

const V: Type = Type::Vector;
const M: Type = Type::Matrix;
const S: Type = Type::Scalar;
const T: Type = Type::Text;

/// Every function that is evaluated here.
pub(super) const FUNCTIONS: &[Function] = &[
    function("abs", &[V], V),
    function("absent", &[V], V),
    function("absent_over_time", &[M], V),
    function("acos", &[V], V),
    function("acosh", &[V], V),
    function("asin", &[V], V),
    function("asinh", &[V], V),
    function("atan", &[V], V),
    function("atanh", &[V], V),
    function("avg_over_time", &[M], V),
    function("ceil", &[V], V),
    function("changes", &[M], V),
    function("clamp", &[V, S, S], V),
    function("clamp_max", &[V, S], V),
    function("clamp_min", &[V, S], V),
    function("cos", &[V], V),
    function("cosh", &[V], V),
    function("count_over_time", &[M], V),
    dates("day_of_month"),
    dates("day_of_week"),
    dates("day_of_year"),
    dates("days_in_month"),
    function("deg", &[V], V),
    function("delta", &[M], V),
    function("deriv", &[M], V),
    function("exp", &[V], V),
    function("first_over_time", &[M], V),
    function("floor", &[V], V),
    function("histogram_quantile", &[S, V], V),
    dates("hour"),
    function("idelta", &[M], V),
    function("increase", &[M], V),
    function("irate", &[M], V),
    Function { name: "label_join", args: &[V, T, T, T], optional: 1, repeated: true, returns: V },
    function("label_replace", &[V, T, T, T, T], V),
    function("last_over_time", &[M], V),
    function("ln", &[V], V),
    function("log10", &[V], V),
    function("log2", &[V], V),
    function("max_over_time", &[M], V),
    function("min_over_time", &[M], V),
    dates("minute"),
    dates("month"),
    function("pi", &[], S),
    function("predict_linear", &[M, S], V),
    function("present_over_time", &[M], V),
    function("quantile_over_time", &[S, M], V),
    function("rad", &[V], V),
    function("rate", &[M], V),
    function("resets", &[M], V),
    Function { name: "round", args: &[V, S], optional: 1, repeated: false, returns: V },
    function("scalar", &[V], S),
    function("sgn", &[V], V),
    function("sin", &[V], V),
    function("sinh", &[V], V),
    function("sort", &[V], V),
    function("sort_desc", &[V], V),
    function("sqrt", &[V], V),
    function("stddev_over_time", &[M], V),
    function("stdvar_over_time", &[M], V),
    function("sum_over_time", &[M], V),
    function("tan", &[V], V),
    function("tanh", &[V], V),
    function("time", &[], S),
    function("timestamp", &[V], V),
    function("vector", &[S], V),
    dates("year"),
];

/// What stock Prometheus 3 evaluates and we do not: all of it is about native histograms.
pub(super) const PROMETHEUS_ONLY: [&str; 6] =
    ["histogram_avg", "histogram_count", "histogram_fraction", "histogram_stddev", "histogram_stdvar", "histogram_sum"];

/// What Prometheus evaluates only with `--enable-feature`.
pub(super) const EXPERIMENTAL: [&str; 24] = [
    "anchored",
    "double_exponential_smoothing",
    "end",
    "fill",
    "fill_left",
    "fill_right",
    "histogram_quantiles",
    "info",
    "limit_ratio",
    "limitk",
    "mad_over_time",
    "max_of",
    "min_of",
    "range",
    "smoothed",
    "sort_by_label",
    "sort_by_label_desc",
    "start",
    "start_timestamp",
    "step",
    "ts_of_first_over_time",
    "ts_of_last_over_time",
    "ts_of_max_over_time",
    "ts_of_min_over_time",
];

impl Node {
    /// Returns the type of the value.
    pub fn type_of(&self) -> Type {
        match &self.kind {
            Kind::Number(_) => Type::Scalar,
            Kind::Text(_) => Type::Text,
            Kind::Selector(_) | Kind::Aggregate(_) => Type::Vector,
            Kind::Range(..) | Kind::Subquery(_) => Type::Matrix,
            Kind::Call(call) => call.function.returns,
            Kind::Binary(binary) => match (binary.left.type_of(), binary.right.type_of()) {
                (Type::Scalar, Type::Scalar) => Type::Scalar,
                _ => Type::Vector,
            },
            Kind::Negate(inner) | Kind::Paren(inner) => inner.type_of(),
        }
    }

    /// Returns what stands in the parentheses, if there are any.
    pub fn bare(&self) -> &Self {
        match &self.kind {
            Kind::Paren(inner) => inner.bare(),
            _ => self,
        }
    }

    /// Returns the parts of this part.
    pub fn children(&self) -> Vec<&Self> {
        match &self.kind {
            Kind::Number(_) | Kind::Text(_) | Kind::Selector(_) | Kind::Range(..) => Vec::new(),
            Kind::Subquery(subquery) => vec![&subquery.inner],
            Kind::Call(call) => call.args.iter().collect(),
            Kind::Aggregate(aggregate) => aggregate.param.iter().chain([&aggregate.inner]).collect(),
            Kind::Binary(binary) => vec![&binary.left, &binary.right],
            Kind::Negate(inner) | Kind::Paren(inner) => vec![inner],
        }
    }

    /// Returns how many milliseconds before the instant of evaluation samples are read, where this part itself is
    /// evaluated up to `before` milliseconds earlier.
    pub fn look_back(&self, before: i64) -> i64 {
        let begin = |when: &When| when.offset.unwrap_or(0).saturating_add(if when.pinned.is_some() { 0 } else { before });
        match &self.kind {
            Kind::Selector(selector) => begin(&selector.when).saturating_add(LOOK_BACK_MS).max(0),
            Kind::Range(selector, range) => begin(&selector.when).saturating_add(*range).max(0),
            Kind::Subquery(subquery) => subquery.inner.look_back(begin(&subquery.when).saturating_add(subquery.range)),
            _ => self.children().iter().map(|child| child.look_back(before)).max().unwrap_or(0),
        }
    }
}

/// How old a sample may be that an instant selector still sees, in milliseconds: Prometheus' default.
pub(super) const LOOK_BACK_MS: i64 = 300_000;
