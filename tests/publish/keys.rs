//! The publisher's keys, as openssl sees them: files, passphrases, and signers outside of the process.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use super::desk::{Desk, RELEASE, texts};
use qx_publish::{Keyring, PublicKey};
use qx_release::trust::key::Key;
use qx_release::trust::signing::Sign;
use rustix::pty::OpenptFlags;
use rustix::termios::LocalModes;
use serde_json::json;

const SCHEMES: [&str; 2] = ["ed25519", "ecdsa-sha2-nistp256"];
const PASSPHRASE: &str = "correct horse £ battery";

/// A key that `key new` makes, encrypted or not, is a file that openssl reads and only its owner may, and no half of a
/// pair is ever overwritten. A release team is not tied to this program, and does not lose a key to a typing error.
#[test]
fn openssl_reads_the_keys_that_are_made() {
    let desk = Desk::new();
    desk.write(
        "secret",
        format!("{PASSPHRASE}\nonly the first line counts\n"),
    );
    for scheme in SCHEMES {
        for encrypt in [false, true] {
            let name = format!("{scheme}-{encrypt}");
            let (private, public) = (format!("{name}.pem"), format!("{name}.pub.pem"));
            let mut new = vec!["key", "new", &private, "--scheme", scheme];
            if encrypt {
                new.extend(["--encrypt", "--passphrase-file", "secret"]);
            }
            let said = desk.succeeds(&new);
            let mode = fs::metadata(desk.path(&private))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(desk.text(&private).contains("ENCRYPTED"), encrypt);
            let of_private = desk.runs(
                "openssl",
                &["pkey", "-in", &private, "-pubout", "-passin", "file:secret"],
                b"",
            );
            assert_eq!(of_private, desk.text(&public).as_bytes());
            let shown = desk.succeeds(&["key", "show", &private]);
            assert!(shown.contains(&desk.text(&public)), "{shown}");
            assert!(shown.contains(scheme), "{shown}");
            let id = said.trim().rsplit(' ').next().unwrap();
            assert!(shown.contains(id), "{said}{shown}");
            assert_eq!(shown, desk.succeeds(&["key", "show", &public]));
            // Neither half is overwritten.
            desk.fails(&new, &[&private, "overwritten"]);
            let other = format!("{name}-other.pem");
            fs::rename(desk.path(&private), desk.path(&other)).unwrap();
            desk.fails(&new, &[&public, "overwritten"]);
        }
    }
}

/// A new key whose file would not be found later, or whose scheme is unknown, is refused as wrong usage before it is
/// made: nobody relies on a key that no command will look at.
#[test]
fn a_key_is_named_so_that_it_is_found() {
    let desk = Desk::new();
    for name in ["root", "root.key", "root.pub.pem"] {
        desk.command_fails(
            &mut desk.command(&["key", "new", name]),
            2,
            &["must end in .pem"],
        );
    }
    desk.command_fails(
        &mut desk.command(&["key", "new", "a.pem", "--scheme", "rsa"]),
        2,
        &["rsa", "ed25519"],
    );
}

