//! The test appliance as a value: boots, runs shell scripts in it, kills it. `qemu/README.md` has the protocol.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::base64;
use crate::built;
use crate::release::{MARK, Release};

/// Nothing that is waited for here takes nearly as long: it ends tests that hang, and decides nothing else.
pub const GUARD: Duration = Duration::from_secs(240);
/// How many appliances run at once. Two keep two cores busy for 60 % of the time: a release on trial mostly waits.
const PLACES: usize = 3;
const BOOT_COMPLETE: &str = "appliance: boot complete after";

static PLACES_TAKEN: Mutex<usize> = Mutex::new(0);
static PLACE_FREE: Condvar = Condvar::new();

/// An appliance with its disk, running or not. Its directory holds the disk and the console's log.
pub struct Appliance {
    dir: PathBuf,
    options: Vec<String>,
    running: Option<Running>,
}

/// What a script in the appliance said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// A script on its way.
pub struct Pending {
    id: String,
    script: String,
    line: Arc<Line>,
}

struct Running {
    qemu: Child,
    control: UnixStream,
    line: Arc<Line>,
    console_from: u64,
}

/// What came by the control channel.
struct Line {
    came: Mutex<Came>,
    more: Condvar,
}

#[derive(Default)]
struct Came {
    greeted: bool,
    answers: HashMap<String, Output>,
    closed: bool,
}

impl Appliance {
    /// An appliance with an empty ext4 disk, which is made by the first boot.
    pub fn new(name: &str) -> Appliance {
        built::image();
        let mut taken = PLACES_TAKEN.lock().unwrap();
        while *taken == PLACES {
            taken = PLACE_FREE.wait(taken).unwrap();
        }
        *taken += 1;
        drop(taken);
        let dir = built::directory(name);
        let socket = dir.join("control");
        assert!(
            socket.as_os_str().len() <= 107,
            "{} is too long for a socket's path: put the sources somewhere shorter",
            socket.display()
        );
        Appliance {
            options: Vec::new(),
            running: None,
            dir,
        }
    }

    /// An appliance on which `v1` was installed and proved, over the factory set.
    pub fn with_v1(name: &str) -> Appliance {
        let disk = built::v1_disk();
        let appliance = Appliance::new(name);
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .args([&disk, &appliance.disk()])
            .status();
        assert!(copied.unwrap().success(), "copying {}", disk.display());
        appliance
    }

    /// More options of `qemu/run`, for all boots from now on.
    pub fn options(mut self, options: &[&str]) -> Appliance {
        self.set_options(options);
        self
    }

