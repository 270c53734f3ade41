//! What `/proc` says of processes that are somebody else's: names, arguments, environments, mounts, sockets.
//!
//! - No panic; memory in proportion to the input.
#![no_main]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use qx_update::system::proc::Proc;
use qx_update_fuzz::{bounded, scratch};

/// The files that are read, each with the same content: every parser has a go at it.
const OF_A_PROCESS: [&str; 7] = [
    "stat",
    "status",
    "cmdline",
    "environ",
    "cgroup",
    "mountinfo",
    "maps",
];
const OF_ALL: [&str; 3] = ["net/tcp", "net/tcp6", "locks"];

fn write(path: &Path, data: &[u8]) {
    fs::create_dir_all(path.parent().expect("below")).expect("there is memory");
    fs::write(path, data).expect("there is memory");
}

fuzz_target!(|data: &[u8]| {
    let root = scratch().join("proc");
    let me = std::process::id().to_string();
    for pid in ["1", "4194304", &me] {
        for file in OF_A_PROCESS {
            write(&root.join(pid).join(file), data);
        }
    }
    for file in OF_ALL {
        write(&root.join(file), data);
    }
    let proc = Proc::at(&root);
    let address: SocketAddr = "127.0.0.1:80".parse().expect("an address");
    let directories = [PathBuf::from("/data/slots/a"), PathBuf::from("/")];
    let lock = fs::File::open(root.join("locks")).expect("it is there");
    // Three processes, and the same of each in several lists.
    bounded(data.len() * 16, || {
        for pid in [1, 4_194_304, std::process::id()] {
            let _ = (
                proc.executable_name(pid),
                proc.identity(pid),
                proc.ending(pid),
            );
            let _ = (proc.group(pid), proc.has_argument(pid, "--worker"));
        }
        let _ = (
            proc.processes(),
            proc.marked("QX_UPDATE_SERVICE=node"),
            proc.ancestors(),
        );
        let _ = (proc.listeners(address), proc.users(&directories));
        let _ = (proc.mounted(&directories), proc.lock_holder(&lock));
    });
});
