//! Builds and checks the tree of an expression: Prometheus' grammar, by precedence climbing.
//!
//! It is our own, since the crates for it give no positions, not even of the token that fails; `promql-parser` is the
//! oracle of the tests.

use super::ast::{
    AGGREGATIONS, Aggregate, Binary, Call, Card, EXPERIMENTAL, FUNCTIONS, Function, Grouping, Kind, Node, OPERATORS, POWER,
    PROMETHEUS_ONLY, Pinned, Selector, Subquery, Type, When, is_comparison, is_set_operator,
};
use super::lex::{self, Token, clip};
use crate::model::labels::NAME;
use crate::model::{Labels, MatchOp, Matcher};

/// How deep brackets, calls and signs may be nested: each level is eight frames of the stack.
const MAX_NESTING: usize = 64;
/// How high the tree may be: a chain such as `a + b + c` is as high as it has operators.
const MAX_HEIGHT: usize = 250;
/// The longest regular expression, in bytes; what it compiles to is bounded too.
const MAX_REGEX: usize = 4096;
/// No moment and no duration is beyond this many milliseconds (about 9,000 years), so that sums cannot overflow.
const MAX_MS: i64 = 1 << 48;

/// A message with the byte that it is about.
pub(super) type Wrong = (usize, String);
type Parsed<T> = Result<T, Wrong>;

/// Parses and checks a whole expression.
pub(super) fn parse(text: &str) -> Parsed<Node> {
    let mut parser = Parser { tokens: lex::tokens(text), next: 0, nesting: 0 };
    if matches!(parser.peek().kind, lex::Kind::End) {
        return Err((0, "expected an expression, found nothing".to_owned()));
    }
    let node = parser.expr(0)?;
    if !matches!(parser.peek().kind, lex::Kind::End) {
        return Err(parser.unexpected("an operator or the end"));
    }
    if node.type_of() == Type::Matrix {
        let advice = "wrap it in a function such as rate() or last_over_time()";
        return Err((node.at, format!("expected an instant vector or a scalar, found a range vector: {advice}")));
    }
    Ok(node)
}

/// Parses one series as it is written, `name{label="value"}`; both parts may be missing.
pub(super) fn metric(text: &str) -> Parsed<Labels> {
    let mut parser = Parser { tokens: lex::tokens(text), next: 0, nesting: 0 };
    let name = matches!(parser.peek().kind, lex::Kind::Word).then(|| parser.advance());
    let matchers = parser.matchers(name.as_ref())?;
    if !matches!(parser.peek().kind, lex::Kind::End) {
        return Err(parser.unexpected("the end of the series"));
    }
    match matchers.iter().find(|matcher| matcher.op != MatchOp::Equal) {
        Some(matcher) => Err((0, format!("expected a series, whose labels are set with =, found the matcher {matcher}"))),
        None => Ok(Labels::new(matchers.into_iter().map(|matcher| (matcher.name, matcher.value)))),
    }
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
    nesting: usize,
}

