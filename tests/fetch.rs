//! Downloads from a web server that misbehaves in every way that was thought of, on loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use qx_release::digest::Digest;
use qx_release::error::{Error, Exit};
use qx_release::trust::clock::Clock;
use qx_update::fetch::{self, Options, Patience, Source};

/// What a request asked for: its path, and the first byte of its range.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    path: String,
    from: Option<usize>,
}

struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `answer` is given the number of the request, counted from 0. The connection is closed after it.
    fn start(answer: impl Fn(usize, &Asked, &mut TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = read_request(&mut stream);
                let number = {
                    let mut log = log.lock().unwrap();
                    log.push(request.clone());
                    log.len() - 1
                };
                let answer = answer.clone();
                std::thread::spawn(move || answer(number, &request, &mut stream));
            }
        });
        Server { url, asked }
    }

    /// The first bytes that were asked for, request by request.
    fn ranges(&self) -> Vec<Option<usize>> {
        self.asked.lock().unwrap().iter().map(|a| a.from).collect()
    }

    fn source(&self) -> Source {
        Source::open(&self.url, &options()).unwrap()
    }
}

/// A clock that is set.
fn clock() -> Clock {
    Clock::new(SystemTime::now(), SystemTime::now())
}

fn patience() -> Patience {
    Patience {
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(4),
        small_timeout: Duration::from_secs(60),
        slowest: 1,
        fastest: None,
        retries: 2,
    }
}

fn options() -> Options {
    Options {
        patience: patience(),
        ..Options::new(clock())
    }
}

fn read_request(stream: &mut TcpStream) -> Asked {
    let mut lines = BufReader::new(stream)
        .lines()
        .map(|l| l.unwrap_or_default());
    let first = lines.next().unwrap_or_default();
    let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
    let range = headers
        .iter()
        .find_map(|h| h.strip_prefix("Range: bytes=")?.strip_suffix('-'));
    Asked {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        from: range.map(|r| r.parse().unwrap()),
    }
}

/// The client may be gone before all is said.
fn say(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    let _ = stream.write_all(bytes.as_ref());
}

/// What a good server answers; `cut` bytes of the body at most.
fn serve(stream: &mut TcpStream, asked: &Asked, content: &[u8], cut: usize) {
    let total = content.len();
    let body = &content[asked.from.unwrap_or(0)..];
    match asked.from {
        None => say(
            stream,
            format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n"),
        ),
        Some(from) => say(
            stream,
            format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{total}\r\n\r\n",
                body.len(),
                total - 1
            ),
        ),
    }
    say(stream, &body[..cut.min(body.len())]);
}

fn content() -> Vec<u8> {
    content_of(1_200_000)
}

fn content_of(bytes: u32) -> Vec<u8> {
    (0..bytes / 4)
        .flat_map(|n| (n ^ (n >> 7)).to_le_bytes())
        .collect()
}

fn download(source: &Source, content: &[u8], downloads: &Path) -> Result<Vec<u8>, Error> {
    let mut seen = 0;
    let mut file = source.artifact(
        "targets/x.tar.gz",
        content.len() as u64,
        &Digest::of(content),
        downloads,
        &mut |bytes| seen = bytes,
    )?;
    assert_eq!(seen, content.len() as u64, "the last progress is all of it");
    let mut got = Vec::new();
    file.read_to_end(&mut got).unwrap();
    Ok(got)
}

fn part(downloads: &Path, content: &[u8]) -> std::path::PathBuf {
    downloads.join(format!("{}.part", Digest::of(content)))
}

fn complete(downloads: &Path, content: &[u8]) -> std::path::PathBuf {
    downloads.join(Digest::of(content).to_string())
}

/// An appliance downloads an artifact once, and again only if what it kept is not what was signed: a slow line is not
/// paid for twice, and a damaged file not believed.
#[test]
fn a_download_is_kept_and_not_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, asked, stream| serve(stream, asked, &body, usize::MAX));
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    assert_eq!(server.ranges(), [None]);
    assert!(!part(dir.path(), &content).exists());

    // What lies there is checked, not believed.
    fs::write(complete(dir.path(), &content), vec![0; content.len()]).unwrap();
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    assert_eq!(server.ranges(), [None, None]);
}

/// An appliance on a line that breaks again and again gets the whole artifact without asking for any byte twice, as
/// often as there is progress.
#[test]
fn a_cut_transfer_goes_on_where_it_was_cut_however_often() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, asked, stream| serve(stream, asked, &body, 300_000));
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    let asked = [None, Some(300_000), Some(600_000), Some(900_000)];
    assert_eq!(server.ranges(), asked);
}

/// What an updater that was killed had downloaded is not downloaded again, be it a part or all of it: an appliance that
/// loses power often gets there too.
#[test]
fn what_a_killed_process_left_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, asked, stream| serve(stream, asked, &body, usize::MAX));
    fs::write(part(dir.path(), &content), &content[..700_000]).unwrap();
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    assert_eq!(server.ranges(), [Some(700_000)]);

    // All of it was there, only not yet under its name.
    fs::rename(complete(dir.path(), &content), part(dir.path(), &content)).unwrap();
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    assert_eq!(server.ranges(), [Some(700_000)]);
}

/// A part on the disk that is damaged or too long costs an appliance one more download and not the update.
#[test]
fn a_damaged_or_over_long_part_is_begun_anew() {
    let content = content();
    let mut damaged = content[..700_000].to_vec();
    damaged[5] ^= 1;
    let longer = [&content[..], b"x"].concat();
    for (left, asked) in [(damaged, vec![Some(700_000), None]), (longer, vec![None])] {
        let dir = tempfile::tempdir().unwrap();
        let body = content.clone();
        let server = Server::start(move |_, asked, stream| serve(stream, asked, &body, usize::MAX));
        fs::write(part(dir.path(), &content), left).unwrap();
        assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
        assert_eq!(server.ranges(), asked);
    }
}

