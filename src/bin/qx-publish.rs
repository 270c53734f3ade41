//! `qx-publish`: makes the releases that `qx-update` installs.

use std::io::{self, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use argh::FromArgs;
use qx_update::error::{Context, Error, Exit, Result};
use qx_update::manifest::Name;
use qx_update::publish::{self, Keyring, Passphrase, PublicKey};
use qx_update::trust::signing::{Scheme, Sign};

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
    Factory(Factory),
    Inspect(Inspect),
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
    let arguments: Option<Vec<String>> =
        std::env::args_os().map(|a| a.into_string().ok()).collect();
    let Some(arguments) = arguments else {
        return wrong_usage("an argument is not UTF-8");
    };
    let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
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
        Ok(output) => print(&output),
        Err(error) => {
            eprintln!("qx-publish: {}", error.chain());
            ExitCode::from(error.exit.code())
        }
    }
}

fn run(command: Command) -> Result<String> {
    let now = SystemTime::now();
    match command {
        Command::Init(Init {
            repo,
            keys,
            product,
        }) => {
            let root = publish::init(&repo, &keys, &product, now)?;
            Ok(format!(
                "the repository {} is ready, its keys are in {}\nthe root that appliances trust, for /etc/qx-update/root.json: {}\n",
                repo.display(),
                keys.display(),
                root.display()
            ))
        }
        Command::Key(KeyCommand { command }) => key(command),
        Command::Release(Release {
            recipe,
            repo,
            keys,
            passphrase_file,
            channel,
        }) => {
            let channel = match channel {
                Some(channel) => channel,
                None => "stable".parse().map_err(|why: String| Error::new(why))?,
            };
            let released = released(now)?;
            let keys = Keyring::open(&keys, passphrase_file.as_deref())?;
            let done = publish::release(&recipe, &repo, &keys, &channel, released, now)?;
            Ok(format!(
                "published {}: {} components, {} bytes to install, {} to download, {} of them new\n",
                done.target,
                done.manifest.components.len(),
                done.manifest.size_bytes(),
                done.artifact_bytes,
                done.new_bytes
            ))
        }
        Command::Factory(Factory { recipe, out }) => {
            let manifest = publish::factory(&recipe, &out, released(now)?)?;
            Ok(format!(
                "wrote {}: {} {}, {} components\n",
                out.display(),
                manifest.product,
                manifest.version,
                manifest.components.len()
            ))
        }
        Command::Inspect(Inspect { repo, json }) => {
            let inspection = publish::inspect(&repo, now)?;
            if !json {
                return Ok(inspection.to_string());
            }
            let mut text =
                serde_json::to_string_pretty(&inspection).doing(|| "writing the JSON")?;
            text.push('\n');
            Ok(text)
        }
        Command::Serve(Serve { repo, listen }) => {
            let listener = TcpListener::bind(&listen).doing(|| format!("listening on {listen}"))?;
            let address = listener
                .local_addr()
                .doing(|| format!("listening on {listen}"))?;
            print(&format!("listening on http://{address}\n"));
            publish::serve(&repo, &listener)?;
            Ok(String::new())
        }
    }
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
            let key = publish::create_key(&file, scheme, passphrase.as_ref())?;
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
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qx-publish: writing to the standard output: {error}");
            ExitCode::from(Exit::Failed.code())
        }
    }
}

fn wrong_usage(text: &str) -> ExitCode {
    eprintln!("qx-publish: {text}");
    ExitCode::from(Exit::Usage.code())
}
