//! Which role is asked for a target, in which order. Pure: the metadata of the roles come from the caller.

use std::borrow::Cow;
use std::ops::Deref;

use super::delegation::{Delegation, Paths, RoleName, Scope, any, bin, matches, walk};
use super::described::TargetInfo;
use super::limits::Limits;
use super::metadata::Targets;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::RelPath;

/// How many bins are looked through one by one: two to the power of this.
const MAX_BIN_BITS: u32 = 14;

/// Where a target was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The delegated role that lists it; `None`: the top-level targets do.
    pub role: Option<RoleName>,
    /// What is said of it.
    pub target: TargetInfo,
}

/// Metadata that list targets and delegate: those that an appliance has verified, and those that a publisher works on.
pub trait Listing {
    /// What is said of a target that is listed here; delegations do not count.
    fn target(&self, name: &RelPath) -> Option<TargetInfo>;

    /// The text of the delegations.
    fn delegations(&self) -> Option<Cow<'_, str>>;
}

impl Listing for Targets {
    fn target(&self, name: &RelPath) -> Option<TargetInfo> {
        Targets::target(self, name)
    }

    fn delegations(&self) -> Option<Cow<'_, str>> {
        Targets::delegations(self).map(Cow::Borrowed)
    }
}

/// Looks for a target: in the top-level targets, then depth first, each role before those that it delegates to, in the
/// order of the delegations. `load` gives a delegated role's metadata, verified as its delegator asks; its failure ends the
/// search, for a role that comes later must not speak for one that was kept away.
///
/// # Errors
/// What `load` says; [`ErrorKind::Publisher`] if more than `limits.delegated_roles` would have to be asked.
pub fn search<T: Listing, L: Deref<Target = T>>(
    top: &T,
    name: &RelPath,
    limits: &Limits,
    load: &mut dyn FnMut(&Delegation) -> Result<L>,
) -> Result<Option<Found>> {
    if let Some(target) = top.target(name) {
        return Ok(Some(Found { role: None, target }));
    }
    let mut asked: Vec<RoleName> = Vec::new();
    let mut next = Vec::new();
    push(&mut next, delegations_for(top, "targets", name, limits));
    while let Some(delegation) = next.pop() {
        if asked.contains(&delegation.role) {
            continue;
        }
        if asked.len() == limits.delegated_roles {
            let most = limits.delegated_roles;
            let why = format!(
                "searching for {name}: more than {most} delegated roles would have to be asked"
            );
            return Err(Error::with(ErrorKind::Publisher, why));
        }
        let targets = load(&delegation)?;
        let role = delegation.role;
        if let Some(target) = targets.target(name) {
            let role = Some(role);
            return Ok(Some(Found { role, target }));
        }
        push(
            &mut next,
            delegations_for(&*targets, role.as_str(), name, limits),
        );
        asked.push(role);
    }
    Ok(None)
}

/// Pushes delegations so that the next one to ask comes last. After a terminating role no other is asked.
fn push(next: &mut Vec<Delegation>, found: Vec<Delegation>) {
    if found.last().is_some_and(|last| last.terminating) {
        next.clear();
    }
    next.extend(found.into_iter().rev());
}

