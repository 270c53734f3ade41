//! Processes: running a program under a time limit, and looking at what others run.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::error::{Context, Error, Result};

/// The longest line of a program's output that is kept whole, in bytes.
const MAX_LINE: usize = 4096;
/// How long a program's output is read on after its end, as long as more comes.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Which of a program's outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// As the log calls it.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Out => "stdout",
            Stream::Err => "stderr",
        }
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; `None` if it was killed because its time was over.
    pub status: Option<ExitStatus>,
    /// The last line on its standard error, else on its standard output.
    pub last: Option<String>,
}

impl Ended {
    /// Whether it exited 0 in time.
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|s| s.success())
    }

    /// How it ended, in words, with its last words.
    pub fn describe(&self) -> String {
        let how = match self.status {
            None => "did not end in time and was killed".to_owned(),
            Some(status) => match (
                status.code(),
                std::os::unix::process::ExitStatusExt::signal(&status),
            ) {
                (Some(code), _) => format!("exited {code}"),
                (None, Some(signal)) => format!("was killed by signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
        };
        match &self.last {
            Some(line) => format!("{how}: {line}"),
            None => how,
        }
    }
}

/// Runs an argument vector in a clean environment (`PATH`, `HOME=/`, `LANG=C`) and a process group of its own,
/// standard input empty. Every line of output goes to `on_line` as it comes: at most 4096 bytes of it, bytes that are
/// no text replaced. After `timeout` the whole group is killed. A program that leaves a daemon behind is not
/// waited for longer than itself.
pub fn run(
    vector: &[String],
    directory: &Path,
    environment: &[(String, String)],
    timeout: Duration,
    on_line: &mut dyn FnMut(Stream, &str),
) -> Result<Ended> {
    let Some((program, arguments)) = vector.split_first() else {
        return Err(Error::new(
            "running a program: the argument vector is empty",
        ));
    };
    let mut child = clean(program, arguments, directory)
        .envs(environment.iter().map(|(k, v)| (k, v)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| format!("running {program}"))?;
    // Bounded: a program that writes faster than its lines are logged waits.
    let (sender, lines) = mpsc::sync_channel(64);
    if let Some(out) = child.stdout.take() {
        read_lines(out, Stream::Out, sender.clone());
    }
    if let Some(err) = child.stderr.take() {
        read_lines(err, Stream::Err, sender.clone());
    }
    drop(sender);
    // Two pipes: which line came last is chance, and what went wrong stands on the standard error.
    let (mut out, mut err) = (None, None);
    let mut take = |(stream, line): (Stream, String)| {
        on_line(stream, &line);
        match stream {
            Stream::Out => out = Some(line),
            Stream::Err => err = Some(line),
        }
    };
    let status = wait(child, program, timeout, &lines, &mut take)?;
    // What it wrote last; a daemon that keeps the pipe open is not waited for.
    let enough = Instant::now() + LAST_WORDS;
    while Instant::now() < enough
        && let Ok(line) = lines.recv_timeout(Duration::from_millis(300))
    {
        take(line);
    }
    Ok(Ended {
        status,
        last: err.or(out),
    })
}

fn clean(program: &str, arguments: &[String], directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/")
        .env("LANG", "C")
        .stdin(Stdio::null())
        .process_group(0);
    command
}

/// Waits for a program, taking its lines; `None` if its group had to be killed.
fn wait(
    mut child: Child,
    program: &str,
    timeout: Duration,
    lines: &mpsc::Receiver<(Stream, String)>,
    take: &mut dyn FnMut((Stream, String)),
) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        match lines.recv_timeout(Duration::from_millis(20)) {
            Ok(line) => take(line),
            Err(RecvTimeoutError::Timeout) => {}
            // Both outputs are closed; the program may still run.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(20)),
        }
        if let Some(status) = child
            .try_wait()
            .doing(|| format!("waiting for {program}"))?
        {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
                // Gone already is fine.
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            child.wait().doing(|| format!("waiting for {program}"))?;
            return Ok(None);
        }
    }
}

fn read_lines(
    from: impl Read + Send + 'static,
    stream: Stream,
    to: mpsc::SyncSender<(Stream, String)>,
) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        // An endless line comes in pieces.
        while let Ok(1..) = reader
            .by_ref()
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut line)
        {
            let text = String::from_utf8_lossy(&line);
            let text: String = text
                .trim_end_matches(['\n', '\r'])
                .chars()
                .map(|c| {
                    if c.is_control() && c != '\t' {
                        '\u{fffd}'
                    } else {
                        c
                    }
                })
                .collect();
            line.clear();
            if to.send((stream, text)).is_err() {
                break;
            }
        }
    });
}

