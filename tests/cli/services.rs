//! Services as they are: some share a program, some serve a directory, some leave processes behind, some were stopped. What an
//! update does not restart it leaves alone, what it restarts it proves, and what it did not see it does not claim.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    Appliance, Recipe, SERVICES, answer, copy_executable, exe, free_port, kill, path, text,
    wait_until, write_executable, write_program,
};

/// Replaces text in the script that plays the service manager.
pub(super) fn edit_svc(appliance: &Appliance, from: &str, to: &str) {
    let svc = appliance.root.join("svc");
    let script = text(&svc);
    assert!(script.contains(from), "{script}");
    write_executable(&svc, script.replace(from, to));
}

/// Both services run the program `qx-node`.
fn of_one_program(appliance: &Appliance) {
    edit_svc(appliance, "bin/qx-$2", "bin/qx-node");
    appliance.services("stop");
    appliance.factory(&one_program(appliance, "1.0.0"));
    appliance.services("start");
    appliance.update(&["recover"]).code(0);
}

fn one_program(appliance: &Appliance, version: &str) -> Recipe {
    appliance.recipe(version).edit(|json| {
        json["components"].as_array_mut().unwrap().remove(1);
        json["services"][1]["runs"] = json!("bin/qx-node");
    })
}

fn without_pidfiles(appliance: &Appliance) {
    appliance.edit_config(|config| {
        config["services"]
            .as_object_mut()
            .unwrap()
            .remove("pidfile");
    });
}

fn killed_anybody(appliance: &Appliance) -> bool {
    text(&appliance.data().join("update/log/update.log")).contains("killing process")
}

pub(super) fn service<'a>(status: &'a Value, name: &str) -> &'a Value {
    let services = status["services"].as_array().unwrap();
    services.iter().find(|s| s["name"] == name).unwrap()
}

/// A process that is no service's, in a process group of its own; ended when dropped.
pub(super) struct Bystander(Child);

