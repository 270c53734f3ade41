//! Whether the migrations continue those that are published, and whether they can be run: on no data, and on what each
//! published release leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flate2::read::GzDecoder;

use super::Report;
use crate::checks::{Made, Migrations};
use crate::contents::{self, Checked, Release};
use crate::current::Current;
use crate::pack;
use crate::recipe::{Recipe, Source};
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Kind, Manifest, Migrate, Name, RelPath, placeholder};
use qx_release::text;
use qx_scratch::Scratch;

/// Numbers of so many digits are dates: they have gaps.
const DATE: usize = 8;

/// Files by their paths in a directory.
type Files = BTreeMap<String, Vec<u8>>;

pub(super) fn check(
    migrations: &Migrations,
    recipe: &Recipe,
    manifest: &Manifest,
    current: Option<&Current>,
    report: &mut Report,
) -> Result<()> {
    let (source, below) = component(migrations, recipe)?;
    let directory = migrations.directory.display();
    let files = read(&migrations.directory, &migrations.directory)?;
    let numbers = numbered(&files);
    report.add(
        consecutive(&numbers)
            .map(|()| format!("migrations: {} with consecutive numbers", numbers.len()))
            .doing(|| format!("the migrations in {directory}")),
    );
    let published = match current {
        Some(current) => earlier(current, manifest)?,
        None => Vec::new(),
    };
    if let Some((current, newest)) = current.zip(published.last()) {
        let scratch = Scratch::new()?;
        if let Some(old) = unpack_tree(current, newest, &source.name, &scratch)? {
            let old = old.join(&below);
            let before = read(&old, &old)?;
            let version = &newest.manifest.version;
            let doing =
                || format!("the migrations in {directory}, compared with the published {version}");
            let unchanged = continues(&before, &files).doing(doing);
            report.add(unchanged.map(|()| format!("migrations: those of {version} are unchanged")));
        }
    }
    run_all(
        migrations,
        recipe,
        manifest,
        current.zip(Some(&published[..])),
        report,
    )
}

/// The tree that the migrations are in, and where in it.
fn component<'r>(migrations: &Migrations, recipe: &'r Recipe) -> Result<(&'r Source, PathBuf)> {
    let real = |path: &Path| fs::canonicalize(path).doing(|| format!("reading {}", path.display()));
    let directory = real(&migrations.directory)?;
    for source in recipe.components.iter().filter(|s| s.kind == Kind::Tree) {
        if let Ok(below) = directory.strip_prefix(real(&source.source)?) {
            return Ok((source, below.to_owned()));
        }
    }
    let what = format!(
        "reading the recipe {}: checks.migrations: {} is in no component of the release",
        recipe.path.display(),
        migrations.directory.display()
    );
    Err(Error::with(ErrorKind::Usage, what))
}

/// The releases of the product for this machine that came before and can be updated from, the oldest first.
fn earlier(current: &Current, manifest: &Manifest) -> Result<Vec<Release>> {
    let mut found = BTreeMap::new();
    for offer in contents::offers(current) {
        let min = manifest.min_version.as_ref();
        let supported = min.is_none_or(|min| offer.version.cmp_precedence(min).is_ge());
        let earlier = offer.version.cmp_precedence(&manifest.version).is_lt();
        if supported && earlier && offer.arch == manifest.arch {
            // The same on two channels is one.
            found.insert(offer.version.clone(), offer);
        }
    }
    let offers = found.values();
    offers
        .map(|offer| contents::release(current, offer))
        .collect()
}

/// The files below a directory.
fn read(root: &Path, directory: &Path) -> Result<Files> {
    let reading = || format!("reading {}", directory.display());
    let mut files = Files::new();
    for entry in fs::read_dir(directory).doing(reading)? {
        let path = entry.doing(reading)?.path();
        if path.is_dir() {
            files.extend(read(root, &path)?);
        } else if let Ok(name) = path.strip_prefix(root) {
            let bytes = fs::read(&path).doing(|| format!("reading {}", path.display()))?;
            files.insert(name.display().to_string(), bytes);
        }
    }
    Ok(files)
}

/// The numbers of migrations, each with its file. What goes back has the number of what goes forth.
fn numbered(files: &Files) -> Vec<(&str, &str)> {
    let mut numbers = Vec::new();
    for path in files.keys() {
        let file = path.rsplit('/').next().unwrap_or(path);
        let digits = file.find(|c: char| !c.is_ascii_digit());
        let digits = digits.unwrap_or_default();
        let down = file.contains(".down.") || file.ends_with("_down.sql");
        if digits > 0 && !down {
            numbers.push((&file[..digits], path.as_str()));
        }
    }
    numbers.sort_by_key(|(number, _)| value(number));
    numbers
}

fn value(number: &str) -> u64 {
    number.parse().unwrap_or(u64::MAX)
}

