//! The commands, each from its arguments to what is printed.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qx_publish::{
    Change, Done, Keyring, NewKeys, Passphrase, PublicKey, Published, Rotation, Team, Wanted,
};
use qx_release::error::{Context, Error, ErrorKind, Exit, Result};
use qx_release::manifest::{Manifest, RelPath};
use qx_release::text;
use qx_release::trust::signing::Sign as _;

use crate::arguments::{
    Bundle, Check, Component, Delegate, Expiry, Factory, Init, Inspect, KeyNew, KeyShow,
    KeySubcommand, Prune, Refresh, Release, Rotate, Serve, Sign, Verify, Withdraw,
};
use crate::{complain, print};

pub(crate) fn init(command: &Init, now: SystemTime) -> Result<String> {
    let Init {
        repo,
        keys,
        product,
        root_keys,
        root_threshold,
    } = command;
    let made = qx_publish::init(repo, keys, product, *root_keys, *root_threshold, now)?;
    let mut text = format!(
        "the repository {} is ready, its keys are in {}\ntrusted root for appliances (/etc/qx-update/root.json): {}\n",
        repo.display(),
        keys.display(),
        made.root.display()
    );
    for key in &made.root_keys {
        text += &format!(
            "move {} offline, keep a copy of it there, and delete it here\n",
            key.display()
        );
    }
    text += &format!(
        "{} of {} root keys must sign a new root; the keys of the other roles stay here, because every publication needs them\n",
        made.threshold,
        made.root_keys.len()
    );
    Ok(text)
}

pub(crate) fn key(command: KeySubcommand) -> Result<String> {
    match command {
        KeySubcommand::New(KeyNew {
            file,
            scheme,
            encrypt,
            passphrase_file,
        }) => {
            if passphrase_file.is_some() && !encrypt {
                return Err(Error::with(
                    ErrorKind::Usage,
                    "--passphrase-file needs --encrypt",
                ));
            }
            let passphrase = encrypt.then(|| Passphrase::new(passphrase_file.as_deref()));
            let key = qx_publish::create_key(&file, scheme, passphrase.as_ref())?;
            Ok(format!(
                "wrote {}: {scheme}, id {}\n",
                file.display(),
                key.id()
            ))
        }
        KeySubcommand::Show(KeyShow { file }) => Ok(PublicKey::read(&file)?.to_string()),
    }
}

pub(crate) fn check(command: &Check, now: SystemTime) -> Result<(String, Exit)> {
    let report = qx_publish::check(&command.recipe, command.repo.as_deref(), now)?;
    let exit = match report.problems[..] {
        [] => Exit::Done,
        _ => Exit::Failed,
    };
    let text = report.to_string();
    let text = match text.is_empty() {
        true => {
            "the recipe is right, and has no checks of its own (docs/publishing.md)\n".to_owned()
        }
        false => text,
    };
    Ok((text, exit))
}

/// The same before something is published: what could not be tried is told, and what is wrong ends it.
fn checked(recipe: &Path, repo: &Path, now: SystemTime) -> Result<()> {
    let report = qx_publish::check(recipe, Some(repo), now)?;
    for skipped in &report.skipped {
        complain(&format!("warning: not checked: {skipped}"));
    }
    match &report.problems[..] {
        [] => Ok(()),
        [first, more @ ..] => Err(Error::new(format!(
            "checking the recipe {}: {first}{}; nothing was published (`qx-publish check` shows all, --no-check publishes \
             it all the same)",
            recipe.display(),
            match more.len() {
                0 => String::new(),
                more => format!(", and {more} more"),
            }
        ))),
    }
}

pub(crate) fn release(command: Release, now: SystemTime) -> Result<String> {
    let Release {
        recipe,
        repo,
        keys,
        passphrase_file,
        channel,
        team,
        no_check,
    } = command;
    if !no_check {
        checked(&recipe, &repo, now)?;
    }
    let channel = match channel {
        Some(channel) => channel,
        None => "stable".parse().map_err(|why: String| Error::new(why))?,
    };
    let released = released(now)?;
    let keyring = Keyring::open(&keys, passphrase_file.as_deref())?;
    let (channel, team) = (Some(&channel), team.as_deref());
    let done = qx_publish::release(&recipe, &repo, &keyring, channel, team, released, now)?;
    warn_of_versions(&done.manifest);
    Ok(published(&done, &repo, &keys))
}

