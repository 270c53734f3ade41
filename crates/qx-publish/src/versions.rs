//! What a recipe says of versions: `{version}` stands for its own, and a check that asks for another one is wrong, or looks so.
//!
//! One recipe describes the factory set and every release after it. A version that is spelt out in a check is right for one of
//! them only, and a set whose own check never passes can never be gone back to.

use semver::Version;
use serde_json::Value;

use qx_release::manifest::{Check, Manifest, Probe};

/// Fills `{version}` in. `{data:NAME}` is left for the appliance where `places` says that it is known; any other name in
/// braces is a slip of the pen. Braces around anything but a name mean nothing.
pub(crate) fn fill(
    field: &str,
    text: &mut String,
    version: &str,
    places: bool,
) -> Result<(), String> {
    let mut filled = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        rest = match placeholder(after) {
            Some(("version", rest)) => {
                filled.push_str(version);
                rest
            }
            Some((name, _)) if !(places && name.starts_with("data:")) => {
                return Err(format!(
                    "{field}: unknown placeholder '{{{}}}' (known: {{version}}{})",
                    name.escape_debug(),
                    if places { " and {data:NAME}" } else { "" }
                ));
            }
            _ => {
                filled.push('{');
                after
            }
        };
    }
    filled.push_str(rest);
    *text = filled;
    Ok(())
}

/// The name in the braces that were just opened, and what follows them.
fn placeholder(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.split_once('}')?;
    let word = name.trim();
    let letter = |c: char| c.is_ascii_alphanumeric() || "_.:+-".contains(c);
    let named = word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.chars().all(letter);
    named.then_some((name, rest))
}

/// Fills `{version}` in, in every text of a JSON value.
pub(crate) fn fill_value(field: &str, value: &mut Value, version: &str) -> Result<(), String> {
    match value {
        Value::String(text) => fill(field, text, version, false),
        Value::Array(items) => items
            .iter_mut()
            .try_for_each(|item| fill_value(field, item, version)),
        Value::Object(members) => {
            for (mut name, mut value) in std::mem::take(members) {
                fill(field, &mut name, version, false)?;
                fill_value(field, &mut value, version)?;
                members.insert(name, value);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Why the checks can never pass for this release: they ask for a version, and none of them for the release's own. Where
/// one does, the others may well be of programs that did not change, or that have versions of their own.
pub(crate) fn contradiction(manifest: &Manifest) -> Option<String> {
    let own = &manifest.version;
    let asks = |check| {
        texts(check)
            .into_iter()
            .filter(|(at, _)| names_a_version(at))
    };
    let mut all = manifest.health.iter().flat_map(asks);
    if all.any(|(_, asked)| version(asked).is_some_and(|v| v.cmp_precedence(own).is_eq())) {
        return None;
    }
    of_the_release(manifest).find_map(|(number, check)| {
        let (pointer, asked) = asks(check).find(|(_, asked)| another(asked, own))?;
        Some(format!(
            "health[{number}].json ({}): {} at {} is not the recipe's own version, {own}; use {{version}}, or \"service\": \"NAME\" \
             for the check of a service with versions of its own",
            check.probe.to_string().escape_debug(),
            asked.escape_debug(),
            pointer.escape_debug()
        ))
    })
}

/// What looks as if another version than the release's own were meant, and may be right.
pub fn doubts(manifest: &Manifest) -> Vec<String> {
    let own = &manifest.version;
    let mut found = Vec::new();
    let mut look = |field: String, text: &str| {
        if let Some(other) = mentions_another(text, own) {
            found.push(format!(
                "{field} names the version {other}, but the recipe's own is {own}; use {{version}} if that is meant"
            ));
        }
    };
    for (number, check) in of_the_release(manifest) {
        let probe = check.probe.to_string();
        let field = |name: &str| format!("health[{number}].{name} ({})", probe.escape_debug());
        for (pointer, text) in texts(check) {
            look(field("json"), &pointer);
            look(field("json"), text);
        }
        match &check.probe {
            Probe::Http { url, .. } => look(field("url"), url),
            // The program's own path must exist in the release.
            Probe::Exec { run } => {
                run.iter().skip(1).for_each(|text| look(field("run"), text));
            }
            _ => {}
        }
    }
    found
}

/// The checks that are of the release as a whole. A service's own may ask for a version of its own: a program that others
/// make, or one that only some releases change.
fn of_the_release(manifest: &Manifest) -> impl Iterator<Item = (usize, &Check)> {
    let checks = manifest.health.iter().enumerate();
    checks.filter(|(_, check)| check.service().is_none())
}

/// The texts that a check asks for, each with the pointer that leads to it.
fn texts(check: &Check) -> Vec<(String, &str)> {
    let mut found = Vec::new();
    if let Probe::Http {
        json: Some(json), ..
    } = &check.probe
    {
        let mut left = vec![(json.pointer.clone(), &json.equals)];
        while let Some((pointer, value)) = left.pop() {
            match value {
                Value::String(text) => found.push((pointer, text.as_str())),
                Value::Object(members) => {
                    left.extend(members.iter().map(|(k, v)| (format!("{pointer}/{k}"), v)));
                }
                Value::Array(items) => {
                    let items = items.iter().enumerate();
                    left.extend(items.map(|(i, v)| (format!("{pointer}/{i}"), v)));
                }
                _ => {}
            }
        }
    }
    found
}

/// Whether what a pointer leads to is called a version.
fn names_a_version(pointer: &str) -> bool {
    let name = pointer.rsplit('/').next().unwrap_or(pointer);
    name.to_ascii_lowercase().contains("version")
}

/// The version that a text is, with or without a v before it.
fn version(text: &str) -> Option<Version> {
    let text = text.trim();
    Version::parse(text.strip_prefix(['v', 'V']).unwrap_or(text)).ok()
}

/// Whether a text is a version, and not this one. What it was built from does not count.
fn another(text: &str, own: &Version) -> bool {
    version(text).is_some_and(|version| version.cmp_precedence(own).is_ne())
}

/// The first version in a text that does not name this one.
fn mentions_another<'a>(text: &'a str, own: &Version) -> Option<&'a str> {
    if text.contains(&own.to_string()) {
        return None;
    }
    text.split(|c: char| !(c.is_ascii_alphanumeric() || ".+-".contains(c)))
        .map(|word| word.trim_start_matches(|c: char| !c.is_ascii_digit()))
        .find(|word| another(word, own))
}