impl<'a> Parser<'a> {
    /// The last token is the end or a bad one, and is never passed.
    fn peek(&self) -> &Token<'a> {
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn after(&self) -> &Token<'a> {
        &self.tokens[(self.next + 1).min(self.tokens.len() - 1)]
    }

    fn advance(&mut self) -> Token<'a> {
        let token = self.peek().clone();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        token
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek().kind, lex::Kind::Sign) && self.peek().text == sign
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek().kind, lex::Kind::Word) && self.peek().text.eq_ignore_ascii_case(word)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let is = self.is_sign(sign);
        if is {
            self.advance();
        }
        is
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is = self.is_word(word);
        if is {
            self.advance();
        }
        is
    }

    fn expect(&mut self, sign: &str, what: &str) -> Parsed<()> {
        if self.take_sign(sign) { Ok(()) } else { Err(self.unexpected(what)) }
    }

    /// Says that the next token is not what was expected.
    fn unexpected(&self, expected: &str) -> Wrong {
        let token = self.peek();
        let found = match &token.kind {
            lex::Kind::Bad(why) => return (token.at, why.clone()),
            lex::Kind::End => "end of input".to_owned(),
            lex::Kind::Text(text) => format!("the text {:?}", clip(text)),
            _ => format!("\"{}\"", clip(token.text)),
        };
        let after = match self.next.checked_sub(1).map(|index| &self.tokens[index]) {
            Some(token) => format!(" after \"{}\"", clip(token.text)),
            None => String::new(),
        };
        (token.at, format!("expected {expected}{after}, found {found}"))
    }

    fn node(&self, at: usize, kind: Kind) -> Parsed<Node> {
        let mut node = Node { at, height: 0, kind };
        node.height = node.children().iter().map(|child| child.height + 1).max().unwrap_or(0);
        if node.height > MAX_HEIGHT {
            return Err((at, format!("more than {MAX_HEIGHT} operators upon each other: split it with recording rules")));
        }
        Ok(node)
    }

    /// Parses an expression whose binary operators bind at least as tight as `least`.
    fn expr(&mut self, least: u8) -> Parsed<Node> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err((self.peek().at, format!("nested more than {MAX_NESTING} deep: split it with recording rules")));
        }
        let mut left = self.signed()?;
        while let Some((op, precedence)) = self.operator().filter(|(_, precedence)| *precedence >= least) {
            let at = self.advance().at;
            let as_bool = self.take_word("bool");
            if as_bool && !is_comparison(op) {
                return Err((at, format!("bool is for comparisons (== != > < >= <=), found it after \"{op}\"")));
            }
            let (matching, card) = self.matching(op)?;
            // Only ^ is right-associative.
            let right = self.expr(if op == "^" { POWER } else { precedence + 1 })?;
            left = self.binary(at, op, left, right, matching, card, as_bool)?;
        }
        self.nesting -= 1;
        Ok(left)
    }

    fn operator(&self) -> Option<(&'static str, u8)> {
        let token = self.peek();
        let wanted = matches!(token.kind, lex::Kind::Sign | lex::Kind::Word);
        OPERATORS.iter().find(|(op, _)| wanted && token.text.eq_ignore_ascii_case(op)).copied()
    }

    /// Parses a part with signs in front, which bind looser than `^` and tighter than everything else.
    fn signed(&mut self) -> Parsed<Node> {
        let (at, negative) = (self.peek().at, self.is_sign("-"));
        if !negative && !self.is_sign("+") {
            return self.suffixed();
        }
        self.advance();
        let inner = self.expr(POWER)?;
        match (inner.type_of(), &inner.kind) {
            (_, Kind::Number(value)) => Ok(Node { at, height: 0, kind: Kind::Number(if negative { -value } else { *value }) }),
            (Type::Scalar | Type::Vector, _) if negative => self.node(at, Kind::Negate(Box::new(inner))),
            (Type::Scalar | Type::Vector, _) => self.node(at, Kind::Paren(Box::new(inner))),
            (other, _) => Err((inner.at, format!("a sign stands before a scalar or an instant vector, found a {other}"))),
        }
    }

    /// Parses a part with what follows it: `[5m]`, `[1h:1m]`, `offset`, `@`.
    fn suffixed(&mut self) -> Parsed<Node> {
        let mut node = self.primary()?;
        loop {
            if self.is_sign("[") {
                node = self.range(node)?;
            } else if self.is_word("offset") {
                let at = self.advance().at;
                let value = self.signed_span("a duration such as 5m")?;
                let when = when(&mut node).ok_or((at, modifier_place("offset")))?;
                if when.offset.replace(value).is_some() {
                    return Err((at, "offset may stand only once".to_owned()));
                }
            } else if self.is_sign("@") {
                let at = self.advance().at;
                let pinned = if self.is_word("start") || self.is_word("end") {
                    self.advance();
                    self.expect("(", "\"()\"")?;
                    self.expect(")", "\")\"")?;
                    Pinned::Instant
                } else {
                    Pinned::At(self.signed_span("a moment in seconds since the epoch, start() or end()")?)
                };
                let when = when(&mut node).ok_or((at, modifier_place("@")))?;
                if when.pinned.replace(pinned).is_some() {
                    return Err((at, "@ may stand only once".to_owned()));
                }
            } else {
                if self.is_word("anchored") || self.is_word("smoothed") {
                    return Err((self.peek().at, not_here(self.peek().text, "")));
                }
                return Ok(node);
            }
        }
    }

    /// Parses `[range]` or `[range:step]`.
    fn range(&mut self, node: Node) -> Parsed<Node> {
        let bracket = self.advance().at;
        let range = self.positive_span()?;
        if self.take_sign(":") {
            let step = if self.is_sign("]") { None } else { Some(self.positive_span()?) };
            self.expect("]", "\"]\"")?;
            if node.type_of() != Type::Vector {
                return Err((node.at, format!("a subquery is made of an instant vector, found a {}", node.type_of())));
            }
            let at = node.at;
            return self.node(at, Kind::Subquery(Box::new(Subquery { inner: node, range, step, when: When::default() })));
        }
        self.expect("]", "\"]\", or \":\" and the step of a subquery,")?;
        match node.kind {
            Kind::Selector(selector) if selector.when == When::default() => self.node(node.at, Kind::Range(selector, range)),
            Kind::Selector(_) => Err((bracket, "offset and @ stand after the range: metric[5m] offset 1h".to_owned())),
            _ => Err((bracket, "a range stands after a metric; after anything else write a subquery such as [5m:1m]".to_owned())),
        }
    }

    /// Reads a duration, or a number of seconds, as milliseconds.
    fn span(&mut self, what: &str) -> Parsed<i64> {
        let ms = match self.peek().kind {
            lex::Kind::Span(span) => span.as_millis() as f64,
            lex::Kind::Number(seconds) => (seconds * 1000.0).round(),
            _ => return Err(self.unexpected(what)),
        };
        if !ms.is_finite() || ms.abs() > MAX_MS as f64 {
            return Err((self.peek().at, format!("expected {what}, found {:?}, which is out of range", clip(self.peek().text))));
        }
        self.advance();
        Ok(ms as i64)
    }

    fn signed_span(&mut self, what: &str) -> Parsed<i64> {
        let negative = self.take_sign("-");
        let _plus = !negative && self.take_sign("+");
        self.span(what).map(|ms| if negative { -ms } else { ms })
    }

    fn positive_span(&mut self) -> Parsed<i64> {
        let at = self.peek().at;
        match self.span("a duration such as 5m")? {
            ms if ms > 0 => Ok(ms),
            _ => Err((at, "a duration here must be greater than 0".to_owned())),
        }
    }

    fn primary(&mut self) -> Parsed<Node> {
        let token = self.peek().clone();
        match &token.kind {
            lex::Kind::Number(value) => {
                self.advance();
                self.node(token.at, Kind::Number(*value))
            }
            lex::Kind::Span(span) => {
                self.advance();
                self.node(token.at, Kind::Number(span.as_secs_f64()))
            }
            lex::Kind::Text(text) => {
                self.advance();
                self.node(token.at, Kind::Text(text.clone()))
            }
            lex::Kind::Sign if token.text == "(" => {
                self.advance();
                let inner = self.expr(0)?;
                self.expect(")", "\")\" or an operator")?;
                self.node(token.at, Kind::Paren(Box::new(inner)))
            }
            lex::Kind::Sign if token.text == "{" => self.selector(None),
            lex::Kind::Word => self.named(&token),
            _ => Err(self.unexpected("an expression")),
        }
    }

    /// Parses what begins with a word: an aggregation, a call, or a selector.
    fn named(&mut self, token: &Token<'a>) -> Parsed<Node> {
        let after = self.after();
        let called = matches!(after.kind, lex::Kind::Sign) && after.text == "(";
        let grouped = matches!(after.kind, lex::Kind::Word) && ["by", "without"].iter().any(|word| after.text.eq_ignore_ascii_case(word));
        let lower = token.text.to_ascii_lowercase();
        if let Some((op, param)) = AGGREGATIONS.iter().find(|(name, _)| (called || grouped) && *name == lower) {
            self.advance();
            return self.aggregate(token.at, op, *param);
        }
        if called {
            if let Some(function) = FUNCTIONS.iter().find(|function| function.name == token.text) {
                self.advance();
                return self.call(token.at, function);
            }
            let word = OPERATORS.iter().any(|(op, _)| *op == lower)
                || ["bool", "on", "ignoring", "group_left", "group_right", "by", "without", "offset"].contains(&lower.as_str());
            return Err(if word { self.unexpected("an expression") } else { (token.at, unknown_function(token.text)) });
        }
        if ["bool", "on", "ignoring", "group_left", "group_right"].contains(&lower.as_str()) {
            return Err(self.unexpected("an expression"));
        }
        self.advance();
        self.selector(Some(token))
    }

    fn selector(&mut self, name: Option<&Token<'a>>) -> Parsed<Node> {
        let at = name.map_or(self.peek().at, |token| token.at);
        let matchers = self.matchers(name)?;
        if matchers.iter().all(|matcher| matcher.matches_value("")) {
            let advice = "a selector needs a name or one matcher that does not match the empty value, or it reads everything";
            return Err((at, advice.to_owned()));
        }
        self.node(at, Kind::Selector(Selector { matchers, when: When::default() }))
    }

    /// Parses `{a="b", …}` where it stands, and puts the name of the metric behind.
    fn matchers(&mut self, name: Option<&Token<'a>>) -> Parsed<Vec<Matcher>> {
        let mut matchers = Vec::new();
        if self.take_sign("{") {
            while !self.is_sign("}") {
                let token = self.peek().clone();
                let label = match &token.kind {
                    lex::Kind::Word if !token.text.contains(':') => token.text.to_owned(),
                    lex::Kind::Number(_) if is_label_name(token.text) => token.text.to_owned(),
                    lex::Kind::Text(text) if !text.is_empty() => text.clone(),
                    _ => return Err(self.unexpected("a label name or \"}\"")),
                };
                self.advance();
                let op = match self.peek().text {
                    "=" => MatchOp::Equal,
                    "!=" => MatchOp::NotEqual,
                    "=~" => MatchOp::Regex,
                    "!~" => MatchOp::NotRegex,
                    // The name of a metric may stand in quotes among the matchers.
                    "," | "}" if matches!(token.kind, lex::Kind::Text(_)) => {
                        if name.is_some() {
                            return Err((token.at, format!("the metric's name must not be set twice, found {label:?} too")));
                        }
                        matchers.push(matcher(NAME, MatchOp::Equal, &label).map_err(|why| (token.at, why))?);
                        if !self.is_sign("}") {
                            self.advance();
                        }
                        continue;
                    }
                    _ => return Err(self.unexpected("a label matcher operator (=, !=, =~ or !~)")),
                };
                self.advance();
                let lex::Kind::Text(value) = self.peek().kind.clone() else { return Err(self.unexpected("a quoted value")) };
                let value_at = self.advance().at;
                if label == NAME && name.is_some() {
                    return Err((token.at, format!("the metric's name must not be set twice, found a matcher on {NAME} too")));
                }
                matchers.push(matcher(&label, op, &value).map_err(|why| (value_at, why))?);
                if !self.take_sign(",") && !self.is_sign("}") {
                    return Err(self.unexpected("\",\" or \"}\""));
                }
            }
            self.expect("}", "\"}\"")?;
        }
        if let Some(name) = name {
            matchers.push(matcher(NAME, MatchOp::Equal, name.text).map_err(|why| (name.at, why))?);
        }
        Ok(matchers)
    }

    /// Parses `(a, b)` of expressions.
    fn args(&mut self) -> Parsed<Vec<Node>> {
        self.expect("(", "\"(\"")?;
        let mut args = Vec::new();
        if self.take_sign(")") {
            return Ok(args);
        }
        loop {
            args.push(self.expr(0)?);
            if self.take_sign(")") {
                return Ok(args);
            }
            self.expect(",", "\",\", \")\" or an operator")?;
        }
    }

    fn call(&mut self, at: usize, function: &'static Function) -> Parsed<Node> {
        let args = self.args()?;
        let (most, least) = (function.args.len(), function.args.len() - function.optional);
        if args.len() < least || (args.len() > most && !function.repeated) {
            let wanted = match (least, most) {
                _ if function.repeated => format!("at least {least} arguments"),
                (1, 1) => "1 argument".to_owned(),
                (least, most) if least == most => format!("{most} arguments"),
                (least, most) => format!("{least} to {most} arguments"),
            };
            return Err((at, format!("{}() takes {wanted}, found {}", function.name, args.len())));
        }
        for (index, arg) in args.iter().enumerate() {
            let wanted = function.args[index.min(most - 1)];
            expect_type(arg, wanted, &format!("{}()", function.name))?;
        }
        let texts: Vec<&str> =
            args.iter().filter_map(|arg| if let Kind::Text(text) = &arg.bare().kind { Some(&**text) } else { None }).collect();
        let mut regex = None;
        match (function.name, &texts[..]) {
            ("label_replace", [to, _, _, pattern]) => {
                label_name(to, args[1].at)?;
                regex = Some(compile(pattern).map_err(|why| (args[4].at, why))?);
            }
            ("label_join", [to, ..]) => {
                label_name(to, args[1].at)?;
            }
            _ => {}
        }
        self.node(at, Kind::Call(Box::new(Call { function, args, regex })))
    }

    fn aggregate(&mut self, at: usize, op: &'static str, param: Option<Type>) -> Parsed<Node> {
        let before = self.grouping()?;
        let mut args = self.args()?;
        let grouping = match before {
            Some(grouping) => grouping,
            None => self.grouping()?.unwrap_or(Grouping::By(Vec::new())),
        };
        let wanted = 1 + usize::from(param.is_some());
        if args.len() != wanted {
            let what = if wanted == 1 { "1 argument" } else { "2 arguments, the parameter first" };
            return Err((at, format!("{op}() takes {what}, found {}", args.len())));
        }
        let Some(inner) = args.pop() else { return Err((at, format!("{op}() takes an argument"))) };
        expect_type(&inner, Type::Vector, &format!("{op}()"))?;
        let arg = args.pop();
        if let (Some(wanted), Some(arg)) = (param, &arg) {
            expect_type(arg, wanted, &format!("{op}()"))?;
            if let Kind::Text(name) = &arg.bare().kind {
                label_name(name, arg.at)?;
            }
        }
        self.node(at, Kind::Aggregate(Box::new(Aggregate { op, param: arg, inner, grouping })))
    }

    /// Parses `by (a, b)` or `without (a, b)`, if it stands here.
    fn grouping(&mut self) -> Parsed<Option<Grouping>> {
        Ok(if self.take_word("by") {
            Some(Grouping::By(self.labels()?))
        } else if self.take_word("without") {
            Some(Grouping::Without(self.labels()?))
        } else {
            None
        })
    }

    /// Parses `(a, b,)` of label names.
    fn labels(&mut self) -> Parsed<Vec<String>> {
        self.expect("(", "\"(\" and label names")?;
        let mut names = Vec::new();
        while !self.is_sign(")") {
            let token = self.peek();
            match &token.kind {
                lex::Kind::Word if !token.text.contains(':') => names.push(token.text.to_owned()),
                lex::Kind::Text(name) if !name.is_empty() => names.push(name.clone()),
                _ => return Err(self.unexpected("a label name or \")\"")),
            }
            self.advance();
            if !self.take_sign(",") && !self.is_sign(")") {
                return Err(self.unexpected("\",\" or \")\""));
            }
        }
        self.expect(")", "\")\"")?;
        Ok(names)
    }

    /// Parses `on (a) group_left (b)` and its kin after an operator.
    fn matching(&mut self, op: &str) -> Parsed<(Option<Grouping>, Card)> {
        let matching = if self.take_word("on") {
            Grouping::By(self.labels()?)
        } else if self.take_word("ignoring") {
            Grouping::Without(self.labels()?)
        } else {
            return Ok((None, Card::OneToOne));
        };
        let (at, left) = (self.peek().at, self.is_word("group_left"));
        let card = if left || self.is_word("group_right") {
            if is_set_operator(op) {
                return Err((at, format!("group_left and group_right make no sense with \"{op}\", which matches many to many")));
            }
            self.advance();
            let include = if self.is_sign("(") { self.labels()? } else { Vec::new() };
            if let (Grouping::By(on), Some(both)) = (&matching, include.iter().find(|name| matching.names().contains(name)))
                && !on.is_empty()
            {
                return Err((at, format!("the label {both:?} must not stand in on() and in group_left() or group_right() at once")));
            }
            if left { Card::ManyToOne(include) } else { Card::OneToMany(include) }
        } else {
            Card::OneToOne
        };
        Ok((Some(matching), card))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one operation")]
    fn binary(
        &self,
        at: usize,
        op: &'static str,
        left: Node,
        right: Node,
        matching: Option<Grouping>,
        card: Card,
        as_bool: bool,
    ) -> Parsed<Node> {
        for side in [&left, &right] {
            if !matches!(side.type_of(), Type::Scalar | Type::Vector) {
                return Err((side.at, format!("\"{op}\" stands between scalars and instant vectors, found a {}", side.type_of())));
            }
        }
        let scalars = [&left, &right].iter().filter(|side| side.type_of() == Type::Scalar).count();
        if scalars == 2 && is_comparison(op) && !as_bool {
            return Err((at, format!("a comparison of two scalars needs bool: {op} bool")));
        }
        if scalars > 0 && is_set_operator(op) {
            return Err((at, format!("\"{op}\" stands between instant vectors, found a scalar: write vector(…) around it")));
        }
        if scalars > 0 && matching.as_ref().is_some_and(|matching| !matching.names().is_empty()) {
            return Err((at, "on() and ignoring() match two instant vectors, found a scalar".to_owned()));
        }
        let matching = matching.unwrap_or(Grouping::Without(Vec::new()));
        self.node(left.at, Kind::Binary(Box::new(Binary { op, left, right, matching, card, as_bool })))
    }
}

