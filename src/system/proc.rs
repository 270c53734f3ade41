//! What the kernel tells of processes, through `/proc` (proc(5)). Names, paths and environments in it are what processes
//! chose for themselves: bytes, and possibly hostile ones. Where `/proc` is can be chosen, so that tests can show such things.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use qx_release::script::Script;
use qx_release::text;

/// The variable that names the service in the environment of what is started for it.
pub const SERVICE: &str = "QX_UPDATE_SERVICE";
/// Where programs are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the kernel appends to the path of a file that has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// Flags of a process (linux/sched.h): it is on its way out; it is a thread of the kernel.
const PF_EXITING: u32 = 4;
const PF_KTHREAD: u32 = 0x0020_0000;

/// A file, whatever its name: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// A process that is still the same one as long as its start time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    started: u64,
    /// Its id; ids are given again.
    pub pid: u32,
}

impl Identity {
    /// Its id and start time, to be compared later.
    pub fn key(self) -> (u32, u64) {
        (self.pid, self.started)
    }

    /// Whether it certainly began after this tick.
    pub fn began_after(self, tick: Tick) -> bool {
        self.started > tick.0
    }
}

/// A time since boot as the kernel tells when processes began, in hundredths of a second (`USER_HZ`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick(u64);

impl Tick {
    /// The current one.
    pub fn now() -> Tick {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let number = |number: i64| u64::try_from(number).unwrap_or_default();
        Tick(number(now.tv_sec) * 100 + number(now.tv_nsec) / 10_000_000)
    }

    /// Waits until it is over: whatever begins then began certainly after it.
    pub fn end(self) {
        while Tick::now() == self {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One process, as it was when it was looked at.
#[derive(Debug, Clone)]
pub struct Process {
    /// Which one.
    pub identity: Identity,
    /// The id of its parent.
    pub parent: u32,
    /// The session that it belongs to.
    pub session: u32,
    /// The file that it executes; none of a kernel's thread.
    pub file: Option<FileId>,
    /// The path of that file, as [`Proc::executable_path`] tells it.
    pub path: Option<PathBuf>,
    /// Whether these are a script's, and what it executes is the interpreter.
    pub is_script: bool,
    /// The service that it was started for, by its environment: what [`SERVICE`] holds.
    pub mark: Option<Vec<u8>>,
}

impl Process {
    /// Its id.
    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// The script that it runs, if what it executes is that one's interpreter.
    pub fn script(&self) -> Option<&Path> {
        self.path.as_deref().filter(|_| self.is_script)
    }
}

/// What a process has of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The process.
    pub process: Identity,
    /// The first file or directory of it that was found.
    pub path: PathBuf,
}

/// `/proc`.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
}

impl Default for Proc {
    fn default() -> Proc {
        Proc::at("/proc")
    }
}

impl Proc {
    /// One that is mounted there.
    pub fn at(root: impl Into<PathBuf>) -> Proc {
        Proc { root: root.into() }
    }

    fn of(&self, pid: u32, file: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(file)
    }

    /// A path that leads to the file that a process executes, even if it was deleted.
    pub fn executable(&self, pid: u32) -> PathBuf {
        self.of(pid, "exe")
    }

    /// The path of the file that a process executes, as the kernel tells it; of a deleted one as it was.
    pub fn executable_path(&self, pid: u32) -> Option<PathBuf> {
        fs::read_link(self.executable(pid)).ok().map(undeleted)
    }

    /// The same for people, `nothing` if there is none.
    pub fn executable_name(&self, pid: u32) -> String {
        fs::read_link(self.executable(pid))
            .map_or_else(|_| "nothing".into(), |path| text::path(&path))
    }

    /// The file that a process executes.
    pub fn file(&self, pid: u32) -> Option<FileId> {
        FileId::of(&self.executable(pid)).ok()
    }

    /// The process with this id, if it lives.
    pub fn identity(&self, pid: u32) -> Option<Identity> {
        self.stat(pid).filter(Stat::lives).map(|stat| Identity {
            pid,
            started: stat.started,
        })
    }

    /// Whether it still lives.
    pub fn lives(&self, process: Identity) -> bool {
        self.identity(process.pid) == Some(process)
    }

