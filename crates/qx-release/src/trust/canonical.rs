//! Canonical JSON as TUF signs it (OLPC's, not RFC 8785): no white space, members sorted by the code points of
//! their names, only `"` and `\` escaped, integers only.
//!
//! The form is written piece by piece, so that neither it nor a tree of the value is ever held.

use std::borrow::Cow;

use serde_json::Value;

use super::limits::Limits;
use crate::json;

/// The canonical form of a value. The error says what has none.
pub fn canonical(value: &Value) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    write(&value.to_string(), &Limits::default(), &mut |bytes| {
        out.extend_from_slice(bytes);
    })?;
    Ok(out)
}

/// Writes the canonical form of a JSON text. The error says what has none, or is beyond a limit: two members of one
/// name, numbers other than integers of 64 bits, too many members, too deep a nesting.
pub fn write(text: &str, limits: &Limits, out: &mut dyn FnMut(&[u8])) -> Result<(), String> {
    write_value(
        json::value(text)?,
        limits.json_depth,
        limits.json_members,
        out,
    )
}

/// `text` is one value of well-formed JSON, without white space around it.
fn write_value(
    text: &str,
    depth: usize,
    room: usize,
    out: &mut dyn FnMut(&[u8]),
) -> Result<(), String> {
    let depth = depth.checked_sub(1).ok_or("it is nested too deeply")?;
    match text.as_bytes().first() {
        Some(b'{') => {
            let mut members: Vec<(Cow<str>, &str)> = Vec::new();
            json::members(text, &mut |name, value| {
                if members.len() == room {
                    return Err("an object has too many members".into());
                }
                members.push((name, value));
                Ok(())
            })?;
            // UTF-8 sorts by bytes as its code points do.
            members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            if let Some(twice) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                let name = twice[0].0.escape_debug();
                return Err(format!("duplicate member '{name}'"));
            }
            let room = room - members.len();
            out(b"{");
            for (i, (name, value)) in members.iter().enumerate() {
                if i > 0 {
                    out(b",");
                }
                quote(name, out);
                out(b":");
                write_value(value, depth, room, out)?;
            }
            out(b"}");
        }
        Some(b'[') => {
            let mut separator: &[u8] = b"";
            out(b"[");
            json::items(text, &mut |item| {
                out(separator);
                separator = b",";
                write_value(item, depth, room, out)
            })?;
            out(b"]");
        }
        Some(b'"') => quote(&json::string(text)?, out),
        Some(b't' | b'f' | b'n') => out(text.as_bytes()),
        _ => out(integer(text)?.as_bytes()),
    }
    Ok(())
}

fn integer(text: &str) -> Result<String, String> {
    let signed = text.parse::<i64>().map(|number| number.to_string());
    signed
        .or_else(|_| text.parse::<u64>().map(|number| number.to_string()))
        .map_err(|_| {
            format!("{text} must be a 64-bit integer (canonical JSON has no other numbers)")
        })
}

