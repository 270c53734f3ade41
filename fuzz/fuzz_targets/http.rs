//! What a web server answers: heads, bodies by length and in chunks, redirects, ranges, compression; also as a proxy.
//!
//! - A small file has at most as many bytes as were asked for; memory in proportion to that.
//! - An artifact that is accepted has its length and digest; what is left of one that is not is at most as long.
//! - No panic, and no answer keeps the client for ever.
#![no_main]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use qx_release::digest::Digest;
use qx_release::trust::clock::Clock;
use qx_update::fetch::{Options, Proxies, Source};
use qx_update_fuzz::{bounded, one_line, scratch};

/// What the server says to whoever connects, before it hangs up.
static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

static PORT: LazyLock<u16> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("loopback").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let mut length = 0;
            while !request[..length].ends_with(b"\r\n\r\n") {
                match stream.read(&mut request[length..]) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => length += n,
                }
            }
            let answer = ANSWER.lock().expect("nobody panics with it").clone();
            // The client may have hung up.
            let _ = stream.write_all(&answer);
        }
    });
    port
});

/// At most so many bytes are asked for.
const LIMIT: u64 = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((first, answer)) = data.split_first() else {
        return;
    };
    answer.clone_into(&mut ANSWER.lock().expect("nobody panics with it"));
    let now = SystemTime::now();
    let mut options = Options::new(Clock::new(now, now));
    // Wherever a redirect leads, it is this server that is asked.
    let proxy = format!("http://127.0.0.1:{}", *PORT);
    options.proxies = Proxies::configured(Some(&proxy), &[]).expect("a URL");
    options.patience.retries = 0;
    options.patience.stall_timeout = Duration::from_secs(5);
    let source = Source::open("http://updates.test/repository", &options).expect("a URL");
    let downloads = scratch().join("downloads");
    match first % 3 {
        0 => match bounded(LIMIT as usize * 4, || {
            source.small("metadata/file.json", LIMIT)
        }) {
            Ok(found) => assert!(found.is_none_or(|bytes| bytes.len() as u64 <= LIMIT)),
            Err(e) => one_line(&e.chain()),
        },
        kind => {
            // What is expected is the end of the answer: a body that is sent as it is can be right.
            let body = &answer[answer.len() - answer.len().min(64)..];
            let digest = Digest::of(body);
            let part = downloads.join(digest.to_string()).with_extension("part");
            let _ = std::fs::remove_dir_all(&downloads);
            if kind == 2 {
                std::fs::create_dir(&downloads).expect("there is memory");
                std::fs::write(&part, &body[..body.len() / 2]).expect("there is memory");
            }
            let length = body.len() as u64;
            let got = bounded(LIMIT as usize * 4, || {
                source.artifact(
                    "targets/file.tar.gz",
                    length,
                    &digest,
                    &downloads,
                    &mut |_| {},
                )
            });
            match got {
                Ok(mut artifact) => {
                    let mut bytes = Vec::new();
                    artifact.read_to_end(&mut bytes).expect("it is open");
                    assert!(bytes == body);
                }
                Err(e) => {
                    one_line(&e.chain());
                    let left = std::fs::metadata(&part).map_or(0, |found| found.len());
                    assert!(left <= length, "{left} bytes are left");
                }
            }
        }
    }
});