    /// Whether a process has ended or is about to: it is gone, a zombie, on its way out, or killed and not yet gone. What it
    /// holds is released as soon as the kernel gets to it.
    pub fn ending(&self, pid: u32) -> bool {
        let killed = |status: &[u8]| {
            let status = String::from_utf8_lossy(status);
            let sets = status.lines().filter_map(|line| {
                let set = line
                    .strip_prefix("SigPnd:")
                    .or(line.strip_prefix("ShdPnd:"))?;
                u64::from_str_radix(set.trim(), 16).ok()
            });
            sets.fold(0, |all, set| all | set) & 1 << (Signal::KILL.as_raw() - 1) != 0
        };
        self.stat(pid)
            .is_none_or(|stat| !stat.lives() || stat.flags & PF_EXITING != 0)
            || fs::read(self.of(pid, "status")).is_ok_and(|status| killed(&status))
    }

    /// Kills it, if it is still the same one. Gone already is fine.
    pub fn kill(&self, process: Identity) {
        if self.lives(process)
            && let Some(pid) = Pid::from_raw(process.pid.cast_signed())
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// The ids of all processes.
    fn all(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// Those that live, and nothing more about them.
    pub fn identities(&self) -> Vec<Identity> {
        let all = self.all().into_iter();
        all.filter_map(|pid| self.identity(pid)).collect()
    }

    /// All processes that live, the kernel's own threads excepted: those execute no file, and often are most of all.
    pub fn processes(&self) -> Vec<Process> {
        let found = self.all().into_iter().filter_map(|pid| self.process(pid));
        found.collect()
    }

    fn process(&self, pid: u32) -> Option<Process> {
        let stat = self.stat(pid).filter(Stat::lives)?;
        if stat.flags & PF_KTHREAD != 0 {
            return None;
        }
        Some(Process {
            identity: Identity {
                pid,
                started: stat.started,
            },
            parent: stat.parent,
            session: stat.session,
            file: self.file(pid),
            path: self.executable_path(pid),
            is_script: false,
            mark: self.mark(pid),
        })
    }

    /// The service that OpenRC started a process for, by its control group: `NAME` in a hierarchy of OpenRC's own, `openrc.NAME`
    /// in the unified one.
    pub fn group(&self, pid: u32) -> Option<Vec<u8>> {
        let groups = read(&self.of(pid, "cgroup")).ok()?;
        groups.split(|b| *b == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |b| *b == b':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let first = path.strip_prefix(b"/")?.split(|b| *b == b'/').next()?;
            let name = match controllers {
                b"name=openrc" => first,
                b"" if number == b"0" => first.strip_prefix(b"openrc.")?,
                _ => return None,
            };
            (!name.is_empty()).then(|| name.to_vec())
        })
    }

    fn mark(&self, pid: u32) -> Option<Vec<u8>> {
        let environment = read(&self.of(pid, "environ")).ok()?;
        environment.split(|b| *b == 0).find_map(|entry| {
            let value = entry.strip_prefix(SERVICE.as_bytes())?.strip_prefix(b"=")?;
            Some(value.to_vec())
        })
    }

    /// Whether this is one of a process's arguments.
    pub fn has_argument(&self, pid: u32, argument: &str) -> bool {
        let arguments = read(&self.of(pid, "cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|b| *b == 0);
        arguments.any(|given| given == argument.as_bytes())
    }

    /// The script that a process runs, if it executes the interpreter that the script's first line names: it is the first of its
    /// arguments that is no option. `led` says where a path led when the process began; of what is not `among` these files
    /// nothing is asked, for another program's argument may be anything.
    pub fn script(
        &self,
        process: Identity,
        led: &dyn Fn(&Path) -> Option<PathBuf>,
        among: &dyn Fn(&Path) -> bool,
    ) -> Option<PathBuf> {
        let arguments = read(&self.of(process.pid, "cmdline")).ok()?;
        let arguments: Vec<&[u8]> = arguments.split(|b| *b == 0).skip(1).collect();
        arguments.iter().enumerate().find_map(|(at, argument)| {
            let mut path = PathBuf::from(OsStr::from_bytes(argument));
            if argument.is_empty() || path.is_relative() && !argument.contains(&b'/') {
                return None;
            }
            if path.is_relative() {
                path = fs::read_link(self.of(process.pid, "cwd")).ok()?.join(path);
            }
            let path = led(&path).filter(|path| among(path))?;
            let script = Script::read(&path)?;
            let runs =
                script.follows(&arguments[..at]) && self.interprets(process.pid, &script, led);
            runs.then_some(path)
        })
    }

    /// Whether a process executes what the first line of a script names.
    fn interprets(
        &self,
        pid: u32,
        script: &Script,
        led: &dyn Fn(&Path) -> Option<PathBuf>,
    ) -> bool {
        let executed = self.file(pid);
        let is = |path: &Path| {
            executed.is_some() && led(path).and_then(|path| FileId::of(&path).ok()) == executed
        };
        let Some(name) = &script.named else {
            return is(Path::new(&script.interpreter));
        };
        // Where `env` looks for it. The process may have another search path, with places in it that are not for us to look at.
        PATH.split(':')
            .any(|place| is(&Path::new(place).join(name)))
    }

    /// The processes whose environment has this entry, `NAME=VALUE`.
    pub fn marked(&self, entry: &str) -> Vec<Identity> {
        let has = |pid: &u32| {
            read(&self.of(*pid, "environ"))
                .is_ok_and(|all| all.split(|byte| *byte == 0).any(|e| e == entry.as_bytes()))
        };
        let marked = self.all().into_iter().filter(has);
        marked.filter_map(|pid| self.identity(pid)).collect()
    }

    /// This process and those that it descends from.
    pub fn ancestors(&self) -> Vec<u32> {
        let mut line = vec![std::process::id()];
        while let Some(stat) = line.last().and_then(|pid| self.stat(*pid))
            && stat.parent != 0
            && !line.contains(&stat.parent)
        {
            line.push(stat.parent);
        }
        line
    }

    /// The processes that hold a TCP socket which listens where a connection to this address of this machine arrives. Of several
    /// sockets it is the one that is bound most precisely.
    pub fn listeners(&self, address: SocketAddr) -> Vec<u32> {
        let mut found: Vec<(Precision, String)> = ["net/tcp", "net/tcp6"]
            .into_iter()
            .filter_map(|table| File::open(self.root.join(table)).ok())
            .flat_map(|table| listening(BufReader::with_capacity(TCP_LINE, table)))
            .filter_map(|line| listening_inode(&line, address))
            .collect();
        let best = found.iter().map(|(precision, _)| *precision).max();
        found.retain(|(precision, _)| Some(*precision) == best);
        let sockets: Vec<Vec<u8>> = found
            .iter()
            .map(|(_, inode)| format!("socket:[{inode}]").into_bytes())
            .collect();
        if sockets.is_empty() {
            return Vec::new();
        }
        let holds = |pid: &u32| {
            let held = |to: PathBuf| sockets.iter().any(|s| s == to.as_os_str().as_bytes());
            self.links(*pid, "fd").into_iter().any(held)
        };
        self.all().into_iter().filter(holds).collect()
    }

    /// The processes that execute, map, hold open, work in or have as their root something in one of these directories,
    /// this one excepted. Their paths must have no links in them.
    pub fn users(&self, directories: &[PathBuf]) -> Vec<Use> {
        let me = std::process::id();
        let others = self.all().into_iter().filter(|pid| *pid != me);
        others
            .filter_map(|pid| {
                let path = self.used(pid, directories)?;
                let process = self.identity(pid)?;
                Some(Use { process, path })
            })
            .collect()
    }

    /// The places at which something in one of these directories is mounted, in whichever mount namespace, and a process that
    /// sees it there. Whoever uses it is not found by its path.
    pub fn mounted(&self, directories: &[PathBuf]) -> Vec<Use> {
        let mine = self.mounts(std::process::id());
        // Where on which file system a directory lies: the last mount over it counts.
        let lies = |directory: &PathBuf| {
            let over = mine.iter().filter(|m| directory.starts_with(&m.point));
            let over = over.max_by_key(|m| m.point.as_os_str().len())?;
            let below = directory.strip_prefix(&over.point).ok()?;
            Some((over.device.clone(), over.root.join(below)))
        };
        let directories: Vec<(Vec<u8>, PathBuf)> = directories.iter().filter_map(lies).collect();
        let mut namespaces = Vec::new();
        let mut found = Vec::new();
        for process in self.identities() {
            let namespace = fs::read_link(self.of(process.pid, "ns/mnt")).ok();
            if namespace.is_some() && namespaces.contains(&namespace) {
                continue;
            }
            namespaces.push(namespace);
            let mounts = self.mounts(process.pid).into_iter();
            let inside = mounts.filter(|mount| {
                let same = directories
                    .iter()
                    .filter(|(device, _)| *device == mount.device);
                same.into_iter()
                    .any(|(_, path)| mount.root.starts_with(path))
            });
            found.extend(inside.map(|mount| Use {
                process,
                path: mount.point,
            }));
        }
        found
    }

    /// A process that holds a lock of flock(2) on a file, if it can be told (proc_locks(5)).
    pub fn lock_holder(&self, file: &fs::File) -> Option<u32> {
        let meta = file.metadata().ok()?;
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let place = format!("{major:02x}:{minor:02x}:{}", meta.ino());
        let locks = fs::read_to_string(self.root.join("locks")).ok()?;
        // `1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF`; who waits has an arrow behind the number.
        locks.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, "FLOCK", _, _, pid, at, ..] = fields[..] else {
                return None;
            };
            (at == place).then(|| pid.parse().ok()).flatten()
        })
    }