impl Bystander {
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    pub(super) fn start(command: &mut Command) -> Bystander {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        Bystander(child.spawn().unwrap())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One of two services changes, release after release. The other one serves a directory of its slot: it is never left
/// behind in a slot that is given to the next release.
#[test]
fn five_releases_that_change_one_of_two_services() {
    let appliance = Appliance::new();
    let recipe = |version: &str| {
        appliance
            .recipe(version)
            .program("console", "1.1.0")
            .behaviour("console", "docroot")
            .www("The same pages.\n")
    };
    appliance.release(&recipe("1.1.0"));
    appliance.update(&["apply"]).code(0);
    let mut restarts = 0;
    for number in 2..=6 {
        let version = format!("1.{number}.0");
        let before = appliance.pid("console").unwrap();
        appliance.told();
        appliance.release(&recipe(&version));
        let apply = appliance.update(&["apply"]);
        apply.code(0).says(&["is proved healthy"]);
        appliance.runs(&version);
        // Where it works is there, and what it serves.
        assert_eq!(appliance.answers(), [version.as_str(), "1.1.0"]);
        let pid = appliance.pid("console").unwrap();
        let page = format!("/proc/{pid}/cwd/index.html");
        assert_eq!(text(Path::new(&page)), "The same pages.\n", "{version}");
        if pid != before {
            restarts += 1;
            apply.says(&["services to restart: node, console"]);
        }
        let kept = fs::read_dir(appliance.data().join("slots"))
            .unwrap()
            .count();
        assert_eq!(kept, 2, "{version}: {}", appliance.tree());
    }
    // Once in two releases its slot is needed.
    assert!((2..=3).contains(&restarts), "{restarts} restarts");
}

/// What is no service's and works in a slot that is replaced keeps its files until it has ended; `status` names it.
#[test]
fn a_bystander_keeps_its_files() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let www = appliance.data().join("share/www");
    let sleep = Bystander::start(Command::new("sleep").arg("1000").current_dir(&www));
    let pid = sleep.0.id();
    let page = format!("/proc/{pid}/cwd/index.html");
    for version in ["1.2.0", "1.3.0", "1.4.0"] {
        appliance.publish_release(version);
        let apply = appliance.update(&["apply"]);
        apply.code(0);
        if version == "1.3.0" {
            apply.says(&[&format!("process {pid} "), "kept until it ends"]);
        }
        assert_eq!(text(Path::new(&page)), "This is 1.1.0.\n", "{version}");
        let status = appliance.status();
        let elsewhere = status["elsewhere"].as_array().unwrap();
        assert!(
            elsewhere.iter().any(|process| process["pid"] == pid),
            "{version}: {status:#}"
        );
        let told = format!("process {pid} ");
        appliance.update(&["status"]).says(&["elsewhere", &told]);
    }
    drop(sleep);
    appliance.publish_release("1.5.0");
    appliance.update(&["apply"]).code(0);
    let slots = fs::read_dir(appliance.data().join("slots")).unwrap();
    assert_eq!(slots.count(), 2, "{}", appliance.tree());
    assert_eq!(appliance.status()["elsewhere"], json!([]));
}

/// Two services run one program, and the second does not come up with the new release: the first one's process is no
/// proof of it, with pidfiles and without.
#[test]
fn one_of_two_services_of_one_program_does_not_start() {
    for pidfiles in [true, false] {
        let appliance = Appliance::new();
        of_one_program(&appliance);
        if !pidfiles {
            without_pidfiles(&appliance);
        }
        // Its start fails without a word.
        edit_svc(
            &appliance,
            "setsid \"$program\"",
            "[ \"$2 ${program#*/data/bin/}\" = \"console qx-node\" ] && program=false\n\tsetsid \"$program\"",
        );
        let recipe = one_program(&appliance, "1.1.0").edit(|json| json["health"] = json!([]));
        appliance.release(&recipe);
        appliance
            .update(&["apply"])
            .refused(9, &["service console", "no process runs"]);
        assert_eq!(appliance.answers(), ["1.0.0", "1.0.0"]);
        let status = appliance.status();
        for service in SERVICES {
            let seen = self::service(&status, service);
            assert_eq!(seen["pid"].as_u64(), appliance.pid(service).map(u64::from));
        }
    }
}

/// Two services run one program: stopping one touches no process of the other, whose own stop is asked for first.
#[test]
fn a_sibling_is_not_killed() {
    for pidfiles in [true, false] {
        let appliance = Appliance::new();
        of_one_program(&appliance);
        if !pidfiles {
            without_pidfiles(&appliance);
        }
        for version in ["1.1.0", "1.2.0"] {
            appliance.release(&one_program(&appliance, version));
            appliance
                .update(&["apply"])
                .code(0)
                .says(&["is proved healthy"]);
            assert_eq!(appliance.answers(), [version, version]);
        }
        assert!(!killed_anybody(&appliance), "{}", appliance.tree());
    }
}

/// Somebody runs the old program by hand meanwhile: that is neither killed nor held against the release.
#[test]
fn what_a_person_runs_is_left_alone() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    // Not detached, as a daemon is, but a child of whoever started it.
    let mut tool = Command::new(appliance.data().join("bin/qx-node"));
    write_program(&appliance.root.join("usr/bin/qx-tool"), "tool", "1", "deaf");
    let tool = tool.arg("0").stderr(Stdio::null());
    let tool = Bystander::start(tool);
    appliance.publish_release("1.2.0");
    appliance
        .update(&["apply"])
        .code(0)
        .says(&["is proved healthy"]);
    assert!(exe(tool.0.id()).is_some(), "it was killed");
    assert!(!killed_anybody(&appliance));
}

/// A stop command hangs once, is killed, and leaves its pidfile, by which the status command goes: what is started next is
/// decided by processes.
#[test]
fn after_a_failed_stop_only_processes_count() {
    let appliance = Appliance::new();
    appliance.edit_config(|config| config["limits"]["service_timeout_s"] = json!(5));
    edit_svc(
        &appliance,
        "stop)\n",
        "stop)\n\tmkdir $root/out/hung 2>/dev/null && sleep 1000\n",
    );
    edit_svc(
        &appliance,
        "status)\n\trunning",
        "status)\n\t[ -e $pidfile ]",
    );
    appliance.publish_release("1.1.0");
    appliance
        .update(&["apply"])
        .code(0)
        .says(&["did not end in time"]);
    appliance.runs("1.1.0");
    assert_eq!(appliance.answers(), ["1.1.0", "1.1.0"]);
}