fn when(node: &mut Node) -> Option<&mut When> {
    match &mut node.kind {
        Kind::Selector(selector) | Kind::Range(selector, _) => Some(&mut selector.when),
        Kind::Subquery(subquery) => Some(&mut subquery.when),
        _ => None,
    }
}

fn modifier_place(word: &str) -> String {
    format!("{word} stands right after a metric, its range, or a subquery, not after another expression")
}

fn expect_type(node: &Node, wanted: Type, of: &str) -> Parsed<()> {
    let found = node.type_of();
    // A text must be written out: no expression makes one.
    if found == wanted && (wanted != Type::Text || matches!(node.bare().kind, Kind::Text(_))) {
        return Ok(());
    }
    let advice = match (wanted, found) {
        (Type::Matrix, Type::Vector) => ": add a range such as [5m]",
        (Type::Vector, Type::Matrix) => ": leave the range out, or wrap it in a function such as rate()",
        (Type::Vector, Type::Scalar) => ": write vector(…) around it",
        _ => "",
    };
    Err((node.at, format!("{of} takes a {wanted} here, found a {found}{advice}").replace("a instant", "an instant")))
}

fn is_label_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Prometheus 3 takes any name in UTF-8 here.
fn label_name(name: &str, at: usize) -> Parsed<()> {
    if name.is_empty() { Err((at, "a label needs a name, found an empty text".to_owned())) } else { Ok(()) }
}

