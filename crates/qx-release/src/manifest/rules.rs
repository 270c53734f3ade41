//! The rules that hold between the fields of a manifest.

use std::collections::BTreeSet;

use super::names::shortened;
use super::{
    Check, Component, Kind, MAX_ENTRIES, MAX_ITEMS, MAX_RETRIES, MAX_SECONDS, MAX_SIZE, Manifest,
    Migrate, Name, Probe, RelPath, Service, placeholder,
};
use crate::json;
use crate::text;
use crate::url::Url;

/// The longest version, in bytes.
const MAX_VERSION: usize = 255;

impl Manifest {
    /// The rules that hold between fields.
    pub fn check(&self) -> Result<(), String> {
        for (what, count) in [
            ("components", self.components.len()),
            ("removed", self.removed.len()),
            ("services", self.services.len()),
            ("data", self.data.len()),
            ("health", self.health.len()),
        ] {
            if count > MAX_ITEMS {
                return Err(format!(
                    "{what}: {count} items exceed the limit of {MAX_ITEMS}"
                ));
            }
        }
        if self.version.to_string().len() > MAX_VERSION {
            return Err(format!("version: it is longer than {MAX_VERSION} bytes"));
        }
        if self.components.is_empty() {
            return Err("components: at least one is required".into());
        }
        let mut names = BTreeSet::new();
        for component in &self.components {
            component.check()?;
            if !names.insert(&component.name) {
                return Err(format!("components: duplicate '{}'", component.name));
            }
        }
        self.check_paths()?;
        for service in &self.services {
            self.check_service(service)?;
        }
        unique("services", self.services.iter().map(|s| &s.name))?;
        unique("data", self.data.iter().map(|d| &d.name))?;
        for data in &self.data {
            if data.accepts_from > data.accepts_to {
                return Err(format!(
                    "data: {}: accepts_from is greater than accepts_to",
                    data.name
                ));
            }
            if !(data.accepts_from..=data.accepts_to).contains(&data.schema_after) {
                return Err(format!(
                    "data: {}: schema_after is {}, which the release itself does not accept ({} to {})",
                    data.name, data.schema_after, data.accepts_from, data.accepts_to
                ));
            }
        }
        if let Some(migrate) = &self.migrate {
            self.check_migration(migrate)?;
            seconds("migrate.timeout_s", migrate.timeout_s)?;
            if migrate.timeout_s == 0 {
                return Err("migrate.timeout_s: it must be at least 1".into());
            }
        }
        seconds("watch.for_s", self.watch.for_s)?;
        self.health
            .iter()
            .try_for_each(|check| self.check_health(check))
    }

    fn check_service(&self, service: &Service) -> Result<(), String> {
        let wrong = |what: String| Err(format!("services: {} {what}", service.name));
        // What holds a program without being it is a tree.
        if self
            .holding(&service.runs)
            .is_none_or(|held| (held.kind == Kind::Tree) == (held.install_path == service.runs))
        {
            return wrong(format!(
                "runs {}, which is neither a bin component of this release nor inside a tree",
                service.runs
            ));
        }
        if let Some(name) = service.uses.iter().find(|n| self.component(n).is_none()) {
            return wrong(format!(
                "uses {name}, which is not a component of this release"
            ));
        }
        if service.uses.len() > MAX_ITEMS {
            return wrong(format!("uses more than {MAX_ITEMS} components"));
        }
        if service.leaves.len() > MAX_ITEMS {
            return wrong(format!("leaves more than {MAX_ITEMS} programs"));
        }
        Ok(())
    }

    /// No path may lie on or below another component's: who owns a file must be plain.
    fn check_paths(&self) -> Result<(), String> {
        let installed = self.components.iter().map(|c| &c.install_path);
        let mut paths: Vec<&RelPath> = installed.chain(&self.removed).collect();
        // By segment, so that everything below a path follows it at once.
        paths.sort_by(|a, b| a.as_str().split('/').cmp(b.as_str().split('/')));
        for pair in paths.windows(2) {
            if pair[1].below(pair[0]).is_some() {
                return Err(format!("components: {} and {} overlap", pair[0], pair[1]));
            }
        }
        Ok(())
    }

    fn check_vector(&self, what: &str, vector: &[String]) -> Result<(), String> {
        let Some(program) = vector.first() else {
            return Err(format!("{what}: the argument vector is empty"));
        };
        let path: RelPath = program.parse().map_err(|e| format!("{what}: {e}"))?;
        if !self
            .components
            .iter()
            .any(|c| path.below(&c.install_path).is_some())
        {
            return Err(format!(
                "{what}: no component of this release contains {path}"
            ));
        }
        if vector.len() > MAX_ITEMS || vector.iter().any(|arg| arg.contains('\0')) {
            return Err(format!(
                "{what}: more than {MAX_ITEMS} arguments, or a NUL byte in one"
            ));
        }
        Ok(())
    }

    fn check_migration(&self, migrate: &Migrate) -> Result<(), String> {
        for (what, vector) in migrate.vectors() {
            if what == "migrate.run" || !vector.is_empty() {
                self.check_vector(what, vector)?;
            }
            for argument in vector {
                if let Some(name) = unknown_place(argument, &migrate.touches) {
                    return Err(format!(
                        "{what}: {{data:{name}}} names a data set that migrate.touches does not list"
                    ));
                }
            }
        }
        for name in &migrate.touches {
            if !self.data.iter().any(|data| data.name == *name) {
                return Err(format!("migrate.touches: {name} is not in data"));
            }
            let place = placeholder(name);
            let on_a_copy = !migrate.in_place || migrate.rehearse;
            if on_a_copy && !migrate.run.iter().any(|argument| argument.contains(&place)) {
                return Err(format!(
                    "migrate.run: {place} is missing, so the migration cannot run on a copy of the data; one that must run on \
                     the live data needs `in_place`"
                ));
            }
        }
        for data in &self.data {
            let down = !migrate.down.is_empty() && migrate.touches.contains(&data.name);
            if down && data.schema_down.is_none() {
                return Err(format!(
                    "data: {}: migrate.down needs `schema_down`, the schema after the downgrade",
                    data.name
                ));
            }
        }
        Ok(())
    }

