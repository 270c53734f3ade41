//! Tests of rules that hold for whatever is offered, against references that are as plain as possible. The cases are random
//! and yet the same in each run; a failure names its case.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use fastrand::Rng;
use serde_json::{Value, json};

use super::clock::Clock;
use super::delegation::matches;
use super::forge::{Forge, at, key};
use super::key::{Key, Verifiers, hex};
use super::metadata::Targets;
use super::search::search;
use super::signing::Sign as _;
use super::{Limits, Role, SnapshotCopy, TrustedSet, canonical};
use crate::digest::Digest;

fn begin(root: &[u8]) -> Result<TrustedSet, super::Error> {
    TrustedSet::new(root, Clock::new(at(0), at(0)), &Limits::default())
}

fn some<T: Copy>(rng: &mut Rng, all: &[T]) -> Vec<T> {
    all.iter().copied().filter(|_| rng.bool()).collect()
}

/// A root with any keys under any ids is accepted exactly if enough distinct keys of its root role signed it.
#[test]
fn a_threshold_counts_the_distinct_keys_of_the_role() {
    let mut rng = Rng::with_seed(1);
    let (mut accepted, mut refused) = (0, 0);
    for case in 0..300 {
        // Four keys under up to eight ids, of which the role has some, and an id that nobody has a key for.
        let ids: Vec<(String, u8)> = (0..rng.usize(1..=8))
            .map(|n| (format!("id{n}"), rng.u8(1..=4)))
            .collect();
        let mut signed = Forge::empty().signed(Role::Root);
        for (id, number) in &ids {
            signed["keys"][id] = key(*number).public();
        }
        let all: Vec<&(String, u8)> = ids.iter().collect();
        let chosen = some(&mut rng, &all);
        let mut keyids: Vec<&str> = chosen.iter().map(|(id, _)| id.as_str()).collect();
        keyids.push("nobody");
        let threshold = rng.usize(1..=3);
        signed["roles"]["root"] = json!({"keyids": keyids, "threshold": threshold});
        let message = canonical::canonical(&signed).unwrap();
        let mut valid = BTreeSet::new();
        let mut signatures = Vec::new();
        let mut signers: Vec<(&str, u8)> = ids.iter().map(|(id, n)| (id.as_str(), *n)).collect();
        signers.push(("nobody", 1));
        rng.shuffle(&mut signers);
        for (id, number) in signers {
            let (by, message, good) = match rng.u8(0..6) {
                0 => continue,
                1 => (number % 4 + 1, &message[..], false),
                2 => (number, &b"{}"[..], false),
                _ => (number, &message[..], true),
            };
            let sig = hex(&key(by).sign(message).unwrap());
            signatures.push(json!({"keyid": id, "sig": sig}));
            if good && id != "nobody" && keyids.contains(&id) {
                valid.insert(number);
            }
        }
        let file = json!({"signatures": signatures, "signed": signed}).to_string();
        let expected = valid.len() >= threshold;
        let result = begin(file.as_bytes());
        assert_eq!(result.is_ok(), expected, "case {case}: {file}");
        *(if expected {
            &mut accepted
        } else {
            &mut refused
        }) += 1;
    }
    assert!(accepted > 50 && refused > 50, "{accepted} {refused}");
}

/// What a client has seen, by the rules of the specification written down once more.
#[derive(Default, Clone)]
struct Seen {
    /// The version, and that of the snapshot.
    timestamp: Option<(u64, u64)>,
    /// The version, that of the targets, and of a team's file if it is listed.
    snapshot: Option<(u64, u64, Option<u64>)>,
}

impl Seen {
    fn timestamp(&mut self, (version, snapshot): (u64, u64)) -> bool {
        let (old, old_snapshot) = self.timestamp.unwrap_or_default();
        if version < old || (version > old && snapshot < old_snapshot) {
            return false;
        }
        if version > old {
            self.timestamp = Some((version, snapshot));
        }
        true
    }

    fn snapshot(&mut self, new: (u64, u64, Option<u64>), local: bool) -> bool {
        let Some((_, announced)) = self.timestamp else {
            return false;
        };
        if !local && new.0 != announced {
            return false;
        }
        if let Some((_, targets, team)) = self.snapshot
            && (new.1 < targets || new.2 < team)
        {
            return false;
        }
        self.snapshot = Some(new);
        new.0 == announced
    }

