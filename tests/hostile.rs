//! Every wrong thing in every place: archives and answers of servers that are made by rule, thousands of each, and not by example.
//! Whatever comes, nothing outside of its place is touched, what is refused is refused in one line, and the next try succeeds.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::counted::counted;
use qx_release::digest::Digest;
use qx_release::error::{Error, ErrorKind};
use qx_release::manifest::Kind;
use qx_release::trust::clock::Clock;
use qx_update::acquire::unpack;
use qx_update::fetch::{Options, Source};

/// A header of 512 bytes, whatever it is told to say, with the right checksum.
#[derive(Clone)]
struct Header {
    kind: u8,
    name: Vec<u8>,
    prefix: Vec<u8>,
    link: Vec<u8>,
    mode: Vec<u8>,
    size: Vec<u8>,
}

impl Header {
    fn new(kind: u8, name: &[u8]) -> Header {
        Header {
            kind,
            name: name.to_owned(),
            prefix: Vec::new(),
            link: Vec::new(),
            mode: b"0000755\0".to_vec(),
            size: b"00000000000\0".to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut header = vec![0; 512];
        let mut put = |at: usize, most: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(most)];
            header[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, 100, &self.name);
        put(100, 8, &self.mode);
        put(108, 8, b"0000000\0");
        put(116, 8, b"0000000\0");
        put(124, 12, &self.size);
        put(136, 12, b"00000000000\0");
        put(148, 8, b"        ");
        put(156, 1, &[self.kind]);
        put(157, 100, &self.link);
        put(257, 8, b"ustar\x0000");
        put(345, 155, &self.prefix);
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

/// An entry with its body.
fn entry(header: &Header, body: &[u8]) -> Vec<u8> {
    let size = format!("{:011o}\0", body.len()).into_bytes();
    let mut bytes = Header {
        size,
        ..header.clone()
    }
    .bytes();
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A record of a pax header.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let bare = key.len() + value.len() + 3;
    let length = (bare..)
        .find(|length| bare + length.to_string().len() == *length)
        .unwrap();
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend(value);
    record.push(b'\n');
    record
}

/// The ways in which a name can be said: by the header, by its prefix, by what stands in front of it.
fn named(kind: u8, name: &[u8], link: &[u8], body: &[u8]) -> Vec<Vec<u8>> {
    let plain = Header {
        link: link.to_owned(),
        ..Header::new(kind, name)
    };
    let other = Header {
        name: b"share/thing/harmless".to_vec(),
        link: b"harmless".to_vec(),
        ..plain.clone()
    };
    let mut ways = vec![entry(&plain, body)];
    if let Some(at) = name.iter().rposition(|byte| *byte == b'/') {
        let split = Header {
            prefix: name[..at].to_owned(),
            name: name[at + 1..].to_owned(),
            ..plain
        };
        ways.push(entry(&split, body));
    }
    let long = |kind: u8, text: &[u8]| {
        let text = [text, b"\0"].concat();
        entry(&Header::new(kind, b"././@LongLink"), &text)
    };
    ways.push([long(b'L', name), long(b'K', link), entry(&other, body)].concat());
    for kind in [b'x', b'g', b'X'] {
        let records = [record("path", name), record("linkpath", link)].concat();
        let header = entry(&Header::new(kind, b"pax"), &records);
        ways.push([header, entry(&other, body)].concat());
    }
    ways
}

/// A place to unpack in, and what must not change around it.
struct Place(tempfile::TempDir, AtomicUsize);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap(), AtomicUsize::new(0));
        fs::create_dir_all(place.slot().join("share")).unwrap();
        fs::write(place.slot().join("share/neighbour"), "neighbour").unwrap();
        fs::write(place.0.path().join("secret"), "secret").unwrap();
        place
    }

    fn slot(&self) -> std::path::PathBuf {
        self.0.path().join("slot")
    }

    /// How many archives it held.
    fn held(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    /// Unpacks it, looks at what became of it, and clears it away.
    #[track_caller]
    fn hold(&self, kind: Kind, tar: &[u8]) -> Result<(), Error> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        gzip.write_all(tar).unwrap();
        self.hold_artifact(kind, &gzip.finish().unwrap())
    }

    #[track_caller]
    fn hold_artifact(&self, kind: Kind, artifact: &[u8]) -> Result<(), Error> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let component = crate::unpack::component(kind, 4, 3);
        let (length, digest) = (artifact.len() as u64, Digest::of(artifact));
        let slot = self.slot();
        let unpacked = unpack::unpack(&component, artifact, length, &digest, &slot, &mut |_| {});
        let mut found = Found::default();
        let place = slot.join("share/thing");
        found.look(&place, &place);
        assert!(
            found.entries <= component.entries,
            "{} entries",
            found.entries
        );
        assert!(found.bytes <= component.size_bytes, "{} bytes", found.bytes);
        match &unpacked {
            Ok(()) => {
                let all = (component.entries, component.size_bytes);
                assert_eq!((found.entries, found.bytes), all);
            }
            Err(e) => {
                let line = e.chain();
                assert_eq!(e.kind, ErrorKind::Publisher, "{line}");
                assert!(line.starts_with("unpacking thing: "), "{line}");
                assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
            }
        }
        remove(&place);
        let left: BTreeSet<String> = ["", "slot", "slot/share"]
            .into_iter()
            .flat_map(|at| fs::read_dir(self.0.path().join(at)).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let before = ["neighbour", "secret", "share", "slot"].map(str::to_owned);
        assert_eq!(left, BTreeSet::from(before));
        for (path, text) in [("slot/share/neighbour", "neighbour"), ("secret", "secret")] {
            let path = self.0.path().join(path);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let mode = fs::metadata(&path).unwrap().mode();
            assert_eq!(mode & 0o7000, 0, "{}", path.display());
        }
        unpacked
    }
}