    /// See [`Appliance::options`].
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|o| (*o).to_owned()).collect();
    }

    /// The file behind its data disk.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("data.img")
    }

    /// Boots it until the default runlevel is complete and what that started to prove an open trial has ended.
    pub fn boot(&mut self) {
        self.start();
        self.wait_console(BOOT_COMPLETE);
        self.wait_confirm();
    }

    /// Boots it until scripts can be run; services are still to come.
    pub fn start(&mut self) {
        self.power_on();
        self.running()
            .line
            .wait("the appliance's greeting", |c| c.greeted.then_some(()));
    }

    /// The kernel is gone so long after the power came, wherever that is: in the initramfs, in recovery, between services.
    pub fn cut_the_boot(&mut self, after: Duration) {
        self.power_on();
        std::thread::sleep(after);
        self.kill();
    }

    /// Waits for nothing but the machine.
    pub fn power_on(&mut self) {
        assert!(self.running.is_none(), "the appliance runs already");
        let console_from = fs::metadata(self.console()).map_or(0, |m| m.len());
        let errors = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.join("qemu.log"))
            .unwrap();
        let mut qemu = Command::new(built::top().join("qemu/run"))
            .arg("--batch")
            .arg(&self.dir)
            .arg("--data")
            .arg(self.disk())
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(errors.try_clone().unwrap())
            .stderr(errors)
            .spawn()
            .unwrap();
        let socket = self.dir.join("control");
        let guard = Instant::now() + GUARD;
        let control = loop {
            if let Some(status) = qemu.try_wait().unwrap() {
                panic!("qemu/run ended by {status}: {}", self.read("qemu.log"));
            }
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(e) => assert!(Instant::now() < guard, "{}: {e}", socket.display()),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let line = Arc::new(Line {
            came: Mutex::default(),
            more: Condvar::new(),
        });
        let reader = (control.try_clone().unwrap(), Arc::clone(&line));
        std::thread::spawn(move || listen(reader.0, &reader.1));
        self.running = Some(Running {
            qemu,
            control,
            line,
            console_from,
        });
    }

    /// The kernel is gone at once: nothing is synced, nobody is told.
    pub fn kill(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        running.qemu.kill().unwrap();
        running.qemu.wait().unwrap();
    }

    /// Waits until the kernel is gone by its own doing: what it had not synced is lost. Needs `--no-reboot`.
    pub fn wait_gone(&mut self) {
        let mut running = self.running.take().expect("the appliance does not run");
        let guard = Instant::now() + GUARD;
        while running.qemu.try_wait().unwrap().is_none() {
            if Instant::now() >= guard {
                running.qemu.kill().unwrap();
                panic!("waited {} s for the kernel to go, in vain", GUARD.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// An orderly end, and the next boot.
    pub fn reboot(&mut self) {
        self.power_off();
        self.boot();
    }

    /// It holds the lock for a moment even where it has nothing to do.
    fn wait_confirm(&self) {
        self.wait_for("the end of confirm", |a| {
            (a.run("ps | grep -q '[q]x-update.* confirm'").code != 0).then_some(())
        });
    }

    /// An orderly end: what was written is on the disk. The machine itself is not waited for: Debian's kernel may take
    /// minutes to leave it, when all is done.
    pub fn power_off(&mut self) {
        let _unanswered = self.spawn("poweroff");
        self.wait_console("Taking /data down");
        self.wait_console("Requesting system poweroff");
        self.kill();
    }

    /// Runs a shell script as root to its end.
    pub fn run(&self, script: &str) -> Output {
        self.spawn(script).wait()
    }

    /// Runs a shell script that must exit 0; its standard output, trimmed.
    pub fn ok(&self, script: &str) -> String {
        let output = self.run(script);
        assert_eq!(output.code, 0, "`{script}` failed: {output:#?}");
        output.out.trim().to_owned()
    }

    /// Runs `qx-update` with these arguments, which must exit with `code`; all that it said.
    pub fn qx_update(&self, arguments: &str, code: i32) -> String {
        self.spawn(&format!("qx-update {arguments}")).exits(code)
    }

    /// Starts a shell script.
    pub fn spawn(&self, script: &str) -> Pending {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let id = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let running = self.running();
        let line = format!("{id} {}\n", base64::encode(script.as_bytes()));
        (&running.control).write_all(line.as_bytes()).unwrap();
        Pending {
            id,
            script: script.to_owned(),
            line: Arc::clone(&running.line),
        }
    }

    /// `qx-update status --json`.
    pub fn status(&self) -> Value {
        let text = self.ok("qx-update status --json");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The phase in the newest intact copy of the record, as it is on the disk.
    pub fn phase(&self) -> String {
        let text = self
            .run("cd /data/update && cat state.0 state.1 2>/dev/null")
            .out;
        let records = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let newest = records.max_by_key(|r| r["sequence"].as_u64());
        newest
            .and_then(|r| Some(r["record"]["phase"].as_str()?.to_owned()))
            .unwrap_or_default()
    }

    /// Waits until nothing is at work and no operation is open; the status then.
    pub fn settled(&self) -> Value {
        self.wait_for("the update to be settled", |a| {
            let phase = a.phase();
            if !matches!(phase.as_str(), "idle" | "staged") {
                return None;
            }
            let status = a.status();
            (status["busy"].is_null()
                && matches!(status["phase"].as_str(), Some("idle" | "staged")))
            .then_some(status)
        })
    }

    /// The messages of the update log.
    pub fn log(&self) -> String {
        self.qx_update("log", 0)
    }

    /// Waits until this stands on the console since the last boot by [`Appliance::boot`] or [`Appliance::start`].
    pub fn wait_console(&self, marker: &str) {
        self.wait_for(&format!("'{marker}' on the console"), |a| {
            a.console_text().contains(marker).then_some(())
        });
    }

    /// What stands on the console since QEMU was started last.
    pub fn console_text(&self) -> String {
        let from = self.running.as_ref().map_or(0, |r| r.console_from);
        let bytes = fs::read(self.console()).unwrap_or_default();
        String::from_utf8_lossy(&bytes[(from as usize).min(bytes.len())..]).into_owned()
    }

    /// Asks again and again until there is an answer.
    pub fn wait_for<T>(&self, what: &str, mut ask: impl FnMut(&Appliance) -> Option<T>) -> T {
        let guard = Instant::now() + GUARD;
        loop {
            let asked = Instant::now();
            if let Some(answer) = ask(self) {
                return answer;
            }
            assert!(
                Instant::now() < guard,
                "waited {} s for {what}, in vain",
                GUARD.as_secs()
            );
            // What the appliance has to do for an answer is not to keep it from what is waited for.
            let pause = asked.elapsed() * 3;
            std::thread::sleep(pause.clamp(Duration::from_millis(100), Duration::from_secs(2)));
        }
    }

    /// Exactly one set runs, and it is this release: `status` names it, every process of the three services executes
    /// the program that its recipe names, wherever it is, and the services answer with its versions.
    pub fn assert_runs(&self, release: &Release) {
        let status = self.status();
        assert_eq!(
            status["running"]["version"], release.version,
            "status names another set than {}: {status:#}",
            release.version
        );
        for service in status["services"].as_array().unwrap() {
            assert_eq!(service["state"], "installed", "{status:#}");
        }
        self.wait_for(
            &format!("the services to run the programs of {}", release.version),
            |a| (a.programs() == release.programs).then_some(()),
        );
        for (url, version) in &release.answers {
            let body = self.wait_for(&format!("an answer from {url}"), |a| {
                let got = a.run(&format!("wget -q -O - {url}"));
                (got.code == 0).then_some(got.out)
            });
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(&body["version"], version, "{url} answers {body}");
        }
    }

    /// The mark of each running program of the appliance, by its service's pidfile; any further process of that kind
    /// under its file's path.
    pub fn programs(&self) -> Vec<(String, String)> {
        let out = self.ok(&r#"for exe in /proc/[0-9]*/exe; do
                path=$(readlink "$exe") || continue
                case $path in */bin/qx-update*) continue ;; */bin/qx-*) ;; *) continue ;; esac
                pid=${exe#/proc/}; pid=${pid%/exe}
                set -- $(cat "/proc/$pid/stat" 2>/dev/null); parent=${4:-0}
                name=$path
                for file in /run/quantix-*.pid; do
                    main=$(cat "$file" 2>/dev/null)
                    case $main in "$pid" | "$parent") name=$(basename "$file" .pid) ;; esac
                done
                file=$exe
                mark=$(MARK)
                [ -e "$exe" ] || continue
                echo "$name ${mark%% *}"
            done"#
            .replace("MARK", MARK));
        let mut found: Vec<(String, String)> = out
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, digest)| (name.to_owned(), digest.to_owned()))
            .collect();
        found.sort();
        found
    }

    /// The process that a service's program runs in: the one in the pidfile, or the child of a supervisor there.
    pub fn pid(&self, service: &str) -> u32 {
        let script = format!(
            r#"main=$(cat /run/{service}.pid)
            for stat in /proc/[0-9]*/stat; do
                set -- $(cat "$stat" 2>/dev/null)
                [ "$4" != "$main" ] || {{ echo "$1"; exit; }}
            done
            echo "$main""#
        );
        self.ok(&script).parse().unwrap()
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the appliance does not run")
    }

    fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// What a person wants to see of an appliance that a test failed on.
    fn keep_evidence(&mut self) {
        if let Some(running) = &self.running {
            for (name, script) in [
                ("status.txt", "qx-update status"),
                ("update.log", "qx-update log --json"),
                (
                    "processes.txt",
                    "ps; ls -lR /data /run/qx-update; rc-status -a; tail /var/log/*.log",
                ),
            ] {
                let pending = self.spawn(script);
                let answer = running
                    .line
                    .wait_at_most(Duration::from_secs(20), |c| c.answers.remove(&pending.id));
                if let Some(answer) = answer {
                    let _ = fs::write(self.dir.join(name), answer.out + &answer.err);
                }
            }
        }
        eprintln!(
            "the appliance's console.log, and where it still answered status.txt, update.log and processes.txt, are in {}",
            self.dir.display()
        );
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_evidence();
        } else {
            let _ = fs::remove_file(self.disk());
        }
        if let Some(mut running) = self.running.take() {
            let _ = running.qemu.kill();
            let _ = running.qemu.wait();
        }
        *PLACES_TAKEN.lock().unwrap() -= 1;
        PLACE_FREE.notify_one();
    }
}