/// The delegations that cover a target, in order, up to the first that is terminating.
fn delegations_for<T: Listing>(
    targets: &T,
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

/// The delegations with a pattern that `might` accepts. Those by hash prefix or bin are left out, because they say nothing
/// about names.
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

/// All delegations, those by hash prefix and each bin included.
pub fn every(targets: &Targets, delegator: &str, limits: &Limits) -> Vec<Delegation> {
    let mut bits = None;
    let mut found = chosen(targets, delegator, limits, &mut |scope| {
        if let Paths::Bin(length) = scope.paths {
            bits = Some(length);
            return None;
        }
        Some(String::new())
    });
    // All have the same keys. More than this is nothing that anybody publishes.
    if let Some(length) = bits.filter(|length| *length <= MAX_BIN_BITS) {
        for number in 0..1_u64 << length {
            let first = format!("{:08x}", number << (32 - length));
            found.extend(chosen(targets, delegator, limits, &mut |_| {
                Some(bin(&first, length))
            }));
        }
    }
    found
}

fn chosen<T: Listing>(
    targets: &T,
    delegator: &str,
    limits: &Limits,
    choose: &mut dyn FnMut(&Scope) -> Option<String>,
) -> Vec<Delegation> {
    let walked = targets
        .delegations()
        .map(|text| walk(&text, delegator, limits, choose));
    // They were checked when the metadata were verified.
    walked.and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use std::rc::Rc;

    use super::*;
    use crate::trust::forge::key;
    use crate::trust::key::{Key, Verifiers};
    use crate::trust::signing::{Sign as _, sign};

    /// Targets metadata, signed by key 1.
    fn targets_with(
        limits: &Limits,
        listed: &[&str],
        delegations: Value,
    ) -> Result<Targets, String> {
        let info = json!({"length": 1, "hashes": {"sha256": Digest::of(b"x")}});
        let listed: BTreeMap<_, _> = listed.iter().map(|name| (name, &info)).collect();
        let mut signed = json!({
            "_type": "targets", "spec_version": "1.0.31", "version": 1, "expires": "2100-01-01T00:00:00Z",
            "targets": listed,
        });
        if !delegations.is_null() {
            signed["delegations"] = delegations;
        }
        let public = Key::from_value(&key(1).public()).unwrap();
        let verifiers = Verifiers {
            keys: [(key(1).id(), public)].into(),
            threshold: 1,
        };
        let bytes = sign(&signed, &[&key(1)]).unwrap();
        Targets::verified(bytes, &verifiers, &|| "the test".into(), limits)
            .map_err(|e| e.to_string())
    }

    fn targets(listed: &[&str], delegations: Value) -> Targets {
        targets_with(&Limits::default(), listed, delegations).unwrap()
    }

    /// One of the `roles` of delegations.
    fn role(name: &str, patterns: &[&str], terminating: bool) -> Value {
        json!({"name": name, "keyids": ["k"], "threshold": 1, "terminating": terminating, "paths": patterns})
    }

    fn roles(roles: &[Value]) -> Value {
        json!({"keys": {"k": key(1).public()}, "roles": roles})
    }

    /// The roles that were asked, and the role in which the target was found.
    fn asked(
        all: BTreeMap<&str, Targets>,
        name: &str,
        limits: &Limits,
    ) -> (Vec<String>, Result<Option<String>>) {
        let mut asked = Vec::new();
        let all: BTreeMap<&str, Rc<Targets>> = all
            .into_iter()
            .map(|(role, t)| (role, Rc::new(t)))
            .collect();
        let name = name.parse().unwrap();
        let found = search(&*all["targets"], &name, limits, &mut |delegation| {
            asked.push(delegation.role.to_string());
            match all.get(delegation.role.as_str()) {
                Some(targets) => Ok(Rc::clone(targets)),
                None => Err(Error::new("kept away")),
            }
        });
        let place = |found: Found| found.role.map_or("targets".into(), |role| role.to_string());
        (asked, found.map(|found| found.map(place)))
    }

    #[test]
    fn patterns_match_as_pythons_do() {
        for (pattern, name, expected) in [
            ("*", "a", true),
            ("*", "", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "é", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXcYb", false),
            ("**", "ab", true),
            ("[abc]", "b", true),
            ("[!abc]", "b", false),
            ("[!abc]", "d", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[a-]", "-", true),
            ("[-a]", "-", true),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[!]]", "a", true),
            ("[", "[", true),
            ("[a", "[a", true),
            ("[a", "a", false),
            ("[!", "[!", true),
            ("[]", "[]", true),
            ("[c-a]", "b", false),
            ("[!c-a]", "b", true),
            ("[^a]", "^", true),
            ("[^a]", "b", false),
            ("[a-c-e]", "-", true),
            ("[a-c-e]", "d", false),
            ("[a-c-e]", "e", true),
            ("\\*", "\\x", true),
            ("\\*", "*", false),
            ("*.tar.gz", "x.tar.gz", true),
            ("*.tar.gz", "x.tar.gz.sig", false),
            ("A", "a", false),
            ("a/[!b]/c", "a/x/c", true),
            ("a/[/]/c", "a///c", false),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        // Many stars ask for no more work than the product of both lengths.
        assert!(!matches(&"*a".repeat(500), &"a".repeat(499)));
    }

    #[test]
    fn roles_are_asked_in_preorder_and_the_first_that_lists_it_counts() {
        let all = |targets_roles: Value, a: Value, b: Value, listing: &[&str]| {
            let lists = |name: &str| {
                if listing.contains(&name) {
                    &["x/y"][..]
                } else {
                    &[]
                }
            };
            BTreeMap::from([
                ("targets", targets(lists("targets"), targets_roles)),
                ("a", targets(lists("a"), a)),
                ("b", targets(lists("b"), b)),
                ("c", targets(lists("c"), Value::Null)),
                ("d", targets(lists("d"), Value::Null)),
            ])
        };
        let x = &["x/*"][..];
        let plain = roles(&[role("a", x, false), role("b", x, false)]);
        let a_to_c = roles(&[role("c", x, false), role("d", x, false)]);
        let none = Value::Null;
        for (top, a, b, listing, order, found) in [
            (
                &plain,
                &a_to_c,
                &none,
                &["targets", "a"][..],
                "",
                Some("targets"),
            ),
            (&plain, &a_to_c, &none, &["b", "d"], "a c d", Some("d")),
            (&plain, &a_to_c, &none, &["b"], "a c d b", Some("b")),
            (&plain, &a_to_c, &none, &[], "a c d b", None),
            // What does not match is not asked.
            (
                &roles(&[role("a", &["x/z"], true), role("b", &["y/*", "x/?"], false)]),
                &none,
                &none,
                &["a", "b"],
                "b",
                Some("b"),
            ),
            (
                &roles(&[role("a", &[], true), role("b", x, false)]),
                &none,
                &none,
                &["a", "b"],
                "b",
                Some("b"),
            ),
            // A terminating role and those behind it have the last word.
            (
                &roles(&[role("a", x, true), role("b", x, false)]),
                &a_to_c,
                &none,
                &["b"],
                "a c d",
                None,
            ),
            (
                &plain,
                &roles(&[role("c", x, true), role("d", x, false)]),
                &none,
                &["b", "d"],
                "a c",
                None,
            ),
            // Circles and diamonds end.
            (
                &plain,
                &roles(&[role("b", x, false)]),
                &roles(&[role("a", x, false), role("c", x, false)]),
                &[],
                "a b c",
                None,
            ),
            // Two roles later, one is missing: the search ends there, whoever comes after.
            (
                &roles(&[
                    role("a", x, false),
                    role("gone", x, false),
                    role("b", x, false),
                ]),
                &none,
                &none,
                &["b"],
                "a gone",
                Some("error"),
            ),
        ] {
            let (seen, outcome) = asked(
                all(top.clone(), a.clone(), b.clone(), listing),
                "x/y",
                &Limits::default(),
            );
            assert_eq!(seen.join(" "), order);
            let outcome = outcome.unwrap_or(Some("error".into()));
            assert_eq!(outcome.as_deref(), found, "{order}");
        }
    }

    #[test]
    fn so_many_roles_are_asked_and_no_more() {
        let names = ["a", "b", "c"];
        let listed: Vec<Value> = names.iter().map(|name| role(name, &["*"], false)).collect();
        for (delegated_roles, good) in [(2, false), (3, true)] {
            let limits = Limits {
                delegated_roles,
                ..Limits::default()
            };
            let mut all = BTreeMap::from([("targets", targets(&[], roles(&listed)))]);
            all.extend(names.map(|name| (name, targets(&[], Value::Null))));
            let (seen, outcome) = asked(all, "x", &limits);
            assert_eq!(seen.len(), delegated_roles);
            assert_eq!(outcome.is_ok(), good);
        }
    }

    #[test]
    fn hash_prefixes_and_bins_are_pythons() {
        // Names of bins as python-tuf's SuccinctRoles says them.
        for (name, start, bins) in [
            (
                "a/b",
                "c14cddc033f6",
                [
                    "bin-1",
                    "bin-c",
                    "bin-18",
                    "bin-c1",
                    "bin-305",
                    "bin-c14cddc0",
                ],
            ),
            (
                "é/x",
                "ea5d2314ec4e",
                [
                    "bin-1",
                    "bin-e",
                    "bin-1d",
                    "bin-ea",
                    "bin-3a9",
                    "bin-ea5d2314",
                ],
            ),
            (
                "vdc/stable/x86_64/1.0.0/release.json",
                "094f56b84d54",
                [
                    "bin-0",
                    "bin-0",
                    "bin-01",
                    "bin-09",
                    "bin-025",
                    "bin-094f56b8",
                ],
            ),
        ] {
            let path: RelPath = name.parse().unwrap();
            let limits = Limits::default();
            let keys = json!({"k": key(1).public()});
            for (bit_length, bin) in [1, 4, 5, 8, 10, 32].into_iter().zip(bins) {
                let succinct = json!({"keyids": ["k"], "threshold": 1, "bit_length": bit_length, "name_prefix": "bin"});
                let top = targets(&[], json!({"keys": keys, "succinct_roles": succinct}));
                let found = delegations_for(&top, "targets", &path, &limits);
                let [found] = &found[..] else {
                    panic!("{found:?}")
                };
                assert_eq!((found.role.as_str(), found.terminating), (bin, true));
                assert_eq!(found.verifiers.keys.len(), 1);
                assert!(by_pattern(&top, "targets", &limits, &|_| true).is_empty());
            }
            for (prefixes, good) in [
                (json!(["0", "1", &start[..1]]), true),
                (json!([start]), true),
                (json!([""]), true),
                (json!([]), false),
                (json!([format!("{start}x"), "x"]), false),
            ] {
                let listed = json!({"name": "r", "keyids": ["k"], "threshold": 1, "terminating": false,
                                    "path_hash_prefixes": prefixes});
                let top = targets(&[], roles(&[listed]));
                let found = delegations_for(&top, "targets", &path, &limits);
                assert_eq!(!found.is_empty(), good, "{prefixes}");
            }
        }
    }

    #[test]
    fn releases_are_looked_for_where_patterns_let_them_be() {
        let top = targets(
            &[],
            roles(&[
                role("one", &["a/*", "b/*"], false),
                role("two", &["c/*"], true),
                role("three", &["b/x"], false),
            ]),
        );
        let found = by_pattern(&top, "targets", &Limits::default(), &|p| {
            p.starts_with("b/")
        });
        let found: Vec<_> = found.iter().map(|d| d.role.as_str()).collect();
        assert_eq!(found, ["one", "three"]);
    }

    #[test]
    fn delegations_that_are_none_are_refused_with_the_metadata() {
        let good = role("r", &["*"], false);
        let with = |field: &str, value: Value| {
            let mut role = good.clone();
            role[field] = value;
            roles(&[role])
        };
        let succinct = |bits: u32, prefix: &str| json!({"keys": {}, "succinct_roles": {"keyids": [], "threshold": 1, "bit_length": bits, "name_prefix": prefix}});
        for (delegations, word) in [
            (json!([]), "an object"),
            (json!({"roles": []}), "keys"),
            (json!({"keys": {}}), "one of roles and succinct_roles"),
            (
                json!({"keys": {}, "roles": [], "succinct_roles": succinct(1, "b")["succinct_roles"]}),
                "one of roles",
            ),
            (with("threshold", json!(0)), "threshold of 0"),
            (with("keyids", json!(["k", "k"])), "duplicate"),
            (with("keyids", json!("k")), "a list"),
            (with("terminating", json!(1)), "true or false"),
            (with("paths", json!("x")), "a list"),
            (with("paths", json!([1])), "string"),
            (with("paths", Value::Null), "one of paths"),
            (with("path_hash_prefixes", json!(["0"])), "one of paths"),
            (with("name", json!("")), "not a valid role name"),
            (with("name", json!("a\nb")), "not a valid role name"),
            (with("name", json!("a\u{0}b")), "not a valid role name"),
            (with("name", json!("x".repeat(77))), "longer than 76"),
            (with("name", json!("snapshot")), "top-level"),
            (with("name", json!("targets")), "top-level"),
            (roles(&[good.clone(), good.clone()]), "duplicate"),
            (
                roles(&["a", "b", "c", "d"].map(|n| role(n, &[], false))),
                "more than 3 delegated roles",
            ),
            (succinct(0, "b"), "bit_length 0"),
            (succinct(33, "b"), "bit_length 33"),
            (succinct(32, &"x".repeat(68)), "longer than 76"),
        ] {
            let limits = Limits {
                delegations: 3,
                ..Limits::default()
            };
            let error = targets_with(&limits, &[], delegations.clone()).err();
            let error = error.unwrap_or_else(|| panic!("{delegations} was accepted"));
            assert!(error.contains(word), "{delegations}: {error}");
        }
        // A key of an unknown scheme does not count, and breaks nothing.
        let unknown = json!({"keys": {"k": {"keytype": "rsa"}}, "roles": [good]});
        let top = targets(&[], unknown);
        let found = delegations_for(&top, "targets", &"x".parse().unwrap(), &Limits::default());
        assert!(found[0].verifiers.keys.is_empty());
    }

    #[test]
    fn role_names_are_safe_in_paths() {
        let limits = Limits::default();
        for (name, encoded) in [
            ("team-a_b.c~1", "team-a_b.c~1"),
            ("../x", "..%2Fx"),
            ("/x", "%2Fx"),
            ("?#%é", "%3F%23%25%C3%A9"),
            ("a b\\", "a%20b%5C"),
        ] {
            let role = RoleName::new(name, &limits).unwrap();
            assert_eq!(role.encoded(), encoded);
            assert_eq!(role.file(), format!("{name}.json"));
        }
    }
}
