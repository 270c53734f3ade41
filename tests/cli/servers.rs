//! Releases fetched from the web servers that people run: nginx, lighttpd, Apache and Caddy, with what these do to ranges, encodings,
//! redirects, directories and errors. `tests/all cli` unpacks them into `target/servers`; nothing is installed, and each runs
//! with its own configuration in a temporary directory.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use qx_release::digest::Digest;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::common::{
    Appliance, create_dir, free_port, kill, path, temporary, text, wait_until, walk,
};

/// Bytes of the tree that is fetched: many times what goes into one packet, or a server's buffer.
const BLOB: usize = 1_000_000;
/// So many of them come before a transfer is cut.
const CUT: usize = 300_000;
/// The head of an answer is shorter.
const HEAD: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nginx,
    Lighttpd,
    Apache,
    Caddy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Off,
    /// For who accepts it, which the updater does not.
    Offered,
    /// As when something in front of the server accepts it for its clients.
    Forced,
    /// Of every file there is a compressed one beside it, which is sent to everybody.
    Beside,
}

/// How a server is configured.
#[derive(Debug, Clone, Copy)]
struct Setup {
    compression: Compression,
    /// Without them a connection is good for two requests, too.
    ranges: bool,
    /// A page with status 200 for what is not there, as for an application that runs in the browser.
    page: bool,
}

const PLAIN: Setup = Setup {
    compression: Compression::Off,
    ranges: true,
    page: false,
};

/// A server for a directory. What is at `/old/…` has moved to `/repo/…`, and a directory without an index is listed.
struct Running {
    kind: Kind,
    server: Child,
    port: u16,
    /// Its configuration, and all that it writes.
    own: TempDir,
}

