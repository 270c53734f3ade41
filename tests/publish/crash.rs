//! `qx-publish` killed before each system call that changes files, one after another, by strace: after each kill a
//! reader sees a whole repository, the old one or the new one, and the same command run again ends the work.

use crate::common::publisher;
use std::process::Command;

use super::place::{HERE, Place, Seen};
use super::work::Ended;

/// What changes files. A kill before the next of them shows what the one before has left.
const SYSCALLS: &[&str] = &[
    "write",
    "fsync",
    "syncfs",
    "rename",
    "unlink,unlinkat,rmdir",
    "mkdir,mkdirat",
];

/// What a crash leaves must be what was before, or what is after, to a client that has seen it before and to one that has
/// not.
fn killed_anywhere(before: &Place, arguments: &[&str], more: &[&str]) {
    let arguments = [arguments, &HERE[..], more].concat();
    let old = before
        .seen("known")
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    let after = before.copy();
    let done = after.run(&arguments);
    assert_eq!(done.code, 0, "{arguments:?}\n{}{}", done.out, done.err);
    let new = after.fresh();
    let mut kills = 0;
    for syscalls in SYSCALLS {
        for number in 1.. {
            let place = before.copy();
            if !killed_at(&place, &arguments, syscalls, number) {
                break;
            }
            kills += 1;
            let told = format!("{arguments:?} killed before {syscalls} number {number}");
            // One that died when all was done is not asked to do it twice; the repository is sound all the same.
            let done = check(&place, &[&old, &new], &told) == new && new != old;
            let again = match done {
                true => place.run(&[&["refresh"], &HERE[..]].concat()),
                false => place.run(&arguments),
            };
            assert_eq!(again.code, 0, "{told}, again:\n{}{}", again.out, again.err);
            if old != new {
                let keys = |place: &Place| place.tree("keys").into_keys().collect::<Vec<_>>();
                assert_eq!(
                    keys(&place),
                    keys(&after),
                    "{told}: a key that was made is used"
                );
            }
            check(&place, &[&new], &told);
        }
    }
    // Writing, syncing and renaming one file is three already.
    assert!(kills > 9, "{arguments:?} was killed {kills} times only");
}

/// Runs the command; whether it was killed.
fn killed_at(place: &Place, arguments: &[&str], syscalls: &str, number: u32) -> bool {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e"]);
    command.arg(format!("trace={syscalls}"));
    command.arg("-e");
    command.arg(format!("inject={syscalls}:signal=SIGKILL:when={number}"));
    command
        .arg(publisher())
        .args(arguments)
        .current_dir(place.path(""));
    command.env("SOURCE_DATE_EPOCH", "1800000000");
    let output = command.output().expect("strace is installed");
    use std::os::unix::process::ExitStatusExt;
    let status = output.status;
    let told = Ended::from(output);
    let killed = status.signal() == Some(9);
    assert!(
        killed || told.code == 0,
        "{arguments:?} {syscalls} {number}: {status} {}",
        told.err
    );
    killed
}

/// What a client sees, whether it has seen the repository before or not.
#[track_caller]
fn check(place: &Place, expected: &[&Seen], told: &str) -> Seen {
    let fresh = place.fresh();
    assert!(expected.contains(&&fresh), "{told}: {fresh:?}");
    let known = place
        .seen("known")
        .unwrap_or_else(|e| panic!("{told}: {}", e.chain()));
    assert_eq!(known, fresh, "{told}");
    fresh
}

/// With a published release.
fn ready() -> Place {
    let place = Place::with(&[]);
    let recipe = place.recipe("1.0.0", &["web"]);
    place.good(&["release", &recipe], &[]);
    place
}

fn with_team() -> Place {
    let place = ready();
    place.good(
        &["delegate", "webbers"],
        &[
            "--paths",
            "vdc/artifacts/web-*",
            "--paths",
            "vdc/web/*/*/release.json",
        ],
    );
    let recipe = place.recipe("1.0.1", &["web"]);
    place.good(
        &["release", &recipe],
        &["--as", "webbers", "--channel", "web"],
    );
    place
}

/// A release that dies anywhere leaves appliances with either all releases of before or the new one too, whole, and the
/// same command ends it: a build machine may lose power at any time.
#[test]
fn a_release() {
    let place = ready();
    place.file("src/web/index.html", b"another");
    let recipe = place.recipe("1.1.0", &["web", "node"]);
    killed_anywhere(&place, &["release", &recipe], &[]);
}

/// Whoever changes the root's key and is interrupted loses no appliance: each sees the old root or the new one, and the
/// key that was made is the one that is used in the end.
#[test]
fn a_rotation_of_the_root() {
    killed_anywhere(&ready(), &["rotate", "root"], &[]);
}

/// An interrupted change of the timestamp's key never leaves a root that names a key which signed nothing yet:
/// appliances, new and old, would trust the repository no more.
#[test]
fn a_rotation_of_the_timestamp() {
    killed_anywhere(&ready(), &["rotate", "timestamp"], &[]);
}

/// An interrupted change of the snapshot's key never leaves appliances with a snapshot that the current root does not
/// vouch for, and is ended by the same command.
#[test]
fn a_rotation_of_the_snapshot() {
    killed_anywhere(&ready(), &["rotate", "snapshot"], &[]);
}