fn consecutive(numbers: &[(&str, &str)]) -> Result<()> {
    for pair in numbers.windows(2) {
        let [(one, first), (other, second)] = pair else {
            continue;
        };
        if value(one) == value(other) {
            let what = format!("{first} and {second} have the same number");
            return Err(Error::new(what));
        }
        if one.len() < DATE && value(other) != value(one).saturating_add(1) {
            let what = format!("there is no migration between {first} and {second}");
            return Err(Error::new(what));
        }
    }
    match numbers {
        [] => Err(Error::new("no file's name begins with a number")),
        _ => Ok(()),
    }
}

/// Tools run what is newer than the last migration that was run, and never again what was: an older one that changes or goes
/// makes two kinds of appliances, and one that comes between is run on some of them only.
fn continues(before: &Files, now: &Files) -> Result<()> {
    for (path, bytes) in before {
        match now.get(path) {
            None => return Err(Error::new(format!("{path} was removed"))),
            Some(now) if now != bytes => {
                return Err(Error::new(format!(
                    "{path} was changed; appliances that ran it do not run it again: add a new migration instead"
                )));
            }
            Some(_) => {}
        }
    }
    let old = numbered(before);
    let Some((last, _)) = old.last() else {
        return Ok(());
    };
    for (number, path) in numbered(now) {
        if !before.contains_key(path) && value(number) <= value(last) {
            return Err(Error::new(format!(
                "{path} is new, but {last} is published already: appliances would not run it; give it a higher number"
            )));
        }
    }
    Ok(())
}

