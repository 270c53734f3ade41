//! Control groups (cgroups(7)): whatever a program does, what it starts stays in the group that it was started in.

use std::fs;
use std::path::{Path, PathBuf};

use crate::model::config::MigrationLimits;
use qx_release::error::{Context, Error, Result};

/// Where they are mounted: one hierarchy for all, or a directory with several.
const MOUNTED: &str = "/sys/fs/cgroup";
/// The hierarchies of which any one will do to know what belongs together, the best first, with what `/proc/self/cgroup` calls
/// each.
const FAMILIES: [(&str, &str); 3] = [("", ""), ("unified", ""), ("openrc", "name=openrc")];

/// A group, which may exist in several hierarchies, or, on a machine without control groups, in none.
pub struct Group {
    /// In the hierarchy that knows what belongs together.
    family: Option<PathBuf>,
    /// Where its members are, and where this process is, in each hierarchy.
    places: Vec<(PathBuf, PathBuf)>,
}

impl Group {
    /// The group of that name, as far as there is a place for it.
    pub fn named(name: &str) -> Group {
        let family = family().map(|(directory, _)| directory.join(name));
        Group {
            family,
            places: Vec::new(),
        }
    }

    /// Makes it.
    ///
    /// # Errors
    /// It is to have limits, and there is no way to set them. Without any, a machine that has no control groups, or does not
    /// let us make one, has no group and no error.
    pub fn make(name: &str, limits: &MigrationLimits) -> Result<Group> {
        let mut group = Group::named(name);
        if let Some(((parent, called), made)) = family().zip(group.family.clone())
            && make_directory(&made).is_ok()
            && let Some(here) = here(&parent, called)
        {
            group.places.push((made, here));
        }
        let limited = [
            (
                "memory",
                limits.memory_bytes,
                ["memory.max", "memory.limit_in_bytes"],
            ),
            ("pids", limits.tasks, ["pids.max", "pids.max"]),
        ];
        for (controller, limit, files) in limited {
            if let Some(limit) = limit {
                group
                    .limit(name, controller, limit, files)
                    .doing(|| format!("limiting the {controller} of the control group {name}"))?;
            }
        }
        Ok(group)
    }

    /// Sets a limit where the controller is: in the hierarchy for all, else in one of its own.
    fn limit(
        &mut self,
        name: &str,
        controller: &str,
        limit: u64,
        [unified, own]: [&str; 2],
    ) -> Result<()> {
        let all = Path::new(MOUNTED);
        if all.join("cgroup.procs").exists() {
            let made = all.join(name);
            let doing = || format!("writing {}", made.join(unified).display());
            fs::write(all.join("cgroup.subtree_control"), format!("+{controller}")).doing(doing)?;
            return fs::write(made.join(unified), limit.to_string()).doing(doing);
        }
        let parent = all.join(controller);
        let here = here(&parent, controller).ok_or_else(|| {
            Error::new("this machine has no such controller in its control groups")
        })?;
        let made = here.join(name);
        let doing = || format!("writing {}", made.join(own).display());
        make_directory(&made).doing(doing)?;
        fs::write(made.join(own), limit.to_string()).doing(doing)?;
        self.places.push((made, here));
        Ok(())
    }

    /// As long as the result lives, this process is in the group: what it starts is born there.
    pub fn enter(&self) -> Result<Within> {
        let mut within = Within(Vec::new());
        for (made, here) in &self.places {
            within.0.push(here.clone());
            go(made).doing(|| format!("entering the control group {}", made.display()))?;
        }
        Ok(within)
    }

    /// The ids of the processes in it, this one excepted.
    pub fn members(&self) -> Vec<u32> {
        let list = self.family.as_ref().map(|made| made.join("cgroup.procs"));
        let list = list.and_then(|list| fs::read_to_string(list).ok());
        let ids = list.unwrap_or_default();
        let ids = ids.lines().filter_map(|id| id.parse().ok());
        ids.filter(|id| *id != std::process::id()).collect()
    }

    /// Kills all that is in it at once, where the kernel can.
    pub fn kill(&self) {
        if let Some(made) = &self.family {
            let _ = fs::write(made.join("cgroup.kill"), "1");
        }
    }

    /// Removes it; one that is not empty stays.
    pub fn remove(&self) {
        let places = self.places.iter().map(|(made, _)| made);
        for made in self.family.iter().chain(places) {
            let _ = fs::remove_dir(made);
        }
    }
}

/// This process is in a group, and goes back to where it was.
pub struct Within(Vec<PathBuf>);

impl Drop for Within {
    fn drop(&mut self) {
        for here in &self.0 {
            // Its own group may be gone meanwhile, if it was the only one in there.
            let _ = go(here);
        }
    }
}

/// The hierarchy that knows what belongs together, and what it is called.
fn family() -> Option<(PathBuf, &'static str)> {
    let all = FAMILIES.map(|(directory, called)| (Path::new(MOUNTED).join(directory), called));
    let mut there = all.into_iter();
    there.find(|(directory, _)| directory.join("cgroup.procs").exists())
}

/// Where this process is in a hierarchy.
fn here(hierarchy: &Path, called: &str) -> Option<PathBuf> {
    let lines = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = lines.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        controllers.split(',').any(|c| c == called).then_some(path)
    })?;
    let here = hierarchy.join(path.strip_prefix('/')?);
    here.join("cgroup.procs").exists().then_some(here)
}

fn make_directory(made: &Path) -> std::io::Result<()> {
    match fs::create_dir(made) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Moves this process, all its threads included.
fn go(group: &Path) -> std::io::Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}
