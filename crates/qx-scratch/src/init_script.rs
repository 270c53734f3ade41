//! Whether an init script starts what the release installs: its own shell logic is run, with stubs for what it would start.
//!
//! Its absolute paths are led into a scratch directory, and the only commands that it finds are harmless ones and stubs: a
//! recipe may be checked on any machine, and by root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Scratch;
use qx_release::error::{Context, Error, Result};
use qx_release::manifest::Service;
use qx_release::text;

/// A script that takes longer waits for something that a stub does not bring.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The directories whose absolute paths are led aside. What is in /dev is harmless.
const TOPS: [&str; 17] = [
    "bin", "boot", "data", "etc", "home", "lib", "media", "mnt", "opt", "proc", "root", "run",
    "sbin", "srv", "sys", "tmp", "usr",
];
const VAR: &str = "var";

/// What only reads and writes text.
const TOOLS: [&str; 24] = [
    "awk", "basename", "cat", "cut", "date", "dirname", "expr", "grep", "head", "id", "ls",
    "printf", "readlink", "realpath", "sed", "seq", "sort", "stat", "tail", "tr", "uname", "uniq",
    "wc", "sh",
];

/// What changes the machine, or waits: here it succeeds at once.
const HARMLESS: [&str; 34] = [
    "chgrp",
    "chmod",
    "chown",
    "chrt",
    "cp",
    "dd",
    "hostname",
    "ifconfig",
    "install",
    "ip",
    "kill",
    "killall",
    "ln",
    "logger",
    "mkdir",
    "mkfifo",
    "modprobe",
    "mount",
    "mountpoint",
    "mv",
    "nc",
    "ping",
    "pkill",
    "rm",
    "rmdir",
    "sleep",
    "swapon",
    "sync",
    "sysctl",
    "touch",
    "ulimit",
    "umount",
    "wait",
    "wget",
];

/// What starts the program among its arguments.
const STARTERS: [&str; 14] = [
    "start-stop-daemon",
    "supervise-daemon",
    "su-exec",
    "su",
    "sudo",
    "doas",
    "runuser",
    "setpriv",
    "setsid",
    "nohup",
    "nice",
    "ionice",
    "taskset",
    "env",
];

