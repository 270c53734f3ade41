//! A repository as an appliance sees it: TUF metadata fetched, verified by the rules of [`qx_release::trust`], and kept.
//!
//! What is kept under `update/trust/` is what was verified, byte for byte, one durable write a file: the roots that
//! followed the shipped one (`N.root.json`), the latest `timestamp.json`, `snapshot.json` and `targets.json`, and under
//! `delegated/` those of delegated roles that something was looked for in. A copy that is damaged, or that the current
//! keys no longer verify, counts as absent.

pub mod audit;
pub mod damage;
pub mod expiry;

use crate::fetch::port::{Fetch, Target};
use qx_release::trust::Versions;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use semver::Version;

use qx_release::digest::Digest;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::json;
use qx_release::layout::{metadata_path, target_path};
use qx_release::manifest::{self, Manifest, Name, RelPath};
use qx_release::offer::Offer;
use qx_release::trust::clock::Clock;
use qx_release::trust::delegation::{Delegation, RoleName, segment_matches};
use qx_release::trust::described::{TargetFile, TargetInfo};
use qx_release::trust::key::Verifiers;
use qx_release::trust::metadata::Targets;
use qx_release::trust::search::{self, Found};
use qx_release::trust::{self, Limits, Role, SnapshotCopy, TrustedSet};

/// Where the metadata of delegated roles are kept.
const DELEGATED: &str = "delegated";
/// How many bytes of delegated metadata are cached in memory. The rest is read and verified again for each query, so that
/// memory stays bounded whatever is published.
const HELD: usize = 2 << 20;
/// How many releases for other appliances are reported at most.
const OTHERS: usize = 10;

/// A repository whose metadata are trusted.
pub struct Repository {
    set: TrustedSet,
    versions: Versions,
    store: PathBuf,
    loaded: RefCell<BTreeMap<RoleName, Loaded>>,
}

/// The verified metadata of a delegated role; or why there are none, and the kind of error.
struct Loaded {
    verifiers: Verifiers,
    outcome: Result<Rc<Targets>, (ErrorKind, String)>,
}

/// A release that may be installed.
#[derive(Debug)]
pub struct Candidate {
    /// What it says.
    pub manifest: Manifest,
    /// Its bytes as they were signed.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
}

/// Which releases an appliance asks for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its product.
    pub product: &'a Name,
    /// The channel that it follows.
    pub channel: &'a Name,
    /// Its architecture.
    pub arch: &'a Name,
    /// Of the releases for others, those of this version only.
    pub version: Option<&'a Version>,
}

/// A release that its publisher has taken back: it stays where it is, and is installed nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawn {
    /// What it was offered as.
    pub offer: Offer,
    /// The digest of its manifest.
    pub manifest: Option<Digest>,
    /// Why; may be empty.
    pub reason: String,
}

impl fmt::Display for Withdrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.reason {
            "" => write!(f, "its publisher has withdrawn it"),
            reason => write!(f, "its publisher has withdrawn it: {reason}"),
        }
    }
}

/// The releases that a repository offers.
#[derive(Debug, Default)]
pub struct Releases {
    /// Those for this appliance, and some of those for others, for it may be told of them.
    pub offers: Vec<Offer>,
    /// Those for this appliance that are not offered any more.
    pub withdrawn: Vec<Withdrawn>,
    /// Which releases are left out, and why: a sentence each.
    pub left_out: Vec<String>,
}

impl Releases {
    /// Takes one up for this appliance.
    fn add(&mut self, offer: Offer, target: &TargetInfo) {
        match target.withdrawn.clone() {
            None => self.offers.push(offer),
            Some(reason) => self.withdrawn.push(Withdrawn {
                offer,
                manifest: target.hashes.sha256,
                reason,
            }),
        }
    }
}

/// Is called with each visited role, or the reason why it could not be visited.
type Visit<'v> = dyn FnMut(&RoleName, Result<Rc<Targets>>) -> Result<()> + 'v;

/// Roles whose publishers are at fault, a line each.
#[derive(Default)]
struct LeftOut(BTreeSet<String>);

impl LeftOut {
    /// Notes what is a publisher's fault; all else is an error still.
    fn take(&mut self, what: String, error: Error) -> Result<()> {
        match error.kind {
            ErrorKind::Publisher => {
                self.0.insert(format!("{what}: {}", error.chain()));
                Ok(())
            }
            _ => Err(error),
        }
    }
}

impl Repository {
    /// Refreshes what is trusted: follows the chain of roots from `root` (the one shipped with the image), and gets
    /// the latest timestamp, snapshot and targets. `store` keeps them; expiry is measured against `clock`.
    ///
    /// # Errors
    /// [`ErrorKind::Untrusted`] for metadata that are not to be trusted; [`ErrorKind::Usage`] for a shipped root that is none;
    /// what the source says for a failed transfer. What was verified before the error is kept.
    pub fn refresh(
        source: &dyn Fetch,
        store: &Path,
        root: &[u8],
        clock: Clock,
        limits: &Limits,
    ) -> Result<Repository> {
        durable::create_dir(store, 0o700)?;
        let mut set = TrustedSet::new(json::without_mark(root), clock, limits)
            .doing(|| "reading the trust root of the appliance")
            .map_err(|e| e.of(ErrorKind::Usage))?;
        update_root(&mut set, source, store)?;
        let timestamp = update_timestamp(&mut set, source, store)?;
        let snapshot = update_snapshot(&mut set, source, store)?;
        let targets = update_targets(&mut set, source, store, snapshot)?;
        drop_strangers(&set, store)?;
        let versions = Versions {
            root: set.root().version,
            timestamp,
            snapshot,
            targets,
        };
        Ok(Repository {
            set,
            versions,
            store: store.to_owned(),
            loaded: RefCell::default(),
        })
    }

