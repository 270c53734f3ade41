//! Text from outside, made fit to be shown or kept: one line, without what moves a cursor or turns the direction of writing, and
//! no longer than it has to be.

use std::path::Path;

/// The longest path that is shown, in characters.
const PATH: usize = 512;

/// A path, as far as it is text.
pub fn path(path: &Path) -> String {
    clean(&path.to_string_lossy(), PATH)
}

/// At most so many characters of a text, those that are not plainly visible escaped.
pub fn clean(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut rest = text.chars();
    for c in rest.by_ref().take(most) {
        match is_plain(c) {
            true => out.push(c),
            false => out.extend(c.escape_default()),
        }
    }
    if rest.next().is_some() {
        out.push('…');
    }
    out
}

/// Neither a control character (C0, C1), nor one that separates lines, has no width, or changes the direction of writing.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_visible_is_escaped_and_what_is_long_is_cut() {
        for (text, shown) in [
            ("plain, ünï → 字", "plain, ünï → 字"),
            ("a\nb\t\u{1b}[2J\u{7f}", "a\\nb\\t\\u{1b}[2J\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("x\u{202e}cod.exe", "x\\u{202e}cod.exe"),
            ("\u{2066}\u{2028}\u{feff}", "\\u{2066}\\u{2028}\\u{feff}"),
        ] {
            assert_eq!(clean(text, 100), shown);
        }
        assert_eq!(clean("abcdef", 3), "abc…");
        assert_eq!(clean("abc", 3), "abc");
    }
}