/// Runs an argument vector like [`run`], with its output thrown away: what it starts may live on and keep writing.
pub fn run_silently(vector: &[String], timeout: Duration) -> Result<Ended> {
    let Some((program, arguments)) = vector.split_first() else {
        return Err(Error::new(
            "running a program: the argument vector is empty",
        ));
    };
    let child = clean(program, arguments, Path::new("/"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .doing(|| format!("running {program}"))?;
    let (_, nothing) = mpsc::sync_channel(0);
    wait(child, program, timeout, &nothing, &mut |_| {}).map(|status| Ended { status, last: None })
}

/// A file, whatever its name: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of the file that a path leads to.
    pub fn of(path: &Path) -> io::Result<FileId> {
        fs::metadata(path).map(|m| FileId {
            device: m.dev(),
            inode: m.ino(),
        })
    }
}

/// A path that leads to the file that a process executes, even if it was deleted.
pub fn executable(pid: u32) -> PathBuf {
    format!("/proc/{pid}/exe").into()
}

/// The name of the file that a process executes, as the kernel tells it.
pub fn executable_name(pid: u32) -> String {
    fs::read_link(executable(pid)).map_or_else(|_| "nothing".into(), |p| p.display().to_string())
}

/// Whether a process exists and is no zombie.
pub fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.lives())
}

/// All processes.
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The processes whose environment has this entry, `NAME=VALUE`.
pub fn marked(entry: &str) -> Vec<u32> {
    let has = |pid: &u32| {
        fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.split(|byte| *byte == 0).any(|e| e == entry.as_bytes()))
    };
    all()
        .into_iter()
        .filter(|pid| has(pid) && alive(*pid))
        .collect()
}

/// The processes that execute this file.
pub fn running(file: FileId) -> Vec<u32> {
    all()
        .into_iter()
        .filter(|&pid| FileId::of(&executable(pid)).is_ok_and(|id| id == file) && alive(pid))
        .collect()
}

/// A process and all that descend from it, the nearest first.
pub fn family(pid: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = all()
        .into_iter()
        .filter_map(|p| stat(p).map(|s| (p, s.parent)))
        .collect();
    parents.sort_unstable();
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() {
        let children = parents
            .iter()
            .filter(|(_, parent)| *parent == family[next])
            .map(|(child, _)| *child);
        let new: Vec<u32> = children.filter(|child| !family.contains(child)).collect();
        family.extend(new);
        next += 1;
    }
    family
}

/// This process and those that it descends from.
pub fn ancestors() -> Vec<u32> {
    let mut line = vec![std::process::id()];
    while let Some(stat) = line.last().and_then(|pid| stat(*pid))
        && stat.parent != 0
        && !line.contains(&stat.parent)
    {
        line.push(stat.parent);
    }
    line
}

/// A process that is still the same one as long as its start time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its id; ids are given again.
    pub pid: u32,
    started: u64,
}

impl Identity {
    /// Of a process that lives.
    pub fn of(pid: u32) -> Option<Identity> {
        let stat = stat(pid).filter(Stat::lives)?;
        Some(Identity {
            pid,
            started: stat.started,
        })
    }

    /// Whether it still lives.
    pub fn lives(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }
}

struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Stat {
    fn lives(&self) -> bool {
        self.state != 'Z' && self.state != 'X'
    }
}

/// From `/proc/PID/stat` (proc(5)); the name in its second field may hold anything.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// The processes that hold a TCP socket which listens on this port of the loopback interface: on its address, or on all.
pub fn listeners(port: u16) -> Vec<u32> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| {
            table
                .lines()
                .filter_map(|line| listening_inode(line, port))
                .collect::<Vec<_>>()
        })
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let holds = |pid: &u32| {
        fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| {
            fds.flatten().any(|fd| {
                fs::read_link(fd.path()).is_ok_and(|to| {
                    to.to_str()
                        .is_some_and(|to| sockets.iter().any(|s| s == to))
                })
            })
        })
    };
    all().into_iter().filter(holds).collect()
}

/// `sl local_address rem_address st … uid timeout inode`: state 0A listens.
fn listening_inode(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, local) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == "0A" && u16::from_str_radix(local, 16).ok()? == port;
    (listens && serves_loopback(address)).then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
}

