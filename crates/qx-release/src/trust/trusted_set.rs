//! The client workflow (section 5 of the TUF specification) as rules over what is trusted so far.

use super::clock::Clock;
use super::delegation::Delegation;
use super::described::TargetFile;
use super::key::Verifiers;
use super::limits::Limits;
use super::metadata::{Metadata, Parse, Root, Snapshot, Targets, Timestamp};
use super::{Error, Role, VersionRule};
use crate::manifest::RelPath;

/// What is trusted so far. Metadata are offered in the order root, timestamp, snapshot, targets, and what
/// was trusted before (the appliance's copy) is offered before what a source offers: a rollback is seen by
/// comparing the two. A copy that the current root's keys no longer verify is refused like any other, which is
/// what recovers from a fast-forward attack after the keys were rotated.
pub struct TrustedSet {
    clock: Clock,
    limits: Limits,
    root: Root,
    timestamp: Option<Timestamp>,
    snapshot: Option<Snapshot>,
    targets: Option<Targets>,
}

/// Where a snapshot comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotCopy {
    /// It was fetched, as the timestamp announces it.
    Announced,
    /// It is the appliance's own copy, which was checked against an earlier timestamp. If it is out of date, taking it fails,
    /// but it is remembered, to detect rollbacks.
    Stored,
}

impl TrustedSet {
    /// Starts from a root that is trusted because of where it lies. All expiry is measured against the one time of
    /// `clock`, whose floor [`TrustedSet::date`] raises.
    pub fn new(root: &[u8], clock: Clock, limits: &Limits) -> Result<TrustedSet, Error> {
        let root = Root::parse(root, limits)?;
        let itself = &root.value;
        root.verify(&itself.verifiers(Role::Root), &|| asks(itself))?;
        Ok(TrustedSet {
            clock,
            limits: *limits,
            root: root.value,
            timestamp: None,
            snapshot: None,
            targets: None,
        })
    }

    /// The current root. Not yet checked for expiry: an expired root may still lead to its successor.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The timestamp, as soon as one is trusted.
    pub fn timestamp(&self) -> Option<&Timestamp> {
        self.timestamp.as_ref()
    }

    /// The snapshot, as soon as one is trusted.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// The targets, as soon as they are trusted.
    pub fn targets(&self) -> Option<&Targets> {
        self.targets.as_ref()
    }

    /// A target that the top-level targets list, with its SHA-256; delegations do not count.
    pub fn target(&self, name: &RelPath) -> Option<TargetFile> {
        self.targets.as_ref()?.target(name)?.file()
    }

    /// What expiry is measured against.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The limits that it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes the root that follows the current one: signed as both of them ask, and exactly one version later.
    /// Every root must be taken before the first timestamp.
    pub fn update_root(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let new = Root::parse(bytes, &self.limits)?;
        for root in [&self.root, &new.value] {
            new.verify(&root.verifiers(Role::Root), &|| asks(root))?;
        }
        exactly(&new.value, self.root.version.saturating_add(1))?;
        self.root = new.value;
        Ok(())
    }

    /// Raises the clock's floor to the times at which the root and `timestamp`, the appliance's own copy, were signed. To be
    /// called after all roots are taken and before any expiry is checked. A copy that the root's keys do not verify is
    /// ignored: a date signed with a stolen key is forgotten when the key is replaced.
    pub fn date(&mut self, timestamp: Option<&[u8]>) {
        self.clock.not_before(self.root.issued);
        if let Some(Ok(timestamp)) = timestamp.map(|bytes| Timestamp::parse(bytes, &self.limits))
            && let verifiers = self.root.verifiers(Role::Timestamp)
            && timestamp.verify(&verifiers, &|| asks(&self.root)).is_ok()
        {
            self.clock.not_before(timestamp.value.issued);
        }
    }

    /// Takes a timestamp; `false` if this version is already trusted, in which case the trusted one is kept.
    ///
    /// An expired one is an error, but it is remembered, to detect rollbacks.
    pub fn update_timestamp(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        self.in_time(&self.root)?;
        let new = Timestamp::parse(bytes, &self.limits)?;
        new.verify(&self.root.verifiers(Role::Timestamp), &|| asks(&self.root))?;
        if let Some(old) = &self.timestamp {
            at_least(&new.value, old.version)?;
            if new.value.version == old.version {
                self.in_time(old)?;
                return Ok(false);
            }
            if new.value.snapshot.version < old.snapshot.version {
                return Err(Error::Version {
                    role: Snapshot::ROLE,
                    offered: new.value.snapshot.version,
                    rule: VersionRule::AtLeast(old.snapshot.version),
                });
            }
        }
        let new = self.timestamp.insert(new.value);
        in_time(new, &self.clock)?;
        Ok(true)
    }