/// A link that somebody laid in the place of a part is an error, and the file that it points to stays as it was: the
/// updater writes as root.
#[test]
fn a_link_in_place_of_a_download_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, asked, stream| serve(stream, asked, &body, usize::MAX));
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, part(dir.path(), &content)).unwrap();
    download(&server.source(), &content, dir.path()).unwrap_err();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

/// An appliance whose web server knows no ranges gets the artifact all the same, from the first byte, and not one that
/// is two beginnings joined.
#[test]
fn a_server_without_ranges_is_asked_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |number, asked, stream| {
        let asked = Asked {
            from: None,
            ..asked.clone()
        };
        serve(
            stream,
            &asked,
            &body,
            if number == 0 { 500_000 } else { usize::MAX },
        );
    });
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    assert_eq!(server.ranges(), [None, Some(500_000)]);
}

/// A server that always begins anew and always cuts at the same place ends in an error after as many tries as are set,
/// and does not keep the appliance downloading for ever.
#[test]
fn starting_again_for_ever_is_no_progress() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, asked, stream| {
        let asked = Asked {
            from: None,
            ..asked.clone()
        };
        serve(stream, &asked, &body, 500_000);
    });
    let error = download(&server.source(), &content, dir.path()).unwrap_err();
    assert!(error.chain().contains("early"), "{}", error.chain());
    // The first got somewhere; two more tries did not get further.
    assert_eq!(server.ranges().len(), 3);
}

/// An artifact from a server that tells no length is not whole because the connection ended: it is asked for again, and
/// then an error.
#[test]
fn a_body_without_a_length_that_ends_early_is_tried_again_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, _, stream| {
        say(stream, "HTTP/1.1 200 OK\r\n\r\n");
        say(stream, &body[..1000]);
    });
    let error = download(&server.source(), &content, dir.path()).unwrap_err();
    assert!(error.chain().contains("early"), "{}", error.chain());
    assert_eq!(server.ranges().len(), 3);
}

/// A server that refuses to go on from a part is asked once more for all of it, so that a part on the disk never blocks
/// an update.
#[test]
fn nothing_beyond_the_part_begins_it_anew() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, asked, stream| match asked.from {
        Some(_) => say(stream, "HTTP/1.1 416 Range Not Satisfiable\r\n\r\n"),
        None => serve(stream, asked, &body, usize::MAX),
    });
    fs::write(part(dir.path(), &content), &content[..7]).unwrap();
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    assert_eq!(server.ranges(), [Some(7), None]);
}

/// An appliance takes an artifact from a server that sends it in chunks: that is how proxies and many servers answer.
#[test]
fn chunks_are_as_good_as_a_length() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, _, stream| {
        say(
            stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        for chunk in body.chunks(99_999) {
            say(stream, format!("{:x}\r\n", chunk.len()));
            say(stream, chunk);
            say(stream, "\r\n");
        }
        say(stream, "0\r\n\r\n");
    });
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
}

/// An error of the server or a lost connection is tried again, so that its restart does not fail an appliance's update.
#[test]
fn a_server_that_recovers_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let content = content();
    let body = content.clone();
    let server = Server::start(move |number, asked, stream| match number {
        0 => say(stream, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
        1 => {} // closes the connection at once
        _ => serve(stream, asked, &body, usize::MAX),
    });
    assert!(download(&server.source(), &content, dir.path()).unwrap() == content);
    assert_eq!(server.ranges().len(), 3);
}

/// A transfer that gets on, however slowly, may take longer than the stall time-out, and one that stands still is cut
/// and resumed: neither a thin line nor a dead one stops updates.
#[test]
fn a_slow_but_steady_transfer_lives_and_a_stalled_one_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let content = b"slow but steady".to_vec();
    let body = content.clone();
    // Altogether far longer than the stall time-out.
    let steady = Server::start(move |_, asked, stream| {
        serve(stream, asked, &body, 0);
        for byte in &body {
            say(stream, [*byte]);
            std::thread::sleep(Duration::from_millis(600));
        }
    });
    let start = Instant::now();
    assert!(download(&steady.source(), &content, dir.path()).unwrap() == content);
    assert!(start.elapsed() > patience().stall_timeout * 2);
    assert_eq!(steady.ranges(), [None]);

    let content = &content_of(40_000)[..];
    let body = content.to_vec();
    let stalled = Server::start(move |_, asked, stream| {
        serve(stream, asked, &body, 10_000);
        std::thread::sleep(Duration::from_secs(600));
    });
    assert!(download(&stalled.source(), content, dir.path()).unwrap() == content);
    // A quarter at a time: far more than the slowest that counts as progress, whatever else the machine does.
    let ranges = [None, Some(10_000), Some(20_000), Some(30_000)];
    assert_eq!(stalled.ranges(), ranges);
}

