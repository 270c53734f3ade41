//! What `qx-publish` does: makes a repository, publishes releases in it, looks after its roles and keys, shows and
//! serves it.
//!
//! What is to be published is put together aside first, and everything is checked; [`change`] tells in which order it
//! then comes under its final names, so that no reader ever sees a part of it.

#![warn(unreachable_pub)]

mod authority;
mod bundle;
mod carried;
mod change;
mod check;
mod checks;
mod contents;
mod current;
mod delegate;
mod draft;
mod elf;
mod envelope;
mod external;
mod init;
mod inspect;
mod keyring;
mod newkeys;
mod pack;
mod passphrase;
pub mod pem;
mod recipe;
mod role;
mod roles;
mod serve;
mod targets;
mod verify;
mod versions;
mod withdraw;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use bundle::{Bundle, bundle};
pub use change::{Change, Done, Waiting};
pub use check::{Report, check};
pub use contents::Wanted;
pub use current::Current;
pub use delegate::{Team, delegate, remove as remove_team};
pub use draft::{Signed, sign};
pub use init::{Made, init};
pub use inspect::{Inspection, inspect};
pub use keyring::{Keyring, PublicKey, Signer, create_key};
pub use newkeys::NewKeys;
pub use passphrase::Passphrase;
pub use roles::{Refreshed, Rotation, collect, refresh, rotate, set_lifetime};
pub use serve::serve;
pub use verify::{Verification, verify};
pub use versions::doubts;
pub use withdraw::{Pruned, prune, withdraw};

use pack::Artifact;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Manifest, Name, RelPath};
use recipe::Recipe;
use role::TARGETS;

/// Whether a recipe can be read, whatever the files are that it names. The error is one sentence.
pub fn check_recipe(bytes: &[u8]) -> Result<(), String> {
    Recipe::parse(bytes).map(drop)
}

/// A release, or components, that were published.
#[derive(Debug)]
pub struct Published {
    /// The targets that name them: the release's manifest, or the artifacts.
    pub targets: Vec<RelPath>,
    /// What was published.
    pub manifest: Manifest,
    /// Bytes of all artifacts, those of earlier releases included.
    pub artifact_bytes: u64,
    /// Bytes of those artifacts that no earlier release has published.
    pub new_bytes: u64,
    /// The metadata, and the drafts if signatures are missing.
    pub done: Done,
}

/// Packs what a recipe names and publishes it on a channel, signed by the targets role or by a team. `released` goes into
/// the manifest, `now` is what the metadata's expiry is counted from. Without a channel, only the components are
/// published, for releases that others make.
///
/// # Errors
/// [`ErrorKind::Usage`] for a recipe that is wrong in itself, [`ErrorKind::Busy`] if another publisher holds the repository,
/// [`ErrorKind::Failed`] for a component that is missing or unfit, for a version that is published already, and for what the
/// team may not publish. The repository then offers what it offered before.
pub fn release(
    recipe: &Path,
    repo: &Path,
    keys: &Keyring,
    channel: Option<&Name>,
    team: Option<&str>,
    released: SystemTime,
    now: SystemTime,
) -> Result<Published> {
    let recipe = Recipe::read(recipe)?;
    let nowhere: Name = "none".parse().map_err(Error::new)?;
    let mut manifest = recipe.manifest(channel.unwrap_or(&nowhere), released)?;
    let mut change = Change::open(repo, now)?;
    let role = team.unwrap_or(TARGETS);
    change.current.authority(role)?;
    check_product(&recipe, &manifest.product, repo, &change)?;
    let may = |change: &Change, target: &RelPath| match team {
        Some(team) => targets::check_target(&change.current.roles, team, target),
        None => Ok(()),
    };
    let mut targets = Vec::new();
    if let Some(channel) = channel {
        let target = new_release(&manifest, channel, &change)?;
        may(&change, &target)?;
        targets.push(target);
    }
    recipe.check_sources()?;
    let mut body = change.body(role);
    let staging = change.stage()?;
    let (mut artifact_bytes, mut new_bytes) = (0, 0);
    for (source, component) in recipe.components.iter().zip(&mut manifest.components) {
        let file = staging.join(format!("{}.tar.gz", source.name));
        let Artifact { packed, target } = pack::artifact(source, &file)?;
        component.sha256 = packed.digest;
        component.size_bytes = packed.bytes;
        component.entries = packed.entries;
        artifact_bytes += target.length;
        let (name, new) = change.artifact_name(&manifest.product, component, &target)?;
        if new {
            may(&change, &name)?;
            new_bytes += target.length;
            targets::list_target(&mut body, &name, &target);
        }
        change.add(name.clone(), target, file);
        if channel.is_none() {
            targets.push(name.clone());
        }
        component.artifact = Some(name);
    }
    if channel.is_some() {
        let file = staging.join("release.json");
        let info = change::staged(&file, &manifest_bytes(&manifest)?)?;
        targets::list_target(&mut body, &targets[0], &info);
        change.add(targets[0].clone(), info, file);
    }
    let done = if channel.is_none() && new_bytes == 0 {
        Done::default()
    } else {
        change.propose(role, body)?;
        change.commit(keys)?
    };
    Ok(Published {
        targets,
        manifest,
        artifact_bytes,
        new_bytes,
        done,
    })
}