/// A key that a team made with openssl, plain or in one of its usual encryptions, signs here what openssl then
/// verifies: teams bring the keys that they have.
#[test]
fn keys_that_openssl_makes_sign_what_openssl_verifies() {
    let desk = Desk::new();
    desk.write("secret", PASSPHRASE);
    crate::common::create_dir(desk.path("keys")).unwrap();
    let ways: [&[&str]; 4] = [
        &["-nocrypt"],
        &[
            "-passout",
            "file:secret",
            "-v2",
            "aes-256-cbc",
            "-v2prf",
            "hmacWithSHA256",
        ],
        &["-passout", "file:secret", "-v2", "aes-128-cbc"],
        &["-passout", "file:secret", "-scrypt"],
    ];
    let algorithms: [&[&str]; 2] = [&["ed25519"], &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]];
    for (scheme, algorithm) in SCHEMES.into_iter().zip(algorithms) {
        for (number, way) in ways.into_iter().enumerate() {
            let file = format!("keys/{scheme}-{number}.pem");
            let public = format!("keys/{scheme}-{number}.pub.pem");
            let made = desk.runs(
                "openssl",
                &[&["genpkey", "-algorithm"], algorithm].concat(),
                b"",
            );
            desk.runs(
                "openssl",
                &[&["pkcs8", "-topk8", "-out", &file], way].concat(),
                &made,
            );
            desk.runs("openssl", &["pkey", "-pubout", "-out", &public], &made);
        }
    }
    // The way of its manual page, which asks for no conversion.
    desk.runs(
        "openssl",
        &[
            "genpkey",
            "-algorithm",
            "ed25519",
            "-aes256",
            "-pass",
            "file:secret",
            "-out",
            "keys/e.pem",
        ],
        b"",
    );
    desk.runs(
        "openssl",
        &[
            "pkey",
            "-in",
            "keys/e.pem",
            "-passin",
            "file:secret",
            "-pubout",
            "-out",
            "keys/e.pub.pem",
        ],
        b"",
    );
    let keyring = Keyring::open(&desk.path("keys"), Some(&desk.path("secret"))).unwrap();
    desk.write("message", b"what is signed");
    for file in desk.files("keys").keys() {
        let public = PublicKey::read(&desk.path(file)).unwrap();
        let signer = keyring.signer_for(&Key::from_value(&public.key).unwrap());
        let signer = signer.unwrap_or_else(|| panic!("{file}"));
        desk.write("signature", signer.sign(b"what is signed").unwrap());
        desk.write("public.pem", &public.pem);
        let verify: &[&str] = match public.key["scheme"].as_str() {
            Some("ed25519") => &[
                "pkeyutl",
                "-verify",
                "-rawin",
                "-pubin",
                "-inkey",
                "public.pem",
                "-sigfile",
                "signature",
                "-in",
                "message",
            ],
            _ => &[
                "dgst",
                "-sha256",
                "-verify",
                "public.pem",
                "-signature",
                "signature",
                "message",
            ],
        };
        desk.runs("openssl", verify, b"");
    }
}

/// A build machine without a terminal gives the passphrase in a file or in the environment. A wrong, missing or empty
/// one is told with the place that it came from, and nothing is published.
#[test]
fn a_passphrase_comes_from_a_file_or_the_environment() {
    let desk = Desk::ready();
    for role in ["targets", "snapshot", "timestamp"] {
        encrypt(&desk, role, PASSPHRASE);
    }
    desk.write("right", format!("{PASSPHRASE}\r\n"));
    desk.write("wrong", "something else\n");
    desk.write("empty", "\n");
    desk.recipe("1.0.0", "x86_64");
    let with_file = |file| [RELEASE, &["--passphrase-file", file]].concat();
    desk.fails(
        RELEASE,
        &[
            "passphrase",
            "/dev/tty",
            "--passphrase-file",
            "QX_PUBLISH_PASSPHRASE",
        ],
    );
    desk.fails(
        &with_file("wrong"),
        &["keys/targets.pem", "passphrase in wrong is wrong"],
    );
    desk.fails(&with_file("nowhere"), &["nowhere"]);
    desk.command_fails(
        &mut desk.command(&with_file("empty")),
        2,
        &["empty", "1 to"],
    );
    let mut command = desk.command(RELEASE);
    command.env("QX_PUBLISH_PASSPHRASE", "something else");
    desk.command_fails(
        &mut command,
        1,
        &["keys/targets.pem", "QX_PUBLISH_PASSPHRASE is wrong"],
    );
    // The file wins.
    let mut command = desk.command(&with_file("right"));
    let output = command.env("QX_PUBLISH_PASSPHRASE", "something else");
    let output = output.output().unwrap();
    assert!(output.status.success(), "{:?}", texts(&output));
    desk.recipe("1.1.0", "x86_64");
    let output = desk
        .command(RELEASE)
        .env("QX_PUBLISH_PASSPHRASE", PASSPHRASE)
        .output()
        .unwrap();
    assert!(output.status.success(), "{:?}", texts(&output));
}

/// A release is published without the passphrase of the root key, which signs nothing of it: the most precious secret
/// is not needed for daily work.
#[test]
fn nobody_is_asked_for_the_passphrase_of_a_key_that_is_not_needed() {
    let desk = Desk::ready();
    encrypt(&desk, "root", PASSPHRASE);
    desk.release("1.0.0");
}