/// A server that sends its headers without end, byte by byte, is timed out, although it never stalls: it does not hold
/// the updater.
#[test]
fn a_head_that_drips_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _, stream| {
        say(stream, "HTTP/1.1 200 OK\r\nX: ");
        for _ in 0..6000 {
            say(stream, "x");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let start = Instant::now();
    let error = download(&server.source(), b"abc", dir.path()).unwrap_err();
    assert!(error.chain().ends_with("timed out"), "{}", error.chain());
    assert!(start.elapsed() < Duration::from_secs(60));
}

/// Answers that are final: one request, one sentence, and nothing under the artifact's name.
#[test]
fn lies_are_refused_at_once() {
    let cases: [(&str, &str, Option<Exit>); 10] = [
        (
            "200 OK\r\nContent-Length: 11\r\n\r\nhello world",
            "11 bytes long instead of 10",
            Some(Exit::Refused),
        ),
        (
            "200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
            "instead of 10",
            Some(Exit::Refused),
        ),
        (
            "200 OK\r\nContent-Length: 9\r\n\r\n123456789",
            "9 bytes long instead of 10",
            Some(Exit::Refused),
        ),
        (
            "200 OK\r\n\r\nhello world",
            "longer than 10 bytes",
            Some(Exit::Refused),
        ),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
            "longer than 10 bytes",
            Some(Exit::Refused),
        ),
        (
            "200 OK\r\nContent-Length: 10\r\n\r\nhello worl",
            "tampered",
            Some(Exit::Refused),
        ),
        (
            "404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "answered 404",
            None,
        ),
        (
            "416 Range\r\nContent-Length: 0\r\n\r\n",
            "answered 416",
            None,
        ),
        ("302 Found\r\n\r\n", "redirect has no Location", None),
        (
            "302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
            "refusing a redirect",
            None,
        ),
    ];
    for (answer, why, exit) in cases {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_, _, stream| say(stream, format!("HTTP/1.1 {answer}")));
        let error = download(&server.source(), b"0123456789", dir.path()).unwrap_err();
        let chain = error.chain();
        assert!(
            chain.contains(why) && chain.contains(&server.url),
            "{answer}: {chain}"
        );
        assert_eq!(error.exit(), exit.unwrap_or(Exit::Failed), "{answer}");
        assert_eq!(server.ranges().len(), 1, "{answer}");
        assert!(!complete(dir.path(), b"0123456789").exists());
        // A part that can never become right is not kept.
        let left = fs::read(part(dir.path(), b"0123456789")).unwrap_or_default();
        assert!(
            b"0123456789".starts_with(&left),
            "{answer}: {left:?} is kept"
        );
    }
}

/// Ranges that are not what was asked for: the file is asked for whole, and what is there already is not lost, even if that does
/// not help.
#[test]
fn a_wrong_range_costs_nothing() {
    for range in [
        "bytes 5-9/10",
        "bytes 4-10/10",
        "bytes 4-9/11",
        "bytes 9-4/10",
        "bytes 4-x/10",
        "bytes */10",
        "lines 4-9/10",
        "",
    ] {
        for helps in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let part = part(dir.path(), b"0123456789");
            fs::write(&part, b"0123").unwrap();
            let server = Server::start(move |_, asked, stream| match asked.from {
                None if helps => say(stream, "HTTP/1.1 200 OK\r\n\r\n0123456789"),
                _ => say(
                    stream,
                    format!("HTTP/1.1 206 Partial\r\nContent-Range: {range}\r\n\r\n456789"),
                ),
            });
            let downloaded = download(&server.source(), b"0123456789", dir.path());
            if helps {
                assert_eq!(downloaded.unwrap(), b"0123456789", "{range}");
                assert_eq!(server.ranges(), [Some(4), None], "{range}");
            } else {
                let error = downloaded.unwrap_err().chain();
                assert!(error.contains("range"), "{range}: {error}");
                // To ask without a range is none of the two further tries.
                assert_eq!(server.ranges(), [Some(4), None, None, None], "{range}");
                assert_eq!(fs::read(&part).unwrap(), b"0123", "{range}");
            }
        }
    }
}

