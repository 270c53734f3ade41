//! Puts what a process inherits (signals, umask, descriptors, priority) into a known state before anything else: cron, a
//! web interface, `nohup` and an init script start the same programs in different environments, and none of that may affect
//! an update, or reach a service or a migration.
//!
//! The standard library opens `/dev/null` for a standard descriptor that is closed, and has SIGPIPE ignored here and not in
//! children.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::SigSet;
use signal_hook::consts::{
    FORBIDDEN, SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGSTOP, SIGXFSZ,
};

/// To be called first, while there is one thread: its settings hold for all later threads, and for children. What cannot be
/// set is left as it is.
pub fn settle() {
    let _ = SigSet::empty().thread_set_mask();
    dispositions();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    keep_descriptors_to_ourselves();
}

/// Resets the priority, so that services do not inherit the one that was chosen for the command that starts them.
pub fn ordinary_priority() {
    let _ = rustix::process::setpriority_process(None, 0);
}

/// Changes to `/`: the working directory of a process cannot be unmounted, and may no longer exist.
pub fn leave_directory() {
    let _ = rustix::process::chdir("/");
}

/// A signal with a handler has its default action again in children; one that is ignored stays so. An ignored SIGCHLD
/// would, besides, have the kernel throw away how children end.
fn dispositions() {
    // Without /proc nothing is known to be ignored.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok())
        .unwrap_or_default();
    for signal in 1..=64 {
        let is_ignored = ignored & 1 << (signal - 1) != 0;
        if !(is_ignored || signal == SIGCHLD)
            || [SIGKILL, SIGSTOP, SIGPIPE].contains(&signal)
            || FORBIDDEN.contains(&signal)
        {
            continue;
        }
        let yes = Arc::new(AtomicBool::new(true));
        // `nohup` and the shell's `&` ignore these on purpose; and a write beyond a limit is an error that is reported.
        let is_wish = [SIGHUP, SIGINT, SIGQUIT, SIGXFSZ].contains(&signal);
        let as_default = match is_wish {
            true => None,
            false => signal_hook::flag::register_conditional_default(signal, Arc::clone(&yes)).ok(),
        };
        if as_default.is_none() {
            let _ = signal_hook::flag::register(signal, yes);
        }
    }
}

/// Descriptors beyond the standard ones are somebody's locks and pipes. They stay open here (a lock is held for as long as
/// the command that it is for runs), and no child gets them.
fn keep_descriptors_to_ourselves() {
    let listed: Option<Vec<i32>> = fs::read_dir("/proc/self/fd").ok().map(|entries| {
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        entries.flatten().filter_map(number).collect()
    });
    // Without /proc: all that there may be by default.
    for descriptor in listed.unwrap_or_else(|| (0..1024).collect()) {
        if descriptor > 2 {
            let _ = fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    }
}
