//! What a publisher does with roles over the years: other keys, new signatures in time, other lifetimes.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::change::{Done, Store, Waiting};
use super::current::{Current, DAY, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, top_level};
use super::delegate;
use super::envelope::{Authority, Envelope, short, texts};
use super::keyring::Keyring;
use super::newkeys::{NEW, NewKeys};
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::text;

/// The most keys that one role is given.
pub(crate) const MAX_KEYS: usize = 32;

/// How a role's keys are to change.
pub struct Rotation<'a> {
    /// Whose.
    pub role: &'a str,
    /// The keys that come: files of public keys, or `new` for one that is made.
    pub keys: &'a [String],
    /// The keys that go, by id or the start of it, or `none`. Where nothing is said and keys come: all.
    pub remove: &'a [String],
    /// How many must sign then.
    pub threshold: Option<u64>,
}

/// Gives a role other keys. Without any option each key is replaced by a new one.
pub fn rotate(
    mut store: Store,
    rotation: &Rotation,
    new: &mut NewKeys,
    keys: &dyn Fn() -> Result<Keyring>,
) -> Result<Done> {
    let role = rotation.role;
    let old = store.current.authority(role)?;
    // The online roles' keys sign each publication, this one included.
    let check = |authority: &Authority, keys: &Keyring| {
        let online = [TIMESTAMP, SNAPSHOT].contains(&role);
        if online && authority.at_hand(keys) < authority.threshold {
            return Err(keys.missing(&format!(
                "key that signs the {role} metadata ({}, {} needed); if the old one is gone for good, add --without-old-key",
                authority.keys.keys().map(|id| short(id)).collect::<Vec<_>>().join(", "),
                authority.threshold
            )));
        }
        Ok(())
    };
    if !store.without_old_key {
        // Before a key is made in vain.
        check(&old, &keys()?)?;
    }
    let authority = changed(&store.current, &old, rotation, new)?;
    let keys = &keys()?;
    if old.same(&authority) {
        return Err(usage("the role already has these keys"));
    }
    check(&authority, keys)?;
    if top_level(role) {
        let mut root = store.current.root().clone();
        set_keys(&mut root, role, &authority);
        store.propose(ROOT, root)?;
    } else {
        let mut targets = store.body(TARGETS);
        delegate::set_keys(&mut targets, role, &authority)?;
        let body = store.body(role);
        if !store.current.role(role)?.verifies(&authority) {
            store.propose(role, body)?;
        }
        store.propose(TARGETS, targets)?;
    }
    store.commit(keys)
}

fn changed(
    current: &Current,
    old: &Authority,
    rotation: &Rotation,
    new: &mut NewKeys,
) -> Result<Authority> {
    let nothing = rotation.keys.is_empty() && rotation.remove.is_empty();
    let wanted = match rotation.threshold {
        None if nothing => vec![NEW.to_owned(); old.keys.len()],
        _ => rotation.keys.to_vec(),
    };
    let mut keys = match rotation.remove {
        [] if !wanted.is_empty() => Map::new(),
        [none] if none == "none" => old.keys.clone(),
        gone => {
            let mut keys = old.keys.clone();
            for start in gone {
                let matching: Vec<String> = keys
                    .keys()
                    .filter(|id| id.starts_with(start.as_str()))
                    .cloned()
                    .collect();
                let [id] = &matching[..] else {
                    return Err(usage(&format!(
                        "{} keys of the role {} have an id that starts with '{}'; it has {}",
                        matching.len(),
                        rotation.role,
                        text::name(start),
                        old.keys
                            .keys()
                            .map(|id| short(id))
                            .collect::<Vec<_>>()
                            .join(", ")
                    )));
                };
                keys.remove(id);
            }
            keys
        }
    };
    let threshold = rotation.threshold.unwrap_or(old.threshold);
    check_threshold(threshold, keys.len() + wanted.len())?;
    keys.extend(new.take(current, rotation.role, &wanted)?);
    check_threshold(threshold, keys.len())?;
    Ok(Authority {
        by: String::new(),
        keys,
        threshold,
    })
}

/// Refuses what no set of signatures satisfies, or what any would.
pub(crate) fn check_threshold(threshold: u64, keys: usize) -> Result<()> {
    if keys > MAX_KEYS {
        return Err(usage(&format!("a role has at most {MAX_KEYS} keys")));
    }
    if threshold == 0 || threshold > keys as u64 {
        return Err(usage(&format!(
            "cannot require {threshold} signatures of {keys} keys"
        )));
    }
    Ok(())
}

/// The ids of an authority's keys.
pub(crate) fn key_ids(authority: &Authority) -> Vec<&String> {
    authority.keys.keys().collect()
}

