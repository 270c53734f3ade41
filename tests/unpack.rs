//! Archives, hostile ones above all, unpacked into a slot. The archives are built byte by byte: a
//! well-behaved archiver would not write most of them.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use qx_release::digest::Digest;
use qx_release::error::{Error, Exit};
use qx_release::manifest::{Capabilities, Component, Kind, Mode};
use qx_release::tree;
use qx_update::acquire::unpack;

/// A tar archive that says what it is told to say.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(
        mut self,
        kind: u8,
        name: &[u8],
        mode: &str,
        size: &str,
        link: &[u8],
        body: &[u8],
    ) -> Tar {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name);
        header[100..100 + mode.len()].copy_from_slice(mode.as_bytes());
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..124 + size.len()].copy_from_slice(size.as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn entry(self, kind: u8, name: &str, mode: u32, link: &str, body: &[u8]) -> Tar {
        let (mode, size) = (format!("{mode:07o}"), format!("{:011o}", body.len()));
        self.raw(kind, name.as_bytes(), &mode, &size, link.as_bytes(), body)
    }

    fn file(self, name: &str, body: &str) -> Tar {
        self.entry(b'0', name, 0o644, "", body.as_bytes())
    }

    fn dir(self, name: &str) -> Tar {
        self.entry(b'5', name, 0o755, "", b"")
    }

    fn link(self, name: &str, target: &str) -> Tar {
        self.entry(b'2', name, 0o777, target, b"")
    }

    fn pax(self, pairs: &[(&str, &str)]) -> Tar {
        let mut body = String::new();
        for (key, value) in pairs {
            let bare = key.len() + value.len() + 3;
            let length = (bare..).find(|n| bare + n.to_string().len() == *n).unwrap();
            body += &format!("{length} {key}={value}\n");
        }
        self.entry(b'x', "pax", 0o644, "", body.as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    fn gz(self) -> Vec<u8> {
        gz(&self.end())
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One that may have so much in it.
pub fn component(kind: Kind, size_bytes: u64, entries: u64) -> Component {
    Component {
        name: "thing".parse().unwrap(),
        kind,
        install_path: "share/thing".parse().unwrap(),
        mode: Mode(0o755),
        capabilities: Capabilities::NONE,
        sha256: Digest::of(b"not looked at here"),
        size_bytes,
        entries,
        artifact: None,
        factory_path: None,
    }
}

fn a_tree(size_bytes: u64, entries: u64) -> Component {
    component(Kind::Tree, size_bytes, entries)
}

fn install(component: &Component, artifact: &[u8], slot: &Path) -> Result<(), Error> {
    let digest = Digest::of(artifact);
    let length = artifact.len() as u64;
    unpack::unpack(component, artifact, length, &digest, slot, &mut |_| {})
}

/// Everything below a directory, links not followed.
fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut stack = vec![dir.to_owned()];
    while let Some(at) = stack.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let entry = entry.unwrap();
            let relative = entry
                .path()
                .strip_prefix(dir)
                .unwrap()
                .display()
                .to_string();
            found.push(relative);
            if entry.file_type().unwrap().is_dir() {
                stack.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// A tree arrives with the modes, links, empty directories and bytes that were measured when it was packed, also read
/// back from the medium, and the progress ends at all of the artifact.
#[test]
fn a_tree_is_installed_as_it_was_packed() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original");
    fs::create_dir_all(original.join("d/empty")).unwrap();
    fs::write(original.join("d/file"), "content").unwrap();
    fs::write(original.join("run"), "#!/bin/sh\n").unwrap();
    symlink("../run", original.join("d/link")).unwrap();
    for (path, mode) in [
        ("", 0o755),
        ("d", 0o750),
        ("d/empty", 0o555),
        ("d/file", 0o600),
        ("run", 0o711),
    ] {
        fs::set_permissions(original.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let measured = tree::measure(Kind::Tree, &original).unwrap();
    let component = Component {
        sha256: measured.digest,
        ..a_tree(measured.bytes, measured.entries)
    };

    let tar = Tar::default()
        .dir("share/thing/")
        .entry(b'5', "share/thing/d", 0o750, "", b"")
        .entry(b'5', "share/thing/d/empty/", 0o555, "", b"")
        .entry(b'0', "share/thing/d/file", 0o100_600, "", b"content")
        .entry(b'2', "share/thing/d/link", 0o777, "../run", b"")
        .entry(b'\0', "share/thing/run", 0o711, "", b"#!/bin/sh\n");
    let slot = dir.path().join("slot");
    fs::create_dir(&slot).unwrap();
    let artifact = tar.gz();
    let mut seen = Vec::new();
    unpack::unpack(
        &component,
        &artifact[..],
        artifact.len() as u64,
        &Digest::of(&artifact),
        &slot,
        &mut |bytes| seen.push(bytes),
    )
    .unwrap();
    tree::matches_medium(&component, &slot.join("share/thing")).unwrap();
    assert_eq!(seen.last(), Some(&(artifact.len() as u64)));
    assert_eq!(
        fs::metadata(slot.join("share")).unwrap().mode() & 0o7777,
        0o755
    );
}

/// A program is put with its mode into a directory where others are already: components share the directories of a
/// slot.
#[test]
fn a_bin_is_installed_beside_others() {
    let dir = tempfile::tempdir().unwrap();
    let component = component(Kind::Bin, 7, 1);
    let tar = Tar::default().entry(b'0', "share/thing", 0o755, "", b"program");
    fs::create_dir(dir.path().join("share")).unwrap();
    fs::write(dir.path().join("share/other"), "").unwrap();
    install(&component, &tar.gz(), dir.path()).unwrap();
    let path = dir.path().join("share/thing");
    assert_eq!(fs::read(&path).unwrap(), b"program");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
}

/// A file whose name is longer than a tar header holds is installed under that name, in either of the ways in which
/// archivers write it: publishers need not know of the limit.
#[test]
fn long_names_are_fine() {
    let dir = tempfile::tempdir().unwrap();
    let [deep, long] = ["d".repeat(150), "f".repeat(200)];
    let base = "share/thing";
    let tar = Tar::default()
        .dir(base)
        .pax(&[("path", &format!("{base}/{deep}/")), ("mtime", "1.5")])
        .dir("short")
        .entry(
            b'L',
            "././@LongLink",
            0,
            "",
            format!("{base}/{deep}/{long}\0").as_bytes(),
        )
        .file("short", "content")
        .pax(&[
            ("path", &format!("{base}/link")),
            ("linkpath", &format!("{deep}/{long}")),
        ])
        .link("short", "short");
    install(&a_tree(7, 4), &tar.gz(), dir.path()).unwrap();
    assert_eq!(
        fs::read(dir.path().join(base).join("link")).unwrap(),
        b"content"
    );
}

/// An archive that is padded with zeros to a full record, as GNU tar makes it, is accepted: only what is no padding
/// counts as something that follows.
#[test]
fn what_an_archiver_fills_its_last_record_with_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = Tar::default()
        .dir("share/thing")
        .file("share/thing/f", "x")
        .end();
    archive.resize(20 * 512, 0);
    install(&a_tree(1, 2), &gz(&archive), dir.path()).unwrap();
}

/// Each archive has one thing wrong, and the sentence says which, naming component and entry. Nothing
/// appears outside of the component's place, nor in place of what is there.
#[test]
fn hostile_entries_are_refused() {
    let t = || Tar::default().dir("share/thing");
    let long = "x".repeat(300);
    let longer = "d/".repeat(600);
    let cases: Vec<(&str, Tar, &str, &str)> = vec![
        (
            "dot-dot",
            t().file("share/thing/../../evil", "x"),
            "share/thing/../../evil",
            "not a relative path",
        ),
        (
            "dot-dot at the end",
            t().dir("share/thing/.."),
            "share/thing/..",
            "not a relative path",
        ),
        (
            "absolute",
            t().file("/tmp/evil", "x"),
            "/tmp/evil",
            "not a relative path",
        ),
        (
            "dot",
            t().file("share/./thing/x", "x"),
            "share/./thing/x",
            "not a relative path",
        ),
        ("empty name", t().file("", "x"), "''", "not a relative path"),
        (
            "outside",
            t().file("bin/evil", "x"),
            "bin/evil",
            "outside share/thing",
        ),
        (
            "a longer name",
            t().file("share/thing2", "x"),
            "share/thing2",
            "outside share/thing",
        ),
        (
            "control character",
            t().file("share/thing/a\nb", "x"),
            "a\\nb",
            "not a relative path",
        ),
        (
            "not UTF-8",
            t().raw(
                b'0',
                b"share/thing/\xff",
                "0000644",
                "00000000000",
                b"",
                b"",
            ),
            "\\xff",
            "not UTF-8",
        ),
        (
            "absolute link",
            t().link("share/thing/l", "/etc/passwd"),
            "share/thing/l",
            "outside the component",
        ),
        (
            "link out",
            t().link("share/thing/l", "../../x"),
            "share/thing/l",
            "outside the component",
        ),
        (
            "link to the parent",
            t().link("share/thing/l", ".."),
            "share/thing/l",
            "outside the component",
        ),
        (
            "link that looks inside",
            t().link("share/thing/s", ".")
                .link("share/thing/l", "s/../x"),
            "share/thing/l",
            "outside the component",
        ),
        (
            "link to nothing",
            t().link("share/thing/l", ""),
            "share/thing/l",
            "outside the component",
        ),
        (
            "link in place of the tree",
            Tar::default().link("share/thing", "x"),
            "share/thing",
            "outside the component",
        ),
        (
            "pax link out",
            t().pax(&[("linkpath", "/etc/passwd")])
                .link("share/thing/l", "x"),
            "share/thing/l",
            "outside the component",
        ),
        (
            "pax path out",
            t().pax(&[("path", "../evil")]).file("share/thing/x", "x"),
            "../evil",
            "not a relative path",
        ),
        (
            "hard link",
            t().entry(b'1', "share/thing/l", 0o644, "share/thing", b""),
            "share/thing/l",
            "hard link",
        ),
        (
            "character device",
            t().entry(b'3', "share/thing/c", 0o644, "", b""),
            "share/thing/c",
            "device or a pipe",
        ),
        (
            "block device",
            t().entry(b'4', "share/thing/b", 0o644, "", b""),
            "share/thing/b",
            "device or a pipe",
        ),
        (
            "pipe",
            t().entry(b'6', "share/thing/p", 0o644, "", b""),
            "share/thing/p",
            "device or a pipe",
        ),
        (
            "sparse",
            t().entry(b'S', "share/thing/s", 0o644, "", b""),
            "share/thing/s",
            "sparse",
        ),
        (
            "contiguous",
            t().entry(b'7', "share/thing/7", 0o644, "", b""),
            "share/thing/7",
            "unknown type ('7')",
        ),
        (
            "setuid",
            t().entry(b'0', "share/thing/s", 0o4755, "", b""),
            "share/thing/s",
            "mode 4755",
        ),
        (
            "setgid",
            t().entry(b'0', "share/thing/s", 0o2755, "", b""),
            "share/thing/s",
            "mode 2755",
        ),
        (
            "sticky",
            t().entry(b'5', "share/thing/s", 0o1777, "", b""),
            "share/thing/s",
            "mode 1777",
        ),
        (
            "no mode",
            t().raw(b'0', b"share/thing/m", "rw-r--r", "00000000000", b"", b""),
            "share/thing/m",
            "no mode",
        ),
        (
            "file twice",
            t().file("share/thing/f", "x").file("share/thing/f", "y"),
            "share/thing/f",
            "already exists",
        ),
        (
            "file over a directory",
            t().dir("share/thing/d").file("share/thing/d", "x"),
            "share/thing/d",
            "already exists",
        ),
        (
            "file over a link",
            t().link("share/thing/l", "f").file("share/thing/l", "x"),
            "share/thing/l",
            "already exists",
        ),
        (
            "directory over a link",
            t().link("share/thing/l", ".").dir("share/thing/l"),
            "share/thing/l",
            "already exists",
        ),
        (
            "through a link",
            t().dir("share/thing/d")
                .link("share/thing/l", "d")
                .file("share/thing/l/f", "x"),
            "share/thing/l/f",
            "not a directory",
        ),
        (
            "through a file",
            t().file("share/thing/f", "x").file("share/thing/f/f", "x"),
            "share/thing/f/f",
            "not a directory",
        ),
        (
            "too many directories",
            t().file("share/thing/a/b/c/d/f", "x"),
            "share/thing/a/b/c/d/f",
            "more directories than the manifest has entries",
        ),
        (
            "capabilities",
            t().pax(&[("SCHILY.xattr.security.capability", "x")])
                .file("share/thing/f", "x"),
            "",
            "attribute 'SCHILY.xattr.security.capability'",
        ),
        (
            "file in place of the tree",
            Tar::default().file("share/thing", "x"),
            "share/thing",
            "the component is a tree",
        ),
        (
            "over-long segment",
            t().pax(&[("path", &format!("share/thing/{long}"))])
                .file("x", "x"),
            "xxx",
            "not a relative path",
        ),
        (
            "over-long path",
            t().pax(&[("path", &format!("share/thing/{longer}f"))])
                .file("x", "x"),
            "d/d/d",
            "not a relative path",
        ),
        (
            "over-long name header",
            t().entry(b'L', "l", 0, "", &[b'x'; 5000]),
            "",
            "too long",
        ),
        (
            "over-long attributes",
            t().entry(b'x', "l", 0, "", &[b'x'; 5000]),
            "",
            "too long",
        ),
        (
            "two names",
            t().pax(&[("path", "a")]).entry(b'L', "l", 0, "", b"b\0"),
            "",
            "two names",
        ),
        (
            "pax size",
            t().pax(&[("size", "1")]).file("share/thing/f", "x"),
            "",
            "attribute 'size'",
        ),
        (
            "pax sparse",
            t().pax(&[("GNU.sparse.major", "1")])
                .file("share/thing/f", "x"),
            "",
            "attribute 'GNU.sparse.major'",
        ),
        (
            "malformed pax",
            t().entry(b'x', "p", 0, "", b"99 path=x\n"),
            "",
            "malformed",
        ),
        (
            "more entries",
            t().file("share/thing/1", "")
                .file("share/thing/2", "")
                .file("share/thing/3", "")
                .file("share/thing/4", ""),
            "share/thing/4",
            "exceeds the manifest's 4 entries",
        ),
        (
            "more bytes",
            t().file("share/thing/1", "123456")
                .file("share/thing/2", "78901"),
            "share/thing/2",
            "manifest's 10 bytes",
        ),
        (
            "an enormous size",
            t().raw(b'0', b"share/thing/f", "0000644", "77777777777", b"", b""),
            "share/thing/f",
            "manifest's 10 bytes",
        ),
        ("fewer entries", t(), "", "1 entries instead of 4"),
        (
            "fewer bytes",
            t().file("share/thing/1", "")
                .file("share/thing/2", "")
                .file("share/thing/3", ""),
            "",
            "0 bytes of files instead of 10",
        ),
    ];
    for (what, tar, entry, why) in cases {
        let dir = tempfile::tempdir().unwrap();
        let slot = dir.path().join("slot");
        fs::create_dir(&slot).unwrap();
        let error = install(&a_tree(10, 4), &tar.gz(), &slot).expect_err(what);
        let chain = error.chain();
        assert!(chain.starts_with("unpacking thing: "), "{what}: {chain}");
        assert!(
            chain.contains(entry) && chain.contains(why),
            "{what}: {chain}"
        );
        assert_eq!(error.exit(), Exit::Refused, "{what}: {chain}");
        let outside = |path: &String| {
            !["slot", "slot/share"].contains(&path.as_str())
                && !path.starts_with("slot/share/thing")
        };
        let found = listing(dir.path());
        assert!(!found.iter().any(outside), "{what}: {found:?}");
        assert!(
            !found.iter().any(|p| p.ends_with("thing2")),
            "{what}: {found:?}"
        );
        // The first of two entries of one name is still what it was.
        for (first, content) in [("f", "x"), ("d", ""), ("l", "")] {
            let path = slot.join("share/thing").join(first);
            if fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()) {
                assert_eq!(fs::read_to_string(path).unwrap(), content, "{what}");
            }
        }
    }
}

/// What other programs than ours pack: names that begin with `./`, directories above the component's, none at all or too late,
/// attributes of all kinds, the commit that git notes, several compressed members, zeros behind them, odd names.
#[test]
fn archives_of_others_are_fine() {
    let whole = |t: Tar| t.gz();
    let f = |t: Tar| t.file("share/thing/d/f", "x");
    let usual = || Tar::default().dir("share/thing").dir("share/thing/d");
    let in_members = |at: usize| {
        let tar = f(usual()).end();
        [gz(&tar[..at]), gz(&tar[at..])].concat()
    };
    let zeros = |n: usize| [f(usual()).gz(), vec![0; n]].concat();
    let dotted = Tar::default()
        .dir("./")
        .dir("./share/")
        .dir("./share/thing/")
        .dir("./share/thing/d/")
        .file("./share/thing/d/f", "x");
    let attributes = [
        ("comment", "of somebody"),
        ("LIBARCHIVE.creationtime", "1"),
        ("SCHILY.fflags", "nodump"),
        ("SCHILY.xattr.user.mime_type", "text/plain"),
    ];
    for (what, artifact) in [
        ("dots", whole(dotted)),
        (
            "directories above",
            whole(f(Tar::default()
                .dir("share")
                .dir("share/thing")
                .dir("share/thing/d"))),
        ),
        ("no directories", whole(f(Tar::default()))),
        (
            "directories too late",
            whole(f(Tar::default()).dir("share/thing/d").dir("share/thing")),
        ),
        ("directories twice", whole(f(usual().dir("share/thing/d")))),
        ("attributes", whole(f(usual().pax(&attributes)))),
        (
            "git",
            whole(f(Tar::default().entry(
                b'g',
                "pax_global_header",
                0o666,
                "",
                b"15 comment=ab1\n",
            ))),
        ),
        ("two members", in_members(700)),
        ("a member of nothing", in_members(0)),
        ("zeros", zeros(1)),
        ("many zeros", zeros(300_000)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        install(&a_tree(1, 3), &artifact, dir.path())
            .unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
        let expected = ["share", "share/thing", "share/thing/d", "share/thing/d/f"];
        assert_eq!(listing(dir.path()), expected, "{what}");
        let mode = |path: &str| {
            fs::metadata(dir.path().join(path))
                .unwrap()
                .permissions()
                .mode()
        };
        assert_eq!(mode("share/thing/d") & 0o7777, 0o755, "{what}");
    }
    let dir = tempfile::tempdir().unwrap();
    let odd = usual().file("share/thing/dev-disk-by\\x2dlabel.mount", "x");
    install(&a_tree(1, 3), &odd.gz(), dir.path()).unwrap();
    assert!(
        dir.path()
            .join("share/thing/dev-disk-by\\x2dlabel.mount")
            .exists()
    );
    // A directory that comes late has the last word on its mode, and nothing is in the way before.
    let dir = tempfile::tempdir().unwrap();
    let late = Tar::default()
        .entry(b'5', "share/thing/d", 0o500, "", b"")
        .file("share/thing/d/f", "x")
        .entry(b'5', "share/thing/d", 0o555, "", b"");
    install(&a_tree(1, 3), &late.gz(), dir.path()).unwrap();
    let mode = fs::metadata(dir.path().join("share/thing/d"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o555);
}

/// The archive of a program that holds a directory, a link, a file elsewhere, two files or none is refused: what a
/// service starts is one file.
#[test]
fn a_bin_is_one_file() {
    for (tar, why) in [
        (Tar::default().dir("share/thing"), "the component is a bin"),
        (
            Tar::default().link("share/thing", "x"),
            "the component is a bin",
        ),
        (
            Tar::default().file("share/thing/x", ""),
            "is below share/thing",
        ),
        (
            Tar::default()
                .file("share/thing", "")
                .file("share/thing", ""),
            "exceeds the manifest's 1 entries",
        ),
        (Tar::default(), "0 entries instead of 1"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = install(&component(Kind::Bin, 0, 1), &tar.gz(), dir.path()).unwrap_err();
        assert!(error.chain().contains(why), "{}", error.chain());
        assert_eq!(error.exit(), Exit::Refused);
    }
}

/// A program is not unpacked over or through what lies in its place, here a link to a precious file: whoever could lay
/// a link would have root write where it points.
#[test]
fn what_is_there_is_never_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let slot = dir.path().join("slot");
    fs::create_dir_all(slot.join("share")).unwrap();
    symlink(&victim, slot.join("share/thing")).unwrap();
    let tar = Tar::default().file("share/thing", "evil");
    let error = install(&component(Kind::Bin, 4, 1), &tar.gz(), &slot).unwrap_err();
    assert!(
        error.chain().contains("already exists"),
        "{}",
        error.chain()
    );
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

/// An archive that inflates to more than its manifest says, where no file of it shows it, is refused, and of an
/// artifact that is too long not more than one byte beyond its length is read.
#[test]
fn a_bomb_is_stopped_at_the_declared_size() {
    struct Counted<'a>(&'a [u8], u64);
    impl Read for Counted<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read(into)?;
            self.1 += n as u64;
            Ok(n)
        }
    }
    let zeros = vec![0; 64 << 20];
    let tree = Tar::default()
        .dir("share/thing")
        .file("share/thing/f", "0123456789");
    let after_the_end = [tree.clone().end(), zeros.clone()].concat();
    let in_an_ignored_body = tree.entry(b'5', "share/thing/d", 0o755, "", &zeros).end();
    let mut members = Tar::default().dir("share/thing");
    for _ in 0..100_000 {
        members = members.pax(&[("mtime", "1")]);
    }
    for (what, archive) in [
        ("zeros after the end", after_the_end),
        ("a directory with a body", in_an_ignored_body),
        ("attributes for ever", members.end()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let artifact = gz(&archive);
        let error = install(&a_tree(10, 3), &artifact, dir.path()).expect_err(what);
        assert!(
            error
                .chain()
                .contains("more data than the manifest declares"),
            "{what}: {}",
            error.chain()
        );
        assert_eq!(error.exit(), Exit::Refused);
    }

    // Compressed size is bounded before anything else: what is beyond it is not even read.
    let dir = tempfile::tempdir().unwrap();
    let artifact = gz(&Tar::default().dir("share/thing").end());
    let longer = [artifact.clone(), vec![b'x'; 1 << 20]].concat();
    let mut counted = Counted(&longer, 0);
    let (length, digest) = (artifact.len() as u64, Digest::of(&artifact));
    let error = unpack::unpack(
        &a_tree(0, 1),
        &mut counted,
        length,
        &digest,
        dir.path(),
        &mut |_| {},
    );
    let error = error.unwrap_err();
    assert!(
        error
            .chain()
            .contains(&format!("longer than {length} bytes")),
        "{}",
        error.chain()
    );
    assert_eq!((error.exit(), counted.1), (Exit::Refused, length + 1));
}

/// An archive that is cut, garbled or followed by something is refused, though its digest is right, with what is wrong
/// with it: a publisher finds the fault of the packing by that.
#[test]
fn damage_is_told_as_what_it_is() {
    let tree = Tar::default()
        .dir("share/thing")
        .file("share/thing/f", "0123456789");
    let good = tree.clone().gz();
    let truncated_tar = gz(&tree.0[..512 + 512 + 4]);
    let mut checksum = good.clone();
    let end = checksum.len();
    checksum[end - 8] ^= 1;
    let mut wrong_sum = tree.clone();
    wrong_sum.0[0] ^= 1;
    for (what, artifact, why) in [
        (
            "trailing garbage",
            [&good[..], b"x"].concat(),
            "there is data after",
        ),
        (
            "cut compression",
            good[..good.len() - 9].to_vec(),
            "reading the archive",
        ),
        (
            "cut checksum",
            good[..good.len() - 4].to_vec(),
            "reading the archive",
        ),
        ("wrong checksum", checksum, "reading the archive"),
        ("cut tar", truncated_tar, "ends in the middle of a file"),
        (
            "cut tar header",
            gz(&tree.0[..512 + 100]),
            "reading the archive",
        ),
        ("wrong header checksum", wrong_sum.gz(), "checksum mismatch"),
        (
            "not gzip",
            b"PK\x03\x04 and so on".to_vec(),
            "reading the archive",
        ),
        ("nothing", Vec::new(), "reading the archive"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = install(&a_tree(10, 2), &artifact, dir.path()).expect_err(what);
        assert!(error.chain().contains(why), "{what}: {}", error.chain());
        assert_eq!(error.exit(), Exit::Refused, "{what}");
    }
    let dir = tempfile::tempdir().unwrap();
    install(&a_tree(10, 2), &good, dir.path()).unwrap();
}

/// Wherever a byte was changed, and whatever that did to the archive: it is the digest that is wrong.
#[test]
fn tampering_is_told_by_the_digest() {
    let tree = Tar::default()
        .dir("share/thing")
        .file("share/thing/f", "0123456789");
    let good = tree.gz();
    let (length, digest) = (good.len() as u64, Digest::of(&good));
    for at in 0..good.len() {
        let dir = tempfile::tempdir().unwrap();
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let result = unpack::unpack(
            &a_tree(10, 2),
            &bad[..],
            length,
            &digest,
            dir.path(),
            &mut |_| {},
        );
        let error = result.expect_err("a changed byte");
        assert!(
            error.chain().contains("the artifact's digest is"),
            "{at}: {}",
            error.chain()
        );
        assert_eq!(error.exit(), Exit::Refused);
    }
    let dir = tempfile::tempdir().unwrap();
    let short = &good[..good.len() - 1];
    let result = unpack::unpack(
        &a_tree(10, 2),
        short,
        length,
        &digest,
        dir.path(),
        &mut |_| {},
    );
    let error = result.unwrap_err().chain();
    assert!(
        error.contains(&format!("ends after {} of {length} bytes", length - 1)),
        "{error}"
    );
}

/// A disk or medium that cannot be read is told as that, as a failure and not as a refusal of the release, and is not
/// hidden by a digest that is wrong in consequence.
#[test]
fn a_source_that_cannot_be_read_is_not_the_archives_fault() {
    /// Once only: nothing is read again in the hope of a better answer.
    struct Broken(bool);
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            match std::mem::replace(&mut self.0, true) {
                false => Err(rustix::io::Errno::IO.into()),
                true => Ok(0),
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"");
    let broken = Broken(false);
    let error = unpack::unpack(&a_tree(0, 1), broken, 10, &digest, dir.path(), &mut |_| {});
    let error = error.unwrap_err();
    assert_eq!(error.exit(), Exit::Failed, "{}", error.chain());
    assert!(
        error.chain().contains("Input/output error"),
        "{}",
        error.chain()
    );
}