    /// Takes the snapshot that the timestamp announces.
    pub fn update_snapshot(&mut self, bytes: &[u8], copy: SnapshotCopy) -> Result<(), Error> {
        let timestamp = self.current_timestamp()?;
        if copy == SnapshotCopy::Announced {
            timestamp.snapshot.check("snapshot.json", bytes)?;
        }
        let new = Snapshot::parse(bytes, &self.limits)?;
        new.verify(&self.root.verifiers(Role::Snapshot), &|| asks(&self.root))?;
        if copy == SnapshotCopy::Announced {
            exactly(&new.value, timestamp.snapshot.version)?;
        }
        if let Some(old) = &self.snapshot {
            for (file, old) in &old.meta {
                let Some(new) = new.value.meta.get(file) else {
                    return Err(Error::Missing {
                        role: Snapshot::ROLE,
                        file: file.clone(),
                    });
                };
                if new.version < old.version {
                    return Err(Error::ListsOlder {
                        file: file.clone(),
                        offered: new.version,
                        trusted: old.version,
                    });
                }
            }
        }
        self.snapshot = Some(new.value);
        self.current_snapshot().map(drop)
    }

    /// Takes the targets that the snapshot announces.
    pub fn update_targets(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        let verifiers = self.root.verifiers(Role::Targets);
        let by = || asks(&self.root);
        self.targets = Some(self.announced("targets.json", bytes, &verifiers, &by)?);
        Ok(())
    }

    /// Verifies the metadata of a delegated role: announced by the snapshot, and signed as its delegator requires. Nothing is
    /// stored, because another delegator may require other signatures.
    pub fn delegated(&self, delegation: &Delegation, bytes: Vec<u8>) -> Result<Targets, Error> {
        let by = || format!("the delegation by {}", delegation.delegator.escape_debug());
        self.announced(&delegation.role.file(), bytes, &delegation.verifiers, &by)
    }

    fn announced(
        &self,
        file: &str,
        bytes: Vec<u8>,
        verifiers: &Verifiers,
        by: &dyn Fn() -> String,
    ) -> Result<Targets, Error> {
        let snapshot = self.current_snapshot()?;
        let meta = snapshot.meta.get(file).ok_or_else(|| Error::Missing {
            role: Role::Snapshot,
            file: file.to_owned(),
        })?;
        meta.check(file, &bytes)?;
        let new = Targets::verified(bytes, verifiers, by, &self.limits)?;
        exactly(&new, meta.version)?;
        self.in_time(&new)?;
        Ok(new)
    }

    fn current_timestamp(&self) -> Result<&Timestamp, Error> {
        let timestamp = self.timestamp.as_ref().ok_or_else(|| Error::Missing {
            role: Timestamp::ROLE,
            file: "snapshot.json".to_owned(),
        })?;
        self.in_time(timestamp)?;
        Ok(timestamp)
    }

    /// The snapshot, if it is the one that the timestamp announces.
    fn current_snapshot(&self) -> Result<&Snapshot, Error> {
        let timestamp = self.current_timestamp()?;
        let snapshot = self.snapshot.as_ref().ok_or_else(|| Error::Missing {
            role: Snapshot::ROLE,
            file: "targets.json".to_owned(),
        })?;
        self.in_time(snapshot)?;
        if snapshot.version != timestamp.snapshot.version {
            return Err(Error::Version {
                role: Snapshot::ROLE,
                offered: snapshot.version,
                rule: VersionRule::Exactly(timestamp.snapshot.version),
            });
        }
        Ok(snapshot)
    }

    fn in_time<T: Metadata>(&self, metadata: &T) -> Result<(), Error> {
        in_time(metadata, &self.clock)
    }
}

fn in_time<T: Metadata>(metadata: &T, clock: &Clock) -> Result<(), Error> {
    let now = clock.now();
    if metadata.expires().at <= now {
        return Err(Error::Expired {
            role: T::ROLE,
            version: metadata.version(),
            expires: metadata.expires().text.clone(),
            now: humantime::format_rfc3339_seconds(now).to_string(),
        });
    }
    Ok(())
}

