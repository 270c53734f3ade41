//! Delegations: which role is asked for a target, in which order. Pure: the metadata of the roles come from the caller.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::key::Verifiers;
use super::limits::Limits;
use super::metadata::{RoleKeys, TargetInfo, Targets, at_most, parse_keys};
use super::{Role, json};
use crate::digest::Digest;
use crate::error::{Error, Exit, Result};
use crate::manifest::RelPath;

/// The name of a delegated role: neither empty nor that of a top-level role, and no control character in it. What else
/// it contains does no harm, for it is percent-encoded wherever it becomes a part of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoleName(String);

impl RoleName {
    /// Checks a name.
    pub fn new(name: &str, limits: &Limits) -> Result<RoleName, String> {
        // Its longest form, with a version, must be the name of a file.
        let longest = limits.role_name_bytes.min(80);
        let quoted = name.escape_debug();
        if name.is_empty() || name.chars().any(char::is_control) {
            Err(format!("'{quoted}' is not the name of a role"))
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
    /// Who speaks for it there. The same role may have others elsewhere.
    pub verifiers: Verifiers,
    /// Whether nobody after it is asked for what it is trusted with.
    pub terminating: bool,
}

/// Where a target was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The delegated role that lists it; `None`: the top-level targets do.
    pub role: Option<RoleName>,
    /// What is said of it.
    pub target: TargetInfo,
}

/// Looks for a target: in the top-level targets, then depth first, each role before those that it delegates to, in the
/// order of the delegations. `load` gives a delegated role's metadata, verified as its delegator asks; its failure ends the
/// search, for a role that comes later must not speak for one that was kept away.
///
/// # Errors
/// What `load` says; [`Exit::Refused`] if more than `limits.delegated_roles` would have to be asked.
pub fn search(
    top: &Targets,
    name: &RelPath,
    limits: &Limits,
    load: &mut dyn FnMut(&Delegation) -> Result<Rc<Targets>>,
) -> Result<Option<Found>> {
    if let Some(target) = top.target(name) {
        return Ok(Some(Found { role: None, target }));
    }
    let mut asked = BTreeSet::new();
    let mut next = Vec::new();
    push(&mut next, delegations_for(top, "targets", name, limits));
    while let Some(delegation) = next.pop() {
        if asked.contains(&delegation.role) {
            continue;
        }
        if asked.len() == limits.delegated_roles {
            let most = limits.delegated_roles;
            let why = format!(
                "looking for {name}: more than {most} delegated roles would have to be asked"
            );
            return Err(Error::with(Exit::Refused, why));
        }
        let targets = load(&delegation)?;
        let role = delegation.role;
        if let Some(target) = targets.target(name) {
            let role = Some(role);
            return Ok(Some(Found { role, target }));
        }
        push(
            &mut next,
            delegations_for(&targets, role.as_str(), name, limits),
        );
        asked.insert(role);
    }
    Ok(None)
}

/// What is asked next comes last. After a terminating role nobody else is asked.
fn push(next: &mut Vec<Delegation>, found: Vec<Delegation>) {
    if found.last().is_some_and(|last| last.terminating) {
        next.clear();
    }
    next.extend(found.into_iter().rev());
}

/// Whom targets metadata trust with a target, in order, up to the first that is terminating.
fn delegations_for(
    targets: &Targets,
    delegator: &str,
    name: &RelPath,
    limits: &Limits,
) -> Vec<Delegation> {
    let hash = Digest::of(name.as_str().as_bytes()).to_string();
    let mut terminated = false;
    chosen(targets, delegator, limits, &mut |scope| {
        let trusted = !terminated
            && match scope.paths {
                Paths::Patterns(patterns) => {
                    any(patterns, &|pattern| matches(pattern, name.as_str()))
                }
                Paths::HashPrefixes(prefixes) => any(prefixes, &|prefix| hash.starts_with(prefix)),
                Paths::Bin(length) => return Some(bin(&hash, length)),
            };
        terminated |= trusted && scope.terminating;
        trusted.then(String::new)
    })
}

/// Whom targets metadata trust, by a pattern, with names of which `might` says that they are of interest. It is asked with
/// each pattern. Hash prefixes and bins say nothing of names.
pub fn by_pattern(
    targets: &Targets,
    delegator: &str,
    limits: &Limits,
    might: &dyn Fn(&str) -> bool,
) -> Vec<Delegation> {
    chosen(targets, delegator, limits, &mut |scope| match scope.paths {
        Paths::Patterns(patterns) => any(patterns, might).then(String::new),
        Paths::HashPrefixes(_) | Paths::Bin(_) => None,
    })
}

/// What a delegation is for.
struct Scope<'a> {
    paths: Paths<'a>,
    terminating: bool,
}