pub(crate) fn component(command: &Component, now: SystemTime) -> Result<String> {
    let Component {
        recipe,
        repo,
        keys,
        passphrase_file,
        team,
    } = command;
    let keyring = Keyring::open(keys, passphrase_file.as_deref())?;
    let team = team.as_deref();
    let done = qx_publish::release(recipe, repo, &keyring, None, team, now, now)?;
    Ok(published(&done, repo, keys))
}

pub(crate) fn withdraw(command: &Withdraw, now: SystemTime) -> Result<String> {
    let Withdraw {
        version,
        reason,
        repo,
        keys,
        passphrase_file,
        channel,
        arch,
    } = command;
    let wanted = Wanted {
        version,
        channel: channel.as_ref(),
        arch: arch.as_ref(),
    };
    let keyring = Keyring::open(keys, passphrase_file.as_deref())?;
    let (offers, done) = qx_publish::withdraw(repo, &wanted, reason.as_deref(), &keyring, now)?;
    let word = match done.waiting[..] {
        [] => "withdrawn",
        _ => "to be withdrawn",
    };
    let lines = offers.iter().map(|o| format!("{word}: {}\n", o.target));
    Ok(lines.collect::<String>() + &waiting(&done, repo, keys))
}

pub(crate) fn prune(command: &Prune, now: SystemTime) -> Result<String> {
    let Prune {
        repo,
        keys,
        passphrase_file,
        dry_run,
    } = command;
    let keyring = match dry_run {
        true => None,
        false => Some(Keyring::open(keys, passphrase_file.as_deref())?),
    };
    let pruned = qx_publish::prune(repo, keyring.as_ref(), now)?;
    let (not_listed, removed) = match (dry_run, &pruned.done.waiting[..]) {
        (true, _) => ("would not be listed any longer", "would remove"),
        (false, []) => ("not listed any longer", "removed"),
        (false, _) => ("will not be listed any longer", "removed"),
    };
    let mut text = String::new();
    for name in &pruned.unlisted {
        text += &format!("{not_listed}: {name}\n");
    }
    for path in &pruned.files {
        text += &format!("{removed} {}\n", text::line(path));
    }
    text += &format!(
        "{removed} {} files with {} bytes\n",
        pruned.files.len(),
        pruned.bytes
    );
    Ok(text + &waiting(&pruned.done, repo, keys))
}

pub(crate) fn sign(command: Sign, now: SystemTime) -> Result<String> {
    let Sign {
        draft,
        keys,
        passphrase_file,
        out,
        repo,
        add_signature,
        without_old_key,
    } = command;
    let keyring = Keyring::open(&keys, passphrase_file.as_deref())?;
    match (draft, repo) {
        (Some(draft), repo) if add_signature.is_empty() && !without_old_key => {
            let out = out.unwrap_or_else(|| draft.clone());
            let signed = qx_publish::sign(&draft, &keyring, repo.as_deref(), &out)?;
            let mut text = signed.description;
            text += &format!(
                "signed by {}, written to {}\n",
                text::name(&signed.keys.join(", ")),
                out.display()
            );
            for missing in &signed.missing {
                text += &format!("{missing}\n");
            }
            text += "next: run `qx-publish sign --repo DIR --keys DIR --add-signature FILE` on the machine that has the repository\n";
            Ok(text)
        }
        (None, Some(repo)) if out.is_none() => {
            let mut change = Change::open(&repo, now)?;
            change.without_old_key = without_old_key;
            let (lines, done) = qx_publish::collect(change, &add_signature, &keyring)?;
            let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
            Ok(lines + &changed(&done, &repo, &keys))
        }
        _ => Err(Error::with(
            ErrorKind::Usage,
            "sign takes a DRAFT with --keys (and --out), or --repo with --keys and --add-signature; see qx-publish sign --help",
        )),
    }
}