/// Who names the keys of the top-level roles.
fn asks(root: &Root) -> String {
    format!("version {} of the root", root.version)
}

fn exactly<T: Metadata>(new: &T, expected: u64) -> Result<(), Error> {
    if new.version() != expected {
        return Err(Error::Version {
            role: T::ROLE,
            offered: new.version(),
            rule: VersionRule::Exactly(expected),
        });
    }
    Ok(())
}

fn at_least<T: Metadata>(new: &T, trusted: u64) -> Result<(), Error> {
    if new.version() < trusted {
        return Err(Error::Version {
            role: T::ROLE,
            offered: new.version(),
            rule: VersionRule::AtLeast(trusted),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::Digest;
    use crate::trust::Role;
    use crate::trust::forge::{Forge, at, key};
    use crate::trust::signing::Sign as _;

    fn clock() -> Clock {
        Clock::new(at(0), at(0))
    }

    fn begin(root: &[u8]) -> Result<TrustedSet, Error> {
        TrustedSet::new(root, clock(), &Limits::default())
    }

    /// Offers everything in order, as a first refresh does.
    fn refresh(forge: &Forge) -> Result<TrustedSet, Error> {
        let mut set = begin(&forge.bytes(Role::Root))?;
        follow(&mut set, forge)?;
        Ok(set)
    }

    fn follow(set: &mut TrustedSet, forge: &Forge) -> Result<(), Error> {
        set.update_timestamp(&forge.bytes(Role::Timestamp))?;
        set.update_snapshot(&forge.bytes(Role::Snapshot), SnapshotCopy::Announced)?;
        set.update_targets(forge.bytes(Role::Targets))
    }

    /// What the appliance trusts already, then the timestamp and the snapshot of a source.
    fn refresh_again(old: &Forge, new: &Forge) -> Result<TrustedSet, Error> {
        let mut set = begin(&old.bytes(Role::Root))?;
        set.update_timestamp(&old.bytes(Role::Timestamp))?;
        let _ = set.update_snapshot(&old.bytes(Role::Snapshot), SnapshotCopy::Stored);
        follow(&mut set, new)?;
        Ok(set)
    }

    fn refusal<T>(result: Result<T, Error>) -> Error {
        match result {
            Ok(_) => panic!("it was accepted"),
            Err(error) => error,
        }
    }

    #[test]
    fn an_honest_repository_is_trusted_to_its_targets() {
        let mut forge = Forge::empty();
        forge.files.insert("a/b".into(), b"bytes".to_vec());
        for hashes in [true, false] {
            forge.hashes = hashes;
            let set = refresh(&forge).unwrap();
            let targets = set.targets().unwrap();
            let target = targets.target(&"a/b".parse().unwrap()).unwrap();
            assert_eq!(target.file().unwrap().sha256, Digest::of(b"bytes"));
            assert!(target.check("a/b", b"bytes").is_ok());
            assert!(targets.target(&"a/c".parse().unwrap()).is_none());
        }
    }

    #[test]
    fn what_the_appliance_keeps_dates_the_clock_and_nothing_else_does() {
        let forge = Forge::empty();
        let timestamp = |issued: Value, signer| {
            let mut signed = forge.signed(Role::Timestamp);
            signed["x-issued"] = issued;
            forge.sign(&signed, &[signer])
        };
        let text = |seconds| json!(humantime::format_rfc3339(at(seconds)).to_string());
        for (issued, signer, now) in [
            (text(500), 2, 500),
            // Not by the key of the root's timestamp role, which may have been another once.
            (text(500), 3, 0),
            (text(-500), 2, 0),
            // It expires at 1000.
            (text(1000), 2, 1000),
            (text(1001), 2, 0),
            (json!("tomorrow"), 2, 0),
            (json!(500), 2, 0),
            (Value::Null, 2, 0),
        ] {
            let mut set = begin(&forge.bytes(Role::Root)).unwrap();
            set.date(Some(&timestamp(issued.clone(), signer)));
            assert_eq!(set.clock().now(), at(now), "{issued} {signer}");
        }
        let mut set = begin(&forge.bytes(Role::Root)).unwrap();
        set.date(None);
        set.update_timestamp(&timestamp(text(500), 2)).unwrap();
        assert_eq!(set.clock().now(), at(0), "one time for the whole refresh");
        let mut signed = forge.signed(Role::Root);
        signed["x-issued"] = text(400);
        let mut set = begin(&forge.sign(&signed, &[1])).unwrap();
        set.date(None);
        assert_eq!(set.clock().now(), at(400));
    }

    #[test]
    fn each_role_needs_its_own_key() {
        for role in Role::ALL {
            for signers in [
                vec![],
                vec![9],
                vec![if role == Role::Root { 2 } else { 1 }],
            ] {
                let mut forge = Forge::empty();
                forge.draft(role).signers = signers;
                let error = refusal(refresh(&forge));
                assert!(
                    matches!(error, Error::Signatures { role: r, valid: 0, threshold: 1, .. } if r == role),
                    "{role}: {error}"
                );
            }
        }
    }

    #[test]
    fn a_threshold_is_met_by_enough_distinct_keys_only() {
        for role in Role::ALL {
            for (signers, threshold, good) in [
                (vec![11], 2, false),
                (vec![11, 99], 2, false),
                (vec![11, 12], 2, true),
                (vec![11, 12], 3, false),
                (vec![13, 12, 11], 3, true),
                (vec![12], 1, true),
            ] {
                let mut forge = Forge::empty();
                forge.roles.insert(role, (vec![11, 12, 13], threshold));
                forge.draft(role).signers = signers.clone();
                let result = refresh(&forge);
                assert_eq!(result.is_ok(), good, "{role} {signers:?} {threshold}");
            }
        }
    }

    /// Signs a root whose JSON was changed by hand, and offers it as the first.
    fn root_with(change: impl FnOnce(&mut Value), signers: &[u8]) -> Result<TrustedSet, Error> {
        let forge = Forge::empty();
        let mut signed = forge.signed(Role::Root);
        change(&mut signed);
        begin(&forge.sign(&signed, signers))
    }

    #[test]
    fn one_public_key_under_two_ids_counts_once() {
        let forge = Forge::empty();
        let mut signed = forge.signed(Role::Root);
        signed["keys"]["alias"] = key(1).public();
        signed["roles"]["root"] = json!({"keyids": [key(1).id(), "alias"], "threshold": 2});
        let mut envelope: Value = serde_json::from_slice(&forge.sign(&signed, &[1])).unwrap();
        let mut alias = envelope["signatures"][0].clone();
        alias["keyid"] = json!("alias");
        envelope["signatures"].as_array_mut().unwrap().push(alias);
        let error = refusal(begin(envelope.to_string().as_bytes()));
        assert!(
            matches!(error, Error::Signatures { valid: 1, .. }),
            "{error}"
        );
    }

    #[test]
    fn keys_are_found_by_their_declared_id() {
        let forge = Forge::empty();
        let mut signed = forge.signed(Role::Root);
        signed["keys"]["not a digest"] = key(1).public();
        signed["roles"]["root"] = json!({"keyids": ["not a digest"], "threshold": 1});
        let mut envelope: Value = serde_json::from_slice(&forge.sign(&signed, &[1])).unwrap();
        envelope["signatures"][0]["keyid"] = json!("not a digest");
        assert!(begin(envelope.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn unknown_schemes_never_count_and_never_break_the_rest() {
        let unknown =
            json!({"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": "…"}});
        let with = |threshold: u64| {
            root_with(
                |signed| {
                    signed["keys"]["rsa"] = unknown.clone();
                    signed["roles"]["root"]["keyids"] = json!(["rsa", "no such key", key(1).id()]);
                    signed["roles"]["root"]["threshold"] = json!(threshold);
                },
                &[1],
            )
        };
        assert!(with(1).is_ok());
        assert!(matches!(
            refusal(with(2)),
            Error::Signatures { valid: 1, .. }
        ));
    }

    #[test]
    fn unknown_fields_stay_signed() {
        let forge = Forge::empty();
        let mut signed = forge.signed(Role::Timestamp);
        signed["x-new"] = json!({"é": [1, null]});
        let bytes = forge.sign(&signed, &[2]);
        let set = || begin(&forge.bytes(Role::Root)).unwrap();
        assert!(set().update_timestamp(&bytes).unwrap());
        let mut envelope: Value = serde_json::from_slice(&bytes).unwrap();
        envelope["signed"]["x-new"]["é"][0] = json!(2);
        let tampered = envelope.to_string();
        assert!(matches!(
            refusal(set().update_timestamp(tampered.as_bytes())),
            Error::Signatures { .. }
        ));
    }

    #[test]
    fn malformed_metadata_are_named() {
        let forge = Forge::empty();
        for (change, word) in [
            (json!({"_type": "targets"}), "_type"),
            (json!({"spec_version": "2.0.0"}), "spec_version"),
            (json!({"spec_version": "10.0"}), "spec_version"),
            (json!({"spec_version": "1"}), "spec_version"),
            (json!({"spec_version": "1.x"}), "spec_version"),
            (json!({"version": 0}), "version"),
            (json!({"version": -1}), "version"),
            (json!({"version": "1"}), "version"),
            (json!({"expires": "soon"}), "expires"),
            (json!({"roles": {}}), "roles"),
            (json!({"keys": []}), "keys"),
            (json!({"consistent_snapshot": 1}), "consistent_snapshot"),
            (json!({"x": 0.5}), "0.5"),
        ] {
            let mut signed = forge.signed(Role::Root);
            for (field, value) in change.as_object().unwrap() {
                signed[field] = value.clone();
            }
            // What has no canonical form cannot be signed; it must be refused all the same.
            let signature = forge.bytes(Role::Root);
            let signature: Value = serde_json::from_slice(&signature).unwrap();
            let bytes =
                json!({"signed": signed, "signatures": signature["signatures"]}).to_string();
            let error = refusal(begin(bytes.as_bytes()));
            assert!(
                matches!(
                    error,
                    Error::Malformed {
                        role: Role::Root,
                        ..
                    }
                ),
                "{change}: {error}"
            );
            assert!(error.to_string().contains(word), "{change}: {error}");
        }
        let zero = root_with(
            |signed| signed["roles"]["targets"]["threshold"] = json!(0),
            &[1],
        );
        assert!(refusal(zero).to_string().contains("threshold of 0"));
        for (bytes, word) in [
            (&b"{"[..], "EOF"),
            (b"[]", "an object"),
            (b"{\"signed\":{}}", "signatures"),
            (b"{\"signatures\":[]}", "signed"),
            (b"{\"signatures\":[{\"keyid\":\"a\",\"sig\":\"\"},{\"keyid\":\"a\",\"sig\":\"\"}],\"signed\":{}}", "duplicate"),
            (&b"[".repeat(100_000), ""),
            (&b" ".repeat(600_000), "longer than 512000"),
        ] {
            let error = refusal(begin(bytes)).to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_root_is_followed_by_the_next_version_signed_by_both() {
        let old = Forge::empty();
        let rotated = |signers: &[u8], version| {
            let mut new = Forge::empty();
            new.roles.insert(Role::Root, (vec![21], 1));
            new.root.signers = signers.to_vec();
            new.root.version = version;
            new
        };
        for (signers, version, good) in [
            (&[1, 21][..], 2, true),
            (&[21], 2, false),
            (&[1], 2, false),
            (&[1, 21], 1, false),
            (&[1, 21], 3, false),
        ] {
            let mut set = begin(&old.bytes(Role::Root)).unwrap();
            let result = set.update_root(&rotated(signers, version).bytes(Role::Root));
            assert_eq!(result.is_ok(), good, "{signers:?} {version} {result:?}");
            assert_eq!(set.root().version, if good { 2 } else { 1 });
        }
        // A chain: the third is signed by the second's keys, not by the first's.
        let mut set = begin(&old.bytes(Role::Root)).unwrap();
        set.update_root(&rotated(&[1, 21], 2).bytes(Role::Root))
            .unwrap();
        assert!(
            set.update_root(&rotated(&[1], 3).bytes(Role::Root))
                .is_err()
        );
        set.update_root(&rotated(&[21], 3).bytes(Role::Root))
            .unwrap();
    }

    #[test]
    fn expired_metadata_are_refused_at_the_very_second() {
        for role in Role::ALL {
            for (seconds, good) in [(1, true), (0, false), (-1, false)] {
                let mut forge = Forge::empty();
                forge.draft(role).expires = at(seconds);
                let result = refresh(&forge);
                assert_eq!(result.is_ok(), good, "{role} {seconds}");
                if let Err(error) = result {
                    assert!(
                        matches!(error, Error::Expired { role: r, version: 1, .. } if r == role),
                        "{error}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_expired_root_leads_to_its_successor() {
        let mut old = Forge::empty();
        old.root.expires = at(-1);
        let mut new = Forge::empty();
        new.root.version = 2;
        let mut set = begin(&old.bytes(Role::Root)).unwrap();
        set.update_root(&new.bytes(Role::Root)).unwrap();
        follow(&mut set, &new).unwrap();
    }

    #[test]
    fn nothing_older_than_what_was_seen_is_trusted() {
        let mut old = Forge::empty();
        for role in [Role::Timestamp, Role::Snapshot, Role::Targets] {
            old.draft(role).version = 5;
        }
        let at_least = |role, offered| Error::Version {
            role,
            offered,
            rule: VersionRule::AtLeast(5),
        };
        // The timestamp itself, though newer snapshots hang on it.
        let mut new = old.clone();
        new.timestamp.version = 4;
        new.snapshot.version = 6;
        assert_eq!(
            refusal(refresh_again(&old, &new)),
            at_least(Role::Timestamp, 4)
        );
        // The snapshot in a newer timestamp.
        let mut new = old.clone();
        new.timestamp.version = 6;
        new.snapshot.version = 4;
        assert_eq!(
            refusal(refresh_again(&old, &new)),
            at_least(Role::Snapshot, 4)
        );
        // The targets in a newer snapshot.
        let mut new = old.clone();
        new.publish();
        new.targets.version = 4;
        assert_eq!(
            refusal(refresh_again(&old, &new)),
            Error::ListsOlder {
                file: "targets.json".into(),
                offered: 4,
                trusted: 5,
            }
        );
        // Newer, or the same, is fine.
        let mut new = old.clone();
        new.publish();
        refresh_again(&old, &new).unwrap();
        refresh_again(&old, &old).unwrap();
    }

    #[test]
    fn an_expired_copy_still_tells_a_rollback() {
        let mut old = Forge::empty();
        old.timestamp.version = 5;
        old.timestamp.expires = at(-1);
        let mut set = begin(&old.bytes(Role::Root)).unwrap();
        assert!(matches!(
            refusal(set.update_timestamp(&old.bytes(Role::Timestamp))),
            Error::Expired { .. }
        ));
        let error = refusal(set.update_timestamp(&Forge::empty().bytes(Role::Timestamp)));
        assert!(
            matches!(error, Error::Version { offered: 1, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_equal_timestamp_keeps_the_first() {
        let old = Forge::empty();
        let mut forged = Forge::empty();
        forged.snapshot.version = 9;
        let mut set = begin(&old.bytes(Role::Root)).unwrap();
        assert!(set.update_timestamp(&old.bytes(Role::Timestamp)).unwrap());
        assert!(
            !set.update_timestamp(&forged.bytes(Role::Timestamp))
                .unwrap()
        );
        assert_eq!(set.timestamp().unwrap().snapshot.version, 1);
    }

    #[test]
    fn a_snapshot_never_forgets_a_file() {
        let old = Forge::empty();
        let mut new = Forge::empty();
        new.publish();
        new.hashes = false;
        let mut signed = new.signed(Role::Snapshot);
        signed["meta"] = json!({"other.json": {"version": 1}});
        let mut set = begin(&old.bytes(Role::Root)).unwrap();
        set.update_timestamp(&old.bytes(Role::Timestamp)).unwrap();
        set.update_snapshot(&old.bytes(Role::Snapshot), SnapshotCopy::Stored)
            .unwrap();
        set.update_timestamp(&new.bytes(Role::Timestamp)).unwrap();
        let error = refusal(set.update_snapshot(&new.sign(&signed, &[3]), SnapshotCopy::Announced));
        assert!(
            matches!(error, Error::Missing { ref file, .. } if file == "targets.json"),
            "{error}"
        );
    }

    #[test]
    fn parts_of_two_publications_do_not_mix() {
        // Lengths and digests are left out, so that only the versions can tell.
        for hashes in [false, true] {
            let mut old = Forge::empty();
            old.hashes = hashes;
            let mut new = old.clone();
            new.publish();
            for (timestamp, snapshot, targets, good) in [
                (&new, &new, &new, true),
                (&old, &old, &old, true),
                (&new, &old, &old, false),
                (&new, &old, &new, false),
                (&new, &new, &old, false),
                (&old, &new, &new, false),
                (&old, &old, &new, false),
            ] {
                let mut set = begin(&old.bytes(Role::Root)).unwrap();
                set.update_timestamp(&timestamp.bytes(Role::Timestamp))
                    .unwrap();
                let result = set
                    .update_snapshot(&snapshot.bytes(Role::Snapshot), SnapshotCopy::Announced)
                    .and_then(|()| set.update_targets(targets.bytes(Role::Targets)));
                assert_eq!(result.is_ok(), good, "{result:?}");
                assert_eq!(set.targets().is_some(), good);
            }
        }
    }

    #[test]
    fn a_digest_that_differs_is_refused() {
        // The same version with other content, signed by the right key: only the digest can tell.
        for role in [Role::Snapshot, Role::Targets] {
            let honest = Forge::empty();
            let mut other = Forge::empty();
            other.draft(role).expires = at(1001);
            let mut set = begin(&honest.bytes(Role::Root)).unwrap();
            set.update_timestamp(&honest.bytes(Role::Timestamp))
                .unwrap();
            let result = if role == Role::Snapshot {
                set.update_snapshot(&other.bytes(role), SnapshotCopy::Announced)
            } else {
                set.update_snapshot(&honest.bytes(Role::Snapshot), SnapshotCopy::Announced)
                    .unwrap();
                set.update_targets(other.bytes(role))
            };
            let error = refusal(result);
            assert!(matches!(error, Error::Tampered { .. }), "{error}");
        }
        let target = TargetFile {
            length: 3,
            sha256: Digest::of(b"abc"),
        };
        assert!(target.check("x", b"abc").is_ok());
        for (bytes, why) in [
            (&b"abd"[..], "digest"),
            (b"ab", "2 bytes instead of 3"),
            (b"abcd", "4 bytes instead of 3"),
            (b"", "0 bytes instead of 3"),
        ] {
            let error = refusal(target.check("x", bytes)).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn digests_of_unknown_kinds_only_are_refused() {
        let forge = Forge::empty();
        let mut signed = forge.signed(Role::Timestamp);
        signed["meta"]["snapshot.json"]["hashes"] = json!({"md5": "00"});
        let mut set = begin(&forge.bytes(Role::Root)).unwrap();
        let error = refusal(set.update_timestamp(&forge.sign(&signed, &[2])));
        assert!(error.to_string().contains("sha256"), "{error}");
    }

    #[test]
    fn fast_forward_is_recovered_from_by_rotating_the_keys() {
        let mut attacked = Forge::empty();
        attacked.timestamp.version = 1 << 60;
        attacked.snapshot.version = 1 << 60;
        let mut rotated = Forge::empty();
        rotated.roles.insert(Role::Timestamp, (vec![32], 1));
        rotated.roles.insert(Role::Snapshot, (vec![33], 1));
        rotated.timestamp.signers = vec![32];
        rotated.snapshot.signers = vec![33];
        rotated.root.version = 2;
        let mut set = begin(&Forge::empty().bytes(Role::Root)).unwrap();
        set.update_root(&rotated.bytes(Role::Root)).unwrap();
        assert!(
            set.update_timestamp(&attacked.bytes(Role::Timestamp))
                .is_err()
        );
        follow(&mut set, &rotated).unwrap();
        assert_eq!(set.timestamp().unwrap().version, 1);
    }

    #[test]
    fn nothing_is_trusted_out_of_order() {
        let forge = Forge::empty();
        let mut set = begin(&forge.bytes(Role::Root)).unwrap();
        assert!(
            set.update_snapshot(&forge.bytes(Role::Snapshot), SnapshotCopy::Announced)
                .is_err()
        );
        assert!(set.update_targets(forge.bytes(Role::Targets)).is_err());
        set.update_timestamp(&forge.bytes(Role::Timestamp)).unwrap();
        assert!(set.update_targets(forge.bytes(Role::Targets)).is_err());
    }

    fn targets_with(change: impl FnOnce(&mut Value)) -> Result<TrustedSet, Error> {
        let mut forge = Forge::empty();
        forge.hashes = false;
        let mut signed = forge.signed(Role::Targets);
        change(&mut signed);
        let mut set = begin(&forge.bytes(Role::Root)).unwrap();
        set.update_timestamp(&forge.bytes(Role::Timestamp)).unwrap();
        set.update_snapshot(&forge.bytes(Role::Snapshot), SnapshotCopy::Announced)
            .unwrap();
        set.update_targets(forge.sign(&signed, &[4]))?;
        Ok(set)
    }

    #[test]
    fn targets_that_cannot_be_placed_or_checked_do_no_harm() {
        let info = json!({"length": 1, "hashes": {"sha256": Digest::of(b"x")}});
        let set = targets_with(|signed| {
            signed["targets"] = json!({"../x": info, "/x": info, "a/../../x": info, "a\nb": info, "a\u{0}": info,
                "ok": info, "md5": {"length": 1, "hashes": {"md5": "00"}}});
        })
        .unwrap();
        let targets = set.targets().unwrap();
        let mut names = Vec::new();
        targets.each(&mut |name, _| names.push(name.to_string()));
        assert_eq!(names, ["md5", "ok"]);
        let md5 = targets.target(&"md5".parse().unwrap()).unwrap();
        assert_eq!(md5.file(), None);
        let error = refusal(md5.check("md5", b"x")).to_string();
        assert!(error.contains("no digest of a supported kind"), "{error}");
    }

    #[test]
    fn each_digest_that_is_given_must_be_right() {
        let (x, y) = (b"x", b"y");
        let long =
            |bytes: &[u8]| crate::trust::key::hex(&ed25519_compact::sha512::Hash::hash(bytes));
        for (hashes, good) in [
            (json!({"sha256": Digest::of(x)}), true),
            (json!({"sha512": long(x)}), true),
            (
                json!({"sha256": Digest::of(x), "sha512": long(x), "other": "?"}),
                true,
            ),
            (json!({"sha256": Digest::of(y), "sha512": long(x)}), false),
            (json!({"sha256": Digest::of(x), "sha512": long(y)}), false),
            (json!({"sha512": long(y)}), false),
        ] {
            let info = json!({"length": 1, "hashes": hashes});
            let set = targets_with(|signed| signed["targets"] = json!({"x": info})).unwrap();
            let target = set.targets().unwrap().target(&"x".parse().unwrap());
            assert_eq!(target.unwrap().check("x", x).is_ok(), good, "{hashes}");
        }
    }

    #[test]
    fn targets_whose_shape_is_wrong_are_refused_as_a_whole() {
        let good = json!({"length": 1, "hashes": {"sha256": Digest::of(b"x")}});
        for (bad, word) in [
            (json!({"length": -1, "hashes": {}}), "length"),
            (json!({"hashes": {}}), "length"),
            (json!({"length": 1}), "hashes"),
            (json!({"length": 1, "hashes": []}), "an object"),
            (json!({"length": 1, "hashes": {"sha256": "00"}}), "SHA-256"),
            (json!({"length": 1, "hashes": {"sha512": "00"}}), "sha512"),
            (json!(1), "object"),
        ] {
            let result = targets_with(|signed| signed["targets"] = json!({"a": good, "b": bad}));
            let error = refusal(result).to_string();
            assert!(error.contains("targets: b: "), "{bad}: {error}");
            assert!(error.contains(word), "{bad}: {error}");
        }
    }

    #[test]
    fn limits_hold_before_anything_is_trusted() {
        let forge = Forge::empty();
        let root = forge.bytes(Role::Root);
        let default = Limits::default();
        for (limits, word) in [
            (
                Limits {
                    root_bytes: root.len() as u64 - 1,
                    ..default
                },
                "longer than",
            ),
            (Limits { keys: 3, ..default }, "more than 3 keys"),
            (
                Limits {
                    signatures: 0,
                    ..default
                },
                "more than 0",
            ),
            (
                Limits {
                    json_depth: 4,
                    ..default
                },
                "nested too deep",
            ),
            (
                Limits {
                    json_members: 10,
                    ..default
                },
                "too many members",
            ),
        ] {
            let error = refusal(TrustedSet::new(&root, clock(), &limits)).to_string();
            assert!(error.contains(word), "{error}");
        }
        let exact = Limits {
            root_bytes: root.len() as u64,
            keys: 4,
            signatures: 1,
            json_depth: 5,
            json_members: 15,
            ..default
        };
        TrustedSet::new(&root, clock(), &exact).unwrap();
    }
}
