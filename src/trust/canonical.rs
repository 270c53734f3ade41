//! Canonical JSON as TUF signs it (OLPC's, not RFC 8785): no white space, members sorted by the code points of
//! their names, only `"` and `\` escaped, integers only.

use serde_json::Value;

/// The canonical form of a value. The error says what has none.
pub fn canonical(value: &Value) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

// The parser's depth limit bounds the recursion.
fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::Number(number) => {
            return Err(format!(
                "{number} is no integer of 64 bits, and canonical JSON has no other numbers"
            ));
        }
        Value::String(text) => quote(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            // UTF-8 sorts by bytes as its code points do. Sorted here and not left to the map, whose order is a
            // feature that any other crate in the build could turn on.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| name.as_bytes());
            out.push(b'{');
            for (i, (name, member)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                quote(name, out);
                out.push(b':');
                write(member, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical_text(json: &str) -> Result<String, String> {
        let value: Value = serde_json::from_str(json).unwrap();
        canonical(&value).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_form_is_olpcs() {
        for (json, expected) in [
            (
                r#" { "b" : [ 1 , -2 , true ] , "a" : null } "#,
                r#"{"a":null,"b":[1,-2,true]}"#,
            ),
            (r#"{"a":"\"\\\/"}"#, r#"{"a":"\"\\/"}"#),
            // Control characters and everything beyond ASCII stand for themselves.
            ("\"\\n\\u00e9\\ud83d\\ude00\"", "\"\n\u{e9}\u{1f600}\""),
            // Sorted by code point, where UTF-16 would put U+1F600 before U+FF61.
            (
                "{\"\u{1f600}\":1,\"\u{ff61}\":2,\"Z\":3,\"a\":4,\"\":5}",
                "{\"\":5,\"Z\":3,\"a\":4,\"\u{ff61}\":2,\"\u{1f600}\":1}",
            ),
            ("18446744073709551615", "18446744073709551615"),
            ("{}", "{}"),
            ("[]", "[]"),
        ] {
            assert_eq!(canonical_text(json).unwrap(), expected);
        }
    }

    #[test]
    fn floats_have_no_canonical_form() {
        for json in ["1.0", "[1e3]", "{\"a\":-0.0}", "18446744073709551616"] {
            assert!(canonical_text(json).is_err(), "{json}");
        }
    }
}