enum Paths<'a> {
    /// A list of patterns.
    Patterns(&'a str),
    /// A list of beginnings of the hexadecimal SHA-256 of a name.
    HashPrefixes(&'a str),
    /// One role for each value of so many bits of that digest.
    Bin(u32),
}

#[derive(Deserialize)]
struct RawDelegations<'a> {
    #[serde(borrow)]
    keys: &'a RawValue,
    #[serde(borrow)]
    roles: Option<&'a RawValue>,
    #[serde(borrow)]
    succinct_roles: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawDelegation<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    terminating: bool,
    #[serde(borrow)]
    paths: Option<&'a RawValue>,
    #[serde(borrow)]
    path_hash_prefixes: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawSuccinct<'a> {
    bit_length: u32,
    #[serde(borrow)]
    name_prefix: Cow<'a, str>,
}

/// Walks the delegations. `choose` takes one by returning the end of its role's name, which is empty but for bins.
fn walk(
    text: &str,
    delegator: &str,
    limits: &Limits,
    choose: &mut dyn FnMut(&Scope) -> Option<String>,
) -> Result<Vec<Delegation>, String> {
    let raw: RawDelegations = json::object(text)?;
    let keys = parse_keys(raw.keys.get(), limits).map_err(|why| format!("keys: {why}"))?;
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
    match (raw.roles, raw.succinct_roles) {
        (Some(roles), None) => {
            let mut names = BTreeSet::new();
            json::items(roles.get(), &mut |item| {
                at_most(names.len(), limits.delegations, "delegated roles")?;
                let raw: RawDelegation = json::object(item)?;
                let name = RoleName::new(&raw.name, limits)?;
                let (list, paths) = match (raw.paths, raw.path_hash_prefixes) {
                    (Some(list), None) => (list, Paths::Patterns(list.get())),
                    (None, Some(list)) => (list, Paths::HashPrefixes(list.get())),
                    _ => {
                        return Err(format!(
                            "{name}: one of paths and path_hash_prefixes is needed"
                        ));
                    }
                };
                json::items(list.get(), &mut |item| json::string(item).map(drop))
                    .map_err(|why| format!("{name}: {why}"))?;
                let terminating = raw.terminating;
                take(name.as_str(), item, &Scope { paths, terminating })
                    .map_err(|why: String| format!("{name}: {why}"))?;
                if !names.insert(name) {
                    return Err(format!(
                        "the role '{}' is there twice",
                        raw.name.escape_debug()
                    ));
                }
                Ok(())
            })?;
        }
        (None, Some(succinct)) => {
            let raw: RawSuccinct = json::object(succinct.get())?;
            if !(1..=32).contains(&raw.bit_length) {
                return Err(format!("bit_length {} is not 1 to 32", raw.bit_length));
            }
            let paths = Paths::Bin(raw.bit_length);
            let prefix = format!("{}-", raw.name_prefix);
            // The name of any bin is as good as that of another.
            RoleName::new(
                &format!("{prefix}{}", bin(&"0".repeat(64), raw.bit_length)),
                limits,
            )?;
            take(
                &prefix,
                succinct.get(),
                &Scope {
                    paths,
                    terminating: true,
                },
            )?;
        }
        _ => return Err("one of roles and succinct_roles is needed".into()),
    }
    Ok(taken)
}

/// Checks what delegations say, all of it.
pub(super) fn check(text: &str, limits: &Limits) -> Result<(), String> {
    walk(text, "", limits, &mut |_| None)
        .map(drop)
        .map_err(|why| format!("delegations: {why}"))
}

fn chosen(
    targets: &Targets,
    delegator: &str,
    limits: &Limits,
    choose: &mut dyn FnMut(&Scope) -> Option<String>,
) -> Vec<Delegation> {
    let walked = targets
        .delegations()
        .map(|text| walk(text, delegator, limits, choose));
    // They were checked when the metadata were verified.
    walked.and_then(Result::ok).unwrap_or_default()
}

/// The end of the name of the bin for a name with this digest: its first bits, as so many hexadecimal digits as the last
/// bin needs.
fn bin(hash: &str, bit_length: u32) -> String {
    let first = u32::from_str_radix(&hash[..8], 16).unwrap_or_default();
    let digits = bit_length.div_ceil(4) as usize;
    format!("{:0digits$x}", first >> (32 - bit_length))
}

fn any(list: &str, test: &dyn Fn(&str) -> bool) -> bool {
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