fn remove(place: &Path) {
    match fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(place).unwrap(),
        Ok(_) => fs::remove_file(place).unwrap(),
        Err(_) => {}
    }
}

#[derive(Default)]
struct Found {
    entries: u64,
    bytes: u64,
}

impl Found {
    fn look(&mut self, path: &Path, top: &Path) {
        let Ok(found) = fs::symlink_metadata(path) else {
            return;
        };
        self.entries += 1;
        let kind = found.file_type();
        assert!(!kind.is_char_device() && !kind.is_block_device() && !kind.is_fifo());
        assert_eq!(found.mode() & 0o7000, 0, "{}", path.display());
        if found.is_symlink() {
            // Where it leads to something at all, that is inside.
            let inside = fs::canonicalize(path).map(|real| real.starts_with(top));
            assert!(inside.unwrap_or(true), "{}", path.display());
            assert!(fs::read_link(path).unwrap().is_relative());
        } else if found.is_dir() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
            for entry in fs::read_dir(path).unwrap() {
                self.look(&entry.unwrap().path(), top);
            }
        } else {
            assert_eq!(found.nlink(), 1, "{}", path.display());
            self.bytes += found.len();
        }
    }
}

/// Names, and where links lead to: up, away, and what somebody might take for that.
fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "",
        ".",
        "..",
        "/",
        "//",
        "./",
        "../",
        "x",
        "share",
        "share/",
        "share/thing",
        "share/thing/",
        "share/thing/x",
        "share/thing//x",
        "share/thing/./x",
        "share/thing/../x",
        "share/thing/x/..",
        "share/thing/x/../../y",
        "share/thing/x/../../../y",
        "share/thing/../../secret",
        "../secret",
        "../../secret",
        "share/neighbour",
        "./share/neighbour",
        "share/../share/neighbour",
        "/etc/passwd",
        "//share/thing/x",
        "share/thing/...",
        "share/thing/..x",
        "share/thing/x..",
        "share/thing/ ",
        "share/thing/.. ",
        "share/thing/x\n",
        "share/thing/x\r\u{1b}[2J",
        "share/thing/x\u{202e}y",
        "share/thing\\..\\..\\secret",
        "C:\\secret",
        "share/thing/NUL",
        "share/thing/x:y",
        "Share/Thing/x",
        "SHARE/THING/X",
        "share/thing/\u{e9}",
        "share/thing/e\u{301}",
        "share/thing/\u{2025}/x",
        "share/thing/\u{ff0e}\u{ff0e}/x",
        "share\u{2215}thing",
        "share/thing/%2e%2e/x",
        "share/thing/-rf",
        "share/thing/x/y/z/a/b/c/d",
        "share/thingx",
        "share/thing.tar",
        "~/x",
        "$HOME/x",
        "harmless",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.push(b"share/thing/\xff\xfe".to_vec());
    names.push(b"share/thing/x\0/../../secret".to_vec());
    names.push([b"share/thing/".to_vec(), vec![b'n'; 255]].concat());
    names.push([b"share/thing/".to_vec(), vec![b'n'; 256]].concat());
    names.push([b"share/thing/".to_vec(), b"d/".repeat(2100)].concat());
    names.push(b"../".repeat(1500));
    names
}

