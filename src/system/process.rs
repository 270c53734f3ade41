//! Running programs: under a time limit, in a known environment, as somebody.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::system::group::Group;
use crate::system::host::Host;
use crate::system::proc::PATH;
use qx_release::error::{Context, Error, Result};
use qx_release::text;

/// The longest line of a program's output that is kept whole, in bytes.
const MAX_LINE: usize = 4096;
/// How much of an output is taken at a time, in bytes.
const MAX_HEARD: u64 = 1 << 16;
/// How often it is looked whether a program keeps within its space.
const LOOK: Duration = Duration::from_millis(200);
/// How long output is waited for until it is looked whether the program has ended.
const WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

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

    /// How it ended, in words.
    pub fn how(&self) -> String {
        match self.status {
            None => "did not end in time and was killed".to_owned(),
            Some(status) => match (
                status.code(),
                std::os::unix::process::ExitStatusExt::signal(&status),
            ) {
                (Some(code), _) => format!("exited {code}"),
                (None, Some(signal)) => format!("was killed by signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
        }
    }

    /// The same, with its last words.
    pub fn describe(&self) -> String {
        match &self.last {
            Some(line) => format!("{}: {line}", self.how()),
            None => self.how(),
        }
    }
}

/// A program to run: in a clean environment (`PATH`, `HOME`, `LANG=C`), in a process group of its own, with nothing to read
/// on its standard input. After `timeout` the whole group is killed.
pub struct Program<'a> {
    /// The argument vector.
    pub vector: &'a [String],
    /// Where it runs.
    pub directory: &'a Path,
    /// What its environment holds besides.
    pub environment: &'a [(String, String)],
    /// Who it runs as, without supplementary groups and at home in that user's `HOME`. Absent: who we are, and `HOME=/`.
    pub user: Option<&'a User>,
    /// The control group in which it runs, with all that it starts. Absent: ours.
    pub group: Option<&'a Group>,
    /// How long it may take.
    pub timeout: Duration,
    /// Checked regularly: whether it keeps within its space limit; if not, its group is killed. Absent: no limit.
    pub within: Option<&'a dyn Fn() -> bool>,
}

impl<'a> Program<'a> {
    /// Runs in `/`, as we do.
    pub fn new(vector: &'a [String], timeout: Duration) -> Program<'a> {
        Program {
            vector,
            directory: Path::new("/"),
            environment: &[],
            user: None,
            group: None,
            timeout,
            within: None,
        }
    }

    /// Runs it with its output thrown away: what it starts may live on and keep writing.
    pub fn run_silently(&self) -> Result<Ended> {
        let child = self.spawn(|| null().map(Stdio::from))?;
        let status = Running::of(child, self, Vec::new()).wait(&mut |_, _| ())?;
        Ok(Ended { status, last: None })
    }

    /// Runs it. Every line of output goes to `on_line` as it comes: at most 4096 bytes of it, bytes that are no text
    /// replaced. A program that writes faster than that waits. All that it had written when it ended is heard; a daemon that it
    /// leaves behind is not waited for.
    pub fn run(&self, on_line: &mut dyn FnMut(Stream, &str)) -> Result<Ended> {
        let mut child = self.spawn(|| Ok(Stdio::piped()))?;
        let out = child.stdout.take().map(|pipe| (Stream::Out, pipe.into()));
        let err = child.stderr.take().map(|pipe| (Stream::Err, pipe.into()));
        let outputs = out.into_iter().chain(err);
        let outputs = outputs.map(|(stream, pipe)| Output::of(stream, pipe));
        // Two pipes: which line came last is chance, and what went wrong stands on the standard error.
        let (mut out, mut err) = (None, None);
        let mut take = |stream, line: &str| {
            on_line(stream, line);
            match stream {
                Stream::Out => out = Some(line.to_owned()),
                Stream::Err => err = Some(line.to_owned()),
            }
        };
        let status = Running::of(child, self, outputs.collect()).wait(&mut take)?;
        Ok(Ended {
            status,
            last: err.or(out),
        })
    }

    fn name(&self) -> &str {
        self.vector.first().map_or("", String::as_str)
    }

    fn spawn(&self, output: fn() -> Result<Stdio>) -> Result<Child> {
        let Some((program, arguments)) = self.vector.split_first() else {
            return Err(Error::new(
                "running a program: the argument vector is empty",
            ));
        };
        let doing = || format!("running {program}");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.directory)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", self.user.map_or("/", |user| &user.home))
            .env("LANG", "C")
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .stdin(null()?)
            .stdout(output()?)
            .stderr(output()?)
            .process_group(0);
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        // What is started in a group stays in it; who starts it does not.
        let _within = self.group.map(Group::enter).transpose()?;
        command.spawn().doing(doing)
    }
}

