//! `qx-publish`: makes the releases that `qx-update` installs.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use argh::FromArgs;
use qx_publish::{
    Done, Keyring, NewKeys, Passphrase, PublicKey, Published, Rotation, Store, Team, Wanted,
};
use qx_release::error::{Context, Error, Exit, Result};
use qx_release::manifest::{Manifest, Name, RelPath};
use qx_release::output;
use qx_release::text;
use qx_release::trust::signing::{Scheme, Sign as _};
use semver::Version;

/// Makes the releases that qx-update installs.
#[derive(FromArgs)]
struct Arguments {
    /// print the version and exit
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    command: Option<Command>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Init(Init),
    Key(KeyCommand),
    Release(Release),
    Component(Component),
    Sign(Sign),
    Rotate(Rotate),
    Refresh(Refresh),
    Expiry(Expiry),
    Delegate(Delegate),
    Factory(Factory),
    Bundle(Bundle),
    Inspect(Inspect),
    Verify(Verify),
    Serve(Serve),
}

/// Make keys and an empty repository.
#[derive(FromArgs)]
#[argh(subcommand, name = "init")]
struct Init {
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// the directory for the private keys
    #[argh(option)]
    keys: PathBuf,
    /// the product whose releases it will hold
    #[argh(option)]
    product: Name,
    /// how many keys speak for the root (1)
    #[argh(option, default = "1")]
    root_keys: usize,
    /// how many of them must sign (more than half)
    #[argh(option)]
    root_threshold: Option<u64>,
}

