//! The command line of `qx-publish`.

use std::path::{Path, PathBuf};

use argh::FromArgs;
use qx_release::manifest::Name;
use qx_release::trust::signing::Scheme;
use semver::Version;

/// Makes the releases that qx-update installs.
#[derive(FromArgs)]
pub(crate) struct Arguments {
    /// print the version and exit
    #[argh(switch)]
    pub version: bool,
    #[argh(subcommand)]
    pub command: Option<Command>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
pub(crate) enum Command {
    Init(Init),
    Key(KeyCommand),
    Check(Check),
    Release(Release),
    Component(Component),
    Withdraw(Withdraw),
    Prune(Prune),
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

impl Command {
    /// The repository of which the command warns that a role's metadata expire soon.
    pub(crate) fn repository(&self) -> Option<&Path> {
        match self {
            Command::Release(Release { repo, .. })
            | Command::Component(Component { repo, .. })
            | Command::Withdraw(Withdraw { repo, .. })
            | Command::Prune(Prune { repo, .. })
            | Command::Sign(Sign {
                repo: Some(repo), ..
            })
            | Command::Rotate(Rotate { repo, .. })
            | Command::Expiry(Expiry { repo, .. })
            | Command::Delegate(Delegate { repo, .. })
            | Command::Bundle(Bundle { repo, .. })
            | Command::Inspect(Inspect { repo, .. }) => Some(repo),
            _ => None,
        }
    }
}

/// Create keys and an empty repository.
#[derive(FromArgs)]
#[argh(subcommand, name = "init")]
pub(crate) struct Init {
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the directory for the private keys
    #[argh(option)]
    pub keys: PathBuf,
    /// the product whose releases it will hold
    #[argh(option)]
    pub product: Name,
    /// the number of root keys (1)
    #[argh(option, default = "1")]
    pub root_keys: usize,
    /// how many root keys must sign (more than half)
    #[argh(option)]
    pub root_threshold: Option<u64>,
}

/// Create and show keys.
#[derive(FromArgs)]
#[argh(subcommand, name = "key")]
pub(crate) struct KeyCommand {
    #[argh(subcommand)]
    pub command: KeySubcommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
pub(crate) enum KeySubcommand {
    New(KeyNew),
    Show(KeyShow),
}

/// Create a private key, and its public half next to it.
#[derive(FromArgs)]
#[argh(subcommand, name = "new")]
pub(crate) struct KeyNew {
    /// the private key, NAME.pem; its public half becomes NAME.pub.pem
    #[argh(positional)]
    pub file: PathBuf,
    /// ed25519 (the default) or ecdsa-sha2-nistp256
    #[argh(option, default = "Scheme::Ed25519")]
    pub scheme: Scheme,
    /// encrypt it with a passphrase
    #[argh(switch)]
    pub encrypt: bool,
    /// a file whose first line is the passphrase (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
}

/// Print the public half of a key.
#[derive(FromArgs)]
#[argh(subcommand, name = "show")]
pub(crate) struct KeyShow {
    /// the key: NAME.pem, NAME.pub.pem or NAME.signer.json
    #[argh(positional)]
    pub file: PathBuf,
}

/// Try what a recipe's `checks` name: versions, init scripts, migrations. `release` does it, too.
#[derive(FromArgs)]
#[argh(subcommand, name = "check")]
pub(crate) struct Check {
    /// the recipe
    #[argh(positional)]
    pub recipe: PathBuf,
    /// the repository whose releases the migrations continue
    #[argh(option)]
    pub repo: Option<PathBuf>,
}

/// Pack what a recipe names, and publish it.
#[derive(FromArgs)]
#[argh(subcommand, name = "release")]
pub(crate) struct Release {
    /// the recipe
    #[argh(positional)]
    pub recipe: PathBuf,
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    pub keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
    /// the channel to publish on (stable)
    #[argh(option)]
    pub channel: Option<Name>,
    /// the team that signs it (the targets role)
    #[argh(option, long = "as")]
    pub team: Option<String>,
    /// publish it without trying what the recipe's checks name
    #[argh(switch)]
    pub no_check: bool,
}

/// Pack a recipe's components, and publish them for the releases that others make.
#[derive(FromArgs)]
#[argh(subcommand, name = "component")]
pub(crate) struct Component {
    /// the recipe
    #[argh(positional)]
    pub recipe: PathBuf,
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    pub keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
    /// the team that signs them (the targets role)
    #[argh(option, long = "as")]
    pub team: Option<String>,
}

/// Take a release back: appliances that have it keep it, and no other installs it.
#[derive(FromArgs)]
#[argh(subcommand, name = "withdraw")]
pub(crate) struct Withdraw {
    /// the version
    #[argh(positional)]
    pub version: Version,
    /// why, in a line for those who run it
    #[argh(option)]
    pub reason: Option<String>,
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    pub keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
    /// only releases on this channel (all channels that have the version)
    #[argh(option)]
    pub channel: Option<Name>,
    /// only releases for this architecture (all that have the version)
    #[argh(option)]
    pub arch: Option<Name>,
}

/// Remove the artifacts that only withdrawn releases need, and files that no metadata name.
#[derive(FromArgs)]
#[argh(subcommand, name = "prune")]
pub(crate) struct Prune {
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    pub keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
    /// print what would be removed, and change nothing
    #[argh(switch)]
    pub dry_run: bool,
}

/// Sign a draft, on any machine; or publish drafts that were signed.
///
/// `sign DRAFT --keys DIR` shows what is signed and signs it. `sign --repo DIR --keys DIR --add-signature FILE` collects
/// signatures made elsewhere, and publishes the drafts that have enough.
#[derive(FromArgs)]
#[argh(subcommand, name = "sign")]
pub(crate) struct Sign {
    /// the draft to sign
    #[argh(positional)]
    pub draft: Option<PathBuf>,
    /// the directory with the private keys
    #[argh(option)]
    pub keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
    /// where to write the signed draft (overwrites the draft)
    #[argh(option)]
    pub out: Option<PathBuf>,
    /// the repository's directory; with a draft: to show what changes
    #[argh(option)]
    pub repo: Option<PathBuf>,
    /// a draft that was signed elsewhere; may be repeated
    #[argh(option)]
    pub add_signature: Vec<PathBuf>,
    /// the old key of a role whose keys change is permanently lost
    #[argh(switch)]
    pub without_old_key: bool,
}

/// Change the keys of a role. Without --key, --remove and --threshold, each key is replaced by a new one.
#[derive(FromArgs)]
#[argh(subcommand, name = "rotate")]
pub(crate) struct Rotate {
    /// root, timestamp, snapshot, targets or a team
    #[argh(positional)]
    pub role: String,
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the directory with the private keys, old and new
    #[argh(option)]
    pub keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
    /// a key to add: the file of a public key, or "new" (a new one); may be repeated
    #[argh(option)]
    pub key: Vec<String>,
    /// a key to remove, by the start of its id, or "none" (all, if keys are added); may be repeated
    #[argh(option)]
    pub remove: Vec<String>,
    /// how many keys must sign from now on
    #[argh(option)]
    pub threshold: Option<u64>,
    /// the old key is permanently lost: do not wait for its signature
    #[argh(switch)]
    pub without_old_key: bool,
}

/// Renew metadata that expire soon; made for cron. Exits 10 if some of them could not be renewed.
#[derive(FromArgs)]
#[argh(subcommand, name = "refresh")]
pub(crate) struct Refresh {
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    pub keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
    /// renew metadata that expire within this many days (a third of their lifetime, at most 120 days)
    #[argh(option)]
    pub within: Option<u32>,
}

/// Set for how many days new metadata of a role are valid.
#[derive(FromArgs)]
#[argh(subcommand, name = "expiry")]
pub(crate) struct Expiry {
    /// root, timestamp, snapshot, targets or a team
    #[argh(positional)]
    pub role: String,
    /// the number of days
    #[argh(positional)]
    pub days: u32,
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
}

/// Let a team publish targets that match its patterns, or revoke that right.
#[derive(FromArgs)]
#[argh(subcommand, name = "delegate")]
pub(crate) struct Delegate {
    /// the team
    #[argh(positional)]
    pub team: String,
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the directory with the private keys
    #[argh(option)]
    pub keys: PathBuf,
    /// a file whose first line is the passphrase of the keys (else QX_PUBLISH_PASSPHRASE, else the terminal)
    #[argh(option)]
    pub passphrase_file: Option<PathBuf>,
    /// a pattern of the targets that it may publish; * and ? do not match a slash; may be repeated
    #[argh(option)]
    pub paths: Vec<String>,
    /// the file of a public key of the team, or "new" (a new one); may be repeated
    #[argh(option)]
    pub key: Vec<String>,
    /// how many of its keys must sign (1)
    #[argh(option)]
    pub threshold: Option<u64>,
    /// targets that match its patterns are searched for nowhere else
    #[argh(switch)]
    pub terminating: bool,
    /// revoke the right to publish
    #[argh(switch)]
    pub remove: bool,
}

/// Write the manifest of a factory set, for the image.
#[derive(FromArgs)]
#[argh(subcommand, name = "factory")]
pub(crate) struct Factory {
    /// the recipe, whose sources are where the image build has the files
    #[argh(positional)]
    pub recipe: PathBuf,
    /// the manifest to write
    #[argh(option)]
    pub out: PathBuf,
}

/// Write a release and all metadata into one file, for a USB stick.
#[derive(FromArgs)]
#[argh(subcommand, name = "bundle")]
pub(crate) struct Bundle {
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the version
    #[argh(option)]
    pub version: Version,
    /// only releases on this channel (all channels that have the version)
    #[argh(option)]
    pub channel: Option<Name>,
    /// only releases for this architecture (all that have the version)
    #[argh(option)]
    pub arch: Option<Name>,
    /// the file to write; nothing is overwritten
    #[argh(option)]
    pub out: PathBuf,
}

/// Check a whole repository by the appliances' own code, every target's digest included.
#[derive(FromArgs)]
#[argh(subcommand, name = "verify")]
pub(crate) struct Verify {
    /// the repository: a directory, a bundle, or a URL
    #[argh(option)]
    pub repo: String,
    /// the root that appliances have (the repository's own first one)
    #[argh(option)]
    pub root: Option<PathBuf>,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Print what a repository offers.
#[derive(FromArgs)]
#[argh(subcommand, name = "inspect")]
pub(crate) struct Inspect {
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// print JSON
    #[argh(switch)]
    pub json: bool,
}

/// Serve a repository over HTTP, for testing.
#[derive(FromArgs)]
#[argh(subcommand, name = "serve")]
pub(crate) struct Serve {
    /// the repository's directory
    #[argh(option)]
    pub repo: PathBuf,
    /// the address and port to listen on; port 0 takes a free one (127.0.0.1:8000)
    #[argh(option, default = "\"127.0.0.1:8000\".into()")]
    pub listen: String,
}
