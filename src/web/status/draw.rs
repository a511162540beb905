//! Draws a history as a small SVG: one path for each way to stand, so that a thousand of them are a page still.

use std::fmt::Write as _;
use std::time::Duration;

use crate::model::duration::print;
use crate::snapshot::history::{CELLS, Cell};

/// The width of a cell and the gap behind it: the dashes of the style.
const STEP: usize = 4;

/// How a cell is drawn, by the class of its path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Well,
    Mixed,
    Failed,
    Unseen,
}

fn look(cell: Cell) -> Option<Look> {
    match cell {
        Cell { failed: 0, well: 0, unseen: 0 } => None,
        Cell { failed: 0, well: 0, .. } => Some(Look::Unseen),
        Cell { failed: 0, .. } => Some(Look::Well),
        Cell { well: 0, .. } => Some(Look::Failed),
        Cell { .. } => Some(Look::Mixed),
    }
}

/// Draws the cells, the newest at the right, with what they say in words.
pub(super) fn history(cells: &[Cell; CELLS], shows: Duration) -> String {
    let looks = cells.map(look);
    let (failed, all) = cells.iter().fold((0u32, 0u32), |(failed, all), cell| {
        let [well, wrong, unseen] = [cell.well, cell.failed, cell.unseen].map(u32::from);
        (failed + wrong, all + well + wrong + unseen)
    });
    let mut svg = format!(
        "<svg class=h viewBox=\"0 0 {} 14\" role=img><title>{failed} of {all} answers failed in the last {}</title>",
        CELLS * STEP,
        print(shows)
    );
    for (wanted, class) in [(Look::Well, "w"), (Look::Mixed, "m"), (Look::Failed, "f"), (Look::Unseen, "u")] {
        let mut path = String::new();
        let mut begin = None;
        for at in 0..=CELLS {
            match (looks.get(at).copied().flatten() == Some(wanted), begin) {
                (true, None) => begin = Some(at),
                (false, Some(from)) => {
                    // The dashes begin anew with every part of a path.
                    let written = write!(path, "M{} 7h{}", from * STEP, (at - from) * STEP);
                    debug_assert!(written.is_ok(), "writing to a String cannot fail");
                    begin = None;
                }
                _ => {}
            }
        }
        if !path.is_empty() {
            svg.push_str(&format!("<path class={class} d=\"{path}\"/>"));
        }
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_one_look_are_one_part_of_one_path() {
        let mut cells = [Cell { well: 6, ..Cell::default() }; CELLS];
        cells[0] = Cell::default();
        cells[10] = Cell { failed: 6, ..Cell::default() };
        cells[11] = Cell { failed: 1, well: 5, unseen: 0 };
        cells[12] = Cell { unseen: 2, ..Cell::default() };
        let svg = history(&cells, Duration::from_secs(3600));
        assert!(svg.contains("<title>7 of 230 answers failed in the last 1h</title>"), "{svg}");
        for path in ["class=w d=\"M4 7h36M52 7h108\"", "class=m d=\"M44 7h4\"", "class=f d=\"M40 7h4\"", "class=u d=\"M48 7h4\""] {
            assert!(svg.contains(path), "{path} in {svg}");
        }
    }
}