impl Running {
    #[track_caller]
    fn start(kind: Kind, root: &Path, setup: Setup) -> Running {
        let (program, package) = match kind {
            Kind::Nginx => ("usr/sbin/nginx", "nginx-light"),
            Kind::Lighttpd => ("usr/sbin/lighttpd", "lighttpd and lighttpd-mod-deflate"),
            Kind::Apache => ("usr/sbin/apache2", "apache2-bin"),
            Kind::Caddy => ("usr/bin/caddy", "caddy"),
        };
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers");
        let program = unpacked.join(program);
        assert!(
            program.exists(),
            "{} (Debian: {package}) is not installed: ./tests/all cli unpacks it",
            program.display()
        );
        let own = temporary("qx-server-");
        // Processes without root's rights write there, too.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(own.path(), mode).unwrap();
        let port = free_port();
        let place = Place {
            root: path(root),
            own: path(own.path()),
            port,
            libraries: path(&unpacked),
        };
        let text = match kind {
            Kind::Nginx => nginx(&place, setup),
            Kind::Lighttpd => lighttpd(&place, setup),
            Kind::Apache => apache(&place, setup),
            Kind::Caddy => caddy(&place, setup),
        };
        let config = own.path().join("config");
        fs::write(&config, text).unwrap();
        let page = own.path().join("page.html");
        fs::write(&page, PAGE).unwrap();
        // Whatever the umask is, who serves it is nobody.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&page, readable).unwrap();
        let modules = unpacked.join("usr/lib/lighttpd");
        let config = path(&config);
        let arguments: &[&str] = match kind {
            Kind::Nginx => &["-p", path(own.path()), "-e", "stderr", "-c", config],
            Kind::Lighttpd => &["-D", "-m", path(&modules), "-f", config],
            Kind::Apache => &["-D", "FOREGROUND", "-d", path(own.path()), "-f", config],
            Kind::Caddy => &["run", "--adapter", "caddyfile", "--config", config],
        };
        let mut command = Command::new(&program);
        command.args(arguments).current_dir(own.path());
        let log = fs::File::create(own.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log);
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        command.env("LD_LIBRARY_PATH", unpacked.join(libraries));
        for home in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
            command.env(home, own.path());
        }
        let mut running = Running {
            kind,
            server: command.spawn().unwrap(),
            port,
            own,
        };
        wait_until("the server listens", || {
            let ended = running.server.try_wait().unwrap();
            assert!(ended.is_none(), "{kind:?} {setup:?}: {}", running.log());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        running
    }

    fn log(&self) -> String {
        text(&self.own.path().join("log"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Each of them ends its own workers then, without waiting for clients.
        kill(self.server.id(), Signal::TERM);
        let _ = self.server.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {:?}\n{}", self.kind, self.log());
        }
    }
}

const PAGE: &str = "<!DOCTYPE html><title>Welcome</title><p>This is the page for everything.";

/// What a configuration names.
struct Place<'a> {
    root: &'a str,
    own: &'a str,
    port: u16,
    libraries: &'a str,
}

fn nginx(at: &Place, setup: Setup) -> String {
    let Place {
        root, own, port, ..
    } = at;
    let compressed = "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;";
    let compression = match setup.compression {
        Compression::Off => "",
        Compression::Offered | Compression::Forced => compressed,
        Compression::Beside => "gzip_static always;",
    };
    let ranges = if setup.ranges {
        ""
    } else {
        "max_ranges 0; keepalive_requests 2;"
    };
    let missing = match setup.page {
        true => "error_page 404 =200 /page.html; location = /page.html { root $own; }",
        false => "",
    }
    .replace("$own", own);
    let files = format!(
        "root {root}; autoindex on; {ranges} {compression} {missing}
         location /old/ {{ rewrite ^/old/(.*)$ /repo/$1 permanent; }}"
    );
    // Static files are compressed for those who accept it. What accepts it here is another server in front of it.
    let servers = match setup.compression {
        Compression::Forced => format!(
            "server {{ listen unix:{own}/behind; {files} }}
             server {{ listen 127.0.0.1:{port}; location / {{
                 proxy_pass http://unix:{own}/behind:; proxy_set_header Accept-Encoding gzip;
                 proxy_http_version 1.1; proxy_set_header Connection \"\";
             }} }}"
        ),
        _ => format!("server {{ listen 127.0.0.1:{port}; {files} }}"),
    };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("{of}_temp_path {own}/{of};"))
        .concat();
    format!(
        "daemon off; user nobody nogroup; worker_processes 1; pid {own}/pid; error_log stderr;
         events {{ worker_connections 64; }}
         http {{ access_log off; default_type application/octet-stream; {temporary} {servers} }}"
    )
}

fn lighttpd(at: &Place, setup: Setup) -> String {
    let Place {
        root, own, port, ..
    } = at;
    let mut lines = vec![
        "server.modules = (\"mod_setenv\", \"mod_redirect\", \"mod_alias\", \"mod_rewrite\", \"mod_deflate\")"
            .to_owned(),
        format!("server.document-root = \"{root}\""),
        format!("server.bind = \"127.0.0.1\"\nserver.port = {port}"),
        "server.username = \"nobody\"\nserver.groupname = \"nogroup\"".to_owned(),
        format!("server.upload-dirs = (\"{own}\")"),
        // What a path is may change within a second here.
        "dir-listing.activate = \"enable\"\nserver.stat-cache-engine = \"disable\"".to_owned(),
        "url.redirect = (\"^/old/(.*)$\" => \"/repo/$1\")".to_owned(),
    ];
    if setup.compression != Compression::Off {
        lines.push("deflate.mimetypes = (\"\")\ndeflate.min-compress-size = 1".to_owned());
        lines.push("deflate.allowed-encodings = (\"gzip\")".to_owned());
    }
    if setup.compression == Compression::Forced {
        lines.push("setenv.set-request-header = (\"Accept-Encoding\" => \"gzip\")".to_owned());
    }
    if !setup.ranges {
        lines.push("server.range-requests = \"disable\"".to_owned());
        lines.push("server.max-keep-alive-requests = 2".to_owned());
    }
    if setup.page {
        lines.push(format!(
            "alias.url = (\"/page.html\" => \"{own}/page.html\")"
        ));
        lines.push("url.rewrite-if-not-file = (\"\" => \"/page.html\")".to_owned());
    }
    lines.join("\n") + "\n"
}