/// `/dev/null`, for programs without input or output. If it is missing, or a regular file is in its place, the error says so
/// rather than blaming the program.
pub fn null() -> Result<File> {
    let doing = || "opening /dev/null, which every program is started with";
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.doing(doing)?;
    match null.metadata().doing(doing)?.file_type().is_char_device() {
        true => Ok(null),
        false => Err(Error::new(format!("{}: it is not a device", doing()))),
    }
}

/// One of the outputs of a program that runs, and what takes its lines.
struct Output {
    stream: Stream,
    /// Nothing, once everybody has closed the other end.
    pipe: Option<OwnedFd>,
    /// The beginning of the next line.
    line: Vec<u8>,
}

type Take<'a> = dyn FnMut(Stream, &str) + 'a;

impl Output {
    fn of(stream: Stream, pipe: OwnedFd) -> Output {
        // Our end alone: who writes waits as ever. Where it fails, so does reading.
        let _ = rustix::io::ioctl_fionbio(&pipe, true);
        Output {
            stream,
            pipe: Some(pipe),
            line: Vec::new(),
        }
    }

    /// Takes what is there, but no more than this.
    fn hear(&mut self, mut most: u64, take: &mut Take) {
        let mut bytes = [0; MAX_LINE];
        while let Some(pipe) = &self.pipe
            && most > 0
        {
            let room = usize::try_from(most).unwrap_or(MAX_LINE).min(MAX_LINE);
            match rustix::io::read(pipe, &mut bytes[..room]) {
                Ok(0) => self.pipe = None,
                Ok(length) => {
                    most -= length as u64;
                    self.add(&bytes[..length], take);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    /// Takes what was written until now, however much else is still to come: the program has ended.
    fn hear_out(&mut self, take: &mut Take) {
        let there = self.pipe.as_ref().map(rustix::io::ioctl_fionread);
        self.hear(there.and_then(Result::ok).unwrap_or_default(), take);
        if !self.line.is_empty() {
            self.tell(take);
        }
    }

    fn add(&mut self, bytes: &[u8], take: &mut Take) {
        for byte in bytes {
            if *byte == b'\n' {
                self.tell(take);
                continue;
            }
            self.line.push(*byte);
            // An endless line comes in pieces.
            if self.line.len() == MAX_LINE {
                self.tell(take);
            }
        }
    }

    fn tell(&mut self, take: &mut Take) {
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end_matches('\r').replace('\t', " ");
        take(self.stream, &text::clean(&text, MAX_LINE));
        self.line.clear();
    }
}

/// A program that was started.
struct Running<'a> {
    child: Child,
    program: &'a str,
    deadline: Instant,
    within: Option<&'a dyn Fn() -> bool>,
    /// When that is asked next.
    look: Instant,
    outputs: Vec<Output>,
}

impl<'a> Running<'a> {
    fn of(child: Child, program: &'a Program<'a>, outputs: Vec<Output>) -> Running<'a> {
        Running {
            child,
            program: program.name(),
            deadline: Instant::now() + program.timeout,
            within: program.within,
            look: Instant::now(),
            outputs,
        }
    }

    /// Waits for it, taking its output; `None` if its group had to be killed.
    fn wait(&mut self, take: &mut Take) -> Result<Option<ExitStatus>> {
        loop {
            self.listen(take);
            let ended = self.child.try_wait();
            let ended = ended.doing(|| format!("waiting for {}", self.program))?;
            let late = ended.is_none() && Instant::now() >= self.deadline;
            if late {
                self.kill()?;
            }
            if ended.is_some() || late {
                for output in &mut self.outputs {
                    output.hear_out(take);
                }
                return Ok(ended);
            }
            if let Some(within) = self.within
                && Instant::now() >= self.look
            {
                if !within() {
                    self.kill()?;
                    let what = format!("running {}: it exceeds its space limit", self.program);
                    return Err(Error::new(what));
                }
                self.look = Instant::now() + LOOK;
            }
        }
    }

    /// Waits a little for output, and takes some.
    fn listen(&mut self, take: &mut Take) {
        let pipes = self
            .outputs
            .iter()
            .filter_map(|output| output.pipe.as_ref());
        let mut pipes: Vec<PollFd> = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        // Whether it failed is seen in reading.
        let _ = rustix::event::poll(&mut pipes, Some(&WAIT));
        for output in &mut self.outputs {
            output.hear(MAX_HEARD, take);
        }
    }

    fn kill(&mut self) -> Result<()> {
        // As long as it was not waited for, its id is nobody else's.
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            // Gone already is fine.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        self.child
            .wait()
            .map(drop)
            .doing(|| format!("waiting for {}", self.program))
    }
}

/// Somebody whom programs run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub uid: u32,
    /// The id of the user's group.
    pub gid: u32,
    /// The user's home directory.
    pub home: String,
}

impl User {
    /// From the appliance's `/etc/passwd` (passwd(5)).
    pub fn find(host: &Host, name: &str) -> Result<User> {
        let path = host.path("/etc/passwd")?;
        let doing = || format!("looking for the user {name} in {}", path.display());
        let bytes = fs::read(&path).doing(doing)?;
        // Names of other people, in whatever encoding, are none of our concern.
        let user = bytes.split(|b| *b == b'\n').find_map(|line| {
            let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
            (*fields.first()? == name.as_bytes()).then_some(())?;
            let field = |number: usize| std::str::from_utf8(fields.get(number)?).ok();
            Some(User {
                uid: field(2)?.parse().ok()?,
                gid: field(3)?.parse().ok()?,
                home: field(5)?.to_owned(),
            })
        });
        user.ok_or_else(|| Error::new(format!("{}: no such user", doing())))
    }
}

/// As long as it lives, this thread, and what it starts, works only while nobody else wants to: nice value 19, which the
/// priority on disks follows (ioprio_set(2)).
pub struct Nice(Option<i32>);

impl Nice {
    /// A failure to lower the priority is ignored.
    pub fn new() -> Nice {
        let before = rustix::process::getpriority_process(None).ok();
        let _ = rustix::process::setpriority_process(None, 19);
        Nice(before)
    }
}

impl Default for Nice {
    fn default() -> Nice {
        Nice::new()
    }
}

impl Drop for Nice {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            let _ = rustix::process::setpriority_process(None, before);
        }
    }
}