/// All services were stopped by a person: the release comes, nothing is started, nothing is claimed, and nothing is held
/// against it.
#[test]
fn what_a_person_stopped_stays_stopped() {
    let appliance = Appliance::new();
    appliance.services("stop");
    appliance.publish_release("1.1.0");
    let apply = appliance.update(&["apply"]);
    apply
        .code(0)
        .says(&["not proved: ", "node was not running before"]);
    assert!(!apply.stdout.contains("proved healthy"));
    for service in SERVICES {
        assert_eq!(appliance.pid(service), None);
    }
    let status = appliance.update(&["status"]);
    status.says(&["done, not proved: ", "console was not running before"]);
    // One of them runs: the checks of the other are not held against the release, its own are.
    appliance.service("start", "node");
    wait_until("node runs", || answer(appliance.port("node")).is_some());
    // Also what is new, if it says whose it is.
    let port = free_port();
    appliance.release(&appliance.recipe("1.2.0").edit(|json| {
        let address = format!("127.0.0.1:{port}");
        let check = json!({"type": "tcp", "address": address, "service": "console", "retries": 0, "start_period_s": 0});
        let checks = json["health"].as_array_mut().unwrap();
        for (check, service) in checks.iter_mut().zip(SERVICES) {
            check["service"] = json!(service);
        }
        checks.push(check);
    }));
    let apply = appliance.update(&["apply"]);
    apply
        .code(0)
        .says(&["not proved: ", "console was not running before"]);
    assert_eq!(appliance.answers(), ["1.2.0", ""]);
    appliance.release(&appliance.recipe("1.3.0").behaviour("node", "error500"));
    appliance.update(&["apply"]).refused(8, &["500"]);
    assert_eq!(appliance.answers(), ["1.2.0", ""]);
}

/// The old service does not answer in time when it is measured; the new one answers 500. That is no excuse.
#[test]
fn another_failure_is_no_excuse() {
    let appliance = Appliance::new();
    let recipe = |version: &str| {
        appliance.recipe(version).edit(|json| {
            for check in json["health"].as_array_mut().unwrap() {
                check.as_object_mut().unwrap().remove("json");
                // The frozen one is tried three times.
                check["timeout_s"] = json!(5);
            }
        })
    };
    appliance.release(&recipe("1.1.0"));
    appliance.update(&["apply"]).code(0);
    let node = appliance.pid("node").unwrap();
    kill(node, Signal::STOP);
    appliance.release(&recipe("1.2.0").behaviour("node", "error500"));
    let apply = appliance.start(&["apply"]);
    let log = appliance.data().join("update/log/update.log");
    wait_until("the baseline", || {
        let log = text(&log);
        let mut lines = log.lines();
        lines.any(|line| line.contains("before the switch http") && line.contains(" fails: "))
    });
    kill(node, Signal::CONT);
    apply.wait().refused(8, &["500"]);
    appliance.runs("1.1.0");
}

/// A daemon that is what was installed, and becomes something else 2 s later, fails the proof.
#[test]
fn a_daemon_that_becomes_another_program() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let recipe = appliance.recipe("1.2.0").behaviour("node", "turns");
    appliance.release(&recipe.edit(|json| {
        // Long enough that it must be seen.
        json["health"] = json!([{"type": "service", "service": "console", "stable_s": 8}]);
    }));
    appliance
        .update(&["apply"])
        .refused(8, &["node", "another program", "sleep"]);
    appliance.runs("1.1.0");
}