fn apache(at: &Place, setup: Setup) -> String {
    let Place {
        root,
        own,
        port,
        libraries,
    } = at;
    let modules = "mpm_event authz_core alias autoindex deflate dir env filter headers mime";
    let mut lines: Vec<String> = modules
        .split(' ')
        .map(|name| {
            format!(
                "LoadModule {name}_module \"{libraries}/usr/lib/apache2/modules/mod_{name}.so\""
            )
        })
        .collect();
    lines.push(format!("Listen 127.0.0.1:{port}\nServerName localhost"));
    lines.push(format!(
        "PidFile {own}/pid\nDefaultRuntimeDir {own}\nMutex file:{own} default"
    ));
    lines.push(format!("ErrorLog {own}/log\nTypesConfig /dev/null"));
    lines.push("User nobody\nGroup nogroup\nStartServers 1".to_owned());
    lines.push(format!("DocumentRoot \"{root}\""));
    lines.push("Options Indexes\nRedirectMatch permanent ^/old/(.*)$ /repo/$1".to_owned());
    match setup.compression {
        // As many have it: said, and of what is compressed as it is.
        Compression::Off => lines.push("AddEncoding x-gzip .gz".to_owned()),
        _ => lines.push("SetOutputFilter DEFLATE".to_owned()),
    }
    if setup.compression == Compression::Forced {
        lines.push("SetEnv force-gzip 1".to_owned());
    }
    if !setup.ranges {
        lines.push("MaxRanges none\nHeader unset Accept-Ranges".to_owned());
        lines.push("RequestHeader unset Range\nMaxKeepAliveRequests 2".to_owned());
    }
    if setup.page {
        lines.push(format!("Alias /page.html {own}/page.html"));
        lines.push("FallbackResource /page.html".to_owned());
    }
    lines.join("\n") + "\n"
}

fn caddy(at: &Place, setup: Setup) -> String {
    let Place {
        root, own, port, ..
    } = at;
    let compression = match setup.compression {
        Compression::Off => "",
        Compression::Forced => "request_header Accept-Encoding gzip\n$encode",
        _ => "$encode",
    };
    let encode = "encode {\ngzip\nminimum_length 1\nmatch {\nheader Content-Type *\n}\n}";
    let compression = compression.replace("$encode", encode);
    let missing = match setup.page {
        true => format!(
            "@missing not file\nhandle @missing {{\nroot * {own}\nrewrite * /page.html\nfile_server\n}}"
        ),
        false => String::new(),
    };
    format!(
        "{{\nadmin off\nauto_https off\nstorage file_system {own}\n}}
         http://127.0.0.1:{port} {{
         bind 127.0.0.1
         root * {root}
         {compression}
         @old path_regexp old ^/old/(.*)$
         redir @old /repo/{{re.old.1}} 301
         {missing}
         handle {{\nfile_server browse\n}}
         }}\n"
    )
}

/// What was asked over a connection, and what came.
#[derive(Debug, Clone)]
struct Exchange {
    connection: usize,
    head: String,
    status: String,
    /// Bytes, those of the head among them.
    came: usize,
}

