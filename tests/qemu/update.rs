//! Updates that go well.

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