/// What a service leaves behind on purpose lives on with the old files, is named by `status`, and says nothing against the
/// release; undeclared, it is ended with its service.
#[test]
fn what_is_left_on_purpose_lives_on() {
    for declared in [true, false] {
        let appliance = Appliance::new();
        let release = |version: &str| {
            let recipe = appliance.recipe(version).behaviour("node", "spawns");
            write_program(&recipe.dir.join("qx-vm"), "vm", version, "deaf");
            let recipe = recipe.edit(|json| {
                json["components"].as_array_mut().unwrap().push(json!(
                    {"name": "qx-vm", "kind": "bin", "install_path": "bin/qx-vm", "source": "qx-vm", "tool": !declared}
                ));
                if declared {
                    json["services"][0]["leaves"] = json!(["bin/qx-vm"]);
                }
            });
            appliance.release(&recipe);
            appliance
                .update(&["apply"])
                .code(0)
                .says(&["is proved healthy"]);
        };
        let vms = || {
            let all = appliance.processes().into_iter();
            let vms = all.filter(|(_, exe)| path(exe).contains("qx-vm"));
            vms.map(|(pid, _)| pid).collect::<Vec<u32>>()
        };
        release("1.1.0");
        wait_until("the first one runs", || vms().len() == 1);
        let first = vms()[0];
        for version in ["1.2.0", "1.3.0", "1.4.0"] {
            release(version);
            assert_eq!(exe(first).is_some(), declared, "{version}");
        }
        let status = appliance.status();
        let elsewhere = status["elsewhere"].as_array().unwrap();
        let left = elsewhere.iter().find(|process| process["pid"] == first);
        assert_eq!(left.is_some(), declared, "{status:#}");
        assert!(left.is_none_or(|left| left["left"] == true), "{status:#}");
        // A helper of its own is no reason to say that a service runs something else.
        assert_eq!(service(&status, "node")["state"], "installed");
        for vm in vms() {
            kill(vm, Signal::KILL);
        }
    }
}

/// Another program of the image that answers on a port, in front of nothing.
fn front(appliance: &Appliance) -> (Bystander, u16) {
    let program = appliance.root.join("srv/front");
    write_program(&program, "front", "7", "ok");
    let port = free_port();
    let mut command = Command::new(&program);
    command.arg(port.to_string());
    let mut front = Bystander::start(&mut command);
    wait_until("it answers", || {
        let ended = front.0.try_wait().unwrap();
        assert!(ended.is_none(), "it ended before it answered: {ended:?}");
        answer(port).is_some()
    });
    (front, port)
}

/// A check that another program of the image answers: told before anything stops; declared, it counts as health.
#[test]
fn a_reverse_proxy_answers() {
    let appliance = Appliance::new();
    let (_front, port) = front(&appliance);
    let recipe = |version: &str, by: &str| {
        appliance.recipe(version).edit(|json| {
            let url = format!("http://0.0.0.0:{port}/");
            let check = json!({"type": "http", "url": url, "answered_by": by, "interval_s": 1, "timeout_s": 60,
                               "retries": 1, "start_period_s": 0, "stable_s": 0});
            json["health"].as_array_mut().unwrap().push(check);
        })
    };
    // By whatever name this machine is called, a stranger's answer proves nothing.
    appliance.release(&recipe("1.1.0", "services"));
    appliance
        .update(&["apply"])
        .refused(9, &["which is not a service of this release"]);
    appliance.release(&recipe("1.2.0", "anybody"));
    appliance
        .update(&["apply"])
        .code(0)
        .says(&["is proved healthy"]);
    appliance.runs("1.2.0");
}

/// Where the set that runs breaks the rule itself, that is said by a dry run already, and it is not held against the next.
#[test]
fn a_rule_that_is_broken_already_is_told_in_the_plan() {
    let appliance = Appliance::new();
    let (_front, port) = front(&appliance);
    let recipe = |version: &str| {
        appliance.recipe(version).edit(|json| {
            let check = json!({"type": "tcp", "address": format!("127.0.0.1:{port}"), "interval_s": 1, "timeout_s": 60,
                               "retries": 0, "start_period_s": 0, "stable_s": 0});
            json["health"].as_array_mut().unwrap().push(check);
        })
    };
    appliance.services("stop");
    appliance.factory(&recipe("1.0.0"));
    appliance.services("start");
    appliance.release(&recipe("1.1.0"));
    appliance.told();
    let dry = appliance.update(&["apply", "--dry-run"]);
    dry.code(0).says(&[
        "before the switch tcp",
        "which is not a service of this release",
    ]);
    assert_eq!(appliance.told(), [""; 0]);
    let apply = appliance.update(&["apply"]);
    apply
        .code(0)
        .says(&["as it did before the switch", "not proved"]);
    appliance.runs("1.1.0");
}