/// Intent: whatever an entry is, whatever it is called and however that is said, alone or after a link or a directory of the same
/// name, nothing outside of its place is made, read or changed.
#[test]
fn entries_of_every_kind_with_every_name() {
    let place = Place::new();
    let (mut tried, mut taken) = (0, 0);
    let mut hold = |kind: Kind, tar: Vec<u8>| {
        let tar = [tar, vec![0; 1024]].concat();
        tried += 1;
        taken += usize::from(place.hold(kind, &tar).is_ok());
    };
    let kinds = [
        0, b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7', b'S', b'V', b'M', b'D', b'A', b'I',
        b'N', b'E',
    ];
    let names = names();
    for kind in kinds {
        for name in &names {
            for way in named(kind, name, b"../../secret", b"") {
                hold(Kind::Tree, way.clone());
                hold(Kind::Bin, way);
            }
        }
    }
    // Every type that there could be, with a body.
    for kind in 0..=255 {
        for name in [&b"share/thing"[..], b"share/thing/x"] {
            hold(Kind::Tree, entry(&Header::new(kind, name), b"body"));
            hold(Kind::Bin, entry(&Header::new(kind, name), b"body"));
        }
    }
    // A link, and something through it: once, twice, over the top.
    let top = entry(&Header::new(b'5', b"share/thing/"), b"");
    for target in &names {
        for way in named(b'2', b"share/thing/l", target, b"") {
            for (kind, name) in [
                (b'0', &b"share/thing/l/x"[..]),
                (b'5', b"share/thing/l"),
                (b'0', b"share/thing/l"),
            ] {
                let through = entry(&Header::new(kind, name), b"");
                hold(Kind::Tree, [top.clone(), way.clone(), through].concat());
            }
        }
        for way in named(b'2', b"share/thing", target, b"") {
            let through = entry(&Header::new(b'0', b"share/thing/x"), b"body");
            hold(Kind::Tree, [way, through].concat());
        }
    }
    // The same name twice, as each two kinds; and names that some file systems take for the same.
    for first in kinds {
        for second in kinds {
            for (one, other) in [
                ("x", "x"),
                ("x", "X"),
                ("\u{e9}", "e\u{301}"),
                ("x", "x/y"),
                ("x/y", "x"),
            ] {
                let name = |name: &str| format!("share/thing/{name}").into_bytes();
                let link = |kind, name: Vec<u8>| Header {
                    link: b"x".to_vec(),
                    ..Header::new(kind, &name)
                };
                let both = [
                    entry(&link(first, name(one)), b""),
                    entry(&link(second, name(other)), b""),
                ];
                hold(Kind::Tree, [top.clone(), both.concat()].concat());
            }
        }
    }
    counted(
        "hostile/archives with every kind of entry and name",
        format!("{tried}, {taken} of them unpacked"),
    );
    assert!(tried > 15_000 && taken > 0, "{tried}, {taken}");
}