/// Starts a thread. The standard library's own way to do that panics where there is no memory for one.
pub fn thread(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().spawn(work);
    started.map(drop).doing(|| "starting a thread")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Duration) -> (Ended, Vec<(Stream, String)>) {
        let mut lines = Vec::new();
        let vector = ["sh", "-c", script].map(str::to_owned);
        let ended = Program::new(&vector, timeout)
            .run(&mut |s, l| lines.push((s, l.to_owned())))
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
    fn a_program_runs_as_its_user_at_home() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let me = rustix::process::getuid();
        // Another user, if we may be one.
        let id = if me.is_root() { 12345 } else { me.as_raw() };
        let mut passwd =
            b"root:x:0:0:root:/root:/bin/sh\nbroken\nm\xfcller:x:7:7:M\xfcller:/:/bin/sh\n"
                .to_vec();
        passwd.extend(format!("db:x:{id}:{id}::/var/db:/bin/sh\n").into_bytes());
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        let host = Host::new(dir.path()).unwrap();
        let user = User::find(&host, "db").unwrap();
        let unknown = User::find(&host, "d").unwrap_err().chain();
        assert!(unknown.contains("the user d "), "{unknown}");
        assert!(User::find(&host, "broken").is_err());
        let vector = ["sh", "-c", "id -u; id -G; echo $HOME"].map(str::to_owned);
        let mut lines = Vec::new();
        let program = Program {
            user: Some(&user),
            ..Program::new(&vector, LONG)
        };
        let ended = program.run(&mut |_, line| lines.push(line.to_owned()));
        assert!(ended.unwrap().ok());
        let id = id.to_string();
        assert_eq!(lines, [&id, &id, "/var/db"], "no other groups");
    }

    #[test]
    fn it_is_nice_only_for_a_while() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let guard = Nice::new();
        assert_eq!(nice(), 19);
        assert_eq!(sh("nice", LONG).1[0].1, "19", "what it starts, too");
        drop(guard);
        if rustix::process::getuid().is_root() {
            assert_eq!(nice(), before);
        }
    }

    #[test]
    fn garbage_and_endless_lines_do_no_harm() {
        let (_, lines) = sh(
            "printf '\\377\\001x\\n'; head -c 10000 /dev/zero | tr '\\0' y",
            LONG,
        );
        assert_eq!(lines[0].1, "\u{fffd}\\u{1}x");
        assert_eq!(
            lines
                .iter()
                .map(|l| l.1.matches('y').count())
                .sum::<usize>(),
            10000
        );
        assert!(lines.iter().all(|l| l.1.len() <= MAX_LINE));
    }

    /// Nobody is waited for who may still write, and nothing is lost that was written.
    #[test]
    fn last_words_are_heard() {
        use std::io::Write;
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut output = Output::of(Stream::Err, reader.into());
        // More than is taken at a time.
        let long = "x".repeat(3 * MAX_LINE);
        write!(writer, "{long}\nno such column\nand more").unwrap();
        let mut lines = Vec::new();
        output.hear_out(&mut |_, line| lines.push(line.to_owned()));
        assert_eq!(lines.concat(), format!("{long}no such columnand more"));
        assert_eq!(lines[lines.len() - 2..], ["no such column", "and more"]);
        assert!(output.pipe.is_some(), "it may still be written to");
    }

    #[test]
    fn the_whole_group_is_killed_when_its_time_is_over() {
        let (ended, lines) = sh("sleep 1000 & echo $!; wait", Duration::from_secs(3));
        assert!(ended.status.is_none());
        let child: u32 = lines[0].1.parse().unwrap();
        let gone = Instant::now() + LONG;
        while crate::system::proc::Proc::default()
            .identity(child)
            .is_some()
        {
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
}