    fn targets(&self, version: u64) -> bool {
        match (self.timestamp, self.snapshot) {
            (Some((_, announced)), Some((snapshot, targets, _))) => {
                snapshot == announced && version == targets
            }
            _ => false,
        }
    }
}

/// Any sequence of honest and hostile offers, restarts and rotated keys: what is accepted is what the rules say, and what is
/// trusted never gets older but when the root replaced the role's key.
#[test]
fn trusted_versions_never_decrease_under_one_root() {
    let mut rng = Rng::with_seed(2);
    let (mut accepted, mut refused, mut rotations) = (0, 0, 0);
    for case in 0..40 {
        let mut forge = Forge::empty();
        forge.hashes = false;
        let mut set = begin(&forge.bytes(Role::Root)).unwrap();
        let mut seen = Seen::default();
        // What an appliance keeps: the bytes, what they say, and by which key.
        let mut kept_timestamp = None;
        let mut kept_snapshot = None;
        for step in 0..40 {
            let at = format!("case {case}, step {step}");
            let before = seen.clone();
            let mut new = forge.clone();
            for role in [Role::Timestamp, Role::Snapshot, Role::Targets] {
                new.draft(role).version = rng.u64(1..=4);
            }
            let wrong_key = rng.u8(0..6) == 0;
            let sign = |role: Role, signed: &Value| {
                let own = forge.roles[&role].0.clone();
                forge.sign(signed, if wrong_key { &[99] } else { &own })
            };
            let (result, expected) = match rng.u8(0..8) {
                0..3 => {
                    let says = (new.timestamp.version, new.snapshot.version);
                    let bytes = sign(Role::Timestamp, &new.signed(Role::Timestamp));
                    let expected = !wrong_key && seen.timestamp(says);
                    let result = set.update_timestamp(&bytes);
                    if result == Ok(true) {
                        kept_timestamp = Some((bytes, says, forge.roles[&Role::Timestamp].clone()));
                    }
                    (result.map(drop), expected)
                }
                3..5 => {
                    let team = rng.bool().then(|| rng.u64(1..=3));
                    let mut signed = new.signed(Role::Snapshot);
                    if let Some(version) = team {
                        signed["meta"]["team.json"] = json!({"version": version});
                    }
                    let says = (new.snapshot.version, new.targets.version, team);
                    let bytes = sign(Role::Snapshot, &signed);
                    let expected = !wrong_key && seen.snapshot(says, false);
                    let result = set.update_snapshot(&bytes, SnapshotCopy::Announced);
                    if result.is_ok() {
                        kept_snapshot = Some((bytes, says, forge.roles[&Role::Snapshot].clone()));
                    }
                    (result, expected)
                }
                5..7 => {
                    let bytes = sign(Role::Targets, &new.signed(Role::Targets));
                    let expected = !wrong_key && seen.targets(new.targets.version);
                    let result = set.update_targets(bytes);
                    if expected {
                        let trusted = set.targets().map(|targets| targets.version);
                        assert_eq!(trusted, Some(new.targets.version), "{at}");
                    }
                    (result, expected)
                }
                // The next refresh, with a new root perhaps.
                _ => {
                    if rng.bool() {
                        let role = [Role::Timestamp, Role::Snapshot][rng.usize(0..2)];
                        let fresh = 100 + rng.u8(0..100);
                        forge.roles.insert(role, (vec![fresh], 1));
                        forge.root.version += 1;
                        rotations += 1;
                    }
                    set = begin(&forge.bytes(Role::Root)).unwrap();
                    seen = Seen::default();
                    if let Some((bytes, says, keys)) = &kept_timestamp {
                        let verified = forge.roles[&Role::Timestamp] == *keys;
                        assert_eq!(set.update_timestamp(bytes).is_ok(), verified, "{at}");
                        if verified {
                            seen.timestamp(*says);
                        }
                    }
                    if let Some((bytes, says, keys)) = &kept_snapshot {
                        let expected =
                            forge.roles[&Role::Snapshot] == *keys && seen.snapshot(*says, true);
                        assert_eq!(
                            set.update_snapshot(bytes, SnapshotCopy::Stored).is_ok(),
                            expected,
                            "{at}"
                        );
                    }
                    let same = |role| forge.roles[&role] == Forge::empty().roles[&role];
                    assert!(
                        seen.timestamp >= before.timestamp || !same(Role::Timestamp),
                        "{at}"
                    );
                    continue;
                }
            };
            assert_eq!(result.is_ok(), expected, "{at}: {result:?}");
            *(if expected {
                &mut accepted
            } else {
                &mut refused
            }) += 1;
            let trusted = set
                .timestamp()
                .map(|new| (new.version, new.snapshot.version));
            assert_eq!(trusted, seen.timestamp, "{at}");
            assert!(trusted >= before.timestamp, "{at}");
            let snapshot = set.snapshot().map(|new| {
                let version = |file| new.meta.get(file).map(|meta| meta.version);
                (
                    new.version,
                    version("targets.json").unwrap(),
                    version("team.json"),
                )
            });
            assert_eq!(snapshot, seen.snapshot, "{at}");
            let parts = |seen: &Seen| seen.snapshot.map(|(_, targets, team)| (targets, team));
            let (new, old) = (
                parts(&seen).unwrap_or_default(),
                parts(&before).unwrap_or_default(),
            );
            assert!(new.0 >= old.0 && new.1 >= old.1, "{at}");
        }
    }
    assert!(
        accepted > 100 && refused > 100 && rotations > 10,
        "{accepted} {refused} {rotations}"
    );
}

