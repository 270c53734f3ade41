//! JSON text, walked piece by piece. Metadata come to megabytes, and a tree of them in memory would be ten times as
//! large as their text; here nothing but the text is held.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{self, Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use typed::Typed;

mod typed;

/// Returns the texts of an object's members with these names. Null counts as absent; other members are ignored.
pub fn fields<'a, const N: usize>(
    text: &'a str,
    names: [&str; N],
) -> Result<[Option<&'a str>; N], String> {
    let mut found = [None; N];
    pick(text, &names, &mut found)?;
    Ok(found)
}

/// Without the byte order mark that some editors put in front of a text.
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Reads bytes that hold one value.
pub fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    // Everything is read as text: a second kind of reader is another copy of the code for each type that is read.
    parse_str(std::str::from_utf8(without_mark(bytes)).map_err(|e| e.to_string())?)
}

/// Reads a text that holds one value.
pub fn parse_str<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    let mut text = serde_json::Deserializer::from_str(text);
    T::deserialize(Typed(&mut text))
        .and_then(|value| text.end().map(|()| value))
        .map_err(|e| e.to_string())
}

fn pick<'a>(text: &'a str, names: &[&str], found: &mut [Option<&'a str>]) -> Result<(), String> {
    members(text, &mut |name, value| {
        if let Some(at) = names.iter().position(|wanted| *wanted == name)
            && value != "null"
            && found[at].replace(value).is_some()
        {
            return Err(format!("duplicate {name}"));
        }
        Ok(())
    })
}

/// Returns the text of a required member.
pub fn there<'a>(value: Option<&'a str>, name: &str) -> Result<&'a str, String> {
    value.ok_or_else(|| format!("{name} is missing"))
}

/// Reads a non-negative integer.
pub fn integer(value: Option<&str>, name: &str) -> Result<u64, String> {
    let text = there(value, name)?;
    text.parse()
        .map_err(|_| format!("{name} must be a non-negative integer"))
}

/// Checks that a number is in a range; the error names both.
pub fn in_range(name: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), String> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(format!(
            "{name}: {value} is out of range ({} to {})",
            range.start(),
            range.end()
        )),
    }
}

/// Reads true or false, if the member exists.
pub fn boolean(value: Option<&str>, name: &str) -> Result<Option<bool>, String> {
    match value {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(format!("{name} must be true or false")),
    }
}

/// A well-formed text of one value, without the white space around it.
pub fn value(text: &str) -> Result<&str, String> {
    let value: &RawValue = serde_json::from_str(text).map_err(|e| e.to_string())?;
    Ok(value.get())
}

/// Reads a text.
pub fn string(text: &str) -> Result<Cow<'_, str>, String> {
    let text: Text = serde_json::from_str(text).map_err(|e| e.to_string())?;
    Ok(text.0)
}

/// Gives each member of an object to `visit`, in the order of the text.
pub fn members<'a>(
    text: &'a str,
    visit: &mut dyn FnMut(Cow<'a, str>, &'a str) -> Result<(), String>,
) -> Result<(), String> {
    let mut refused = None;
    let walk = Members {
        visit,
        refused: &mut refused,
    };
    let mut text = serde_json::Deserializer::from_str(text);
    let walked = text.deserialize_map(walk).and_then(|()| text.end());
    ended(walked, refused)
}

/// Gives each item of an array to `visit`.
pub fn items<'a>(
    text: &'a str,
    visit: &mut dyn FnMut(&'a str) -> Result<(), String>,
) -> Result<(), String> {
    let mut refused = None;
    let walk = Items {
        visit,
        refused: &mut refused,
    };
    let mut text = serde_json::Deserializer::from_str(text);
    let walked = text.deserialize_seq(walk).and_then(|()| text.end());
    ended(walked, refused)
}

/// A text, without a copy where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Members<'v, 'a> {
    visit: &'v mut dyn FnMut(Cow<'a, str>, &'a str) -> Result<(), String>,
    refused: &'v mut Option<String>,
}

struct Items<'v, 'a> {
    visit: &'v mut dyn FnMut(&'a str) -> Result<(), String>,
    refused: &'v mut Option<String>,
}

impl<'a> Visitor<'a> for Members<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<Text<'a>, &'a RawValue>()? {
            stop((self.visit)(name.0, value.get()), self.refused)?;
        }
        Ok(())
    }
}

impl<'a> Visitor<'a> for Items<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(item) = seq.next_element::<&'a RawValue>()? {
            stop((self.visit)(item.get()), self.refused)?;
        }
        Ok(())
    }
}

/// Ends the walk. The error is kept apart, because the parser would append a position that means nothing to the reader.
fn stop<E: de::Error>(result: Result<(), String>, refused: &mut Option<String>) -> Result<(), E> {
    result.map_err(|why| {
        *refused = Some(why);
        E::custom("")
    })
}

fn ended(walked: serde_json::Result<()>, refused: Option<String>) -> Result<(), String> {
    match refused {
        Some(why) => Err(why),
        None => walked.map_err(|e| e.to_string()),
    }
}