/// An honest archive of a tree: a directory, a link, and a file of four bytes.
fn honest() -> Vec<u8> {
    let link = Header {
        link: b"x".to_vec(),
        ..Header::new(b'2', b"share/thing/l")
    };
    let parts = [
        entry(&Header::new(b'5', b"share/thing/"), b""),
        entry(&Header::new(b'0', b"share/thing/x"), b"body"),
        entry(&link, b""),
        vec![0; 1024],
    ];
    parts.concat()
}

/// Intent: an archive that ends anywhere, or in which any bit is another, is unpacked as it should be or refused; of what it says
/// of lengths nothing is believed.
#[test]
fn archives_cut_and_damaged_anywhere() {
    let place = Place::new();
    let tar = honest();
    place.hold(Kind::Tree, &tar).unwrap();
    for end in 0..tar.len() {
        let cut = place.hold(Kind::Tree, &tar[..end]);
        // The zeros at the end say nothing.
        assert!(
            cut.is_err() || end >= tar.len() - 1024,
            "cut after {end} bytes"
        );
    }
    let headers = (0..4).map(|number| number * 512);
    for at in headers
        .flat_map(|start| start..start + 512)
        .filter(|at| *at < tar.len())
    {
        for bit in 0..8 {
            let mut damaged = tar.clone();
            damaged[at] ^= 1 << bit;
            let _ = place.hold(Kind::Tree, &damaged);
            // With the right checksum over what is wrong.
            let start = at / 512 * 512;
            if at - start < 148 || at - start >= 156 {
                damaged[start + 148..start + 156].fill(b' ');
                let sum: u32 = damaged[start..start + 512]
                    .iter()
                    .map(|b| u32::from(*b))
                    .sum();
                damaged[start + 148..start + 156]
                    .copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                let _ = place.hold(Kind::Tree, &damaged);
            }
        }
    }
    for size in [
        "77777777777\0",
        "7777777777777",
        "-0000000001\0",
        "00000000004 ",
        "           4",
        "4\0\0\0\0\0\0\0\0\0\0\0",
        "\0",
        "0x4\0",
        "4e9\0",
        "00000001000\0",
    ] {
        let mut header = Header::new(b'0', b"share/thing/x");
        header.size = size.as_bytes().to_vec();
        let _ = place.hold(
            Kind::Tree,
            &[header.bytes(), vec![b'b'; 512], vec![0; 1024]].concat(),
        );
    }
    // Lengths in base 256: negative, and beyond all files.
    for first in [0x80u8, 0xff, 0xc0, 0x81] {
        let mut header = Header::new(b'0', b"share/thing/x");
        header.size = [vec![first], vec![0xff; 11]].concat();
        assert!(
            place
                .hold(Kind::Tree, &[header.bytes(), vec![0; 2048]].concat())
                .is_err()
        );
    }
    for mode in [
        "0004755\0",
        "0002755\0",
        "0001777\0",
        "7777777\0",
        "-000001\0",
        "        ",
        "0000000\0",
        "\u{ff}\u{ff}\u{ff}\u{ff}",
    ] {
        for kind in [b'0', b'5'] {
            let mut header = Header::new(kind, b"share/thing/x");
            header.mode = mode.as_bytes().to_vec();
            let _ = place.hold(Kind::Tree, &[header.bytes(), vec![0; 1024]].concat());
        }
    }
    counted(
        "hostile/archives cut or damaged at every byte",
        place.held(),
    );
}