    fn check_health(&self, check: &Check) -> Result<(), String> {
        for (what, value) in [
            ("interval_s", check.interval_s),
            ("timeout_s", check.timeout_s),
            ("start_period_s", check.start_period_s),
            ("stable_s", check.stable_s),
        ] {
            seconds(&format!("health.{what}"), value)?;
        }
        if check.retries > MAX_RETRIES {
            return Err(format!(
                "health.retries: {} exceeds the limit of {MAX_RETRIES}",
                check.retries
            ));
        }
        if check.interval_s == 0 || check.timeout_s == 0 {
            return Err("health: interval_s and timeout_s must be at least 1".into());
        }
        if let Some(service) = &check.of {
            self.check_is_ours(service)?;
        }
        self.check_probe(&check.probe)
    }

    fn check_is_ours(&self, service: &Name) -> Result<(), String> {
        match self.services.iter().any(|s| s.name == *service) {
            true => Ok(()),
            false => Err(format!(
                "health: {service} is not a service of this release"
            )),
        }
    }

    /// Whether it can ever be answered.
    fn check_probe(&self, probe: &Probe) -> Result<(), String> {
        match probe {
            Probe::Http { url, status, json } => {
                let parsed = Url::parse(url).map_err(|why| format!("health: {why}"))?;
                if parsed.is_https() {
                    return Err(format!(
                        "health: '{}' is not an http:// URL",
                        shortened(&text::url(url))
                    ));
                }
                json::in_range("health.status", (*status).into(), 100..=599)?;
                match json {
                    Some(json) if !is_pointer(&json.pointer) => Err(format!(
                        "health: '{}' is not a JSON pointer such as /version",
                        shortened(&json.pointer)
                    )),
                    _ => Ok(()),
                }
            }
            // What a URL has between its slashes.
            Probe::Tcp { address } => {
                let bad = || format!("health: '{}' is not HOST:PORT", shortened(address));
                let plain = !address.contains(['/', '?', '#']) && has_port(address);
                let url = Url::parse(&format!("http://{address}")).map_err(|_| bad())?;
                (plain && url.port > 0).then_some(()).ok_or_else(bad)
            }
            Probe::Exec { run } => self.check_vector("health.run", run),
            Probe::Service { service } => self.check_is_ours(service),
        }
    }
}

/// RFC 6901: of `~` there are two escapes.
fn is_pointer(text: &str) -> bool {
    let mut escapes = text.split('~').skip(1);
    let escaped = escapes.all(|rest| rest.starts_with(['0', '1']));
    escaped && (text.is_empty() || text.starts_with('/'))
}

fn has_port(address: &str) -> bool {
    let port = address.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

impl Component {
    fn check(&self) -> Result<(), String> {
        if self.entries > MAX_ENTRIES {
            return Err(format!(
                "components: {}: {} entries exceed the limit of {MAX_ENTRIES}",
                self.name, self.entries
            ));
        }
        let field = format!("components: {}: size_bytes", self.name);
        json::in_range(&field, self.size_bytes, 0..=MAX_SIZE)?;
        let path = self.install_path.as_str();
        let placed = match self.kind {
            Kind::Bin => path.contains('/'),
            Kind::Tree => path.contains('/') || path == "migrations",
        };
        let known = ["bin/", "share/", "migrations/"]
            .iter()
            .any(|top| path.starts_with(top));
        if !placed || !(known || path == "migrations") {
            return Err(format!(
                "components: {}: install_path {path} is not below bin/, share/ or migrations",
                self.name
            ));
        }
        if self.kind == Kind::Bin && self.mode.0 & 0o100 == 0 {
            return Err(format!(
                "components: {} is a bin, but its mode is not executable",
                self.name
            ));
        }
        if self.kind == Kind::Tree && !self.capabilities.is_none() {
            return Err(format!(
                "components: {}: a tree has no capabilities; a program that needs them is a component of its own (kind bin)",
                self.name
            ));
        }
        if let Some(path) = &self.factory_path {
            let good = path.strip_prefix('/').map(|rest| rest.parse::<RelPath>());
            if !matches!(good, Some(Ok(_))) {
                return Err(format!(
                    "components: {}: factory_path '{}' is not a plain absolute path",
                    self.name,
                    shortened(path)
                ));
            }
        }
        Ok(())
    }
}

/// The name in the first `{data:NAME}` that is not one of these.
fn unknown_place<'a>(argument: &'a str, names: &[Name]) -> Option<&'a str> {
    let places = argument.split("{data:").skip(1);
    let named = places.map(|rest| rest.split('}').next().unwrap_or(rest));
    named
        .into_iter()
        .find(|name| !names.iter().any(|known| known.as_str() == *name))
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a Name>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("{what}: duplicate '{name}'"));
        }
    }
    Ok(())
}

fn seconds(what: &str, value: u64) -> Result<(), String> {
    if value > MAX_SECONDS {
        return Err(format!(
            "{what}: {value} seconds exceed the limit of {MAX_SECONDS}"
        ));
    }
    Ok(())
}
