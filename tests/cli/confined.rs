//! Whatever handles what strangers send is a process of its own that can do no harm.

use std::fs;
use std::io::BufReader;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use qx_release::digest::Digest;
use qx_release::error::Error;
use qx_release::trust::clock::Clock;
use qx_update::fetch::port::Target;
use qx_update::fetch::protocol::{self, Order, Reply, Request};
use qx_update::fetch::{FETCHER, Options};
use qx_update::model::source::SourceAddress;

use crate::common::server::{Answer, Server};
use crate::common::{Appliance, Running, UPDATE, wait_until};

/// A fetcher that is told what no update would tell it.
struct Fetcher {
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Fetcher {
    fn new(source: &str, writable: &[&Path]) -> Fetcher {
        let mut child = Command::new(UPDATE)
            .arg(FETCHER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = child.stdin.take().unwrap();
        let replies = BufReader::new(child.stdout.take().unwrap());
        let mut fetcher = Fetcher {
            child,
            requests,
            replies,
        };
        let now = std::time::SystemTime::now();
        let order = Order {
            source: SourceAddress::from(source),
            options: Options::new(Clock::new(now, now)),
            given_up: true,
            writable: writable.iter().map(|path| path.to_path_buf()).collect(),
            parent: std::process::id(),
        };
        protocol::send(&mut fetcher.requests, &order).unwrap();
        match protocol::receive(&mut fetcher.replies).unwrap() {
            Some(Reply::Ready(unconfined)) => assert_eq!(unconfined, Vec::<String>::new()),
            other => panic!("{other:?}"),
        }
        fetcher
    }

    fn ask(&mut self, request: &Request) -> Result<(), Error> {
        protocol::send(&mut self.requests, request).unwrap();
        loop {
            match protocol::receive(&mut self.replies).unwrap() {
                Some(Reply::Progress(_)) => {}
                Some(Reply::Done) => return Ok(()),
                Some(Reply::Failed { why, .. }) => return Err(why.into()),
                other => panic!("{other:?}"),
            }
        }
    }

    fn get(&mut self, path: &str, bytes: &[u8], downloads: &Path) -> Result<(), Error> {
        self.ask(&Request::Artifact {
            target: Target {
                length: bytes.len() as u64,
                sha256: Digest::of(bytes),
                path: path.to_owned(),
            },
            downloads: downloads.to_owned(),
            check: false,
        })
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn refused(result: Result<(), Error>) {
    let error = result.unwrap_err();
    let kind = error.io_kind();
    assert_eq!(
        kind,
        Some(std::io::ErrorKind::PermissionDenied),
        "{}",
        error.chain()
    );
}

/// Intent: a fetcher that does whatever a stranger wants still writes only where it was let, and reads nothing for a server.
#[test]
fn a_fetcher_that_is_told_lies_does_no_harm() {
    let temp = crate::common::temporary("qx-");
    let at = |name: &str| temp.path().join(name);
    for name in ["served", "downloads", "elsewhere"] {
        crate::common::create_dir(at(name)).unwrap();
    }
    fs::write(at("served/file"), "what is served").unwrap();
    fs::write(at("elsewhere/secret"), "a secret").unwrap();
    let server = Server::start(&at("served"));

    let mut web = Fetcher::new(&server.url, &[&at("downloads")]);
    web.get("file", b"what is served", &at("downloads"))
        .unwrap();
    refused(web.get("file", b"what is served", &at("elsewhere")));
    refused(web.get("file", b"what is served", Path::new("/etc")));
    // What is there already would be taken for a download.
    let digest = Digest::of(b"a secret").to_string();
    fs::rename(at("elsewhere/secret"), at("elsewhere").join(&digest)).unwrap();
    refused(web.get("file", b"a secret", &at("elsewhere")));

    // Who reads a directory follows its links, but writes nothing, and talks to nobody.
    std::os::unix::fs::symlink(at("elsewhere").join(&digest), at("served/link")).unwrap();
    let mut disk = Fetcher::new(at("served").to_str().unwrap(), &[]);
    disk.get("link", b"a secret", &at("downloads")).unwrap();
    let component = component();
    refused(disk.ask(&Request::Unpack {
        component: Box::new(component),
        staging: at("elsewhere"),
    }));
    let left: Vec<_> = fs::read_dir(at("elsewhere")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// One that is at a place where there is nothing yet.
fn component() -> qx_release::manifest::Component {
    serde_json::from_value(serde_json::json!({
        "name": "node", "kind": "bin", "install_path": "bin/qx-node", "mode": "0755",
        "sha256": Digest::of(b""), "size_bytes": 1, "entries": 1,
    }))
    .unwrap()
}

/// The fetchers of this appliance's updates.
fn fetchers(appliance: &Appliance) -> Vec<u32> {
    let updaters = appliance.updaters();
    let ours = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.any(|word| word == FETCHER.as_bytes())
            && status(*pid, "PPid")
                .is_some_and(|parent| updaters.iter().any(|pid| pid.to_string() == parent))
    };
    crate::common::processes(|_| true)
        .into_keys()
        .filter(ours)
        .collect()
}

/// A line of a process's status.
fn status(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    Some(line?.trim_start_matches(':').trim().to_owned())
}

/// An update whose artifacts do not come.
fn stalled(appliance: &Appliance) -> Running<'_> {
    let server = Server::answering(&appliance.repo, |request| match request.is_artifact() {
        true => Answer::Stall,
        false => Answer::Well,
    });
    appliance.source(&server.url);
    appliance.publish_release("1.1.0");
    let mut apply = appliance.start(&["apply"]);
    wait_until("an artifact is asked for", || {
        !apply.runs() || server.asked().iter().any(|request| request.is_artifact())
    });
    apply
}

/// Intent: the process that really fetches is confined, and ends with its update; until then nobody else works.
#[test]
fn a_fetcher_ends_with_its_update() {
    let appliance = Appliance::new();
    let apply = stalled(&appliance);
    let found = fetchers(&appliance);
    let [fetcher] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(status(fetcher, "NoNewPrivs").unwrap(), "1");
    assert_eq!(status(fetcher, "Seccomp").unwrap(), "2");
    if rustix::process::geteuid().is_root() {
        // CAP_DAC_OVERRIDE and CAP_SETFCAP.
        let left = format!("{:016x}", 1u64 << 1 | 1 << 31);
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(status(fetcher, set).unwrap(), left, "{set}");
        }
        assert_eq!(status(fetcher, "CapInh").unwrap(), "0000000000000000");
    }
    appliance.kill_updater();
    apply.wait();
    wait_until("the fetcher is gone", || status(fetcher, "PPid").is_none());
    appliance.source("/srv/repo");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
}

/// Intent: a fetcher that dies is an error of this appliance, which says so; the next try is as any other.
#[test]
fn a_fetcher_that_is_killed_is_told() {
    let appliance = Appliance::new();
    let apply = stalled(&appliance);
    for pid in fetchers(&appliance) {
        crate::common::kill(pid, rustix::process::Signal::KILL);
    }
    let failed = apply.wait();
    failed.code(1);
    assert!(
        failed
            .stderr
            .contains("the process that fetches ended with signal: 9"),
        "{}",
        failed.stderr
    );
    assert_eq!(appliance.status()["phase"], "idle");
    appliance.source("/srv/repo");
    appliance.update(&["apply"]).code(0);
    appliance.runs("1.1.0");
}

/// Intent: a lease that is renewed replaces the files that names are looked up in; a download that breaks after that goes on.
#[test]
fn names_may_change_during_a_download() {
    if !rustix::process::geteuid().is_root() {
        println!("not tried: only root may mount");
        return;
    }
    let appliance = Appliance::new();
    let etc = appliance.temp().join("etc");
    crate::common::create_dir(&etc).unwrap();
    for (name, text) in [
        ("hosts", "127.0.0.1 updates.test\n"),
        ("resolv.conf", "nameserver 127.0.0.1\n"),
        ("nsswitch.conf", "hosts: files\n"),
    ] {
        fs::write(etc.join(name), text).unwrap();
    }
    let hosts = etc.join("hosts");
    let replaced = std::sync::atomic::AtomicBool::new(false);
    let server = Server::answering(&appliance.repo, move |request| {
        if request.is_artifact() && !replaced.swap(true, std::sync::atomic::Ordering::SeqCst) {
            let new = hosts.with_extension("new");
            fs::write(&new, fs::read(&hosts).unwrap()).unwrap();
            fs::rename(&new, &hosts).unwrap();
            return Answer::Cut(100);
        }
        Answer::Well
    });
    appliance.source(&server.url.replace("127.0.0.1", "updates.test"));
    appliance.edit_config(|config| config["limits"]["retries"] = 1.into());
    appliance.publish_release("1.1.0");
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$0\" /etc && exec \"$@\"",
        ])
        .arg(&etc)
        .arg(UPDATE)
        .arg("--root")
        .arg(&appliance.root)
        .arg("apply");
    for name in ["http_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    appliance.spawn(command).wait().code(0);
    appliance.runs("1.1.0");
}