    /// The versions of the metadata that all of this was verified with.
    pub fn versions(&self) -> Versions {
        self.versions
    }

    /// What expiry was measured against.
    pub fn clock(&self) -> Clock {
        self.set.clock()
    }

    /// The releases for an appliance, by the names of their targets: those in the top-level targets, and those in roles
    /// that are delegated to by patterns which such names could match. Of the latter only those count that the search
    /// for their name ([`Repository::find`]) finds in that very role.
    ///
    /// A delegated role whose very metadata that the snapshot announces are not good (signed by too few, expired, too many
    /// roles) is its publisher's fault, and hides no release but those that it could speak for.
    ///
    /// # Errors
    /// What the source says of metadata that it does not have, or if it sent others than those announced: whoever stands
    /// between must not be able to have an older release chosen by keeping a role away.
    pub fn releases(&self, source: &dyn Fetch, wanted: &Wanted) -> Result<Releases> {
        let Wanted {
            product,
            channel,
            arch,
            version,
        } = *wanted;
        let ours = |offer: &Offer| {
            (&offer.product, &offer.channel, &offer.arch) == (product, channel, arch)
        };
        let asked_for = |offer: &Offer| version.is_none_or(|version| offer.version == *version);
        let Some(top) = self.set.targets() else {
            return Ok(Releases::default());
        };
        let (mut found, mut others) = (Releases::default(), Vec::new());
        // A bundle need not have what was withdrawn to say that it was.
        let offered = |name: &RelPath, target: &TargetInfo| {
            let there = || target.withdrawn.is_some() || source.may_have(&self.path(name, target));
            Offer::of(name).filter(|_| there())
        };
        top.each(&mut |name, target| match offered(&name, &target) {
            Some(offer) if ours(&offer) => found.add(offer, &target),
            Some(offer)
                if asked_for(&offer) && target.withdrawn.is_none() && others.len() < OTHERS =>
            {
                others.push(offer);
            }
            _ => {}
        });
        let mut named: BTreeSet<RelPath> = found.offers.iter().map(|o| o.target.clone()).collect();
        let mut left_out = LeftOut::default();
        let mut delegated = Vec::new();
        let might = |pattern: &str| might_name_releases(pattern, [product, channel, arch]);
        self.walk(source, top, &might, &mut |role, walked| {
            match walked {
                Ok(targets) => targets.each(&mut |name, target| {
                    let offer = offered(&name, &target).filter(|offer| ours(offer));
                    delegated.extend(offer.map(|offer| (role.clone(), offer)));
                }),
                Err(e) => left_out.take(format!("skipping the releases of {role}"), e)?,
            }
            Ok(())
        })?;
        for (role, offer) in delegated {
            if named.contains(&offer.target) {
                continue;
            }
            match self.find(source, &offer.target) {
                Ok(Some(listed)) if listed.role.as_ref() == Some(&role) => {
                    named.insert(offer.target.clone());
                    found.add(offer, &listed.target);
                }
                // Somebody who is trusted more says what it is, or nobody is trusted to.
                Ok(_) => {}
                Err(e) => left_out.take(format!("skipping releases that {role} lists"), e)?,
            }
        }
        found.offers.extend(others);
        found.left_out = left_out.0.into_iter().collect();
        Ok(found)
    }

    /// Looks for a target in the order of TUF's search ([`search::search`]). Metadata of delegated roles are fetched
    /// as they are needed.
    ///
    /// # Errors
    /// [`ErrorKind::Publisher`] if a role that would have to be asked is not good, and that is its publisher's fault; what the
    /// source says if it does not have its metadata, or sent others than those announced.
    pub fn find(&self, source: &dyn Fetch, name: &RelPath) -> Result<Option<Found>> {
        let Some(top) = self.set.targets() else {
            return Ok(None);
        };
        let limits = self.set.limits();
        search::search(top, name, limits, &mut |delegation| {
            self.load(source, delegation)
        })
    }

    /// A target by its name, with its SHA-256.
    pub fn target(&self, source: &dyn Fetch, name: &RelPath) -> Result<Option<Target>> {
        let Some(found) = self.find(source, name)? else {
            return Ok(None);
        };
        let file = found.target.file().ok_or_else(|| {
            let why = format!("looking for {name}: its metadata contain no SHA-256");
            Error::with(ErrorKind::Publisher, why)
        })?;
        Ok(Some(Target {
            length: file.length,
            sha256: file.sha256,
            path: self.path(name, &found.target),
        }))
    }

    /// Where a target lies in the repository.
    pub fn path(&self, name: &RelPath, target: &TargetInfo) -> String {
        let digest = target.hashes.name().unwrap_or_default();
        target_path(name, &digest, self.set.root().consistent_snapshot)
    }

