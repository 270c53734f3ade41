//! Text from outside, made fit to be shown or kept: one line, without what moves a cursor or turns the direction of writing, and
//! no longer than it has to be.

use std::path::Path;

/// The longest path or URL that is shown, in characters.
const PATH: usize = 512;
/// The longest value from outside that is shown, in characters.
pub const VALUE: usize = 200;
/// The longest line that is shown or kept, in characters: room for a few paths or URLs.
pub const LINE: usize = 4000;

/// A path, for display.
pub fn path(path: &Path) -> String {
    clean(&path.to_string_lossy(), PATH)
}

/// An unchecked name, or another short text, for display.
pub fn name(text: &str) -> String {
    clean(text, PATH)
}

/// A message, as one line.
pub fn line(text: &str) -> String {
    clean(text, LINE)
}

/// A URL without what may be secret in it: user and password, query and fragment.
pub fn url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return clean(text, PATH);
    };
    // A password may have in it what it should not have: whatever is before the last @ may be one.
    let (rest, more) = match rest.find(['?', '#']) {
        Some(at) if rest[at..].contains('@') => ("", "…".to_owned()),
        Some(at) => (&rest[..at], format!("{}…", &rest[at..=at])),
        None => (rest, String::new()),
    };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("…@", rest),
        None => ("", rest),
    };
    clean(&format!("{scheme}://{user}{rest}{more}"), PATH)
}

/// Where something is, without what may be secret: a path, or a URL. Other places, such as a database's connection string, may
/// have a password in any form, and are not shown.
pub fn place(text: &str) -> String {
    match text {
        _ if text.starts_with('/') => clean(text, PATH),
        _ if text.contains("://") => url(text),
        _ => "…".into(),
    }
}

/// A text in which a place is shown as [`place`] shows it.
pub fn hiding(text: &str, secret: &str) -> String {
    match secret.starts_with('/') || secret.is_empty() {
        true => text.to_owned(),
        false => text.replace(secret, &place(secret)),
    }
}

/// An argument vector, as one line.
pub fn command(vector: &[String]) -> String {
    let shown = |argument: &String| match argument.contains("://") {
        true => url(argument),
        false => clean(argument, PATH),
    };
    line(&vector.iter().map(shown).collect::<Vec<_>>().join(" "))
}

/// A text, cut to this many characters, with those that are not plainly visible escaped.
pub fn clean(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut room = most;
    for c in text.chars() {
        let escaped = (!is_plain(c)).then(|| c.escape_default());
        let length = escaped.as_ref().map_or(1, ExactSizeIterator::len);
        if length > room {
            out.push('…');
            break;
        }
        room -= length;
        match escaped {
            None => out.push(c),
            Some(escaped) => out.extend(escaped),
        }
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
        assert_eq!(clean("a\u{1b}\u{1b}", 8), "a\\u{1b}…");
        let once = clean(&"\u{1b}é\u{202e}".repeat(10_000), LINE);
        assert!(once.chars().count() <= LINE + 1);
        assert_eq!(
            line(&once[..once.len() - '…'.len_utf8()]),
            once[..once.len() - '…'.len_utf8()]
        );
    }

    #[test]
    fn what_may_be_secret_is_left_out() {
        for (given, shown) in [
            ("http://host:8080/path", "http://host:8080/path"),
            ("https://user:S3CRET@host/path", "https://…@host/path"),
            ("https://user:S3/CR@ET@host/path", "https://…@host/path"),
            ("https://host/path?token=S3CRET", "https://host/path?…"),
            ("https://host?u=a@S3CRET", "https://…"),
            ("https://user:S3#CR@ET@host/", "https://…"),
            ("https://host/path#S3CRET", "https://host/path#…"),
            (
                "postgres://app:S3CRET@db/app?x=S3CRET",
                "postgres://…@db/app?…",
            ),
            ("/data/db", "/data/db"),
            ("host=db password=S3CRET", "…"),
        ] {
            assert_eq!(place(given), shown);
            let said = hiding(&format!("no answer from {given}."), given);
            assert_eq!(said, format!("no answer from {shown}."));
        }
        let vector = ["dump", "--of=postgres://app:S3CRET@db/app", "a\nb"].map(str::to_owned);
        assert_eq!(command(&vector), "dump --of=postgres://…@db/app a\\nb");
    }
}
