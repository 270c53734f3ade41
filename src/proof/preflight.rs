//! What the appliance itself must be able to do before a service is stopped: its own faults are found here, said in one line,
//! and never blamed on a release. `check`, `apply` and `apply --dry-run` ask the same.

use std::fs;
use std::path::Path;

use rustix::fs::{Access, StatVfsMountFlags, access};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::model::config::{Config, Services};
use crate::model::dataset::Method;
use crate::model::slot::Set;
use crate::proof::observe::Census;
use crate::store::{self, Store};
use crate::system::host::Host;
use crate::system::proc::PATH;
use crate::system::process::{self, User};
use crate::system::service::{Main, Manager};
use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::{Manifest, Name};
use qx_release::script::Script;
use qx_release::text;

/// File systems that do not survive a reboot (statfs(2)).
const VOLATILE: [(u64, &str); 3] = [
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x794c_7630, "an overlay"),
];
/// Descriptors that are needed besides those of the nested directories.
const DESCRIPTORS: u64 = 64;

/// Finds what would fail later. `running` is the manifest of what runs, `release` that of what shall run.
///
/// # Errors
/// [`ErrorKind::Usage`] where the configuration is wrong, [`ErrorKind::Failed`] where the machine is.
pub fn check(
    host: &Host,
    config: &Config,
    store: &Store,
    running: Option<&Manifest>,
    release: &Manifest,
) -> Result<()> {
    let all = all(host, config, store, running, release);
    all.into_iter().try_for_each(|(_, found)| found)
}

/// The same, each by its name.
pub fn all(
    host: &Host,
    config: &Config,
    store: &Store,
    running: Option<&Manifest>,
    release: &Manifest,
) -> Vec<(&'static str, Result<()>)> {
    let mut all = vec![
        ("programs", process::null().map(drop)),
        ("data partition", data_partition(host, store, release)),
        ("users", users(host, config)),
        ("inhibit", inhibitor(config)),
        ("data commands", data_commands(config)),
        ("open files", descriptors(host, config)),
    ];
    let manager = Manager::new(&config.services, host, config.service_timeout());
    if manager.controls() {
        all.push(("service commands", commands(&config.services)));
        all.push(("pidfiles", pidfiles(running, store, &manager)));
    }
    all
}

/// Programs can be started from it, links and exchanges work on it, and it will be there after a reboot.
fn data_partition(host: &Host, store: &Store, release: &Manifest) -> Result<()> {
    let slots = match store.path("slots") {
        // Before the first command has made it.
        absent if store::is_absent(&absent) => store.path(""),
        slots => slots,
    };
    let using = || format!("using {}", slots.display());
    let stat = rustix::fs::statvfs(&slots).doing(using)?;
    if stat.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        let why = "it is mounted noexec, so programs cannot be started from it: mount it with exec";
        return Err(Error::new(format!("{}: {why}", using())));
    }
    let capable = release
        .components
        .iter()
        .find(|c| !c.capabilities.is_none());
    if let Some(component) = capable
        && stat.f_flag.contains(StatVfsMountFlags::NOSUID)
    {
        let why = format!(
            "it is mounted nosuid, so {} would not have its capabilities ({}): mount it with suid",
            component.name, component.capabilities
        );
        return Err(Error::new(format!("{}: {why}", using())));
    }
    if host.is_running_system() {
        let kind = rustix::fs::statfs(&slots).doing(using)?.f_type;
        let kind = u64::try_from(kind).unwrap_or_default();
        if let Some((_, name)) = VOLATILE.iter().find(|(magic, _)| *magic == kind) {
            let why = format!(
                "it is on {name}, so a reboot would lose it: is the data partition mounted?"
            );
            return Err(Error::new(format!("{}: {why}", using())));
        }
    }
    durable::try_links_and_exchanges(&slots)
}

/// The users that programs run as exist.
fn users(host: &Host, config: &Config) -> Result<()> {
    let named = [("migration_user", config.migration_user.as_ref())];
    let of_data = config
        .data
        .iter()
        .map(|set| ("data[].user", set.user.as_ref()));
    for (field, user) in named.into_iter().chain(of_data) {
        if let Some(user) = user {
            User::find(host, user)
                .map_err(|e| e.of(ErrorKind::Usage))
                .doing(|| format!("using {field} of the configuration"))?;
        }
    }
    Ok(())
}

/// Copying a data directory needs an open descriptor for each level.
fn descriptors(host: &Host, config: &Config) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    // Whoever called may have had fewer than it is entitled to.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    for set in config.data.iter().filter(|set| set.method == Method::Files) {
        let place = host.path(&set.place)?;
        // What is copied, what is read of it, and the copy.
        let depth = depth(&place).saturating_mul(3);
        if depth.saturating_add(DESCRIPTORS) > most {
            return Err(Error::new(format!(
                "using the data {}: {} is nested too deeply: copying it needs {depth} open files, but the limit is {most} \
                 (RLIMIT_NOFILE)",
                set.name,
                place.display()
            )));
        }
    }
    Ok(())
}