/// Runs the migration on no data, and on the data that each published release with another schema makes of none.
fn run_all(
    migrations: &Migrations,
    recipe: &Recipe,
    manifest: &Manifest,
    published: Option<(&Current, &[Release])>,
    report: &mut Report,
) -> Result<()> {
    let Some(migrate) = &manifest.migrate else {
        return Ok(());
    };
    if let Some(why) = cannot_run(migrations, migrate, manifest) {
        report.skipped.push(format!("running the migration: {why}"));
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let slot = scratch.directory("slot")?;
    for source in &recipe.components {
        let file = scratch.path("component");
        pack::plain(source, &file)?;
        unpack(File::open(&file).doing(|| source.doing())?, &slot)?;
    }
    let mut run = |data: &Data, what: String| {
        let done = migrated(manifest, migrate, &slot, data, &scratch).doing(|| what.clone());
        report.add(done.map(|()| format!("{what}: {}", after(manifest))));
    };
    let data = Data::empty(migrations, &scratch, "empty")?;
    run(&data, "running the migration on no data".to_owned());
    let mut seen = BTreeSet::from([after(manifest)]);
    let (current, published) = published.map_or((None, &[][..]), |(c, p)| (Some(c), p));
    let mut skipped = Vec::new();
    for release in published {
        let old = &release.manifest;
        let (Some(current), Some(its), true) = (current, &old.migrate, seen.insert(after(old)))
        else {
            continue;
        };
        let version = &old.version;
        let what = format!(
            "running the migration on the data of {version} ({})",
            after(old)
        );
        let its_slot = scratch.directory(&format!("slot-{version}"))?;
        for name in release.artifacts.keys() {
            unpack_artifact(current, release, name, &its_slot)?;
        }
        let data = Data::empty(migrations, &scratch, &version.to_string())?;
        match migrated(old, its, &its_slot, &data, &scratch) {
            Ok(()) => run(&data, what),
            Err(e) => skipped.push(format!("{what}: {version} cannot make it: {}", e.chain())),
        }
    }
    report.skipped.extend(skipped);
    Ok(())
}

/// Why the migration cannot be run here, if so.
fn cannot_run(migrations: &Migrations, migrate: &Migrate, manifest: &Manifest) -> Option<String> {
    let machine = rustix::system::uname();
    let machine = machine.machine().to_string_lossy();
    if machine != manifest.arch.as_str() {
        return Some(format!("this machine is {machine}, not {}", manifest.arch));
    }
    let mut touched = migrate.touches.iter();
    let unknown = touched.find(|name| !migrations.data.contains_key(name));
    unknown.map(|name| {
        format!("checks.migrations.data does not say whether {name} is a file or a directory")
    })
}

/// The schemas that a release leaves.
fn after(manifest: &Manifest) -> String {
    let schemas = manifest.data.iter();
    let schemas = schemas.map(|data| format!("{} {}", data.name, data.schema_after));
    format!("schema {}", schemas.collect::<Vec<_>>().join(", "))
}

/// Data sets, each at a place of its own.
struct Data(BTreeMap<Name, PathBuf>);

impl Data {
    fn empty(migrations: &Migrations, scratch: &Scratch, name: &str) -> Result<Data> {
        let mut places = BTreeMap::new();
        for (set, made) in &migrations.data {
            let place = scratch.directory(&format!("data-{name}/{set}"))?;
            let place = match made {
                Made::File => place.join(set.as_str()),
                Made::Directory => place,
            };
            places.insert(set.clone(), place);
        }
        Ok(Data(places))
    }
}

/// Runs a release's migration, and its check, as an appliance does.
fn migrated(
    manifest: &Manifest,
    migrate: &Migrate,
    slot: &Path,
    data: &Data,
    scratch: &Scratch,
) -> Result<()> {
    for vector in [&migrate.run, &migrate.check] {
        let Some((program, arguments)) = vector.split_first() else {
            continue;
        };
        let mut command = Command::new(slot.join(program));
        for argument in arguments {
            let mut argument = argument.clone();
            for (name, place) in &data.0 {
                argument = argument.replace(&placeholder(name), &place.display().to_string());
            }
            command.arg(argument);
        }
        command
            .current_dir(slot)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/")
            .env("LANG", "C")
            .env("QX_UPDATE_FROM", "")
            .env("QX_UPDATE_TO", manifest.version.to_string())
            .env("QX_UPDATE_SLOT", slot)
            .env("QX_UPDATE_OPERATION", "0000000000000000")
            .env("QX_UPDATE_REHEARSAL", "1");
        scratch
            .run(&mut command, Duration::from_secs(migrate.timeout_s))
            .doing(|| text::command(vector))?;
    }
    Ok(())
}

/// Unpacks the tree with this name of a published release, if it has one.
fn unpack_tree(
    current: &Current,
    release: &Release,
    name: &Name,
    scratch: &Scratch,
) -> Result<Option<PathBuf>> {
    let tree = release.manifest.component(name);
    let tree = tree.filter(|component| component.kind == Kind::Tree);
    let Some((tree, artifact)) = tree.and_then(|tree| Some((tree, tree.artifact.as_ref()?))) else {
        return Ok(None);
    };
    let into = scratch.directory("published")?;
    unpack_artifact(current, release, artifact, &into)?;
    Ok(Some(into.join(tree.install_path.as_str())))
}

fn unpack_artifact(
    current: &Current,
    release: &Release,
    name: &RelPath,
    into: &Path,
) -> Result<()> {
    let reading = || format!("reading {name}");
    let file = release.artifacts.get(name).copied();
    let file = file.ok_or_else(|| Error::new(format!("{}: it is not published", reading())))?;
    let bytes = Checked::open(current, name, file).doing(reading)?;
    unpack(GzDecoder::new(bytes), into).doing(reading)
}

fn unpack(archive: impl std::io::Read, into: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    let unpacked = archive.unpack(into);
    unpacked.doing(|| format!("unpacking into {}", into.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[(&str, &str)]) -> Files {
        let file =
            |(name, content): &(&str, &str)| ((*name).to_owned(), content.as_bytes().to_vec());
        names.iter().map(file).collect()
    }

    fn plain(names: &[&str]) -> Files {
        let names: Vec<_> = names.iter().map(|name| (*name, "same")).collect();
        files(&names)
    }

    #[test]
    fn numbers_follow_each_other_and_dates_need_not() {
        for names in [
            &["001_a.sql", "002_b.sql", "003_c.sql", "README"][..],
            &["1_a.up.sql", "1_a.down.sql", "2_b.up.sql", "2_b.down.sql"],
            &["sql/9_a.sql", "sql/10_b.sql"],
            &["20240101120000_a.sql", "20240301120000_b.sql"],
            &["7_a.sql"],
        ] {
            let files = plain(names);
            assert!(consecutive(&numbered(&files)).is_ok(), "{names:?}");
        }
        for (names, word) in [
            (
                &["001_a.sql", "003_c.sql"][..],
                "between 001_a.sql and 003_c.sql",
            ),
            (&["001_a.sql", "001_b.sql"], "the same number"),
            (
                &["20240101120000_a.sql", "20240101120000_b.sql"],
                "the same number",
            ),
            (&["a.sql"], "no file's name"),
        ] {
            let files = plain(names);
            let error = consecutive(&numbered(&files)).unwrap_err().chain();
            assert!(error.contains(word), "{names:?}: {error}");
        }
    }

    #[test]
    fn what_is_published_stays() {
        let before = files(&[("1_a.sql", "a"), ("2_b.sql", "b")]);
        let more = files(&[("1_a.sql", "a"), ("2_b.sql", "b"), ("3_c.sql", "c")]);
        assert!(continues(&before, &before).is_ok());
        assert!(continues(&before, &more).is_ok());
        for (now, word) in [
            (files(&[("1_a.sql", "a")]), "2_b.sql was removed"),
            (
                files(&[("1_a.sql", "a "), ("2_b.sql", "b")]),
                "1_a.sql was changed",
            ),
            (
                files(&[("1_a.sql", "a"), ("2_b.sql", "b"), ("0_z.sql", "z")]),
                "0_z.sql is new, but 2 is published",
            ),
        ] {
            let error = continues(&before, &now).unwrap_err().chain();
            assert!(error.contains(word), "{error}");
        }
    }
}
