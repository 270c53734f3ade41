//! Commands that answer, and the link stage of recovery: they need no worker, and work without a configuration.

use std::io;
use std::path::Path;

use qx_release::error::{Context, Error, ErrorKind, Exit, Result};
use qx_release::manifest::Manifest;
use qx_release::{json, output, text};

use super::{LogArguments, answer, complain, for_people, open_store};
#[cfg(feature = "update")]
use crate::data;
#[cfg(feature = "update")]
use crate::doctor::Diagnosis;
use crate::model::config::Config;
#[cfg(feature = "update")]
use crate::model::kept::Kept;
#[cfg(feature = "update")]
use crate::model::record::Loaded;
use crate::model::slot::{Set, Slot, Verdict};
use crate::recovery::link;
#[cfg(feature = "update")]
use crate::repository::damage;
use crate::status::{self, Status};
use crate::store::{CommitPoint, Store, sets};
use crate::system::host::Host;
use crate::system::log::{self, Line, Log};

pub(super) fn recover_link(host: &Host, config: Option<&str>) -> Result<Exit> {
    let (store, place, read) = open_store(host, config)?;
    let mut log = Log::new(place, false);
    if let Err(e) = read {
        log.warning("recover", format!("using default settings: {}", e.chain()));
    }
    // Without a lock file nothing can be written, and nobody else can either.
    if let Err(e) = store.prepare() {
        log.warning("recover", e.chain());
    }
    let lock = match store.lock("recover", None) {
        Err(e) if e.kind == ErrorKind::Busy => return Err(e),
        other => other,
    };
    let outcome = link::link_stage(host, &store, &mut log)?;
    drop(lock);
    for problem in &outcome.problems {
        complain(problem);
    }
    // Files are in order whether or not anybody hears of it.
    let _ = output::answer(&format!("qx-update: active set: {}\n", outcome.show));
    Ok(Exit::Done)
}

pub(super) fn status(host: &Host, config: Option<&str>, json: bool) -> Result<Exit> {
    let (store, _, config) = open_store(host, config)?;
    store.may_read()?;
    let status = Status::observe(host, &store, &config);
    if json {
        let text = serde_json::to_string_pretty(&status).doing(|| "printing the status")?;
        answer(&format!("{text}\n"))
    } else {
        answer(&status::for_people(&status))
    }
}

pub(super) fn verify(host: &Host, config: Option<&str>) -> Result<Exit> {
    let (store, _, config) = open_store(host, config)?;
    store.may_read()?;
    let link = store.selected();
    let mut bad = false;
    for slot in Slot::BOTH {
        let verdict = store.verify(slot);
        bad |= matches!(verdict, Verdict::Damaged(_));
        let mark = if link.selects(slot.into()) {
            ", in use"
        } else {
            ""
        };
        answer(&format!(
            "slot {slot}{mark}: {}\n",
            text::line(&sets::describe(&verdict))
        ))?;
    }
    let factory = match store.verify_factory() {
        Ok(Some(factory)) => format!("good, {factory}"),
        Ok(None) => "not verifiable: the image contains no factory manifest".to_owned(),
        Err(why) => {
            bad = true;
            format!("damaged: {}", text::line(&why))
        }
    };
    answer(&format!("factory set: {factory}\n"))?;
    let own = [
        ("state", store.damaged()),
        ("trust", damaged_trust(host, &store, &config)),
        ("kept data", damaged_data(host, &store)),
    ];
    for (what, damaged) in own {
        bad |= !damaged.is_empty();
        if damaged.is_empty() {
            answer(&format!("{what}: good\n"))?;
        }
        for why in damaged {
            answer(&format!("{what}: damaged: {}\n", text::line(&why)))?;
        }
    }
    Ok(if bad { Exit::NeedsPerson } else { Exit::Done })
}

/// What is wrong, or will be when an update meets it.
#[cfg(feature = "update")]
pub(super) fn doctor(host: &Host, config: Option<&str>, json: bool) -> Result<Exit> {
    let opened = open_store(host, config).map(|(store, _, config)| (store, config));
    if let Ok((store, _)) = &opened {
        store.may_read()?;
    }
    let diagnosis = Diagnosis::of(host, opened);
    let said = match json {
        true => {
            let text =
                serde_json::to_string_pretty(&diagnosis).doing(|| "printing the diagnosis")?;
            format!("{text}\n")
        }
        false => diagnosis.for_people(),
    };
    answer(&said).map(|_| diagnosis.exit())
}