    /// The mount that an open file of this process is on.
    pub fn mount_id(&self, file: &fs::File) -> Option<u64> {
        let info = self.root.join(format!("self/fdinfo/{}", file.as_raw_fd()));
        let info = fs::read_to_string(info).ok()?;
        let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        line?.trim().parse().ok()
    }

    /// `id parent major:minor root point …`, in which a space is written as `\040`.
    fn mounts(&self, pid: u32) -> Vec<Mount> {
        let bytes = fs::read(self.of(pid, "mountinfo")).unwrap_or_default();
        let lines = bytes.split(|b| *b == b'\n');
        let mounts = lines.filter_map(|line| {
            let mut fields = line.split(|b| *b == b' ').skip(2);
            Some(Mount {
                device: fields.next()?.to_vec(),
                root: unescaped(fields.next()?),
                point: unescaped(fields.next()?),
            })
        });
        mounts.collect()
    }

    fn used(&self, pid: u32, directories: &[PathBuf]) -> Option<PathBuf> {
        let inside = |path: &PathBuf| directories.iter().any(|dir| path.starts_with(dir));
        let links = ["exe", "cwd", "root"].into_iter().filter_map(|name| {
            let link = fs::read_link(self.of(pid, name)).ok()?;
            Some(undeleted(link))
        });
        links
            .chain(self.links(pid, "fd"))
            .find(inside)
            .or_else(|| self.mapped(pid).into_iter().find(inside))
    }

