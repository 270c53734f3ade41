//! A release in one file, for a USB stick.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::SystemTime;

use super::contents::{self, Checked, Release, Wanted};
use super::current::{Current, parse};
use super::role::TIMESTAMP;
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::layout::target_path;
use qx_release::manifest::RelPath;
use qx_release::trust::described::TargetFile;

/// A bundle that was written.
pub struct Bundle {
    /// The releases in it.
    pub releases: Vec<Release>,
    /// Its length.
    pub bytes: u64,
}

/// Writes the metadata of a repository, and the manifests and artifacts of some releases, as one tar archive. The same state
/// of the repository makes the same bytes.
///
/// # Errors
/// If there is no such release, if an appliance would refuse what is published (as it refuses what has expired), and if `out`
/// is there already. Nothing is left under its name then.
pub fn bundle(repo: &Path, wanted: &Wanted, out: &Path, now: SystemTime) -> Result<Bundle> {
    if fs::symlink_metadata(out).is_ok() {
        return Err(Error::new(format!(
            "{} already exists; nothing is overwritten",
            out.display()
        )));
    }
    let current = Current::load(repo)?;
    contents::check_as_client(&current, now)
        .doing(|| "checking the metadata as an appliance would")?;
    let releases = contents::wanted(&current, wanted)?
        .iter()
        .map(|offer| contents::release(&current, offer))
        .collect::<Result<Vec<_>>>()?;
    let temporary = out.with_file_name({
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(durable::TEMPORARY);
        name
    });
    let bytes = write(&current, &releases, &temporary)
        .and_then(|bytes| {
            durable::rename(&temporary, out)?;
            Ok(bytes)
        })
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .doing(|| format!("writing the bundle {}", out.display()))?;
    Ok(Bundle { releases, bytes })
}

fn write(current: &Current, releases: &[Release], file: &Path) -> Result<u64> {
    let creating = || format!("creating {}", file.display());
    let out = durable::create(file, 0o666).doing(creating)?;
    let mut archive = tar::Builder::new(BufWriter::new(out));
    for (path, file) in contents::metadata(current) {
        let doing = || format!("adding {}", file.display());
        let bytes = fs::read(&file).doing(doing)?;
        // All others are never written again.
        if path == format!("metadata/{TIMESTAMP}.json")
            && parse(&file, &bytes)?.signed != current.role(TIMESTAMP)?.signed
        {
            return Err(Error::with(
                ErrorKind::Busy,
                format!(
                    "{} changed while the bundle was being written; run this again",
                    current.dir.display()
                ),
            ));
        }
        add(&mut archive, &path, bytes.len() as u64, &bytes[..]).doing(doing)?;
    }
    // By their names: releases share artifacts.
    let targets: BTreeMap<&RelPath, TargetFile> = releases
        .iter()
        .flat_map(|release| {
            let artifacts = release.artifacts.iter().map(|(name, file)| (name, *file));
            artifacts.chain([(&release.offer.target, release.file)])
        })
        .collect();
    for (name, file) in targets {
        let doing = || format!("adding {name}");
        let path = target_path(name, &file.sha256, true);
        let bytes = Checked::open(current, name, file).doing(doing)?;
        add(&mut archive, &path, file.length, bytes).doing(doing)?;
    }
    let finishing = || format!("finishing {}", file.display());
    let mut out = archive.into_inner().doing(finishing)?;
    out.flush().doing(finishing)?;
    durable::sync_file(out.get_ref(), file)?;
    Ok(out.get_ref().metadata().doing(finishing)?.len())
}

/// Adds a file with nothing but its name, its length and its bytes.
fn add(
    archive: &mut tar::Builder<BufWriter<File>>,
    path: &str,
    length: u64,
    bytes: impl Read,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(length);
    header.set_mode(0o644);
    header.set_mtime(0);
    archive.append_data(&mut header, path, bytes)
}
