//! What a publisher does with roles over the years: other keys, new signatures in time, other lifetimes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::Map;

use super::authority::{check_threshold, set_keys, usage};
use super::change::{Change, Done, Waiting};
use super::current::{Current, DAY};
use super::envelope::{Authority, Envelope, short};
use super::keyring::Keyring;
use super::newkeys::{NEW, NewKeys};
use super::role::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP, top_level};
use super::targets;
use qx_release::error::{Context, Error, Result};
use qx_release::text;

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
    mut change: Change,
    rotation: &Rotation,
    new: &mut NewKeys,
    keys: &dyn Fn() -> Result<Keyring>,
) -> Result<Done> {
    let role = rotation.role;
    let old = change.current.authority(role)?;
    // The online roles' keys sign each publication, this one included.
    let check = |authority: &Authority, keys: &Keyring| {
        let online = [TIMESTAMP, SNAPSHOT].contains(&role);
        if online && authority.at_hand(keys) < authority.threshold {
            return Err(keys.missing(&format!(
                "key that signs the {role} metadata ({}, {} needed); if the old key is permanently lost, add --without-old-key",
                authority.keys.keys().map(|id| short(id)).collect::<Vec<_>>().join(", "),
                authority.threshold
            )));
        }
        Ok(())
    };
    if !change.without_old_key {
        // Before a key is made in vain.
        check(&old, &keys()?)?;
    }
    let authority = changed(&change.current, &old, rotation, new)?;
    let keys = &keys()?;
    if old.same(&authority) {
        return Err(usage("the role already has these keys"));
    }
    check(&authority, keys)?;
    if top_level(role) {
        let mut root = change.current.root().clone();
        set_keys(&mut root, role, &authority);
        change.propose(ROOT, root)?;
    } else {
        let mut targets = change.body(TARGETS);
        targets::set_keys(&mut targets, role, &authority)?;
        let body = change.body(role);
        if !change.current.role(role)?.verifies(&authority) {
            change.propose(role, body)?;
        }
        change.propose(TARGETS, targets)?;
    }
    change.commit(keys)
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
                        "{} keys of the role {} have an id that starts with '{}', not exactly one; its keys are {}",
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

/// Sets for how many days new metadata of a role are valid.
pub fn set_lifetime(mut change: Change, role: &str, days: u32) -> Result<()> {
    change.current.role(role)?;
    change.current.about.set_lifetime(role, days)?;
    change.current.about.write(&change.current.dir)
}

/// Takes the signatures of drafts that were signed elsewhere, and publishes what has enough of them. The lines tell
/// which keys signed.
pub fn collect(
    mut change: Change,
    files: &[PathBuf],
    keys: &Keyring,
) -> Result<(Vec<String>, Done)> {
    change.take_up_drafts()?;
    let mut lines = Vec::new();
    for file in files {
        let doing = || format!("adding the signatures of {}", file.display());
        let bytes = fs::read(file).doing(doing)?;
        let signed =
            Envelope::parse(&bytes).map_err(|why| Error::new(format!("{}: {why}", doing())))?;
        for id in change.add_signatures(&signed).doing(doing)? {
            lines.push(format!(
                "{} signed by {}",
                signed.signed["_type"],
                short(&id)
            ));
        }
    }
    Ok((lines, change.commit(keys)?))
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
    mut change: Change,
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
    for (role, envelope) in change.current.all() {
        let verifies = envelope.verifies(&change.current.authority(role)?);
        if !verifies || due_at(&change.current, role)? <= now {
            due.push(role.to_owned());
        }
    }
    let mut open = Vec::new();
    for role in &due {
        if let Some(why) = renew(&mut change, role, keys)? {
            let expires = change.current.role(role)?.expires_text();
            open.push(format!(
                "the {role} metadata are valid until {expires}: {why}"
            ));
        }
    }
    let dir = change.current.dir.clone();
    let done = match &due[..] {
        [] => Done::default(),
        _ => change.commit(keys)?,
    };
    let current = Current::load(&dir)?;
    for Waiting { role, file, why } in &done.waiting {
        open.push(format!(
            "the {role} metadata are valid until {}: {} is pending: {why}",
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
fn renew(change: &mut Change, role: &str, keys: &Keyring) -> Result<Option<String>> {
    let online = match role {
        SNAPSHOT => SNAPSHOT,
        TIMESTAMP => TIMESTAMP,
        role => {
            let body = change.body(role);
            // What waits renews it too, once it is signed.
            return Ok(change.propose(role, body).err().map(|e| e.chain()));
        }
    };
    let authority = change.current.authority(online)?;
    if authority.at_hand(keys) < authority.threshold {
        return Ok(Some(
            "the keys that sign them are not available here".into(),
        ));
    }
    change.renew(online);
    Ok(None)
}