/// Intent: compressed data that ends anywhere, or in which any bit is another, is refused; what follows it, and how often, too.
#[test]
fn compressed_data_cut_and_damaged_anywhere() {
    let place = Place::new();
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let artifact = gzip(&honest());
    place.hold_artifact(Kind::Tree, &artifact).unwrap();
    for end in 0..artifact.len() {
        let cut = place.hold_artifact(Kind::Tree, &artifact[..end]);
        assert!(cut.is_err(), "cut after {end} bytes");
    }
    for at in 0..artifact.len() {
        for bit in 0..8 {
            let mut damaged = artifact.clone();
            damaged[at] ^= 1 << bit;
            let _ = place.hold_artifact(Kind::Tree, &damaged);
        }
    }
    // Bombs: zeros, a nested one, many members, a name that never ends, extra fields.
    let zeros = gzip(&vec![0; 8 << 20]);
    let bombs = [
        zeros.clone(),
        gzip(&zeros),
        zeros.repeat(50),
        gzip(b"").repeat(100_000),
        [
            &[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0][..],
            &vec![b'n'; 1 << 20],
        ]
        .concat(),
        [
            &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0, 0xff, 0xff][..],
            &vec![0; 65_535],
        ]
        .concat(),
        [artifact.clone(), zeros].concat(),
        gzip(&entry(
            &Header::new(b'x', b"pax"),
            &record("comment", &vec![b'c'; 1 << 20]),
        )),
        gzip(&entry(&Header::new(b'L', b"long"), &vec![b'n'; 1 << 20])),
        gzip(
            &entry(
                &Header::new(b'g', b"pax"),
                &record("path", b"share/thing/x"),
            )
            .repeat(5000),
        ),
    ];
    for (number, bomb) in bombs.iter().enumerate() {
        let refused = place.hold_artifact(Kind::Tree, bomb);
        assert!(refused.is_err(), "bomb {number}");
    }
    counted(
        "hostile/compressed data cut or damaged at every byte, bombs",
        place.held(),
    );
}

/// What a server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// It closes the connection.
    Closes,
    /// It resets it.
    Resets,
    /// It leaves a byte out.
    Loses,
    /// It says one twice.
    Doubles,
    /// It says another one.
    Flips,
    /// It says one more.
    Adds(u8),
    /// It says nothing more, and stays.
    Stalls,
}

impl Wrong {
    /// Answers, and does that at this byte.
    fn answer(self, mut stream: &TcpStream, answer: &[u8], at: usize) -> std::io::Result<()> {
        let (before, after) = answer.split_at(at);
        let rest = &after[after.len().min(1)..];
        match self {
            Wrong::Closes | Wrong::Resets | Wrong::Stalls => stream.write_all(before)?,
            Wrong::Loses => stream.write_all(&[before, rest].concat())?,
            Wrong::Doubles => stream.write_all(&[before, &after[..1], after].concat())?,
            Wrong::Flips => stream.write_all(&[before, &[after[0] ^ 0x20], rest].concat())?,
            Wrong::Adds(byte) => stream.write_all(&[before, &[byte], after].concat())?,
        }
        stream.flush()?;
        if self == Wrong::Stalls {
            // The client gives up first.
            let _ = stream.read(&mut [0; 16]);
        }
        Ok(())
    }
}

/// Reads a request, and says from which byte on it asks.
fn asked(mut stream: &TcpStream) -> std::io::Result<usize> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut buffer = [0; 2048];
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let request = String::from_utf8_lossy(&request).to_lowercase();
    let range = request.split_once("range: bytes=").map(|(_, rest)| rest);
    let from = range.and_then(|rest| rest.split('-').next()?.parse().ok());
    Ok(from.unwrap_or(0))
}

const BODY: &[u8] = b"what is fetched, and every byte of it is another, or nearly: 0123456789";

