//! A Quantix-vDC: its programs lie at the image's own places, on a root that can be written to. They become the factory set, and the
//! init scripts of its services look below the data directory first. What was there before is kept beside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::legacy;
use crate::model::config::Config;
use crate::model::slot::Set;
use crate::store::{Store, is_absent};
use crate::system::host::Host;
use qx_release::durable;
use qx_release::error::{Context, Error, Result};
use qx_release::manifest::{Kind, Manifest, Service};
use qx_release::text;
use qx_release::tree;
use qx_scratch::{Scratch, init_script};

/// What tells such an appliance.
const PLACE: &str = "/etc/quantix-vdc";
/// Its components, where they lie, and where a release has them.
const COMPONENTS: [(&str, Kind, &str, &str); 3] = [
    (
        "qx-controlplane",
        Kind::Bin,
        "bin/qx-controlplane",
        "/usr/bin/qx-controlplane",
    ),
    (
        "dashboard",
        Kind::Tree,
        "share/quantix-vdc/dashboard",
        "/usr/share/quantix-vdc/dashboard",
    ),
    (
        "migrations",
        Kind::Tree,
        "migrations",
        "/usr/share/quantix-vdc/migrations",
    ),
];
/// Where what was replaced is kept, below the data directory.
const SCRIPTS: &str = "adopted/init.d";
const FACTORY: &str = "adopted/factory.json";

/// What is to be done before such an appliance can be updated.
pub struct Vdc {
    /// The factory set's manifest, if the image has none, and where it belongs.
    factory: Option<(PathBuf, Vec<u8>)>,
    /// Init scripts, as they are and as they are to be.
    scripts: Vec<(PathBuf, String, String)>,
    /// The same in words.
    pub plan: Vec<String>,
}

impl Vdc {
    /// What there is to do; `None` if this is no such appliance, or all is done.
    ///
    /// # Errors
    /// Something of it cannot be done by this program: the sentence says what to do first.
    pub fn survey(host: &Host, store: &Store, config: &Config, now: &str) -> Result<Option<Vdc>> {
        let doing = || "adopting this Quantix-vDC";
        if !host.path(PLACE)?.is_dir() {
            return Ok(None);
        }
        let mut vdc = Vdc {
            factory: None,
            scripts: Vec::new(),
            plan: Vec::new(),
        };
        let manifest = match store.manifest(Set::Factory).doing(doing)? {
            Some((manifest, _)) => manifest,
            None => vdc.describe(host, config, now).doing(doing)?,
        };
        for service in &manifest.services {
            let factory = manifest.in_image(service);
            vdc.script(host, service, &factory).doing(doing)?;
        }
        Ok((vdc.factory.is_some() || !vdc.scripts.is_empty()).then_some(vdc))
    }

    /// The factory set's manifest, of what lies there now.
    fn describe(&mut self, host: &Host, config: &Config, now: &str) -> Result<Manifest> {
        let mut components = Vec::new();
        for (name, kind, install_path, place) in COMPONENTS {
            let path = host.path(place)?;
            if is_absent(&path) {
                continue;
            }
            super::only_root_changes(&path)?;
            let found = tree::measure(kind, &path)?;
            components.push(json!({
                "name": name, "kind": kind, "install_path": install_path, "factory_path": place,
                "mode": format!("{:04o}", found.mode), "sha256": found.digest, "size_bytes": found.bytes, "entries": found.entries,
            }));
            self.plan
                .push(format!("{name}: {place} becomes part of the factory set"));
        }
        let has = |name: &str| components.iter().any(|c: &Value| c["name"] == name);
        if !has("qx-controlplane") {
            return Err(Error::new(format!("there is no {}", COMPONENTS[0].3)));
        }
        let uses: Vec<&str> = ["dashboard", "migrations"]
            .into_iter()
            .filter(|name| has(name))
            .collect();
        let version = legacy::version(host, &[])
            .map_or_else(|| "0.0.0".to_owned(), |(version, _)| version.to_string());
        let uname = rustix::system::uname();
        let manifest = json!({
            "format": 1, "product": config.product, "version": version, "arch": uname.machine().to_string_lossy(),
            "channel": config.channel, "released": now, "components": components,
            "services": [{"name": "quantix-controlplane", "runs": "bin/qx-controlplane", "uses": uses}],
            "health": [{"type": "http", "url": "http://127.0.0.1:8080/health", "service": "quantix-controlplane"}],
        });
        let bytes = serde_json::to_vec_pretty(&manifest)
            .doing(|| "writing the manifest of the factory set")?;
        let manifest = Manifest::parse(&bytes).map_err(Error::new)?;
        let place = host.path(&config.factory_manifest)?;
        self.plan
            .push(format!("{} says so, as version {version}", place.display()));
        self.factory = Some((place, bytes));
        Ok(manifest)
    }