/// What one role lists and to whom it delegates, in order: role, patterns, terminating.
#[derive(Clone, Debug)]
struct Part {
    listed: Vec<&'static str>,
    delegations: Vec<(usize, Vec<&'static str>, bool)>,
}

enum Visit {
    Found(usize),
    Exhausted,
    Stop,
}

fn naive_search(parts: &[Part], role: usize, name: &str, asked: &mut Vec<usize>) -> Visit {
    if asked.contains(&role) {
        return Visit::Exhausted;
    }
    asked.push(role);
    if parts[role].listed.contains(&name) {
        return Visit::Found(role);
    }
    for (child, patterns, terminating) in &parts[role].delegations {
        if !patterns.iter().any(|pattern| naive_matches(pattern, name)) {
            continue;
        }
        match naive_search(parts, *child, name, asked) {
            Visit::Exhausted if !terminating => {}
            Visit::Exhausted => return Visit::Stop,
            other => return other,
        }
    }
    Visit::Exhausted
}

/// Any graph of delegations, with cycles and roles that several others delegate to.
#[test]
fn a_search_asks_whom_a_recursive_one_asks() {
    const NAMES: [&str; 4] = ["x", "a/x", "a/y", "b/x"];
    const PATTERNS: [&str; 6] = ["*", "*/*", "a/*", "a/[!y]", "?/x", "b/x"];
    let mut rng = Rng::with_seed(3);
    let (mut found, mut lost) = (0, 0);
    for case in 0..150 {
        // Role 0 is the top-level one, to which nobody can delegate.
        let roles: Vec<usize> = (1..6).collect();
        let parts: Vec<Part> = (0..6)
            .map(|_| {
                let mut children = some(&mut rng, &roles);
                rng.shuffle(&mut children);
                let delegation = |child| (child, some(&mut rng, &PATTERNS), rng.u8(0..4) == 0);
                Part {
                    delegations: children.into_iter().map(delegation).collect(),
                    listed: NAMES.into_iter().filter(|_| rng.u8(0..8) == 0).collect(),
                }
            })
            .collect();
        let all: Vec<Rc<Targets>> = parts.iter().map(|part| Rc::new(verified(part))).collect();
        for name in NAMES {
            let mut expected = Vec::new();
            let place = match naive_search(&parts, 0, name, &mut expected) {
                Visit::Found(role) => Some(role),
                Visit::Exhausted | Visit::Stop => None,
            };
            let mut asked = vec![0];
            let name = name.parse().unwrap();
            let number = |role: &str| role.parse::<usize>().unwrap();
            let result = search(&*all[0], &name, &Limits::default(), &mut |delegation| {
                asked.push(number(delegation.role.as_str()));
                Ok(Rc::clone(&all[number(delegation.role.as_str())]))
            });
            let result = result.unwrap();
            let result = result.map(|f| f.role.map_or(0, |role| number(role.as_str())));
            assert_eq!(
                (asked, result),
                (expected, place),
                "case {case}, {name}: {parts:?}"
            );
            *(if place.is_some() {
                &mut found
            } else {
                &mut lost
            }) += 1;
        }
    }
    assert!(found > 50 && lost > 50, "{found} {lost}");
}

fn verified(part: &Part) -> Targets {
    let forge = Forge::empty();
    let info = json!({"length": 1, "hashes": {"sha256": Digest::of(b"x")}});
    let listed: BTreeMap<_, _> = part.listed.iter().map(|name| (name, &info)).collect();
    let delegation = |(role, patterns, terminating): &(usize, Vec<&str>, bool)| json!({"name": role.to_string(), "keyids": ["k"], "threshold": 1, "terminating": terminating, "paths": patterns});
    let roles: Vec<Value> = part.delegations.iter().map(delegation).collect();
    let mut signed = forge.signed(Role::Targets);
    signed["targets"] = json!(listed);
    signed["delegations"] = json!({"keys": {"k": key(4).public()}, "roles": roles});
    let public = Key::from_value(&key(4).public()).unwrap();
    let verifiers = Verifiers {
        keys: [(key(4).id(), public)].into(),
        threshold: 1,
    };
    let bytes = forge.sign(&signed, &[4]);
    Targets::verified(bytes, &verifiers, &String::new, &Limits::default()).unwrap()
}

fn naive_matches(pattern: &str, path: &str) -> bool {
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    match (pattern.split_once('/'), path.split_once('/')) {
        (Some((pattern, patterns)), Some((segment, path))) => {
            naive_segment(&chars(pattern), &chars(segment)) && naive_matches(patterns, path)
        }
        (None, None) => naive_segment(&chars(pattern), &chars(path)),
        _ => false,
    }
}

fn naive_segment(pattern: &[char], text: &[char]) -> bool {
    let Some((&first, rest)) = pattern.split_first() else {
        return text.is_empty();
    };
    if first == '*' {
        return (0..=text.len()).any(|taken| naive_segment(rest, &text[taken..]));
    }
    let Some((&c, text)) = text.split_first() else {
        return false;
    };
    let set = (first == '[').then(|| naive_set(rest)).flatten();
    match set {
        Some((negated, set, rest)) => set.contains(&c) != negated && naive_segment(rest, text),
        None => (first == '?' || first == c) && naive_segment(rest, text),
    }
}

/// Whether the set after a bracket is negated, all that is in it, and the pattern behind it.
fn naive_set(pattern: &[char]) -> Option<(bool, BTreeSet<char>, &[char])> {
    let negated = pattern.first() == Some(&'!');
    let pattern = &pattern[usize::from(negated)..];
    let close = 1 + pattern.get(1..)?.iter().position(|&c| c == ']')?;
    let (inside, mut set, mut at) = (&pattern[..close], BTreeSet::new(), 0);
    while at < inside.len() {
        if at + 2 < inside.len() && inside[at + 1] == '-' {
            set.extend(inside[at]..=inside[at + 2]);
            at += 3;
        } else {
            set.insert(inside[at]);
            at += 1;
        }
    }
    Some((negated, set, &pattern[close + 1..]))
}

#[test]
fn patterns_match_as_a_recursive_matcher_says() {
    let mut rng = Rng::with_seed(4);
    let mut matched = 0;
    for _ in 0..100_000 {
        let mut text = |alphabet: &[char]| -> String {
            (0..rng.usize(0..8))
                .map(|_| alphabet[rng.usize(0..alphabet.len())])
                .collect()
        };
        let pattern = text(&[
            'a', 'b', 'c', '/', '*', '*', '?', '[', '[', ']', ']', '!', '-',
        ]);
        let path = text(&['a', 'b', 'c', '/', '-', ']', '[', '!']);
        let expected = naive_matches(&pattern, &path);
        assert_eq!(matches(&pattern, &path), expected, "{pattern} {path}");
        matched += usize::from(expected);
    }
    assert!(matched > 1000, "{matched}");
}
