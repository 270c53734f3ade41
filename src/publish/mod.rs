//! What `qx-publish` does: makes a repository, publishes releases in it, shows and serves it.
//!
//! A release is published in an order in which no reader ever sees a part of it: everything is checked and packed
//! aside first; then the targets come under their final names, which nothing refers to yet; then the targets' and
//! the snapshot's metadata; and last the timestamp, by one rename. Interrupted anywhere before that, the repository
//! offers what it offered before.

mod elf;
mod external;
mod inspect;
mod keyring;
mod pack;
mod passphrase;
mod pem;
mod recipe;
mod serve;
mod store;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use inspect::{Inspection, inspect};
pub use keyring::{Keyring, PublicKey, Signer, create_key};
pub use passphrase::Passphrase;
pub use serve::serve;
pub use store::init;

use crate::durable;
use crate::error::{Context, Error, Exit, Result};
use crate::manifest::{Manifest, Name, RelPath};
use pack::Artifact;
use recipe::Recipe;
use store::Store;

/// A release that was published.
#[derive(Debug)]
pub struct Published {
    /// The target that holds its manifest.
    pub target: RelPath,
    /// What was published.
    pub manifest: Manifest,
    /// Bytes of all its artifacts, those of earlier releases included.
    pub artifact_bytes: u64,
    /// Bytes of those artifacts that no earlier release has published.
    pub new_bytes: u64,
}

/// Packs what a recipe names and publishes it on a channel. `released` goes into the manifest, `now` is what the
/// metadata's expiry is counted from.
///
/// # Errors
/// [`Exit::Usage`] for a recipe that is wrong in itself, [`Exit::Busy`] if another publisher holds the repository,
/// [`Exit::Failed`] for a component that is missing or unfit and for a version that is published already. The
/// repository then offers what it offered before.
pub fn release(
    recipe: &Path,
    repo: &Path,
    keys: &Keyring,
    channel: &Name,
    released: SystemTime,
    now: SystemTime,
) -> Result<Published> {
    let recipe = Recipe::read(recipe)?;
    let mut manifest = recipe.manifest(channel, released)?;
    let mut store = Store::open(repo, now)?;
    if manifest.product != *store.product() {
        return Err(Error::with(
            Exit::Usage,
            format!(
                "the recipe {} is for {}, and the repository {} is {}'s",
                recipe.path.display(),
                manifest.product,
                repo.display(),
                store.product()
            ),
        ));
    }
    let Manifest {
        product,
        arch,
        version,
        ..
    } = &manifest;
    let target: RelPath = format!("{product}/{channel}/{arch}/{version}/release.json")
        .parse()
        .map_err(|why: String| Error::with(Exit::Usage, why))?;
    if store.published(&target).is_some() {
        return Err(Error::new(format!(
            "{product} {version} for {arch} is published on {channel} already; a published version never changes"
        )));
    }
    recipe.check_sources()?;
    let staging = store.stage()?;
    let (mut artifact_bytes, mut new_bytes) = (0, 0);
    for (source, component) in recipe.components.iter().zip(&mut manifest.components) {
        let file = staging.join(format!("{}.tar.gz", source.name));
        let Artifact { packed, target } = pack::artifact(source, &file)?;
        component.sha256 = packed.digest;
        component.size_bytes = packed.bytes;
        component.entries = packed.entries;
        artifact_bytes += target.length;
        let (name, new) = store.artifact_name(&manifest.product, component, &target)?;
        if new {
            new_bytes += target.length;
        }
        store.add(name.clone(), target, file);
        component.artifact = Some(name);
    }
    let bytes = manifest_bytes(&manifest)?;
    let file = staging.join("release.json");
    let info = store::staged(&file, &bytes)?;
    store.add(target.clone(), info, file);
    store.publish(keys)?;
    Ok(Published {
        target,
        manifest,
        artifact_bytes,
        new_bytes,
    })
}

/// Writes the manifest of the factory set that a recipe describes, measured where the image build has its files.
pub fn factory(recipe: &Path, out: &Path, released: SystemTime) -> Result<Manifest> {
    let recipe = Recipe::read(recipe)?;
    let channel: Name = "factory".parse().map_err(Error::new)?;
    let mut manifest = recipe.manifest(&channel, released)?;
    recipe.check_sources()?;
    for (source, component) in recipe.components.iter().zip(&mut manifest.components) {
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
        .map_err(|why| Error::with(Exit::Usage, format!("checking the manifest: {why}")))?;
    Ok(bytes)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).doing(|| format!("resolving {}", path.display()))
}
