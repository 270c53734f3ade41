//! An appliance in the field, whose programs another updater put into plain directories, is taken over while its services run.

use std::time::Duration;

use crate::release::{Release, Repository};
use crate::vm::Appliance;

/// How often the power goes in the middle of it.
const CUTS: u64 = 10;

/// v1 as the updater before left it: plain directories, a version file for each component, and nothing of qx-update.
fn in_the_field(appliance: &mut Appliance) {
    appliance.start();
    appliance.ok(
        "cd /data && cp -rL bin old-bin && cp -rL share old-share && mkdir versions \
         && for file in old-bin/* old-share/*; do echo 1.1.0 >versions/${file##*/}.version; done \
         && rm -rf update slots copies adopted current bin share \
         && mv old-bin bin && mv old-share share && sync",
    );
    appliance.kill();
}

/// Whether it is adopted: wholly or not at all.
fn is_adopted(appliance: &Appliance) -> bool {
    let links =
        appliance.ok("for d in bin share; do [ -L /data/$d ] && echo link || echo plain; done");
    let links: Vec<&str> = links.lines().collect();
    assert_eq!(links[0], links[1], "half of it");
    let status = appliance.status();
    match links[0] {
        "link" => assert_eq!(status["running"]["version"], "1.1.0+adopted", "{status:#}"),
        _ => assert_eq!(status["plain"], "/data/bin", "{status:#}"),
    }
    links[0] == "link"
}

/// Intent: plain `/data/bin` and `/data/share` become the first slot while the services run, without stopping one; cut by the power at ten
/// places it has not happened or is complete after the next boot; undone, all is as before; and then it updates and goes back like any other.
#[test]
fn an_appliance_in_the_field_is_adopted() {
    let (v1, v2) = (Release::named("v1"), Release::named("v2"));
    let repository = Repository::with_v1("adopt-repository", &[&v2]);
    let mut appliance = Appliance::with_v1("adopt").options(&["--repo", &repository.url]);
    in_the_field(&mut appliance);
    let mut happened = 0;
    appliance.start();
    for cut in 0..CUTS {
        assert!(!is_adopted(&appliance));
        let _cut = appliance.spawn("qx-update adopt");
        std::thread::sleep(Duration::from_millis(cut * 200));
        appliance.kill();
        appliance.start();
        if is_adopted(&appliance) {
            happened += 1;
            appliance.qx_update("adopt --undo", 0);
        }
    }
    appliance.kill();
    println!("cut {CUTS} times: {happened} times it was complete at the next boot");

    appliance.boot();
    let before = appliance.ok("pidof qx-node qx-controlplane qx-console");
    assert_eq!(appliance.programs(), v1.programs);
    appliance.qx_update("adopt", 0);
    assert!(is_adopted(&appliance));
    assert_eq!(appliance.programs(), v1.programs);
    appliance.qx_update("adopt --undo", 0);
    assert!(!is_adopted(&appliance));
    appliance.qx_update("adopt", 0);
    assert_eq!(
        appliance.ok("pidof qx-node qx-controlplane qx-console"),
        before,
        "a service was restarted"
    );
    let status = appliance.status();
    for service in status["services"].as_array().unwrap() {
        assert_eq!(service["state"], "installed", "{status:#}");
    }
    appliance.reboot();
    assert_eq!(appliance.programs(), v1.programs);
    appliance.qx_update("apply", 0);
    appliance.assert_runs(&v2);
    appliance.qx_update("rollback", 0);
    assert_eq!(appliance.status()["running"]["version"], "1.1.0+adopted");
    assert_eq!(appliance.programs(), v1.programs);
}