/// An interrupted change of the targets' key never leaves appliances with releases that the current root does not vouch
/// for, and is ended by the same command.
#[test]
fn a_rotation_of_the_targets() {
    killed_anywhere(&ready(), &["rotate", "targets"], &[]);
}

/// An interrupted change of a team's key never separates who the team is from what it has signed: its releases stay
/// visible to every appliance.
#[test]
fn a_rotation_of_a_team() {
    killed_anywhere(&with_team(), &["rotate", "webbers"], &[]);
}

/// A renewal of all metadata that dies anywhere leaves a repository that appliances can read, and goes through when it
/// is run again, as a cron job does.
#[test]
fn a_refresh_of_everything() {
    killed_anywhere(&with_team(), &["refresh"], &["--within", "4000"]);
}

/// An interrupted delegation never names a team whose metadata are not there, which no appliance could get past; the
/// same command ends it.
#[test]
fn a_delegation() {
    killed_anywhere(
        &ready(),
        &["delegate", "webbers"],
        &["--paths", "vdc/artifacts/web-*"],
    );
}

/// The signature that completes a draft publishes it wholly or not at all, whenever the process dies, and can be added
/// again: people who sign elsewhere are not asked twice.
#[test]
fn the_last_signature_of_a_draft() {
    let place = Place::with(&["--root-keys", "2", "--root-threshold", "2"]);
    let recipe = place.recipe("1.0.0", &["web"]);
    place.good(&["release", &recipe], &[]);
    place.take_away("root-2", "safe");
    place.good(&["rotate", "timestamp"], &[]);
    assert_eq!(place.fresh().root, 1);
    let draft = place.drafts().remove(0);
    let signed = place.run(&["sign", &draft, "--keys", "safe", "--out", "signed"]);
    assert_eq!(signed.code, 0, "{}", signed.err);
    killed_anywhere(&place, &["sign"], &["--add-signature", "signed"]);
}

/// A change of a lost key cannot be one step for appliances; if it dies in the short time between, `refresh` completes
/// it, and before the new root is there nothing is broken at all.
#[test]
fn a_rotation_without_the_old_key_is_mended_by_refresh() {
    let place = ready();
    place
        .seen("known")
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    place.take_away("timestamp", "lost");
    let arguments = [&["rotate", "timestamp", "--without-old-key"], &HERE[..]].concat();
    let mut torn = 0;
    for syscalls in SYSCALLS {
        for number in 1.. {
            let place = place.copy();
            if !killed_at(&place, &arguments, syscalls, number) {
                break;
            }
            let told = format!("killed before {syscalls} number {number}");
            let begun = place.path("repo/metadata/2.root.json").exists();
            if place.seen("known").is_err() {
                assert!(
                    begun,
                    "{told}: before the new root there is nothing to mend"
                );
                torn += 1;
            }
            let next = match begun {
                true => [&["refresh"], &HERE[..]].concat(),
                false => arguments.clone(),
            };
            let ended = place.run(&next);
            assert_eq!(ended.code, 0, "{told}\n{}{}", ended.out, ended.err);
            assert_eq!(
                (place.fresh().root, place.fresh().releases.len()),
                (2, 1),
                "{told}"
            );
            let known = place.seen("known");
            known.unwrap_or_else(|e| panic!("{told}: {}", e.chain()));
        }
    }
    // Between the renames there are only the syncs that order them.
    assert!((1..=5).contains(&torn), "{torn}");
}

/// A repository whose making died anywhere is made by the same command, or is there already, and then takes releases
/// and rotations: nobody has to know what a half-made one lacks.
#[test]
fn init() {
    let arguments = [&["init", "--product", "vdc", "--root-keys", "2"], &HERE[..]].concat();
    for syscalls in SYSCALLS {
        for number in 1.. {
            let place = Place::empty();
            if !killed_at(&place, &arguments, syscalls, number) {
                assert!(number > 1, "{syscalls}");
                break;
            }
            let told = format!("killed before {syscalls} number {number}");
            if place.path("repo").exists() {
                assert_eq!(place.fresh().root, 1, "{told}");
            }
            let ended = place.run(&arguments);
            let done = ended.err.contains("is not empty");
            assert!(ended.code == 0 || done, "{told}\n{}", ended.err);
            assert_eq!(place.fresh().root, 1, "{told}");
            let recipe = place.recipe("1.0.0", &["web"]);
            place.good(&["release", &recipe], &[]);
            place.good(&["rotate", "root"], &[]);
            assert!(!place.path("keys/init.unfinished").exists(), "{told}");
        }
    }
}

/// A team's release that dies anywhere is seen by appliances wholly or not at all, and the team's same command ends it,
/// as with a release of the targets role.
#[test]
fn a_release_of_a_team() {
    let place = with_team();
    place.file("src/web/index.html", b"another");
    let recipe = place.recipe("1.1.0", &["web"]);
    killed_anywhere(
        &place,
        &["release", &recipe],
        &["--as", "webbers", "--channel", "web"],
    );
}

/// A team that is dismissed by a command that dies leaves its releases readable throughout, under its own name or under
/// the targets role.
#[test]
fn the_end_of_a_delegation() {
    killed_anywhere(&with_team(), &["delegate", "webbers", "--remove"], &[]);
}