/// Whether a socket bound to this address is reached through the loopback interface. The kernel prints an address as
/// 32-bit words, each as a number of the machine's own byte order.
fn serves_loopback(address: &str) -> bool {
    let words = address
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let Some(words) = words.collect::<Option<Vec<u32>>>() else {
        return false;
    };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let v4 = |a: Ipv4Addr| a.is_loopback() || a.is_unspecified();
    if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return v4(four.into());
    }
    let Ok(sixteen) = <[u8; 16]>::try_from(bytes.as_slice()) else {
        return false;
    };
    let v6 = Ipv6Addr::from(sixteen);
    v6.is_loopback() || v6.is_unspecified() || v6.to_ipv4_mapped().is_some_and(v4)
}

/// Whether a host name means this machine itself.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.parse::<Ipv4Addr>().is_ok_and(|a| a.is_loopback())
        || host.parse::<Ipv6Addr>().is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_loopback_reaches_count() {
        let text = |bytes: &[u8]| -> String {
            bytes
                .chunks(4)
                .map(|w| format!("{:08X}", u32::from_ne_bytes(w.try_into().unwrap())))
                .collect()
        };
        for (address, reached) in [
            ("127.0.0.1", true),
            ("0.0.0.0", true),
            ("10.0.0.5", false),
            ("::1", true),
            ("::", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:10.0.0.5", false),
            ("fe80::1", false),
        ] {
            let hex = match address.parse().unwrap() {
                std::net::IpAddr::V4(a) => text(&a.octets()),
                std::net::IpAddr::V6(a) => text(&a.octets()),
            };
            assert_eq!(serves_loopback(&hex), reached, "{address} as {hex}");
        }
        assert!(!serves_loopback("not hex"));
    }

    fn sh(script: &str, timeout: Duration) -> (Ended, Vec<(Stream, String)>) {
        let mut lines = Vec::new();
        let vector = ["sh", "-c", script].map(str::to_owned);
        let ended = run(&vector, Path::new("/"), &[], timeout, &mut |s, l| {
            lines.push((s, l.to_owned()))
        })
        .unwrap();
        (ended, lines)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_comes_line_by_line_with_its_stream() {
        let (ended, mut lines) = sh("echo one; echo two >&2; printf three; exit 3", LONG);
        lines.sort_by(|x, y| x.1.cmp(&y.1));
        assert_eq!(ended.status.unwrap().code(), Some(3));
        let expected = [
            (Stream::Out, "one"),
            (Stream::Out, "three"),
            (Stream::Err, "two"),
        ];
        assert_eq!(lines, expected.map(|(s, l)| (s, l.to_owned())));
        assert_eq!(
            ended.describe(),
            "exited 3: two",
            "what went wrong, and not what came last"
        );
    }

    #[test]
    fn garbage_and_endless_lines_do_no_harm() {
        let (_, lines) = sh(
            "printf '\\377\\001x\\n'; head -c 10000 /dev/zero | tr '\\0' y",
            LONG,
        );
        assert_eq!(lines[0].1, "\u{fffd}\u{fffd}x");
        assert_eq!(
            lines
                .iter()
                .map(|l| l.1.matches('y').count())
                .sum::<usize>(),
            10000
        );
        assert!(lines.iter().all(|l| l.1.len() <= MAX_LINE));
    }

    #[test]
    fn the_whole_group_is_killed_when_its_time_is_over() {
        let (ended, lines) = sh("sleep 1000 & echo $!; wait", Duration::from_millis(300));
        assert!(ended.status.is_none());
        let child: u32 = lines[0].1.parse().unwrap();
        let gone = Instant::now() + LONG;
        while alive(child) {
            assert!(Instant::now() < gone, "the grandchild {child} lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_daemon_left_behind_is_not_waited_for() {
        let start = Instant::now();
        let (ended, lines) = sh("sleep 100 & echo $!", LONG);
        assert!(ended.ok());
        assert!(start.elapsed() < Duration::from_secs(50));
        let daemon = Pid::from_raw(lines[0].1.parse().unwrap()).unwrap();
        rustix::process::kill_process(daemon, Signal::KILL).unwrap();
    }

    #[test]
    fn this_process_is_found_by_its_file_and_by_its_port() {
        let me = std::process::id();
        let file = FileId::of(&std::env::current_exe().unwrap()).unwrap();
        assert!(running(file).contains(&me));
        assert!(family(me).contains(&me));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listeners(port).contains(&me));
        drop(listener);
        assert!(!listeners(port).contains(&me));
        assert!(ancestors().contains(&me) && ancestors().len() > 1);
        assert!(Identity::of(me).unwrap().lives());
        assert!(
            !Identity {
                started: 0,
                ..Identity::of(me).unwrap()
            }
            .lives(),
            "the id of another process"
        );
    }
}