impl Exchange {
    fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    /// The first byte that was asked for.
    fn from(&self) -> Option<usize> {
        let head = self.head.to_ascii_lowercase();
        let range = head.lines().find_map(|l| l.strip_prefix("range: bytes="))?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// Stands in front of a server, changes nothing, and remembers what went by. The first answer to a request for that component is
/// cut.
struct Relay {
    url: String,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

impl Relay {
    fn start(server: u16, cut: &'static str) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let exchanges = Arc::new(Mutex::new(Vec::new()));
        let log = exchanges.clone();
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().flatten().enumerate() {
                let log = log.clone();
                std::thread::spawn(move || {
                    // Either side may hang up at any time.
                    let _ = relay(&client, server, number, cut, &log);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Relay { url, exchanges }
    }

    /// What went by since this was called last.
    fn seen(&self) -> Vec<Exchange> {
        std::mem::take(&mut *self.exchanges.lock().unwrap())
    }
}

/// The updater asks again only when it has all of an answer, so what comes belongs to the last request.
fn relay(
    client: &TcpStream,
    server: u16,
    number: usize,
    cut: &str,
    log: &Arc<Mutex<Vec<Exchange>>>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server))?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let requests = log.clone();
    std::thread::spawn(move || {
        let mut head = Vec::new();
        let mut byte = [0];
        while let Ok(1) = from.read(&mut byte) {
            head.extend(byte);
            if head.ends_with(b"\r\n\r\n") {
                requests.lock().unwrap().push(Exchange {
                    connection: number,
                    head: String::from_utf8(head.clone()).unwrap(),
                    status: String::new(),
                    came: 0,
                });
                if to.write_all(&head).is_err() {
                    break;
                }
                head.clear();
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (server, client);
    let mut buffer = [0; 16 * 1024];
    loop {
        let n = match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => n,
        };
        let ended = {
            let mut log = log.lock().unwrap();
            let again = |e: &&Exchange| !cut.is_empty() && e.path().contains(cut);
            let asked = log.iter().filter(again).count();
            let mine = log.iter_mut().rfind(|e| e.connection == number);
            let Some(mine) = mine else { return Ok(()) };
            if mine.came == 0 {
                let line = String::from_utf8_lossy(&buffer[..n]);
                mine.status = line.split(' ').nth(1).unwrap_or_default().to_owned();
            }
            mine.came += n;
            mine.came > CUT && asked == 1 && mine.path().contains(cut)
        };
        to.write_all(&buffer[..n])?;
        if ended {
            return from.shutdown(Shutdown::Both);
        }
    }
}

/// An appliance, whose releases have a tree of a megabyte.
struct Scene {
    appliance: Appliance,
    /// The version that was published last.
    minor: usize,
}

impl Scene {
    /// A transfer that breaks ends the update: nothing is tried again.
    fn new() -> Scene {
        let appliance = Appliance::new();
        appliance.edit_config(|config| config["limits"]["retries"] = json!(0));
        Scene {
            appliance,
            minor: 0,
        }
    }

    /// Publishes the next release: its version, and its artifacts as files of the repository.
    fn publish(&mut self) -> (String, [PathBuf; 2]) {
        self.minor += 1;
        let version = format!("1.{}.0", self.minor);
        let targets = |appliance: &Appliance| -> BTreeSet<String> {
            if self.minor == 1 {
                return BTreeSet::new();
            }
            appliance.signer().targets().into_iter().collect()
        };
        let before = targets(&self.appliance);
        let recipe = self.appliance.recipe(&version);
        fs::write(recipe.dir.join("www/blob"), blob(self.minor)).unwrap();
        self.appliance.release(&recipe);
        let signer = self.appliance.signer();
        let all: BTreeSet<String> = signer.targets().into_iter().collect();
        let new = ["qx-node", "www"].map(|component| {
            let name = format!("/artifacts/{component}-");
            let name = all.difference(&before).find(|n| n.contains(&name));
            signer.target_file(name.unwrap())
        });
        (version, new)
    }

    /// What an update leaves that was killed when it had so much of the artifact.
    fn leave_part(&self, artifact: &Path, bytes: usize) {
        let content = fs::read(artifact).unwrap();
        let downloads = self.appliance.data().join("update/downloads");
        create_dir(&downloads).unwrap();
        let part = downloads.join(format!("{}.part", Digest::of(&content)));
        fs::write(part, &content[..bytes]).unwrap();
    }

    #[track_caller]
    fn has(&self, version: &str) {
        self.appliance.runs(version);
        let installed = self.appliance.data().join("current/share/www/blob");
        assert!(fs::read(installed).unwrap() == blob(self.minor));
    }
}

/// Bytes that no compression makes fewer, others for each release.
fn blob(number: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    let mut next = || {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..BLOB).map(|_| next()).collect()
}

/// What was asked of an artifact.
fn of<'a>(seen: &'a [Exchange], artifact: &Path) -> Vec<&'a Exchange> {
    let name = path(artifact).rsplit('/').next().unwrap();
    seen.iter().filter(|e| e.path().ends_with(name)).collect()
}

/// One release, of which an update before left a part, and of which another part comes before the connection breaks.
#[track_caller]
fn fetches(scene: &mut Scene, kind: Kind, setup: Setup) {
    let case = format!("{kind:?}, {setup:?}");
    eprintln!("{case}");
    let (version, [node, www]) = scene.publish();
    let root = scene.appliance.root.join("srv");
    if setup.compression == Compression::Beside {
        walk(&scene.appliance.repo, &mut |file, meta| {
            let name = path(file);
            let theirs = [".json", ".tar.gz"].iter().any(|end| name.ends_with(end));
            if meta.is_file() && theirs {
                let compressed = Command::new("gzip").arg("-c").arg(file).output();
                fs::write(format!("{name}.gz"), compressed.unwrap().stdout).unwrap();
            }
        });
    }
    let server = Running::start(kind, &root, setup);
    let relay = Relay::start(server.port, ".www-");
    scene.appliance.source(&format!("{}/repo", relay.url));
    scene.appliance.update(&["check"]).code(4);
    let asked = relay.seen();
    let connections: BTreeSet<_> = asked.iter().map(|e| e.connection).collect();
    assert!(
        asked.len() > 1 && connections.len() < asked.len(),
        "{case}: no connection served two requests: {asked:#?}"
    );

    let [node_bytes, www_bytes] = [&node, &www].map(|f| fs::metadata(f).unwrap().len() as usize);
    scene.leave_part(&node, node_bytes / 2);
    scene.appliance.update(&["apply"]).refused(1, &[".www-"]);
    scene.appliance.update(&["apply"]).code(0);
    scene.has(&version);
    let seen = relay.seen();
    let (node, www) = (of(&seen, &node), of(&seen, &www));
    let show = format!("{case}: {node:#?} {www:#?}");
    assert_eq!(node[0].from(), Some(node_bytes / 2), "{show}");
    assert!(www[0].from().is_none() && www[0].came > CUT, "{show}");
    assert!(www[0].came < www_bytes, "{show}");
    // The next update goes on with what is left, also of what had to be decompressed.
    let from = www[1].from().expect(&show);
    assert!(CUT / 2 < from && from < www[0].came, "{show}");
    if matches!(setup.compression, Compression::Forced | Compression::Beside) {
        // Asked once more at most, without a range.
        assert!(node.len() <= 2 && www.len() <= 3, "{show}");
        assert!(
            node.iter()
                .skip(1)
                .chain(www.iter().skip(2))
                .all(|e| e.from().is_none()),
            "{show}"
        );
        return;
    }
    assert_eq!((node.len(), www.len()), (1, 2), "{show}");
    let status = if setup.ranges { "206" } else { "200" };
    assert_eq!([&*node[0].status, &*www[1].status], [status; 2], "{show}");
    if setup.ranges {
        assert!(node[0].came < node_bytes - node_bytes / 2 + HEAD, "{show}");
        assert!(www[1].came < www_bytes - from + HEAD, "{show}");
    }
}

#[track_caller]
fn fetches_from(kind: Kind, compressions: &[Compression], ranges: &[bool]) {
    let mut scene = Scene::new();
    for compression in compressions {
        for ranges in ranges {
            let setup = Setup {
                compression: *compression,
                ranges: *ranges,
                page: false,
            };
            fetches(&mut scene, kind, setup);
        }
    }
}

const COMPRESSIONS: [Compression; 3] =
    [Compression::Off, Compression::Offered, Compression::Forced];

/// Releases come from nginx, whatever it compresses, whether it knows ranges or not, and though connections break.
#[test]
fn releases_come_from_nginx() {
    let compressions = [&COMPRESSIONS[..], &[Compression::Beside]].concat();
    fetches_from(Kind::Nginx, &compressions, &[true, false]);
}

/// The same from lighttpd.
#[test]
fn releases_come_from_lighttpd() {
    fetches_from(Kind::Lighttpd, &COMPRESSIONS, &[true, false]);
}

/// The same from Apache, which also says of `.gz` files that they are encoded.
#[test]
fn releases_come_from_apache() {
    fetches_from(Kind::Apache, &COMPRESSIONS, &[true, false]);
}

/// The same from Caddy, which has no setting against ranges.
#[test]
fn releases_come_from_caddy() {
    fetches_from(Kind::Caddy, &COMPRESSIONS, &[true]);
}

const KINDS: [Kind; 4] = [Kind::Nginx, Kind::Lighttpd, Kind::Apache, Kind::Caddy];

/// Their redirects are followed. Their pages for what is not there, with whatever status, and their lists of a directory are an error
/// that names the file, and cost nothing of what was fetched before.
#[test]
fn pages_of_servers_are_no_files() {
    let mut scene = Scene::new();
    for kind in KINDS {
        eprintln!("{kind:?}");
        let (version, [_, www]) = scene.publish();
        let root = scene.appliance.root.join("srv");
        let aside = scene.appliance.temp().join("aside");
        let server = Running::start(kind, &root, PLAIN);
        let relay = Relay::start(server.port, "");
        let appliance = &scene.appliance;
        let moved = format!("{}/old", relay.url);
        appliance.refuses(
            &["apply", "--from", &format!("{}/nowhere", relay.url)],
            1,
            &["timestamp.json", "answered 404"],
        );
        relay.seen();
        appliance.update(&["check", "--from", &moved]).code(4);
        let seen = relay.seen();
        // Some name the port that they listen on, which is not the relay's.
        let old = seen.iter().filter(|e| e.path().starts_with("/old/"));
        let statuses: BTreeSet<_> = old.map(|e| &*e.status).collect();
        assert_eq!(statuses, BTreeSet::from(["301"]), "{seen:#?}");

        // A directory in place of a file.
        scene.leave_part(&www, CUT);
        fs::rename(&www, &aside).unwrap();
        create_dir(&www).unwrap();
        fs::write(www.join("something"), "").unwrap();
        no_file(appliance, &moved, ".www-");
        fs::remove_dir_all(&www).unwrap();
        appliance.refuses(&["apply", "--from", &moved], 1, &[".www-", "answered 404"]);
        drop(server);

        // The same page for all that is not there, with status 200.
        let page = Setup {
            page: true,
            ..PLAIN
        };
        let server = Running::start(kind, &root, page);
        let with_page = format!("http://127.0.0.1:{}/repo", server.port);
        no_file(appliance, &with_page, "2.root.json");
        drop(server);

        fs::rename(&aside, &www).unwrap();
        let server = Running::start(kind, &root, PLAIN);
        let relay = Relay::start(server.port, "");
        let repo = format!("{}/repo", relay.url);
        appliance.update(&["apply", "--from", &repo]).code(0);
        scene.has(&version);
        let seen = relay.seen();
        let last = seen.iter().rfind(|e| e.path().contains(".www-")).unwrap();
        assert_eq!(
            (last.from(), &*last.status),
            (Some(CUT), "206"),
            "{seen:#?}"
        );
    }
}

/// The update ends with an error that names the file, and says of nobody that he tampered with it.
#[track_caller]
fn no_file(appliance: &Appliance, source: &str, file: &str) {
    let before = appliance.picture();
    let refused = appliance.update(&["apply", "--from", source]);
    refused.error_says(&[file]);
    // With a length that is not the file's, and without one.
    assert!([1, 5].contains(&refused.code), "{}", refused.stderr);
    assert!(!refused.stderr.contains("tampered"), "{}", refused.stderr);
    before.unchanged(appliance);
}