    /// Gets the manifest of a release: what it says, its bytes as they were signed, and their digest. `Ok(Err(…))` is the
    /// publisher's fault: the very bytes that were signed are no manifest of that release.
    ///
    /// # Errors
    /// What the source says for a failed transfer; [`ErrorKind::Untrusted`] if it sent something else than what was signed.
    pub fn manifest(&self, source: &dyn Fetch, offer: &Offer) -> Result<Result<Candidate, String>> {
        let doing = || format!("reading the manifest {}", offer.target);
        let unusable = |why: String| Ok(Err(format!("{}: {why}", doing())));
        let target = self.target(source, &offer.target)?.ok_or_else(|| {
            let why = format!("{}: the repository does not offer it", doing());
            Error::with(ErrorKind::Publisher, why)
        })?;
        if target.length > manifest::MAX_BYTES {
            return unusable(format!("it is longer than {} bytes", manifest::MAX_BYTES));
        }
        let file = TargetFile {
            length: target.length,
            sha256: target.sha256,
        };
        let mut bytes = Vec::new();
        source.required(&target.path, manifest::MAX_BYTES, &mut |fetched| {
            file.check(&target.path, &fetched)
                .doing(doing)
                .map_err(|e| e.of(ErrorKind::Untrusted))?;
            bytes = fetched;
            Ok(())
        })?;
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(why) => return unusable(why),
        };
        for (field, said, named) in [
            ("product", manifest.product.as_str(), offer.product.as_str()),
            ("channel", manifest.channel.as_str(), offer.channel.as_str()),
            ("arch", manifest.arch.as_str(), offer.arch.as_str()),
            (
                "version",
                &*manifest.version.to_string(),
                &*offer.version.to_string(),
            ),
        ] {
            if said != named {
                return unusable(format!("its {field} is {said}, but its name says {named}"));
            }
        }
        Ok(Ok(Candidate {
            manifest,
            bytes,
            digest: target.sha256,
        }))
    }

    /// Visits the roles that are delegated to by a pattern of which `might` says that it is of interest.
    fn walk(
        &self,
        source: &dyn Fetch,
        top: &Targets,
        might: &dyn Fn(&str) -> bool,
        visit: &mut Visit,
    ) -> Result<()> {
        let limits = self.set.limits();
        let mut next = search::by_pattern(top, "targets", limits, might);
        next.reverse();
        let mut walked = BTreeSet::new();
        let mut asked = 0;
        while let Some(delegation) = next.pop() {
            let role = &delegation.role;
            if walked.contains(role) {
                continue;
            }
            if asked == limits.delegated_roles {
                let why = format!("the limit of {asked} delegated roles is reached");
                return visit(role, Err(Error::with(ErrorKind::Publisher, why)));
            }
            asked += 1;
            let loaded = self.load(source, &delegation);
            if let Ok(targets) = &loaded {
                walked.insert(role.clone());
                let mut further = search::by_pattern(targets, role.as_str(), limits, might);
                further.reverse();
                next.extend(further);
            }
            visit(role, loaded)?;
        }
        Ok(())
    }

    /// The metadata of a delegated role, verified as this delegator asks.
    fn load(&self, source: &dyn Fetch, delegation: &Delegation) -> Result<Rc<Targets>> {
        let again = |(kind, why): &(ErrorKind, String)| Error::with(*kind, why.clone());
        if let Some(loaded) = self.loaded.borrow().get(&delegation.role)
            && loaded.verifiers == delegation.verifiers
        {
            return loaded.outcome.as_ref().map(Rc::clone).map_err(again);
        }
        let outcome = self
            .load_anew(source, delegation)
            .map(Rc::new)
            .map_err(|e| (e.kind, e.chain()));
        let result = outcome.as_ref().map(Rc::clone).map_err(again);
        let mut loaded = self.loaded.borrow_mut();
        let length =
            |outcome: &Result<Rc<Targets>, _>| outcome.as_ref().map_or(0, |t| t.bytes().len());
        let held: usize = loaded.values().map(|loaded| length(&loaded.outcome)).sum();
        if held + length(&outcome) <= HELD {
            let verifiers = delegation.verifiers.clone();
            loaded.insert(delegation.role.clone(), Loaded { verifiers, outcome });
        }
        result
    }

    fn load_anew(&self, source: &dyn Fetch, delegation: &Delegation) -> Result<Targets> {
        let role = &delegation.role;
        let directory = self.store.join(DELEGATED);
        let file = format!("{}.json", role.encoded());
        let copy = kept(&directory, &file).map(|bytes| self.set.delegated(delegation, bytes));
        if let Some(Ok(targets)) = copy {
            return Ok(targets);
        }
        let meta = self.set.snapshot().and_then(|s| s.meta.get(&role.file()));
        let Some((version, announced)) = meta.map(|meta| (meta.version, meta.hashes.is_some()))
        else {
            let missing = trust::Error::Missing {
                role: Role::Snapshot,
                file: role.file(),
            };
            return trusted(&metadata_path(&role.encoded(), None), Err(missing))
                .map_err(|e| e.of(ErrorKind::Publisher));
        };
        let named = self.set.root().consistent_snapshot.then_some(version);
        let path = metadata_path(&role.encoded(), named);
        let mut accepted = None;
        let mut publishers = false;
        let limit = Role::Targets.max_bytes(self.set.limits());
        let asked = source.required(&path, limit, &mut |bytes| {
            let verified = self.set.delegated(delegation, bytes);
            publishers |= matches!(&verified, Err(e) if is_publishers(e, announced));
            accepted = Some(trusted(&path, verified)?);
            Ok(())
        });
        match asked {
            // Only a role whose publisher is at fault is passed over. What somebody between made of it is as if it were not
            // to be had.
            Err(e) if e.kind == ErrorKind::Untrusted => {
                return Err(e.of(match publishers {
                    true => ErrorKind::Publisher,
                    false => ErrorKind::Unavailable,
                }));
            }
            asked => asked?,
        };
        let targets = accepted.ok_or_else(|| {
            let why = format!("fetching {path}: there is no such file");
            Error::with(ErrorKind::Unavailable, why)
        })?;
        durable::create_dir(&directory, 0o700)?;
        durable::write(&directory.join(file), targets.bytes())?;
        Ok(targets)
    }
}