fn check_product(recipe: &Recipe, product: &Name, repo: &Path, change: &Change) -> Result<()> {
    let ours = &change.current.about.product;
    if product == ours {
        return Ok(());
    }
    Err(Error::with(
        ErrorKind::Usage,
        format!(
            "the recipe {} is for {product}, but the repository {} is for {ours}",
            recipe.path.display(),
            repo.display(),
        ),
    ))
}

/// The target that a release's manifest becomes, which must be new.
fn new_release(manifest: &Manifest, channel: &Name, change: &Change) -> Result<RelPath> {
    let Manifest {
        product,
        arch,
        version,
        ..
    } = manifest;
    let target: RelPath = format!("{product}/{channel}/{arch}/{version}/release.json")
        .parse()
        .map_err(|why: String| Error::with(ErrorKind::Usage, why))?;
    if change.current.search(&target).is_some() {
        return Err(Error::new(format!(
            "{product} {version} for {arch} is already published on {channel}; a published version cannot be changed"
        )));
    }
    Ok(target)
}

/// Writes the manifest of the factory set that a recipe describes, measured where the image build has its files.
pub fn factory(recipe: &Path, out: &Path, released: SystemTime) -> Result<Manifest> {
    let recipe = Recipe::read(recipe)?;
    let channel: Name = "factory".parse().map_err(Error::new)?;
    let mut manifest = recipe.manifest(&channel, released)?;
    recipe.check_sources()?;
    for (source, component) in recipe.components.iter().zip(&mut manifest.components) {
        source.check_image()?;
        let packed = pack::measure(source)?;
        component.sha256 = packed.digest;
        component.size_bytes = packed.bytes;
        component.entries = packed.entries;
        component.factory_path.clone_from(&source.factory_path);
    }
    durable::write_with_mode(out, &manifest_bytes(&manifest)?, 0o644)?;
    Ok(manifest)
}

/// The manifest as it is published, after the appliance's own parser has accepted it.
fn manifest_bytes(manifest: &Manifest) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(manifest).doing(|| "writing the manifest")?;
    bytes.push(b'\n');
    Manifest::parse(&bytes)
        .map_err(|why| Error::with(ErrorKind::Usage, format!("checking the manifest: {why}")))?;
    Ok(bytes)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).doing(|| format!("resolving {}", path.display()))
}

/// A line for each role of a repository that expires soon.
pub fn warnings(repo: &Path, now: SystemTime) -> Result<Vec<String>> {
    Ok(Current::load(repo)?.warnings(now))
}