/// A person who publishes is asked once for the passphrase of several keys, unseen, and can correct what was typed. One
/// for a new key is typed twice, and a key is only made if both are the same: no slip locks it for ever.
#[test]
fn a_person_types_the_passphrase_once_and_unseen() {
    let desk = Desk::ready();
    for role in ["targets", "snapshot", "timestamp"] {
        encrypt(&desk, role, PASSPHRASE);
    }
    desk.recipe("1.0.0", "x86_64");
    let terminal = Terminal::new();
    let child = terminal.start(&desk, RELEASE);
    terminal.shows("passphrase of keys/targets.pem: ");
    assert!(!terminal.echoes());
    // A slip of the hand, taken back: a whole character at a time.
    terminal.types(&format!("never mind\x15{PASSPHRASE}ü\x7f\r"));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", texts(&output));
    assert!(terminal.echoes());
    let shown = terminal.rest();
    assert!(
        !shown.contains("horse") && !shown.contains("snapshot"),
        "{shown}"
    );
    // A new passphrase is typed twice.
    for (again, done) in [("another\r", false), ("new one\r", true)] {
        let child = terminal.start(&desk, &["key", "new", "new.pem", "--encrypt"]);
        terminal.shows("new passphrase for new.pem: ");
        terminal.types("new one\r");
        terminal.shows("repeat the passphrase: ");
        terminal.types(again);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.success(), done, "{:?}", texts(&output));
        assert_eq!(desk.path("new.pem").exists(), done);
    }
    desk.runs(
        "openssl",
        &[
            "pkey",
            "-in",
            "new.pem",
            "-passin",
            "pass:new one",
            "-noout",
        ],
        b"",
    );
}

/// A person who gives up at the question for a passphrase, or types a wrong one, has a terminal that echoes and reads
/// lines again, one line of error, and files as they were.
#[test]
fn an_interrupted_question_leaves_the_terminal_as_it_was() {
    let desk = Desk::ready();
    encrypt(&desk, "targets", PASSPHRASE);
    desk.recipe("1.0.0", "x86_64");
    let before = desk.files("");
    let terminal = Terminal::new();
    for (typed, word) in [
        ("half\x03", "interrupted"),
        ("\x04", "interrupted"),
        ("wrong\r", "is wrong"),
    ] {
        let child = terminal.start(&desk, RELEASE);
        terminal.shows("passphrase of keys/targets.pem: ");
        assert!(!terminal.echoes());
        terminal.types(typed);
        let output = child.wait_with_output().unwrap();
        let (_, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains(word) && err.lines().count() == 1, "{err}");
        assert!(terminal.echoes());
    }
    assert!(desk.files("") == before);
}

/// A key file that is of no use is named with what is wrong with it, and the release waits as a draft instead of being
/// published. Without that line a team would not know why a signature is missing.
#[test]
fn a_file_that_is_no_key_is_told_from_the_others() {
    let desk = Desk::ready();
    desk.recipe("1.0.0", "x86_64");
    let good = desk.text("keys/targets.pem");
    let public = desk.text("keys/targets.pub.pem");
    let openssl =
        |arguments: &[&str]| String::from_utf8(desk.runs("openssl", arguments, b"")).unwrap();
    let rsa = openssl(&[
        "genpkey",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:1024",
    ]);
    let p384 = openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-384",
    ]);
    let ed448 = openssl(&["genpkey", "-algorithm", "ed448"]);
    let sec1 = openssl(&["ecparam", "-genkey", "-name", "prime256v1"]);
    for (content, words) in [
        (rsa, "an RSA key"),
        (p384, "another curve than P-256"),
        (ed448, "1.3.101.113"),
        (sec1, "openssl pkcs8 -topk8"),
        (public.clone(), "a public key; a private key is needed"),
        (good.replace("PRIVATE KEY", "CERTIFICATE"), "CERTIFICATE"),
        (good[..60].to_owned(), "not a key in PEM"),
        (String::new(), "not a key in PEM"),
        (good.replace("MC4C", "MC4D"), "not a PKCS#8 key"),
        ("\u{0}\u{1}".into(), "not a key in PEM"),
    ] {
        desk.write("keys/targets.pem", content);
        waits(&desk, &["keys/targets.pem", words]);
        desk.fails(
            &["key", "show", "keys/targets.pem"],
            &["keys/targets.pem", words],
        );
    }
    // Encrypted, and nobody knows whose it is.
    desk.write("keys/targets.pem", good);
    encrypt(&desk, "targets", PASSPHRASE);
    fs::remove_file(desk.path("keys/targets.pub.pem")).unwrap();
    waits(&desk, &["keys/targets.pem", "openssl pkey -in"]);
    // The public half of another key.
    desk.write("keys/targets.pub.pem", public);
    fs::copy(
        desk.path("keys/snapshot.pem"),
        desk.path("keys/targets.pem"),
    )
    .unwrap();
    encrypt(&desk, "targets", PASSPHRASE);
    let mut command = desk.command(RELEASE);
    command.env("QX_PUBLISH_PASSPHRASE", PASSPHRASE);
    desk.command_fails(
        &mut command,
        1,
        &["keys/targets.pem", "not a signature of its public key"],
    );
    fs::remove_dir_all(desk.path("keys")).unwrap();
    desk.fails(RELEASE, &["reading the keys in keys"]);
}