/// Whether it is the publisher's fault that a delegated role is not trusted, and not that of whoever brought it: the source
/// or somebody between. `announced`: the snapshot gives a digest.
fn is_publishers(error: &trust::Error, announced: bool) -> bool {
    match error {
        trust::Error::Tampered { .. } => false,
        // Of the right version, and signed as was asked.
        trust::Error::Expired { .. } => true,
        _ => announced,
    }
}

/// Whether names of the form `PRODUCT/CHANNEL/ARCH/VERSION/release.json` could match a pattern.
fn might_name_releases(pattern: &str, names: [&Name; 3]) -> bool {
    let segments: Vec<&str> = pattern.split('/').collect();
    let [product, channel, arch, _, file] = segments[..] else {
        return false;
    };
    let matches = segment_matches;
    let mut fits = [product, channel, arch].into_iter().zip(names);
    fits.all(|(pattern, name)| matches(pattern, name.as_str())) && matches(file, "release.json")
}

/// Removes kept metadata of roles that the snapshot no longer lists.
fn drop_strangers(set: &TrustedSet, store: &Path) -> Result<()> {
    let directory = store.join(DELEGATED);
    let Ok(entries) = fs::read_dir(&directory) else {
        // Nothing was ever delegated.
        return Ok(());
    };
    let role = |file: &String| {
        let name = file.strip_suffix(".json")?;
        RoleName::new(name, set.limits()).ok()
    };
    let meta = set.snapshot().into_iter().flat_map(|s| s.meta.keys());
    let listed: BTreeSet<String> = meta
        .filter_map(role)
        .map(|role| format!("{}.json", role.encoded()))
        .collect();
    for entry in entries {
        let entry = entry.doing(|| format!("reading {}", directory.display()))?;
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| listed.contains(name)) {
            durable::remove(&entry.path())?;
        }
    }
    Ok(())
}

fn update_root(set: &mut TrustedSet, source: &dyn Fetch, store: &Path) -> Result<()> {
    // The shipped root stays the anchor: the kept ones only spare the way along the chain.
    while let Some(bytes) = kept(store, &format!("{}.root.json", set.root().version + 1)) {
        if set.update_root(&bytes).is_err() {
            break;
        }
    }
    for _ in 0..set.limits().root_rotations {
        let version = set.root().version + 1;
        let path = metadata_path(Role::Root.as_str(), Some(version));
        let Some(bytes) = source.small(&path, Role::Root.max_bytes(set.limits()))? else {
            break;
        };
        trusted(&path, set.update_root(&bytes))?;
        durable::write(&store.join(format!("{version}.root.json")), &bytes)?;
    }
    Ok(())
}

fn update_timestamp(set: &mut TrustedSet, source: &dyn Fetch, store: &Path) -> Result<u64> {
    let file = "timestamp.json";
    let kept = kept(store, file);
    set.date(kept.as_deref());
    if let Some(bytes) = kept {
        // Refused or expired, the source's decides; what it still proves is remembered in the set.
        let _ = set.update_timestamp(&bytes);
    }
    let path = metadata_path(Role::Timestamp.as_str(), None);
    let limit = Role::Timestamp.max_bytes(set.limits());
    let mut newer = None;
    source.required(&path, limit, &mut |bytes| {
        if trusted(&path, set.update_timestamp(&bytes))? {
            newer = Some(bytes);
        }
        Ok(())
    })?;
    if let Some(bytes) = newer {
        durable::write(&store.join(file), &bytes)?;
    }
    Ok(set.timestamp().map_or(0, |timestamp| timestamp.version))
}

fn update_snapshot(set: &mut TrustedSet, source: &dyn Fetch, store: &Path) -> Result<u64> {
    let file = "snapshot.json";
    let version = set.timestamp().map_or(0, |t| t.snapshot.version);
    if kept(store, file)
        .is_some_and(|bytes| set.update_snapshot(&bytes, SnapshotCopy::Stored).is_ok())
    {
        return Ok(version);
    }
    let named = set.root().consistent_snapshot.then_some(version);
    let path = metadata_path(Role::Snapshot.as_str(), named);
    let limit = Role::Snapshot.max_bytes(set.limits());
    let mut accepted = Vec::new();
    source.required(&path, limit, &mut |bytes| {
        trusted(&path, set.update_snapshot(&bytes, SnapshotCopy::Announced))?;
        accepted = bytes;
        Ok(())
    })?;
    durable::write(&store.join(file), &accepted)?;
    Ok(version)
}

fn update_targets(
    set: &mut TrustedSet,
    source: &dyn Fetch,
    store: &Path,
    snapshot: u64,
) -> Result<u64> {
    let file = "targets.json";
    let meta = set.snapshot().and_then(|s| s.meta.get(file));
    let Some(version) = meta.map(|meta| meta.version) else {
        let role = Role::Snapshot;
        let missing = trust::Error::Missing {
            role,
            file: file.to_owned(),
        };
        return trusted(&metadata_path(role.as_str(), Some(snapshot)), Err(missing));
    };
    // Where the copy does not do, it is gone before the next is fetched: they are large.
    if kept(store, file).is_some_and(|bytes| set.update_targets(bytes).is_ok()) {
        return Ok(version);
    }
    let named = set.root().consistent_snapshot.then_some(version);
    let path = metadata_path(Role::Targets.as_str(), named);
    let limit = Role::Targets.max_bytes(set.limits());
    source.required(&path, limit, &mut |bytes| {
        trusted(&path, set.update_targets(bytes))
    })?;
    let accepted = set.targets().map_or(&[][..], Targets::bytes);
    durable::write(&store.join(file), accepted)?;
    Ok(version)
}

/// A copy kept earlier. An unreadable one counts as absent: the source has it.
fn kept(store: &Path, file: &str) -> Option<Vec<u8>> {
    fs::read(store.join(file)).ok()
}