fn matcher(name: &str, op: MatchOp, value: &str) -> Result<Matcher, String> {
    if matches!(op, MatchOp::Regex | MatchOp::NotRegex) && value.len() > MAX_REGEX {
        return Err(format!("this regular expression is longer than {MAX_REGEX} bytes"));
    }
    Matcher::new(name, op, value).map_err(|error| error.to_string())
}

fn compile(pattern: &str) -> Result<regex::Regex, String> {
    if pattern.len() > MAX_REGEX {
        return Err(format!("this regular expression is longer than {MAX_REGEX} bytes"));
    }
    let built = regex::RegexBuilder::new(&format!("^(?s:{pattern})$")).size_limit(1 << 20).build();
    built
        .map_err(|error| format!("{:?} is no regular expression: {}", clip(pattern), error.to_string().lines().last().unwrap_or("").trim()))
}

/// Says that Prometheus knows a name and we do not.
fn not_here(name: &str, supported: &str) -> String {
    let known =
        if EXPERIMENTAL.contains(&name) { "Prometheus accepts it only with an --enable-feature flag" } else { "Prometheus accepts it" };
    format!("\"{name}\" is not supported here; {known}{supported}")
}

fn unknown_function(name: &str) -> String {
    if matches!(name, "limitk" | "limit_ratio") {
        let all: Vec<&str> = AGGREGATIONS.iter().map(|(name, _)| *name).collect();
        return not_here(name, &format!(". Supported aggregations: {}", all.join(", ")));
    }
    if PROMETHEUS_ONLY.contains(&name) || EXPERIMENTAL.contains(&name) {
        let all: Vec<&str> = FUNCTIONS.iter().map(|function| function.name).collect();
        return not_here(name, &format!(". Supported functions: {}", all.join(", ")));
    }
    let known = FUNCTIONS.iter().map(|function| function.name).chain(AGGREGATIONS.iter().map(|(name, _)| *name));
    let nearest = known.map(|known| (strsim::damerau_levenshtein(known, name), known)).min().filter(|(distance, _)| *distance <= 2);
    let advice = nearest.map_or(String::new(), |(_, known)| format!(", did you mean \"{known}\"?"));
    format!("unknown function \"{}\"{advice}", clip(name))
}
