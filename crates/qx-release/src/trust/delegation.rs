//! Delegations: which role is trusted with which names.

use std::collections::BTreeSet;
use std::fmt;

use super::Role;
use super::key::Verifiers;
use super::limits::Limits;
use super::role_keys::{RoleKeys, at_most, parse_keys};
use crate::json;

/// The name of a delegated role: neither empty nor that of a top-level role, and no control character in it. What else
/// it contains does no harm, for it is percent-encoded wherever it becomes a part of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoleName(String);

impl RoleName {
    /// Checks a name.
    pub fn new(name: &str, limits: &Limits) -> Result<RoleName, String> {
        // Its longest form, with a version, must be the name of a file.
        let longest = limits
            .role_name_bytes
            .min(Limits::default().role_name_bytes);
        let quoted = name.escape_debug();
        if name.is_empty() || name.chars().any(char::is_control) {
            Err(format!("'{quoted}' is not a valid role name"))
        } else if name.len() > longest {
            Err(format!(
                "the role name '{quoted}' is longer than {longest} bytes"
            ))
        } else if Role::ALL.iter().any(|role| role.as_str() == name) {
            Err(format!(
                "'{quoted}' is a top-level role and cannot be delegated to"
            ))
        } else {
            Ok(RoleName(name.to_owned()))
        }
    }

    /// The name as metadata spell it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As paths and URLs spell it: all but letters, digits and `_.-~` percent-encoded.
    pub fn encoded(&self) -> String {
        let mut encoded = String::new();
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) {
                encoded.push(byte.into());
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        encoded
    }

    /// The name of the role's file in a snapshot.
    pub fn file(&self) -> String {
        format!("{}.json", self.0)
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_debug(), f)
    }
}

/// A role that another one delegates to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The role.
    pub role: RoleName,
    /// Who delegates to it.
    pub delegator: String,
    /// Its keys and threshold in this delegation. Another delegator may name others.
    pub verifiers: Verifiers,
    /// Whether the search for what it is trusted with ends after it.
    pub terminating: bool,
}

/// What a delegation is for.
pub(super) struct Scope<'a> {
    pub(super) paths: Paths<'a>,
    pub(super) terminating: bool,
}