fn quote(text: &str, out: &mut dyn FnMut(&[u8])) {
    out(b"\"");
    let mut rest = text;
    while let Some(at) = rest.find(['"', '\\']) {
        out(&rest.as_bytes()[..at]);
        out(b"\\");
        out(&rest.as_bytes()[at..=at]);
        rest = &rest[at + 1..];
    }
    out(rest.as_bytes());
    out(b"\"");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical_text(json: &str) -> Result<String, String> {
        let mut out = Vec::new();
        write(json, &Limits::default(), &mut |bytes| {
            out.extend_from_slice(bytes);
        })?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_form_is_olpcs() {
        for (json, expected) in [
            (
                r#" { "b" : [ 1 , -2 , true ] , "a" : null } "#,
                r#"{"a":null,"b":[1,-2,true]}"#,
            ),
            (r#"{"a":"\"\\\/"}"#, r#"{"a":"\"\\/"}"#),
            (
                r#"{"a\"\\":{"\u0062":[[],{}]}}"#,
                r#"{"a\"\\":{"b":[[],{}]}}"#,
            ),
            // Control characters and everything beyond ASCII stand for themselves.
            ("\"\\n\\u00e9\\ud83d\\ude00\"", "\"\n\u{e9}\u{1f600}\""),
            // Sorted by code point, where UTF-16 would put U+1F600 before U+FF61.
            (
                "{\"\u{1f600}\":1,\"\u{ff61}\":2,\"Z\":3,\"a\":4,\"\":5}",
                "{\"\":5,\"Z\":3,\"a\":4,\"\u{ff61}\":2,\"\u{1f600}\":1}",
            ),
            // Sorted by what the names say, not by how they are spelt.
            (r#"{"b":1,"\u0061":2}"#, r#"{"a":2,"b":1}"#),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("[-0,0]", "[0,0]"),
            ("{}", "{}"),
            ("[]", "[]"),
        ] {
            assert_eq!(canonical_text(json).unwrap(), expected);
            let value: Value = serde_json::from_str(json).unwrap();
            // A float to that parser.
            if !json.contains("-0") {
                assert_eq!(canonical(&value).unwrap(), expected.as_bytes());
            }
            // What was written is JSON again, and its own canonical form, but for control characters.
            if !expected.contains('\n') {
                assert_eq!(canonical_text(expected).unwrap(), expected);
            }
        }
    }

    #[test]
    fn what_has_no_canonical_form_is_refused() {
        for (json, word) in [
            ("1.0", "must be a 64-bit integer"),
            ("[1e3]", "must be a 64-bit integer"),
            ("{\"a\":-0.0}", "must be a 64-bit integer"),
            ("18446744073709551616", "must be a 64-bit integer"),
            ("-9223372036854775809", "must be a 64-bit integer"),
            ("{\"a\":1,\"a\":1}", "duplicate member 'a'"),
            ("{\"a\":1,\"b\":2,\"\\u0061\":3}", "duplicate member 'a'"),
            ("[{\"x\":{\"\":1,\"\":1}}]", "duplicate member ''"),
            ("\"\\ud800\"", "hex escape"),
            ("{\"\\ud800\":1}", "hex escape"),
            ("{\"a\":1}}", "trailing"),
            ("[1,]", "expected value"),
            ("{", "EOF"),
            ("", "EOF"),
            ("01", "number"),
            ("+1", "expected"),
            ("nul", "EOF"),
            ("nule", "ident"),
        ] {
            let error = canonical_text(json).unwrap_err();
            assert!(error.contains(word), "{json}: {error}");
        }
    }

    #[test]
    fn depth_and_members_have_limits() {
        let limits = Limits {
            json_depth: 4,
            json_members: 3,
            ..Limits::default()
        };
        let accepted = |json: &str| write(json, &limits, &mut |_| ()).is_ok();
        for (json, good) in [
            ("[[[[]]]]", true),
            ("[[[[[]]]]]", false),
            ("[[[1]]]", true),
            ("[[[[1]]]]", false),
            ("{\"a\":{\"a\":{\"a\":1}}}", true),
            ("{\"a\":{\"a\":{\"a\":{}}}}", true),
            ("{\"a\":{\"a\":{\"a\":{\"a\":1}}}}", false),
            ("{\"a\":1,\"b\":2,\"c\":3}", true),
            ("{\"a\":1,\"b\":2,\"c\":3,\"d\":4}", false),
            // Those around it count, those beside it do not.
            ("{\"a\":1,\"b\":{\"c\":1}}", true),
            ("{\"a\":1,\"b\":{\"c\":1,\"d\":2}}", false),
            (
                "[{\"a\":1,\"b\":2,\"c\":3},{\"a\":1,\"b\":2,\"c\":3}]",
                true,
            ),
        ] {
            assert_eq!(accepted(json), good, "{json}");
        }
        // Whatever the depth, the stack holds it.
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert!(canonical_text(&deep).unwrap_err().contains("too deep"));
    }
}