    /// Where the links in one of a process's directories lead.
    fn links(&self, pid: u32, directory: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.of(pid, directory)).into_iter().flatten();
        entries
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok().map(undeleted))
            .collect()
    }

    /// The files that are mapped: `address perms offset dev inode   pathname`, in which the kernel writes a newline as `\012`.
    fn mapped(&self, pid: u32) -> Vec<PathBuf> {
        let maps = fs::read(self.of(pid, "maps")).unwrap_or_default();
        let mut paths: Vec<PathBuf> = maps
            .split(|b| *b == b'\n')
            .filter_map(|line| {
                let at = line.iter().position(|b| *b == b'/')?;
                let path = std::ffi::OsString::from_vec(line[at..].to_vec());
                Some(undeleted(path.into()))
            })
            .collect();
        paths.dedup();
        paths
    }

    /// From `PID/stat`; the name in its second field may hold anything.
    fn stat(&self, pid: u32) -> Option<Stat> {
        let bytes = read(&self.of(pid, "stat")).ok()?;
        let end = bytes.iter().rposition(|b| *b == b')')?;
        let rest = std::str::from_utf8(bytes.get(end + 2..)?).ok()?;
        // No more of the fields than are needed: this is asked for every process, again and again.
        let mut fields = rest.splitn(21, ' ');
        Some(Stat {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            session: fields.nth(1)?.parse().ok()?,
            flags: fields.nth(2)?.parse().ok()?,
            started: fields.nth(12)?.parse().ok()?,
        })
    }
}