/// Notes the program that it is to start: what an option names, else the first argument that could be one.
const STARTER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in
	--stop | -K | --signal | -s) exit 0 ;;
	--exec=* | --startas=*) program=${1#*=} ;;
	--exec | -x | --startas | -a) program=$2 && shift ;;
	-p | --pidfile | -1 | --stdout | -2 | --stderr | -d | --chdir | -r | --chroot) shift ;;
	--) [ "$program" ] && break ;;
	"$QX_ROOT"/*) [ "$program" ] || program=$1 ;;
	esac
	shift
done
[ "$program" ] && echo "$program" >>"$QX_RECORD"
exit 0
"#;

/// Notes that it was run itself.
const PROGRAM: &str = "#!/bin/sh\necho \"$0\" >>\"$QX_RECORD\"\n";

/// What openrc-run(8) gives a script, and what it does with it.
const OPENRC: &str = r#"
for name in ebegin eend einfo einfon ewarn ewarnn eerror eerrorn eindent eoutdent vebegin veend veinfo vewarn \
	checkpath need use want after before provide keyword config mark_service_started mark_service_stopped \
	service_set_value service_get_value get_bootparam fstabinfo mountinfo kill; do
	eval "$name() { :; }"
done
yesno() { case $1 in [Yy]*|[Tt][Rr]*|[Oo][Nn]|1) return 0 ;; esac; return 1; }
service_started() { return 1; }
qx_source() { [ -f "$1" ] || return 0; . "$1"; }
default_start() { [ "$command" ] && echo "$command" >>"$QX_RECORD"; }
. "$QX_SCRIPT"
command -v start_pre >/dev/null && start_pre
if command -v start >/dev/null; then start; else default_start; fi
command -v start_post >/dev/null && start_post
# What it starts in the background has its say, too.
wait
exit 0
"#;

/// Checks that a script starts the installed program where there is one, and the factory's otherwise.
pub fn check(script: &Path, service: &Service, factory: &str) -> Result<String> {
    let doing = || {
        format!(
            "the init script {} of service {}",
            script.display(),
            service.name
        )
    };
    let installed = format!("/data/{}", service.runs);
    let with = started(script, service, &[&installed, factory]).doing(doing)?;
    if with.iter().any(|path| path == factory) && !with.contains(&installed) {
        return Err(Error::new(format!(
            "{} starts {factory} even if {installed} exists: no update would ever run. It must prefer {installed}",
            doing()
        )));
    }
    expect(&with, &installed, "if a release is installed").doing(doing)?;
    let without = started(script, service, &[factory]).doing(doing)?;
    expect(&without, factory, "if no release is installed").doing(doing)?;
    Ok(format!(
        "init script: {} starts {installed}, else {factory}",
        script.display()
    ))
}

fn expect(started: &[String], path: &str, when: &str) -> Result<()> {
    match started {
        _ if started.iter().any(|started| started == path) => Ok(()),
        [] => Err(Error::new(format!(
            "{when} it must start {path}, but it starts nothing"
        ))),
        other => Err(Error::new(format!(
            "{when} it must start {path}, but it starts {}",
            text::name(&other.join(", "))
        ))),
    }
}

/// What a script starts where there are these programs, by their paths on an appliance.
fn started(script: &Path, service: &Service, programs: &[&str]) -> Result<Vec<String>> {
    let scratch = Scratch::new()?;
    let root = scratch.directory("root")?;
    for directory in TOPS
        .iter()
        .chain(&["var/log", "var/lib", "var/run", "run/openrc"])
    {
        scratch.directory(&format!("root/{directory}"))?;
    }
    let tools = scratch.directory("tools")?;
    for name in TOOLS {
        if let Some(real) = find(name) {
            let link = tools.join(name);
            std::os::unix::fs::symlink(&real, &link)
                .doing(|| format!("creating {}", link.display()))?;
        }
    }
    for name in HARMLESS {
        executable(&tools.join(name), "#!/bin/sh\nexit 0\n")?;
    }
    for name in STARTERS {
        executable(&tools.join(name), STARTER)?;
    }
    for program in programs {
        let path = root.join(program.trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).doing(|| format!("creating {}", parent.display()))?;
        }
        executable(&path, PROGRAM)?;
    }
    let content = fs::read_to_string(script).doing(|| "reading it")?;
    let led = scratch.path("script");
    write(&led, &led_aside(&content, &root))?;
    let openrc = scratch.path("openrc");
    write(&openrc, OPENRC)?;
    let record = scratch.path("record");
    write(&record, "")?;
    let mut shell = Command::new("/bin/sh");
    shell
        .arg(&openrc)
        .env_clear()
        .env("PATH", &tools)
        .env("HOME", root.join("root"))
        .env("LANG", "C")
        .env("RC_SVCNAME", service.name.as_str())
        .env("SVCNAME", service.name.as_str())
        .env("QX_ROOT", &root)
        .env("QX_SCRIPT", &led)
        .env("QX_RECORD", &record)
        .current_dir(&root);
    let ended = scratch.run(&mut shell, TIMEOUT);
    let started = fs::read_to_string(&record).doing(|| format!("reading {}", record.display()))?;
    // What goes on in the background for ever says nothing against what it has started.
    if started.is_empty() {
        ended?;
    }
    let root = root.display().to_string();
    // As on an appliance.
    let paths = started.lines().map(|path| path.replace(&root, ""));
    Ok(paths.collect())
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut all = std::env::split_paths(&path).map(|directory| directory.join(name));
    all.find(|path| path.is_file())
}

fn executable(path: &Path, content: &str) -> Result<()> {
    write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .doing(|| format!("changing the mode of {}", path.display()))
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).doing(|| format!("writing {}", path.display()))
}

/// A script whose absolute paths lie below `root`, and that goes on where a file that it reads is not there.
fn led_aside(script: &str, root: &Path) -> String {
    let root = root.display().to_string();
    let mut led = String::new();
    for line in script.lines() {
        let indent = line.len() - line.trim_start().len();
        let (blank, mut rest) = line.split_at(indent);
        led += blank;
        for word in [". ", "source "] {
            if let Some(file) = rest.strip_prefix(word) {
                led += "qx_source ";
                rest = file;
            }
        }
        for (at, letter) in rest.char_indices() {
            if letter == '/' && begins_path(&rest[..at]) && is_top(&rest[at + 1..]) {
                led += &root;
            }
            led.push(letter);
        }
        led.push('\n');
    }
    led
}

/// Whether a path that begins after this text is absolute, and not the rest of one.
fn begins_path(before: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || "_-.}~+@%)*?]/".contains(c);
    let mut before = before.chars().rev();
    match before.next() {
        None => true,
        // A quote that ends what is before belongs to it.
        Some('"' | '\'') => !before.next().is_some_and(part),
        Some(last) => !part(last),
    }
}

fn is_top(rest: &str) -> bool {
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'));
    let top = &rest[..end.unwrap_or(rest.len())];
    // What a variable holds is a name below the root.
    rest.starts_with('$') || top == VAR || TOPS.contains(&top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(runs: &str) -> Service {
        let text = serde_json::json!({"name": "node", "runs": runs});
        serde_json::from_value(text).unwrap()
    }

    fn checked(script: &str) -> Result<String, String> {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path("init");
        write(&path, script).unwrap();
        check(&path, &service("bin/qx-node"), "/usr/bin/qx-node").map_err(|e| e.chain())
    }

    #[test]
    fn every_way_to_look_through_the_priority_link_is_right() {
        for script in [
            // Under a supervisor, and with OpenRC's own start.
            "command=/usr/bin/qx-node\n[ -x /data/bin/qx-node ] && command=/data/bin/qx-node\nsupervisor=supervise-daemon\n",
            "DATA=/data\nfor p in \"$DATA\"/bin \"/usr/bin\"; do [ -x $p/qx-node ] && { command=$p/qx-node; break; }; done\n",
            "start() {\n\tif [ -x /data/bin/qx-node ]; then BIN=/data/bin/qx-node; else BIN=/usr/bin/qx-node; fi\n\tebegin x\n\
             \tmkdir -p /run/node || return 1\n\tstart-stop-daemon --start -b -m -p /run/node.pid --exec \"$BIN\" -- --config /etc/n\n\teend $?\n}\n",
            ". /etc/conf.d/node\nstart() {\n\tlocal p=/usr/bin/qx-node\n\ttest -x /data/bin/qx-node && p=/data/bin/qx-node\n\
             \tsupervise-daemon node --start --pidfile /run/x $p -- -v\n}\n",
            "start_pre() { command=/usr/bin/qx-node; [ ! -x /data/bin/qx-node ] || command=/data/bin/qx-node; }\n",
            "start() { for d in data usr; do [ -x /$d/bin/qx-node ] && { exec su-exec nobody /$d/bin/qx-node; }; done; }\n",
            "name=qx-node\nstart() { p=/usr/bin/$name; [ -x /data/bin/$name ] && p=/data/bin/$name; nohup $p </dev/null & }\n",
            "start() { p=/usr/bin/qx-node; [ -x /data/bin/qx-node ] && p=/data/bin/qx-node; $p --daemon; sleep 100; }\n",
            // A watchdog of its own.
            "start() { p=/usr/bin/qx-node; [ -x /data/bin/qx-node ] && p=/data/bin/qx-node; (while :; do $p; sleep 5; done) & }\n",
        ] {
            let passed = checked(script);
            assert!(passed.is_ok(), "{script}\n{passed:?}");
        }
    }

    #[test]
    fn what_no_update_would_reach_is_told() {
        for (script, words) in [
            // The fault that a whole product had: another name than what was installed.
            (
                "command=/usr/bin/quantix-node\n[ -x /data/bin/quantix-node ] && command=/data/bin/quantix-node\n",
                "must start /data/bin/qx-node, but it starts /usr/bin/quantix-node",
            ),
            (
                "command=/usr/bin/qx-node\n",
                "even if /data/bin/qx-node exists",
            ),
            // Mentioned, and not looked at.
            (
                "# [ -x /data/bin/qx-node ]\ncommand=/usr/bin/qx-node\n",
                "even if /data/bin/qx-node exists",
            ),
            (
                "command=/usr/bin/qx-node\n[ -x /data/bin/qx-nod ] && command=/data/bin/qx-node\n",
                "even if /data/bin/qx-node exists",
            ),
            // Nothing to fall back to.
            (
                "command=/data/bin/qx-node\n",
                "if no release is installed it must start /usr/bin/qx-node, but it starts /data/bin/qx-node",
            ),
            ("depend() { need net; }\n", "it starts nothing"),
            ("start() { return 1; }\n", "it starts nothing"),
            ("start() { if\n", "it ended with"),
        ] {
            let error = checked(script).unwrap_err();
            assert!(error.contains(words), "{script}\n{error}");
        }
    }

    #[test]
    fn nothing_of_the_machine_is_touched() {
        let scratch = Scratch::new().unwrap();
        let marker = scratch.path("marker");
        let script = format!(
            "start() {{ rm -rf {0}; cp /etc/passwd {0}; mv {0} {0}; kill -9 $PPID; reboot; \
             command=x; /sbin/reboot; start-stop-daemon --start -x /data/bin/qx-node; }}\n",
            marker.display()
        );
        fs::write(&marker, "there").unwrap();
        let _ = checked(&script);
        assert_eq!(fs::read_to_string(&marker).unwrap(), "there");
    }
}