pub(crate) fn rotate(command: &Rotate, now: SystemTime) -> Result<String> {
    let Rotate {
        role,
        repo,
        keys,
        passphrase_file,
        key,
        remove,
        threshold,
        without_old_key,
    } = command;
    let mut change = Change::open(repo, now)?;
    change.without_old_key = *without_old_key;
    let rotation = Rotation {
        role,
        keys: key,
        remove,
        threshold: *threshold,
    };
    let mut new = NewKeys::new(keys);
    let done = qx_publish::rotate(change, &rotation, &mut new, &|| {
        Keyring::open(keys, passphrase_file.as_deref())
    })?;
    Ok(made(&new) + &changed(&done, repo, keys))
}

pub(crate) fn refresh(command: &Refresh, now: SystemTime) -> Result<(String, Exit)> {
    let Refresh {
        repo,
        keys,
        passphrase_file,
        within,
    } = command;
    let within = within.map(|days| Duration::from_secs(86_400) * days);
    let change = Change::open(repo, now)?;
    let done = qx_publish::refresh(
        change,
        &Keyring::open(keys, passphrase_file.as_deref())?,
        within,
        now,
    )?;
    let mut text = match done.done.published[..] {
        [] => "nothing was renewed\n".to_owned(),
        _ => changed(&done.done, repo, keys),
    };
    let (next, role) = &done.next;
    text += &format!(
        "next refresh due at {} ({role})\n",
        humantime::format_rfc3339_seconds((*next).max(now))
    );
    for line in &done.open {
        complain(&format!("warning: {line}"));
    }
    let exit = match done.open[..] {
        [] => Exit::Done,
        _ => Exit::NeedsPerson,
    };
    Ok((text, exit))
}

pub(crate) fn expiry(command: &Expiry, now: SystemTime) -> Result<String> {
    let Expiry { role, days, repo } = command;
    qx_publish::set_lifetime(Change::open(repo, now)?, role, *days)?;
    Ok(format!(
        "the {role} metadata will be valid for {days} days from their next version on\n"
    ))
}

/// Lets a team publish; `remove` is for [`remove_team`].
pub(crate) fn delegate(command: &Delegate, now: SystemTime) -> Result<String> {
    let Delegate {
        team,
        repo,
        keys,
        passphrase_file,
        paths,
        key,
        threshold,
        terminating,
        remove: _,
    } = command;
    let change = Change::open(repo, now)?;
    let team = Team {
        name: team,
        paths,
        keys: key,
        threshold: *threshold,
        terminating: *terminating,
    };
    let mut new = NewKeys::new(keys);
    let done = qx_publish::delegate(change, &team, &mut new, &|| {
        Keyring::open(keys, passphrase_file.as_deref())
    })?;
    Ok(made(&new) + &changed(&done, repo, keys))
}

pub(crate) fn remove_team(command: &Delegate, now: SystemTime) -> Result<String> {
    let Delegate {
        team,
        repo,
        keys,
        passphrase_file,
        ..
    } = command;
    let change = Change::open(repo, now)?;
    let keyring = Keyring::open(keys, passphrase_file.as_deref())?;
    let done = qx_publish::remove_team(change, team, &keyring)?;
    Ok(changed(&done, repo, keys))
}

pub(crate) fn factory(command: &Factory, now: SystemTime) -> Result<String> {
    let Factory { recipe, out } = command;
    let manifest = qx_publish::factory(recipe, out, released(now)?)?;
    warn_of_versions(&manifest);
    Ok(format!(
        "wrote {}: {} {}, {} components\n",
        out.display(),
        manifest.product,
        manifest.version,
        manifest.components.len()
    ))
}

pub(crate) fn bundle(command: &Bundle, now: SystemTime) -> Result<String> {
    let wanted = Wanted {
        version: &command.version,
        channel: command.channel.as_ref(),
        arch: command.arch.as_ref(),
    };
    let out = &command.out;
    let bundle = qx_publish::bundle(&command.repo, &wanted, out, now)?;
    let mut text = format!("wrote {}: {} bytes\n", out.display(), bundle.bytes);
    for release in &bundle.releases {
        text += &format!("contains {}\n", release.offer.target);
    }
    Ok(text)
}

