//! Lines for a terminal of 80 columns that leave words and blanks as they are: a place such as `file:3:7` stays whole, and
//! two blanks where one was expected are seen. (The table of `proctor check` folds what services said, and cuts it.)

/// The width that a line is folded to.
const COLUMNS: usize = 80;

/// Folds a line at blanks; it begins with `indent`, what follows stands four columns in.
pub(super) fn fold(indent: &str, line: &str) -> String {
    let mut text = indent.to_owned();
    let (mut column, mut first) = (indent.chars().count(), true);
    for word in line.split(' ') {
        let long = word.chars().count();
        if !first && column + 1 + long > COLUMNS {
            text += "\n    ";
            column = 4;
        } else if !first {
            text.push(' ');
            column += 1;
        }
        text += word;
        (column, first) = (column + long, false);
    }
    text + "\n"
}