/// Make and show keys.
#[derive(FromArgs)]
#[argh(subcommand, name = "key")]
struct KeyCommand {
    #[argh(subcommand)]
    command: KeySubcommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum KeySubcommand {
    New(KeyNew),
    Show(KeyShow),
}

/// Make a private key, and its public half beside it.
#[derive(FromArgs)]
#[argh(subcommand, name = "new")]
struct KeyNew {
    /// the private key, NAME.pem; its public half becomes NAME.pub.pem
    #[argh(positional)]
    file: PathBuf,
    /// ed25519 (the default) or ecdsa-sha2-nistp256
    #[argh(option, default = "Scheme::Ed25519")]
    scheme: Scheme,
    /// protect it by a passphrase
    #[argh(switch)]
    encrypt: bool,
    /// a file whose first line is the passphrase (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    passphrase_file: Option<PathBuf>,
}

/// Print the public half of a key.
#[derive(FromArgs)]
#[argh(subcommand, name = "show")]
struct KeyShow {
    /// the key: NAME.pem, NAME.pub.pem or NAME.signer.json
    #[argh(positional)]
    file: PathBuf,
}

/// Pack what a recipe names, and publish it.
#[derive(FromArgs)]
#[argh(subcommand, name = "release")]
struct Release {
    /// the recipe
    #[argh(positional)]
    recipe: PathBuf,
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    passphrase_file: Option<PathBuf>,
    /// the channel to publish on (stable)
    #[argh(option)]
    channel: Option<Name>,
    /// the team that signs it (the targets role)
    #[argh(option, long = "as")]
    team: Option<String>,
}

/// Pack a recipe's components, and publish them for the releases that others make.
#[derive(FromArgs)]
#[argh(subcommand, name = "component")]
struct Component {
    /// the recipe
    #[argh(positional)]
    recipe: PathBuf,
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    passphrase_file: Option<PathBuf>,
    /// the team that signs them (the targets role)
    #[argh(option, long = "as")]
    team: Option<String>,
}

/// Sign a draft, on any machine; or publish drafts that were signed.
///
/// `sign DRAFT --keys DIR` shows what is signed and signs it. `sign --repo DIR --keys DIR --add-signature FILE` collects
/// signatures made elsewhere, and publishes the drafts that have enough.
#[derive(FromArgs)]
#[argh(subcommand, name = "sign")]
struct Sign {
    /// the draft to sign
    #[argh(positional)]
    draft: Option<PathBuf>,
    /// the directory with the private keys
    #[argh(option)]
    keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    passphrase_file: Option<PathBuf>,
    /// where to write the signed draft (in its place)
    #[argh(option)]
    out: Option<PathBuf>,
    /// the repository's directory; with a draft: to show what changes
    #[argh(option)]
    repo: Option<PathBuf>,
    /// a draft that was signed elsewhere; may be repeated
    #[argh(option)]
    add_signature: Vec<PathBuf>,
    /// the old key of a role whose keys change is lost for good
    #[argh(switch)]
    without_old_key: bool,
}

/// Give a role other keys. Without an option that says which, each key is replaced by a new one.
#[derive(FromArgs)]
#[argh(subcommand, name = "rotate")]
struct Rotate {
    /// root, timestamp, snapshot, targets or a team
    #[argh(positional)]
    role: String,
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// the directory with the private keys, old and new
    #[argh(option)]
    keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    passphrase_file: Option<PathBuf>,
    /// a key that comes: the file of a public key, or "new"; may be repeated
    #[argh(option)]
    key: Vec<String>,
    /// a key that goes, by the start of its id, or "none" (all, if keys come); may be repeated
    #[argh(option)]
    remove: Vec<String>,
    /// how many keys must sign then
    #[argh(option)]
    threshold: Option<u64>,
    /// the old key is lost for good: do not wait for its signature
    #[argh(switch)]
    without_old_key: bool,
}

/// Renew what expires soon; made for cron. Exits 10 if something will expire that it could not renew.
#[derive(FromArgs)]
#[argh(subcommand, name = "refresh")]
struct Refresh {
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    passphrase_file: Option<PathBuf>,
    /// renew what expires within so many days (a third of its life, at most 120 days)
    #[argh(option)]
    within: Option<u32>,
}

/// Set for how many days new metadata of a role are valid.
#[derive(FromArgs)]
#[argh(subcommand, name = "expiry")]
struct Expiry {
    /// root, timestamp, snapshot, targets or a team
    #[argh(positional)]
    role: String,
    /// the number of days
    #[argh(positional)]
    days: u32,
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
}

/// Let a team publish what matches its patterns, or take that right away.
#[derive(FromArgs)]
#[argh(subcommand, name = "delegate")]
struct Delegate {
    /// the team
    #[argh(positional)]
    team: String,
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    passphrase_file: Option<PathBuf>,
    /// a pattern of the targets that it may publish; * and ? do not match a slash; may be repeated
    #[argh(option)]
    paths: Vec<String>,
    /// the file of a public key of the team, or "new" (a new one); may be repeated
    #[argh(option)]
    key: Vec<String>,
    /// how many of its keys must sign (1)
    #[argh(option)]
    threshold: Option<u64>,
    /// what matches its patterns is looked for nowhere else
    #[argh(switch)]
    terminating: bool,
    /// take the right to publish away
    #[argh(switch)]
    remove: bool,
}

/// Write the manifest of a factory set, for the image.
#[derive(FromArgs)]
#[argh(subcommand, name = "factory")]
struct Factory {
    /// the recipe, whose sources are where the image build has the files
    #[argh(positional)]
    recipe: PathBuf,
    /// the manifest to write
    #[argh(option)]
    out: PathBuf,
}

/// Write a release and all metadata into one file, for a USB stick.
#[derive(FromArgs)]
#[argh(subcommand, name = "bundle")]
struct Bundle {
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// the version
    #[argh(option)]
    version: Version,
    /// only what is on this channel (all channels that have the version)
    #[argh(option)]
    channel: Option<Name>,
    /// only what is for this architecture (all that have the version)
    #[argh(option)]
    arch: Option<Name>,
    /// the file to write; nothing is overwritten
    #[argh(option)]
    out: PathBuf,
}

/// Check a whole repository as a client would, every target's digest included.
#[derive(FromArgs)]
#[argh(subcommand, name = "verify")]
struct Verify {
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// for programs
    #[argh(switch)]
    json: bool,
}

/// Print what a repository offers.
#[derive(FromArgs)]
#[argh(subcommand, name = "inspect")]
struct Inspect {
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// for programs
    #[argh(switch)]
    json: bool,
}

/// Serve a repository over HTTP, for trying things out.
#[derive(FromArgs)]
#[argh(subcommand, name = "serve")]
struct Serve {
    /// the repository's directory
    #[argh(option)]
    repo: PathBuf,
    /// the address and port to listen on; port 0 takes a free one (127.0.0.1:8000)
    #[argh(option, default = "\"127.0.0.1:8000\".into()")]
    listen: String,
}

fn main() -> ExitCode {
    qx_release::surroundings::settle();
    let arguments: Option<Vec<String>> =
        std::env::args_os().map(|a| a.into_string().ok()).collect();
    let Some(arguments) = arguments else {
        return wrong_usage("an argument is not UTF-8");
    };
    // The parser knows the long one only.
    let known = |argument| if argument == "-h" { "--help" } else { argument };
    let arguments = arguments.iter().skip(1).map(String::as_str).map(known);
    let arguments: Vec<&str> = arguments.collect();
    let arguments = match Arguments::from_args(&["qx-publish"], &arguments) {
        Ok(arguments) => arguments,
        Err(exit) if exit.status.is_ok() => return print(&exit.output),
        Err(exit) => return wrong_usage(exit.output.trim_end()),
    };
    if arguments.version {
        return print(&format!(
            "qx-publish {} ({} {})\n",
            env!("CARGO_PKG_VERSION"),
            env!("QX_COMMIT"),
            env!("QX_TARGET")
        ));
    }
    let Some(command) = arguments.command else {
        return wrong_usage("a command is missing; see qx-publish --help");
    };
    match run(command) {
        Ok((output, exit)) if print(&output) == ExitCode::SUCCESS => ExitCode::from(exit.code()),
        Ok(_) => ExitCode::from(Exit::Failed.code()),
        Err(error) => {
            complain(&error.chain());
            ExitCode::from(error.exit.code())
        }
    }
}

/// Carries a command out: what to print, and the exit code.
fn run(command: Command) -> Result<(String, Exit)> {
    let now = SystemTime::now();
    match command {
        Command::Refresh(command) => return refresh(&command, now),
        Command::Verify(command) => return verify(&command, now),
        _ => {}
    }
    let repo = match &command {
        Command::Release(Release { repo, .. })
        | Command::Component(Component { repo, .. })
        | Command::Sign(Sign {
            repo: Some(repo), ..
        })
        | Command::Rotate(Rotate { repo, .. })
        | Command::Expiry(Expiry { repo, .. })
        | Command::Delegate(Delegate { repo, .. })
        | Command::Bundle(Bundle { repo, .. })
        | Command::Inspect(Inspect { repo, .. }) => Some(repo.clone()),
        _ => None,
    };
    let output = carry_out(command, now)?;
    // After the command, which may have renewed what would have been warned of.
    for line in repo.map_or(Ok(Vec::new()), |repo| qx_publish::warnings(&repo, now))? {
        complain(&format!("warning: {line}"));
    }
    Ok((output, Exit::Done))
}

fn carry_out(command: Command, now: SystemTime) -> Result<String> {
    match command {
        Command::Init(Init {
            repo,
            keys,
            product,
            root_keys,
            root_threshold,
        }) => {
            let made = qx_publish::init(&repo, &keys, &product, root_keys, root_threshold, now)?;
            let mut text = format!(
                "the repository {} is ready, its keys are in {}\nthe root that appliances trust, for /etc/qx-update/root.json: {}\n",
                repo.display(),
                keys.display(),
                made.root.display()
            );
            for key in &made.root_keys {
                text += &format!(
                    "take {} away, to a place of its own with a copy, and delete it here\n",
                    key.display()
                );
            }
            text += &format!(
                "{} of {} root keys must sign a new root; the others stay here, for each publication needs them\n",
                made.threshold,
                made.root_keys.len()
            );
            Ok(text)
        }
        Command::Key(KeyCommand { command }) => key(command),
        Command::Release(Release {
            recipe,
            repo,
            keys,
            passphrase_file,
            channel,
            team,
        }) => {
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
        Command::Component(Component {
            recipe,
            repo,
            keys,
            passphrase_file,
            team,
        }) => {
            let keyring = Keyring::open(&keys, passphrase_file.as_deref())?;
            let team = team.as_deref();
            let done = qx_publish::release(&recipe, &repo, &keyring, None, team, now, now)?;
            Ok(published(&done, &repo, &keys))
        }
        Command::Sign(command) => sign(command, now),
        Command::Rotate(Rotate {
            role,
            repo,
            keys,
            passphrase_file,
            key,
            remove,
            threshold,
            without_old_key,
        }) => {
            let mut store = Store::open(&repo, now)?;
            store.without_old_key = without_old_key;
            let rotation = Rotation {
                role: &role,
                keys: &key,
                remove: &remove,
                threshold,
            };
            let mut new = NewKeys::new(&keys);
            let done = qx_publish::rotate(store, &rotation, &mut new, &|| {
                Keyring::open(&keys, passphrase_file.as_deref())
            })?;
            Ok(made(&new) + &changed(&done, &repo, &keys))
        }
        Command::Expiry(Expiry { role, days, repo }) => {
            qx_publish::set_lifetime(Store::open(&repo, now)?, &role, days)?;
            Ok(format!(
                "from their next version on, the {role} metadata are valid for {days} days\n"
            ))
        }
        Command::Delegate(Delegate {
            team,
            repo,
            keys,
            passphrase_file,
            remove: true,
            ..
        }) => {
            let store = Store::open(&repo, now)?;
            let done = qx_publish::remove_team(
                store,
                &team,
                &Keyring::open(&keys, passphrase_file.as_deref())?,
            )?;
            Ok(changed(&done, &repo, &keys))
        }
        Command::Delegate(Delegate {
            team,
            repo,
            keys,
            passphrase_file,
            paths,
            key,
            threshold,
            terminating,
            remove: false,
        }) => {
            let store = Store::open(&repo, now)?;
            let team = Team {
                name: &team,
                paths: &paths,
                keys: &key,
                threshold,
                terminating,
            };
            let mut new = NewKeys::new(&keys);
            let done = qx_publish::delegate(store, &team, &mut new, &|| {
                Keyring::open(&keys, passphrase_file.as_deref())
            })?;
            Ok(made(&new) + &changed(&done, &repo, &keys))
        }
        // `run` has done it.
        Command::Refresh(_) | Command::Verify(_) => Ok(String::new()),
        Command::Bundle(Bundle {
            repo,
            version,
            channel,
            arch,
            out,
        }) => {
            let wanted = Wanted {
                version: &version,
                channel: channel.as_ref(),
                arch: arch.as_ref(),
            };
            let bundle = qx_publish::bundle(&repo, &wanted, &out, now)?;
            let mut text = format!("wrote {}: {} bytes\n", out.display(), bundle.bytes);
            for release in &bundle.releases {
                text += &format!("with {}\n", release.offer.target);
            }
            Ok(text)
        }
        Command::Factory(Factory { recipe, out }) => {
            let manifest = qx_publish::factory(&recipe, &out, released(now)?)?;
            warn_of_versions(&manifest);
            Ok(format!(
                "wrote {}: {} {}, {} components\n",
                out.display(),
                manifest.product,
                manifest.version,
                manifest.components.len()
            ))
        }
        Command::Inspect(Inspect { repo, json }) => {
            let inspection = qx_publish::inspect(&repo, now)?;
            match json {
                true => json_text(&inspection),
                false => Ok(inspection.to_string()),
            }
        }
        Command::Serve(Serve { repo, listen }) => {
            let listener = TcpListener::bind(&listen).doing(|| format!("listening on {listen}"))?;
            let address = listener
                .local_addr()
                .doing(|| format!("listening on {listen}"))?;
            print(&format!("listening on http://{address}\n"));
            qx_publish::serve(&repo, &listener)?;
            Ok(String::new())
        }
    }
}

fn verify(command: &Verify, now: SystemTime) -> Result<(String, Exit)> {
    let found = qx_publish::verify(&command.repo, now);
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

fn json_text(value: &impl serde::Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).doing(|| "writing the JSON")?;
    text.push('\n');
    Ok(text)
}

fn refresh(command: &Refresh, now: SystemTime) -> Result<(String, Exit)> {
    let Refresh {
        repo,
        keys,
        passphrase_file,
        within,
    } = command;
    let within = within.map(|days| Duration::from_secs(86_400) * days);
    let store = Store::open(repo, now)?;
    let done = qx_publish::refresh(
        store,
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
        "run this again on {} ({role})\n",
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

fn sign(command: Sign, now: SystemTime) -> Result<String> {
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
                "signed by {}, in {}\n",
                text::name(&signed.keys.join(", ")),
                out.display()
            );
            for missing in &signed.missing {
                text += &format!("{missing}\n");
            }
            text += "next: qx-publish sign --repo DIR --keys DIR --add-signature FILE where the repository is\n";
            Ok(text)
        }
        (None, Some(repo)) if out.is_none() => {
            let mut store = Store::open(&repo, now)?;
            store.without_old_key = without_old_key;
            let (lines, done) = qx_publish::collect(store, &add_signature, &keyring)?;
            let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
            Ok(lines + &changed(&done, &repo, &keys))
        }
        _ => Err(Error::with(
            Exit::Usage,
            "sign takes a DRAFT with --keys (and --out), or --repo with --keys and --add-signature; see qx-publish sign --help",
        )),
    }
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
        text += &format!("{} waits: {}\n", draft.file.display(), draft.why);
    }
    if !done.waiting.is_empty() {
        // A file that is of no use may be the key that is missed.
        for line in Keyring::open(keys, None).iter().flat_map(Keyring::unusable) {
            text += &format!("{line}\n");
        }
        text += &format!(
            "next: qx-publish sign FILE --keys DIR --out SIGNED where a missing key is; then qx-publish sign --repo {} --keys {} --add-signature SIGNED\n",
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

fn key(command: KeySubcommand) -> Result<String> {
    match command {
        KeySubcommand::New(KeyNew {
            file,
            scheme,
            encrypt,
            passphrase_file,
        }) => {
            if passphrase_file.is_some() && !encrypt {
                return Err(Error::with(
                    Exit::Usage,
                    "--passphrase-file is of use with --encrypt only",
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
                Exit::Usage,
                "SOURCE_DATE_EPOCH is not a number of seconds since 1970",
            )
        })
}

/// Prints, and says so if that failed: a full disk behind a redirection is no success.
fn print(text: &str) -> ExitCode {
    match output::answer(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.chain());
            ExitCode::from(error.exit.code())
        }
    }
}

fn complain(text: &str) {
    output::complain("qx-publish", text);
}

fn wrong_usage(text: &str) -> ExitCode {
    complain(text);
    ExitCode::from(Exit::Usage.code())
}
