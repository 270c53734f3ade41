//! Updates that go well.

use crate::built;
use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// Intent: from the factory set to v1 and on to v2, each proved and healthy, on ext4.
#[test]
fn v1_and_v2_are_proved_on_ext4() {
    v1_then_v2("v1-v2-ext4", "ext4");
}

/// Intent: the same on XFS.
#[test]
fn v1_and_v2_are_proved_on_xfs() {
    v1_then_v2("v1-v2-xfs", "xfs");
}

fn v1_then_v2(name: &str, file_system: &str) {
    let (v1, v2) = (Release::named("v1"), Release::named("v2"));
    let repository = Repository::with_v1(&format!("{name}-repository"), &[]);
    let mut appliance =
        Appliance::new(name).options(&["--fs", file_system, "--repo", &repository.url]);
    appliance.boot();
    assert!(
        appliance
            .ok("grep ' /data ' /proc/mounts")
            .contains(file_system),
        "/data is no {file_system}"
    );
    appliance.assert_runs(&Release::named("factory"));
    assert_eq!(appliance.status()["running"]["set"], "factory");

    appliance.qx_update("check", 4);
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v1);
    appliance.qx_update("apply", 3);

    repository.publish(&v2);
    let poll = appliance.spawn(
        r#"while [ ! -e /tmp/enough ]; do
            wget -q -O /dev/null http://127.0.0.1:8080/health.json && seen=1 || seen=0
            read -r now _ </proc/uptime
            echo "$now $seen"
        done"#,
    );
    appliance.qx_update("apply", 0);
    appliance.ok("touch /tmp/enough");
    println!(
        "FIGURE downtime_{file_system}_emulated {:.2} s",
        longest_gap(&poll.exits(0))
    );
    appliance.assert_runs(&v2);
    let status = appliance.status();
    assert_eq!(status["phase"], "idle", "{status:#}");
    assert_eq!(status["running"]["set"], "b", "{status:#}");
    assert_eq!(status["fallback"]["version"], v1.version, "{status:#}");
    assert_eq!(status["last"]["result"], "done", "{status:#}");
    assert_eq!(status["needs_person"], false, "{status:#}");
    let log = appliance.log();
    assert!(log.contains("runs and is proved healthy"), "{log}");
    assert!(!log.contains("Text file busy"), "{log}");

    let recover = appliance.ok("time -p qx-update recover 2>&1");
    let seconds = recover.lines().find_map(|l| l.strip_prefix("real "));
    println!(
        "FIGURE recover_{file_system}_emulated {} s",
        seconds.unwrap_or(&recover).trim()
    );

    // The next boot finds nothing to do, and the same set.
    appliance.reboot();
    appliance.assert_runs(&v2);
    let status = appliance.settled();
    assert_eq!(
        status["problems"].as_array().unwrap().len(),
        0,
        "{status:#}"
    );
}

/// The longest time between two answers that had failures between them.
fn longest_gap(poll: &str) -> f64 {
    let mut longest: f64 = 0.0;
    let mut last_answer: Option<f64> = None;
    for line in poll.lines() {
        let Some((time, seen)) = line.split_once(' ') else {
            continue;
        };
        let Ok(time) = time.parse::<f64>() else {
            continue;
        };
        if seen == "1" {
            longest = longest.max(last_answer.map_or(0.0, |last| time - last));
            last_answer = Some(time);
        }
    }
    longest
}

/// Intent: where one component of three changes, only its service is restarted, and proved. The next update replaces the
/// slot from which the two others still run: no ETXTBSY, and the active slot is not touched until the switch.
#[test]
fn a_partial_update_restarts_only_what_changed() {
    let (partial, v2) = (Release::named("partial"), Release::named("v2"));
    let repository = Repository::with_v1("partial-repository", &[&partial]);
    let mut appliance = Appliance::with_v1("partial").options(&["--repo", &repository.url]);
    appliance.boot();
    let services = ["quantix-node", "quantix-controlplane", "quantix-console"];
    let pids = |a: &Appliance| services.map(|service| a.pid(service));
    let before = pids(&appliance);
    let said = appliance.qx_update("apply", 0);
    assert_eq!(said.matches("stopping ").count(), 1, "{said}");
    let after = pids(&appliance);
    assert_eq!(
        after[..2],
        before[..2],
        "a service that did not change was restarted"
    );
    assert_ne!(after[2], before[2], "the console was not restarted");
    appliance.assert_runs(&partial);
    let from = appliance.ok(&format!("readlink /proc/{}/exe", after[0]));
    let (active, other) = if from.starts_with("/data/slots/a/") {
        ("b", "a")
    } else {
        ("a", "b")
    };
    assert_eq!(appliance.status()["running"]["set"], active, "{from}");

    // Staging v2 goes into the slot that the node agent runs from.
    repository.publish(&v2);
    let files =
        format!("cd /data/slots/{active} && find . -exec stat -c '%n %i %s %Y %Z' {{}} + | sort");
    let untouched = appliance.ok(&files);
    // A control plane that is frozen keeps the update between staging and the switch.
    appliance.ok("kill -STOP $(cat /run/quantix-controlplane.pid)");
    let applying = appliance.spawn("qx-update apply");
    appliance.wait_for("v2 to be staged", |a| (a.phase() == "staged").then_some(()));
    assert_eq!(
        appliance.ok(&files),
        untouched,
        "the active slot was touched"
    );
    assert_eq!(appliance.pid("quantix-node"), after[0]);
    let replaced = appliance.ok(&format!("readlink /proc/{}/exe", after[0]));
    assert_ne!(
        replaced,
        format!("/data/slots/{other}/bin/qx-node"),
        "it still has its file"
    );
    appliance.ok("kill -CONT $(cat /run/quantix-controlplane.pid)");
    let said = applying.exits(0);
    assert!(!said.contains("Text file busy"), "{said}");
    appliance.assert_runs(&v2);
}