/// Reads a file of `/proc`. Most fit into a page and say that they are empty: read as other files are, each would be asked for
/// its length, and taken in small pieces.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if length == bytes.len() {
            bytes.resize(2 * length, 0);
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// A mount, as far as it matters here.
struct Mount {
    device: Vec<u8>,
    /// What of the file system is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

/// A path in which some bytes are written as a backslash and three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((byte, more)) = rest.split_first() {
        let digits = more.get(..3).filter(|_| *byte == b'\\');
        let code = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        out.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    std::ffi::OsString::from_vec(out).into()
}

struct Stat {
    state: char,
    parent: u32,
    session: u32,
    flags: u32,
    started: u64,
}

impl Stat {
    fn lives(&self) -> bool {
        self.state != 'Z' && self.state != 'X'
    }
}

fn undeleted(path: PathBuf) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_suffix(DELETED) {
        Some(name) => std::ffi::OsStr::from_bytes(name).into(),
        None => path,
    }
}

/// How precisely a socket is bound to an address; more is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    /// To all of both kinds.
    Any,
    /// To all of its kind.
    Kind,
    /// To just this one.
    Exact,
}

/// The state of a socket that listens.
const LISTENS: &str = "0A";

/// How long the kernel makes a line of `net/tcp`. What is read in larger pieces is gathered up to there: see [`listening`].
const TCP_LINE: usize = 150;

/// The lines of a table `net/tcp` that listen. They come first (proc_net_tcp of the kernel's documentation), and only they are
/// read: after them comes every connection of the machine, and gathering those can take as long as a check itself.
fn listening(table: impl BufRead) -> impl Iterator<Item = String> {
    let lines = table.lines().map_while(Result::ok).skip(1);
    lines.take_while(|line| line.split_whitespace().nth(3) == Some(LISTENS))
}

/// `sl local_address rem_address st … uid timeout inode`.
fn listening_inode(line: &str, address: SocketAddr) -> Option<(Precision, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (bound, port) = fields.get(1)?.rsplit_once(':')?;
    let same = u16::from_str_radix(port, 16).ok()? == address.port();
    let precision = serves(bound, address.ip()).filter(|_| same)?;
    Some((precision, (*fields.get(9)?).to_owned()))
}