/// A supervisor whose program ends at once is called what it is.
#[test]
fn a_crash_loop_is_called_one() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.service("stop", "node");
    let supervisor = appliance.root.join("usr/bin/supervise-daemon");
    // Of the name of OpenRC's own, and called as that is: with the service's name among its arguments.
    copy_executable(Path::new("/usr/bin/tail"), &supervisor);
    let mut command = Command::new(&supervisor);
    command.args(["-f", "/dev/null", "node"]);
    let supervisor = Bystander::start(command.stderr(Stdio::null()));
    let pid = supervisor.0.id().to_string();
    fs::write(appliance.root.join("run/node.pid"), &pid).unwrap();
    wait_until("it runs", || {
        exe(supervisor.0.id()).is_some_and(|exe| exe.ends_with("supervise-daemon"))
    });
    let status = appliance.status();
    assert_eq!(service(&status, "node")["state"], "stopped", "{status:#}");
    appliance.update(&["status"]).says(&[
        "node: NOT RUNNING",
        "exits whenever it is started",
        &pid,
    ]);
}

/// A service crashed, and its pidfile names somebody else by now: neither that process nor its children are touched.
#[test]
fn a_stale_pidfile_names_a_stranger() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let console = appliance.pid("console").unwrap();
    kill(console, Signal::KILL);
    let mut stranger = Command::new("sh");
    stranger.args(["-c", "sleep 100 & wait"]);
    let stranger = Bystander::start(stranger.stderr(Stdio::null()));
    let pid = stranger.0.id();
    fs::write(appliance.root.join("run/console.pid"), pid.to_string()).unwrap();
    // A manager that believes what stands there, and whose stop touches no stranger.
    edit_svc(
        &appliance,
        "status)\n\trunning",
        "status)\n\tkill -0 \"$pid\"",
    );
    appliance.publish_release("1.2.0");
    appliance.update(&["apply"]).code(0);
    assert!(exe(pid).is_some(), "the stranger was killed");
    assert!(!killed_anybody(&appliance), "{}", appliance.tree());
}

/// Somebody's own second instance of the program, detached as a daemon is: it runs on, and `status` shows from where.
#[test]
fn a_second_instance_is_left_alone() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let mut second = Command::new("sh");
    let program = appliance.data().join("bin/qx-node");
    let port = free_port().to_string();
    second.args(["-c", "setsid \"$0\" \"$1\" >/dev/null 2>&1 & echo $!"]);
    let second = second.arg(&program).arg(&port).output().unwrap();
    let pid: u32 = String::from_utf8_lossy(&second.stdout)
        .trim()
        .parse()
        .unwrap();
    for version in ["1.2.0", "1.3.0"] {
        appliance.publish_release(version);
        appliance.update(&["apply"]).code(0);
        assert!(exe(pid).is_some(), "{version}: it was killed");
        let elsewhere = appliance.status()["elsewhere"].clone();
        assert!(
            elsewhere.to_string().contains(&format!("\"pid\":{pid}")),
            "{elsewhere:#}"
        );
    }
    assert!(!killed_anybody(&appliance));
    kill(pid, Signal::KILL);
}

/// The updater is killed with services stopped, and `recover` comes first: what was stopped is started all the same.
#[test]
fn what_was_stopped_is_not_forgotten() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    appliance.install("1.2.0");
    // The stop of the last service takes its time.
    edit_svc(
        &appliance,
        "stop)\n",
        "stop)\n\t[ $2 = node ] && while [ ! -e $root/out/go ]; do sleep 0.05; done\n",
    );
    let rollback = appliance.start(&["rollback"]);
    let log = appliance.root.join("out/svc.log");
    wait_until("node is being stopped", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("stop node"))
    });
    appliance.kill_updater();
    rollback.wait();
    fs::write(appliance.root.join("out/go"), "").unwrap();
    wait_until("both are stopped", || appliance.pid("node").is_none());
    appliance.update(&["recover"]).code(0);
    assert_eq!(appliance.status()["stopped"], true);
    appliance
        .update(&["status"])
        .says(&["`qx-update confirm` starts them"]);
    appliance.update(&["confirm"]).code(0);
    appliance.runs("1.2.0");
    assert_eq!(appliance.status()["stopped"], false);
}