/// Intent: of two operations at once the second says who is at work, and with which process, and exits 6; the first is
/// not disturbed.
#[test]
fn the_second_of_two_applies_is_told_of_the_first() {
    let partial = Release::named("partial");
    let repository = Repository::with_v1("two-repository", &[&partial]);
    let mut appliance = Appliance::with_v1("two").options(&["--repo", &repository.url]);
    appliance.boot();
    let first = appliance.spawn("qx-update apply");
    let worker = appliance.wait_for("the first to be at work", |a| {
        a.status()["busy"]["pid"].as_u64()
    });
    let said = appliance.qx_update("apply", 6);
    assert!(said.contains(&format!("process {worker} ")), "{said}");
    first.exits(0);
    appliance.assert_runs(&partial);
}

/// Intent: an updater that a service started, in that service's session and control group, outlives the restart of that
/// service, which ends everything in its control group.
#[test]
fn the_updater_survives_the_restart_of_its_caller() {
    let v2 = Release::named("v2");
    let repository = Repository::with_v1("caller-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("caller").options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.ok("echo 'rc_cgroup_cleanup=\"yes\"' >>/etc/rc.conf");
    // The service restarts the updater's parent, too: `apply` runs below the shell in the group.
    let caller = appliance.spawn(
        r#"group=$(sed -n 's/^0:://p' /proc/$(cat /run/quantix-controlplane.pid)/cgroup)
        case $group in *quantix-controlplane*) ;; *) echo "no group of its own: $group"; exit 99 ;; esac
        echo $$ >/sys/fs/cgroup$group/cgroup.procs || exit 99
        qx-update apply
        echo "the caller goes on""#,
    );
    appliance.wait_for("v2 to be proved", |a| {
        a.log()
            .contains("1.2.0 (slot b) runs and is proved healthy")
            .then_some(())
    });
    let output = caller.wait();
    assert_ne!(output.code, 0, "the caller was not killed: {output:?}");
    assert!(!output.out.contains("the caller goes on"), "{output:?}");
    appliance.settled();
    appliance.assert_runs(&v2);
}

/// Intent: the update log can be somewhere else, on a tmpfs too, and goes on over a fall back.
#[test]
fn the_log_can_be_elsewhere() {
    let overlay = built::directory("log-overlay");
    let etc = overlay.join("etc/qx-update");
    std::fs::create_dir_all(&etc).unwrap();
    let config = built::top().join("qemu/root/etc/qx-update/config.json");
    let config = std::fs::read_to_string(config).unwrap();
    let path = "/var/log/quantix-vdc/update.log";
    let config = config.replacen('{', &format!("{{\n  \"log\": {{\"path\": \"{path}\"}},"), 1);
    std::fs::write(etc.join("config.json"), config).unwrap();
    built::other_image("log", &["--overlay", overlay.to_str().unwrap()]);

    let crash = Release::named("crash");
    let repository = Repository::with_v1("log-repository", &[&crash]);
    let mut appliance =
        Appliance::new("log").options(&["--root", "log", "--repo", &repository.url]);
    appliance.boot();
    appliance.qx_update("apply", 9);
    appliance.assert_runs(&Release::named("factory"));
    let log = appliance.ok(&format!("cat {path}"));
    for step in ["selected quantix-os 1.3.0", "giving up", "runs again"] {
        assert!(log.contains(step), "no '{step}' in {log}");
    }
    assert_eq!(appliance.log().lines().count(), log.lines().count());
    appliance.ok("! ls /data/update/log");
}

/// Intent: an empty battery, and a clock that overflowed, update all the same, and status says what that means; a clock
/// that is set is believed.
#[test]
fn wrong_clocks() {
    let repository = Repository::with_v1("clock-repository", &[]);
    let mut appliance = Appliance::new("clock");
    for (clock, release) in [("2000-01-01T00:00:00", "v1"), ("2060-12-31T23:00:00", "v2")] {
        let release = Release::named(release);
        if release.version != Release::named("v1").version {
            repository.publish(&release);
        }
        appliance.set_options(&["--repo", &repository.url, "--clock", clock]);
        appliance.boot();
        let year = appliance.ok("date -u +%Y");
        assert!(year.starts_with(&clock[..4]), "{year}, not {clock}");
        let applied = appliance.qx_update("apply", 0);
        assert!(applied.contains("freshness not verified"), "{applied}");
        appliance.assert_runs(&release);
        let status = appliance.status();
        assert_eq!(
            status["refreshed"]["freshness"], "not_verified",
            "{status:#}"
        );
        assert_eq!(status["last"]["result"], "done", "{status:#}");
        appliance.power_off();
    }
    appliance.set_options(&["--repo", &repository.url]);
    appliance.boot();
    appliance.qx_update("check", 3);
    let status = appliance.status();
    assert_eq!(status["refreshed"]["freshness"], "verified", "{status:#}");
}