/// Whether a socket bound to the first address gets what is sent to the second, and how precisely it is bound. The kernel
/// prints an address as 32-bit words, each as a number of the machine's own byte order.
fn serves(bound: &str, address: IpAddr) -> Option<Precision> {
    let words = bound
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let words = words.collect::<Option<Vec<u32>>>()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let address = address.to_canonical();
    let bound: IpAddr = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => Ipv4Addr::from(four).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).into(),
    };
    match (bound, bound.to_canonical()) {
        (_, bound) if bound == address => Some(Precision::Exact),
        (_, bound) if bound.is_unspecified() && bound.is_ipv4() == address.is_ipv4() => {
            Some(Precision::Kind)
        }
        // One that is bound to no address in particular takes both kinds, unless it was told not to: nothing here says which.
        (IpAddr::V6(bound), _) if bound.is_unspecified() => Some(Precision::Any),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_sockets_that_an_address_reaches_count() {
        let text = |bytes: &[u8]| -> String {
            bytes
                .chunks(4)
                .map(|w| format!("{:08X}", u32::from_ne_bytes(w.try_into().unwrap())))
                .collect()
        };
        for (bound, asked, reached) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("0.0.0.0", "127.0.0.1", true),
            ("0.0.0.0", "10.0.0.5", true),
            ("0.0.0.0", "::1", false),
            ("10.0.0.5", "127.0.0.1", false),
            ("10.0.0.5", "10.0.0.5", true),
            ("127.0.0.2", "127.0.0.1", false),
            ("::1", "::1", true),
            ("::1", "127.0.0.1", false),
            ("::", "::1", true),
            ("::", "127.0.0.1", true),
            ("::ffff:0.0.0.0", "127.0.0.1", true),
            ("::ffff:127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "::ffff:127.0.0.1", true),
            ("::ffff:10.0.0.5", "127.0.0.1", false),
            ("fe80::1", "::1", false),
        ] {
            let hex = match bound.parse().unwrap() {
                IpAddr::V4(a) => text(&a.octets()),
                IpAddr::V6(a) => text(&a.octets()),
            };
            let asked = asked.parse().unwrap();
            let serves = serves(&hex, asked);
            assert_eq!(serves.is_some(), reached, "{bound} as {hex}, {asked}");
        }
        assert!(serves("not hex", Ipv4Addr::LOCALHOST.into()).is_none());
        assert!(Precision::Exact > Precision::Kind && Precision::Kind > Precision::Any);
    }

    #[test]
    fn a_connection_to_the_port_does_not_listen() {
        let line = |state: &str, inode: u32| {
            format!(
                "   0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
            )
        };
        let table = "  sl  local_address rem_address   st\n".to_owned()
            + &line("0A", 7)
            + &line("0A", 8)
            + &line("01", 9);
        let inodes = listening(table.as_bytes())
            .filter_map(|l| listening_inode(&l, "127.0.0.1:8080".parse().unwrap()));
        let inodes: Vec<String> = inodes.map(|(_, inode)| inode).collect();
        assert_eq!(inodes, ["7", "8"]);
    }

    #[test]
    fn this_process_is_found_by_its_file_and_by_its_port() {
        let proc = Proc::default();
        let me = std::process::id();
        let file = FileId::of(&std::env::current_exe().unwrap()).unwrap();
        let all = proc.processes();
        let mine = all.iter().find(|p| p.pid() == me).unwrap();
        assert_eq!(mine.file, Some(file));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(proc.listeners(address).contains(&me));
        drop(listener);
        assert!(!proc.listeners(address).contains(&me));
        assert!(proc.ancestors().contains(&me) && proc.ancestors().len() > 1);
        let identity = proc.identity(me).unwrap();
        assert!(proc.lives(identity));
        let another = Identity {
            started: 0,
            ..identity
        };
        assert!(!proc.lives(another), "the id of another process");
    }

    #[test]
    fn a_process_that_has_ended_is_ending() {
        // Also before it was waited for; one that lives is not.
        let proc = Proc::default();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        assert!(!proc.ending(child.id()) && !proc.ending(std::process::id()));
        child.kill().unwrap();
        while proc.identity(child.id()).is_some() {
            assert!(
                proc.ending(child.id()) || proc.identity(child.id()).is_none(),
                "killed"
            );
        }
        assert!(proc.ending(child.id()), "a zombie");
        child.wait().unwrap();
        assert!(proc.ending(child.id()), "gone");
    }

    /// A `/proc` in a directory.
    struct Fake {
        dir: tempfile::TempDir,
        proc: Proc,
    }

    impl Fake {
        fn new() -> Fake {
            let dir = tempfile::tempdir().unwrap();
            let proc = Proc::at(dir.path().join("proc"));
            Fake { dir, proc }
        }

        /// A process with that name, executing that path.
        fn add(&self, pid: u32, parent: u32, name: &[u8], exe: &Path) -> PathBuf {
            self.add_with(0x0040_0000, pid, parent, name, exe)
        }

        fn add_with(&self, flags: u32, pid: u32, parent: u32, name: &[u8], exe: &Path) -> PathBuf {
            let place = self.dir.path().join("proc").join(pid.to_string());
            fs::create_dir_all(place.join("fd")).unwrap();
            let mut stat = format!("{pid} (").into_bytes();
            stat.extend_from_slice(name);
            stat.extend_from_slice(
                format!(
                    ") S {parent} {pid} 7 0 -1 {flags} 1 1 1 1 1 1 1 1 20 0 1 0 {} 1 1",
                    4711 + pid
                )
                .as_bytes(),
            );
            fs::write(place.join("stat"), stat).unwrap();
            symlink(exe, place.join("exe")).unwrap();
            place
        }
    }

    #[test]
    fn threads_of_the_kernel_are_no_processes() {
        let fake = Fake::new();
        fake.add(10, 1, b"daemon", Path::new("/bin/daemon"));
        fake.add_with(
            PF_KTHREAD | 0x0040,
            11,
            2,
            b"kworker",
            Path::new("/nowhere"),
        );
        let pids: Vec<u32> = fake
            .proc
            .processes()
            .iter()
            .map(|p| p.identity.pid)
            .collect();
        assert_eq!(pids, [10]);
    }

    #[test]
    fn names_that_are_no_text_or_look_like_the_line_itself_hide_nothing() {
        let fake = Fake::new();
        for (pid, name) in [
            (10, &b"\xff\xfe daemon"[..]),
            (11, b"x) R 1 1 1 0 ("),
            (12, b"a\nb"),
            (13, b") Z 0 0"),
        ] {
            fake.add(pid, 1, name, Path::new("/bin/daemon"));
            let process = fake.proc.process(pid);
            let process = process.unwrap_or_else(|| panic!("{pid} is invisible"));
            assert_eq!(process.parent, 1, "{pid}");
            assert_eq!(process.session, 7, "{pid}");
            assert!(fake.proc.lives(process.identity));
        }
        assert_eq!(fake.proc.processes().len(), 4);
    }

    #[test]
    fn a_service_is_known_by_its_group_or_its_mark_whatever_bytes_are_around_it() {
        let fake = Fake::new();
        let exe = Path::new("/bin/daemon");
        let web = Some(&b"web"[..]);
        for (number, (file, content, service)) in [
            ("cgroup", &b"0::/openrc.web\n"[..], web),
            ("cgroup", b"9:name=openrc:/web/sub\n0::/\n", web),
            ("cgroup", b"0::/user/openrc.web\n", None),
            ("cgroup", b"1:memory:/openrc.web\n", None),
            ("environ", b"A=\xff\xfe\0QX_UPDATE_SERVICE=web\0", web),
            ("environ", b"XQX_UPDATE_SERVICE=web\0", None),
            ("environ", b"QX_UPDATE_SERVICES=web\0", None),
        ]
        .into_iter()
        .enumerate()
        {
            let pid = 100 + number as u32;
            let place = fake.add(pid, 1, b"d", exe);
            fs::write(place.join(file), content).unwrap();
            let process = fake.proc.process(pid).unwrap();
            let seen = fake.proc.group(pid).or(process.mark);
            assert_eq!(
                seen.as_deref(),
                service,
                "{file} {}",
                content.escape_ascii()
            );
        }
        let marked = fake.proc.marked("QX_UPDATE_SERVICE=web");
        assert_eq!(marked.len(), 1, "{marked:?}");
    }

    #[test]
    fn whatever_a_process_has_of_a_directory_is_found() {
        let fake = Fake::new();
        let slot = PathBuf::from("/data/slots/a");
        let inside = slot.join("share/ui");
        let out = Path::new("/bin/daemon");
        let by_exe = |pid, path: &str| drop(fake.add(pid, 1, b"d", Path::new(path)));
        by_exe(20, "/data/slots/a/bin/d");
        by_exe(21, "/data/slots/a/bin/d (deleted)");
        by_exe(22, "/data/slots/ab/bin/d");
        by_exe(23, "/data/slots/b/bin/d");
        for (pid, link) in [(24, "cwd"), (25, "root"), (26, "fd/3")] {
            let place = fake.add(pid, 1, b"d", out);
            symlink(&inside, place.join(link)).unwrap();
        }
        let place = fake.add(27, 1, b"d", out);
        let maps = b"7f00-7f01 r-xp 0 08:01 1 /lib/\xff.so\n7f01-7f02 r-xp 0 08:01 2  /data/slots/a/lib.so (deleted)\n";
        fs::write(place.join("maps"), maps).unwrap();
        let mut found: Vec<u32> = fake
            .proc
            .users(&[slot])
            .iter()
            .map(|user| user.process.pid)
            .collect();
        found.sort_unstable();
        assert_eq!(found, [20, 21, 24, 25, 26, 27]);
    }

    #[test]
    fn the_name_of_a_file_is_shown_as_one_line() {
        let fake = Fake::new();
        fake.add(30, 1, b"d", Path::new("/bin/x\nrunning   9.9.9\u{1b}[2J"));
        let name = fake.proc.executable_name(30);
        assert!(!name.contains(char::is_control), "{name:?}");
        assert!(name.starts_with("/bin/x\\n"), "{name}");
        assert_eq!(fake.proc.executable_name(31), "nothing");
    }
}
