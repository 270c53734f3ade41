//! Service managers other than OpenRC: the recipes of docs/integration.md, as they stand there, with the real programs.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::services::{edit_svc, service};
use crate::common::signer::sha256;
use crate::common::{
    Appliance, Outcome, SERVICES, UPDATE, create_dir, kill, path, processes, text, wait_until,
    write_executable,
};

/// The code block of a section in this language.
fn recipe(manager: &str, language: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/integration.md");
    let docs = text(&docs);
    let begin = docs.find(&format!("# {manager}\n")).expect(manager);
    let section = &docs[begin..];
    let section = section.split("\n##").next().unwrap();
    let block = section.split(&format!("```{language}\n")).nth(1);
    let block = block.unwrap_or_else(|| panic!("{manager} has no {language}"));
    block.split("```").next().unwrap().to_owned()
}

/// The places of an appliance, as this machine sees them.
fn placed(appliance: &Appliance, text: &str) -> String {
    let mut text = text.to_owned();
    for place in ["/data/bin/", "/usr/bin/", "/run/", "/etc/service/"] {
        text = text.replace(place, &format!("{}{place}", path(&appliance.root)));
    }
    text
}

fn configure(appliance: &Appliance, manager: &str) {
    let services = recipe(manager, "json");
    let mut services: Value = serde_json::from_str(&format!("{{{services}}}")).unwrap();
    let mut services = services["services"].take();
    for command in ["start", "stop", "status"] {
        for word in services[command].as_array_mut().unwrap() {
            *word = placed(appliance, word.as_str().unwrap()).into();
        }
    }
    appliance.edit_config(|config| config["services"] = services);
}

/// A directory for each service, with its `run`.
fn service_directories(appliance: &Appliance) {
    let script = recipe("runit", "sh");
    for service in SERVICES {
        let place = appliance.root.join("etc/service").join(service);
        create_dir(&place).unwrap();
        let port = appliance.port(service);
        let script = script
            .replace("my-daemon", &format!("qx-{service}"))
            .replace("exec \"$program\"", &format!("exec \"$program\" {port}"));
        write_executable(&place.join("run"), placed(appliance, &script));
    }
}

/// Whatever starts services again; with what it started it is ended when dropped.
struct Supervisor {
    child: Child,
    end: Signal,
}

impl Supervisor {
    fn start(command: &mut Command, end: Signal) -> Supervisor {
        let command = command.stdin(Stdio::null()).process_group(0);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null());
        Supervisor {
            child: child.spawn().unwrap(),
            end,
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        kill(self.child.id(), self.end);
        self.child.wait().unwrap();
    }
}

/// An update, one that crashes, and the way back to the image, with each service seen to run what it should.
fn walk<'a>(appliance: &'a Appliance, update: &dyn Fn(&[&str]) -> Outcome<'a>) {
    let runs = |version: &str| {
        let status: Value = serde_json::from_str(&update(&["status", "--json"]).stdout).unwrap();
        for name in SERVICES {
            let service = service(&status, name);
            assert_eq!(service["state"], "installed", "{status:#}");
        }
        assert_eq!(status["advice"][0], "nothing to do", "{status:#}");
        assert_eq!(appliance.answers(), [version, version]);
    };
    wait_until("the services run", || appliance.answers() == ["1.0.0"; 2]);
    update(&["recover"]).code(0);
    runs("1.0.0");
    appliance.publish_release("1.1.0");
    update(&["apply"]).code(0).says(&["proved"]);
    runs("1.1.0");
    appliance.release(&appliance.recipe("1.2.0").behaviour("node", "crash"));
    update(&["apply"]).code(8).error_says(&["node"]);
    let status: Value = serde_json::from_str(&update(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["running"]["version"], "1.1.0");
    assert_eq!(appliance.answers(), ["1.1.0"; 2]);
    update(&["rollback", "--to", "factory"]).code(0);
    runs("1.0.0");
}

/// An appliance whose services this program supervises, in a directory of them.
fn supervised_by(manager: &str, program: &str, end: Signal) {
    let appliance = Appliance::new();
    appliance.services("stop");
    configure(&appliance, manager);
    service_directories(&appliance);
    let place = appliance.root.join("etc/service");
    let _supervisor = Supervisor::start(Command::new(program).arg(&place), end);
    walk(&appliance, &|arguments| appliance.update(arguments));
}

/// Intent: an appliance whose services runit supervises is updated by the recipe that the documentation has.
#[test]
fn runit() {
    supervised_by("runit", "runsvdir", Signal::HUP);
}

/// Intent: the same with s6, which writes no pidfile.
#[test]
fn s6() {
    supervised_by("s6", "s6-svscan", Signal::TERM);
}

