//! A search through delegations. The input is the text of the top-level targets, then, each behind a record separator (0x1e),
//! the name of a delegated role, a line feed and the text of its metadata; all are signed by the same keys.
//!
//! - What is accepted was signed, as its own delegator asks.
//! - What is found is listed by the role that is said to list it; a role is asked once at most, and never more of them than the
//!   limit; a role's file stays inside its directory.
//! - No panic, and the search ends; memory in proportion to the input.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use qx_release::error::{Error, Result};
use qx_release::manifest::RelPath;
use qx_release::trust::Limits;
use qx_release::trust::delegation::Delegation;
use qx_release::trust::metadata::Targets;
use qx_release::trust::search::{by_pattern, search};
use qx_update_fuzz::{Asked, Frame, Offer, bounded, stays_inside, verifiers};
use serde_json::Value;

/// So many names are looked for.
const NAMES: usize = 8;

fuzz_target!(|data: &[u8]| {
    let Some(Frame { slots, text }) = Frame::read(data) else {
        return;
    };
    let mut parts = text.split('\x1e');
    let offer = |text| Frame { slots, text }.offer();
    let top_offer = offer(parts.next().unwrap_or_default());
    let limits = Limits {
        delegated_roles: 4,
        ..Limits::default()
    };
    let bytes = &top_offer.bytes;
    let read = || Targets::verified(bytes.clone(), &verifiers(), &String::new, &limits);
    let Ok(top) = bounded(bytes.len(), read) else {
        return;
    };
    let top_signed = top_offer.was_signed(&Asked::honest());
    let mut roles: BTreeMap<&str, Offer> = BTreeMap::new();
    for part in parts {
        if let Some((name, text)) = part.split_once('\n') {
            roles.entry(name).or_insert_with(|| offer(text));
        }
    }
    by_pattern(&top, "targets", &limits, &|_| true);
    let mut names: Vec<RelPath> = vec!["a/b".parse().unwrap(), "team/x".parse().unwrap()];
    let listed = |bytes: &[u8]| -> Vec<RelPath> {
        let file: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let targets = file["signed"]["targets"].as_object();
        targets
            .into_iter()
            .flatten()
            .filter_map(|(name, _)| name.parse().ok())
            .collect()
    };
    names.extend(
        roles
            .values()
            .flat_map(|role| listed(&role.bytes))
            .take(NAMES),
    );
    for name in names {
        // What each role that was asked says, as it was signed.
        let mut said = BTreeMap::from([("targets".to_owned(), top_signed.clone())]);
        let mut asked = BTreeSet::new();
        let mut load = |delegation: &Delegation| -> Result<Rc<Targets>> {
            let role = delegation.role.as_str();
            stays_inside(&format!("2.{}.json", delegation.role.encoded()));
            assert!(asked.insert(role.to_owned()), "{role} is asked twice");
            assert!(asked.len() <= limits.delegated_roles);
            let offer = roles
                .get(role)
                .ok_or_else(|| Error::new("there is no such role"))?;
            let read = || {
                Targets::verified(
                    offer.bytes.clone(),
                    &delegation.verifiers,
                    &String::new,
                    &limits,
                )
            };
            let targets =
                bounded(offer.bytes.len(), read).map_err(|e| Error::new(e.to_string()))?;
            let delegations = &said[&delegation.delegator]["delegations"];
            let named = |other: &&Value| other["name"] == role;
            let object = match delegations["roles"].as_array() {
                Some(listed) => listed
                    .iter()
                    .find(named)
                    .expect("a role that nobody delegates to"),
                None => &delegations["succinct_roles"],
            };
            let signed = offer.was_signed(&Asked::by(&delegations["keys"], object));
            said.insert(role.to_owned(), signed);
            Ok(Rc::new(targets))
        };
        if let Ok(Some(found)) = search(&top, &name, &limits, &mut load) {
            let role = found.role.as_ref().map_or("targets", |role| role.as_str());
            let listed = &said[role]["targets"][name.as_str()]["length"];
            assert_eq!(
                listed.as_u64(),
                Some(found.target.length),
                "{name} in {role}"
            );
        }
    }
});