/// An image whose manifest names no services, though its init scripts start them: they run again after a release that failed,
/// and after going back to it; and that is not called proved.
#[test]
fn a_factory_manifest_without_services() {
    let appliance = Appliance::new();
    let factory = appliance.recipe("1.0.0").edit(|json| {
        json["services"] = json!([]);
        json["health"] = json!([]);
        for component in json["components"].as_array_mut().unwrap() {
            if component["kind"] == "bin" {
                component["tool"] = json!(true);
            }
        }
    });
    appliance.services("stop");
    appliance.factory(&factory);
    appliance.services("start");
    appliance.update(&["recover"]).code(0);
    appliance.release(&appliance.recipe("1.1.0").behaviour("node", "crash"));
    appliance.update(&["apply"]).code(9);
    assert_eq!(appliance.answers(), ["1.0.0", "1.0.0"]);
    appliance.install("1.2.0");
    let rollback = appliance.update(&["rollback", "--to", "factory"]);
    rollback.code(0).says(&["not proved"]);
    wait_until("the image's own run", || {
        appliance.answers() == ["1.0.0", "1.0.0"]
    });
}

/// A directory of a slot is mounted elsewhere, as containers do: what a process has of it there does not go away.
#[test]
fn a_mounted_directory_keeps_its_files() {
    let appliance = Appliance::new();
    appliance.install("1.1.0");
    let www = appliance.root.join("srv/www");
    crate::common::create_dir(&www).unwrap();
    let from = appliance.data().join("share/www");
    let mount = Command::new("mount")
        .arg("--bind")
        .args([&from, &www])
        .output();
    assert!(mount.unwrap().status.success());
    for version in ["1.2.0", "1.3.0", "1.4.0"] {
        appliance.publish_release(version);
        appliance.update(&["apply"]).code(0);
        assert_eq!(
            text(&www.join("index.html")),
            "This is 1.1.0.\n",
            "{version}"
        );
    }
    assert!(
        appliance.status()["elsewhere"]
            .to_string()
            .contains("srv/www")
    );
    assert!(Command::new("umount").arg(&www).status().unwrap().success());
    appliance.install("1.5.0");
    let slots = fs::read_dir(appliance.data().join("slots")).unwrap();
    assert_eq!(slots.count(), 2, "{}", appliance.tree());
}

/// One service's start also starts the other, which so inherits what the first one was started with.
#[test]
fn a_service_that_another_one_starts() {
    let appliance = Appliance::new();
    without_pidfiles(&appliance);
    edit_svc(
        &appliance,
        "start)\n",
        "start)\n\t[ $2 = node ] && \"$0\" start console\n",
    );
    for version in ["1.1.0", "1.2.0"] {
        appliance.publish_release(version);
        appliance
            .update(&["apply"])
            .code(0)
            .says(&["is proved healthy"]);
        appliance.runs(version);
    }
}

/// One service's process started the other service, and is its parent: to stop the one is not to end the other.
#[test]
fn a_service_that_is_anothers_child() {
    for pidfiles in [true, false] {
        let appliance = Appliance::new();
        if !pidfiles {
            without_pidfiles(&appliance);
        }
        appliance.services("stop");
        edit_svc(
            &appliance,
            "setsid \"$program\"",
            "export root\n\tsetsid sh -c '\n\t\t[ $1 = node ] && mkdir \"$root/out/once\" 2>/dev/null && {\n\t\t\t\
             setsid \"$root/usr/bin/qx-console\" \"$(cat \"$root/ports/console\")\" &\n\t\t\t\
             echo $! >\"$root/run/console.pid\"\n\t\t}\n\t\tshift\n\t\texec \"$@\"' sh \"$2\" \"$program\"",
        );
        appliance.service("start", "node");
        wait_until("both answer", || appliance.answers() == ["1.0.0", "1.0.0"]);
        let console = appliance.pid("console").unwrap();
        let status = text(Path::new(&format!("/proc/{console}/status")));
        let parent = format!("PPid:\t{}\n", appliance.pid("node").unwrap());
        assert!(status.contains(&parent), "{status}");
        for version in ["1.1.0", "1.2.0"] {
            let recipe = appliance.recipe(version).program("console", "1.0.0");
            appliance.release(&recipe.edit(|json| json["services"][1]["uses"] = json!([])));
            appliance
                .update(&["apply"])
                .code(0)
                .says(&["services to restart: node\n", "is proved healthy"]);
            assert_eq!(appliance.answers(), [version, "1.0.0"]);
            assert_eq!(appliance.pid("console"), Some(console), "{version}");
        }
        assert!(!killed_anybody(&appliance), "{}", appliance.tree());
    }
}