/// How deep directories are nested. Holds no descriptor meanwhile.
fn depth(path: &Path) -> u64 {
    let mut level = vec![path.to_owned()];
    let mut depth = 0;
    while !level.is_empty() {
        let mut next = Vec::new();
        for directory in level {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let directories = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
            next.extend(directories.map(|entry| entry.path()));
        }
        depth += 1;
        level = next;
    }
    depth
}

/// What the scripts of a staged set are run by is there: services would be stopped for nothing. An interpreter that comes with
/// the set itself is reached through the link, and is looked for by the proof.
pub fn interpreters(store: &Store, set: Set, manifest: &Manifest) -> Result<()> {
    for service in &manifest.services {
        let program = store.program(set, manifest, service.runs.as_str());
        let Some(script) = program.and_then(|path| Script::read(&path)) else {
            continue;
        };
        let mut needed = [Some(&script.interpreter), script.named.as_ref()]
            .into_iter()
            .flatten();
        let of_the_set = |path: &str| Path::new(path).starts_with(store.path(""));
        if let Some(missing) = needed.find(|path| !of_the_set(path) && !is_program(path)) {
            return Err(Error::new(format!(
                "planning to start service {}: {} is run by {missing}, which this image does not have: install it in the image",
                service.name, service.runs
            )));
        }
    }
    Ok(())
}

/// The service manager's commands are there.
fn commands(how: &Services) -> Result<()> {
    let vectors: &[(&str, &[String])] = match how {
        Services::OpenRc { .. } => &[("manager", &[])],
        Services::Commands {
            start,
            stop,
            status,
            ..
        } => &[("start", start), ("stop", stop), ("status", status)],
        Services::None {} => &[],
    };
    for (field, vector) in vectors {
        let program = vector.first().map_or("rc-service", String::as_str);
        if !is_program(program) {
            return Err(Error::with(
                ErrorKind::Usage,
                format!(
                    "using services.{field} of the configuration: {program} is not an executable program"
                ),
            ));
        }
    }
    Ok(())
}

/// The command that says whether services may be stopped.
fn inhibitor(config: &Config) -> Result<()> {
    match config.inhibit.command.first() {
        Some(program) if !is_program(program) => Err(Error::with(
            ErrorKind::Usage,
            format!(
                "using inhibit.command of the configuration: {} is not an executable program",
                text::clean(program, 200)
            ),
        )),
        _ => Ok(()),
    }
}

/// The commands of data sets: without them, services would be stopped before it is known that nothing can be copied.
fn data_commands(config: &Config) -> Result<()> {
    for set in &config.data {
        let mut vectors = vec![
            ("copy_in_use", &set.copy_in_use),
            ("check", &set.check),
            ("schema", &set.schema),
        ];
        if let Method::Command(all) = &set.method {
            vectors.extend([
                ("copy", &all.copy),
                ("exchange", &all.exchange),
                ("drop", &all.drop),
            ]);
        }
        for (field, vector) in vectors {
            if let Some(program) = vector.first()
                && !is_program(program)
            {
                return Err(Error::with(
                    ErrorKind::Usage,
                    format!(
                        "using the data {}: {field} of the configuration: {} is not an executable program",
                        set.name,
                        text::clean(program, 200)
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Whether a program is found, and may be run.
fn is_program(program: &str) -> bool {
    let runs = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    match program.contains('/') {
        true => runs(Path::new(program)),
        false => PATH
            .split(':')
            .any(|place| runs(&Path::new(place).join(program))),
    }
}

/// A service that runs, and whose pidfile names none of its processes, would be taken for one that does not.
fn pidfiles(running: Option<&Manifest>, store: &Store, manager: &Manager) -> Result<()> {
    let Some(manifest) = running else {
        return Ok(());
    };
    let names: Vec<Name> = manifest.services.iter().map(|s| s.name.clone()).collect();
    let census = Census::take(&[manifest], &[], store, manager);
    for name in names {
        let nobody = manager.main(&name) == Main::Nobody;
        let unclaimed = nobody.then(|| census.unclaimed(&name)).flatten();
        if let Some(process) = unclaimed
            && manager.runs(&name).is_ok()
        {
            return Err(Error::with(
                ErrorKind::Usage,
                format!(
                    "using services.pidfile of the configuration: service {name} runs (process {}), but its pidfile {} names \
                     none of its processes",
                    process.pid,
                    manager.pidfile_of(&name)
                ),
            ));
        }
    }
    Ok(())
}