    /// An init script that does not look below the data directory yet.
    fn script(&mut self, host: &Host, service: &Service, factory: &str) -> Result<()> {
        let path = host.path(&format!("/etc/init.d/{}", service.name))?;
        if is_absent(&path) || init_script::check(&path, service, factory).is_ok() {
            return Ok(());
        }
        let before = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
        let rule = format!("[ -x /data/{0} ] && command=/data/{0}", service.runs);
        let after = moved(&before, factory, &rule);
        let scratch = Scratch::new()?;
        let tried = scratch.path("script");
        fs::write(&tried, &after).doing(|| format!("writing {}", tried.display()))?;
        init_script::check(&tried, service, factory).map_err(|_| {
            Error::new(format!(
                "{} starts {factory} in a way that cannot be changed from here: have it look for /data/{} first: {rule}",
                text::path(&path),
                service.runs
            ))
        })?;
        self.plan.push(format!(
            "{} looks for /data/{} first",
            path.display(),
            service.runs
        ));
        self.scripts.push((path, before, after));
        Ok(())
    }

    /// Does it: what is replaced is kept first. Each step can be the last, and the next adoption goes on from there: a script that looks
    /// below the data directory starts what it did as long as nothing is there, and the factory set's manifest, the last step, says that all
    /// is done.
    pub fn carry_out(&self, store: &Store) -> Result<()> {
        let kept = store.path(SCRIPTS);
        durable::create_dir(&kept, 0o755)?;
        for (path, before, _) in &self.scripts {
            let name = path.file_name().unwrap_or_default();
            durable::write_with_mode(&kept.join(name), before.as_bytes(), mode(path)?)?;
        }
        for (path, _, after) in &self.scripts {
            durable::write_with_mode(path, after.as_bytes(), mode(path)?)?;
        }
        if let Some((path, bytes)) = &self.factory {
            durable::write_with_mode(&store.path(FACTORY), bytes, 0o644)?;
            tree::make_parents(path)?;
            durable::write_with_mode(path, bytes, 0o644)?;
        }
        Ok(())
    }
}

/// Puts back what was replaced; whether there was anything.
pub fn undo(host: &Host, store: &Store, config: &Config) -> Result<bool> {
    let kept = store.path(SCRIPTS);
    if is_absent(&kept) {
        return Ok(false);
    }
    // In the reverse order.
    let (ours, place) = (store.path(FACTORY), host.path(&config.factory_manifest)?);
    if let (Ok(ours), Ok(there)) = (fs::read(&ours), fs::read(&place))
        && ours == there
    {
        durable::remove(&place)?;
    }
    durable::remove(&ours)?;
    let reading = || format!("reading {}", kept.display());
    for entry in fs::read_dir(&kept).doing(reading)? {
        let path = entry.doing(reading)?.path();
        let before = fs::read(&path).doing(|| format!("reading {}", path.display()))?;
        let name = path.file_name().unwrap_or_default();
        let place = host.path("/etc/init.d")?.join(name);
        durable::write_with_mode(&place, &before, mode(&path)?)?;
        durable::remove(&path)?;
    }
    durable::remove_empty(&kept)?;
    // It may hold directories yet.
    if fs::read_dir(store.path("adopted")).is_ok_and(|mut entries| entries.next().is_none()) {
        durable::remove_empty(&store.path("adopted"))?;
    }
    Ok(true)
}

fn mode(path: &Path) -> Result<u32> {
    let meta = fs::metadata(path).doing(|| format!("examining {}", path.display()))?;
    Ok(meta.permissions().mode() & 0o7777)
}

/// The script with the rule behind the last line that names the factory's program as the command.
fn moved(script: &str, factory: &str, rule: &str) -> String {
    let names_it = |line: &&str| {
        let value = line.trim().strip_prefix("command=").unwrap_or_default();
        value.trim_matches(['"', '\'']) == factory
    };
    let last = script.lines().rfind(names_it);
    let mut after = String::new();
    for line in script.lines() {
        after += line;
        after.push('\n');
        if Some(line) == last {
            let indent = &line[..line.len() - line.trim_start().len()];
            after += &format!("{indent}{rule}\n");
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_follows_the_command() {
        let script = "#!/sbin/openrc-run\nname=x\ncommand=\"/usr/bin/qx-controlplane\"\ncommand_args=\"--serve\"\n";
        let after = moved(script, "/usr/bin/qx-controlplane", "RULE");
        assert_eq!(
            after,
            "#!/sbin/openrc-run\nname=x\ncommand=\"/usr/bin/qx-controlplane\"\nRULE\ncommand_args=\"--serve\"\n"
        );
        // Another program's line is left alone.
        let other = "command=/usr/bin/other\n";
        assert_eq!(moved(other, "/usr/bin/qx-controlplane", "RULE"), other);
    }
}