impl Pending {
    /// Waits for its end.
    pub fn wait(&self) -> Output {
        self.line
            .wait(&format!("the end of `{}`", self.script), |c| {
                c.answers.remove(&self.id)
            })
    }

    /// Waits for its end, which must be with this exit code; all that it said.
    pub fn exits(&self, code: i32) -> String {
        let output = self.wait();
        assert_eq!(
            output.code, code,
            "`{}` exited {}, not {code}:\n{}{}",
            self.script, output.code, output.out, output.err
        );
        output.out + &output.err
    }
}

impl Line {
    fn wait<T>(&self, what: &str, look: impl FnMut(&mut Came) -> Option<T>) -> T {
        match self.wait_at_most(GUARD, look) {
            Some(found) => found,
            None => panic!(
                "waited for {what}, in vain; the connection is {}",
                if self.came.lock().unwrap().closed {
                    "closed"
                } else {
                    "open"
                }
            ),
        }
    }

    fn wait_at_most<T>(
        &self,
        time: Duration,
        mut look: impl FnMut(&mut Came) -> Option<T>,
    ) -> Option<T> {
        let guard = Instant::now() + time;
        let mut came = self.came.lock().unwrap();
        loop {
            if let Some(found) = look(&mut came) {
                return Some(found);
            }
            let left = guard.saturating_duration_since(Instant::now());
            if came.closed || left.is_zero() {
                return None;
            }
            came = self.more.wait_timeout(came, left).unwrap().0;
        }
    }
}

/// Takes greetings and answers until the connection ends.
fn listen(stream: UnixStream, line: &Line) {
    for text in BufReader::new(stream).lines().map_while(Result::ok) {
        let mut came = line.came.lock().unwrap();
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["hello", _boot_id] => came.greeted = true,
            [id, code, out, err] => {
                let decode = |text: &str| {
                    let bytes = base64::decode(text.trim_start_matches(':'));
                    String::from_utf8_lossy(&bytes).into_owned()
                };
                let output = Output {
                    code: code.parse().unwrap_or(-1),
                    out: decode(out),
                    err: decode(err),
                };
                came.answers.insert(id.to_owned(), output);
            }
            // A line that a sudden death has cut.
            _ => {}
        }
        line.more.notify_all();
    }
    line.came.lock().unwrap().closed = true;
    line.more.notify_all();
}