/// Puts a role's keys into a root, and takes those out that no role has any longer.
pub(crate) fn set_keys(root: &mut Value, role: &str, authority: &Authority) {
    root["roles"][role] = json!({"keyids": key_ids(authority), "threshold": authority.threshold});
    for (id, key) in &authority.keys {
        root["keys"][id] = key.clone();
    }
    let used: BTreeSet<String> = root["roles"]
        .as_object()
        .into_iter()
        .flat_map(|roles| roles.values())
        .flat_map(|role| texts(&role["keyids"]))
        .map(str::to_owned)
        .collect();
    if let Some(keys) = root["keys"].as_object_mut() {
        keys.retain(|id, _| used.contains(id));
    }
}

/// Sets for how many days new metadata of a role are valid.
pub fn set_lifetime(mut store: Store, role: &str, days: u32) -> Result<()> {
    store.current.role(role)?;
    store.current.about.set_lifetime(role, days)?;
    store.current.about.write(&store.current.dir)
}

/// Takes the signatures of drafts that were signed elsewhere, and publishes what has enough of them. The lines tell
/// which keys signed.
pub fn collect(mut store: Store, files: &[PathBuf], keys: &Keyring) -> Result<(Vec<String>, Done)> {
    store.take_up_drafts()?;
    let mut lines = Vec::new();
    for file in files {
        let doing = || format!("adding the signatures of {}", file.display());
        let bytes = fs::read(file).doing(doing)?;
        let signed =
            Envelope::parse(&bytes).map_err(|why| Error::new(format!("{}: {why}", doing())))?;
        for id in store.add_signatures(&signed).doing(doing)? {
            lines.push(format!(
                "{} signed by {}",
                signed.signed["_type"],
                short(&id)
            ));
        }
    }
    Ok((lines, store.commit(keys)?))
}

/// What `refresh` did.
pub struct Refreshed {
    /// What was published, and what waits.
    pub done: Done,
    /// A line for each role that will expire and that could not be renewed.
    pub open: Vec<String>,
    /// When it has to run next, and for which role.
    pub next: (SystemTime, String),
}

/// Renews what expires soon: within `within`, or when less than a third of its lifetime is left (and at most 120 days).
pub fn refresh(
    mut store: Store,
    keys: &Keyring,
    within: Option<Duration>,
    now: SystemTime,
) -> Result<Refreshed> {
    let due_at = |current: &Current, role: &str| -> Result<SystemTime> {
        let window = within.unwrap_or((current.about.lifetime(role) / 3).min(DAY * 120));
        let expires = current.role(role)?.expires();
        Ok(expires
            .checked_sub(window)
            .unwrap_or(SystemTime::UNIX_EPOCH))
    };
    let mut due = Vec::new();
    for (role, envelope) in store.current.all() {
        let verifies = envelope.verifies(&store.current.authority(role)?);
        if !verifies || due_at(&store.current, role)? <= now {
            due.push(role.to_owned());
        }
    }
    let mut open = Vec::new();
    for role in &due {
        if let Some(why) = renew(&mut store, role, keys)? {
            let expires = store.current.role(role)?.expires_text();
            open.push(format!(
                "the {role} metadata are valid until {expires}: {why}"
            ));
        }
    }
    let dir = store.current.dir.clone();
    let done = match &due[..] {
        [] => Done::default(),
        _ => store.commit(keys)?,
    };
    let current = Current::load(&dir)?;
    for Waiting { role, file, why } in &done.waiting {
        open.push(format!(
            "the {role} metadata are valid until {}: {} waits: {why}",
            current.role(role)?.expires_text(),
            file.display()
        ));
    }
    let mut next: Option<(SystemTime, String)> = None;
    for (role, _) in current.all() {
        let due = due_at(&current, role)?;
        if next.as_ref().is_none_or(|(first, _)| due < *first) {
            next = Some((due, role.to_owned()));
        }
    }
    let next = next.unwrap_or((now, ROOT.to_owned()));
    Ok(Refreshed { done, open, next })
}

/// Puts a role's renewal into what will be published, or tells why it cannot be renewed.
fn renew(store: &mut Store, role: &str, keys: &Keyring) -> Result<Option<String>> {
    let online = match role {
        SNAPSHOT => SNAPSHOT,
        TIMESTAMP => TIMESTAMP,
        role => {
            let body = store.body(role);
            // What waits renews it too, once it is signed.
            return Ok(store.propose(role, body).err().map(|e| e.chain()));
        }
    };
    let authority = store.current.authority(online)?;
    if authority.at_hand(keys) < authority.threshold {
        return Ok(Some("the keys that renew them are not here".into()));
    }
    store.renew(online);
    Ok(None)
}

/// What was asked for cannot be.
pub(crate) fn usage(why: &str) -> Error {
    Error::with(ErrorKind::Usage, why)
}