fn trusted<T>(path: &str, result: Result<T, trust::Error>) -> Result<T> {
    result
        .doing(|| format!("verifying {path}"))
        .map_err(|e| e.of(ErrorKind::Untrusted))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;
    use qx_release::trust::forge::{Forge, Team, at};

    /// A source in memory that records what was asked for.
    #[derive(Default)]
    struct Memory {
        files: BTreeMap<String, Vec<u8>>,
        asked: RefCell<Vec<String>>,
    }

    impl Fetch for Memory {
        fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
            self.asked.borrow_mut().push(path.to_owned());
            let file = self.files.get(path).cloned();
            if file.as_ref().is_some_and(|f| f.len() as u64 > limit) {
                return Err(Error::new(format!("fetching {path}: too long")));
            }
            Ok(file)
        }
    }

    /// Everything that a forged repository serves, added to what it served before.
    fn serve(memory: &mut Memory, forge: &Forge) {
        for role in Role::ALL {
            let version = match role {
                Role::Root => Some(forge.root.version),
                Role::Timestamp => None,
                Role::Snapshot => forge.consistent.then_some(forge.snapshot.version),
                Role::Targets => forge.consistent.then_some(forge.targets.version),
            };
            memory
                .files
                .insert(metadata_path(role.as_str(), version), forge.bytes(role));
        }
        for team in &forge.teams {
            let role = RoleName::new(team.name, &Limits::default()).unwrap();
            let version = forge.consistent.then_some(team.draft.version);
            let bytes = forge.team_bytes(team);
            memory
                .files
                .insert(metadata_path(&role.encoded(), version), bytes);
        }
        let teams = forge.teams.iter().flat_map(|team| &team.files);
        for (name, bytes) in forge.files.iter().chain(teams) {
            let path = target_path(&name.parse().unwrap(), &Digest::of(bytes), forge.consistent);
            memory.files.insert(path, bytes.clone());
        }
    }

    struct Appliance {
        store: PathBuf,
        root: Vec<u8>,
        source: Memory,
    }

    impl Appliance {
        fn new(test: &str, forge: &Forge) -> Appliance {
            let name = format!("qx-repository-{}-{test}", std::process::id());
            let store = std::env::temp_dir().join(name);
            let _ = std::fs::remove_dir_all(&store);
            let mut source = Memory::default();
            serve(&mut source, forge);
            let root = forge.bytes(Role::Root);
            Appliance {
                store,
                root,
                source,
            }
        }

        fn refresh(&self) -> Result<Repository> {
            self.source.asked.borrow_mut().clear();
            Repository::refresh(
                &self.source,
                &self.store,
                &self.root,
                Clock::new(at(0), at(0)),
                &Limits::default(),
            )
        }

        fn asked(&self) -> Vec<String> {
            self.source.asked.borrow().clone()
        }

        fn stored(&self) -> BTreeMap<String, Vec<u8>> {
            std::fs::read_dir(&self.store)
                .unwrap()
                .map(|entry| entry.unwrap())
                .map(|entry| {
                    let name = entry.file_name().into_string().unwrap();
                    (name, std::fs::read(entry.path()).unwrap())
                })
                .collect()
        }
    }

    impl Drop for Appliance {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.store);
        }
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn releases(appliance: &Appliance, repository: &Repository) -> Releases {
        let (product, channel, arch) = (name("vdc"), name("stable"), name("x86_64"));
        let wanted = Wanted {
            product: &product,
            channel: &channel,
            arch: &arch,
            version: None,
        };
        repository.releases(&appliance.source, &wanted).unwrap()
    }

    fn offers(appliance: &Appliance, repository: &Repository) -> Vec<Offer> {
        releases(appliance, repository).offers
    }

    fn refusal<T>(result: Result<T>) -> Error {
        result.err().expect("it was accepted")
    }

    fn release(version: &str) -> (String, Vec<u8>) {
        let manifest = json!({
            "format": 1, "product": "vdc", "version": version, "arch": "x86_64", "channel": "stable",
            "released": "2026-03-01T12:00:00Z",
            "components": [{
                "name": "app", "kind": "bin", "install_path": "bin/app", "mode": "0755",
                "sha256": Digest::of(b""), "size_bytes": 0, "entries": 1, "artifact": "vdc/artifacts/app.tar.gz",
            }],
        });
        let name = format!("vdc/stable/x86_64/{version}/release.json");
        (name, manifest.to_string().into_bytes())
    }

    #[test]
    fn what_was_verified_is_kept_and_not_fetched_again() {
        for consistent in [true, false] {
            let forge = Forge {
                consistent,
                ..Forge::empty()
            };
            let appliance = Appliance::new("kept", &forge);
            let versions = appliance.refresh().unwrap().versions();
            assert_eq!(
                versions,
                Versions {
                    root: 1,
                    timestamp: 1,
                    snapshot: 1,
                    targets: 1
                }
            );
            let numbered = |name: &str| match consistent {
                true => format!("metadata/1.{name}"),
                false => format!("metadata/{name}"),
            };
            let always = ["metadata/2.root.json", "metadata/timestamp.json"].map(str::to_owned);
            let mut first = always.to_vec();
            first.extend([numbered("snapshot.json"), numbered("targets.json")]);
            assert_eq!(appliance.asked(), first);
            for role in [Role::Timestamp, Role::Snapshot, Role::Targets] {
                let kept = &appliance.stored()[&format!("{role}.json")];
                assert_eq!(*kept, forge.bytes(role), "{role}");
            }
            appliance.refresh().unwrap();
            assert_eq!(appliance.asked(), always);
        }
    }

    #[test]
    fn the_chain_of_roots_is_followed_and_kept() {
        let mut forge = Forge::empty();
        let mut appliance = Appliance::new("chain", &forge);
        for (version, old, new) in [(2, 1, 41), (3, 41, 42), (4, 42, 43)] {
            forge.root.version = version;
            forge.root.signers = vec![old, new];
            forge.roles.insert(Role::Root, (vec![new], 1));
            serve(&mut appliance.source, &forge);
        }
        assert_eq!(appliance.refresh().unwrap().versions().root, 4);
        appliance.refresh().unwrap();
        assert_eq!(appliance.asked()[0], "metadata/5.root.json");
        // A damaged copy is fetched again, from where the chain still holds.
        std::fs::write(appliance.store.join("3.root.json"), b"{").unwrap();
        assert_eq!(appliance.refresh().unwrap().versions().root, 4);
        assert_eq!(appliance.asked()[0], "metadata/3.root.json");
        appliance.refresh().unwrap();
        assert_eq!(appliance.asked()[0], "metadata/5.root.json");
    }

    #[test]
    fn damaged_copies_count_as_absent() {
        let forge = Forge::empty();
        let appliance = Appliance::new("damaged", &forge);
        appliance.refresh().unwrap();
        let good = appliance.stored();
        for file in good.keys() {
            let mut bytes = good[file].clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(appliance.store.join(file), &bytes).unwrap();
            appliance.refresh().unwrap();
            assert_eq!(appliance.stored(), good, "{file}");
        }
    }

    #[test]
    fn nothing_refused_is_kept_and_an_honest_refresh_follows() {
        let mut honest = Forge::empty();
        honest.publish();
        let mut next = honest.clone();
        next.publish();
        type Attack = fn(&mut Forge);
        let attacks: [(Role, &str, Attack); 6] = [
            (Role::Timestamp, "signed by", |f| {
                f.timestamp.signers = vec![9]
            }),
            (Role::Timestamp, "older than", |f| f.timestamp.version = 1),
            (Role::Timestamp, "expired", |f| f.timestamp.expires = at(-1)),
            (Role::Snapshot, "signed by", |f| {
                f.snapshot.signers = vec![9]
            }),
            (Role::Snapshot, "older than", |f| f.targets.version = 1),
            (Role::Targets, "expired", |f| f.targets.expires = at(-1)),
        ];
        for (role, word, attack) in attacks {
            let mut appliance = Appliance::new("attack", &honest);
            appliance.refresh().unwrap();
            let before = appliance.stored();
            let mut forged = next.clone();
            attack(&mut forged);
            let honestly = appliance.source.files.clone();
            serve(&mut appliance.source, &forged);
            let error = refusal(appliance.refresh());
            assert_eq!(
                error.kind,
                ErrorKind::Untrusted,
                "{role}: {}",
                error.chain()
            );
            assert!(error.chain().contains(word), "{role}: {}", error.chain());
            // What was verified before the refusal is kept, the refused role and what follows it is not.
            for later in Role::ALL.into_iter().filter(|later| *later >= role) {
                let file = format!("{later}.json");
                assert_eq!(appliance.stored()[&file], before[&file], "{role}: {file}");
            }
            // Mending the repository is enough; what was trusted is still there to tell a rollback.
            appliance.source.files = honestly;
            let mut mended = next.clone();
            mended.publish();
            serve(&mut appliance.source, &mended);
            appliance.refresh().unwrap();
            serve(&mut appliance.source, &honest);
            assert_eq!(refusal(appliance.refresh()).kind, ErrorKind::Untrusted);
        }
    }

    #[test]
    fn a_missing_file_is_a_failed_transfer_and_no_distrust() {
        let forge = Forge::empty();
        for file in ["timestamp.json", "1.snapshot.json", "1.targets.json"] {
            let mut appliance = Appliance::new("missing", &forge);
            appliance.source.files.remove(&format!("metadata/{file}"));
            let error = refusal(appliance.refresh());
            assert_eq!(error.kind, ErrorKind::Unavailable, "{}", error.chain());
            assert!(error.chain().contains(file), "{}", error.chain());
        }
    }

    #[test]
    fn a_shipped_root_that_is_none_is_a_wrong_configuration() {
        let mut appliance = Appliance::new("shipped", &Forge::empty());
        appliance.root = b"no root".to_vec();
        assert_eq!(refusal(appliance.refresh()).kind, ErrorKind::Usage);
    }

    #[test]
    fn releases_are_found_by_their_names() {
        let mut forge = Forge::empty();
        for version in ["1.0.0", "1.10.0", "2.0.0-rc.1+b.5"] {
            let (name, bytes) = release(version);
            forge.files.insert(name, bytes);
        }
        for other in [
            "vdc/stable/x86_64/1.0/release.json",
            "vdc/stable/x86_64/1.0.0/release.txt",
            "vdc/stable/x86_64/1.0.0/x/release.json",
            "vdc/x86_64/1.0.0/release.json",
            "v dc/stable/x86_64/1.0.0/release.json",
            "release.json",
        ] {
            forge.files.insert(other.into(), vec![]);
        }
        let appliance = Appliance::new("releases", &forge);
        let repository = appliance.refresh().unwrap();
        let offers = offers(&appliance, &repository);
        let versions: Vec<_> = offers.iter().map(|o| o.version.to_string()).collect();
        assert_eq!(versions, ["1.0.0", "1.10.0", "2.0.0-rc.1+b.5"]);
        for offer in &offers {
            let Candidate {
                manifest,
                bytes,
                digest,
            } = repository
                .manifest(&appliance.source, offer)
                .unwrap()
                .unwrap();
            assert_eq!(manifest.version, offer.version);
            assert_eq!(digest, Digest::of(&bytes));
        }
    }

    #[test]
    fn a_manifest_must_be_what_was_signed_and_what_its_name_says() {
        let (name, bytes) = release("1.0.0");
        let text = String::from_utf8(bytes.clone()).unwrap();
        for (from, to, word) in [
            ("\"vdc\"", "\"xyz\"", "product"),
            ("stable", "beta", "channel"),
            ("x86_64", "aarch64", "arch"),
            ("1.0.0", "1.0.1", "version"),
            ("\"format\":1", "\"format\":2", "format 2"),
            ("bin/app", "../app", "relative path"),
        ] {
            let mut forge = Forge::empty();
            forge
                .files
                .insert(name.clone(), text.replace(from, to).into_bytes());
            let appliance = Appliance::new("manifest", &forge);
            let repository = appliance.refresh().unwrap();
            let offer = &offers(&appliance, &repository)[0];
            let manifest = repository.manifest(&appliance.source, offer).unwrap();
            let why = manifest.expect_err("it was accepted");
            assert!(why.contains(word), "{why}");
        }
        let mut forge = Forge::empty();
        forge.files.insert(name, bytes);
        let mut appliance = Appliance::new("tampered", &forge);
        let repository = appliance.refresh().unwrap();
        let offer = &offers(&appliance, &repository)[0];
        let target = repository.target(&appliance.source, &offer.target);
        let path = target.unwrap().unwrap().path;
        for tampered in [text.replace("vdc", "vdx"), text.clone() + " "] {
            appliance
                .source
                .files
                .insert(path.clone(), tampered.into_bytes());
            let error = refusal(repository.manifest(&appliance.source, offer));
            assert_eq!(error.kind, ErrorKind::Untrusted);
            assert!(
                error.chain().contains("not what was signed"),
                "{}",
                error.chain()
            );
        }
        appliance.source.files.remove(&path);
        assert_eq!(
            refusal(repository.manifest(&appliance.source, offer)).kind,
            ErrorKind::Unavailable
        );
    }

    const OURS: &str = "vdc/stable/x86_64/*/release.json";

    /// The top level offers 1.0.0, and a team 2.0.0 and something that is not its own.
    fn with_team() -> Forge {
        let mut forge = Forge::empty();
        forge.files.extend([release("1.0.0")]);
        let mut team = Team::new("team/ü", 5, &["vdc/artifacts/web-*", OURS]);
        team.files.extend([release("2.0.0")]);
        for foreign in [
            "vdc/artifacts/other",
            "vdc/stable/x86_64/3.0.0/x/release.json",
        ] {
            team.files.insert(foreign.into(), vec![]);
        }
        forge.teams.push(team);
        forge
    }

    fn versions(offers: &[Offer]) -> Vec<String> {
        offers.iter().map(|o| o.version.to_string()).collect()
    }

    fn find(appliance: &Appliance, repository: &Repository, name: &str) -> Result<Option<Found>> {
        repository.find(&appliance.source, &name.parse().unwrap())
    }

    #[test]
    fn what_a_team_may_publish_is_offered_and_kept() {
        for consistent in [true, false] {
            let mut forge = with_team();
            forge.consistent = consistent;
            let appliance = Appliance::new("team", &forge);
            let repository = appliance.refresh().unwrap();
            assert_eq!(
                versions(&offers(&appliance, &repository)),
                ["1.0.0", "2.0.0"]
            );
            let offer = &offers(&appliance, &repository)[1];
            let candidate = repository.manifest(&appliance.source, offer).unwrap();
            assert_eq!(candidate.unwrap().manifest.version, offer.version);
            let asked =
                |asked: Vec<String>| asked.iter().filter(|path| path.contains("team")).count();
            assert_eq!(asked(appliance.asked()), 1);
            let kept = appliance.store.join("delegated/team%2F%C3%BC.json");
            assert_eq!(fs::read(&kept).unwrap(), forge.team_bytes(&forge.teams[0]));
            // What nobody is trusted with is not found, whoever lists it.
            assert_eq!(
                find(&appliance, &repository, "vdc/artifacts/other").unwrap(),
                None
            );
            // The copy spares the way, and is no copy of a role that is gone.
            let stranger = appliance.store.join("delegated/gone.json");
            fs::write(&stranger, b"{}").unwrap();
            let repository = appliance.refresh().unwrap();
            assert!(!stranger.exists());
            assert_eq!(offers(&appliance, &repository).len(), 2);
            assert_eq!(asked(appliance.asked()), 0);
            // A damaged one counts as absent.
            fs::write(&kept, b"{").unwrap();
            let repository = appliance.refresh().unwrap();
            assert_eq!(offers(&appliance, &repository).len(), 2);
            assert_eq!(asked(appliance.asked()), 1);
        }
    }

    #[test]
    fn only_what_the_search_finds_in_a_role_is_its_release() {
        type Change = fn(&mut Forge);
        let cases: [(&str, Change, &[&str]); 6] = [
            (
                "not its pattern",
                |f| f.teams[0].patterns = vec!["vdc/stable/x86_64/2.?.1/release.json"],
                &["1.0.0"],
            ),
            (
                "another product's",
                |f| f.teams[0].patterns = vec!["xyz/*/*/*/release.json"],
                &["1.0.0"],
            ),
            (
                "the top level's",
                |f| f.files.extend([release("2.0.0")]),
                &["1.0.0", "2.0.0"],
            ),
            (
                "of one that ends the search",
                |f| {
                    let mut first = Team::new("first", 6, &[OURS]);
                    first.terminating = true;
                    f.teams.insert(0, first);
                },
                &["1.0.0"],
            ),
            (
                "after one that does not",
                |f| f.teams.insert(0, Team::new("first", 6, &[OURS])),
                &["1.0.0", "2.0.0"],
            ),
            (
                "of two",
                |f| {
                    let mut second = f.teams[0].clone();
                    (second.name, second.key, second.draft.signers) = ("second", 6, vec![6]);
                    f.teams.push(second);
                },
                &["1.0.0", "2.0.0"],
            ),
        ];
        for (case, change, expected) in cases {
            let mut forge = with_team();
            change(&mut forge);
            let appliance = Appliance::new("whose", &forge);
            let repository = appliance.refresh().unwrap();
            let releases = releases(&appliance, &repository);
            assert_eq!(versions(&releases.offers), expected, "{case}");
            assert_eq!(releases.left_out, [""; 0], "{case}");
        }
    }

    #[test]
    fn a_team_that_fails_hides_what_it_could_speak_for_and_no_more() {
        type Change = fn(&mut Forge);
        let cases: [(&str, Change); 4] = [
            ("signed by 0", |f| f.teams[0].draft.signers = vec![9]),
            ("signed by 0", |f| f.teams[0].key = 9),
            ("expired", |f| f.teams[0].draft.expires = at(-1)),
            ("cannot be read", |f| {
                f.teams[0].files.insert("x".into(), vec![]);
                f.teams[0].draft.signers = vec![5, 5];
            }),
        ];
        for (word, change) in cases {
            let mut forge = with_team();
            change(&mut forge);
            // Behind the one that fails, nobody can tell what a name means.
            let mut behind = Team::new("behind", 6, &["vdc/stable/x86_64/4.*/release.json", OURS]);
            behind.files.extend([release("4.0.0")]);
            forge.teams.push(behind);
            let appliance = Appliance::new("fails", &forge);
            let repository = appliance.refresh().unwrap();
            let releases = releases(&appliance, &repository);
            assert_eq!(versions(&releases.offers), ["1.0.0"], "{word}");
            assert_eq!(releases.left_out.len(), 2, "{:?}", releases.left_out);
            for why in &releases.left_out {
                assert!(why.contains(word) && why.contains("team"), "{why}");
            }
            let error = refusal(find(&appliance, &repository, "vdc/artifacts/web-1"));
            assert_eq!(error.kind, ErrorKind::Publisher);
            assert!(
                find(&appliance, &repository, "vdc/artifacts/other")
                    .unwrap()
                    .is_none()
            );
        }
    }

    #[test]
    fn who_keeps_a_role_away_does_not_have_an_older_release_chosen() {
        let forge = with_team();
        let path = "metadata/1.team%2F%C3%BC.json";
        for tampered in [None, Some(b"{}".to_vec())] {
            let mut appliance = Appliance::new("away", &forge);
            match tampered {
                Some(bytes) => appliance.source.files.insert(path.into(), bytes),
                None => appliance.source.files.remove(path),
            };
            let repository = appliance.refresh().unwrap();
            let (product, channel, arch) = (name("vdc"), name("stable"), name("x86_64"));
            let wanted = Wanted {
                product: &product,
                channel: &channel,
                arch: &arch,
                version: None,
            };
            let error = refusal(repository.releases(&appliance.source, &wanted));
            assert_eq!(error.kind, ErrorKind::Unavailable, "{}", error.chain());
            assert!(error.chain().contains(path), "{}", error.chain());
            assert!(!appliance.store.join("delegated").exists());
        }
    }

    #[test]
    fn a_kept_role_is_verified_as_its_present_delegator_asks() {
        let mut forge = with_team();
        let mut appliance = Appliance::new("present", &forge);
        let repository = appliance.refresh().unwrap();
        assert_eq!(offers(&appliance, &repository).len(), 2);
        // The team's key is another now, and its metadata are still signed with the old one.
        forge.publish();
        forge.teams[0].key = 6;
        serve(&mut appliance.source, &forge);
        let repository = appliance.refresh().unwrap();
        assert_eq!(versions(&offers(&appliance, &repository)), ["1.0.0"]);
        // An older version than the snapshot has it is no better.
        let mut newer = with_team();
        newer.targets.version = 3;
        newer.snapshot.version = 3;
        newer.timestamp.version = 3;
        newer.hashes = false;
        newer.teams[0].draft.version = 2;
        newer.teams[0].files.extend([release("2.1.0")]);
        serve(&mut appliance.source, &newer);
        let repository = appliance.refresh().unwrap();
        assert_eq!(
            versions(&offers(&appliance, &repository)),
            ["1.0.0", "2.0.0", "2.1.0"]
        );
    }
    #[test]
    fn a_role_is_verified_anew_for_each_delegator() {
        let mut forge = Forge::empty();
        let mut shared = Team::new("shared", 6, &["one/*"]);
        for name in ["one/x", "two/x"] {
            shared.files.insert(name.into(), vec![]);
        }
        let mut other = Team::new("other", 7, &["two/*"]);
        // This delegator asks for another key, with which the role's metadata are not signed.
        other.teams.push(Team::new("shared", 5, &["two/*"]));
        forge.teams = vec![shared, other];
        let appliance = Appliance::new("anew", &forge);
        let repository = appliance.refresh().unwrap();
        assert!(find(&appliance, &repository, "one/x").unwrap().is_some());
        let error = refusal(find(&appliance, &repository, "two/x"));
        assert!(error.chain().contains("other"), "{}", error.chain());
        assert!(find(&appliance, &repository, "one/x").unwrap().is_some());
    }
}
