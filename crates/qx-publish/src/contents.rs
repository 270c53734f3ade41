//! What a published repository holds: its metadata as a client takes them, and its releases.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use semver::Version;

use super::current::{Current, metadata_file, metadata_path};
use super::role::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use super::targets;
use qx_release::digest::Hasher;
use qx_release::error::{Context, Error, Result};
use qx_release::manifest::{MAX_BYTES, Manifest, Name, RelPath};
use qx_release::offer::Offer;
use qx_release::text;
use qx_release::trust::clock::Clock;
use qx_release::trust::described::TargetFile;
use qx_release::trust::{Limits, SnapshotCopy, TrustedSet};

/// A release that appliances find.
pub struct Release {
    /// What its name says.
    pub offer: Offer,
    /// The role that lists its manifest.
    pub role: String,
    /// Its manifest's file.
    pub file: TargetFile,
    /// What it says.
    pub manifest: Manifest,
    /// Its components' artifacts.
    pub artifacts: BTreeMap<RelPath, TargetFile>,
}

/// Which releases are meant.
pub struct Wanted<'a> {
    /// Of this version.
    pub version: &'a Version,
    /// On this channel; none: on every channel that has it.
    pub channel: Option<&'a Name>,
    /// For this architecture; none: for every one that has it.
    pub arch: Option<&'a Name>,
}

impl Wanted<'_> {
    fn is(&self, offer: &Offer) -> bool {
        offer.version == *self.version
            && self.channel.is_none_or(|channel| offer.channel == *channel)
            && self.arch.is_none_or(|arch| offer.arch == *arch)
    }
}

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.version)?;
        if let Some(channel) = self.channel {
            write!(f, " on the channel {channel}")?;
        }
        match self.arch {
            Some(arch) => write!(f, " for {arch}"),
            None => Ok(()),
        }
    }
}

/// The releases that are meant.
///
/// # Errors
/// If there is none, or all of them are withdrawn.
pub(crate) fn wanted(current: &Current, wanted: &Wanted) -> Result<Vec<Offer>> {
    let mut offers = offers(current);
    offers.retain(|offer| wanted.is(offer));
    if !offers.is_empty() {
        return Ok(offers);
    }
    let dir = current.dir.display();
    let mut withdrawn = withdrawn(current).into_iter();
    Err(Error::new(match withdrawn.find(|w| wanted.is(&w.offer)) {
        Some(Withdrawn { reason, .. }) if reason.is_empty() => {
            format!("{dir}: the release {wanted} is withdrawn")
        }
        Some(Withdrawn { reason, .. }) => {
            let reason = text::line(&reason);
            format!("{dir}: the release {wanted} is withdrawn: {reason}")
        }
        None => format!("{dir} has no release {wanted}"),
    }))
}

/// The releases that appliances are offered, sorted by channel, architecture and version.
pub(crate) fn offers(current: &Current) -> Vec<Offer> {
    let found = found(current).filter(|(role, offer)| !is_withdrawn(current, role, &offer.target));
    sorted(found.map(|(_, offer)| offer).collect(), |offer| offer)
}

/// A release that was taken back.
pub(crate) struct Withdrawn {
    /// What its name says.
    pub offer: Offer,
    /// The role that lists it.
    pub role: String,
    /// Why it was.
    pub reason: String,
}

/// The releases that were taken back, sorted likewise.
pub(crate) fn withdrawn(current: &Current) -> Vec<Withdrawn> {
    let withdrawn = found(current).filter_map(|(role, offer)| {
        Some(Withdrawn {
            reason: targets::withdrawn(&current.role(role).ok()?.signed, &offer.target)?,
            role: role.to_owned(),
            offer,
        })
    });
    sorted(withdrawn.collect(), |withdrawn| &withdrawn.offer)
}

/// The manifests of the releases that were taken back; they need not be there.
pub(crate) fn withdrawn_files(current: &Current) -> impl Iterator<Item = (Offer, PathBuf)> {
    withdrawn(current).into_iter().filter_map(|withdrawn| {
        let (_, file) = current.search(&withdrawn.offer.target)?;
        let file = current.target_file(&withdrawn.offer.target, &file);
        Some((withdrawn.offer, file))
    })
}

/// Whether a role says that a release was taken back.
pub(crate) fn is_withdrawn(current: &Current, role: &str, name: &RelPath) -> bool {
    let role = current.role(role);
    role.is_ok_and(|envelope| targets::withdrawn(&envelope.signed, name).is_some())
}

/// The releases that appliances find, withdrawn or not, each with its role.
fn found(current: &Current) -> impl Iterator<Item = (&str, Offer)> {
    listed(current)
        .filter(|(role, name)| current.search(name).is_some_and(|found| found.0 == *role))
        .filter_map(|(role, name)| Some((role, Offer::of(&name)?)))
}

fn sorted<T>(mut releases: Vec<T>, offer: impl Fn(&T) -> &Offer) -> Vec<T> {
    releases.sort_by(|a, b| {
        let key = |o: &Offer| (o.channel.clone(), o.arch.clone(), o.version.clone());
        key(offer(a)).cmp(&key(offer(b)))
    });
    releases
}

/// Every target that a role lists, whether appliances find it there or not. Names that are no relative path are left out,
/// as appliances leave them out.
pub(crate) fn listed(current: &Current) -> impl Iterator<Item = (&str, RelPath)> {
    current.all().flat_map(|(role, envelope)| {
        let targets = envelope.signed["targets"].as_object();
        let names = targets.into_iter().flat_map(|targets| targets.keys());
        names.filter_map(move |name| Some((role, name.parse().ok()?)))
    })
}