/// A check that is required of new releases, and fails in the set that runs: the release is not taken, and what ran before is
/// none the worse.
#[test]
fn what_is_required_is_not_required_of_the_way_back() {
    let appliance = Appliance::new();
    let recipe = |version: &str| {
        appliance.recipe(version).edit(|json| {
            let check = json!({"type": "tcp", "address": "127.0.0.1:1", "required": true, "interval_s": 1,
                               "timeout_s": 1, "retries": 0, "start_period_s": 0, "stable_s": 0});
            json["health"].as_array_mut().unwrap().push(check);
        })
    };
    appliance.services("stop");
    appliance.factory(&recipe("1.0.0"));
    appliance.services("start");
    appliance.release(&recipe("1.1.0"));
    appliance.update(&["apply"]).refused(9, &["127.0.0.1:1"]);
    assert_eq!(appliance.status()["needs_person"], false);
    assert_eq!(appliance.answers(), ["1.0.0", "1.0.0"]);
}

/// Something starts the old program again while it is to be stopped: once, and that is ended too; each time, and nothing is
/// switched. The release is not to blame.
#[test]
fn what_is_started_again_while_it_is_stopped() {
    for (times, code) in [("! -e $0/out/again", 0), ("! -e $0/out/calm", 10)] {
        let appliance = Appliance::new();
        appliance.install("1.1.0");
        // Several, so that one of them is always there, however slowly they start. They do not end before the stop.
        let ports = [(); 3].map(|()| free_port());
        let ports = [&[appliance.port("node")][..], &ports].concat();
        let ports: String = ports.iter().map(|port| format!(" {port}")).collect();
        edit_svc(
            &appliance,
            "	rm -f \"$pidfile\"\n",
            &format!(
                "	rm -f \"$pidfile\"\n\tif [ $2 = node ] && [ ! -e $root/out/begun ]; then\n\t\t: >$root/out/begun\n\t\t\
                 for port in{ports}; do\n\t\t\tsetsid sh -c 'while [ {times} ]; do\n\t\t\t\t\
                 QX_UPDATE_SERVICE=\"node $0\" $0/data/slots/a/bin/qx-node $1\n\t\t\tdone' $root $port \
                 </dev/null >/dev/null 2>&1 &\n\t\t\
                 done\n\t\tfor port in{ports}; do\n\t\t\t\
                 until busybox wget -q -O /dev/null http://127.0.0.1:$port/; do sleep 0.02; done\n\t\tdone\n\t\t: >$root/out/again\n\tfi\n"
            ),
        );
        appliance.publish_release("1.2.0");
        let apply = appliance.update(&["apply"]);
        fs::write(appliance.root.join("out/calm"), "").unwrap();
        apply.code(code);
        match code {
            0 => appliance.runs("1.2.0"),
            _ => assert!(
                apply
                    .stderr
                    .contains("node is still running, or was restarted"),
                "{}",
                apply.stderr
            ),
        }
        assert_eq!(appliance.status()["refused"], json!([]), "not its fault");
    }
}

/// Something starts the old program after the services were stopped, and before they are started or at that very instant, so that
/// their manager finds them running: it is stopped again, and the release's own is started.
#[test]
fn what_is_started_from_the_old_set_meanwhile() {
    for when in ["node", "console"] {
        let appliance = Appliance::new();
        appliance.install("1.1.0");
        // When one of them is started, somebody starts the old program of the console, which is there before anything else goes on.
        edit_svc(
            &appliance,
            "start)\n",
            &format!(
                "start)\n\tif [ $2 = {when} ] && [ ! -e $root/out/once ]; then\n\t\t: >$root/out/once\n\t\t\
                 setsid $root/data/slots/a/bin/qx-console $(cat $root/ports/console) </dev/null >/dev/null 2>&1 &\n\t\t\
                 old=$!\n\t\techo $old >$root/run/console.pid\n\t\t\
                 until readlink /proc/$old/exe | grep -q qx-console; do :; done\n\t\t\
                 [ $2 = node ] || pid=$old\n\tfi\n"
            ),
        );
        appliance.publish_release("1.2.0");
        appliance.update(&["apply"]).code(0);
        assert!(appliance.root.join("out/once").exists());
        appliance.runs("1.2.0");
        assert_eq!(appliance.answers(), ["1.2.0", "1.2.0"]);
    }
}
