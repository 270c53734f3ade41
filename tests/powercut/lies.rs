//! A medium that keeps something else than what was written to it, and says that all is well.

use crate::EXT4;
use crate::appliance::{Appliance, Release};
use crate::disk::Disk;

/// What is written of each component of 1.2.0 and of nothing else.
const COMPONENTS: [(&str, &str); 3] = [
    ("bin/app", "echo 1.2.0"),
    ("share/ui", "<p>1.2.0</p>"),
    // The last of its component's files, and a small one.
    ("share/ui", "// 1.2.0"),
];

/// Intent: whichever component the medium did not keep, nothing is switched to it: the update fails before a service stops, says where,
/// and succeeds on the same medium once that keeps what it is given.
#[test]
fn a_medium_that_lies_is_found_out_before_anything_runs_from_it() {
    for (component, written) in COMPONENTS {
        let disk = Disk::new(EXT4.bytes);
        let device = disk.attach();
        device.format(&EXT4);
        let mut appliance = Appliance::new();
        let mounted = device.mount(&appliance.data(), &EXT4);
        appliance.first_data();
        appliance.release("1.1.0", Release::default());
        appliance.update(&["apply"]).expect(&[0]).unwrap();
        appliance.release("1.2.0", Release::default());
        disk.lies_about(Some(written.as_bytes()));
        let failed = appliance.update(&["apply"]).expect(&[1]).unwrap();
        let place = format!("slots/b.next/{component}");
        for word in ["verifying", "on disk", &place] {
            assert!(failed.error.contains(word), "{written}: {failed:?}");
        }
        appliance.sound(&[(Some("1.1.0"), 1)]).unwrap();
        disk.lies_about(None);
        appliance.update(&["apply"]).expect(&[0]).unwrap();
        appliance.sound(&[(Some("1.2.0"), 1)]).unwrap();
        appliance.tidy().unwrap();
        drop(mounted);
    }
}