/// A key that never enters the process, as one in a smart card, signs through a described command, what that command
/// says reaches the person, and the release is published as with any other key.
#[test]
fn openssl_signs_as_an_external_signer() {
    let desk = Desk::ready();
    external(
        &desk,
        "targets",
        &["./sign", "../vault/targets.pem"],
        json!({}),
    );
    external(
        &desk,
        "snapshot",
        &["./sign", "../vault/snapshot.pem"],
        json!({}),
    );
    desk.script(
        "keys/sign",
        &format!("echo 'PIN, please' >&2\n{SIGN_ED25519}"),
    );
    desk.recipe("1.0.0", "x86_64");
    let output = desk.command(RELEASE).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    assert!(out.contains("published vdc/stable"), "{out}");
    // What it says reaches the person.
    assert_eq!(err, "PIN, please\nPIN, please\n");
    desk.succeeds(&["inspect", "--repo", "repo"]);
    let shown = desk.succeeds(&["key", "show", "keys/targets.signer.json"]);
    assert!(
        shown.contains(&desk.text("vault/targets.pub.pem")),
        "{shown}"
    );
}

/// A signing command that fails, hangs, floods, or signs with another key or something else publishes nothing and is
/// named: what it answers is verified, never believed.
#[test]
fn nothing_is_published_that_an_external_signer_did_not_sign() {
    let desk = Desk::ready();
    desk.recipe("1.0.0", "x86_64");
    external(
        &desk,
        "targets",
        &["./sign", "../vault/targets.pem"],
        json!({"timeout_s": 300}),
    );
    let described = desk.text("keys/targets.signer.json");
    for (script, words) in [
        ("exit 3", "exit status: 3"),
        ("kill -9 $$", "signal: 9"),
        ("cat >/dev/null", "not a signature of its public key"),
        ("head -c 64 /dev/zero", "not a signature of its public key"),
        ("head -c 2000 /dev/zero", "more than 1024 bytes"),
        ("cat /dev/zero", "more than 1024 bytes"),
        // Another key's.
        (
            &SIGN_ED25519.replace("$1", "snapshot.pem"),
            "not a signature of its public key",
        ),
        // Of something else.
        (
            &SIGN_ED25519.replace("cat >", "echo x >"),
            "not a signature of its public key",
        ),
        // Signed, and failed all the same.
        (&format!("{SIGN_ED25519}\nexit 1"), "exit status: 1"),
    ] {
        desk.script("keys/sign", script);
        desk.fails(RELEASE, &["keys/targets.signer.json", words]);
    }
    desk.script("keys/sign", SIGN_ED25519);
    for (command, timeout_s, words) in [
        (json!(["sleep", "600"]), 1, "did not answer within 1 s"),
        // A child of it keeps the pipe.
        (
            json!(["sh", "-c", "sleep 60 2>/dev/null & exit 0"]),
            1,
            "did not answer within 1 s",
        ),
        (json!(["/nowhere/signer"]), 9, "No such file"),
        (json!(["qx-no-such-signer"]), 9, "No such file"),
    ] {
        let mut description: serde_json::Value = serde_json::from_str(&described).unwrap();
        description["command"] = command;
        description["timeout_s"] = json!(timeout_s);
        desk.write("keys/targets.signer.json", description.to_string());
        desk.fails(RELEASE, &["keys/targets.signer.json", words]);
    }
    desk.write("keys/targets.signer.json", &described);
    desk.succeeds(RELEASE);
}

/// A signer's description with anything in it that is wrong or unknown is named with the field, and is not used: what
/// it would sign for is not guessed.
#[test]
fn a_signer_is_described_in_full() {
    let desk = Desk::ready();
    desk.recipe("1.0.0", "x86_64");
    for (change, words) in [
        (json!({"format": 2}), "format 2"),
        (json!({"scheme": "rsa"}), "rsa"),
        (
            json!({"scheme": "ecdsa-sha2-nistp256"}),
            "does not match the public key",
        ),
        (json!({"command": []}), "command"),
        (json!({"timeout_s": 0}), "timeout_s"),
        (json!({"public_key": "nowhere.pem"}), "nowhere.pem"),
        (
            json!({"public_key": "snapshot.pem"}),
            "a private key; a public key is needed",
        ),
        (json!({"pin": "1234"}), "pin"),
    ] {
        let vaulted = desk.path("vault/targets.pem").exists();
        if !vaulted {
            external(&desk, "targets", &["./sign"], json!({}));
        }
        let described = desk.text("keys/targets.signer.json");
        let mut description: serde_json::Value = serde_json::from_str(&described).unwrap();
        for (name, value) in change.as_object().unwrap() {
            description[name] = value.clone();
        }
        desk.write("keys/targets.signer.json", description.to_string());
        waits(&desk, &["targets.signer.json", words]);
        desk.write("keys/targets.signer.json", described);
    }
}