/// The ways to say where a body ends.
fn answers() -> [Vec<u8>; 3] {
    let length = BODY.len();
    let (first, second) = BODY.split_at(30);
    let chunks: Vec<u8> = [first, second]
        .iter()
        .flat_map(|part| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat())
        .collect();
    [
        [
            format!("HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: {length}\r\n\r\n").as_bytes(),
            BODY,
        ]
        .concat(),
        [
            &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
            &chunks,
            b"0\r\nT: t\r\n\r\n",
        ]
        .concat(),
        [&b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n"[..], BODY].concat(),
    ]
}

fn options(stall: Duration) -> Options {
    let now = std::time::SystemTime::now();
    let mut options = Options::new(Clock::new(now, now));
    options.patience.retries = 0;
    options.patience.stall_timeout = stall;
    options
}

/// What is done wrong at one byte of one answer; then the server is asked again, and answers well.
fn wrong_once(answer: &[u8], wrong: Wrong, at: usize, downloads: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let digest = Digest::of(BODY);
    let stall = match wrong {
        Wrong::Stalls => Duration::from_millis(300),
        _ => Duration::from_secs(30),
    };
    let case = format!(
        "{wrong:?} at byte {at} of {:?}",
        String::from_utf8_lossy(answer)
    );
    let get = |options: &Options| {
        let source = Source::open(url.as_str(), options).unwrap();
        let length = BODY.len() as u64;
        source.artifact("file", length, &digest, downloads, &mut |_| {})
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let spoilt = scope.spawn(|| {
            // Whatever the client asks in this try, it gets the same.
            while let Ok((stream, _)) = listener.accept() {
                if done.load(Ordering::SeqCst) {
                    return Some(stream);
                }
                if asked(&stream).is_ok() {
                    if wrong == Wrong::Resets {
                        // What was not read when it is closed makes it a reset.
                        let linger =
                            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
                        linger.unwrap();
                    }
                    let _ = wrong.answer(&stream, answer, at);
                }
            }
            None
        });
        let first = get(&options(stall));
        done.store(true, Ordering::SeqCst);
        if let Ok(artifact) = first {
            holds(artifact, &case);
        }
        // Wakes the server.
        let _ = TcpStream::connect(listener.local_addr().unwrap());
        spoilt.join().unwrap();
    });
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok((mut stream, _)) = listener.accept() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // Who asks for nothing is of the try before, and was late.
                let Ok(from) = asked(&stream) else {
                    continue;
                };
                let (length, body) = (BODY.len(), &BODY[from.min(BODY.len())..]);
                let head = match from {
                    0 => format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"),
                    _ => format!(
                        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{length}\r\n\
                         Content-Length: {}\r\nConnection: close\r\n\r\n",
                        length - 1,
                        body.len()
                    ),
                };
                let _ = stream.write_all(&[head.as_bytes(), body].concat());
            }
        });
        let second = get(&options(Duration::from_secs(30)));
        over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(listener.local_addr().unwrap());
        match second {
            Ok(artifact) => holds(artifact, &case),
            Err(e) => panic!("{case}: the next try: {}", e.chain()),
        }
    });
}

#[track_caller]
fn holds(mut artifact: impl Read, case: &str) {
    let mut bytes = Vec::new();
    artifact.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, BODY, "{case}");
}

/// Intent: whatever a server does wrong, at whichever byte of its answer, what comes of it is the file or nothing, and the next try
/// with an honest server succeeds.
#[test]
fn a_server_that_does_each_wrong_thing_at_each_byte() {
    let mut cases = Vec::new();
    for answer in answers() {
        for at in 0..answer.len() {
            let mut all = vec![
                Wrong::Closes,
                Wrong::Resets,
                Wrong::Loses,
                Wrong::Doubles,
                Wrong::Flips,
            ];
            all.extend([0, b'\n', b' ', b'9', 0xff].map(Wrong::Adds));
            // It takes its time.
            if at % 11 == 0 {
                all.push(Wrong::Stalls);
            }
            cases.extend(all.into_iter().map(|wrong| (answer.clone(), wrong, at)));
        }
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some((answer, wrong, at)) = cases.get(next.fetch_add(1, Ordering::SeqCst))
                {
                    let downloads = tempfile::tempdir().unwrap();
                    let try_it = || wrong_once(answer, *wrong, *at, downloads.path());
                    if let Err(why) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(try_it))
                    {
                        let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
                        failed.lock().unwrap().push(why);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    counted(
        "hostile/answers of a server, wrong at one byte",
        cases.len(),
    );
    assert!(cases.len() > 3000);
}