/// Servers and caches that answer with more than was asked for: what is here already is passed over.
#[test]
fn more_than_was_asked_for_is_good_enough() {
    for (answer, asked) in [
        (
            "206 Partial\r\nContent-Range: bytes 0-9/10\r\n\r\n0123456789",
            Some(4),
        ),
        (
            "206 Partial\r\nContent-Range: bytes 2-9/*\r\n\r\n23456789",
            Some(4),
        ),
        ("200 OK\r\n\r\n0123456789", Some(4)),
        (
            "203 Transformed\r\nContent-Length: 10\r\n\r\n0123456789",
            Some(4),
        ),
        (
            "206 Partial\r\nContent-Range: bytes 0-9/10\r\n\r\n0123456789",
            None,
        ),
        ("203 Transformed\r\n\r\n0123456789", None),
        (
            "200 OK\r\nContent-Length: 10, 10\r\nContent-Encoding: gzip\r\n\r\n0123456789",
            None,
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        if asked.is_some() {
            fs::write(part(dir.path(), b"0123456789"), b"0123").unwrap();
        }
        let server = Server::start(move |_, _, stream| say(stream, format!("HTTP/1.1 {answer}")));
        let downloaded = download(&server.source(), b"0123456789", dir.path()).unwrap();
        assert_eq!(downloaded, b"0123456789", "{answer}");
        assert_eq!(server.ranges(), [asked], "{answer}");
    }
}

/// A page that asks for a password, or whatever else answers for a server, does not cost what was fetched before.
#[test]
fn another_file_costs_nothing() {
    let content = content();
    let page = "<html>Please log in</html>";
    for answer in [
        format!("200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len()),
        format!("200 OK\r\n\r\n{page}"),
        format!("200 OK\r\n\r\n{}", page.repeat(100)),
        format!("203 Portal\r\n\r\n{}", page.repeat(100)),
        format!("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1a\r\n{page}\r\n0\r\n\r\n"),
        "302 Found\r\nLocation: login:\r\n\r\n".to_owned(),
        "511 Network Authentication Required\r\nContent-Length: 0\r\n\r\n".to_owned(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let part = part(dir.path(), &content);
        fs::write(&part, &content[..1000]).unwrap();
        let said = answer.clone();
        let portal = Server::start(move |_, _, stream| say(stream, format!("HTTP/1.1 {said}")));
        download(&portal.source(), &content, dir.path()).unwrap_err();
        assert_eq!(fs::read(&part).unwrap(), &content[..1000], "{answer}");
        let body = content.clone();
        let server = Server::start(move |_, asked, stream| serve(stream, asked, &body, usize::MAX));
        let downloaded = download(&server.source(), &content, dir.path()).unwrap();
        assert!(downloaded == content, "{answer}");
        assert_eq!(server.ranges(), [Some(1000)], "{answer}");
    }
}

fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Whatever a server says of the encoding: if the bytes are right they are taken as they are, and if it really compressed them
/// they are decompressed, with a length or without, for artifacts and metadata. Tampering remains what it is.
#[test]
fn an_encoding_is_a_hint() {
    // As most artifacts are.
    let content = gzipped(&content());
    for (label, compressed) in [
        ("gzip", false),
        ("x-gzip", false),
        ("br", false),
        ("aws-chunked", false),
        ("", false),
        ("gzip", true),
        ("GZIP", true),
    ] {
        for (length, cut) in [(true, false), (false, false), (true, true)] {
            let dir = tempfile::tempdir().unwrap();
            if cut {
                fs::write(part(dir.path(), &content), &content[..1000]).unwrap();
            }
            let body = match compressed {
                true => gzipped(&content),
                false => content.clone(),
            };
            let server = Server::start(move |_, _, stream| {
                let length = match length {
                    true => format!("Content-Length: {}\r\n", body.len()),
                    false => String::new(),
                };
                say(
                    stream,
                    format!("HTTP/1.1 200 OK\r\n{length}Content-Encoding: {label}\r\n\r\n"),
                );
                say(stream, &body);
            });
            let downloaded = download(&server.source(), &content, dir.path());
            let what = format!("{label} {compressed} {length} {cut}");
            let downloaded = downloaded.unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
            assert!(downloaded == content, "{what}");
        }
    }
    let small = Server::start(move |_, _, stream| {
        say(stream, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n");
        say(stream, gzipped(b"{}"));
    });
    let small = small.source();
    assert_eq!(small.small("x", 100).unwrap(), Some(b"{}".to_vec()));
    // A small file that becomes a large one.
    let bomb = Server::start(move |_, _, stream| {
        say(stream, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n");
        say(stream, gzipped(&[0; 100_000]));
    });
    let error = bomb.source().small("x", 10_000).unwrap_err();
    assert!(error.chain().contains("longer than"), "{}", error.chain());
    let other = Server::start(move |_, _, stream| {
        say(stream, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n");
        say(stream, gzipped(b"9876543210"));
    });
    let dir = tempfile::tempdir().unwrap();
    let error = download(&other.source(), b"0123456789", dir.path()).unwrap_err();
    assert_eq!(error.exit(), Exit::Refused, "{}", error.chain());
    assert!(error.chain().contains("tampered"), "{}", error.chain());
}

/// A transfer that the server compresses on the way breaks: what an appliance keeps of it is of the file, and the next update goes
/// on with it, with no try to spare, also where the bytes of a range come compressed.
#[test]
fn a_compressed_transfer_that_breaks_is_gone_on_with() {
    let content = gzipped(&content());
    for ranges in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let body = content.clone();
        let server = Server::start(move |number, asked, stream| {
            let from = asked.from.filter(|_| ranges).unwrap_or(0);
            let compressed = gzipped(&body[from..]);
            let status = match from {
                0 => "200 OK".to_owned(),
                _ => {
                    let (last, total) = (body.len() - 1, body.len());
                    format!("206 Partial\r\nContent-Range: bytes {from}-{last}/{total}")
                }
            };
            say(
                stream,
                format!(
                    "HTTP/1.1 {status}\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
                    compressed.len()
                ),
            );
            match number {
                0 => say(stream, &compressed[..compressed.len() / 2]),
                _ => say(stream, [&compressed, &b"\r\n0\r\n\r\n"[..]].concat()),
            }
        });
        let mut options = options();
        options.patience.retries = 0;
        let source = || Source::open(&server.url, &options).unwrap();
        download(&source(), &content, dir.path()).unwrap_err();
        let kept = fs::read(part(dir.path(), &content)).unwrap();
        assert!(!kept.is_empty() && content.starts_with(&kept));
        assert!(download(&source(), &content, dir.path()).unwrap() == content);
        let again = if ranges { &[None][..] } else { &[] };
        assert_eq!(server.ranges(), [&[None, Some(kept.len())], again].concat());
    }
}

/// Pieces of two files make none; the server is believed as soon as it sends one of them whole.
#[test]
fn pieces_of_different_files_are_nobodys_attack() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(part(dir.path(), b"0123456789"), b"9876").unwrap();
    let server = Server::start(|_, asked, stream| {
        serve(stream, asked, b"0123456789", usize::MAX);
    });
    let downloaded = download(&server.source(), b"0123456789", dir.path()).unwrap();
    assert_eq!(downloaded, b"0123456789");
    assert_eq!(server.ranges(), [Some(4), None]);
    // One that sends other bytes in two pieces, again and again, is not believed for ever.
    let server = Server::start(|_, asked, stream| {
        serve(
            stream,
            asked,
            b"abcdefghij",
            if asked.from.is_none() { 5 } else { 10 },
        );
    });
    let dir = tempfile::tempdir().unwrap();
    let error = download(&server.source(), b"0123456789", dir.path()).unwrap_err();
    assert_eq!(error.exit(), Exit::Refused, "{}", error.chain());
}

/// A server that sends a byte now and then, wherever in its answer that is, stalls.
#[test]
fn a_drip_is_a_stall() {
    let patience = Patience {
        stall_timeout: Duration::from_secs(1),
        slowest: 1000,
        retries: 0,
        ..patience()
    };
    let options = || Options {
        patience,
        ..options()
    };
    for (start, drip) in [
        ("Content-Length: 10000\r\n\r\n", "x"),
        ("\r\n", "x"),
        ("Transfer-Encoding: chunked\r\n\r\n", "0"),
        ("Transfer-Encoding: chunked\r\n\r\n5;", "x"),
        ("Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", "x"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(move |_, _, stream| {
            say(stream, format!("HTTP/1.1 200 OK\r\n{start}"));
            while stream.write_all(drip.as_bytes()).is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let source = Source::open(&server.url, &options()).unwrap();
        let error = download(&source, &content_of(10_000), dir.path()).unwrap_err();
        let chain = error.chain();
        assert!(chain.contains("slower than 1000 bytes"), "{start}: {chain}");
        assert_eq!(error.exit(), Exit::Failed, "{start}");
    }
}

/// No more is taken than may be, of artifacts and of small files, on one connection after the other.
#[test]
fn a_line_is_shared() {
    let content = content_of(300_000);
    let served = content.clone();
    let server = Server::start(move |_, asked, stream| {
        serve(stream, asked, &served, usize::MAX);
    });
    let fastest = |fastest| {
        let patience = Patience {
            fastest: Some(fastest),
            ..patience()
        };
        let options = Options {
            patience,
            ..options()
        };
        Source::open(&server.url, &options).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let got = download(&fastest(200_000), &content, dir.path()).unwrap();
    assert!(got == content);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(1450), "{took:?}");
    let source = fastest(600_000);
    let began = Instant::now();
    for _ in 0..2 {
        assert!(source.small("x", 1 << 20).unwrap().unwrap() == content);
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(950), "{took:?}");
}

/// A body without end is refused at the limit of what was asked for, be it an artifact, metadata or a health check: it
/// fills neither memory nor disk.
#[test]
fn an_endless_body_is_cut_at_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _, stream| {
        say(stream, "HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    });
    let error = download(&server.source(), b"0123456789", dir.path()).unwrap_err();
    assert!(
        error.chain().contains("longer than 10 bytes"),
        "{}",
        error.chain()
    );
    let error = server.source().small("a", 1000).unwrap_err();
    assert!(
        error.chain().contains("longer than 1000 bytes"),
        "{}",
        error.chain()
    );
    assert_eq!(error.exit(), Exit::Refused);
    let error = fetch::get(&server.url, Duration::from_secs(60), 1000).unwrap_err();
    assert!(
        error.chain().contains("longer than 1000 bytes"),
        "{}",
        error.chain()
    );
}

/// Whoever reads metadata is told whether a file is there, is not, or is longer than it may be; where it must be there,
/// the error tells a wrong token from a file that is gone.
#[test]
fn small_files_are_there_or_not_or_too_long() {
    let server = Server::start(|_, asked, stream| match asked.path.as_str() {
        "/metadata/a%20b.json" => say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        "/long" => say(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
        ),
        "/forbidden" => say(
            stream,
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        ),
        "/gone" => say(stream, "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"),
        _ => say(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        ),
    });
    let source = server.source();
    assert_eq!(
        source.small("metadata/a b.json", 2).unwrap(),
        Some(b"{}".to_vec())
    );
    assert!(source.small("metadata/a b.json", 1).is_err());
    assert_eq!(source.small("missing", 2).unwrap(), None);
    assert_eq!(source.small("forbidden", 2).unwrap(), None);
    // Where it must be there, a wrong token is told from a file that is gone.
    for (path, status) in [("missing", "answered 404"), ("forbidden", "answered 403")] {
        let error = source.required(path, 2).unwrap_err().chain();
        assert!(error.contains(status), "{error}");
    }
    let error = source.small("long", 1 << 20).unwrap_err();
    assert!(
        error.chain().contains("longer than 1048576 bytes"),
        "{}",
        error.chain()
    );
    assert!(
        source
            .small("gone", 2)
            .unwrap_err()
            .chain()
            .contains("answered 410")
    );
}

/// Metadata of which a part arrived are asked for again, and are an error if they never arrive whole: they are never
/// taken for shorter metadata.
#[test]
fn a_small_file_that_is_cut_is_not_taken_for_whole() {
    let server = Server::start(|number, _, stream| {
        let body = if number == 0 { "{" } else { "{}" };
        say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        say(stream, body);
    });
    assert_eq!(server.source().small("x", 2).unwrap(), Some(b"{}".to_vec()));
    assert_eq!(server.ranges().len(), 2);

    let server = Server::start(|_, _, stream| {
        say(
            stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{",
        );
    });
    for error in [
        server.source().small("x", 2).unwrap_err(),
        fetch::get(&server.url, Duration::from_secs(60), 2).unwrap_err(),
    ] {
        assert!(error.chain().contains("early"), "{}", error.chain());
    }
}

/// An appliance follows a server that moved through five redirects, and no more: two servers that point at each other
/// do not hold it.
#[test]
fn redirects_are_followed_but_not_for_ever() {
    let server = Server::start(|_, asked, stream| match asked.path.as_str() {
        "/5" => say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        path => {
            let number: u32 = path[1..].parse().unwrap();
            let next = number + 1;
            say(
                stream,
                format!("HTTP/1.1 302 Found\r\nLocation: {next}\r\n\r\n"),
            );
        }
    });
    assert_eq!(server.source().small("0", 2).unwrap(), Some(b"{}".to_vec()));
    let error = server.source().small("6", 2).unwrap_err();
    assert!(
        error.chain().contains("more than 5 redirects"),
        "{}",
        error.chain()
    );
    assert_eq!(server.ranges().len(), 6 + 6);
}

/// A person whose server does not listen reads one sentence: which URL, and why.
#[test]
fn a_dead_server_is_one_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Source::open(
        &url,
        &Options {
            patience: Patience {
                retries: 0,
                ..patience()
            },
            ..options()
        },
    )
    .unwrap()
    .small("timestamp.json", 10)
    .unwrap_err();
    let expected = format!("fetching {url}/timestamp.json: Connection refused (os error 111)");
    assert_eq!(error.chain(), expected);
}

/// A health check sees what the service itself answers: an error status and a redirect are answers, nothing is tried
/// again or followed, and one that drips for ever ends at its time-out.
#[test]
fn a_health_check_asks_once_and_has_a_time_out() {
    let server = Server::start(|_, asked, stream| match asked.path.as_str() {
        "/health" => say(stream, "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"),
        "/elsewhere" => say(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: /health\r\nContent-Length: 0\r\n\r\n",
        ),
        _ => {
            say(stream, "HTTP/1.1 200 OK\r\n\r\n");
            for _ in 0..6000 {
                say(stream, "x");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let get = |path: &str, ms| {
        let url = format!("{}{path}", server.url);
        fetch::get(&url, Duration::from_millis(ms), 100_000)
    };
    let busy = get("/health", 60_000).unwrap();
    assert_eq!((busy.status, busy.body), (503, b"busy".to_vec()));
    assert!(busy.own_address.is_some());
    assert_eq!(get("/elsewhere", 60_000).unwrap().status, 302);
    let start = Instant::now();
    let error = get("/drips", 300).unwrap_err();
    assert!(error.chain().ends_with("timed out"), "{}", error.chain());
    assert!(start.elapsed() < Duration::from_secs(60));
    // On a busy machine the last one may not even have been read; but nothing is tried again.
    let asked = server.ranges().len();
    assert!((2..=3).contains(&asked), "{asked}");
    assert!(fetch::get("https://localhost/", Duration::from_secs(1), 1).is_err());
}

/// An appliance updates from a directory as from a server, with the same limits and refusals, and neither leaves it nor
/// waits at a pipe in it.
#[test]
fn a_directory_is_a_source() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("targets")).unwrap();
    fs::write(dir.path().join("targets/x.tar.gz"), "0123456789").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("pipe"), 0o600.into()).unwrap();
    let open = || Source::open(dir.path().to_str().unwrap(), &options()).unwrap();
    let source = open();
    assert!(download(&source, b"0123456789", dir.path()).unwrap() == b"0123456789");
    let error = download(&source, b"012345678", dir.path()).unwrap_err();
    assert!(
        error.chain().contains("10 bytes long instead of 9"),
        "{}",
        error.chain()
    );
    assert_eq!(error.exit(), Exit::Refused);
    let small = |path: &str, limit| source.small(path, limit);
    assert_eq!(
        small("targets/x.tar.gz", 10).unwrap(),
        Some(b"0123456789".to_vec())
    );
    assert_eq!(small("targets/y", 10).unwrap(), None);
    for (path, why) in [
        ("targets/x.tar.gz", "longer than 9"),
        ("pipe", "not a regular file"),
        ("targets", "not a regular file"),
        ("../x", "not a relative path"),
        ("/etc/passwd", "not a relative path"),
    ] {
        let error = small(path, 9).unwrap_err().chain();
        assert!(error.contains(why), "{path}: {error}");
    }
}

/// A server that answers one request after the other on each connection, until `answer` says otherwise; and the paths that
/// each connection was asked for.
fn keeping(
    answer: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> (String, Arc<Mutex<Vec<Vec<String>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(Mutex::new(Vec::new()));
    let log = connections.clone();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let number = {
                let mut log = log.lock().unwrap();
                log.push(Vec::new());
                log.len() - 1
            };
            let (log, answer) = (log.clone(), answer.clone());
            std::thread::spawn(move || {
                loop {
                    let asked = read_request(&mut stream);
                    if asked.path.is_empty() {
                        break;
                    }
                    log.lock().unwrap()[number].push(asked.path.clone());
                    if !answer(&asked, &mut stream) {
                        break;
                    }
                }
            });
        }
    });
    (url, connections)
}

/// An appliance asks for all files of an update over one connection, whatever kind of answer came before: a handshake
/// for each would take most of the time on a slow line.
#[test]
fn one_connection_serves_many_files() {
    let (url, connections) = keeping(|asked, stream| {
        match asked.path.as_str() {
            "/missing" => say(stream, "HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nnone"),
            "/chunks" => say(
                stream,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
            ),
            "/targets/x.tar.gz" => serve(stream, asked, b"abc", usize::MAX),
            "/moved" => say(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n",
            ),
            _ => say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        }
        true
    });
    let source = Source::open(&url, &options()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(source.small("missing", 9).unwrap(), None);
    for path in ["a", "chunks", "moved"] {
        assert_eq!(
            source.small(path, 9).unwrap(),
            Some(b"{}".to_vec()),
            "{path}"
        );
    }
    assert!(download(&source, b"abc", dir.path()).unwrap() == b"abc");
    assert_eq!(source.small("a", 9).unwrap(), Some(b"{}".to_vec()));
    let asked = [
        "/missing",
        "/a",
        "/chunks",
        "/moved",
        "/a",
        "/targets/x.tar.gz",
        "/a",
    ];
    assert_eq!(
        *connections.lock().unwrap(),
        [asked.map(str::to_owned).to_vec()]
    );
}

/// What would make an answer out of something else, or of nothing.
#[test]
fn a_connection_is_not_used_again_when_in_doubt() {
    let cases = [
        // Closed without a word, by its word, by its version.
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", false),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x, Close\r\n\r\n{}",
            true,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", true),
        // More than was asked for.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
            true,
        ),
    ];
    for (answer, stays) in cases {
        let (url, connections) = keeping(move |_, stream| {
            say(stream, answer);
            stays
        });
        let source = Source::open(&url, &options()).unwrap();
        for _ in 0..3 {
            assert_eq!(
                source.small("a", 9).unwrap(),
                Some(b"{}".to_vec()),
                "{answer}"
            );
        }
        let asked: Vec<usize> = connections.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(asked, [1, 1, 1], "{answer}");
    }
    // An answer before anything was asked.
    let (go, went) = std::sync::mpsc::channel();
    let (came, arrived) = std::sync::mpsc::channel();
    let went = Mutex::new(went);
    let (url, _) = keeping(move |_, stream| {
        say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        if went.lock().unwrap().recv().is_ok() {
            say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad");
            came.send(()).unwrap();
        }
        true
    });
    let source = Source::open(&url, &options()).unwrap();
    assert_eq!(source.small("a", 9).unwrap(), Some(b"{}".to_vec()));
    go.send(()).unwrap();
    arrived.recv().unwrap();
    drop(go);
    assert_eq!(source.small("a", 9).unwrap(), Some(b"{}".to_vec()));

    // The server hangs up when it is asked again: that is no failed try.
    let asked = Mutex::new(0);
    let (url, connections) = keeping(move |_, stream| {
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        if *asked != 2 {
            say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        }
        *asked != 2
    });
    let mut options = options();
    options.patience.retries = 0;
    let source = Source::open(&url, &options).unwrap();
    for _ in 0..2 {
        assert_eq!(source.small("a", 9).unwrap(), Some(b"{}".to_vec()));
    }
    assert_eq!(connections.lock().unwrap().len(), 2);
}

/// A server that never accepts the connection is an error after the connect time-out, whatever longer times are set for
/// the transfer.
#[test]
fn a_server_that_accepts_nobody_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // When its queue is full the kernel answers nobody any more.
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        waiting.push(stream);
        assert!(waiting.len() < 10_000, "the queue has no end");
    }
    let mut options = options();
    options.patience.connect_timeout = Duration::from_millis(300);
    options.patience.stall_timeout = Duration::from_secs(3600);
    options.patience.small_timeout = Duration::from_secs(3600);
    let source = Source::open(format!("http://{address}"), &options).unwrap();
    let start = Instant::now();
    let error = source.small("timestamp.json", 10).unwrap_err().chain();
    assert!(error.ends_with("connection timed out"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(600));
}

/// A bundle that changes while it is read gives an error, or what was in it when it was opened; nothing else.
#[test]
fn a_bundle_that_is_replaced_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bundle.tar");
    let spec = file.to_str().unwrap();
    let content = content();
    let tar = |content: &[u8]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in [
            ("metadata/x.json", &b"{}"[..]),
            ("targets/x.tar.gz", content),
            ("targets/release.json", &b"{}"[..]),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes).unwrap();
        }
        tar.into_inner().unwrap()
    };
    fs::write(&file, tar(&content)).unwrap();
    let source = Source::open(spec, &options()).unwrap();
    assert!(source.may_have("targets/x.tar.gz") && !source.may_have("targets/y"));
    assert!(download(&source, &content, dir.path()).unwrap() == content);

    // Another one under its name.
    fs::write(dir.path().join("new"), tar(b"another")).unwrap();
    fs::rename(dir.path().join("new"), &file).unwrap();
    assert!(download(&source, &content, dir.path()).unwrap() == content);

    // The same file, cut: not a byte less is taken for all.
    fs::write(&file, tar(&content)).unwrap();
    let source = Source::open(spec, &options()).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(513)
        .unwrap();
    let error = source.small("metadata/x.json", 10).unwrap_err();
    assert!(
        error.chain().contains("metadata/x.json in"),
        "{}",
        error.chain()
    );
    assert!(error.chain().contains(spec), "{}", error.chain());
    assert!(download(&source, &content, dir.path()).unwrap().len() < content.len());
    // What is read of an artifact is checked by whoever unpacks it; nothing was copied.
    assert!(!complete(dir.path(), &content).exists());
}

/// A person who configured a source that can be none reads which, with the exit code for its kind, and no password or
/// query of it gets into a log.
#[test]
fn a_source_that_cannot_be_one_is_named() {
    for (spec, shown, exit) in [
        (
            "/nonexistent/repository",
            "/nonexistent/repository",
            Exit::Failed,
        ),
        ("/etc/hostname", "/etc/hostname", Exit::Refused),
        ("/dev/null", "/dev/null", Exit::Failed),
        (
            "file:///nonexistent/x",
            "the source /nonexistent/x",
            Exit::Failed,
        ),
        ("127.0.0.1:8000", "begins with http://", Exit::Failed),
        ("ftp://host/", "ftp://host/", Exit::Usage),
        // Without what may be a secret.
        ("http://user:word@host/", "http://…@host/", Exit::Usage),
        ("http://host/?repository=1", "http://host/", Exit::Usage),
    ] {
        let error = Source::open(spec, &options()).err().expect(spec);
        assert_eq!(error.exit(), exit, "{}", error.chain());
        let told = error.chain();
        assert!(told.contains(shown), "{told}");
        assert!(
            !told.contains("word") && !told.contains("repository=1"),
            "{told}"
        );
    }
}

mod tls {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;

    /// A server whose certificate is for `localhost`, that certificate in PEM, and
    /// the number of connections so far.
    fn start(answer: &'static str) -> (u16, String, Arc<AtomicUsize>) {
        start_in(1975..4096, answer)
    }

    /// The same; the certificate is valid in these years.
    fn start_in(
        years: std::ops::Range<i32>,
        answer: &'static str,
    ) -> (u16, String, Arc<AtomicUsize>) {
        let (config, pem) = config(years);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::Relaxed);
                let tls = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(tls, stream.unwrap());
                let request = BufReader::new(&mut stream).lines();
                // A client that distrusts us goes away in the handshake.
                if request.map_while(Result::ok).any(|line| line.is_empty()) {
                    let _ = stream.write_all(answer.as_bytes());
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        });
        (port, pem, connections)
    }

    /// A server's side, and the certificate that it shows in PEM.
    fn config(years: std::ops::Range<i32>) -> (Arc<rustls::ServerConfig>, String) {
        let signing_key = rcgen::KeyPair::generate().unwrap();
        let mut made = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        made.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        made.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let cert = made.self_signed(&signing_key).unwrap();
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key.into())
            .unwrap();
        (Arc::new(config), cert.pem())
    }

    fn source(url: &str, ca_file: &Path) -> Source {
        let ca_file = Some(ca_file.to_owned());
        Source::open(
            url,
            &Options {
                ca_file,
                ..options()
            },
        )
        .unwrap()
    }

    /// An appliance with an authority of its own trusts a server that it vouches for, by that server's name, and nobody
    /// else; an authority file that is of no use is an error at once and not a reason to trust the system's.
    #[test]
    fn a_configured_authority_is_trusted_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (port, pem, connections) = start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        let (_, other, _) = start("");
        let [right, wrong, empty] = ["right", "wrong", "empty"].map(|n| dir.path().join(n));
        fs::write(&right, pem).unwrap();
        fs::write(&wrong, other).unwrap();
        fs::write(&empty, "").unwrap();
        let url = format!("https://localhost:{port}");
        assert_eq!(
            source(&url, &right).small("x", 2).unwrap(),
            Some(b"{}".to_vec())
        );
        let body = download(&source(&url, &right), b"{}", dir.path()).unwrap();
        assert_eq!(body, b"{}");
        // A connection may be counted late, but never twice.
        let mut asked = 2;
        for (url, ca_file, why) in [
            (url.clone(), &wrong, "to the file that ca_file names"),
            (
                format!("https://127.0.0.1:{port}"),
                &right,
                "use a name in the URL",
            ),
            (url.clone(), &empty, "it contains none"),
            (
                url.clone(),
                &dir.path().join("missing"),
                "certificate authorities",
            ),
        ] {
            asked += 1;
            let error = source(&url, ca_file).small("x", 2).unwrap_err().chain();
            assert!(error.contains(why) && error.contains(&url), "{error}");
            // Final: nothing was tried again.
            assert!(connections.load(Ordering::Relaxed) <= asked, "{error}");
        }
        // The system's authorities do not vouch for it either.
        let system = Source::open(&url, &options()).unwrap();
        let error = system.small("x", 2).unwrap_err().chain();
        assert!(error.contains("certificate"), "{error}");
    }

    /// An appliance without a clock that can be believed accepts a certificate which may be valid now, and never one
    /// that had expired before the updater was built; with a good clock both ends count.
    #[test]
    fn without_a_clock_a_certificate_may_be_young_and_not_old() {
        let year =
            |year: u64| SystemTime::UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_556_952);
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca");
        let (port, pem, _) = start_in(2030..2031, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        fs::write(&ca_file, pem).unwrap();
        let url = format!("https://localhost:{port}");
        for (system, built, refused) in [
            (2030, 2026, None),
            // Clocks that are believed, and say that it is not valid now.
            (2028, 2026, Some("not valid yet")),
            (2032, 2026, Some("expired")),
            // No clock: what has passed counts, and what may be does not.
            (1970, 2026, None),
            (2106, 2026, None),
            (1970, 2032, Some("expired")),
            (2106, 2032, Some("expired")),
        ] {
            // The middle of the year.
            let half = Duration::from_secs(15_000_000);
            let options = Options {
                ca_file: Some(ca_file.clone()),
                clock: Clock::new(year(system) + half, year(built) + half),
                ..options()
            };
            let got = Source::open(&url, &options).unwrap().small("x", 2);
            match (got, refused) {
                (Ok(Some(bytes)), None) => assert_eq!(bytes, b"{}"),
                (Err(e), Some(why)) => {
                    assert!(e.chain().contains(why), "{system} {built}: {}", e.chain())
                }
                (got, _) => panic!("{system} {built}: {:?}", got.map_err(|e| e.chain())),
            }
        }
    }

    /// Below TLS a byte now and then is no progress either.
    #[test]
    fn a_drip_in_a_record_is_a_stall() {
        let dir = tempfile::tempdir().unwrap();
        let (config, pem) = config(1975..4096);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            let tls = rustls::ServerConnection::new(config).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, tcp.try_clone().unwrap());
            let request = BufReader::new(&mut stream).lines();
            assert!(request.map_while(Result::ok).any(|line| line.is_empty()));
            let answer = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(10_000));
            stream.conn.writer().write_all(answer.as_bytes()).unwrap();
            let mut record = Vec::new();
            while stream.conn.wants_write() {
                stream.conn.write_tls(&mut record).unwrap();
            }
            for byte in record {
                if tcp.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let ca_file = dir.path().join("ca");
        fs::write(&ca_file, pem).unwrap();
        let patience = Patience {
            stall_timeout: Duration::from_secs(1),
            slowest: 1000,
            retries: 0,
            ..patience()
        };
        let options = Options {
            ca_file: Some(ca_file),
            patience,
            ..options()
        };
        let source = Source::open(format!("https://localhost:{port}"), &options).unwrap();
        let error = download(&source, &content_of(10_000), dir.path()).unwrap_err();
        let chain = error.chain();
        // The head is in the record: whichever ends first.
        let why = ["slower than 1000 bytes", "timed out"];
        assert!(why.iter().any(|why| chain.contains(why)), "{chain}");
    }

    /// The wrong port, or the wrong scheme.
    #[test]
    fn a_server_without_tls_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca");
        fs::write(&ca_file, config(1975..4096).1).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            say(&mut stream, "HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let error = source(&url, &ca_file).small("x", 2).unwrap_err().chain();
        assert!(error.contains("does not speak TLS"), "{error}");
    }

    /// A server reached over https cannot send an appliance on to plain http: whoever configured https gets it for
    /// every byte.
    #[test]
    fn a_redirect_does_not_leave_https() {
        let dir = tempfile::tempdir().unwrap();
        let (port, pem, _) = start("HTTP/1.1 302 Found\r\nLocation: http://localhost/x\r\n\r\n");
        let ca_file = dir.path().join("ca");
        fs::write(&ca_file, pem).unwrap();
        let url = format!("https://localhost:{port}");
        let error = source(&url, &ca_file).small("x", 2).unwrap_err().chain();
        assert!(error.contains("would downgrade https"), "{error}");
    }
}