/// Reads a release and finds its artifacts. Their files are not looked at.
pub(crate) fn release(current: &Current, offer: &Offer) -> Result<Release> {
    let doing = || format!("reading {}", offer.target);
    let wrong = |why: String| Error::new(format!("{}: {why}", doing()));
    let (role, file) = current
        .search(&offer.target)
        .ok_or_else(|| wrong("it is not published".into()))?;
    if file.length > MAX_BYTES {
        return Err(wrong(format!("it is longer than {MAX_BYTES} bytes")));
    }
    let bytes = fs::read(current.target_file(&offer.target, &file)).doing(doing)?;
    file.check(offer.target.as_str(), &bytes).doing(doing)?;
    let manifest = Manifest::parse(&bytes).map_err(wrong)?;
    let named = (&offer.product, &offer.channel, &offer.arch, &offer.version);
    let says = (
        &manifest.product,
        &manifest.channel,
        &manifest.arch,
        &manifest.version,
    );
    if named != says {
        return Err(wrong(
            "its product, channel, architecture or version differs from its target name".into(),
        ));
    }
    let mut artifacts = BTreeMap::new();
    for component in &manifest.components {
        let found = component
            .artifact
            .as_ref()
            .and_then(|name| Some((name, current.search(name)?)));
        let (name, (_, file)) = found.ok_or_else(|| {
            wrong(format!(
                "the artifact of {} is not published",
                component.name
            ))
        })?;
        artifacts.insert(name.clone(), file);
    }
    Ok(Release {
        offer: offer.clone(),
        role: role.to_owned(),
        file,
        manifest,
        artifacts,
    })
}

/// The files of all current metadata and of every root, by their paths in the repository.
pub(crate) fn metadata(current: &Current) -> BTreeMap<String, PathBuf> {
    let roots = (1..)
        .zip(&current.roots)
        .map(|(version, _)| (ROOT, version));
    let others = current
        .all()
        .map(|(role, envelope)| (role, envelope.version()));
    roots
        .chain(others)
        .map(|(role, version)| {
            let path = metadata_path(role, version);
            let file = current.dir.join(&path);
            (path, file)
        })
        .collect()
}

/// Takes the metadata as a client does that knows the first root only. Stricter than [`Current::load`], which lets the
/// publisher mend things.
pub(crate) fn check_as_client(current: &Current, now: SystemTime) -> Result<()> {
    let read = |role, version| {
        let file = metadata_file(&current.dir, role, version);
        let bytes = fs::read(&file).doing(|| format!("reading {}", file.display()))?;
        Ok::<_, Error>((bytes, format!("verifying {}", file.display())))
    };
    let (root, doing) = read(ROOT, 1)?;
    let mut set =
        TrustedSet::new(&root, Clock::new(now, now), &Limits::default()).doing(|| doing)?;
    for version in 2..=current.roots.len() as u64 {
        let (root, doing) = read(ROOT, version)?;
        set.update_root(&root).doing(|| doing)?;
    }
    let version = |role| current.role(role).map(|envelope| envelope.version());
    let (bytes, doing) = read(TIMESTAMP, 0)?;
    set.update_timestamp(&bytes).doing(|| doing)?;
    let (bytes, doing) = read(SNAPSHOT, version(SNAPSHOT)?)?;
    set.update_snapshot(&bytes, SnapshotCopy::Announced)
        .doing(|| doing)?;
    let (bytes, doing) = read(TARGETS, version(TARGETS)?)?;
    set.update_targets(bytes).doing(|| doing)?;
    for (role, envelope) in current.all() {
        // The signatures of teams were checked when they were read.
        if envelope.expires() <= now {
            return Err(Error::new(format!(
                "version {} of the {role} metadata expired at {}",
                envelope.version(),
                envelope.expires_text()
            )));
        }
    }
    Ok(())
}

/// Calls `each` with the path of every file below a directory of the repository.
pub(crate) fn walk(repo: &Path, dir: &str, each: &mut impl FnMut(&str)) -> Result<()> {
    let place = repo.join(dir);
    let doing = || format!("reading {}", place.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&place).doing(doing)? {
        let entry = entry.doing(doing)?;
        let name = entry.file_name().into_string().map_err(|name| {
            Error::new(format!(
                "{}: the name {} is not UTF-8",
                doing(),
                name.display()
            ))
        })?;
        names.push((name, entry.file_type().doing(doing)?.is_dir()));
    }
    names.sort();
    for (name, is_dir) in names {
        let path = format!("{dir}/{name}");
        match is_dir {
            true => walk(repo, &path, each)?,
            false => each(&path),
        }
    }
    Ok(())
}

/// Reads a target's file. If its length or digest is not the signed one, the last read fails.
pub(crate) struct Checked {
    file: io::Take<File>,
    expected: TargetFile,
    hasher: Hasher,
}

impl Checked {
    /// Opens it.
    pub(crate) fn open(
        current: &Current,
        name: &RelPath,
        expected: TargetFile,
    ) -> io::Result<Checked> {
        let file = File::open(current.target_file(name, &expected))?;
        Ok(Checked {
            file: file.take(expected.length + 1),
            expected,
            hasher: Hasher::default(),
        })
    }
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        let wrong = |why: String| Err(io::Error::other(why));
        let TargetFile { length, sha256 } = self.expected;
        let seen = self.hasher.bytes();
        if seen > length {
            return wrong(format!(
                "it is longer than the {length} bytes in the signed metadata"
            ));
        }
        if read == 0 && !buffer.is_empty() {
            if seen < length {
                return wrong(format!("it has {seen} bytes instead of {length}"));
            }
            let found = self.hasher.clone().digest();
            if found != sha256 {
                return wrong(format!("its digest is {found} instead of {sha256}"));
            }
        }
        Ok(read)
    }
}
