//! Texts that come from somewhere else, and end in a line of ours.

/// Makes one line of any text, at most so many characters long: control characters, the ends of lines among them, are blanks.
pub fn one_line(text: &str, most: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_in_is_one_line_within_its_bound() {
        assert_eq!(one_line("a\r\n\x1b[31mb\0é", usize::MAX), "a   [31mb é");
        assert_eq!(one_line("ééé", 2), "éé");
    }
}