pub(crate) fn inspect(command: &Inspect, now: SystemTime) -> Result<String> {
    let inspection = qx_publish::inspect(&command.repo, now)?;
    match command.json {
        true => json_text(&inspection),
        false => Ok(inspection.to_string()),
    }
}

pub(crate) fn verify(command: &Verify, now: SystemTime) -> Result<(String, Exit)> {
    let found = qx_publish::verify(&command.repo, command.root.as_deref(), now);
    let exit = match found.problems[..] {
        [] => Exit::Done,
        _ => Exit::Failed,
    };
    let text = match command.json {
        true => json_text(&found)?,
        false => found.to_string(),
    };
    Ok((text, exit))
}

/// Serves until the process is ended.
pub(crate) fn serve(command: &Serve) -> Result<String> {
    let Serve { repo, listen } = command;
    let listener = TcpListener::bind(listen).doing(|| format!("listening on {listen}"))?;
    let address = listener
        .local_addr()
        .doing(|| format!("listening on {listen}"))?;
    print(&format!("listening on http://{address}\n"));
    qx_publish::serve(repo, &listener)?;
    Ok(String::new())
}

fn json_text(value: &impl serde::Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).doing(|| "writing the JSON")?;
    text.push('\n');
    Ok(text)
}

/// Says, a line each, what in a manifest looks as if another version were meant.
fn warn_of_versions(manifest: &Manifest) {
    for line in qx_publish::doubts(manifest) {
        complain(&format!("warning: {line}"));
    }
}

/// What a release did, for people.
fn published(done: &Published, repo: &Path, keys: &Path) -> String {
    let word = match done.done.waiting[..] {
        [] => "published",
        _ => "packed",
    };
    let names: Vec<&str> = done.targets.iter().map(RelPath::as_str).collect();
    let mut text = format!(
        "{word} {}: {} components, {} bytes to install, {} to download, {} of them new\n",
        names.join(", "),
        done.manifest.components.len(),
        done.manifest.size_bytes(),
        done.artifact_bytes,
        done.new_bytes
    );
    text += &waiting(&done.done, repo, keys);
    text
}

/// What changed in a repository, for people.
fn changed(done: &Done, repo: &Path, keys: &Path) -> String {
    let mut text = String::new();
    for line in &done.published {
        text += &format!("published {line}\n");
    }
    if done.published.is_empty() && done.waiting.is_empty() {
        text += "nothing to publish\n";
    }
    text + &waiting(done, repo, keys)
}

/// What waits for signatures, and what to do about it.
fn waiting(done: &Done, repo: &Path, keys: &Path) -> String {
    let mut text = String::new();
    for draft in &done.waiting {
        text += &format!("{} is pending: {}\n", draft.file.display(), draft.why);
    }
    if !done.waiting.is_empty() {
        // A file that is of no use may be the key that is missed.
        for line in Keyring::open(keys, None).iter().flat_map(Keyring::unusable) {
            text += &format!("{line}\n");
        }
        text += &format!(
            "next: run `qx-publish sign FILE --keys DIR --out SIGNED` on a machine that has a missing key, then `qx-publish sign \
             --repo {} --keys {} --add-signature SIGNED`\n",
            repo.display(),
            keys.display()
        );
    }
    text
}

/// Which keys were made.
fn made(new: &NewKeys) -> String {
    let lines = new
        .made
        .iter()
        .map(|file| format!("new key {}\n", file.display()));
    lines.collect()
}

/// The time that goes into a manifest: now, or what a reproducible build is told.
fn released(now: SystemTime) -> Result<SystemTime> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(now);
    };
    let seconds = text.to_str().and_then(|text| text.parse::<u32>().ok());
    seconds
        .map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds.into()))
        .ok_or_else(|| {
            Error::with(
                ErrorKind::Usage,
                "SOURCE_DATE_EPOCH is not a number of seconds since 1970",
            )
        })
}