pub(super) enum Paths<'a> {
    /// A list of patterns.
    Patterns(&'a str),
    /// A list of beginnings of the hexadecimal SHA-256 of a name.
    HashPrefixes(&'a str),
    /// One role for each value of so many bits of that digest.
    Bin(u32),
}

/// Walks the delegations. `choose` takes one by returning the end of its role's name, which is empty but for bins.
pub(super) fn walk(
    text: &str,
    delegator: &str,
    limits: &Limits,
    choose: &mut dyn FnMut(&Scope) -> Option<String>,
) -> Result<Vec<Delegation>, String> {
    let [keys, roles, succinct] = json::fields(text, ["keys", "roles", "succinct_roles"])?;
    let keys =
        parse_keys(json::there(keys, "keys")?, limits).map_err(|why| format!("keys: {why}"))?;
    let mut taken = Vec::new();
    let mut take = |name: &str, keyids: &str, scope: &Scope| {
        let listed = RoleKeys::parse(keyids, limits)?;
        if let Some(end) = choose(scope) {
            taken.push(Delegation {
                role: RoleName::new(&format!("{name}{end}"), limits)?,
                delegator: delegator.to_owned(),
                verifiers: listed.verifiers(&keys),
                terminating: scope.terminating,
            });
        }
        Ok(())
    };
    match (roles, succinct) {
        (Some(roles), None) => each_role(roles, limits, &mut take)?,
        (None, Some(succinct)) => bins(succinct, limits, &mut take)?,
        _ => return Err("exactly one of roles and succinct_roles is required".into()),
    }
    Ok(taken)
}

/// What is done with a delegation: the start of its role's name, the text with its keys, and what it is for.
type Take<'a> = dyn FnMut(&str, &str, &Scope) -> Result<(), String> + 'a;

/// A list of roles, each with a name of its own.
fn each_role(roles: &str, limits: &Limits, take: &mut Take) -> Result<(), String> {
    let mut names = BTreeSet::new();
    json::items(roles, &mut |item| {
        at_most(names.len(), limits.delegations, "delegated roles")?;
        let [name, terminating, paths, prefixes] =
            json::fields(item, ["name", "terminating", "paths", "path_hash_prefixes"])?;
        let name = json::string(json::there(name, "name")?)?;
        let name = RoleName::new(&name, limits)?;
        let terminating = json::boolean(terminating, "terminating")?
            .ok_or_else(|| format!("{name}: terminating is missing"))?;
        let (list, paths) = match (paths, prefixes) {
            (Some(list), None) => (list, Paths::Patterns(list)),
            (None, Some(list)) => (list, Paths::HashPrefixes(list)),
            _ => {
                return Err(format!(
                    "{name}: exactly one of paths and path_hash_prefixes is required"
                ));
            }
        };
        json::items(list, &mut |item| json::string(item).map(drop))
            .map_err(|why| format!("{name}: {why}"))?;
        take(name.as_str(), item, &Scope { paths, terminating })
            .map_err(|why| format!("{name}: {why}"))?;
        let named = name.to_string();
        if !names.insert(name) {
            return Err(format!("duplicate role '{named}'"));
        }
        Ok(())
    })
}

/// One role for each bin of names (TAP 15), all with the same keys.
fn bins(succinct: &str, limits: &Limits, take: &mut Take) -> Result<(), String> {
    let [bits, prefix] = json::fields(succinct, ["bit_length", "name_prefix"])?;
    let bits = match json::integer(bits, "bit_length")? {
        bits @ 1..=32 => bits as u32,
        bits => return Err(format!("bit_length {bits} is out of range (1 to 32)")),
    };
    let prefix = format!("{}-", json::string(json::there(prefix, "name_prefix")?)?);
    // The name of any bin is as good as that of another.
    RoleName::new(&format!("{prefix}{}", bin(&"0".repeat(64), bits)), limits)?;
    let scope = Scope {
        paths: Paths::Bin(bits),
        terminating: true,
    };
    take(&prefix, succinct, &scope)
}

/// Checks what delegations say, all of it.
pub(super) fn check(text: &str, limits: &Limits) -> Result<(), String> {
    walk(text, "", limits, &mut |_| None)
        .map(drop)
        .map_err(|why| format!("delegations: {why}"))
}

/// The end of the name of the bin for a name with this digest: its first bits, as so many hexadecimal digits as the last
/// bin needs.
pub(super) fn bin(hash: &str, bit_length: u32) -> String {
    let first = u32::from_str_radix(&hash[..8], 16).unwrap_or_default();
    let digits = bit_length.div_ceil(4) as usize;
    format!("{:0digits$x}", first >> (32 - bit_length))
}

pub(super) fn any(list: &str, test: &dyn Fn(&str) -> bool) -> bool {
    let mut found = false;
    // A list of texts, as was checked.
    let _ = json::items(list, &mut |item| {
        found = found || test(&json::string(item)?);
        Ok(())
    });
    found
}

/// Whether a path matches a pattern: segment by segment, so that no wildcard ever stands for a `/`.
pub fn matches(pattern: &str, path: &str) -> bool {
    pattern.split('/').count() == path.split('/').count()
        && pattern
            .split('/')
            .zip(path.split('/'))
            .all(|(pattern, segment)| segment_matches(pattern, segment))
}

/// Shell wildcards as Python's `fnmatchcase` has them: `*`, `?`, `[a-z]`, `[!a-z]`. There is no escape; a `[` that is never
/// closed stands for itself.
pub fn segment_matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where to go on if what follows the last star does not match: one character later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        let step = match (pattern.get(p..).and_then(<[char]>::first), text.get(t)) {
            (None, None) => return true,
            (Some(_), Some(&c)) => one_matches(&pattern[p..], c),
            _ => None,
        };
        match (step, &mut retry) {
            (Some(length), _) => {
                p += length;
                t += 1;
            }
            (None, Some((after_star, from))) if *from < text.len() => {
                *from += 1;
                (p, t) = (*after_star, *from);
            }
            _ => return false,
        }
    }
}

/// Whether the first element of a pattern matches a character: if so, the element's length.
fn one_matches(pattern: &[char], c: char) -> Option<usize> {
    match pattern[0] {
        '?' => Some(1),
        '[' => {
            let negated = pattern.get(1) == Some(&'!');
            let start = if negated { 2 } else { 1 };
            // A bracket that comes first is one of the set.
            let close = (start + 1..pattern.len()).find(|&at| pattern[at] == ']');
            let Some(close) = close else {
                return (c == '[').then_some(1);
            };
            let mut set = &pattern[start..close];
            let mut there = false;
            while let [first, rest @ ..] = set {
                if let ['-', last, rest @ ..] = rest {
                    there |= (*first..=*last).contains(&c);
                    set = rest;
                } else {
                    there |= *first == c;
                    set = rest;
                }
            }
            (there != negated).then_some(close + 1)
        }
        literal => (literal == c).then_some(1),
    }
}