/// Intent: the same with lines in the inittab of busybox. It is the first process of a namespace, and the updater is in that as
/// well.
#[test]
fn busybox_init() {
    const BOOT: &str = "cp -a /etc $0 && mount --bind $0 /etc && cp $1 /etc/inittab && mount -t proc proc /proc && \
                        exec busybox init";
    let appliance = Appliance::new();
    appliance.services("stop");
    configure(&appliance, "busybox init");
    let script = recipe("busybox init", "sh");
    let respawn = appliance.root.join("usr/libexec/respawn");
    create_dir(respawn.parent().unwrap()).unwrap();
    let script = placed(&appliance, &script)
        .replace("bin/$1", "bin/qx-$1")
        .replace("exec \"$program\"", "exec \"$program\" \"$2\"");
    write_executable(&respawn, script);
    let lines = SERVICES.map(|service| {
        let port = appliance.port(service);
        format!("::respawn:{} {service} {port}\n", respawn.display())
    });
    let table = appliance.temp().join("inittab");
    fs::write(&table, lines.concat()).unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--mount",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        BOOT,
    ]);
    command.arg(appliance.temp().join("etc")).arg(&table);
    let supervisor = Supervisor::start(command.env("CONSOLE", "/dev/null"), Signal::KILL);
    let children = format!("/proc/{0}/task/{0}/children", supervisor.child.id());
    let init = || fs::read_to_string(&children).unwrap().trim().to_owned();
    wait_until("init runs", || {
        let init = init().parse::<u32>();
        init.is_ok_and(|init| processes(|exe| exe.ends_with("busybox")).contains_key(&init))
    });
    let init = init();
    walk(&appliance, &|arguments| {
        let mut command = Command::new("nsenter");
        command.args(["--target", &init, "--pid", "--mount", UPDATE, "--root"]);
        command.arg(&appliance.root).args(arguments);
        appliance.spawn(command).wait()
    });
}

/// Plays podman: an image is known by the digest of its archive, and a container is a process.
const PODMAN: &str = r#"#!/bin/sh
place=${0%/*}/out/podman
mkdir -p "$place"
case $1 in
load) cp "$4" "$place/image-$(sha256sum <"$4" | cut -c 1-64)" ;;
run)
	[ -e "$place/image-$6" ] || exit 125
	sleep 86400 </dev/null >/dev/null 2>&1 &
	echo $! >"$place/pid"
	echo "$6" >"$place/$5" ;;
rm)
	kill "$(cat "$place/pid")"
	rm "$place/pid" "$place/$3" ;;
inspect)
	kill -0 "$(cat "$place/pid")" 2>/dev/null && running=true || running=false
	echo "$(cat "$place/$4") $running" ;;
esac
"#;

/// Intent: a container whose image is a component is loaded and started by its release, proved by the image's digest, and gone back
/// from; the recipe is what the documentation has.
#[test]
fn a_container() {
    let appliance = Appliance::new();
    let podman = appliance.root.join("podman");
    write_executable(&podman, PODMAN);
    let script = recipe("Containers", "sh").replace("podman ", &format!("{} ", path(&podman)));
    let release = |version: &str, id: Option<&str>| {
        let recipe = appliance.recipe(version).edit(|json| {
            let components = json["components"].as_array_mut().unwrap();
            components.push(json!({"name": "app", "kind": "bin", "install_path": "bin/app", "source": "app"}));
            components.push(
                json!({"name": "app-image", "kind": "tree", "install_path": "share/app-image", "source": "app-image"}),
            );
            let services = json["services"].as_array_mut().unwrap();
            services.push(json!({"name": "app", "runs": "bin/app", "uses": ["app-image"], "oneshot": true}));
            let check = json!({"type": "exec", "run": ["bin/app", "status"], "stable_s": 1});
            json["health"].as_array_mut().unwrap().push(check);
        });
        write_executable(&recipe.dir.join("app"), &script);
        let image = recipe.dir.join("app-image");
        create_dir(&image).unwrap();
        fs::write(image.join("app.oci"), version).unwrap();
        let digest = sha256(version.as_bytes());
        fs::write(image.join("id"), id.unwrap_or(&digest)).unwrap();
        recipe
    };
    edit_svc(
        &appliance,
        "case $1 in\nstart)\n",
        "[ \"$2\" = app ] && {\n\tprogram=$root/data/bin/app\n\t[ -x \"$program\" ] || program=$root/usr/bin/app\n\
         \texec \"$program\" \"$1\"\n}\ncase $1 in\nstart)\n",
    );
    appliance.services("stop");
    appliance.factory(&release("1.0.0", None));
    appliance.services("start");
    appliance.service("start", "app");
    appliance.update(&["recover"]).code(0);
    let container = || fs::read_to_string(appliance.root.join("out/podman/app")).unwrap();
    assert_eq!(container().trim(), sha256(b"1.0.0"));
    appliance.release(&release("1.1.0", None));
    appliance.update(&["apply"]).code(0).says(&["proved"]);
    assert_eq!(container().trim(), sha256(b"1.1.0"));
    // The archive has not the image that the release speaks of.
    let other = sha256(b"nobody knows it");
    appliance.release(&release("1.2.0", Some(&other)).quick_to_fail());
    appliance.update(&["apply"]).code(8).error_says(&["app"]);
    assert_eq!(container().trim(), sha256(b"1.1.0"));
    appliance.service("stop", "app");
    let status = appliance.status();
    assert_eq!(service(&status, "app")["state"], "stopped", "{status:#}");
}
