//! What the kernel left of how the boot before this one ended.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::model::boots::{Crash, CrashKind};
use crate::system::host::Host;
use qx_release::text;

/// Where the kernel keeps its last words: <https://docs.kernel.org/admin-guide/ramoops.html>.
const PSTORE: &str = "/sys/fs/pstore";
/// Watchdog devices, whose `bootstatus` says whether one of them ended the boot before:
/// <https://docs.kernel.org/watchdog/watchdog-api.html>.
const WATCHDOGS: &str = "/sys/class/watchdog";
/// `WDIOF_CARDRESET`.
const RESET: u32 = 0x20;
/// What every panic says.
const PANIC: &str = "Kernel panic - not syncing";
/// So much of a dump is read, in bytes, and so many dumps are remembered.
const MAX_DUMP: usize = 1 << 18;
const MAX_DUMPS: usize = 64;

/// What ended the boot before this one, if the kernel or a watchdog says so; `dumps` are those that were read before, and after this
/// those that lie there.
pub fn of_the_boot_before(host: &Host, dumps: &mut Vec<String>) -> Option<Crash> {
    let panic = panic(host, dumps);
    panic.or_else(|| watchdog(host))
}

fn panic(host: &Host, dumps: &mut Vec<String>) -> Option<Crash> {
    let mut there = Vec::new();
    let mut found = None;
    for path in entries(&host.path(PSTORE).ok()?) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("dmesg-") || there.len() == MAX_DUMPS {
            continue;
        }
        let written = fs::metadata(&path).map_or(0, |meta| meta.mtime());
        let dump = format!("{name} {written}");
        if !dumps.contains(&dump)
            && let Some(what) = last_words(&path)
        {
            found = Some(what);
        }
        there.push(dump);
    }
    *dumps = there;
    found.map(|what| Crash {
        kind: CrashKind::Panic,
        what,
    })
}

/// What a dump says of a panic. There are others: of an oops that was survived, of an orderly end.
fn last_words(path: &Path) -> Option<String> {
    let mut bytes = fs::read(path).ok()?;
    bytes.truncate(MAX_DUMP);
    let text = String::from_utf8_lossy(&bytes);
    let line = text
        .lines()
        .find_map(|line| line.find(PANIC).map(|at| &line[at..]));
    match line {
        Some(line) => Some(text::clean(line.trim_end(), text::LINE)),
        None if text.starts_with("Panic#") => Some("Kernel panic".to_owned()),
        None => None,
    }
}

fn watchdog(host: &Host) -> Option<Crash> {
    let mut devices = entries(&host.path(WATCHDOGS).ok()?).into_iter();
    let device = devices.find(|device| {
        let status = fs::read_to_string(device.join("bootstatus")).unwrap_or_default();
        status
            .trim()
            .parse::<u32>()
            .is_ok_and(|status| status & RESET != 0)
    })?;
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    Some(Crash {
        kind: CrashKind::Watchdog,
        what: format!("the watchdog {} reset the machine", text::name(&name)),
    })
}

/// In the order of their names.
fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