/// The kept metadata that are damaged.
#[cfg(feature = "update")]
fn damaged_trust(host: &Host, store: &Store, config: &Result<Config>) -> Vec<String> {
    // Without one nobody knows where trust begins, nor is anything refreshed.
    let Ok(config) = config else {
        return Vec::new();
    };
    let root = host.path(&config.trust_root);
    let root = root.and_then(|root| crate::store::read_if_there(&root, 1 << 20));
    // Which root they were verified by last.
    let (Ok(Some(root)), Ok(Some(refreshed))) = (root, store.refreshed()) else {
        return Vec::new();
    };
    let (kept, limits) = (store.path("update/trust"), &config.limits.trust);
    damage::damaged(&kept, &root, refreshed.trust.root, limits)
}

/// The kept data that is damaged.
#[cfg(feature = "update")]
fn damaged_data(host: &Host, store: &Store) -> Vec<String> {
    let record = store.load();
    // What an operation works with changes.
    let in_use = |kept: &Kept| match &record {
        Loaded::Record(record) => data::is_in_use(kept, record),
        Loaded::Absent | Loaded::Unreadable(_) => true,
    };
    // A note that cannot be read is damage of the state.
    let kept = store.kept_data().unwrap_or_default().into_iter();
    kept.filter(|kept| !in_use(kept))
        .filter_map(|kept| data::intact(host, store, &kept).err())
        .map(|e| e.chain())
        .collect()
}

/// What recovers only keeps no data.
#[cfg(not(feature = "update"))]
fn damaged_data(_: &Host, _: &Store) -> Vec<String> {
    Vec::new()
}

/// What recovers only trusts nothing new, and has no means to verify signatures.
#[cfg(not(feature = "update"))]
fn damaged_trust(_: &Host, _: &Store, _: &Result<Config>) -> Vec<String> {
    Vec::new()
}

/// The data that is kept, the oldest first.
#[cfg(feature = "update")]
pub(super) fn kept_data(host: &Host, config: Option<&str>) -> Result<Exit> {
    let (store, _, config) = open_store(host, config)?;
    store.may_read()?;
    let keep_s = config.ok().map(|config| config.limits.keep_data_s);
    let all = store.kept_data()?;
    if all.is_empty() {
        return answer("no data is kept\n");
    }
    for mut kept in all {
        kept.age(&host.moment());
        answer(&format!("{}\n", text::line(&kept.describe(keep_s))))?;
    }
    Ok(Exit::Done)
}

/// What `[ -x /data/bin/NAME ]` decides, and the factory's file otherwise.
pub(super) fn which(host: &Host, config: Option<&str>, name: &str) -> Result<Exit> {
    let (store, _, _) = open_store(host, config)?;
    // A link there may lead elsewhere in the root; it is looked for as the init script finds it, and named as there.
    if executable(&store.followed(&format!("bin/{name}"))?)? {
        return answer(&format!(
            "{}
",
            store.path("bin").join(name).display()
        ));
    }
    let listed = |manifest: &Manifest| {
        let component = manifest
            .components
            .iter()
            .find(|c| c.install_path.as_str() == format!("bin/{name}"));
        component.map(|c| store.component(Set::Factory, c))
    };
    let path = store
        .manifest(Set::Factory)?
        .and_then(|(manifest, _)| listed(&manifest))
        .unwrap_or_else(|| host.path(&format!("/usr/bin/{name}")))?;
    if !executable(&path)? {
        return Err(Error::new(format!(
            "looking for {name}: neither a release nor the factory set contains it"
        )));
    }
    answer(&format!("{}\n", path.display()))
}

/// As `[ -x PATH ]` asks: a file that may be run by whoever asks, where it lies.
fn executable(path: &Path) -> Result<bool> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    use rustix::io::Errno;
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(path.is_file()),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        // It is there, and not to be run; or nobody may say whether it is there.
        Err(Errno::ACCESS) if path.try_exists().is_ok_and(|there| there) => Ok(false),
        Err(e) => Err(e).doing(|| format!("looking at {}", path.display())),
    }
}

pub(super) fn log(host: &Host, config: Option<&str>, arguments: &LogArguments) -> Result<Exit> {
    let (_, place, _) = open_store(host, config)?;
    let mut lines = Vec::new();
    for file in log::files(&place) {
        let text = match std::fs::read(&file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            text => text.doing(|| format!("reading {}", file.display()))?,
        };
        lines.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
    }
    let first = lines
        .len()
        .saturating_sub(arguments.lines.unwrap_or(usize::MAX));
    let mut shown = String::new();
    for line in &lines[first..] {
        // A line that was cut by a power loss is shown as it is.
        let text = match json::parse_str::<Line>(line) {
            Ok(parsed) if !arguments.json => for_people(&parsed),
            Ok(_) => line.clone(),
            Err(_) => text::line(line),
        };
        shown.push_str(&text);
        shown.push('\n');
    }
    answer(&shown)
}