/// Publishes a release whose key is of no use: nothing is published, it waits for the signature, and it is told why.
fn waits(desk: &Desk, words: &[&str]) {
    let before = desk.files("repo/metadata");
    let (out, err) = texts(&desk.command(RELEASE).output().unwrap());
    assert!(out.contains("0 of 1 signatures"), "{out}{err}");
    for word in words {
        assert!(out.contains(word), "'{word}' is missing in: {out}{err}");
    }
    assert!(desk.files("repo/metadata") == before, "{out}{err}");
    fs::remove_dir_all(desk.path("repo/.drafts")).unwrap();
}

/// openssl 3.0 signs with Ed25519 only what is in a file.
const SIGN_ED25519: &str = "message=$(mktemp) && trap 'rm -f \"$message\"' EXIT && cat >\"$message\" && \
                            openssl pkeyutl -sign -rawin -inkey $1 -in \"$message\"";

/// Has openssl encrypt a key of the repository.
fn encrypt(desk: &Desk, role: &str, passphrase: &str) {
    let file = format!("keys/{role}.pem");
    let plain = desk.text(&file);
    let passphrase = format!("pass:{passphrase}");
    desk.runs(
        "openssl",
        &[
            "pkcs8",
            "-topk8",
            "-v2",
            "aes-256-cbc",
            "-out",
            &file,
            "-passout",
            &passphrase,
        ],
        plain.as_bytes(),
    );
    assert!(desk.text(&file).contains("ENCRYPTED"));
}

/// Locks a key of the repository away, and describes a signer in its place.
fn external(desk: &Desk, role: &str, command: &[&str], more: serde_json::Value) {
    crate::common::create_dir(desk.path("vault")).unwrap();
    for end in ["pem", "pub.pem"] {
        let file = format!("{role}.{end}");
        fs::rename(
            desk.path("keys").join(&file),
            desk.path("vault").join(&file),
        )
        .unwrap();
    }
    let mut description = json!({
        "format": 1, "scheme": "ed25519", "public_key": format!("../vault/{role}.pub.pem"), "command": command,
    });
    for (name, value) in more.as_object().unwrap() {
        description[name] = value.clone();
    }
    desk.write(&format!("keys/{role}.signer.json"), description.to_string());
}

/// A terminal, with a test in the place of the person.
struct Terminal {
    person: File,
    slave: File,
    screen: Receiver<Vec<u8>>,
}

impl Terminal {
    fn new() -> Terminal {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        // The tests themselves keep the terminal they have.
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let slave = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).unwrap();
        let person = File::from(master);
        let mut reader = person.try_clone().unwrap();
        let (sender, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal {
            person,
            slave: slave.into(),
            screen,
        }
    }

    /// Starts qx-publish with this as its terminal; its outputs are apart.
    fn start(&self, desk: &Desk, arguments: &[&str]) -> std::process::Child {
        let command = desk.command(arguments);
        Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(arguments)
            .current_dir(desk.path(""))
            .env_remove("QX_PUBLISH_PASSPHRASE")
            .stdin(self.slave.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits until this is on the screen.
    fn shows(&self, text: &str) {
        let mut shown = Vec::new();
        while !String::from_utf8_lossy(&shown).contains(text) {
            match self.screen.recv_timeout(Duration::from_secs(120)) {
                Ok(more) => shown.extend(more),
                Err(_) => panic!("'{text}' never came: {:?}", String::from_utf8_lossy(&shown)),
            }
        }
    }

    fn types(&self, text: &str) {
        (&self.person).write_all(text.as_bytes()).unwrap();
    }

    fn echoes(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.slave).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// What came since.
    fn rest(&self) -> String {
        let more: Vec<u8> = self.screen.try_iter().flatten().collect();
        String::from_utf8_lossy(&more).into_owned()
    }
}
